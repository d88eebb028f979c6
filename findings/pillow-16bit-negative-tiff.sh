#!/usr/bin/env bash
# Pillow opens a 16-bit grey TIFF file in which 0 is white as a negative; an 8-bit one it opens right.
#
# The tag PhotometricInterpretation says whether 0 is white or black, and scans often use the former. Pillow inverts
# such a file if it has 8 bits, and ignores the tag if it has 16. Seen with Pillow 13.0.0 and tifffile 2025.10.16, for
# an image that is a quarter of the way from white to black:
#     8 bits: 191 of 255 (75% of white)
#     16 bits: 16384 of 65535 (25% of white)
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
    top = 2**bits - 1
    tifffile.imwrite('scan.tif', np.full((4, 4), round(top*.25), f'uint{bits}'), photometric='miniswhite')
    with Image.open('scan.tif') as opened: value = opened.getpixel((0, 0))
    seen[bits] = round(value/top, 2)
    print(f'{bits} bits: {value} of {top} ({value/top:.0%} of white)')
assert seen == {8: .75, 16: .25}
PYTHON
