"Files of images, byte by byte, for tests: what a library that writes images would refuse to write."
import io, struct, zlib

import numpy as np

from catdog.sample.draw import draw

def saved(img, format='PNG', **kw):
    "The bytes of `img` in a file of `format`"
    f = io.BytesIO()
    img.save(f, format, **kw)
    return f.getvalue()

def exif_block(*tags, order='<'):
    "An EXIF block with `tags`, each (number, type, how many values, 4 bytes)"
    body = b''.join(struct.pack(order + 'HHI', *o[:3]) + o[3] for o in tags)
    return {'<': b'II*\0', '>': b'MM\0*'}[order] + struct.pack(order + 'IH', 8, len(tags)) + body + bytes(20)

def with_exif(img, exif, format):
    "`img` in a file of `format` with the block `exif` as it is, broken or not"
    if format in ('JPEG', 'MPO'):
        more,segment = dict(save_all=True, append_images=[img]) if format == 'MPO' else {},b'Exif\0\0' + exif
        data = saved(img, format, **more)
        return data[:2] + b'\xff\xe1' + struct.pack('>H', len(segment) + 2) + segment + data[2:]
    return saved(img, format, exif=b'Exif\0\0' + exif)

def avif_turned(img, number, exif):
    "An AVIF file of `img` that says that it is stored as `number`, with the block `exif`, broken or not"
    turn = 0x112, 3, 1, struct.pack('<HH', number, 0)
    sound = exif_block(turn, *((0xc000 + i, 3, 1, bytes(4)) for i in range((len(exif) - 30)//12)))
    data = saved(img, 'AVIF', exif=b'Exif\0\0' + sound)
    at = data.index(b'II*\0')   # the writer took the orientation out and wrote it beside
    return data[:at] + exif[:len(exif) - 20] + data[at + len(exif) - 20:]

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
    "A TIFF file of one number a pixel: `kind` is 1 for whole ones, 2 for those with a sign, 3 for floats"
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
    "`folder` with `n` drawings each of cats and dogs, from number `first` on; `size(i)` in pixels"
    for label in ('cat', 'dog'):
        (folder/label).mkdir(parents=True)
        for i in range(n): draw(label, first + i, size(i)).save(folder/label/f'{i}.png')
    return folder
