"The room core.images, and what it is made of: images come out as their makers meant them, or are refused by name."
import io, random, struct, subprocess, sys, zlib
from base64 import b64decode, b64encode
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms
from image_files import (avif_turned, bmp, chunk, exif_block, grey_tiff, png, rgb_tiff, saved, with_exif)

from catdog.core.errors import ImageError
from catdog.core.images import open_image
from catdog.sample.profiles import (ADOBE_RGB, DISPLAY_P3, PROPHOTO, REC2020, SRGB, grey_profile, linear,
    matrix_profile, srgb_of, table_profile)

@pytest.fixture
def halve(tmp_path):
    "Runs a command that halves its argument"
    script = tmp_path/'halve.py'
    script.write_text('''from catdog.core.images import command, CatdogError
@command
def halve(
    n:int # An even number
):
    "Half of `n`"
    if n%2: raise CatdogError(f'{n} is odd: give an even number')
    print(n//2)
if __name__ == '__main__': halve()
''')
    return lambda *args: subprocess.run([sys.executable, script, *args], capture_output=True, text=True)

def test_a_command_says_what_is_wrong_in_one_line_with_exit_status_2(halve):
    assert halve('4').stdout == '2\n'
    odd,text = halve('5'),halve('five')
    assert (odd.returncode, odd.stderr) == (2, 'halve.py: 5 is odd: give an even number\n')
    assert text.returncode == 2

def test_the_help_of_a_command_is_made_of_the_comments(halve): assert 'An even number' in halve('--help').stdout

def array(src, **kw): return np.asarray(open_image(src, **kw)).astype(int)

def refusal(data):
    with pytest.raises(ImageError) as e: open_image(data)
    return e.value

def photograph(size=(296, 200)):
    "Something with detail everywhere, in colour"
    r = np.random.default_rng(0)
    img = Image.fromarray(r.integers(0, 256, (size[1]//4, size[0]//4, 3), dtype='uint8'))
    return img.resize(size, Image.Resampling.BICUBIC)

# The same image, however it comes

def ways(file):
    "A file as all that `open_image` takes"
    opened = open_image(file)
    return {'path': file, 'text': str(file), 'bytes': file.read_bytes(), 'file': io.BytesIO(file.read_bytes()),
            'image': Image.open(file), 'opened': opened, 'array': np.asarray(opened)}

@pytest.mark.parametrize('side', [None, 64, 192])
@pytest.mark.parametrize('number', [1, 6, 3])
@pytest.mark.parametrize('size', [(1600, 1200), (1601, 1203), (700, 500)])
def test_a_photograph_gives_the_same_pixels_however_it_comes(tmp_path, size, number, side):
    file,exif = tmp_path/'a.jpg',exif_block((0x112, 3, 1, struct.pack('<HH', number, 0)))
    file.write_bytes(with_exif(photograph(size), exif, 'JPEG'))
    want,all_ways = open_image(file, min_side=side),ways(file)
    assert min(want.size) >= (side or 0) and (side is None or min(want.size) <= min(size)/2)
    for way,src in all_ways.items(): assert (array(src, min_side=side) == np.asarray(want)).all(), way

def test_real_photographs_give_the_same_pixels_however_they_come(photos):
    files = sorted((photos/'photos'/'web'/'cat').iterdir())[:12]
    for file in files:
        want = array(file, min_side=96)
        for way,src in ways(file).items(): assert (array(src, min_side=96) == want).all(), (file.name, way)

def test_a_image_of_somebody_is_left_as_it_is():
    img = Image.open(io.BytesIO(saved(photograph(), 'JPEG', icc_profile=matrix_profile(DISPLAY_P3, 'srgb'))))
    before = np.asarray(img).copy(),dict(img.info)
    small = open_image(img, max_side=60)
    assert small.size == (60, 41) and small.info == {}
    assert (np.asarray(img) == before[0]).all() and img.info == before[1]

# Orientation

lying = Image.new('RGB', (80, 40), 'red')
lying.paste((0, 0, 255), (0, 0, 20, 20))

TURN = 0x112, 3, 1, b'\6\0\0\0'
BAD_TAGS = {
    'XResolution as text': (0x11a, 2, 3, b'72\0\0'), 'XResolution as empty text': (0x11a, 2, 1, bytes(4)),
    'XResolution nowhere': (0x11a, 5, 1, b'\xff\xff\xff\0'), 'XResolution of no value': (0x11a, 5, 0, bytes(4)),
    'ResolutionUnit as text': (0x128, 2, 2, b'2\0\0\0'), 'YCbCrPositioning too large': (0x213, 4, 1, b'\1\0\1\0'),
    'Software as float': (0x131, 11, 1, struct.pack('<f', 1.5)), 'Make of an unknown type': (0x10f, 99, 1, b'what'),
    'Make of type 0': (0x10f, 0, 1, b'what'), 'Make beyond the end': (0x10f, 2, 5000, b'\xff\xff\0\0'),
    'Make too long': (0x10f, 2, 0xffffffff, b'\xff'*4), 'the EXIF list as text': (0x8769, 2, 3, b'ab\0\0'),
    'the EXIF list within itself': (0x8769, 4, 1, b'\x08\0\0\0'), 'the EXIF list as float': (0x8769, 11, 1, bytes(4)),
    'the GPS list as a short': (0x8825, 3, 1, b'\1\0\0\0'), 'GPS nowhere': (0x8825, 4, 1, b'\xff\xff\xff\x7f'),
    'DateTime as a short': (0x132, 3, 1, b'\1\0\0\0'), 'Copyright of any bytes': (0x8298, 7, 4, b'\xff\xfe\xff\xfe'),
    'a title of bytes': (0x9c9b, 1, 4, b'a\0b\0'), 'a maker note nowhere': (0x927c, 7, 5000, b'\x08\0\0\0'),
    'an absurd orientation': (0x112, 3, 1, b'\x63\0\0\0'), 'an orientation as text': (0x112, 2, 2, b'6\0\0\0')}

@pytest.mark.parametrize('format', ['JPEG', 'MPO', 'PNG', 'WEBP', 'TIFF', 'AVIF'])
def test_no_broken_tag_keeps_a_photograph_on_its_side(format):
    for name,tag in BAD_TAGS.items():
        for tags in ((TURN, tag), (tag, TURN), (tag, TURN, tag)):
            if format == 'TIFF':
                if tag[0] == 0x112: continue   # a TIFF file has each tag once
                data = rgb_tiff(lying, t274=(6,), **{f't{tag[0]}': tag[1:]})
            elif format == 'AVIF': data = avif_turned(lying, 6, exif_block(*(o for o in tags if o != TURN)))
            else: data = with_exif(lying, exif_block(*tags), format)
            img = open_image(data)
            assert img.size == (40, 80), (name, tags.index(TURN))
            r,_,b = img.getpixel((35, 5))
            assert b > 150 > r, name   # the blue corner is at the right now

def test_random_tags_beside_the_orientation():
    r = random.Random(0)
    def _tag(): return r.choice([r.randrange(0x100, 0x220), r.randrange(0x8000, 0xa500)]), r.randrange(15), r.choice(
        [0, 1, 1, 2, 4, r.randrange(2**32)]), r.randbytes(4)
    for i in range(400):
        tags = [o for o in (_tag() for _ in range(r.randrange(6))) if o[0] != 0x112]
        tags.insert(r.randrange(len(tags) + 1), TURN)
        data = with_exif(lying, exif_block(*tags) + r.randbytes(r.randrange(60)), ('JPEG', 'PNG', 'WEBP', 'MPO')[i%4])
        assert open_image(data).size == (40, 80), (i, tags)

def test_random_tags_in_a_tiff_file():
    r = random.Random(1)
    ours = 254, 255, 258, 259, 262, 266, 274, 284, 317, 320, 322, 323, 324, 325, 330, 332, 338, 339, 340, 341, 342, 347
    for i in range(200):
        tags = {f't{o}': (r.randrange(14), r.choice([0, 1, 2, r.randrange(2**32)]), r.randbytes(4))
                for o in r.sample([k for k in range(250, 350) if k not in ours and not 256 <= k <= 279], 3)}
        assert open_image(rgb_tiff(lying, t274=(6,), **tags)).size == (40, 80), (i, tags)

@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP'])
def test_absurd_orientations_say_nothing(format):
    for number in (0, 9, 99, 65_535):
        data = with_exif(lying, exif_block((0x112, 3, 1, struct.pack('<HH', number, 0))), format)
        assert open_image(data).size == (80, 40), number
    for block in (b'', b'II', b'II*\0', exif_block(TURN)[:20], b'\0'*40, b'Exif\0\0' + exif_block()):
        assert open_image(with_exif(lying, block, format)).size == (80, 40), block

def test_the_other_byte_order_other_whole_numbers_and_xmp():
    assert open_image(with_exif(lying, exif_block((0x112, 3, 1, b'\0\6\0\0'), order='>'), 'PNG')).size == (40, 80)
    for kind in (1, 4):
        assert open_image(with_exif(lying, exif_block((0x112, kind, 1, b'\6\0\0\0')), 'JPEG')).size == (40, 80)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert open_image(saved(lying, 'JPEG', xmp=xmp)).size == (40, 80)

def test_the_orientation_that_imagemagick_writes_into_a_png():
    block,data = b'Exif\0\0' + exif_block(BAD_TAGS['Software as float'], TURN),saved(lying)
    for name in (b'exif', b'APP1', b'app1'):
        note = b'\n%s\n%8d\n' % (name, len(block)) + block.hex().encode() + b'\n'
        packed = chunk(b'zTXt', b'Raw profile type ' + name + b'\0\0' + zlib.compress(note))
        assert open_image(data[:33] + packed + data[33:]).size == (40, 80), name

def test_a_broken_block_before_the_sound_one():
    data = saved(lying, 'JPEG')
    for broken in (b'', b'what', b'II', bytes(30)):
        segments = b''.join(b'\xff\xe1' + struct.pack('>H', 8 + len(o)) + b'Exif\0\0' + o
                            for o in (broken, exif_block(TURN)))
        assert open_image(data[:2] + segments + data[2:]).size == (40, 80), broken

# Colours

@pytest.fixture
def drawn(page):
    "What the browser draws of a file's bytes on a white page, as an array; None if it draws nothing"
    page.goto('about:blank')
    def _draw(data):
        kind = {b'\xff\xd8': 'jpeg', b'\x89P': 'png', b'RI': 'webp', b'GI': 'gif', b'BM': 'bmp'}[data[:2]]
        res = page.evaluate('''async url => {
            const img = new Image()
            img.src = url
            if (!await img.decode().then(() => true, () => false)) return
            const c = new OffscreenCanvas(img.naturalWidth, img.naturalHeight), x = c.getContext('2d')
            x.fillStyle = 'white'; x.fillRect(0, 0, c.width, c.height); x.drawImage(img, 0, 0)
            const a = x.getImageData(0, 0, c.width, c.height).data
            let s = ''
            for (let k = 0; k < a.length; k += 8192) s += String.fromCharCode(...a.subarray(k, k + 8192))
            return [c.height, c.width, btoa(s)]
        }''', f'data:image/{kind};base64,{b64encode(data).decode()}')
        return res and np.frombuffer(b64decode(res[2]), 'uint8').reshape(*res[:2], 4)[..., :3].astype(int)
    return _draw

def colours(n):
    "Many colours of `n` numbers each, shape (rows,16,n)"
    steps = np.linspace(0, 255, {1: 256, 3: 16, 4: 8}[n]).round()
    return np.stack(np.meshgrid(*[steps]*n, indexing='ij'), -1).reshape(-1, 16, n).astype('uint8')

def stored(mode, profile=None, format='PNG', a=None):
    a = colours({'L': 1, 'CMYK': 4}.get(mode, 3)) if a is None else a
    img,kw = Image.frombytes(mode, a.shape[1::-1], a.tobytes()),{}
    if format == 'JPEG': img,kw = img.resize((img.width*8, img.height*8), 0),dict(quality=100, subsampling=0)
    return saved(img, format, icc_profile=profile, **kw)

def camera(rgb): return linear(rgb, 1.9) @ (SRGB @ (.7*np.eye(3) + .1)).T
def press(inks):
    light = np.array([[.15, .45, .75], [.75, .15, .35], [.85, .75, .1], [.08, .08, .08]])
    return np.prod(1 - inks[..., None]*(1 - light), axis=-2) @ SRGB.T

P3,CMYK = matrix_profile(DISPLAY_P3, 'srgb'),table_profile('CMYK', press)
AS_IN_A_BROWSER = {   # a file, and how far it may be from what the browser draws
    'Display P3': (stored('RGB', P3), 1), 'Adobe RGB': (stored('RGB', matrix_profile(ADOBE_RGB, 563/256)), 1),
    'ProPhoto': (stored('RGB', matrix_profile(PROPHOTO, 461/256)), 1),
    'Rec. 2020': (stored('RGB', matrix_profile(REC2020, 2.4)), 1),
    'grey, 1.8': (stored('L', grey_profile(1.8)), 1), 'grey, linear': (stored('L', grey_profile(1.)), 1),
    'a grey JPEG with a profile for RGB': (stored('L', matrix_profile(DISPLAY_P3, 1.8), 'JPEG'), 1),
    'a P3 JPEG': (stored('RGB', P3, 'JPEG'), 1),
    'a P3 WebP': (saved(photograph(), 'WEBP', lossless=True, icc_profile=P3), 1),
    'a camera with a table': (stored('RGB', table_profile('RGB ', camera, 33)), 4),   # in which Chromium rounds
    'CMYK': (stored('CMYK', None, 'JPEG'), 1), 'inks without black': (stored('CMYK', CMYK, 'JPEG', np.concatenate(
        [colours(3), 0*colours(3)[..., :1]], -1)), 6),
    'CMYK with a profile for RGB': (stored('CMYK', P3, 'JPEG'), 1),
    'RGB with a profile for grey': (stored('RGB', grey_profile(1.8)), 0),
    'a broken profile': (stored('RGB', P3[:200]), 0),
    'a palette with P3': (saved(photograph().quantize(50), icc_profile=P3), 1)}

@pytest.mark.parametrize('name', AS_IN_A_BROWSER)
def test_colours_are_those_of_a_browser(drawn, name):
    data,most = AS_IN_A_BROWSER[name]
    assert abs(array(data) - drawn(data)).max() <= most

def test_inks_of_a_press_are_those_of_littlecms_and_of_the_calculation():
    for format in ('JPEG', 'TIFF'):
        data = stored('CMYK', CMYK, format)
        img = Image.open(io.BytesIO(data))
        plain = np.asarray(img.convert('RGB')).astype(int)
        right = ImageCms.profileToProfile(img, io.BytesIO(CMYK), ImageCms.createProfile('sRGB'), outputMode='RGB',
                                          flags=ImageCms.Flags.BLACKPOINTCOMPENSATION)
        assert abs(array(data) - np.asarray(right)).max() <= 1 and abs(array(data) - plain).max() > 90
        assert abs(array(data) - srgb_of(press(np.asarray(img)/255))).mean() < 3   # the table is coarse

def test_cmyk_without_adobes_mark_is_as_in_a_browser(drawn):
    data = stored('CMYK', None, 'JPEG')
    at = data.index(b'\xff\xee')
    data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2:at + 4], 'big'):]
    assert b'Adobe' not in data and abs(array(data) - drawn(data)).max() <= 1

def test_a_image_is_the_same_colour_in_every_thread():
    data,want = stored('RGB', P3),array(stored('RGB', P3))
    with ThreadPoolExecutor(8) as pool:
        for o in pool.map(array, [data]*64): assert (o == want).all()

def test_hostile_profiles_leave_the_image():
    r,img,want = random.Random(0),photograph((40, 30)),np.asarray(photograph((40, 30)))
    good = [P3, grey_profile(1.8), table_profile('RGB ', camera, 5)]
    for i in range(300):
        data = bytearray(good[i%3])
        for _ in range(r.randrange(1, 9)): data[r.randrange(len(data))] = r.randrange(256)
        out = array(saved(img, icc_profile=bytes(data[:r.randrange(len(data))] if i%2 else data)))
        assert out.shape == want.shape and np.ptp(out) > 60   # never a black or a white sheet

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
    for key in ((0, 0, 0), (40, 80, 120), (1, 2, 3)):
        row = (np.arange(64)[:, None]*[1, 2, 3]).astype('uint8').tobytes()
        yield f'RGB, {key}',png([row]*4, 64, 8, 2, chunk(b'tRNS', struct.pack('>3H', *key)))
        row = (np.arange(64)[:, None]*[256, 512, 768]).astype('>u2').tobytes()
        key = struct.pack('>3H', *(256*o for o in key))
        yield f'RGB of 16 bits, {key}',png([row]*4, 64, 16, 2, chunk(b'tRNS', key))
    yield 'a GIF',saved(photograph((64, 9)).quantize(7), 'GIF', transparency=3)
    yield 'a WebP',saved(photograph((64, 9)).convert('RGBA').rotate(20), 'WEBP', lossless=True)

def test_transparent_is_white_in_every_mode(drawn):
    for name,data in keyed_pngs(): assert abs(array(data) - drawn(data)).max() <= 1, name

def test_a_key_colour_of_an_opened_image_is_white_too():
    for name,data in keyed_pngs(): assert (array(Image.open(io.BytesIO(data))) == array(data)).all(), name

def test_a_bmp_without_opacity_is_opaque(drawn):
    img = photograph((40, 30))
    for alpha in (255, np.arange(40)*6):
        data = bmp(img, alpha)
        assert abs(array(data) - drawn(data)).max() <= 1
    assert (array(bmp(img, 0)) == np.asarray(img)).all() and array(bmp(img, 1)).min() > 250
    assert (array(rgb_tiff(img.convert('RGBA').point(lambda o: o), t277=(4,))) == np.asarray(img)).all()

def test_a_image_that_is_wholly_transparent_stays_so():
    assert array(saved(Image.new('RGBA', (9, 9), (255, 0, 0, 0)))).min() == 255

# Light and dark

RAMP = np.tile(np.arange(64), (8, 1))
DEEP = {'1 bit': (RAMP >= 32, 1), '1 bit, from the right': (RAMP >= 32, 1, 1, 2), '8 bits': (RAMP*4, 8),
        '16 bits': (RAMP*1024, 16), '16 bits with a sign': (RAMP*1024 - 32_768, 16, 2),
        '32 bits with a sign': (RAMP*1024 - 30_000, 32, 2),
        'floats': (RAMP/63, 32, 3), 'floats above 1': (RAMP/40, 32, 3), 'floats to 255': (RAMP*4, 32, 3),
        'floats to 9': (RAMP/7, 32, 3),
        'floats from -1': (RAMP/31.5 - 1, 32, 3), 'floats with NaN': (np.where(RAMP == 20, np.nan, RAMP/63), 32, 3),
        'infinite floats': (np.where(RAMP == 63, np.inf, RAMP/30), 32, 3)}

@pytest.mark.parametrize('name', DEEP)
def test_light_is_light_and_dark_is_dark(name):
    a,bits,kind,fill = (*DEEP[name], 1, 1)[:4] if len(DEEP[name]) < 4 else DEEP[name]
    for photometric in (0, 1):
        for order in '<>':
            row = array(grey_tiff(a, bits, photometric, kind, order, fill))[0, :, 0]
            if photometric == 0: row = 255 - row
            if 'NaN' in name: row = np.delete(row, 20)
            assert (np.diff(row) >= 0).all() and row[0] < 10 and row[-1] > 230, (photometric, order, row)

def test_12_and_32_bits_without_a_sign():
    for a,bits in ((RAMP*64, 12), (RAMP*2**26, 32)):
        row = array(grey_tiff(a, bits, 1))[0, :, 0]
        assert (np.diff(row) >= 0).all() and row[0] < 10 and row[-1] > 230

def test_one_bit_in_every_format_and_packing():
    one = Image.fromarray((RAMP >= 32).astype('uint8')*255).convert('1')
    files = [saved(one, o) for o in ('PNG', 'BMP', 'GIF', 'WEBP', 'TIFF')]
    for packing in ('group3', 'group4', 'tiff_ccitt', 'packbits', 'tiff_lzw', 'tiff_adobe_deflate'):
        files += [saved(one, 'TIFF', compression=packing, tiffinfo={262: o}) for o in (0, 1)]
    reverse = Image.new('P', (64, 8))
    reverse.putpalette([255, 255, 255, 0, 0, 0])   # 0 is white
    reverse.paste(1, (0, 0, 32, 8))
    for data in files + [saved(reverse, o) for o in ('PNG', 'BMP', 'GIF', 'TIFF')]:
        assert array(data)[4, ::63, 0].tolist() == [0, 255]
    assert array(saved(one, icc_profile=grey_profile(1.8)))[4, ::63, 0].tolist() == [0, 255]

def test_lab_as_calculated():
    light = np.zeros((1, 256, 3), 'uint8')
    light[0, :, 0] = np.arange(256)
    row = array(saved(Image.frombytes('LAB', (256, 1), light.tobytes()), 'TIFF'))[0]
    f = (np.arange(256)/2.55 + 16)/116
    want = srgb_of(np.where(f > 6/29, f**3, (f - 16/116)*108/841)[:, None]*[.9642, 1, .8249])
    assert abs(row - want).max() <= 1

def test_arrays_of_floats_to_1_and_to_255():
    img = np.asarray(photograph((40, 30)))
    for a in (img, img/255, img.astype('float32'), img/255*1.0001): assert abs(array(a) - img).max() <= 1

# Damage

def test_a_jpeg_without_its_last_bytes_opens():
    kinds = {'plain': {}, 'progressive': dict(progressive=True), 'restarts': dict(restart_marker_blocks=3),
             'full colour': dict(subsampling=0)}
    for name,kw in kinds.items():
        for img in (photograph(), photograph().convert('L'), photograph().convert('CMYK'), photograph((70, 50))):
            data = saved(img, 'JPEG', quality=85, **kw)
            whole = array(data)
            if img.mode == 'CMYK' and name == 'progressive': continue   # its last turn, of black ink, takes few bytes
            for cut in (1, 2, 3, 10, 20):
                got = array(data[:-cut])
                rows = abs(got - whole).max((1, 2)) > 0
                assert got.shape == whole.shape and not rows[:len(rows)*3//5].any(), (name, img.mode, cut)
                if cut < 3: assert not rows.any()

@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'GIF', 'BMP', 'TIFF'])
def test_the_line_is_a_sixteenth_of_the_image(format):
    data = saved(photograph(), format)
    if format == 'TIFF': data = rgb_tiff(photograph())
    whole = array(data)
    for share in (.005, .02, .04):
        got = array(data[:-int(len(data)*share)])
        assert (abs(got - whole).max((1, 2)) > 0).mean() <= 1/16 + 18/200   # and the row of blocks in which it begins
    for share in (.1, .2, .5, .9):
        assert refusal(data[:-int(len(data)*share)]).status in ('truncated', 'not-an-image'), share

def test_a_webp_without_its_end_is_refused_as_in_a_browser(drawn):
    data = saved(photograph(), 'WEBP')
    for cut in (1, 20, len(data)//2):
        assert refusal(data[:-cut]).status == 'truncated' and drawn(data[:-cut]) is None

def test_half_a_progressive_jpeg_is_refused():
    data = saved(photograph(), 'JPEG', progressive=True)
    for share in (.1, .3, .5, .7): assert refusal(data[:-int(len(data)*share)]).status == 'truncated'

def test_an_interlaced_png_without_its_end():
    head = struct.pack('>IIBBBBB', 8, 8, 8, 2, 0, 0, 1)
    sizes = (1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)   # of the passes of 8 x 8 pixels
    raw = b''.join((b'\0' + bytes(k*31%251 for k in range(3*w)))*h for w,h in sizes)
    def _file(packed): return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + struct.pack('>I', 9**4) + b'IDAT' + packed
    assert array(_file(zlib.compress(raw))).shape == (8, 8, 3)
    assert array(_file(zlib.compress(raw, 0)[:-12])).shape == (8, 8, 3)
    assert refusal(_file(zlib.compress(raw, 0)[:-100])).status == 'truncated'

def animation(number, side):
    "The chunks of an animation with a frame of `number` and `side`"
    frame = struct.pack('>IIIIIHHBB', number, side, side, 0, 0, 1, 1, 0, 0)
    return chunk(b'acTL', struct.pack('>II', 2, 0)) + chunk(b'fcTL', frame)

NOTES = {'text with a wrong check sum': b'\0\0\0\3tEXta\0b' + bytes(4),
         'text packed in an unknown way': chunk(b'zTXt', b'a\0\7what'),
         'text that unpacks to 3 MB': chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(3_000_000))),
         'text in Unicode that does': chunk(b'iTXt', b'a\0\1\0\0\0' + zlib.compress(bytes(3_000_000))),
         'a resolution cut short': chunk(b'pHYs', b'\0\1'), 'a gamma cut short': chunk(b'gAMA', b'\0'),
         'a profile packed in an unknown way': chunk(b'iCCP', b'a\0\7what'),
         'a broken profile': chunk(b'iCCP', b'a\0\0what'), 'an animation out of order': animation(7, 9),
         'an animation larger than the image': animation(0, 900)}

@pytest.mark.parametrize('name', NOTES)
def test_a_broken_note_in_a_png_is_passed_over(drawn, name):
    img = photograph((64, 48))
    data = saved(img, exif=b'Exif\0\0' + exif_block(TURN))
    noted = data[:33] + NOTES[name] + data[33:]
    assert open_image(noted).size == (48, 64)
    assert (array(noted) == array(data)).all()
    behind = saved(img)[:-12] + NOTES[name] + saved(img)[-12:]   # behind the pixels
    assert (array(behind) == np.asarray(img)).all()
    assert (drawn(behind) == np.asarray(img)).all()

def test_a_png_with_80_mb_of_text():
    data = saved(photograph((64, 48)))
    text = chunk(b'tEXt', b'a\0' + b'b'*900_000)*90
    assert (array(data[:33] + text + data[33:]) == array(data)).all()

def test_broken_segments_in_a_jpeg_are_passed_over():
    data = saved(photograph((64, 48)), 'JPEG')
    for n,body in ((1, b'Exif\0\0' + exif_block(BAD_TAGS['XResolution as empty text'])), (2, b'ICC_PROFILE\0'),
                   (2, b'MPF\0II*\0\xff\xff\xff\xff'), (13, b'Photoshop 3.0\x008BIM\4\4\0\0\xff\xff\xff\xff'),
                   (14, b'Adobe'), (0, b'JFIF\0'), (1, b'http://ns.adobe.com/xap/1.0/\0<')):
        segment = bytes([255, 0xe0 + n]) + struct.pack('>H', len(body) + 2) + body
        assert (array(data[:2] + segment + data[2:]) == array(data)).all(), (n, body[:12])

def test_an_mpo_without_its_second_image_opens():
    img = photograph((64, 48))
    data = saved(img, 'MPO', save_all=True, append_images=[img.rotate(90)])
    second = data.index(b'\xff\xd8', 9)
    for end in (second, second + 9, len(data) - 30): assert open_image(data[:end]).size == img.size

# Names

def boxes(brand, *others):
    return struct.pack('>I', 16 + 4*len(others)) + b'ftyp' + brand + bytes(4) + b''.join(others) + bytes(80)

PAGE = '<!doctype html><html><body><svg width=9><path/></svg> consent'
PAGES = (PAGE, '\n\n' + PAGE, '<!-- <svg> -->' + PAGE, '<HTML>', '<script>a</script>', '<p>404', '<head/>',
         '<div><svg/></div>', '\u200b\xa0<html>', '<main>Not found', '<strong>403</strong>',
         '<section><svg/></section>', '<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "x"><html xmlns="y"><svg/></html>')
HEIC = b'heic heix heim heis hevc hevx hevm hevs mif1 msf1 mif2 tmap'
DRAWINGS = ('<svg/>', '<?xml version="1.0"?><svg/>', '<!-- a --><svg xmlns="x"><title>html</title></svg>', '<svg:svg/>',
            '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "x"><svg/>')
NAMES = {
    'web page': [o.encode(code) for o in PAGES for code in ('utf8', 'utf-8-sig', 'utf-16', 'utf-32', 'latin-1')
                 if code != 'latin-1' or o.isascii()] + [
                 '<html>'.encode('utf-16-be'), '\ufeff<html>'.encode('utf-32-be'),
                 '<title>Entrée'.encode('latin-1')],
    'SVG': [o.encode(code) for o in DRAWINGS for code in ('utf8', 'utf-8-sig', 'utf-16')],
    'XML': [b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', b'<rss version="2.0"><svg/></rss>',
            b'<?xml version="1.0"?><section><title/></section>'],
    'JSON': [b'{"error": 404}', b'[1]', '\ufeff{"a": "<html>"}'.encode()],
    'text file': [b'cat, dog', 'Zwei Wörter'.encode(), 'Zwei Wörter'.encode('utf-16'), b'BMW, a car', b'MZ is a lot',
                  b'I love CRows'],
    'HEIC': [boxes(o, b'mif1', b'heic') for o in HEIC.split()] + [boxes(b'mif1', b'miaf'), boxes(b'heic'),
                                                                boxes(b'isom', b'heix')],
    'AVIF': [boxes(o, b'mif1', b'miaf') for o in (b'avif', b'avis', b'MA1A', b'MA1B')] + [
             boxes(b'mif1', b'avif'), boxes(b'miaf', b'avis')],
    'JPEG XL': [b'\xff\x0a\xfa\x1f', b'\0\0\0\x0cJXL \r\n\x87\n'],
    'JPEG 2000': [b'\0\0\0\x0cjP  \r\n\x87\n', b'\xff\x4f\xff\x51\0'],
    'video': [boxes(o) for o in (b'isom', b'mp41', b'mp42', b'qt  ', b'M4V ', b'3gp5', b'avc1', b'dash')] + [
              b'\0\0\0\x08wide\0\0\1\0mdat', b'\0\0\0\x18styp', b'\0\0\1\0moof', b'\0\0\0\x08free',
              b'OggS\0\2' + bytes(20) + b'\1\x1e\x01\x2a\x80theora', b'\x1aE\xdf\xa3\1', b'RIFF\0\0\0\0AVI LIST',
              b'FLV\1\5', b'\0\0\1\xba\x44', (b'G' + bytes(187))*4, b'0&\xb2u\x8ef\xcf\x11'],
    'sound': [b'ID3\4\0', b'RIFF\0\0\0\0WAVEfmt ', b'fLaC\0', b'OggS\0', boxes(b'M4A ')],
    'RAW': [b'II*\0\x10\0\0\0CR\2\0', boxes(b'crx ', b'isom'), b'FUJIFILMCCD-RAW 0201', b'FOVb\0', b'\0MRM\0',
            b'IIRO\x08\0\0\0', b'IIU\0\x18\0\0\0'],
    'PDF': [b'%PDF-1.4'], 'archive': [b'PK\3\4\0', b'\x1f\x8b\x08', b'Rar!\x1a', b'7z\xbc\xaf\x27'],
    'Photoshop': [b'8BPS\0\1'], 'icon': [b'\0\0\1\0\1\0'], 'the file is empty': [b''], 'PostScript': [b'%!PS-Adobe'],
    'damaged': [b'\xff\xd8\xff\xe0\0\x10JFIF', b'\x89PNG\r\n\x1a\n', b'RIFF\0\0\0\0WEBPVP8 ', b'II*\0\x08\0\0\0',
                b'GIF89a', b'BM\0\0\0\0\0\0']}

@pytest.mark.parametrize('name', NAMES)
def test_what_is_refused_is_named(name):
    for data in NAMES[name]:
        e = refusal(data)
        assert name in str(e) and e.status in ('not-an-image', 'truncated'), (data[:40], str(e))

@pytest.mark.parametrize('order', '<>')
def test_a_raw_file_that_is_a_tiff_file_is_named_and_not_opened(order):
    thumb = Image.new('RGB', (16, 12), 'green')
    assert open_image(rgb_tiff(thumb, order)).size == (16, 12)
    for tags in (dict(t50706=(1, 4)), dict(t262=(32_803,)), dict(t259=(34_713,))):
        assert 'RAW' in str(refusal(rgb_tiff(thumb, order, **tags)))
    where = 10 + 12*10 + 4 + 16*12*3   # the list of the sensor's image lies behind the thumbnail
    sensor = struct.pack(order + 'HHHIHHI', 1, 262, 3, 1, 32_803, 0, 0)
    assert 'RAW' in str(refusal(rgb_tiff(thumb, order, t330=(4, 1, struct.pack(order + 'I', where))) + sensor))

def test_an_avif_of_any_brand_opens():
    img = photograph((64, 48))
    data = saved(img, 'AVIF', quality=95)
    for brand in (b'avif', b'mif1', b'miaf', b'MA1B'):
        assert abs(array(data[:8] + brand + data[12:]) - np.asarray(img)).mean() < 9
