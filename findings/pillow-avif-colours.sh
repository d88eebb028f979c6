#!/usr/bin/env bash
# Pillow opens an AVIF file in Display P3 or for HDR screens as if it were sRGB, and its `info` does not say so.
#
# An AVIF file without an ICC profile says in code points (ITU-T H.273) which primaries and which curve its numbers are
# meant for: 1 and 13 is sRGB, 12 and 13 Display P3, 9 and 16 an HDR image (BT.2020, PQ). One would expect other pixels
# for each, or the code points in `info`, as PNG files give `gamma`, `chromaticity` and `srgb`. Seen with Pillow 13.0.0,
# for one file in which only these two numbers are changed; Chromium 153 and Firefox 153 show P3 as (217, 43, 0):
#     sRGB: pixel (200, 61, 30), info: duration, timestamp
#     Display P3: pixel (200, 61, 30), info: duration, timestamp
#     HDR: pixel (200, 61, 30), info: duration, timestamp
# The exit status is not 0 if this is no longer so.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check pillow==13.0.0
"$dir/env/bin/python" - <<'PYTHON'
import io, PIL, struct
from PIL import Image
print('Pillow', PIL.__version__)
file = io.BytesIO()
Image.new('RGB', (64, 64), (200, 60, 30)).save(file, 'AVIF', quality=95, subsampling='4:4:4')
data = file.getvalue()
at = data.index(b'colrnclx') + 8   # the box that counts, whatever the AV1 data say
assert struct.unpack_from('>HH', data, at) == (1, 13)
seen = {}
for name,codes in {'sRGB': (1, 13), 'Display P3': (12, 13), 'HDR': (9, 16)}.items():
    with Image.open(io.BytesIO(data[:at] + struct.pack('>HH', *codes) + data[at + 4:])) as img:
        seen[name] = img.getpixel((5, 5)),sorted(img.info)
    print(f'{name}: pixel {seen[name][0]}, info: {", ".join(seen[name][1])}')
assert seen['sRGB'] == seen['Display P3'] == seen['HDR']
PYTHON
