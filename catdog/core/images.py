"""Open any image as an upright sRGB image of bounded size, or say why not"""

import base64, io, logging, os, re, struct, warnings, zlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from PIL import ExifTags, Image, ImageCms
from .errors import ImageError
from .files import IMAGE_FORMATS

warnings.filterwarnings('ignore', category=UserWarning, module=r'PIL\.')   # about metadata that is not needed
logging.getLogger('PIL').addHandler(logging.NullHandler())   # about damage, which an `ImageError` describes

@lru_cache(maxsize=32)
def _transform(profile, mode):
    "Return LittleCMS' transform from `profile` (bytes; b'': Lab) to sRGB; None if it is broken or changes nothing"
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    if mode in ('L', 'LAB'): flags |= ImageCms.Flags.NOOPTIMIZE   # exact, and rarely needed
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile else ImageCms.createProfile('LAB')
        transform = ImageCms.buildTransform(source, ImageCms.createProfile('sRGB'), mode, 'RGB', flags=flags)
        n = len(Image.new(mode, (1, 1)).getbands())
        steps = np.meshgrid(*[np.linspace(0, 255, {1: 256, 3: 9, 4: 6}[n]).round().astype('uint8')]*n)
        colours = Image.frombytes(mode, (steps[0].size, 1), np.stack(steps, -1).tobytes())
        out = np.asarray(ImageCms.applyTransform(colours, transform)).astype(int)
    except Exception: return None   # hostile bytes can raise nearly anything
    same = mode in ('RGB', 'L') and abs(out - np.asarray(colours.convert('RGB'))).max() <= 2
    return None if same or np.ptp(out) < 64 else transform

def _to_srgb(img, profile, gamma=None):
    "Convert `img`, of mode RGB, L, CMYK or LAB, to sRGB by `profile` if it fits, or from light to the power of `gamma`"
    if gamma:
        light = (np.arange(256)/255)**(1/gamma)
        table = 255*np.where(light <= .0031308, light*12.92, 1.055*light**(1/2.4) - .055)
        img = img.point(table.round().astype(int).tolist()*len(img.getbands()))
    if img.mode == 'L' and profile[16:20] == b'RGB ': img = img.convert('RGB')
    fits = profile[16:20] == {'L': b'GRAY', 'LAB': b'Lab '}.get(img.mode, img.mode.ljust(4).encode())
    transform = _transform(profile, img.mode) if fits else None
    if img.mode == 'LAB': transform = transform or _transform(b'', 'LAB')
    return ImageCms.applyTransform(img, transform) if transform else img if img.mode == 'RGB' else img.convert('RGB')

def _scaled(a):
    "Return the array `a` as floats from 0 (black) to 1 (white)"
    a = np.asarray(a, 'float32')
    known = a if np.isfinite(a).all() else a[np.isfinite(a)]
    low,top = (float(known.min()), float(known.max())) if known.size else (0., 1.)
    if low >= 0 or low < -2*top and top > 0:   # values far below zero mark missing data
        low,top = 0.,next((o for o,least in ((1., 0.), (255., 32.), (65_535., 8192.)) if least < top <= o), top)
    with np.errstate(over='ignore', invalid='ignore'): a = (a - low)/max(top - low, 1e-9)
    return np.nan_to_num(a, copy=False, nan=0, posinf=1, neginf=0).clip(0, 1, out=a)

def _grey8(img):
    "Convert `img`, of 16 or 32 bits or floats, to 8-bit grey"
    a,tags = np.asarray(img),getattr(img, 'tag_v2', {})
    if img.mode == 'I' and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,): a = a.view('uint32')   # unsigned
    deep = img.mode.startswith('I;16')
    a = np.minimum(a/np.float32(2**tags.get(258, (16,))[0] - 1), 1) if deep else _scaled(a)   # TIFF knows 12 bits
    if tags.get(262) == 0: a = 1 - a   # Pillow does not invert a deep TIFF file in which 0 is white
    return Image.fromarray((a*255).round().astype('uint8'))

def _transparent_colour(img):
    "Return the transparent colour of `img`, not loaded yet, in the depth that its pixels have after loading"
    key,stored = img.info.get('transparency'),[o[3] for o in getattr(img, 'tile', ())]
    if key is not None and 'RGB;16B' in stored:   # Pillow drops the lower byte
        raise ImageError('a PNG image of 16 bits with a transparent colour: save it as JPEG first')
    if img.mode == 'L' and isinstance(key, int): return key*{'L;2': 85, 'L;4': 17}.get(stored[0] if stored else '', 1)
    return tuple(o & 255 for o in key) if img.mode == 'RGB' and isinstance(key, tuple) else key

def _opacity(img, facts):
    "Return the alpha channel of `img`, about whose file `facts` are known; None if it is opaque"
    key,alpha = facts.key,None
    if img.mode[:1] in ('I', 'F'):
        if key is not None: alpha = Image.fromarray(np.where(np.asarray(img) == key, 0, 255).astype('uint8'))
    elif key is not None:
        img = img.copy()
        img.info['transparency'] = key
        alpha = img.convert('RGBA').getchannel('A')
    elif img.has_transparency_data: alpha = (img if 'A' in img.getbands() else img.convert('RGBA')).getchannel('A')
    if facts.box:
        inside = Image.new('L', img.size)
        inside.paste(255 if alpha is None else alpha.crop(facts.box), facts.box)
        alpha = inside
    if alpha is None: return None
    low,high = alpha.getextrema()
    return None if low == 255 or (high == 0 and img.format in ('BMP', 'TIFF')) else alpha   # some programs write 0

def _to_rgb(img, facts):
    "Convert the loaded `img`, about whose file `facts` are known, to sRGB on white, if needed"
    if img.mode in ('La', 'RGBa'): img = img.convert(img.mode.upper())
    alpha = _opacity(img, facts)
    if 'transparency' in img.info:   # Pillow would warn that it gets lost
        img = img.copy()
        del img.info['transparency']
    if img.mode[:1] in ('I', 'F'): img = _grey8(img)
    elif img.mode in ('1', 'LA'): img = img.convert('L')
    elif facts.grey: img = img.getchannel('R')
    elif img.mode not in ('L', 'RGB', 'CMYK', 'LAB'): img = img.convert('RGB')
    darkest = Image.new(img.mode, (1, 1), (1,)*len(img.getbands()))
    if facts.is_deep and max(_to_srgb(darkest, facts.profile, facts.gamma).getpixel((0, 0))) > 3:   # 8 bits are too few
        raise ImageError('an image of 16 bits in linear light: save it as JPEG first')
    img = _to_srgb(img, facts.profile, facts.gamma)
    return Image.composite(img, Image.new('RGB', img.size, 'white'), alpha) if alpha else img

_RARE = 'an image for HDR screens, or in rare colours: save it as JPEG first'
_PRIMARIES = .3127, .329, .64, .33, .3, .6, .15, .06   # of sRGB: x and y of white, red, green and blue
def _png_colours(info, cicp):
    "Return the ICC profile (b'': sRGB) and gamma (None: sRGB's) of a PNG file with the cICP chunk `cicp` (PNG 3, 4.3)"
    icc,gamma,xy = info.get('icc_profile') or b'',info.get('gamma'),info.get('chromaticity')
    if cicp == b'\1\x0d\0\1': return b'',None
    if cicp or icc[16:20] in (b'Lab ', b'XYZ '): raise ImageError(_RARE)
    try:
        if icc and ImageCms.ImageCmsProfile(io.BytesIO(icc)): return icc,None
    except Exception: pass   # a broken one
    if not gamma or info.get('srgb', 4) < 4 or not xy and abs(gamma*2.2 - 1) < .05: return b'',None
    if xy and not all(xy): return b'',None   # points that are no colours
    if not .1 <= gamma <= 10 or xy and abs(np.subtract(xy, _PRIMARIES)).max() > .0002: raise ImageError(_RARE)
    return b'',gamma

def _chunks(data):
    "Yield the complete chunks of the PNG file `data`: name, body, and whether the checksum is right"
    pos = 8
    while pos + 12 <= len(data):
        n,name = struct.unpack_from('>I4s', data, pos)
        end = pos + 8 + n
        if end + 4 > len(data): return
        yield name,data[pos + 8:end],data[end:end + 4] == struct.pack('>I', zlib.crc32(data[pos + 4:end]))
        pos = end + 4

def _has_all_rows(data):
    "Whether the pixels of the PNG file `data` unpack to as many bytes as its header requires (an interlaced one: more)"
    w,h,depth,kind = struct.unpack_from('>IIBB', data, 16)
    left,inflate = h*(1 + -(-w*depth*{2: 3, 4: 2, 6: 4}.get(kind, 1)//8)),zlib.decompressobj()
    for name,body,_ in _chunks(data):
        while name == b'IDAT' and body and left > 0 and not inflate.eof:
            left -= len(inflate.decompress(body, 2**20))
            body = inflate.unconsumed_tail
    return left <= 0

def _orientation(exif):
    "Return the orientation in the EXIF block `exif` as browsers read it: one 16-bit number in its first directory"
    try:
        order = {b'II*\0': '<', b'MM\0*': '>'}[exif[:4]]
        at, = struct.unpack_from(order + 'I', exif, 4)
        for i in range(*struct.unpack_from(order + 'H', exif, at)):
            *found,number = struct.unpack_from(order + 'HHIH2x', exif, at + 2 + 12*i)
            if found == [ExifTags.Base.Orientation, 3, 1]: return number
    except (KeyError, struct.error): pass   # a broken block, or none

def _jpeg_profile(segments):
    "Return the ICC profile in the numbered APP2 `segments` of a JPEG file; b'' if a part is missing or there twice"
    segments = [o for o in segments if len(o) > 13]
    n = segments[0][13] if segments else 0
    parts = {o[12]: o[14:] for o in segments[:n]}
    return b''.join(parts[i + 1] for i in range(n)) if parts.keys() == {*range(1, n + 1)} else b''

def _png_facts(img, data, facts):
    "Add to `facts` what the PNG file `data` says; its `img` must not be loaded yet"
    names,chunks = [],{}
    for name,body,is_right in _chunks(data):
        if name[:1].isupper() and not is_right: raise ImageError('a damaged image: a checksum is wrong')
        if is_right and b'IDAT' not in names: chunks[name] = body
        names += [name]*is_right
    k = names.count(b'IDAT')
    first = names.index(b'IDAT') if k else len(names)
    if data[26:28] not in (b'', b'\0\0') or names[first:first + k] != [b'IDAT']*k or \
       any(o[:1].isupper() for o in {*names} - {b'IHDR', b'PLTE', b'IDAT', b'IEND'}):
        raise ImageError('a PNG image of a kind that we do not know')
    names = names[:first]
    if any(names.count(o) > 1 for o in (*_KEPT, b'iCCP')) or chunks.get(b'iCCP', b'x')[:1] == b'\0' or \
       any(_KEPT.get(name) not in (None, len(o)) for name,o in chunks.items()):
        raise ImageError('a damaged image: its header is wrong')
    (facts.profile,facts.gamma),stored = _png_colours(img.info, chunks.get(b'cICP', b'')),[o[3] for o in img.tile]
    facts.grey,facts.is_deep = 'LA;16B' in stored,any('16' in o for o in stored)
    if data: facts.orientation = _orientation(chunks.get(b'eXIf', b''))
    if b'tRNS' in names and b'PLTE' in names[names.index(b'tRNS'):]:
        raise ImageError('a damaged image: transparency before the palette')
    facts.n_colours = len(chunks.get(b'PLTE', b''))//3
    if img.default_image: raise ImageError('an animated PNG image with another one before it: save it as JPEG first')

def _facts(img, data):
    "Return what the file `data` of `img`, not loaded yet, says about its pixels"
    info = img.info
    facts = SimpleNamespace(
        key=_transparent_colour(img), profile=info.get('icc_profile') or b'', gamma=None,   # None: that of sRGB
        grey=False, is_deep=False,   # grey opened as RGB; 16 bits a channel
        orientation=_orientation((info.get('exif') or b'').removeprefix(b'Exif\0\0')),
        box=None, n_colours=None)   # the part of the canvas that has pixels; colours in the palette
    if img.format == 'PNG': _png_facts(img, data, facts)
    elif img.format in ('JPEG', 'MPO'):
        exifs,profiles = ([o for name,o in img.applist if name == kind and o.startswith(start)]
                          for kind,start in (('APP1', b'Exif\0'), ('APP2', b'ICC_PROFILE\0')))
        facts.orientation,facts.profile = _orientation(exifs[0][6:]) if exifs else None,_jpeg_profile(profiles)
    elif img.format == 'WEBP':   # browsers neither turn these nor change the colours of an animation
        facts.orientation,facts.profile = None,b'' if img.is_animated else facts.profile
        if data[12:16] == b'VP8X' and not data[20] & 16 and img.mode == 'RGBA':
            raise ImageError('a damaged image: it denies its own transparency')
    elif img.format in ('AVIF', 'HEIF') and not facts.profile:   # what they are decoded without
        codes = data.partition(b'colrnclx')[2][:4]   # of the image itself, which comes before its gain map
        # primaries and curve; phones write those of television for sRGB
        if codes and not re.match(rb'\0[\1\2\5-\7]\0[\1\2\4\6\x0d-\x0f]', codes): raise ImageError(_RARE)
    elif img.format == 'TIFF':   # what Pillow 13 reads wrongly
        tags,facts.orientation = img.tag_v2,None   # it is upright already
        bits,signs,palette = (tags.get(o) or (0,) for o in (258, 339, 320))
        planes = bits[0] == 16 and tags.get(284) == 2 and tags.get(277, 1) > 1
        if planes or bits[0] == 8 and 2 in signs or 0 < max(palette) < 256:
            raise ImageError('a TIFF image of a rare kind: save it as JPEG first')
    elif img.format == 'BMP' and data and int.from_bytes(data[10:14], 'little') < 26:
        raise ImageError('a damaged image: it does not say where its pixels are')
    elif img.format == 'GIF' and img.tile:
        box,at = img.tile[0][1:3]
        if tuple(box) != (0, 0, *img.size): facts.box = tuple(box)   # the first frame; around it there is nothing
        if data and data[10] < 128 and data[at - 11:at - 10] == b',' and data[at - 2] < 128:
            raise ImageError('a damaged image: it has no palette')
    return facts

def _check_loaded(img, data, facts):
    "Raise `ImageError` if the loaded `img` lacks pixels or colours"
    if facts.n_colours and img.mode == 'P' and img.getextrema()[1] >= facts.n_colours:
        raise ImageError('a damaged image: a colour outside its palette')
    if img.format == 'PNG' and data and \
       not np.asarray(img.crop((0, max(0, img.height - 2), *img.size))).any() and not _has_all_rows(data):
        raise ImageError('a damaged image: rows are missing', 'truncated')

_TRANSPOSE = dict(enumerate('''FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE
                               ROTATE_90'''.split(), 2))   # EXIF orientation: method
def _upright(img, orientation, min_side):
    "Rotate the RGB image `img` as its EXIF `orientation` says, and reduce it as far as `min_side` allows"
    by = next((o for o in (8, 4, 2) if min_side and min(img.size)//o >= min_side), 1)
    first = by > 1 and img.width%by == img.height%by == 0   # fewer pixels to rotate, and the blocks are the same
    if first: img = img.reduce(by)
    if orientation in _TRANSPOSE: img = img.transpose(Image.Transpose[_TRANSPOSE[orientation]])
    return img.reduce(by) if by > 1 and not first else img

def _start_large():
    "Start two threads for images above 16 megapixels (4 bytes a pixel): glibc keeps freed memory for each thread"
    global _large
    _large = ThreadPoolExecutor(2, 'large-image')

_start_large()
if hasattr(os, 'register_at_fork'): os.register_at_fork(after_in_child=_start_large)   # a fork has no threads

def _converted(img, max_side, min_side, as_stored, data):
    "Convert `img`, opened from `data`, to what `open_image` returns; leave it unchanged if `data` is None"
    is_ours,facts = data is not None,_facts(img, data or b'')
    if is_ours and max_side and not min_side and img.format != 'HEIF': img.draft('RGB', (max_side, max_side))
    img.load()
    if is_ours and facts.key is None: img.info.pop('transparency', None)   # it came behind the pixels
    _check_loaded(img, data, facts)
    res = img.convert('RGB') if as_stored else _upright(_to_rgb(img, facts), facts.orientation, min_side)
    if res is img and not is_ours: res = img.copy()
    if max_side and max(res.size) > max_side:
        res.thumbnail((max_side, max_side), Image.Resampling.HAMMING, reducing_gap=3)
    if type(res) is not Image.Image: res = res.copy()
    if is_ours: img.close()   # frees its memory before the next large one opens
    res.info = {}
    return res

def _checked(img, max_side, max_pixels, min_side, as_stored, data=None):
    "Return `_converted` if `img` has at most `max_pixels`; convert at most two large images at a time"
    (w,h),args = img.size,(img, max_side, min_side, as_stored, data)
    if min(w, h) < 1: raise ImageError('an image without pixels')
    if w*h > max_pixels: raise ImageError(f'{w} x {h} pixels: more than the {max_pixels:,} that we open', 'too-large')
    return _converted(*args) if w*h <= 16_000_000 else _large.submit(_converted, *args).result()

def _completed_jpeg(data):
    "Return the JPEG file `data` with an end marker; None if it is progressive, or lacks more than 1/16 of its rows"
    data,halves = data.rstrip(b'\xff'),[]
    noise = b''.join(b'\x5a\xc3\x96'*11 + bytes([255, 0xd0 + i%8]) for i in range(32))
    for end in (b'\xff\xd9', noise + b'\xff\xd9'):   # they differ where the file has no data
        with Image.open(io.BytesIO(data + end), formats=['JPEG']) as img:
            if 'progressive' in img.info or data[data.rfind(b'\xff\xda') + 4] < len(img.layer): return None   # scans
            img.draft(None, (max(1, img.width//2), max(1, img.height//2)))   # at half the size
            halves.append(np.asarray(img))
    rows = (halves[0] != halves[1]).reshape(len(halves[0]), -1).any(1)
    return None if rows[:len(rows)*15//16].any() else data + b'\xff\xd9'

_KEPT = {b'PLTE': None, b'tRNS': None, b'eXIf': None, b'gAMA': 4, b'cHRM': 32, b'sRGB': 1, b'cICP': 4, b'acTL': 8,
         b'fcTL': 26, b'fdAT': None}   # chunk of a PNG file: its length

def _plain_png(data, profile):
    "Return the PNG file `data` without optional chunks; keep its colour profile if `profile`"
    kept,out = _KEPT | ({b'iCCP': None} if profile else {}),[data[:8]]
    for name,body,is_right in _chunks(data):
        if is_right and (name[:1].isupper() or kept.get(name, 0) in (None, len(body))):   # capitals: not optional
            out += [struct.pack('>I', len(body)), name, body, struct.pack('>I', zlib.crc32(name + body))]
    return b''.join(out)

_RAW,_DAMAGED = "a camera's RAW file: save it as JPEG first",'a damaged image, or one of a rare kind'
_KINDS = (   # how the file begins, and what it is
    (rb'....ftypcrx |FUJIFILMCCD-RAW|IIRO|IIU\0|FOVb|II\*\0\x10\0\0\0CR', _RAW),
    (rb'\xff\xd8\xff|\x89PNG|GIF8|II\*\0|MM\0\*|RIFF....WEBP', _DAMAGED),
    (rb'....ftyp.{,8}(avi[fs]|hei[cx]|hevc|m[is][af])', _DAMAGED),
    (rb'....ftypM4A |RIFF....WAVE|ID3|fLaC|OggS', 'sound, not an image'),
    (rb'....(ftyp|moov|mdat|wide)|RIFF|\x1aE\xdf\xa3|FLV\x01|\0\0\x01[\xba\xb3]|0&\xb2u', 'a video, not an image'),
    (rb'%PDF', 'a PDF document, not an image'),
    (rb'PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!', 'an archive: unpack it first'),
    (rb'\xff\x0a|\0\0\0\x0cJXL ', 'a JPEG XL image: save it as JPEG first'),
    (rb'\0\0\0\x0cjP  |\xff\x4f\xff\x51', 'a JPEG 2000 image: save it as JPEG first'),
    (rb'8BPS', 'a Photoshop file: save it as JPEG first'), (rb'\0\0\x01\0', 'an icon: save it as PNG first'))
_HTML = '''a b body br center div font form h1 h2 h3 head header html iframe img link main meta nav p pre script section
           span strong style table title ul'''.split()
def _looks_like(data):
    if not data: return 'the file is empty'
    if name := next((o for start,o in _KINDS if re.match(start, data, re.S)), None): return name
    text = data[:4096].decode('utf-16' if data[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig', 'replace').lower()
    odd = sum(o == '\ufffd' or o < ' ' and o not in '\t\r\n\f' for o in text)
    text = re.sub(r'^(\s|<!--.*?-->|<\?.*?\?>|\u200b|\xa0)+', '', text, flags=re.S)
    if not text or odd > len(text)/20 and text[0] != '<':
        return f'not an image in a format that we open ({", ".join(IMAGE_FORMATS)})'.replace('HEIF', 'HEIC')
    if re.match(r'<(!doctype )?(\w+:)?svg\b', text): return 'an SVG drawing: save it as PNG or JPEG first'
    if re.match(r'<(!doctype html|(%s)\b)' % '|'.join(_HTML), text): return 'a web page, not an image'
    if text[0] == '<': return 'an XML document, not an image'
    return 'JSON, not an image' if text[0] in '{[' else 'a text file, not an image'

@lru_cache
def _register_heif():
    "Let Pillow open HEIC files; called for the first one, as the import takes time"
    from pillow_heif import register_heif_opener
    register_heif_opener()

def _decode(data, *sizes):
    is_heif = data[4:8] == b'ftyp'   # or AVIF, or a video
    if is_heif: _register_heif()
    with Image.open(io.BytesIO(data), formats=[o for o in IMAGE_FORMATS if o != 'HEIF' or is_heif]) as img:
        # A RAW file is often a TIFF file whose first image is a thumbnail
        if img.format == 'TIFF' and (50706 in img.tag_v2 or img.tag_v2.get(254, 0) & 1 or data[8:10] == b'CR'):
            raise ImageError(_RAW)
        return _checked(img, *sizes, data)

def _as_image_error(e, data):
    if isinstance(e, ImageError): return e
    if isinstance(e, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return ImageError('more pixels than we open', 'too-large')
    if isinstance(e, Image.UnidentifiedImageError): return ImageError(_looks_like(data))
    text = str(e).strip() or type(e).__name__
    cut = any(o in text.lower() for o in ('truncated', 'end of file'))
    if data[:4] == b'RIFF': cut = int.from_bytes(data[4:8], 'little') > len(data) - 8   # WebP
    return ImageError(f'a damaged image: {text}', 'truncated' if cut else 'not-an-image')

def _read(src):
    if isinstance(src, (bytes, bytearray, memoryview)): return bytes(src)
    if hasattr(src, 'read'): return src.read()
    try: return Path(src).read_bytes()
    except FileNotFoundError: raise ImageError(f'{src}: there is no such file', 'missing') from None
    except IsADirectoryError: raise ImageError(f'{src} is a folder, not an image') from None
    except (OSError, ValueError) as e: raise ImageError(f'{src}: cannot be read ({e})', 'missing') from None

def _from_array(a):
    "Make an image of an array of shape (h,w), (h,w,1), (h,w,3) or (h,w,4): uint8, or floats from 0 to 1 or to 255"
    if a.dtype.kind == 'f' and a.size:
        is_share = np.nan_to_num(a, posinf=0).max() <= 2   # rounding and sharpening exceed 1 a little
        a = ((np.nan_to_num(a).clip(0, 1) if is_share else _scaled(a))*255).round().astype('uint8')
    if a.dtype != np.uint8 or a.ndim not in (2, 3) or (a.ndim == 3 and a.shape[2] not in (1, 3, 4)) or not a.size:
        raise ImageError(f'an array of shape {a.shape} and type {a.dtype}: '
                         'give (h,w), (h,w,3) or (h,w,4), uint8 or 0 to 1')
    return Image.fromarray(a[..., 0] if a.ndim == 3 and a.shape[2] == 1 else a)

def open_image(
    src:str|os.PathLike|bytes|io.IOBase|np.ndarray|Image.Image, # A path, bytes, a binary file, an array or an image
    max_side:int=None, # Shrink so that neither side is longer than this, in pixels; default: keep the size
    max_pixels:int=70_000_000, # Refuse more pixels (width times height); phones make images of 50 and 64 megapixels
    min_side:int=None, # Average blocks of 2, 4 or 8 pixels a side while no side gets shorter than this; default: do not
    as_stored:bool=False # Neither rotate nor reduce, leave colours and transparency: what fastai's `PILImage` opens
) -> Image.Image: # Upright sRGB image, mode RGB, without metadata
    "Open `src` as an upright RGB image of at most `max_side`; raise `ImageError` if it is not an image"
    sizes = max_side,max_pixels,min_side,as_stored
    if isinstance(src, np.ndarray): src = _from_array(src)
    if isinstance(src, Image.Image):
        try: return _checked(src, *sizes)
        except Exception as e: raise _as_image_error(e, b'') from None
    data = _read(src)
    try: return _decode(data, *sizes)
    except ImageError: raise
    except Exception as e: error = _as_image_error(e, data)   # hostile bytes make a decoder raise nearly anything
    if error.status == 'too-large': raise error
    repairs = []
    if data[:4] == b'\x89PNG': repairs = [lambda: _plain_png(data, True), lambda: _plain_png(data, False)]
    elif data[:3] == b'\xff\xd8\xff' and error.status == 'truncated': repairs = [lambda: _completed_jpeg(data)]
    for repair in repairs:
        try: return _decode(repair(), *sizes)
        except Exception: pass   # the first error says more
    raise error

def jpeg_bytes(
    img:Image.Image, # An RGB image
    quality:int=90 # JPEG quality, 1 to 95
) -> bytes: # A JPEG file without metadata
    "Encode `img` as JPEG"
    img.save(f := io.BytesIO(), 'JPEG', quality=quality)
    return f.getvalue()

def data_url(
    img:Image.Image|bytes, # An RGB image, or a JPEG file
    quality:int=85 # JPEG quality, 1 to 95, if `img` is an image
) -> str: # 'data:image/jpeg;base64,...'
    "Return `img` as a `data:` URL, for a page without other files"
    data = jpeg_bytes(img, quality) if isinstance(img, Image.Image) else bytes(img)
    return 'data:image/jpeg;base64,' + base64.b64encode(data).decode()

@lru_cache(maxsize=4000)
def _thumbnail(file, changed, height, width):
    "Return one of `thumbnails`; `changed`, the modification time of `file`, is part of the cache key"
    try: img = open_image(file, max_side=max(height, width))
    except ImageError: img = Image.new('RGB', (width, height), '#b33')
    img.thumbnail((width, height), Image.Resampling.LANCZOS)
    return jpeg_bytes(img, 80)

def thumbnails(
    files:list, # Paths of images
    height:int, # Maximum, in pixels
    width:int # Maximum, in pixels
) -> list: # JPEG files, in the order of `files`
    "Return a JPEG of each of `files`, at most `width` by `height` pixels; a red one if it cannot be opened"
    def _one(file):
        return _thumbnail(str(file), os.stat(file).st_mtime_ns if os.path.exists(file) else None, height, width)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool: return list(pool.map(_one, files))
