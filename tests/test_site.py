"The app without a server: a folder of files, in a real browser, beside what the `Classifier` says"
import base64, io, itertools, json, os, random, re, shutil, ssl, struct, subprocess, sys, tarfile, threading, time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np, onnx, psutil, pytest, yaml
from PIL import Image, ImageCms
from fastbook import image_bear
from playwright.sync_api import Error, expect

from catdog.sample.draw import draw
from catdog.core.images import jpeg_bytes
from catdog.core.model_file import pixels_of
from catdog.deploy.predictor import Classifier, Prediction, shipped_model
from catdog.deploy.page import RUNTIME, build_site, check_out, fetch_runtime, integrity
from catdog.deploy.predictor import forced_choice, percent, shown_probabilities, tally
from network_helpers import violations

ROOT = Path(__file__).parent.parent

def script(name): return str(Path(sys.executable).with_name(name))

def saved(img, format='JPEG', **kw):
    f = io.BytesIO()
    img.save(f, format, **kw)
    return f.getvalue()

def command(*args, cwd, **env):
    "`catdog-site` as a person types it"
    return subprocess.run([script('catdog-site'), *map(str, args)], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, **env})

needs_npm = pytest.mark.skipif(not shutil.which('npm'), reason='no npm, which brings the runtime: install Node.js')

@pytest.fixture(scope='module')
def classifier(): return Classifier(shipped_model())

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "What `catdog-site --local` wrote about the model that ships"
    if not shutil.which('npm'): pytest.skip('no npm, which brings the runtime: install Node.js')
    folder = tmp_path_factory.mktemp('site')
    res = command(shipped_model(), '--out', 'page', '--local', cwd=folder)
    assert res.returncode == 0, res.stderr
    return folder/'page'

@contextmanager
def hosted(folder):
    "(address, lines of its log) of `python -m http.server` on `folder`"
    process = subprocess.Popen([sys.executable, '-u', '-m', 'http.server', '-b', '127.0.0.1', '-d', str(folder), '0'],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log,port = [],re.search(r'port (\d+)', process.stdout.readline())[1]
    reader = threading.Thread(target=lambda: log.extend(process.stderr), daemon=True)
    reader.start()
    try: yield f'http://127.0.0.1:{port}/',log
    finally:
        process.terminate()
        process.wait(20)
        reader.join(20)

@pytest.fixture(scope='module')
def url(site):
    with hosted(site) as (address,_): yield address

def open_page(page, url):
    page.goto(url)
    expect(page.get_by_role('status')).to_have_text('Ready.', timeout=60_000)
    return page

@pytest.fixture
def app(page, url):
    "The page, ready, in a browser to which it is new; an error in its console fails the test"
    wrong = []
    page.on('pageerror', lambda e: wrong.append(str(e)))
    page.on('console', lambda o: wrong.append(o.text) if o.type == 'error' else None)
    yield open_page(page, url)
    assert wrong == []

@pytest.fixture(scope='module')
def open_app(browser, url):
    "A page for many tests, which ask it about pixels and words"
    context = browser.new_context()
    yield open_page(context.new_page(), url)
    context.close()

CARDS = '''all => all.map(o => ({name: o.querySelector('bdi').textContent, words: o.querySelector('h2, p').textContent,
    error: o.matches('.error'), sure: !o.querySelector('.unsure'), small: o.querySelector('p').textContent,
    shown: Object.fromEntries([...o.querySelectorAll('dl > div')].map(
        d => [...d.children].map(e => e.textContent)))}))'''

def cards(page, n):
    "What the `n` cards of `page` show, once all are there"
    expect(page.locator('article')).to_have_count(n, timeout=120_000)
    expect(page.get_by_role('status')).not_to_contain_text('Looking')
    return page.locator('article').evaluate_all(CARDS)

def as_files(images):
    return [dict(name=k, mimeType='image/jpeg', buffer=v) for k,v in images.items()]

def asked(page, **images):
    "The cards of `page` about these images, name -> bytes"
    page.set_input_files('#file', as_files(images))
    return cards(page, len(images))

def fraction(text): return {'>99.9 %': 1, '<0.1 %': 0}.get(text) or float(text.strip('<> %'))/100

def assert_close(card, pred):
    "The same label, and where the page shows it about the same probability"
    if not card['shown']: assert card['small'] == f'If it had to be one of them: {pred.label}.'
    else: assert fraction(card['shown'][pred.label]) == pytest.approx(pred.probability, abs=.05)

# The same answers

def agreement(page, classifier, files):
    "Per image: same label, difference of the probability if one is shown, same doubt, of `page` and `classifier`"
    page.set_input_files('#file', files)
    shown = cards(page, len(files))
    assert [o['name'] for o in shown] == [o.name for o in files]
    for card,pred in zip(shown, classifier.predict_batch(files)):
        p = {k: fraction(v) for k,v in card['shown'].items()}
        label = max(p, key=p.get) if p else card['small'].removeprefix('If it had to be one of them: ')[:-1]
        doubt = '' if card['sure'] else 'between' if p else 'unlike'
        off = abs(p[pred.label] - pred.probability) if p and pred.doubt != 'unlike' else 0
        yield label == pred.label,off,doubt == pred.doubt

def test_the_same_answers_about_photographs(app, classifier, photos):
    "`bench/site.py same` asks about all 500"
    files = random.Random(3).sample(sorted((photos/'photos'/'web').glob('*/*.jpg')), 60)
    labels,off,sure = zip(*agreement(app, classifier, files))
    assert np.mean(labels) >= .995 and np.median(off) <= .005 and np.mean(sure) >= .99
    assert max(off) < .05

PIXELS = '''async ([data, meta]) => {
  const bytes = Uint8Array.from(atob(data), o => o.charCodeAt(0));
  const bitmap = await opened(new File([bytes], 'image'), meta);
  return btoa(Array.from(pixelsOf(bitmap, meta), o => String.fromCharCode(o)).join('')); }'''

def pixels(page, data, **meta):
    "What the page gives a model with this `meta` for the image `data`"
    found = page.evaluate(PIXELS, [base64.b64encode(data).decode(), meta])
    return np.frombuffer(base64.b64decode(found), 'uint8').reshape(meta['size'], meta['size'], 3).astype(int)

@pytest.mark.parametrize('size', [(320, 320), (37, 500), (700, 90), (60, 41), (1, 300), (1, 1)])
@pytest.mark.parametrize('resize_to', [64, 96])
def test_the_same_pixels_as_pillow(open_app, size, resize_to):
    "To the last bit"
    img = draw('cat', 4, (300, 300)).resize(size)
    mine = np.asarray(img.resize((resize_to, resize_to), 2))[(o := (resize_to - 64)//2):o+64, o:o+64]
    assert np.array_equal(pixels(open_app, saved(img, 'PNG'), size=64, resize_to=resize_to), mine)

@pytest.mark.parametrize('size', [(200, 121), (90, 333), (150, 150), (53, 80), (1080, 719)])
@pytest.mark.parametrize('method,pad_mode', [('squish', 'zeros'), ('crop', 'zeros'), ('pad', 'zeros'),
                                             ('pad', 'border'), ('pad', 'reflection')])
def test_models_that_crop_or_pad(open_app, size, method, pad_mode):
    img,meta = draw('dog', 7, size),dict(size=64, resize_to=72, resize=dict(method=method, pad_mode=pad_mode))
    assert np.array_equal(pixels(open_app, saved(img, 'PNG'), **meta), pixels_of(img, meta))

def test_models_that_learnt_images_as_they_are_stored(open_app):
    img,exif = draw('dog', 7, (200, 120)),Image.Exif()
    exif[0x112] = 6
    data = saved(img, quality=95, exif=exif, icc_profile=profile(DISPLAY_P3))
    mine = np.asarray(Image.open(io.BytesIO(data)).resize((64, 64), 2)).astype(int)
    assert np.abs(pixels(open_app, data, size=64, resize_to=64, opened='as stored') - mine).mean() < .5
    assert np.abs(pixels(open_app, data, size=64, resize_to=64) - mine).mean() > 10

@pytest.mark.parametrize('size,k', [((400, 300), 2), ((801, 799), 4), ((2000, 1600), 8), ((3001, 2003), 8),
                                    ((299, 900), 1)])
def test_large_images_are_reduced_first(open_app, size, k):
    img = draw('cat', 9, (600, 600)).resize(size)
    mine = np.asarray(img.reduce(k).resize((64, 64), 2)).astype(int)
    off = np.abs(pixels(open_app, saved(img, 'PNG'), size=64, resize_to=64, min_side=150) - mine)
    assert off[:-1, :-1].max(initial=0) == 0 and off.max() <= 1   # a part of a block at the edge is rounded otherwise

def turned(img, number):
    "`img` stored lying on its side, with the EXIF orientation that brings it back"
    turns = {2: 'FLIP_LEFT_RIGHT', 3: 'ROTATE_180', 4: 'FLIP_TOP_BOTTOM', 5: 'TRANSPOSE', 6: 'ROTATE_90',
             7: 'TRANSVERSE', 8: 'ROTATE_270'}
    exif = Image.Exif()
    exif[0x112] = number
    return saved(img.transpose(getattr(Image.Transpose, turns[number])) if number > 1 else img, quality=95, exif=exif)

@pytest.mark.parametrize('number', range(1, 9))
def test_upright_by_exif(open_app, number):
    img = draw('cat', 5, (300, 200))
    mine = np.asarray(img.resize((64, 64), 2)).astype(int)
    assert np.abs(pixels(open_app, turned(img, number), size=64, resize_to=64) - mine).mean() < 2

def profile(rgb, gamma=2.2):
    "An ICC profile with these primaries (X, Y, Z for red, green, blue, under D50)"
    def xyz(*o): return b'XYZ \0\0\0\0' + struct.pack('>3i', *(round(v*65536) for v in o))
    text = 'a test'.encode('utf-16-be')
    name = b'mluc\0\0\0\0' + struct.pack('>II', 1, 12) + b'enUS' + struct.pack('>II', len(text), 28) + text
    curve = b'curv\0\0\0\0' + struct.pack('>IH', 1, round(gamma*256))
    tags = {b'desc': name, b'cprt': name, b'wtpt': xyz(.9642, 1, .8249),
            **{k: xyz(*v) for k,v in zip((b'rXYZ', b'gXYZ', b'bXYZ'), rgb)},
            **dict.fromkeys((b'rTRC', b'gTRC', b'bTRC'), curve)}
    table,data,start = b'',b'',132 + 12*len(tags)
    for k,v in tags.items():
        table += k + struct.pack('>II', start + len(data), len(v))
        data += v + bytes(-len(v)%4)
    head = struct.pack('>I4sI4s4s4s12x4s28x3i48x', start + len(data), b'\0\0\0\0', 0x04300000, b'mntr', b'RGB ',
                       b'XYZ ', b'acsp', *(round(v*65536) for v in (.9642, 1, .8249)))
    return head[:128].ljust(128, b'\0') + struct.pack('>I', len(tags)) + table + data

DISPLAY_P3 = [(.51512, .24120, -.00105), (.29198, .69225, .04189), (.15710, .06657, .78407)]
ADOBE_RGB = [(.60974, .31111, .01947), (.20528, .62567, .06087), (.14919, .06322, .74457)]

@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP'])
@pytest.mark.parametrize('primaries', [DISPLAY_P3, ADOBE_RGB], ids=['Display P3', 'Adobe RGB'])
def test_colours_as_the_browser_draws_them(open_app, primaries, format):
    img,icc = draw('dog', 12, (200, 160)),profile(primaries)
    plain = np.asarray(img.resize((64, 64), 2)).astype(int)
    srgb = ImageCms.profileToProfile(img, io.BytesIO(icc), ImageCms.createProfile('sRGB'), ImageCms.Intent.PERCEPTUAL)
    mine = np.asarray(srgb.resize((64, 64), 2)).astype(int)
    how = dict(quality=95) if format != 'PNG' else {}
    off = np.abs(pixels(open_app, saved(img, format, icc_profile=icc, **how), size=64, resize_to=64) - mine).mean()
    assert np.abs(plain - mine).mean() > 4 and off < 2

def with_alpha(img):
    img = img.convert('RGBA')
    img.putalpha(Image.linear_gradient('L').resize(img.size))
    return img

def kinds():
    "Images of every kind that browsers open: name -> (bytes, how far a pixel may be off in the mean)"
    cat = draw('cat', 5, (301, 203))
    deep = Image.fromarray(np.asarray(cat.convert('L')).astype('uint16')*257)
    return {'JPEG': (saved(cat), .5), 'CMYK JPEG': (saved(cat.convert('CMYK')), 6),
            'grey JPEG': (saved(cat.convert('L')), .5), 'PNG': (saved(cat, 'PNG'), 0),
            'palette': (saved(cat.quantize(16), 'PNG'), 0), '16 bits': (saved(deep, 'PNG'), 1),
            'alpha': (saved(with_alpha(cat), 'PNG'), .5), 'black and white': (saved(cat.convert('1'), 'PNG'), 0),
            'WebP': (saved(cat, 'WEBP'), 1.5), 'lossless WebP': (saved(with_alpha(cat), 'WEBP', lossless=True), .5),
            'AVIF': (saved(cat, 'AVIF'), 1.5), 'GIF': (saved(cat, 'GIF'), 0), 'BMP': (saved(cat, 'BMP'), 0),
            'animation': (saved(cat, 'GIF', save_all=True, append_images=[draw('dog', 3, (301, 203))]), 0)}

@pytest.mark.parametrize('kind', kinds())
def test_kinds_of_images(open_app, classifier, kind):
    data,most = kinds()[kind]
    size,resize_to = classifier.meta['size'],classifier.meta['resize_to']
    theirs = pixels(open_app, data, size=size, resize_to=resize_to)
    assert np.abs(theirs - classifier.pixels(data)).mean() <= most
    card, = asked(open_app, **{'image.jpg': data})
    pred = classifier.predict(data)
    assert_close(card, pred)

# What is no image, or too much of one

JPEG_FIRST = 'which this browser cannot open: save it as JPEG first'
REFUSED = {
    'text.jpg': (b'buy cat food', 'a text file, not an image'),
    'umlauts.jpg': (('Kätzchen '*300).encode(), 'a text file, not an image'), 'empty.jpg': (b'', 'the file is empty'),
    'page.jpg': (b'<!DOCTYPE html><p>No cats here', 'a web page, not an image'),
    'drawing.jpg': (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', 'an SVG drawing: save it as PNG or JPEG first'),
    'photo.heic': (b'\0\0\0\x18ftypheic' + bytes(60), f'a HEIC photograph, {JPEG_FIRST}'),
    'scan.tif': (saved(draw('cat', 1, (60, 60)), 'TIFF'), f'a TIFF image, {JPEG_FIRST}'),
    'new.jxl': (b'\xff\x0a' + bytes(60), f'a JPEG XL image, {JPEG_FIRST}'),
    'letter.jpg': (b'%PDF-1.7', 'a PDF document, not an image'),
    'all.jpg': (b'PK\3\4' + bytes(60), 'an archive: unpack it first'),
    'noise.jpg': (bytes(range(256)), 'no image in a format that this browser opens')}

def test_what_is_no_image_gets_a_sentence(app):
    shown = asked(app, **{k: v[0] for k,v in REFUSED.items()}, **{'cat.jpg': jpeg_bytes(draw('cat', 13, (320, 320)))})
    assert [o['words'] for o in shown[:-1]] == [f'{k}: {v[1]}' for k,v in REFUSED.items()]
    assert all(o['error'] for o in shown[:-1]) and not shown[-1]['error']
    expect(app.get_by_role('status')).to_contain_text(f'{len(REFUSED)} cannot be opened')

@pytest.mark.parametrize('format', ['JPEG', 'PNG'])
def test_half_a_image(open_app, format):
    "A browser may show the upper half of it; no answer rests on that"
    data = saved(draw('cat', 13, (600, 600)), format)
    card, = asked(open_app, **{'half.jpg': data[:len(data)//2]})
    assert card['error'] and card['words'].startswith('half.jpg: a damaged image')

def memory():
    "MB that the pages of the browser have"
    pages = [o for o in psutil.Process().children(recursive=True) if '--type=renderer' in ' '.join(o.cmdline())]
    return max((o.memory_info().rss for o in pages), default=0)/2**20

@contextmanager
def peak():
    "A list that gets the most memory that a page has had meanwhile, in MB"
    most,over = [0],threading.Event()
    def watch():
        while not over.wait(.05):
            try: most[0] = max(most[0], memory())
            except psutil.Error: pass   # a process has just ended
    thread = threading.Thread(target=watch)
    thread.start()
    try: yield most
    finally:
        over.set()
        thread.join()

def test_48_million_pixels(app, classifier):
    small = draw('cat', 13, (800, 600))
    large = saved(small.resize((8000, 6000)), quality=80)
    before = memory()
    with peak() as most: card, = asked(app, **{'large.jpg': large})
    pred = classifier.predict(small)
    assert_close(card, pred)
    assert most[0] - before < 700   # unpacked once it has 192 MB
    card, = asked(app, **{'small.jpg': jpeg_bytes(small)})   # and the page lives on
    assert not card['error']

def test_more_than_50_million_pixels_are_refused_unopened(app):
    # would unpack to 0.6 and to 3.6 GB
    bombs = {f'{n}.png': saved(Image.new('1', (n, n)), 'PNG') for n in (12_000, 30_000)}
    before = memory()
    with peak() as most: first,second = asked(app, **bombs)
    assert first['words'] == '12000.png: 12000 x 12000 pixels: more than the 50 million that we open'
    assert second['words'] == '30000.png: a damaged image, or one too large for this browser'   # the browser says no
    assert most[0] - before < 200

# What people do

def test_several_at_once_and_again(app, classifier):
    images = {f'{o} {i}.jpg': jpeg_bytes(draw(o, i, (240, 200))) for i in range(3) for o in ('cat', 'dog')}
    for few in (images, dict(list(images.items())[:2])):   # the second choice takes the place of the first
        shown = asked(app, **few)
        assert [o['name'] for o in shown] == list(few)
        for card,pred in zip(shown, classifier.predict_batch(few.values())):
            assert card['shown'] == {k: percent(v) for k,v in shown_probabilities(pred)}
            assert card['words'] == str(pred)

def test_who_chooses_again_does_not_wait(app):
    many = {f'{i}.jpg': jpeg_bytes(draw('cat', i, (400, 400))) for i in range(60)}
    app.set_input_files('#file', as_files(many))
    app.locator('article').first.wait_for()
    card, = asked(app, **{'last.jpg': jpeg_bytes(draw('dog', 6, (320, 320)))})
    assert card['name'] == 'last.jpg'
    time.sleep(.5)
    expect(app.locator('article')).to_have_count(1)

@pytest.fixture
def folder(tmp_path):
    "Images in folders, and what lies beside them"
    for name in ('cat 10.jpg', 'cat 9.jpg', 'inner/Kätzchen auf dem Dach.jpg', 'inner/deep/כלב.jpg'):
        (tmp_path/'my pets'/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/'my pets'/name).write_bytes(jpeg_bytes(draw('cat', len(name), (200, 200))))
    for name in ('notes.txt', 'inner/list.csv', '.DS_Store'): (tmp_path/'my pets'/name).write_text('not an image')
    return tmp_path/'my pets'

def drop(page, *files, at=(300, 500)):
    "Drop these files and folders as a mouse does"
    mouse = page.context.new_cdp_session(page)
    data = dict(items=[], files=[str(o) for o in files], dragOperationsMask=1)
    for kind in ('dragEnter', 'dragOver', 'drop'):
        mouse.send('Input.dispatchDragEvent', dict(type=kind, x=at[0], y=at[1], data=data))

def test_drop_images_anywhere(app, folder):
    drop(app, folder/'cat 9.jpg', folder/'notes.txt', at=(20, 600))
    assert [(o['name'], o['error']) for o in cards(app, 2)] == [('cat 9.jpg', False), ('notes.txt', True)]

def test_drop_a_folder(app, folder):
    drop(app, folder)
    names = [o['name'] for o in cards(app, 4)]
    assert names == ['cat 9.jpg', 'cat 10.jpg', 'כלב.jpg', 'Kätzchen auf dem Dach.jpg']
    expect(app.get_by_role('status')).to_contain_text('left out, by their names no images: 2')

def test_a_folder_of_more_than_a_hundred(app, tmp_path):
    "A browser lists a folder a hundred files at a time"
    data = jpeg_bytes(draw('cat', 1, (64, 64)))
    for i in range(130): (tmp_path/f'{i}.jpg').write_bytes(data)
    drop(app, tmp_path)
    assert [o['name'] for o in cards(app, 130)] == [f'{i}.jpg' for i in range(130)]

def test_drop_a_folder_without_images(app, tmp_path):
    (tmp_path/'empty').mkdir()
    drop(app, tmp_path/'empty')
    expect(app.get_by_role('status')).to_have_text('There is no image in this folder.')

def test_paste(app, url):
    app.context.grant_permissions(['clipboard-read', 'clipboard-write'], origin=url)
    app.evaluate('''async data => navigator.clipboard.write([new ClipboardItem({'image/png':
        new Blob([Uint8Array.from(atob(data), o => o.charCodeAt(0))], {type: 'image/png'})})])''',
        base64.b64encode(saved(draw('cat', 13, (320, 320)), 'PNG')).decode())
    app.keyboard.press('Control+v')
    card, = cards(app, 1)
    assert not card['error']
    app.evaluate('() => navigator.clipboard.writeText("a cat")')
    app.keyboard.press('Control+v')
    expect(app.get_by_role('status')).to_have_text('There is no image in the clipboard.')

def test_a_phone_offers_its_camera(new_context, url, playwright):
    phone = open_page(new_context(**playwright.devices['Pixel 7']).new_page(), url)
    camera = phone.get_by_label('Take an image')
    assert camera.get_attribute('capture') == 'environment'
    with phone.expect_file_chooser() as chooser: camera.tap()
    chooser.value.set_files(as_files({'image.jpg': jpeg_bytes(draw('cat', 13, (320, 320)))}))
    assert not cards(phone, 1)[0]['error']

def test_a_computer_offers_no_camera(app): expect(app.get_by_text('Take an image')).to_be_hidden()

def test_keyboard_alone(app, tmp_path):
    (tmp_path/'cat.jpg').write_bytes(jpeg_bytes(draw('cat', 13, (320, 320))))
    app.keyboard.press('Tab')
    expect(app.locator('#file')).to_be_focused()
    with app.expect_file_chooser() as chooser: app.keyboard.press('Space')
    chooser.value.set_files(tmp_path/'cat.jpg')
    cards(app, 1)
    app.keyboard.press('Tab')
    button = app.get_by_role('button', name='Why? cat.jpg')
    expect(button).to_be_focused()
    app.keyboard.press('Space')
    expect(button).to_have_attribute('aria-pressed', 'true')
    expect(app.get_by_text('Bright: what spoke for cat. Dark and grey: what did not.')).to_be_visible()
    app.keyboard.press('Space')
    expect(button).to_have_attribute('aria-pressed', 'false')

DRAWN = '''img => { const canvas = document.createElement('canvas'), context = canvas.getContext('2d');
    Object.assign(canvas, {width: img.naturalWidth, height: img.naturalHeight});
    context.drawImage(img, 0, 0);
    return canvas.toDataURL('image/png').split(',')[1]; }'''

def test_why_shows_what_the_app_shows(app, classifier):
    data = jpeg_bytes(draw('cat', 13, (640, 400)), 95)
    asked(app, cat=data)
    app.get_by_role('button', name='Why?').click()
    expect(app.get_by_role('button', name='Why?')).to_have_attribute('aria-pressed', 'true')
    theirs = Image.open(io.BytesIO(base64.b64decode(app.locator('article img').evaluate(DRAWN)))).convert('RGB')
    mine = classifier.why(data)
    assert theirs.size == mine.size == (480, 300)
    def off(img): return np.abs(np.asarray(theirs).astype(int) - np.asarray(img)).mean()
    assert off(mine) < 4 and off(Image.open(io.BytesIO(data)).resize((480, 300))) > 20

def test_names_of_any_kind(open_app):
    names = ['Kätzchen auf dem Dach.jpg', 'כלב על הגג.jpg', '<img src=x onerror=alert(1)>.jpg',
             '猫 "&amp;".jpg', 'x'*200 + '.jpg']
    assert [o['name'] for o in asked(open_app, **{o: jpeg_bytes(draw('cat', 1, (64, 64))) for o in names})] == names
    assert open_app.locator('article bdi').count() == len(names)
    assert open_app.evaluate('() => document.documentElement.scrollWidth <= innerWidth')

@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1100, 390])
def test_no_violation_that_axe_finds(new_context, url, scheme, width):
    page = open_page(new_context(color_scheme=scheme, viewport=dict(width=width, height=800)).new_page(), url)
    everything = ('critical', 'serious', 'moderate', 'minor')
    assert violations(page, everything) == []
    asked(page, **{'cat.jpg': jpeg_bytes(draw('cat', 13, (320, 320))), 'notes.jpg': b'a text',
                   'none.jpg': saved(Image.new('RGB', (60, 60))), 'bear.jpg': image_bear().read()})
    expect(page.locator('article').last).to_contain_text('This does not look like a cat or a dogIf it had to be')
    page.get_by_role('button', name='Why?').first.click()
    expect(page.get_by_text('Bright: what spoke')).to_be_visible()
    assert violations(page, everything) == []

# No image leaves the device

LEAKS = {'fetch': 'url => fetch(url, {method: "POST", body: "an image"}).then(() => true, () => false)',
         'beacon': 'url => { try { return navigator.sendBeacon(url, "an image") && false } catch { return false } }',
         'request': '''url => new Promise(done => { const o = new XMLHttpRequest(); o.onload = () => done(true);
                       o.onerror = () => done(false); o.open("POST", url); o.send("an image"); })''',
         'image': '''url => new Promise(done => Object.assign(new Image(), {onload: () => done(true),
                       onerror: () => done(false), src: url}))''',
         'socket': '''url => new Promise(done => { try { const o = new WebSocket(url.replace("http", "ws"));
                      o.onopen = () => done(true); o.onerror = () => done(false); } catch { done(false) } })''',
         'frame': '''url => { const o = document.createElement("iframe"); o.src = url; document.body.append(o);
                     return new Promise(done => setTimeout(done, 300, false)); }''',
         'form': '''url => { const o = document.createElement("form"); Object.assign(o, {action: url, method: "post"});
                    document.body.append(o); o.submit(); return new Promise(done => setTimeout(done, 300, false)); }''',
         'script': '''url => { const o = document.createElement("script"); o.src = url; document.body.append(o);
                      return new Promise(done => { o.onload = () => done(true); o.onerror = () => done(false); }); }'''}

def test_the_page_cannot_send_anything_anywhere(page, site):
    "Neither to its own host nor to another; and no request reaches the host"
    with hosted(site) as (url,log):
        open_page(page, url)
        for name,way in LEAKS.items():
            for address in (f'{url}icon.svg?leak', 'http://127.0.0.2:9/?leak'):
                assert page.evaluate(way, address) is False, (name, address)
        assert page.url == url
    assert log and not [o for o in log if 'leak' in o]

def test_those_ways_would_work_on_another_page(page, tmp_path):
    (tmp_path/'index.html').write_text('<!doctype html><title>open</title>')
    (tmp_path/'icon.svg').write_bytes((ROOT/'catdog'/'static'/'icon.svg').read_bytes())
    with hosted(tmp_path) as (url,log):
        for name,way in LEAKS.items():
            page.goto(url)
            try: page.evaluate(way, f'{url}icon.svg?{name}')
            except Error: pass   # the form has left the page
            page.wait_for_timeout(100)
    assert {name for name in LEAKS if any(f'?{name}' in o for o in log)} == set(LEAKS)

@contextmanager
def own_browser(playwright, launch_args, folder, *args):
    "A browser as a person has it, which keeps in `folder` what it is given, with more command line"
    launch_args = {**launch_args, 'args': [*launch_args['args'], *args]}
    context = playwright.chromium.launch_persistent_context(folder, **launch_args)
    try: yield context
    finally: context.close()

def requests_of_pages(log):
    "Addresses that pages and their workers asked for, by the browser's `log`; it has its own errands in there, too"
    text = log.read_text(encoding='utf8', errors='replace').rstrip()
    log = json.loads(text if text.endswith('}') else text.rstrip(',') + ']}')
    start = log['constants']['logEventTypes']['URL_REQUEST_START_JOB']
    started = [o['params'] for o in log['events'] if o['type'] == start and 'url' in o.get('params', {})]
    return {o['url'] for o in started if o.get('initiator', '').startswith('http')}

def test_local_asks_nobody(site, playwright, browser_type_launch_args, tmp_path):
    "By the browser's own log of the network"
    log = tmp_path/'net.json'
    with hosted(site) as (url,_):
        with own_browser(playwright, browser_type_launch_args, tmp_path/'user', f'--log-net-log={log}') as browser:
            page = open_page(browser.pages[0], url)
            asked(page, cat=jpeg_bytes(draw('cat', 13, (320, 320))))
            installed(page)
    found = requests_of_pages(log)
    assert {f'{url}{o}' for o in ('model.onnx', 'sw.js', 'runtime/ort-wasm-simd-threaded.bin')} <= found
    assert {o for o in found if not o.startswith(url)} == set()

def installed(page):
    "Wait until the service worker has everything"
    page.evaluate('async () => { await navigator.serviceWorker.ready; }')
    expect(page.locator('body')).to_be_visible()

# Offline, and the next version

def test_offline_after_the_first_load(site, page, context, classifier):
    data = jpeg_bytes(draw('cat', 13, (320, 320)))
    with hosted(site) as (url,_):
        open_page(page, url)
        installed(page)
        context.set_offline(True)
        assert asked(page, cat=data)[0]['words'] == str(classifier.predict(data))
        for address in (url, f'{url}index.html', f'{url}?from=home-screen'): open_page(page, address)
    open_page(page, url)   # the server is gone, too
    assert asked(page, cat=data)[0]['words'] == str(classifier.predict(data))

def test_without_a_network_from_the_start_it_says_so(site, page):
    with hosted(site) as (url,_):
        page.route('**/model.onnx', lambda route: route.abort())
        page.goto(url)
        expect(page.get_by_role('status')).to_contain_text('The model cannot be loaded')
        expect(page.get_by_role('status')).to_contain_text('Load the page again when there is a connection.')

def relabelled(folder, labels, **more):
    "The model that ships, with other labels: its folder"
    model = onnx.load(shipped_model()/'model.onnx')
    meta = {**json.loads(model.metadata_props[0].value), 'labels': labels, **more}
    onnx.helper.set_model_props(model, {'catdog': json.dumps(meta)})
    folder.mkdir(parents=True)
    onnx.save(model, folder/'model.onnx')
    return folder

KEEPS = '''async ([name, text]) => {
    const page = await (await caches.open(name)).match('./');
    return Boolean(page && (await page.text()).includes(text)); }'''

def test_the_next_version_takes_over(site, page, tmp_path):
    shutil.copytree(site, tmp_path/'a')
    shutil.copytree(site, tmp_path/'b')
    with hosted(tmp_path) as (url,_):
        open_page(page, f'{url}b/')
        installed(page)
        open_page(page, f'{url}a/')
        installed(page)
        res = command(relabelled(tmp_path/'other', ['tabby', 'hound']), '--out', tmp_path/'a', '--local', cwd=tmp_path)
        assert res.returncode == 0, res.stderr
        page.reload()   # opens from the cache, and finds that there is a new version
        for _ in range(300):
            names = page.evaluate('() => caches.keys()')
            if len(names) == 2 and page.evaluate(KEEPS, [next(o for o in names if '/a/' in o), 'tabby']): break
            time.sleep(.1)
        open_page(page, f'{url}a/')
        expect(page.get_by_role('heading', level=1)).to_have_text('Is it a tabby or a hound?')
        words = asked(page, cat=jpeg_bytes(draw('cat', 13, (320, 320))))[0]['words']
        assert 'tabby' in words or 'hound' in words
        assert len([o for o in names if '/b/' in o]) == 1   # another page on the same host keeps its files

def test_it_can_be_installed(playwright, browser_type_launch_args, url, tmp_path):
    "In a browser that keeps what it is given; its own word for it"
    with own_browser(playwright, browser_type_launch_args, tmp_path) as context:
        page = open_page(context.pages[0], url)
        installed(page)
        devtools = context.new_cdp_session(page)
        assert devtools.send('Page.getInstallabilityErrors')['installabilityErrors'] == []
        manifest = json.loads(devtools.send('Page.getAppManifest')['data'])
        assert manifest['name'] == 'Is it a cat or a dog?' and manifest['display'] == 'standalone'

# The runtime from a public network

class Files(SimpleHTTPRequestHandler):
    "Files of a folder, with what jsdelivr allows other pages"
    def end_headers(self):
        self.send_header('Access-Control-Allow-Origin', '*')
        super().end_headers()
    def log_message(self, *args): self.server.log.append(self.path)

@contextmanager
def network(folder, tmp_path):
    "(port, paths that were asked for) of an https server on `folder`"
    names = 'req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=cdn.jsdelivr.net -keyout key.pem -out cert.pem'
    subprocess.run(['openssl', *names.split()], cwd=tmp_path, check=True, capture_output=True)
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Files, directory=str(folder)))
    server.log,context = [],ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path/'cert.pem', tmp_path/'key.pem')
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield server.server_port,server.log
    finally:
        server.shutdown()
        server.server_close()

def public_key(certificate):
    "The hash by which a browser can be told to trust the `certificate`"
    def openssl(*args, data):
        return subprocess.run(['openssl', *args], input=data, capture_output=True, check=True).stdout
    key = openssl('x509', '-pubkey', '-noout', data=certificate.read_bytes())
    der = openssl('pkey', '-pubin', '-outform', 'der', data=key)
    return base64.b64encode(openssl('dgst', '-sha256', '-binary', data=der)).decode()

@pytest.fixture(scope='module')
def runtime(tmp_path_factory):
    "A folder laid out as jsdelivr is, with the files from npm"
    if not shutil.which('npm'): pytest.skip('no npm, which brings the runtime: install Node.js')
    if not shutil.which('openssl'): pytest.skip('no openssl, which makes the certificate of a server')
    folder = tmp_path_factory.mktemp('network')
    dist = folder/'npm'/f'onnxruntime-web@{RUNTIME}'/'dist'
    dist.mkdir(parents=True)
    for name,data in fetch_runtime().items(): (dist/name).write_bytes(data)
    return folder

@pytest.mark.parametrize('changed', [None, 'ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm'])
def test_the_runtime_from_a_public_network(playwright, browser_type_launch_args, runtime, tmp_path, classifier,
                                           changed):
    "By default it comes from there; it is used only if it is the one that was meant; and it is kept for offline"
    shutil.copytree(runtime, tmp_path/'network')
    if changed:
        file = next((tmp_path/'network').rglob(changed))
        file.write_bytes(file.read_bytes() + b'\n\n')
    res = command(shipped_model(), cwd=tmp_path)
    assert res.returncode == 0 and not (tmp_path/'site'/'runtime').exists()
    data = jpeg_bytes(draw('cat', 13, (320, 320)))
    with network(tmp_path/'network', tmp_path) as (port,asked_for), hosted(tmp_path/'site') as (url,_), \
         own_browser(playwright, browser_type_launch_args, tmp_path/'user',
                     f'--host-resolver-rules=MAP cdn.jsdelivr.net:443 127.0.0.1:{port}',
                     f'--ignore-certificate-errors-spki-list={public_key(tmp_path/"cert.pem")}') as context:
        page = context.pages[0]
        if changed:
            page.goto(url)
            expect(page.get_by_role('status')).to_contain_text('The model cannot be loaded')
            return
        open_page(page, url)
        assert asked(page, cat=data)[0]['words'] == str(classifier.predict(data))
        installed(page)
        assert len(asked_for) == 2, asked_for   # what the page has loaded, its worker does not fetch again
        context.set_offline(True)
        open_page(page, url)
        assert asked(page, cat=data)[0]['words'] == str(classifier.predict(data))

# Any model

def test_any_labels(tmp_path, site, page):
    labels = ['Katze "Mimi" <b>Infinity</b>', 'כלב 🐶']
    model = relabelled(tmp_path/'other', labels, neither=dict(probability=0., distance=float('inf')))
    build_site(model, tmp_path/'page')
    shutil.copytree(site/'runtime', tmp_path/'page'/'runtime')
    shutil.copy(site/'index.html', tmp_path/'page'/'index.html')   # with the runtime beside it
    with hosted(tmp_path/'page') as (url,_):
        open_page(page, url)
        card, = asked(page, cat=jpeg_bytes(draw('cat', 13, (320, 320))))
        assert card['sure'] and list(card['shown']) == labels and card['words'].startswith(labels[0])

LABELS = [['cat', 'dog'], ['cat', 'dog', 'owl'], ['unicorn', 'one-eyed cat', 'umbrella', 'hour'], ['Übung', 'Ewe'],
          list('abcdefg'), ['Katze "Mimi" <b>', 'כלב 🐶']]

def test_the_words_are_those_of_python(open_app):
    "Both say the same about any answer, and no answer is certain"
    rng,answers = np.random.default_rng(0),[]
    edges = [1, 1 - 1e-7, .99901, .999, .9985, .1225, .0015, .001, .00099, 0]
    for labels,doubt in itertools.product(LABELS, ('', 'between', 'unlike')):
        for first in [*edges, *rng.random(20)]:
            p = np.r_[first, (1 - first)*rng.dirichlet(np.ones(len(labels) - 1))].tolist()
            best = int(np.argmax(p))
            answers.append((Prediction(labels[best], p[best], dict(zip(labels, p)), doubt=doubt), p, labels))
    js = """all => all.map(([o, labels]) => [words(o, labels), tally(o), forcedChoice(o),
                           shownProbabilities(o, labels).map(([label, p]) => [label, percent(p)])])"""
    said = open_app.evaluate(js, [[dict(label=o.label, probability=o.probability, probabilities=p, doubt=o.doubt),
                                   labels] for o,p,labels in answers])
    expected = [[str(o), tally(o), forced_choice(o), [[k, percent(v)] for k,v in shown_probabilities(o)]]
                for o,*_ in answers]
    assert said == expected
    assert '100.0' not in str(expected) and len({str(o) for o in expected}) > 100

@pytest.mark.parametrize('limits', [dict(probability=.8, distance=1.), dict(probability=0, distance=np.inf),
                                    dict(probability=.8, distance=np.inf), dict(probability=1., distance=0.)])
def test_the_doubts_are_those_of_python(open_app, limits):
    "Between the labels, unlike all that it was trained on, both, or neither"
    model = SimpleNamespace(labels=['cat', 'dog'], limits=limits)
    cases = [(p, distance) for p in (.5, .75, .9) for distance in (.5, 1, 1.5)]
    expected = [Classifier._prediction(model, np.array([p, 1 - p]), distance).doubt for p,distance in cases]
    js = """([limits, cases]) => cases.map(([p, distance]) => answerOf(
        {labels: ['cat', 'dog'], temperature: 1, limits: {...limits, distance: limits.distance ?? Infinity}},
        {logits: {data: [Math.log(p), Math.log(1 - p)]}, distance: {data: [distance]}}).doubt)"""
    given = {k: v for k,v in limits.items() if v != np.inf}
    assert open_app.evaluate(js, [given, cases]) == expected
    assert len(set(expected)) == {.8: 2, 0: 1, 1.: 1}[limits['probability']] + (limits['distance'] == 1)

def test_both_ways_of_not_being_sure(app, classifier, photos):
    "By the distance that the model itself gives; what is like nothing that it knows has no probabilities"
    files = [*sorted((photos/'photos'/'neither').glob('**/*.jpg'))[:12],
             *sorted((photos/'photos'/'web').glob('*/*.jpg'))[::125]]
    app.set_input_files('#file', files)
    found = set()
    for file,card in zip(files, cards(app, len(files)), strict=True):
        distance = classifier.session.run(['distance'], {'pixels': classifier.pixels(file)[None]})[0][0]
        pred,far = classifier.predict(file),distance > classifier.limits['distance']
        assert card['words'] == str(pred) and (card['words'] == 'This does not look like a cat or a dog') == far
        assert card['shown'] == ({} if far else {k: percent(v) for k,v in pred.probabilities.items()})
        found.add(far)
    assert found == {True, False}

@needs_npm
def test_three_labels_from_the_sample_web(tmp_path, page):
    "From three words to the page, as a person types it"
    build = [script('catdog-build'), 'grizzly', 'black bear', 'teddy', '--n', '30', '--size', '96', '--engine',
             'sample', '--path', 'data/bears', '--out', 'models/bears']
    res = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    res = command('models/bears', '--out', 'page', '--local', cwd=tmp_path)
    assert res.returncode == 0, res.stderr
    bears = Classifier(tmp_path/'models'/'bears')
    files = [o for label in bears.labels for o in sorted((tmp_path/'data'/'bears'/label).iterdir())[:4]]
    with hosted(tmp_path/'page') as (url,_):
        open_page(page, url)
        expect(page.get_by_role('heading', level=1)).to_have_text('Is it a black bear, a grizzly or a teddy?')
        labels,off,sure = zip(*agreement(page, bears, files))
    assert all(labels) and max(off) < .01 and all(sure)

# The command

def test_it_takes_the_very_model(site):
    assert (site/'model.onnx').read_bytes() == (shipped_model()/'model.onnx').read_bytes()

def test_the_files_that_hosts_read(tmp_path):
    build_site(shipped_model(), tmp_path/'page', github_pages=True)
    front = yaml.safe_load((tmp_path/'page'/'README.md').read_text().split('---')[1])
    assert front['sdk'] == 'static' and front['title'] == 'Is it a cat or a dog?'
    workflow = yaml.safe_load((tmp_path/'page'/'.github'/'workflows'/'pages.yml').read_text())
    assert workflow['permissions'] == {'contents': 'read', 'pages': 'write', 'id-token': 'write'}
    steps = {o['uses'].split('@')[0]: o.get('with') for o in workflow['jobs']['publish']['steps']}
    assert steps == {'actions/checkout': None, 'actions/configure-pages': None,
                     'actions/upload-pages-artifact': {'path': '.'}, 'actions/deploy-pages': None}

def test_everything_that_the_worker_keeps_is_there_and_hashes_right(site):
    text = (site/'sw.js').read_text()
    files = json.loads(text[text.index('= {') + 2:text.index('};') + 1])
    assert files.pop('./') == ''
    assert files == {o: integrity((site/o).read_bytes()) for o in files}
    there = {o.relative_to(site).as_posix() for o in site.rglob('*') if o.is_file()}
    assert there - set(files) == {'index.html', 'sw.js', 'README.md'}

@pytest.mark.parametrize('args,words', [
    (['nowhere'], 'nowhere: there is no such model folder'),
    (['full'], 'full: is no model folder'),
    ([shipped_model(), '--out', 'full'], 'full holds other things: give a new folder'),
    ([shipped_model(), '--out', 'full/notes.txt'], 'full/notes.txt is a file: give a new folder')])
def test_what_is_wrong_is_said_before_any_work(tmp_path, args, words):
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'notes.txt').write_text('mine')
    res = command(*args, '--local', cwd=tmp_path, PATH='/nowhere')   # without npm, even
    assert res.returncode == 2 and res.stderr.startswith(f'catdog-site: {words}') and 'Traceback' not in res.stderr
    assert [o.name for o in tmp_path.rglob('*')] == ['full', 'notes.txt']

def fake_npm(folder, files, stderr='', status=0):
    "An `npm` that gives these files as the package"
    with tarfile.open(folder/'package.tgz', 'w:gz') as tar:
        for name,data in files.items():
            info = tarfile.TarInfo(f'package/dist/{name}')
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (folder/'npm').write_text(f'#!/bin/sh\ncp "{folder}/package.tgz" .\necho "{stderr}" >&2\nexit {status}\n')
    (folder/'npm').chmod(0o755)
    return str(folder)

def test_npm_is_not_there(tmp_path):
    res = command(shipped_model(), '--local', cwd=tmp_path, PATH='/nowhere')
    assert res.returncode == 2 and 'npm is not installed' in res.stderr and 'do without --local' in res.stderr
    assert not (tmp_path/'site').exists()

@needs_npm
def test_npm_reaches_nothing(tmp_path):
    res = command(shipped_model(), '--local', cwd=tmp_path, npm_config_registry='http://127.0.0.1:9/',
                  npm_config_fetch_retries='0', npm_config_cache=str(tmp_path/'cache'))
    assert res.returncode == 2 and f'npm cannot fetch onnxruntime-web {RUNTIME} (' in res.stderr
    assert 'ECONNREFUSED' in res.stderr and res.stderr.count('\n') == 1 and not (tmp_path/'site').exists()

def test_npm_brings_something_else(tmp_path):
    (tmp_path/'bin').mkdir()
    names = 'ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm'
    path = fake_npm(tmp_path/'bin', dict.fromkeys(names, b'something else'))
    res = command(shipped_model(), '--local', cwd=tmp_path, PATH=f'{path}:{os.environ["PATH"]}')
    assert res.returncode == 2 and 'is not what this version of catdog was made with' in res.stderr
    assert not (tmp_path/'site').exists()

def test_a_folder_of_ours_is_written_again(tmp_path):
    out = build_site(shipped_model(), tmp_path/'page')
    (out/'CNAME').write_text('pets.example')
    assert check_out(out) == out
    build_site(shipped_model(), out)
    assert (out/'CNAME').read_text() == 'pets.example'

def test_a_page_opened_as_a_file_says_what_to_do(site, page):
    page.goto((site/'index.html').as_uri())
    expect(page.get_by_role('status')).to_contain_text('python -m http.server')

def test_the_package_brings_the_page(tmp_path):
    text = (ROOT/'setup.py').read_text()
    patterns = re.search(r"package_data=\{'catdog': (\[.*?\])\}", text)[1].replace("'", '"')
    packed = {o for p in json.loads(patterns) for o in (ROOT/'catdog').glob(p)}
    assert {o for o in (ROOT/'catdog'/'static'/'site').rglob('*') if o.is_file()} <= packed
