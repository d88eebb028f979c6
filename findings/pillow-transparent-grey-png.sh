#!/usr/bin/env bash
# Pillow ignores the transparent colour of a grey PNG file with 2 or 4 bits per pixel, unless that colour is black.
#
# A grey PNG may name one grey as transparent (its tRNS chunk), in the depth of the file: 0 to 3 for 2 bits. Pillow
# scales the pixels to 0 to 255 when it loads them, but not that number, so convert('RGBA') finds no pixel that matches.
# Browsers show the pixel as transparent. Seen with Pillow 13.0.0: the alpha values of four pixels, of which the second
# (2 and 4 bits: 85 after scaling) is the transparent one:
#     2 bits: [255, 255, 255, 255]
#     4 bits: [255, 255, 255, 255]
#     8 bits: [255, 0, 255, 255]
# The exit status is not 0 if this is no longer so.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check pillow==13.0.0
"$dir/env/bin/python" - <<'PYTHON'
import io, struct, zlib, PIL
from PIL import Image
def chunk(name, data): return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
def alphas(bits, pixels, transparent):
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', 4, 1, bits, 0, 0, 0, 0))
    rest = chunk(b'tRNS', struct.pack('>H', transparent)) + chunk(b'IDAT', zlib.compress(b'\0' + pixels))
    data = b'\x89PNG\r\n\x1a\n' + header + rest + chunk(b'IEND', b'')
    return list(Image.open(io.BytesIO(data)).convert('RGBA').getchannel('A').tobytes())
print('Pillow', PIL.__version__)
seen = {2: alphas(2, bytes([0b00011011]), 1), 4: alphas(4, bytes([0x05, 0xaf]), 5),
        8: alphas(8, bytes([0, 85, 170, 255]), 85)}
for bits,values in seen.items(): print(f'{bits} bits: {values}')
assert seen == {2: [255]*4, 4: [255]*4, 8: [255, 0, 255, 255]}
PYTHON
