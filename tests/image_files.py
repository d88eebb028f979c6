"Image files and colour profiles for tests, byte by byte where no library would write them"
import io, struct, zlib

import numpy as np

from catdog.sample.draw import draw

def saved(img, format='PNG', **kw):
    "The bytes of `img` in a file of `format`"
    f = io.BytesIO()
    img.save(f, format, **kw)
    return f.getvalue()

def coded(data, primaries, curve):
    "The AVIF file `data` in other colours (ITU-T H.273)"
    at = data.index(b'colrnclx') + 8
    return data[:at] + struct.pack('>HH', primaries, curve) + data[at + 4:]

def exif_block(*tags, order='<'):
    "An EXIF block with `tags`, each (number, type, how many values, 4 bytes)"
    body = b''.join(struct.pack(order + 'HHI', *o[:3]) + o[3] for o in tags)
    return {'<': b'II*\0', '>': b'MM\0*'}[order] + struct.pack(order + 'IH', 8, len(tags)) + body + bytes(20)

def with_exif(img, exif, format):
    "Encode `img` in `format` with the block `exif` unchanged, valid or not"
    if format in ('JPEG', 'MPO'):
        more,segment = dict(save_all=True, append_images=[img]) if format == 'MPO' else {},b'Exif\0\0' + exif
        data = saved(img, format, **more)
        return data[:2] + b'\xff\xe1' + struct.pack('>H', len(segment) + 2) + segment + data[2:]
    return saved(img, format, exif=b'Exif\0\0' + exif)

def tiff(pixels, order='<', **tags):
    "A TIFF file with `pixels` (bytes) and `tags`: t256=(value, ...), or (type, how many values, 4 bytes)"
    size,tags = len(tags) + 2,{int(k[1:]): v for k,v in tags.items()}
    tags |= {273: (10 + 12*size + 4,), 279: (len(pixels),)}
    def _entry(tag, v):
        if isinstance(v[-1], bytes): return struct.pack(order + 'HHI', tag, *v[:2]) + v[2]
        short = max(v) < 65_536
        return struct.pack(order + 'HHI', tag, 3 if short else 4, len(v)) + struct.pack(
            order + str(len(v)) + ('H' if short else 'I'), *v).ljust(4, b'\0')
    body = b''.join(_entry(*o) for o in sorted(tags.items()))
    return {'<': b'II*\0', '>': b'MM\0*'}[order] + struct.pack(order + 'IH', 8, len(tags)) + body + bytes(4) + pixels

def grey_tiff(a, bits, photometric, kind=1, order='<', fill=1):
    "A TIFF file of one number a pixel: `kind` is 1 for unsigned, 2 for signed integers, 3 for floats"
    if bits == 1: pixels = np.packbits(a.astype(bool), axis=1, bitorder='big' if fill == 1 else 'little').tobytes()
    elif bits == 12:
        x,y = a.reshape(-1, 2).T
        pixels = np.stack([x >> 4, (x & 15) << 4 | y >> 8, y & 255], 1).astype('uint8').tobytes()
    else: pixels = a.astype(order + ' uif'[kind] + str(bits//8)).tobytes()
    h,w = a.shape
    return tiff(pixels, order, t256=(w,), t257=(h,), t258=(bits,), t259=(1,), t262=(photometric,), t266=(fill,),
                t277=(1,), t278=(h,), t339=(kind,))

def rgb_tiff(img, order='<', **tags):
    "A TIFF file of the RGB image `img`, with further `tags` as for `tiff`"
    base = dict(t256=(img.width,), t257=(img.height,), t258=(8,), t259=(1,), t262=(2,), t277=(3,), t278=(img.height,))
    return tiff(img.tobytes(), order, **{**base, **tags})

def chunk(name, body):
    "A chunk of a PNG file"
    return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))

def packed(a, depth):
    "The rows of the array `a`, (h,w,channels), as bytes of numbers of `depth` bits"
    if depth >= 8: return [o.astype('>u2' if depth > 8 else 'u1').tobytes() for o in a]
    bits = (a[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    return [np.packbits(o.ravel().astype(bool)).tobytes() for o in bits]

def png(rows, width, depth, kind, *before, interlaced=0):
    "A PNG file of `rows` (packed bytes each), with the chunks `before` its pixels"
    head = struct.pack('>IIBBBBB', width, len(rows), depth, kind, 0, 0, interlaced)
    pixels = zlib.compress(b''.join(b'\0' + o for o in rows))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + b''.join(before) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')

def bmp(img, alpha):
    "A BMP file of `img` with 32 bits a pixel, of which 8 are `alpha` (a number or an array)"
    pixels = np.zeros((img.height, img.width, 4), 'uint8')
    pixels[..., :3],pixels[..., 3] = np.asarray(img)[::-1, :, ::-1],alpha
    masks = 0xff0000, 0xff00, 0xff, 0xff000000
    head = struct.pack('<IiiHHIIiiIIIIII', 108, *img.size, 1, 32, 3, pixels.size, 2835, 2835, 0, 0, *masks)
    return b'BM' + struct.pack('<IHHI', 122 + pixels.size, 0, 0, 122) + head + b'BGRs' + bytes(48) + pixels.tobytes()

def write_drawings(folder, n, first, size=lambda i: None):
    "Draw `n` cats and dogs each into `folder`, from number `first` on; `size(i)` in pixels"
    for label in ('cat', 'dog'):
        (folder/label).mkdir(parents=True)
        for i in range(n): draw(label, first + i, size(i)).save(folder/label/f'{i}.png')
    return folder

# Colour profiles, and the colours that they mean

D50 = np.array([.9642, 1, .8249])
BRADFORD = np.array([[.8951, .2664, -.1614], [-.7502, 1.7135, .0367], [.0389, -.0685, 1.0296]])   # adapts to a white

def to_xyz(*primaries, white=(.3127, .3290)):
    "The matrix from linear RGB to XYZ with a white of D50, from x and y of red, green, blue and white"
    def _light(x, y): return np.array([x/y, 1, (1 - x - y)/y])
    matrix = np.stack([_light(*o) for o in primaries], 1)
    matrix = matrix*np.linalg.solve(matrix, _light(*white))
    return np.linalg.inv(BRADFORD) @ np.diag(BRADFORD @ D50/(BRADFORD @ _light(*white))) @ BRADFORD @ matrix

SRGB = to_xyz((.64, .33), (.3, .6), (.15, .06))
DISPLAY_P3 = to_xyz((.68, .32), (.265, .69), (.15, .06))
ADOBE_RGB = to_xyz((.64, .33), (.21, .71), (.15, .06))

def srgb_of(xyz):
    "The sRGB pixels, 0 to 255, that show the light `xyz`"
    light = (xyz @ np.linalg.inv(SRGB).T).clip(0, 1)
    return 255*np.where(light <= .0031308, light*12.92, 1.055*light**(1/2.4) - .055)

def _fixed(*numbers): return b''.join(struct.pack('>i', round(o*65_536)) for o in numbers)
def _xyz(xyz): return b'XYZ \0\0\0\0' + _fixed(*xyz)

def _profile(space, kind, connection, entries):
    "An ICC profile (version 2.4) for colours of `space`"
    entries = {'desc': b'desc\0\0\0\0\0\0\0\5made\0' + bytes(79), 'cprt': b'text\0\0\0\0none\0', 'wtpt': _xyz(D50),
               **entries}
    table,data,start = struct.pack('>I', len(entries)),b'',132 + 12*len(entries)
    for name,o in entries.items():
        table += name.encode() + struct.pack('>II', start + len(data), len(o))
        data += o + bytes(-len(o)%4)
    head = struct.pack('>I4x4s4s4s4s6H4s28x', 128 + len(table + data), b'\2\x40\0\0',
                       *(o.encode() for o in (kind, space, connection)), 2024, 1, 1, 0, 0, 0, b'acsp')
    return head + _fixed(*D50) + bytes(48) + table + data

def _curve(gamma):
    if gamma == 'srgb': return b'para\0\0\0\0\0\3\0\0' + _fixed(2.4, 1/1.055, .055/1.055, 1/12.92, .04045)
    return b'curv\0\0\0\0' + struct.pack('>IH', 1, round(gamma*256))

def matrix_profile(matrix, gamma):
    "The profile of a screen with the primaries of `matrix`; `gamma` is a number or 'srgb'"
    names = [f'{o}{what}' for what in ('XYZ', 'TRC') for o in 'rgb']
    return _profile('RGB ', 'mntr', 'XYZ ', dict(zip(names, [*map(_xyz, matrix.T), *[_curve(gamma)]*3])))

def grey_profile(gamma): return _profile('GRAY', 'mntr', 'XYZ ', {'kTRC': _curve(gamma)})

def ink_profile(xyz_of, steps=17):
    "The profile of a press whose inks, an array of shape (n,4), 0 to 1, show the light `xyz_of` them, shape (n,3)"
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, steps)]*4, indexing='ij'), -1).reshape(-1, 4)
    f = xyz_of(grid)/D50
    f = np.where(f > 216/24_389, np.cbrt(f), (24_389/27*f + 16)/116)
    lab = np.stack([(116*f[:, 1] - 16)*652.8, (500*(f[:, 0] - f[:, 1]) + 128)*256,
                    (200*(f[:, 1] - f[:, 2]) + 128)*256], 1)
    straight = struct.pack('>HH', 0, 65_535)
    table = b'mft2\0\0\0\0' + bytes([4, 3, steps, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + struct.pack('>HH', 2, 2)
    table += straight*4 + lab.round().clip(0, 65_535).astype('>u2').tobytes() + straight*3
    return _profile('CMYK', 'prtr', 'Lab ', {'A2B0': table})
