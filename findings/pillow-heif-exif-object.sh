#!/usr/bin/env bash
# pillow-heif loses the orientation if it is given as an Image.Exif object; as bytes it is kept.
#
# A HEIC file is rotated by properties of its container (irot, imir); readers ignore the orientation in its EXIF block,
# and so does pillow-heif, which resets it. From save(exif=BYTES) it writes these properties; from save(exif=OBJECT),
# which Pillow's other formats take alike, it writes the EXIF block alone. Seen with Pillow 13.0.0 and pillow-heif
# 1.8.1: the size of a 64 x 32 image, saved with the orientation "a quarter turn", as a viewer shows it:
#     JPEG, exif=bytes: (32, 64)
#     JPEG, exif=object: (32, 64)
#     HEIF, exif=bytes: (32, 64)
#     HEIF, exif=object: (64, 32)
# The exit status is not 0 if this is no longer so.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check pillow==13.0.0 pillow_heif==1.8.1
"$dir/env/bin/python" - <<'PYTHON'
import io, PIL, pillow_heif
from PIL import Image, ImageOps
pillow_heif.register_heif_opener()
print('Pillow', PIL.__version__, 'pillow-heif', pillow_heif.__version__)
exif = Image.Exif()
exif[0x112] = 6   # the orientation
seen = {}
for format in ('JPEG', 'HEIF'):
    for name,value in {'bytes': exif.tobytes(), 'object': exif}.items():
        file = io.BytesIO()
        Image.new('RGB', (64, 32), 'red').save(file, format, exif=value)
        seen[format, name] = ImageOps.exif_transpose(Image.open(file)).size
        print(f'{format}, exif={name}: {seen[format, name]}')
assert seen.pop(('HEIF', 'object')) == (64, 32) and set(seen.values()) == {(32, 64)}
PYTHON
