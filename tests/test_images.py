"core.images: every image is opened with the right orientation, colours and size, or refused with a reason."
import os, io, random, struct, subprocess, sys, zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pillow_heif, pytest
from image_files import (DISPLAY_P3, SRGB, bmp, chunk, exif_block, grey_profile, grey_tiff, ink_profile,
    matrix_profile, png, rgb_tiff, saved, srgb_of, with_exif)
from PIL import Image, ImageCms

from catdog.core.errors import ImageError
from catdog.core.files import IMAGE_FORMATS
from catdog.core.images import open_image

pillow_heif.register_heif_opener()   # to write HEIC

def array(src, **kw): return np.asarray(open_image(src, **kw)).astype(int)

def refusal(data):
    with pytest.raises(ImageError) as e: open_image(data)
    return e.value

def photo(size=(296, 200)):
    "An image with detail everywhere, in colour"
    r = np.random.default_rng(0)
    img = Image.fromarray(r.integers(0, 256, (size[1]//4, size[0]//4, 3), dtype='uint8'))
    return img.resize(size, Image.Resampling.BICUBIC)

# Kinds of source

def ways(file):
    "Return a file in every form that `open_image` accepts"
    opened = open_image(file)
    return {'path': file, 'text': str(file), 'bytes': file.read_bytes(), 'file': io.BytesIO(file.read_bytes()),
            'image': Image.open(file), 'opened': opened, 'array': np.asarray(opened)}

@pytest.mark.parametrize('size', [(1600, 1200), (1601, 1203), (700, 500)])
def test_all_kinds_of_source_give_the_same_pixels(tmp_path, size):
    for number in (1, 6):
        exif = exif_block((0x112, 3, 1, bytes([number, 0, 0, 0])))
        (tmp_path/'a.jpg').write_bytes(with_exif(photo(size), exif, 'JPEG'))
        for side in (None, 64, 192):
            want = open_image(tmp_path/'a.jpg', min_side=side)
            assert min(want.size) >= (side or 0) and (side is None or min(want.size) <= min(size)/2)
            for way,src in ways(tmp_path/'a.jpg').items():
                assert (array(src, min_side=side) == np.asarray(want)).all(), (number, side, way)

def test_a_given_image_is_left_unchanged():
    img = Image.open(io.BytesIO(saved(photo(), 'JPEG', icc_profile=matrix_profile(DISPLAY_P3, 'srgb'))))
    before = np.asarray(img).copy(),dict(img.info)
    small = open_image(img, max_side=60)
    assert small.size == (60, 41) and small.info == {}
    assert (np.asarray(img) == before[0]).all() and img.info == before[1]
    assert open_image(small) is not small

def test_arrays_of_floats_to_1_and_to_255():
    img = np.asarray(photo((40, 30)))
    for a in (img, img/255, img.astype('float32'), img/255*1.0001): assert abs(array(a) - img).max() <= 1
    assert open_image(img[..., :1]).size == (40, 30)
    assert 'shape (4, 6, 7)' in str(refusal(np.zeros((4, 6, 7), 'uint8')))

def test_as_stored_is_what_fastai_opens():
    data = with_exif(photo().convert('RGBA').rotate(9), exif_block((0x112, 3, 1, b'\6\0\0\0')), 'PNG')
    assert (array(data, as_stored=True) == np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))).all()

# Orientation

UP = Image.new('RGB', (128, 64), 'lightgrey')
UP.paste('red', (0, 0, 64, 32))
UP.paste('blue', (64, 0, 128, 32))
STORED = dict(enumerate('''FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_90 TRANSVERSE
                           ROTATE_270'''.split(), 2))

def stored(number, format, **kw):
    "Store UP as a camera does, rotated with the EXIF orientation `number`"
    exif = Image.Exif()
    exif[0x112] = number
    img = UP.transpose(Image.Transpose[STORED[number]]) if number > 1 else UP
    return saved(img, format, exif=exif.tobytes(), **kw)

@pytest.mark.parametrize('format', ['JPEG', 'MPO', 'PNG', 'TIFF', 'AVIF', 'HEIF'])
def test_all_orientations_become_upright(format):
    for number in range(1, 9):
        data = stored(number, format)
        for kw in ({}, dict(min_side=16), dict(max_side=64)):
            img = open_image(data, **kw)
            w,h = img.size
            assert w == 2*h, (number, kw)
            got = [img.getpixel(o) for o in ((w//4, h//4), (3*w//4, h//4), (w//4, 3*h//4))]
            assert abs(np.array(got) - [[255, 0, 0], [0, 0, 255], [211]*3]).max() < 16, (number, kw, got)

def test_heic_is_rotated_by_its_container_alone():
    "pillow-heif writes `irot` and `imir`, which decide, and an EXIF orientation, which is ignored"
    assert b'irot' in stored(6, 'HEIF') and b'imir' in stored(2, 'HEIF')
    exif = Image.Exif()
    exif[0x112] = 6
    data = saved(UP, 'HEIF', exif=exif)   # given as an object, pillow-heif writes it only into the EXIF block
    assert b'irot' not in data and open_image(data).size == UP.size

def test_orientation_with_other_tags_and_byte_orders():
    turn = 0x112, 3, 1, b'\6\0\0\0'
    bad = {'text for a number': (0x11a, 2, 3, b'72\0\0'), 'unknown type': (0x10f, 99, 1, b'what'),
           'number for text': (0x132, 3, 1, b'\1\0\0\0'), 'beyond the end': (0x8298, 2, 5000, b'\xff\xff\0\0')}
    for name,tag in bad.items():
        for format in ('JPEG', 'PNG'):
            assert open_image(with_exif(UP, exif_block(turn, tag), format)).size == (64, 128), name
    turn_as_motorola = exif_block((0x10f, 2, 1, bytes(4)), (0x112, 3, 1, b'\0\6\0\0'), order='>')
    assert open_image(with_exif(UP, turn_as_motorola, 'PNG')).size == (64, 128)
    for number in (0, 9, 65_535):
        exif = exif_block((0x112, 3, 1, struct.pack('<HH', number, 0)))
        assert open_image(with_exif(UP, exif, 'JPEG')).size == UP.size
    for block in (b'', b'II', exif_block(turn)[:20], b'\0'*40):
        assert open_image(with_exif(UP, block, 'JPEG')).size == UP.size, block

# Colours

def colours(mode, profile=None, format='PNG', a=None):
    "A file of many colours of `mode`"
    n = {'L': 1, 'CMYK': 4}.get(mode, 3)
    if a is None:
        steps = np.linspace(0, 255, {1: 256, 3: 16, 4: 8}[n]).round()
        a = np.stack(np.meshgrid(*[steps]*n, indexing='ij'), -1).reshape(-1, 16, n).astype('uint8')
    img,kw = Image.frombytes(mode, a.shape[1::-1], a.tobytes()),{}
    if format == 'JPEG': img,kw = img.resize((img.width*8, img.height*8), 0),dict(quality=100, subsampling=0)
    return saved(img, format, icc_profile=profile, **kw)

def press(inks):
    light = np.array([[.15, .45, .75], [.75, .15, .35], [.85, .75, .1], [.08, .08, .08]])
    return np.prod(1 - inks[..., None]*(1 - light), axis=-2) @ SRGB.T

P3,CMYK = matrix_profile(DISPLAY_P3, 'srgb'),ink_profile(press)

def test_cmyk_agrees_with_littlecms_and_with_the_calculation():
    for format in ('JPEG', 'TIFF'):
        data = colours('CMYK', CMYK, format)
        img = Image.open(io.BytesIO(data))
        right = ImageCms.profileToProfile(img, io.BytesIO(CMYK), ImageCms.createProfile('sRGB'), outputMode='RGB',
                                          flags=ImageCms.Flags.BLACKPOINTCOMPENSATION)
        assert abs(array(data) - np.asarray(right)).max() <= 1
        assert abs(array(data) - srgb_of(press(np.asarray(img)/255))).mean() < 3   # the table is coarse

def test_lab_agrees_with_the_calculation():
    light = np.zeros((1, 256, 3), 'uint8')
    light[0, :, 0] = np.arange(256)
    row = array(saved(Image.frombytes('LAB', (256, 1), light.tobytes()), 'TIFF'))[0]
    f = (np.arange(256)/2.55 + 16)/116
    assert abs(row - srgb_of(np.where(f > 6/29, f**3, (f - 16/116)*108/841)[:, None]*[.9642, 1, .8249])).max() <= 1

def test_colours_in_heic_and_in_every_thread():
    red = Image.new('RGB', (64, 64), (200, 40, 30))
    assert abs(array(saved(red, 'HEIF', icc_profile=P3)) - array(saved(red, icc_profile=P3))).max() < 4
    assert abs(array(saved(red, icc_profile=P3)) - np.asarray(red)).max() > 30
    data,want = colours('RGB', P3),array(colours('RGB', P3))
    with ThreadPoolExecutor(8) as pool:
        for o in pool.map(array, [data]*64): assert (o == want).all()

def test_hostile_profiles_are_ignored():
    r,img = random.Random(0),photo((40, 30))
    for i in range(100):
        data = bytearray([P3, grey_profile(1.8)][i%2])
        for _ in range(r.randrange(1, 9)): data[r.randrange(len(data))] = r.randrange(256)
        assert np.ptp(array(saved(img, icc_profile=bytes(data[:r.randrange(len(data))] if i%4 > 1 else data)))) > 60

# Transparency

def keyed_pngs():
    "PNG files of every depth with a colour that is transparent"
    for depth in (1, 2, 4, 8):
        values = np.arange(64)%2**depth
        row = int(''.join(format(o, f'0{depth}b') for o in values), 2).to_bytes(8*depth, 'big')
        for key in {0, 1, 2**depth - 1, 2**depth//2}:
            yield f'grey of {depth} bits, {key}',png([row]*4, 64, depth, 0, chunk(b'tRNS', struct.pack('>H', key)))
        palette = chunk(b'PLTE', bytes(k*37%256 for k in range(3*2**depth)))
        for alpha in (b'\0', b'\xff\0', b'\x80\x40'):
            yield f'palette of {depth} bits, {alpha}',png([row]*4, 64, depth, 3, palette, chunk(b'tRNS', alpha))
    deep = (np.arange(64)*1000).astype('>u2')
    for key in (0, 5000, 63_000, 7):
        yield f'grey of 16 bits, {key}',png([deep.tobytes()]*4, 64, 16, 0, chunk(b'tRNS', struct.pack('>H', key)))
    row = (np.arange(64)[:, None]*[1, 2, 3]).astype('uint8').tobytes()
    for key in ((0, 0, 0), (40, 80, 120)):
        yield f'RGB, {key}',png([row]*4, 64, 8, 2, chunk(b'tRNS', struct.pack('>3H', *key)))
    yield 'a GIF',saved(photo((64, 9)).quantize(7), 'GIF', transparency=3)
    yield 'a WebP',saved(photo((64, 9)).convert('RGBA').rotate(20), 'WEBP', lossless=True)
    yield 'wholly transparent',saved(Image.new('RGBA', (9, 9), (255, 0, 0, 0)))

def test_transparent_is_white_also_in_an_opened_image():
    "tests/test_corners.py compares files with a browser"
    for name,data in keyed_pngs(): assert (array(Image.open(io.BytesIO(data))) == array(data)).all(), name

def test_bmp_with_zero_alpha_is_opaque():
    img = photo((40, 30))
    assert (array(bmp(img, 0)) == np.asarray(img)).all() and array(bmp(img, 1)).min() > 250

@pytest.mark.parametrize('mode', '1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr HSV I F'.split())
def test_white_is_white_in_every_mode_of_pillow(mode):
    img = Image.new('RGB', (9, 9), 'white')
    img = img.convert({'RGBa': 'RGBA', 'La': 'LA', 'PA': 'RGBA'}.get(mode, mode)).convert(mode)
    assert (array(img) == 255).all()

# Brightness

RAMP = np.tile(np.arange(64), (8, 1))
DEEP = {'1 bit': (RAMP >= 32, 1), '1 bit, from the right': (RAMP >= 32, 1, 1, 2), '8 bits': (RAMP*4, 8),
        '16 bits': (RAMP*1024, 16), '16 bits with a sign': (RAMP*1024 - 32_768, 16, 2),
        '32 bits with a sign': (RAMP*1024 - 30_000, 32, 2),
        'floats': (RAMP/63, 32, 3), 'floats above 1': (RAMP/40, 32, 3), 'floats to 255': (RAMP*4, 32, 3),
        'floats to 9': (RAMP/7, 32, 3), 'floats from -1': (RAMP/31.5 - 1, 32, 3),
        'floats with NaN': (np.where(RAMP == 20, np.nan, RAMP/63), 32, 3),
        'infinite floats': (np.where(RAMP == 63, np.inf, RAMP/30), 32, 3)}

@pytest.mark.parametrize('name', DEEP)
def test_brightness_of_all_depths(name):
    a,bits,kind,fill = (*DEEP[name], *(1, 1)[len(DEEP[name]) - 2:])
    for photometric in (0, 1):
        for order in '<>':
            try: row = array(grey_tiff(a, bits, photometric, kind, order, fill))[0, :, 0]
            except ImageError:
                assert photometric == 0 and bits > 8   # Pillow does not open some of those in which 0 is white
                continue
            if photometric == 0: row = 255 - row
            if 'NaN' in name: row = np.delete(row, 20)
            assert (np.diff(row) >= 0).all() and row[0] < 10 and row[-1] > 230, (photometric, order, row)

def test_12_16_and_32_bits_unsigned():
    files = [grey_tiff(RAMP*64, 12, 1), grey_tiff(RAMP*2**26, 32, 1),
             saved(Image.fromarray((RAMP*1024).astype('uint16')), 'PNG')]
    for data in files:
        row = array(data)[0, :, 0]
        assert (np.diff(row) >= 0).all() and row[0] < 10 and row[-1] > 230

def test_one_bit_in_every_format_and_packing():
    one = Image.fromarray((RAMP >= 32).astype('uint8')*255).convert('1')
    files = [saved(one, o) for o in ('PNG', 'BMP', 'GIF', 'WEBP', 'TIFF')]
    for packing in ('group3', 'group4', 'tiff_ccitt', 'packbits', 'tiff_lzw', 'tiff_adobe_deflate'):
        files += [saved(one, 'TIFF', compression=packing, tiffinfo={262: o}) for o in (0, 1)]
    for data in files: assert array(data)[4, ::63, 0].tolist() == [0, 255]

# Damage

def test_jpeg_without_its_last_bytes_opens():
    kinds = {'plain': {}, 'restarts': dict(restart_marker_blocks=3), 'full colour': dict(subsampling=0)}
    for name,kw in kinds.items():
        for img in (photo(), photo().convert('L'), photo().convert('CMYK')):
            data = saved(img, 'JPEG', quality=85, **kw)
            whole = array(data)
            for cut in (1, 2, 3, 10, 20, len(data)//50):
                rows = abs(array(data[:-cut]) - whole).max((1, 2)) > 0
                assert not rows[:len(rows)*4//5].any() and (cut > 2 or not rows.any()), (name, img.mode, cut)
            for share in (.15, .3, .5, .9): assert refusal(data[:-int(len(data)*share)]).status == 'truncated', share

def test_incomplete_progressive_jpeg_is_refused():
    data = saved(photo(), 'JPEG', progressive=True)
    for cut in (2, 50, len(data)//2): assert refusal(data[:-cut]).status == 'truncated', cut

@pytest.mark.parametrize('format', ['PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'AVIF', 'HEIF'])
def test_half_a_file_is_refused(format):
    data = saved(photo(), format)
    assert refusal(data[:len(data)//2]).status in ('truncated', 'not-an-image')

NOTES = {'text with a wrong check sum': b'\0\0\0\3tEXta\0b' + bytes(4),
         'text packed in an unknown way': chunk(b'zTXt', b'a\0\7what'),
         'text that unpacks to 3 MB': chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(3_000_000))),
         '80 MB of text': chunk(b'tEXt', b'a\0' + b'b'*900_000)*90,
         'a resolution cut short': chunk(b'pHYs', b'\0\1'), 'a gamma cut short': chunk(b'gAMA', b'\0'),
         'a profile packed in an unknown way': chunk(b'iCCP', b'a\0\7what'),
         'a broken profile': chunk(b'iCCP', b'a\0\0what')}

@pytest.mark.parametrize('name', NOTES)
def test_broken_text_chunk_in_a_png_is_ignored(name):
    data = stored(6, 'PNG', icc_profile=None if 'profile' in name else P3)
    noted = data[:33] + NOTES[name] + data[33:]
    assert (array(noted) == array(data)).all() and open_image(noted).size == UP.size
    plain = saved(photo((64, 48)))
    assert (array(plain[:-12] + NOTES[name] + plain[-12:]) == np.asarray(photo((64, 48)))).all()   # behind the pixels

def test_mpo_without_its_second_image_opens():
    img = photo((64, 48))
    data = saved(img, 'MPO', save_all=True, append_images=[img.rotate(90)])
    second = data.index(b'\xff\xd8', 9)
    for end in (second, second + 9, len(data) - 30): assert open_image(data[:end]).size == img.size

# Refusals

def boxes(brand, *others):
    return struct.pack('>I', 16 + 4*len(others)) + b'ftyp' + brand + bytes(4) + b''.join(others) + bytes(80)

PAGE = '<!doctype html><html><body><svg width=9><path/></svg> consent'
NAMES = {
    'a web page': [o.encode(code) for code in ('utf8', 'utf-8-sig', 'utf-16') for o in (
        PAGE, '\n\n' + PAGE, '<!-- <svg> -->' + PAGE, '<HTML>', '<script>a</script>', '<p>404', '<div><svg/></div>',
        '<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "x"><html xmlns="y"><svg/></html>')] + [
        '<title>Entrée'.encode('latin-1')],
    'an SVG drawing': [o.encode(code) for code in ('utf8', 'utf-16') for o in (
        '<svg/>', '<?xml version="1.0"?><svg/>', '<!-- a --><svg xmlns="x"><title>html</title></svg>', '<svg:svg/>',
        '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "x"><svg/>')],
    'an XML document': [b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', b'<rss><svg/></rss>'],
    'JSON': [b'{"error": 404}', b'[1]'],
    'a text file': [b'cat, dog', 'Zwei Wörter'.encode(), 'Zwei Wörter'.encode('utf-16'), b'BMW, a car',
                    'ö'.encode()*9000],
    'a JPEG XL image: save it as JPEG first': [b'\xff\x0a\xfa\x1f', b'\0\0\0\x0cJXL \r\n\x87\n'],
    'a JPEG 2000 image': [b'\0\0\0\x0cjP  \r\n\x87\n'], 'a PDF document': [b'%PDF-1.4'], 'an archive': [b'PK\3\4\0'],
    'a Photoshop file': [b'8BPS\0\1'], 'an icon': [b'\0\0\1\0\1\0'], 'the file is empty': [b''],
    'a video': [*map(boxes, (b'isom', b'mp42', b'qt  ', b'3gp5')), b'\0\0\0\x08wide\0\0\1\0mdat', b'\x1aE\xdf\xa3\1',
                b'RIFF\0\0\0\0AVI LIST'],
    'sound': [b'ID3\4\0', b'RIFF\0\0\0\0WAVEfmt ', boxes(b'M4A ')],
    "a camera's RAW file": [
        b'II*\0\x10\0\0\0CR\2\0', boxes(b'crx ', b'isom'), b'FUJIFILMCCD-RAW 0201', b'IIRO\x08\0\0\0',
        *(rgb_tiff(photo((16, 12)), order, **tag) for order in '<>' for tag in (dict(t50706=(1, 4)), dict(t254=(1,))))],
    'a damaged image': [b'\xff\xd8\xff\xe0\0\x10JFIF', b'\x89PNG\r\n\x1a\n', b'RIFF\0\0\0\0WEBPVP8 ', b'GIF89a',
                        b'II*\0\x08\0\0\0', boxes(b'heic', b'mif1'), boxes(b'mif1', b'heic'), boxes(b'avif', b'mif1')],
    'not an image in a format that we open': [bytes(range(128, 256)), b' ', bytes(40)]}

@pytest.mark.parametrize('name', NAMES)
def test_refused_files_are_described(name):
    for data in NAMES[name]:
        e = refusal(data)
        assert name in str(e) and e.status in ('not-an-image', 'truncated'), (data[:40], str(e))

def test_unreadable_file_is_named(tmp_path):
    assert refusal(tmp_path/'no.jpg').status == 'missing'
    assert 'is a folder' in str(refusal(tmp_path)) and 'cannot be read' in str(refusal('a\0b'))

def test_decompression_bomb_is_refused_by_its_header():
    for side in (9000, 17_500):
        data = png([], side, 8, 0)
        data = data[:16] + struct.pack('>II', side, side) + data[24:29]
        data = data + struct.pack('>I', zlib.crc32(data[12:])) + chunk(b'IDAT', b'') + chunk(b'IEND', b'')
        assert refusal(data).status == 'too-large'
    with pytest.raises(ImageError, match='40 x 30 pixels: more than the 1,000 that we open'):
        open_image(photo((40, 30)), max_pixels=1000)

# Size

@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='needs /proc')
def test_photos_of_50_megapixels_open_in_bounded_memory(tmp_path):
    "200 MB each, at most two at a time"
    photo((512, 384)).resize((8192, 6144)).save(tmp_path/'large.jpg', quality=50)
    code = '''
import re, sys
from concurrent.futures import ThreadPoolExecutor
from catdog.core.images import open_image
with ThreadPoolExecutor(6) as pool:
    for o in pool.map(lambda _: open_image(sys.argv[1], min_side=192), range(6)): assert o.size == (1024, 768)
assert open_image(sys.argv[1], max_side=512).size == (512, 384)
print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])//1024)'''   # ru_maxrss counts the parent's, too
    out = subprocess.run([sys.executable, '-c', code, tmp_path/'large.jpg'], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 600

def test_pillow_heif_is_imported_for_the_first_heic(tmp_path):
    (tmp_path/'a.heic').write_bytes(saved(UP, 'HEIF'))
    code = '''
import sys, catdog.predict
from catdog.core.images import open_image
print('pillow_heif' in sys.modules, open_image(sys.argv[1]).size, 'pillow_heif' in sys.modules)'''
    done = subprocess.run([sys.executable, '-c', code, tmp_path/'a.heic'], capture_output=True, text=True)
    assert done.stdout == 'False (128, 64) True\n', done.stderr

def test_every_listed_format_opens():
    for format in IMAGE_FORMATS: assert abs(array(saved(UP, format)) - np.asarray(UP)).mean() < 6, format
