#!/usr/bin/env bash
# Pillow mixes up the bytes of a 16-bit RGB TIFF file whose colours are stored as planes, one after the other.
#
# The same red, green and blue (18%, 50%, 75%) come out right if the file stores them pixel by pixel, or in 8 bits. As
# three planes of 16 bits, the two bytes of each number are taken for two pixels, so every other pixel shows the lower
# bytes. There is no error. Seen with Pillow 13.0.0 and tifffile 2025.10.16:
#     8 bits, pixel by pixel: [(46, 127, 191), (46, 127, 191), (46, 127, 191), (46, 127, 191)]
#     8 bits, planes: [(46, 127, 191), (46, 127, 191), (46, 127, 191), (46, 127, 191)]
#     16 bits, pixel by pixel: [(46, 127, 191), (46, 127, 191), (46, 127, 191), (46, 127, 191)]
#     16 bits, planes: [(46, 255, 255), (46, 127, 191), (46, 255, 255), (46, 127, 191)]
# The exit status is not 0 if this is no longer so.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check pillow==13.0.0 tifffile==2025.10.16
cd "$dir"
env/bin/python - <<'PYTHON'
import numpy as np, PIL, tifffile
from PIL import Image
print('Pillow', PIL.__version__, 'tifffile', tifffile.__version__)
seen = {}
for bits in (8, 16):
    colour = (np.array([.1804, .5, .75])*(2**bits - 1)).astype(f'uint{bits}')
    img = np.zeros((1, 4, 3), colour.dtype) + colour
    for name,layout in {'pixel by pixel': 'contig', 'planes': 'separate'}.items():
        data = img if layout == 'contig' else np.moveaxis(img, 2, 0)
        tifffile.imwrite('image.tif', data, photometric='rgb', planarconfig=layout)
        with Image.open('image.tif') as opened: seen[bits, name] = [opened.getpixel((x, 0)) for x in range(4)]
        print(f'{bits} bits, {name}: {seen[bits, name]}')
right = [(46, 127, 191)]*4
assert seen.pop((16, 'planes')) == [(46, 255, 255), (46, 127, 191)]*2 and all(o == right for o in seen.values())
PYTHON
