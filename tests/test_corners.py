"""Corners of the image formats: `open_image` gives the pixels that Chromium shows, or refuses the file with a sentence.
Chromium shows no TIFF files: those are compared with the pixels that were written."""
import base64, io, itertools, struct, zlib

import numpy as np, pillow_heif, pytest
from image_files import (ADOBE_RGB, DISPLAY_P3, SRGB, bmp, chunk, coded, exif_block, grey_profile, ink_profile, matrix_profile,
                         packed,
    saved, tiff)
from PIL import Image, ImageCms

from catdog.core.errors import ImageError
from catdog.core.images import open_image

W,H = 32,16
_x,_y = np.meshgrid(np.linspace(0, 1, W), np.linspace(0, 1, H))
SMOOTH = (255*np.stack([_x, 1 - _y, (_x + _y)/2], -1)).round().astype('uint8')
INDEX = (np.arange(W)*3 + np.arange(H)[:, None]*5)%256
ALPHA = (255*_x).round().astype('uint8')
IMG,SIDEWAYS = Image.fromarray(SMOOTH).resize((96, 64)),b'\6\0\0\0'
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype='uint8'))
CLEAR = Image.fromarray(np.dstack([SMOOTH, ALPHA]))
PALETTE = np.random.default_rng(1).integers(0, 256, 768, dtype='uint8').tobytes()
TURN = exif_block((0x112, 3, 1, SIDEWAYS))
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">' \
      b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'

def press(inks):
    light = 1 - np.array([[.2, .4, .7], [.7, .2, .4], [.8, .7, .1], [.1]*3])
    return np.prod(1 - inks[..., None]*light, -2) @ SRGB.T

P3,ADOBE = matrix_profile(DISPLAY_P3, 'srgb'),matrix_profile(ADOBE_RGB, 563/256)
GREY,PRESS = grey_profile(1.8),ink_profile(press, 9)
PROFILES = {'sRGB': matrix_profile(SRGB, 'srgb'), 'P3': P3, 'Adobe': ADOBE, 'grey': GREY,
            'linear': matrix_profile(SRGB, 1.),
            'inks': PRESS, 'version 4': ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes(),
            'Lab': ImageCms.ImageCmsProfile(ImageCms.createProfile('LAB')).tobytes(),
            'XYZ': ImageCms.ImageCmsProfile(ImageCms.createProfile('XYZ')).tobytes(), 'broken': P3[:150], 'empty': b''}

# PNG

DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}   # bits of each colour type
ADAM7 = (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)

def stored(kind, depth):
    "Numbers as a PNG file of colour type `kind` has them"
    if kind in (0, 3): return INDEX[..., None]%2**depth
    a = SMOOTH.astype(int)*(2**depth - 1)//255
    return {2: a, 4: a[..., :2], 6: np.dstack([a, a[..., 1]])}[kind]

def rows(a, depth): return b''.join(b'\0' + o for o in packed(a, depth))

def png(kind, depth, *before, a=None, interlaced=0, after=(), palette=PALETTE):
    a = stored(kind, depth) if a is None else a
    late = [o for o in before if o[4:8] in (b'tRNS', b'bKGD')]
    early = [o for o in before if o not in late]
    if kind == 3 and palette: early.append(chunk(b'PLTE', palette[:3*2**depth]))
    pixels = b''.join(rows(a[y::dy, x::dx], depth) for x,y,dx,dy in (ADAM7 if interlaced else [(0, 0, 1, 1)]))
    head = struct.pack('>IIBBBBB', a.shape[1], a.shape[0], depth, kind, 0, 0, interlaced)
    return b'\x89PNG\r\n\x1a\n' + b''.join([chunk(b'IHDR', head), *early, *late, chunk(b'IDAT', zlib.compress(pixels)),
                                           *after, chunk(b'IEND', b'')])

def gamma(n): return chunk(b'gAMA', struct.pack('>I', n))
def points(*xy): return chunk(b'cHRM', struct.pack('>8I', *(round(o*100_000) for o in xy)))
def iccp(profile): return chunk(b'iCCP', b'x\0\0' + zlib.compress(profile))
def cicp(*o): return chunk(b'cICP', bytes(o))
def key(*o): return chunk(b'tRNS', struct.pack(f'>{len(o)}H', *o))

XY_SRGB,XY_P3 = points(.3127, .329, .64, .33, .3, .6, .15, .06),points(.3127, .329, .68, .32, .265, .69, .15, .06)
XY_WIDE = points(.3457, .3585, .7347, .2653, .1596, .8404, .0366, .0001)
_srgb,_linear = chunk(b'sRGB', b'\0'),gamma(100_000)
COLOURS = {**{f'gamma {n}': [gamma(n)] for n in (0, 22_727, 43_100, 43_300, 45_455, 47_700, 47_800, 55_556, 100_000,
    300_000, 2**31 - 1)},
           'gamma, sRGB points': [gamma(45_455), XY_SRGB], 'points': [XY_P3], 'gamma, P3': [gamma(45_455), XY_P3],
           'gamma, wide': [gamma(55_556), XY_WIDE], 'gamma, no points': [gamma(100_000), points(*[0]*8)],
           'sRGB': [_srgb], 'sRGB, gamma': [_srgb, _linear], 'gamma, sRGB': [_linear, _srgb],
           'sRGB of no intent': [chunk(b'sRGB', b'\x09'), _linear],
           'sRGB, profile': [_srgb, iccp(P3)], 'profile, gamma': [iccp(P3), _linear],
           'broken profile, gamma': [iccp(P3[:99]), _linear],
           'no profile, gamma': [chunk(b'iCCP', b'x\0\0what'), _linear], 'cICP of sRGB': [cicp(1, 13, 0, 1)],
           'cICP of P3': [cicp(12, 13, 0, 1)],
           'cICP, profile': [cicp(1, 13, 0, 1), iccp(P3)], 'cICP, gamma': [cicp(12, 13, 0, 1), _linear],
           **{f'cICP {o}': [cicp(*o)] for o in ((9, 16, 0, 1), (9, 18, 0, 1), (1, 1, 0, 1), (1, 8, 0, 1), (2, 2, 0, 1),
               (12, 13, 0, 0))},
           **{f'profile {k}': [iccp(v)] for k,v in PROFILES.items()}}

def frame(n, w=W, h=H, x=0, y=0): return chunk(b'fcTL', struct.pack('>5IHHBB', n, w, h, x, y, 1, 10, 0, 0))
def following(n, a): return chunk(b'fdAT', struct.pack('>I', n) + zlib.compress(rows(a, 8)))

def pngs():
    for kind,depths in DEPTHS.items():
        for depth in depths:
            keys = {0: [key(int(stored(0, depth)[3, 5, 0]))], 2: [key(*map(int, stored(2, depth)[3, 5]))],
                    3: [chunk(b'tRNS', bytes([0, 128, 200, 255][:2**depth]))]}.get(kind, [])
            for interlaced,o in itertools.product((0, 1), ([], keys)):
                yield f'{kind} of {depth} bits, {interlaced} {len(o)}',png(kind, depth, *o, interlaced=interlaced)
            more = [] if (kind, depth) == (2, 16) else keys   # that is refused
            for name,o in COLOURS.items(): yield f'{kind} of {depth} bits, {name}',png(kind, depth, *o, *more)
            back = {0: b'\0\1', 4: b'\0\1', 3: b'\1'}.get(kind, b'\0\x40'*3)
            bits = bytes([min(3, depth)]*{0: 1, 4: 2, 6: 4}.get(kind, 3))
            yield f'{kind} of {depth} bits, background',png(kind, depth, chunk(b'bKGD', back), chunk(b'sBIT', bits),
                *more)
    deep,plain,small = stored(2, 16),stored(2, 8),stored(2, 8)[:8, :10]
    close = np.full((H, W, 3), 0x1234)
    close[:, ::2] = 0x1256
    lists = chunk(b'PLTE', PALETTE)
    yield from {
        'a key of high bits': png(2, 8, key(*(256 + plain[3, 5]))), 'a grey key of high bits': png(0, 4, key(257)),
        'a key nearby': png(2, 16, key(*(deep[3, 5]^1))),
        'a key in the low byte': png(2, 16, key(*[0x1234]*3), a=close),
        'a grey key in the low byte': png(0, 16, key(0x1234), a=close[..., :1]),
        'a short palette': png(3, 8, palette=PALETTE[:30]), 'no palette': png(3, 8, palette=b''),
        'a key before the palette': png(3, 8).replace(lists, chunk(b'tRNS', b'\0\x80') + lists),
        'a short key': png(0, 8, chunk(b'tRNS', b'\1')),
        'too many keys': png(3, 2, chunk(b'tRNS', bytes([0, 99, 128, 255, 7, 8]))),
        'a key and alpha': png(6, 8, key(1, 2, 3)),
        'two gammas': png(2, 8, gamma(45_455), _linear), 'gamma behind the pixels': png(2, 8, after=[_linear]),
        'gamma behind the palette': png(3, 8).replace(lists, lists + _linear),
        'a wrong check sum': png(2, 8, _linear[:-1] + b'?'),
        'a wrong note': png(2, 8, _linear, b'\0\0\0\3tEXta\0b' + bytes(4)),
        'EXIF behind the pixels': png(2, 8, after=[chunk(b'eXIf', TURN)]),
        'EXIF as in JPEG': png(2, 8, chunk(b'eXIf', b'Exif\0\0' + TURN)),
        'XMP': png(2, 8, chunk(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + XMP)),
        'EXIF as text': png(2, 8, chunk(b'zTXt', b'Raw profile type exif\0\0' + zlib.compress(
            b'\nexif\n%8d\n%s\n' % (len(TURN) + 6, (b'Exif\0\0' + TURN).hex().encode())))),
        **{f'EXIF {i}': png(2, 8, chunk(b'eXIf', exif_block((0x112, 3, 1, bytes([i, 0, 0, 0]))))) for i in range(10)},
        'EXIF of Motorola': png(2, 8, chunk(b'eXIf', exif_block((0x112, 3, 1, b'\0\6\0\0'), order='>'))),
        'rows missing': png(2, 8).replace(chunk(b'IDAT', zlib.compress(rows(plain, 8))),
            chunk(b'IDAT', zlib.compress(rows(plain[:10], 8)))),
        'rows too many': png(2, 8).replace(chunk(b'IDAT', zlib.compress(rows(plain, 8))),
            chunk(b'IDAT', zlib.compress(rows(np.tile(plain, (2, 1, 1)), 8)))),
        'an unknown chunk': png(2, 8, chunk(b'ABCD', b'?')),
        'pixels that are not square': png(2, 8, chunk(b'pHYs', struct.pack('>IIB', 1000, 3000, 1)))}.items()
    header,pixels,end = (chunk(o, body) for o,body in (
        (b'IHDR', struct.pack('>IIBBBBB', W, H, 8, 2, 0, 0, 0)), (b'IDAT', zlib.compress(rows(plain, 8))),
        (b'IEND', b'')))
    def _of(*chunks): return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)
    def _wrong(data): return data[:-1] + bytes([data[-1] ^ 255])   # its check sum
    halves = chunk(b'IDAT', pixels[8:99]),chunk(b'IDAT', pixels[99:-4])
    yield from {
        'two parts': _of(header, *halves, end),
        'text between the parts': _of(header, halves[0], chunk(b'tEXt', b'a\0b'), halves[1], end),
        'check sum of the palette': png(3, 8).replace(lists, _wrong(lists)),
        'check sum of the header': _of(_wrong(header), pixels, end),
        'check sum of the pixels': _of(header, _wrong(pixels), end),
        'check sum of the end': _of(header, pixels, _wrong(end)), 'more behind': _of(header, pixels, end, b'more'),
        'another compression': _of(chunk(b'IHDR', header[8:18] + b'\1\0\0'), pixels, end),
        'for iPhones': _of(chunk(b'CgBI', b'\x50\0\x20\2'), header, pixels, end),
        'a key behind the pixels': png(0, 8, after=[key(int(stored(0, 8)[3, 5, 0]))]),
        'a profile without a name': png(2, 8, chunk(b'iCCP', b'\0\0' + zlib.compress(P3))),
        'two profiles': png(2, 8, iccp(P3), iccp(ADOBE)), 'a long sRGB': png(2, 8, chunk(b'sRGB', b'\0\0'), _linear),
        **{f'points off by {k}': png(2, 8, gamma(45_455), points(.3127 + k, .329, .64, .33, .3, .6, .15, .06))
           for k in (.0001, .0005, .0022, .0041)}}.items()
    two,one = chunk(b'acTL', struct.pack('>II', 2, 0)),chunk(b'acTL', struct.pack('>II', 1, 0))
    yield from {
        'animation': png(2, 8, two, frame(0), after=[frame(1), following(2, 255 - plain)]),
        'animation behind another image': png(2, 8, one, after=[frame(0), following(1, 255 - plain)]),
        'small animation behind another image': png(2, 8, one, after=[frame(0, 10, 8, 5, 4), following(1, small)]),
        'animation without frames': png(2, 8, two),
        'animation too late': png(2, 8, after=[two, frame(1), following(2, 255 - plain)]),
        **{f'animation of Pillow, {mode}, {o}': saved(CLEAR.convert(mode), save_all=True,
            append_images=[CLEAR.convert(mode).rotate(180)], default_image=o)
           for mode in ('RGBA', 'LA', 'P') for o in (False, True)}}.items()

# JPEG

def segment(marker, body): return bytes([255, marker]) + struct.pack('>H', len(body) + 2) + body

def bare(data):
    "The JPEG file `data` without its APP segments"
    pos = 2
    while data[pos + 1]&0xf0 == 0xe0: pos += 2 + int.from_bytes(data[pos + 2:pos + 4], 'big')
    return data[:2] + data[pos:]

def renamed(data, names):
    "The JPEG file `data` with other numbers for its components"
    data = bytearray(data)
    for marker,step,skip in ((0xc0, 3, 10), (0xda, 2, 5)):
        at = data.index(bytes([255, marker]))
        for i,name in enumerate(names): data[at + skip + i*step] = name
    return bytes(data)

def with_segments(data, *segments): return data[:2] + b''.join(segments) + data[2:]
def adobe(kind): return segment(0xee, b'Adobe\0\x64\0\0\0\0' + bytes([kind]))
def exif(block, start=b'Exif\0\0'): return segment(0xe1, start + block)

def icc(profile, parts=1, first=1, count=None):
    size = -(-len(profile)//parts)
    return [segment(0xe2, b'ICC_PROFILE\0' + bytes([first + i,
        count or parts]) + profile[i*size:(i + 1)*size]) for i in range(parts)]

def jpegs():
    for name,img in dict(smooth=IMG, noise=NOISE.resize((96, 64)), sharp=NOISE.resize((96, 64), 0),
                         odd=NOISE.resize((95, 63)), one=NOISE.resize((1, 1))).items():
        for o,progressive in itertools.product((0, 1, 2, '4:1:1'), (False, True)):
            yield f'{name}, {o}, {progressive}',saved(img, 'JPEG', quality=90, subsampling=o, progressive=progressive)
        for mode in ('L', 'CMYK'): yield f'{name}, {mode}',saved(img.convert(mode), 'JPEG', quality=90)
        yield f'{name}, RGB',saved(img, 'JPEG', keep_rgb=True)
        yield f'{name}, restarts',saved(img, 'JPEG', restart_marker_blocks=2)
    jfif = segment(0xe0, b'JFIF\0\1\1\0\0\1\0\1\0\0')
    base,rgb,grey,inks = (bare(saved(IMG.convert(o), 'JPEG', quality=95, subsampling=0, **kw))
                          for o,kw in (('RGB', {}), ('RGB', dict(keep_rgb=True)), ('L', {}), ('CMYK', {})))
    heads = {'bare': (), 'JFIF': (jfif,), **{f'Adobe {i}': (adobe(i),) for i in range(3)},
             'JFIF, Adobe 0': (jfif, adobe(0)), 'Adobe 0, JFIF': (adobe(0), jfif)}
    for (what,data),names,(head,o) in itertools.product(dict(base=base, rgb=rgb).items(),
        (b'\1\2\3', b'RGB', b'\0\1\2', b'rgb', b'\1"#', b'YCc'), heads.items()):
        yield f'{what}, {names}, {head}',with_segments(renamed(data, names), *o)
    for names,(head,o),(profile,p) in itertools.product((b'\1\2\3\4', b'CMYK'), heads.items(),
        {'': [], 'inks': icc(PRESS, 3), 'P3': icc(P3)}.items()):
        yield f'inks, {names}, {head}, {profile}',with_segments(renamed(inks, names), *o, *p)
    for (head,o),(profile,p) in itertools.product({'': (), 'Adobe': (adobe(0),)}.items(), PROFILES.items()):
        yield f'grey, {head}, {profile}',with_segments(grey, *o, *icc(p))
        yield f'base, {head}, {profile}',with_segments(rgb if head else base, *o, *icc(p))
    two = icc(P3, 2)
    for name,o in {'two': two, 'swapped': two[::-1], 'the first': two[:1], 'the second': two[1:],
                   'of two': icc(P3, count=2), 'from 0': icc(P3, first=0),
                   'another': icc(P3) + icc(ADOBE), 'the first twice': [two[0], *two],
                   'the second twice': [*two, two[1]]}.items():
        yield f'parts of a profile: {name}',with_segments(base, *o)
    for i in range(10):
        for order in '<>': yield f'EXIF {i} {order}',with_segments(base,
            exif(exif_block((0x112, 3, 1, struct.pack(order + 'HH', i, 0)), order=order)))
    other = exif_block((0x112, 3, 1, b'\3\0\0\0'))
    tags = {'a long number': (0x112, 4, 1, SIDEWAYS), 'a byte': (0x112, 1, 1, SIDEWAYS),
            'with a sign': (0x112, 8, 1, SIDEWAYS),
            'two': (0x112, 3, 2, b'\6\0\3\0'), 'none': (0x112, 3, 0, SIDEWAYS)}
    for name,o in tags.items(): yield f'EXIF, {name}',with_segments(base, exif(exif_block(o)))
    for name,o in {'twice': [exif(TURN), exif(other)], 'after JFIF': [jfif, exif(TURN)],
                   'of another name': [exif(TURN, b'Exif\0\1')], 'of no TIFF': [exif(b'II\0\0' + TURN[4:])],
                   'in capitals': [exif(TURN, b'EXIF\0\0')],
                   'of no TIFF': [exif(b'II\0\0' + TURN[4:])], 'cut': [exif(TURN[:20])],
                   'after XMP': [exif(XMP, b'http://ns.adobe.com/xap/1.0/\0'), exif(other)],
                   'two tags': [exif(exif_block((0x112, 3, 1, SIDEWAYS),
                       (0x112, 3, 1, b'\3\0\0\0')))]}.items():
        yield f'EXIF {name}',with_segments(base, *o)
    yield 'XMP',with_segments(base, exif(XMP, b'http://ns.adobe.com/xap/1.0/\0'))
    frame,scan = base.index(b'\xff\xc0'),base.index(b'\xff\xda')
    odd = bytearray(grey)
    odd[grey.index(b'\xff\xc0') + 11] = 0x22
    yield from {'several images': saved(IMG, 'MPO', save_all=True, append_images=[IMG.rotate(180)]),
                'EXIF behind the header': base[:scan] + exif(TURN) + base[scan:],
                'more behind': base + b'more'*9, 'more before': b'more' + base, 'two files': base + grey,
                'filled': base[:2] + b'\xff'*5 + base[2:],
                '12 bits': base[:frame + 4] + b'\x0c' + base[frame + 5:],
                'arithmetic': base.replace(b'\xff\xc0', b'\xff\xc9', 1),
                'lossless': base.replace(b'\xff\xc0', b'\xff\xc3', 1),
                'height later': base[:frame + 5] + b'\0\0' + base[frame + 7:],
                'grey of two by two': bytes(odd)}.items()

# WebP

def webps():
    for name,img in dict(smooth=IMG, noise=NOISE.resize((96, 64)), sharp=NOISE.resize((96, 64), 0),
                         odd=NOISE.resize((95, 63)), clear=CLEAR).items():
        for o in (dict(quality=80), dict(lossless=True), dict(lossless=True, exact=True),
                  dict(quality=80, alpha_quality=50)): yield f'{name}, {o}',saved(img, 'WEBP', **o)
        for k,p in PROFILES.items():
            if p: yield f'{name}, profile {k}',saved(img, 'WEBP', quality=90, icc_profile=p)
    def _without(data, flag):
        data = bytearray(data)
        data[20] &= ~flag
        return bytes(data)
    moving,exif = dict(save_all=True, append_images=[IMG.rotate(180)]),b'Exif\0\0' + TURN
    for o in (dict(lossless=True), dict(quality=90)):
        yield from {f'{name}, {o}': saved(img, 'WEBP', **kw, **o) for name,(img,kw) in {
            'EXIF': (IMG, dict(exif=exif)), 'plain EXIF': (IMG, dict(exif=TURN)), 'XMP': (IMG, dict(xmp=XMP)),
            'animation': (IMG, moving), 'animation with a profile': (IMG, dict(icc_profile=P3, **moving)),
            'animation with EXIF': (IMG, dict(exif=exif, **moving)),
            'animation with background': (CLEAR,
                dict(save_all=True, append_images=[CLEAR.rotate(180)], background=(255, 0, 0, 255)))}.items()}.items()
        yield f'hidden profile, {o}',_without(saved(IMG, 'WEBP', icc_profile=P3, **o), 32)
        yield f'hidden alpha, {o}',_without(saved(CLEAR, 'WEBP', icc_profile=P3, **o), 16)
    yield 'more behind',saved(IMG, 'WEBP') + b'more'
    for name,img in dict(opaque=IMG, clear=CLEAR.resize((96, 64))).items():
        small = b''.join(o.to_bytes(3, 'little') for o in (5, 4, 39, 29,
            100)) + b'\0' + saved(img.crop((0, 0, 40, 30)), 'WEBP', lossless=True)[12:]
        body = b'WEBPVP8X\x0a\0\0\0\x12\0\0\0\x5f\0\0\x3f\0\0ANIM\6\0\0\0\0\0\xff\xff\0\0ANMF' + struct.pack('<I',
            len(small)) + small
        yield f'a small first frame, {name}',b'RIFF' + struct.pack('<I', len(body)) + body

# GIF

def packed_gif(numbers, bits):
    "The `numbers` of a GIF frame, whose dictionary is emptied before it grows"
    codes = [c for i,o in enumerate(numbers) for c in ([2**bits, o] if i%(2**bits - 2) == 0 else [o])] + [2**bits + 1]
    data = sum(int(o) << (bits + 1)*i for i,o in enumerate(codes)).to_bytes(len(codes)*(bits + 1)//8 + 1, 'little')
    return bytes([bits]) + b''.join(bytes([len(data[i:i+255])]) + data[i:i+255] for i in range(0, len(data),
        255)) + b'\0'

def gif_frame(w=W, h=H, x=0, y=0, clear=None, palette=None, disposal=0, interlaced=False, bits=4, numbers=None):
    a = INDEX[:h, :w]%2**bits if h <= H and w <= W else (np.arange(w) + np.arange(h)[:, None])%2**bits
    if interlaced: a = np.concatenate([a[0::8], a[4::8], a[2::4], a[1::2]])
    flags = (0x80 | len(palette).bit_length() - 3 if palette else 0) | 0x40*interlaced
    control = bytes([disposal << 2 | (clear is not None), 10, 0, clear or 0, 0])
    return b''.join([b'!\xf9\4' + control if clear is not None or disposal else b'', b',',
                     struct.pack('<4HB', x, y, w, h, flags), palette or b'',
                     packed_gif(a.ravel() if numbers is None else numbers, bits)])

def gif(*frames, size=(W, H), palette=PALETTE[:48], background=0):
    flags = 0x80 | (len(palette)//3).bit_length() - 2 if palette else 0
    return b'GIF89a' + struct.pack('<HHBBB', *size, flags, background, 0) + palette + b''.join(frames) + b';'

def gifs():
    mine,greys,control = PALETTE[300:348],bytes(o//3*17 for o in range(48)),b'!\xf9\4\1\0\0\3\0'
    def frame(**kw):   # len(palette) of 48 has 16 colours
        if kw.get('palette'):
            palette = kw.pop('palette')
            data = gif_frame(**kw)
            at = data.index(b',', 8 if data[0] == 33 else 0) + 9
            return data[:at] + bytes([data[at] | 0x80 | (len(palette)//3).bit_length() - 2]) + palette + data[at + 1:]
        return gif_frame(**kw)
    small = dict(w=12, h=8, x=5, y=4)
    for clear,back,box,palette in itertools.product((None, 0, 3, 15, 200), (0, 5, 99), ({}, small), (None, mine)):
        yield f'{clear}, {back}, {box}, {palette is mine}',gif(frame(clear=clear, palette=palette, **box),
            background=back)
    for i,clear in itertools.product(range(4),
                                     (None, 3)): yield f'disposal {i}, {clear}',gif(frame(disposal=i, clear=clear,
                                         **small), gif_frame())
    yield from {
        'a palette of its own': gif(frame(palette=mine), palette=b''),
        'small with a palette of its own': gif(frame(palette=mine, **small), palette=b''),
        'no palette': gif(gif_frame(), palette=b''), 'small without palette': gif(gif_frame(**small), palette=b''),
        'a short palette': gif(gif_frame(), palette=PALETTE[:12]), 'interlaced': gif(gif_frame(interlaced=True)),
        'small and interlaced': gif(gif_frame(interlaced=True, clear=2, **small)),
        'no size': gif(gif_frame(), size=(0, 0)),
        'larger': gif(gif_frame(40, 30)), 'beyond': gif(gif_frame(x=8, y=8)), 'outside': gif(gif_frame(8, 8, 40, 40)),
        'grey': gif(gif_frame(), palette=greys), 'grey, clear': gif(gif_frame(clear=4), palette=greys),
        'grey, small': gif(gif_frame(**small), palette=greys),
        'grey, clear, small': gif(gif_frame(clear=4, **small), palette=greys),
        'grey of its own': gif(frame(palette=greys), palette=b''),
        'a comment between': gif(control + b'!\xfe\3abc\0' + gif_frame()),
        'text between': gif(control + b'!\x01\x0c' + bytes(12) + b'\0' + gif_frame()),
        'two controls': gif(control + gif_frame(clear=5)), '87a': gif(gif_frame()).replace(b'89a', b'87a', 1),
        'no end': gif(gif_frame())[:-1],
        'five rows': gif(gif_frame(numbers=[3]*5*W)), 'no pixels': gif(gif_frame(0, 0)),
        'black and white': gif(gif_frame(bits=2), palette=PALETTE[:12]),
        **{f'of Pillow, {o.mode}': saved(o, 'GIF', save_all=True, append_images=[o.rotate(180)]) for o in (CLEAR,
            IMG.convert('L'), IMG.quantize(16))}}.items()

# BMP

def bmps():
    for name,alpha in {'opaque': 255, 'alpha': np.arange(96)*2}.items(): yield name,bmp(IMG, alpha)
    for mode in ('1', 'L', 'P', 'RGB', 'RGBA'): yield mode,saved(IMG.convert(mode), 'BMP')
    data = saved(IMG, 'BMP')
    yield 'pixels nowhere',data[:10] + bytes(4) + data[14:]

# AVIF: opaque stills, as Debian's Chromium 156 stretches the range of alpha channels and animations

def avifs():
    for name,img in dict(smooth=IMG, odd=NOISE.resize((95, 63)), grey=IMG.convert('L')).items():
        for o in (dict(subsampling='4:4:4'), dict(subsampling='4:2:2'), dict(range='limited')):
            yield f'{name}, {o}',saved(img, 'AVIF', quality=90, **o)
    for k in ('sRGB', 'P3', 'Adobe', 'linear', 'version 4'):
        data = saved(IMG, 'AVIF', quality=90, icc_profile=PROFILES[k])
        yield from {f'profile {k}': data, f'PQ, but a profile {k}': coded(data, 9, 16)}.items()
    plain = saved(IMG, 'AVIF', quality=90)
    for o in itertools.product((1, 2), (1, 2, 6, 13, 14, 15)): yield f'coded {o}',coded(plain, *o)
    for o in ((12, 13), (11, 13), (10, 13), (9, 13), (9, 16), (9, 18), (12, 16), (1, 8), (1, 16), (1, 18)):
        yield f'rare {o}',coded(plain, *o)
    for i in range(10): yield f'EXIF {i}',saved(IMG, 'AVIF', quality=90, exif=exif_block((0x112, 3, 1, bytes([i, 0, 0, 0]))))

DRAW = '''async ([all, background]) => {
    const pixels = o => {
        const canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [o.naturalWidth ?? o.width, o.naturalHeight ?? o.height];
        const context = canvas.getContext('2d', {willReadFrequently: true});
        context.fillStyle = 'white'; context.fillRect(0, 0, canvas.width, canvas.height); context.drawImage(o, 0, 0);
        const {data} = context.getImageData(0, 0, canvas.width, canvas.height), parts = [];
        for (let i = 0; i < data.length; i += 8192) parts.push(String.fromCharCode(...data.subarray(i, i + 8192)));
        return [canvas.height, canvas.width, btoa(parts.join(''))]; };
    return Promise.all(all.map(async o => {
        const blob = new Blob([Uint8Array.from(atob(o), o => o.charCodeAt(0))]), img = new Image();
        img.src = URL.createObjectURL(blob);
        return [await img.decode().then(() => pixels(img), () => null),
                await createImageBitmap(blob, {premultiplyAlpha: 'none'}).then(pixels, () => null)]; })); }'''

# Parts of the names of files that may be refused although Chromium shows them
REFUSED = {
    'PNG': ['off by', 'check sum of', 'text between', 'without a name', 'two profiles', 'a long sRGB', 'cICP (',
            'cICP of P3', 'cICP, gamma', 'gamma, P3', 'gamma, wide', 'profile Lab', 'profile XYZ',
            'gamma 2147483647', 'a short palette', 'no palette', 'a key before the palette', 'a short key',
            'two gammas',
            'rows missing', 'an unknown chunk', 'animation without frames', 'animation too late',
            'behind another image',
            'of Pillow, RGBA, True', 'of Pillow, LA, True', 'of Pillow, P, True', 'a key in the low byte',
            '2 of 16 bits, 0 1', '2 of 16 bits, 1 1', 'a key nearby', *(
            f'{o} of 16 bits, {c}' for o in (0, 2, 4, 6) for c in (
            'gamma 100000', 'gamma 300000', 'broken profile, gamma', 'no profile, gamma', 'profile linear',
            'sRGB of no intent'))],
    'JPEG': ['more before', '12 bits', 'arithmetic', 'lossless', 'height later'], 'WebP': ['hidden alpha'],
    'GIF': ['no palette', 'small without palette', 'five rows', 'no pixels'], 'BMP': ['pixels nowhere'],
    'AVIF': ['rare']}

def opened(data):
    "The pixels of `open_image`, or the sentence with which it refuses `data`"
    try: return np.asarray(open_image(data)).astype(int)
    except ImageError as e: return str(e)

@pytest.mark.filterwarnings('ignore::UserWarning')
def test_as_chromium_shows_them(page):
    files = {(kind, name): data for kind,
             all in (('PNG', pngs()), ('JPEG', jpegs()), ('WebP', webps()), ('GIF', gifs()),
             ('BMP', bmps()), ('AVIF', avifs())) for name,data in all}
    page.goto('about:blank')
    shown = page.evaluate(DRAW, [[base64.b64encode(o).decode() for o in files.values()], 0])
    def _array(o): return o and np.frombuffer(base64.b64decode(o[2]), 'uint8').reshape(*o[:2], 4)[..., :3].astype(int)
    wrong,refused = {},set()
    for (kind,name),(img,bitmap) in zip(files, shown, strict=True):
        mine = opened(files[kind, name])
        if isinstance(mine, str):
            if any(o in name for o in REFUSED[kind]): refused.add((kind, name))
            elif img or bitmap: wrong[kind, name] = mine
        elif not img or not bitmap: wrong[kind, name] = 'shown by us alone'
        else: wrong |= {(kind, name): o.shape == mine.shape and abs(o - mine).max() for o in map(_array, (img, bitmap))
                        if o.shape != mine.shape or abs(o - mine).max() > 3}
    assert not wrong and len(files) > 1000, '\n'.join(f'{k}: {v}' for k,v in wrong.items())

# TIFF

def _on_white(rgb, alpha=ALPHA): return rgb*(alpha[..., None]/255) + 255 - alpha[..., None].astype(float)

def tiffs():
    "TIFF files in both byte orders, and the pixels that they mean: name -> (bytes, array; None: refused)"
    grey,multiplied = SMOOTH[..., :1],np.dstack([(SMOOTH*(ALPHA[..., None]/255)).round().astype('uint8'), ALPHA])
    clear,inks = np.asarray(CLEAR),np.dstack([255 - SMOOTH, INDEX//4]).astype('uint8')
    paper = (255 - inks[..., :3].astype(float))*(255 - inks[..., 3:])/255
    for order,deep in itertools.product('<>', (False, True)):
        def _file(a, color=2, **tags):
            a,n = a.astype(f'{order}u2')*257 if deep else a,a.shape[2]
            raw = a.astype(f'{order}u2' if deep else 'u1')
            if tags.get('t317'): raw = np.diff(raw, axis=1, prepend=raw.dtype.type(0)).astype(raw.dtype)
            raw = zlib.compress(raw.tobytes()) if tags.get('t259') else raw.tobytes()
            return tiff(raw, order, **dict(t256=(W,), t257=(H,), t258=(16 if deep else 8,), t259=(1,), t262=(color,),
                        t277=(n,), t278=(H,)) | tags)
        yield from {f'{name}, {16 if deep else 8} bits, {order}': o for name,o in {
            'RGB': (_file(SMOOTH), SMOOTH), 'packed': (_file(SMOOTH, t259=(8,)), SMOOTH),
            'differences': (_file(SMOOTH, t259=(8,), t317=(2,)), SMOOTH),
            'alpha': (_file(clear, t338=(2,)), _on_white(SMOOTH)),
            'multiplied': (_file(multiplied, t338=(1,)), multiplied[..., :3] + 255. - ALPHA[..., None]),
            'another number': (_file(clear, t338=(0,)), SMOOTH), 'black is 0': (_file(grey, 1), grey.repeat(3, 2)),
            'white is 0': (_file(255 - grey, 0), None if deep and order == '>' else grey.repeat(3, 2)),
            'inks': (_file(inks, 5), paper)}.items()}.items()
        if deep: yield f'planes {order}',(_file(SMOOTH, t284=(2,)), None)
        else:
            yield f'grey and alpha {order}',(_file(clear[..., [0, 3]], 1, t338=(2,)), _on_white(grey.repeat(3, 2)))
            yield f'with a sign {order}',(_file(grey, 1, t339=(2,)), None)
    for i in range(1, 9):
        turns = dict(enumerate('''FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE
                                  ROTATE_90'''.split(), 2))
        img = Image.fromarray(SMOOTH)
        turned = img.transpose(Image.Transpose[turns[i]]) if i > 1 else img
        yield f'orientation {i}',(saved(img, 'TIFF', tiffinfo={274: i}), np.asarray(turned))
    for o in ('raw', 'packbits', 'tiff_lzw', 'tiff_adobe_deflate', 'lzma',
              'zstd'): yield o,(saved(IMG, 'TIFF', compression=o), np.asarray(IMG))
    palette = IMG.quantize(200)
    yield 'palette',(saved(palette, 'TIFF'), np.asarray(palette.convert('RGB')))
    data = saved(palette, 'TIFF')
    colours = Image.open(io.BytesIO(data)).tag_v2[320]
    dark = data.replace(struct.pack('<768H', *colours), struct.pack('<768H', *(o//256 for o in colours)))
    yield 'a palette of 8 bits',(dark, None)
    yield 'two pages',(saved(IMG, 'TIFF', save_all=True, append_images=[NOISE]), np.asarray(IMG))
    yield 'large offsets',(saved(IMG, 'TIFF', big_tiff=True), np.asarray(IMG))
    yield 'a profile',(saved(IMG, 'TIFF', icc_profile=P3), np.asarray(open_image(saved(IMG, icc_profile=P3))))

@pytest.mark.filterwarnings('ignore::UserWarning')
def test_tiff_files_have_the_pixels_that_were_written():
    for name,(data,expected) in tiffs():
        mine = opened(data)
        if expected is None: assert 'of a rare kind' in mine, name
        else: assert not isinstance(mine,
                                    str) and mine.shape == expected.shape and abs(mine - expected).max() <= 3, (name,
                                        mine)

def test_heic_in_rare_colours():
    pillow_heif.register_heif_opener()
    def _opened(primaries, curve):
        return opened(saved(IMG, 'HEIF', color_primaries=primaries, transfer_characteristics=curve,
                            matrix_coefficients=6, full_range_flag=1))
    for o in ((1, 13), (5, 6), (2, 2)): assert abs(_opened(*o) - np.asarray(IMG)).max() < 30
    for o in ((9, 16), (9, 18), (12, 13)): assert 'in rare colours' in _opened(*o)
