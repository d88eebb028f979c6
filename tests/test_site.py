"The page without a server: the same answers as the `Classifier`, no image leaves the device, offline, `catdog-site`"
import base64, gzip, hashlib, io, itertools, json, os, random, re, shutil, ssl, struct, subprocess, tarfile, threading, zlib
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np, onnx, psutil, pytest, yaml
from PIL import Image, ImageCms
from image_files import coded
from network_helpers import until
from page_helpers import (CAT, LOADED, Files, ask, as_files, cards, catdog_site, classifier, hosted, open_page, saved, script,   # noqa: F401
    site)
from playwright.sync_api import Error, expect

from catdog.core.errors import ImageError
from catdog.core.images import jpeg_bytes, open_image
from catdog.core.model_file import pixels_of
from catdog.deploy import page as page_module
from catdog.deploy.page import build_site
from catdog.deploy.predictor import (Classifier, Prediction, forced_choice, one_of, percent, shipped_model,
    shown_probabilities, tally)
from catdog.sample.draw import draw

ROOT = Path(__file__).parent.parent

@pytest.fixture(scope='module')
def url(site):
    with hosted(site) as (url,_): yield url

@pytest.fixture(scope='module')
def app(browser, url):
    "The page, open for many tests"
    context = browser.new_context()
    yield open_page(context.new_page(), url)
    context.close()

def status(page): return expect(page.get_by_role('status'))

# The same answers

def fraction(text): return {'>99.9 %': 1, '<0.1 %': 0}.get(text) or float(text.strip('<> %'))/100

def agreement(page, classifier, files):
    "Per image: same label, difference of the probability if both show one, same doubt"
    for card,pred in zip(ask(page, files), classifier.predict_batch(files), strict=True):
        p = {k: fraction(v) for k,v in card['shown'].items()}
        label = max(p, key=p.get) if p else card['forced'].removeprefix('If it had to be one of them: ')[:-1]
        doubt = '' if card['sure'] else 'between' if p else 'unlike'
        off = abs(p[pred.label] - pred.probability) if p and pred.doubt != 'unlike' else 0
        yield label == pred.label,off,doubt == pred.doubt,pred.doubt

def test_same_answers_on_photographs(app, classifier, photos):
    "`bench/site.py same` asks about 500; two of these lie at the limit of the distance"
    files = [*random.Random(3).sample(sorted((photos/'photos'/'web').glob('*/*.jpg')), 32),
             *sorted((photos/'photos'/'neither').glob('**/*.jpg'))[:8]]
    labels,off,same_doubt,doubts = zip(*agreement(app, classifier, files))
    assert sum(labels) >= 39 and sum(same_doubt) >= 38 and np.median(off) <= .005 and max(off) < .1
    assert {'', 'unlike'} <= set(doubts)

PIXELS = '''async ([data, meta]) => {
  const bytes = Uint8Array.from(atob(data), o => o.charCodeAt(0));
  const bitmap = await opened(new File([bytes], 'image'), meta);
  return btoa(Array.from(pixelsOf(bitmap, meta), o => String.fromCharCode(o)).join('')); }'''

def pixels(page, data, **meta):
    "Return the pixels that the page computes from the image `data` for a model with this `meta`"
    meta = dict(size=64, resize_to=64) | meta
    found = page.evaluate(PIXELS, [base64.b64encode(data).decode(), meta])
    return np.frombuffer(base64.b64decode(found), 'uint8').reshape(meta['size'], meta['size'], 3).astype(int)

@pytest.mark.parametrize('size', [(320, 320), (37, 500), (700, 90), (60, 41), (1, 300), (1, 1)])
@pytest.mark.parametrize('resize_to', [64, 96])
def test_same_pixels_as_pillow(app, size, resize_to):
    "To the last bit"
    img = draw('cat', 4, (300, 300)).resize(size)
    mine = np.asarray(img.resize((resize_to, resize_to), 2))[(o := (resize_to - 64)//2):o+64, o:o+64]
    assert np.array_equal(pixels(app, saved(img, 'PNG'), resize_to=resize_to), mine)

@pytest.mark.parametrize('size', [(200, 121), (90, 333), (150, 150), (53, 80), (1080, 719)])
@pytest.mark.parametrize('method,pad_mode', [('squish', 'zeros'), ('crop', 'zeros'), ('pad', 'zeros'),
                                             ('pad', 'border'), ('pad', 'reflection')])
def test_models_that_crop_or_pad(app, size, method, pad_mode):
    img,meta = draw('dog', 7, size),dict(size=64, resize_to=72, resize=dict(method=method, pad_mode=pad_mode))
    assert np.array_equal(pixels(app, saved(img, 'PNG'), **meta), pixels_of(img, meta))

@pytest.mark.parametrize('size,k', [((400, 300), 2), ((801, 799), 4), ((2000, 1600), 8), ((3001, 2003), 8),
                                    ((299, 900), 1)])
def test_large_images_are_reduced_first(app, size, k):
    img = draw('cat', 9, (600, 600)).resize(size)
    mine = np.asarray(img.reduce(k).resize((64, 64), 2)).astype(int)
    off = np.abs(pixels(app, saved(img, 'PNG'), min_side=150) - mine)
    assert off[:-1, :-1].max(initial=0) == 0 and off.max() <= 1   # a part of a block at the edge is rounded otherwise

def turned(img, number):
    "Store `img` sideways, with the EXIF orientation that rotates it back"
    turns = {2: 'FLIP_LEFT_RIGHT', 3: 'ROTATE_180', 4: 'FLIP_TOP_BOTTOM', 5: 'TRANSPOSE', 6: 'ROTATE_90',
             7: 'TRANSVERSE', 8: 'ROTATE_270'}
    exif = Image.Exif()
    exif[0x112] = number
    return saved(img.transpose(getattr(Image.Transpose, turns[number])) if number > 1 else img, quality=95, exif=exif)

def test_exif_orientation(app):
    img = draw('cat', 5, (300, 200))
    mine = np.asarray(img.resize((64, 64), 2)).astype(int)
    for number in range(1, 9): assert np.abs(pixels(app, turned(img, number)) - mine).mean() < 2, number


def profile(rgb, gamma=2.2):
    "An ICC profile with these primaries (X, Y, Z of red, green and blue under D50)"
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

@pytest.mark.parametrize('primaries,format', [(DISPLAY_P3, 'JPEG'), (DISPLAY_P3, 'WEBP'), (ADOBE_RGB, 'PNG')])
def test_colour_profiles(app, primaries, format):
    img,icc = draw('dog', 12, (200, 160)),profile(primaries)
    plain = np.asarray(img.resize((64, 64), 2)).astype(int)
    srgb = ImageCms.profileToProfile(img, io.BytesIO(icc), ImageCms.createProfile('sRGB'), ImageCms.Intent.PERCEPTUAL)
    mine = np.asarray(srgb.resize((64, 64), 2)).astype(int)
    how = dict(quality=95) if format != 'PNG' else {}
    off = np.abs(pixels(app, saved(img, format, icc_profile=icc, **how)) - mine).mean()
    assert np.abs(plain - mine).mean() > 4 and off < 2

def test_models_trained_on_images_as_stored(app):
    img,exif = draw('dog', 7, (200, 120)),Image.Exif()
    exif[0x112] = 6
    data = saved(img, quality=95, exif=exif, icc_profile=profile(DISPLAY_P3))
    mine = np.asarray(Image.open(io.BytesIO(data)).resize((64, 64), 2)).astype(int)
    assert np.abs(pixels(app, data, opened='as stored') - mine).mean() < .5
    assert np.abs(pixels(app, data) - mine).mean() > 10

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

def test_kinds_of_images(app, classifier):
    size,resize_to = classifier.meta['size'],classifier.meta['resize_to']
    for kind,(data,most) in kinds().items():
        off = np.abs(pixels(app, data, size=size, resize_to=resize_to) - classifier.pixels(data)).mean()
        assert off <= most, kind

DRAWN = """img => { const canvas = document.createElement('canvas'), context = canvas.getContext('2d');
    Object.assign(canvas, {width: img.naturalWidth, height: img.naturalHeight});
    context.drawImage(img, 0, 0);
    return canvas.toDataURL('image/png').split(',')[1]; }"""

def test_why_agrees_with_the_server(app, classifier):
    data = jpeg_bytes(draw('cat', 13, (640, 400)), 95)
    ask(app, dict(cat=data))
    app.get_by_role('button', name='Why?').click()
    expect(app.get_by_text('Bright: what spoke for')).to_be_visible()
    app.locator('figure img').evaluate_all(LOADED)
    theirs = Image.open(io.BytesIO(base64.b64decode(app.locator('figure img').evaluate(DRAWN)))).convert('RGB')
    mine = classifier.why(data)
    assert theirs.size == mine.size == (480, 300)
    def off(img): return np.abs(np.asarray(theirs).astype(int) - np.asarray(img)).mean()
    assert off(mine) < 4 and off(Image.open(io.BytesIO(data)).resize((480, 300))) > 20

LABELS = [['cat', 'dog'], ['cat', 'dog', 'owl'], ['unicorn', 'one-eyed cat', 'umbrella', 'hour'],
          list('abcdefg'), ['Katze "Mimi" <b>', 'כלב 🐶']]

def test_words_agree_with_python(app):
    "Both describe any answer alike, and no answer is certain"
    rng,answers = np.random.default_rng(0),[]
    limits = {'': (0, None), 'between': (1, None), 'unlike': (0, 0)}   # that lead to this doubt at a distance of 1
    for labels,(doubt,limit) in itertools.product(LABELS, limits.items()):
        for first in [1 - 1e-7, .9991, .9989, .0011, .0009, *rng.random(20)]:
            p = np.r_[first, (1 - first)*rng.dirichlet(np.ones(len(labels) - 1))]
            best = int(np.argmax(p))
            pred = Prediction(labels[best], float(p[best]), dict(zip(labels, p.tolist())), doubt=doubt)
            model = dict(labels=labels, temperature=1, one_of=one_of(labels),
                         limits=dict(probability=limit[0], distance=limit[1]))
            answers.append((pred, [model, dict(logits=dict(data=np.log(p).tolist()), distance=dict(data=[1]))]))
    js = """all => all.map(o => { const answer = answerOf(...o); return [answer.text, tally(answer), forcedChoice(answer),
            shownProbabilities(answer).map(([label, p]) => [label, percent(p)])]; })"""
    said = app.evaluate(js, [o for _,o in answers])
    expected = [[str(o), tally(o), forced_choice(o), [[k, percent(v)] for k,v in shown_probabilities(o)]]
                for o,_ in answers]
    assert said == expected
    edges = [1, 1 - 1e-7, .99901, .999, .9985, .1225, .0015, .001, .00099, 0]   # halves are rounded up
    assert app.evaluate('all => all.map(percent)', edges) == [percent(o) for o in edges]
    assert '100.0' not in str(expected) and len({str(o) for o in expected}) > 100

@pytest.mark.parametrize('limits', [dict(probability=.8, distance=1.), dict(probability=0, distance=np.inf),
                                    dict(probability=.8, distance=np.inf), dict(probability=1., distance=0.)])
def test_doubts_agree_with_python(app, limits):
    "Between the labels, unlike all that it was trained on, both, or neither"
    model = SimpleNamespace(labels=['cat', 'dog'], limits=limits)
    cases = [(p, distance) for p in (.5, .75, .9) for distance in (.5, 1, 1.5)]
    expected = [Classifier._prediction(model, np.array([p, 1 - p]), distance).doubt for p,distance in cases]
    js = """([limits, cases]) => cases.map(([p, distance]) => answerOf({labels: ['cat', 'dog'], temperature: 1, limits},
        {logits: {data: [Math.log(p), Math.log(1 - p)]}, distance: {data: [distance]}}).doubt)"""
    given = {k: v if v < np.inf else None for k,v in limits.items()}
    assert app.evaluate(js, [given, cases]) == expected
    assert len(set(expected)) == {.8: 2, 0: 1, 1.: 1}[limits['probability']] + (limits['distance'] == 1)

# Files that are not images, and large images

JPEG_FIRST = 'which this browser cannot open: save it as JPEG first'
JXL = base64.b64decode('/wpDQCQIBAEAbABLGIsVANQZY8aJE+cAIuDMxcABAzROEMjnAwQ=')   # 16 by 16 red pixels
def png_with(*chunks):
    "A PNG file with `chunks` (name and body) behind its header"
    data = saved(draw('cat', 1, (64, 64)), 'PNG')
    parts = (struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body)) for name,body in chunks)
    return data[:33] + b''.join(parts) + data[33:]

P3_POINTS = struct.pack('>8I', 31_270, 32_900, 68_000, 32_000, 26_500, 69_000, 15_000, 6000)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'
# Shown by Chromium (JPEG XL since 156) or Safari, but not opened by the server
NOT_BY_THE_SERVER = {
    'new.jxl': JXL, 'box.jxl': b'\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl \0\0\0\0jxl \0\0\0\0jxlc' + JXL,
    'hdr.png': png_with((b'cICP', b'\x09\x10\0\1')), 'p3.png': png_with((b'cICP', b'\x0c\x0d\0\1')),
    'hdr.avif': coded(saved(draw('cat', 1, (64, 64)), 'AVIF'), 9, 16),
    'p3.avif': coded(saved(draw('cat', 1, (64, 64)), 'AVIF'), 12, 13),
    'wide.png': png_with((b'gAMA', struct.pack('>I', 45_455)), (b'cHRM', P3_POINTS)),
    'old.jp2': b'\0\0\0\x0cjP  \r\n\x87\n', 'icon.png': saved(draw('cat', 1, (64, 64)), 'ICO'),
    'drawing.svg': SVG, 'noted.svg': b'\xef\xbb\xbf<!-- one\n -->\n<?xml version="1.0"?>\n' + SVG}
REFUSED = {
    'umlauts.jpg': (('Kätzchen '*300).encode(), 'a text file, not an image'), 'empty.jpg': (b'', 'the file is empty'),
    'page.jpg': (b'<!DOCTYPE html><p>No cats here', 'a web page, not an image'),
    'photo.heic': (b'\0\0\0\x18ftypheic' + bytes(60), f'a HEIC photo, {JPEG_FIRST}, or open this page in Safari'),
    'scan.tif': (saved(draw('cat', 1, (60, 60)), 'TIFF'), f'a TIFF image, {JPEG_FIRST}'),
    'letter.jpg': (b'%PDF-1.7', 'a PDF document, not an image'),
    'all.jpg': (b'PK\3\4' + bytes(60), 'an archive: unpack it first'),
    'noise.jpg': (bytes(range(256)), 'not an image in a format that this browser opens'),
    # A browser may show the upper half of these; no answer rests on that
    **{f'half.{o}': ((data := saved(draw('cat', 13, (600, 600)), o))[:len(data)//2],
                     'a damaged image, or one too large for this browser') for o in ('JPEG', 'PNG')}}

def test_what_only_browsers_show_is_refused_in_the_same_words(app):
    for name,data in NOT_BY_THE_SERVER.items():
        with pytest.raises(ImageError) as e: open_image(data)
        app.set_input_files('#file', dict(name=name, mimeType='image/svg+xml' if b'<svg' in data else '', buffer=data))
        assert cards(app, 1)[0]['words'] == f'{name}: {e.value}' and 'first' in str(e.value)

def test_non_images_are_described(app):
    shown = ask(app, {k: v[0] for k,v in REFUSED.items()} | {'cat.jpg': CAT})
    assert [o['words'] for o in shown[:-1]] == [f'{k}: {v[1]}' for k,v in REFUSED.items()]
    assert all(o['error'] for o in shown[:-1]) and not shown[-1]['error']
    status(app).to_contain_text(f'{len(REFUSED)} cannot be opened')

def memory():
    "MB that the pages of the browser have"
    most = 0
    for o in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):   # a process has just ended
            if '--type=renderer' in ' '.join(o.cmdline()): most = max(most, o.memory_info().rss)
    return most/2**20

@contextmanager
def peak():
    "A list that gets the most memory that a page has had meanwhile, in MB"
    most,over = [0],threading.Event()
    def watch():
        while not over.wait(.05): most[0] = max(most[0], memory())
    thread = threading.Thread(target=watch)
    thread.start()
    try: yield most
    finally:
        over.set()
        thread.join()

def test_large_images(page, url, classifier):
    open_page(page, url)
    small = draw('cat', 13, (800, 600))
    large = saved(small.resize((9600, 7200)), quality=80)
    before = memory()
    with peak() as most: card, = ask(page, {'large.jpg': large})
    pred = classifier.predict(small)
    assert card['words'].startswith(pred.label) or card['forced'] == f'If it had to be one of them: {pred.label}.'
    assert most[0] - before < 700   # unpacked once it has 276 MB
    # These would unpack to 0.6 and to 3.6 GB
    bombs = {f'{n}.png': saved(Image.new('1', (n, n)), 'PNG') for n in (12_000, 30_000)}
    before = memory()
    with peak() as most: first,second,third = ask(page, bombs | {'small.jpg': jpeg_bytes(small)})
    assert first['words'] == '12000.png: 12000 x 12000 pixels: more than the 70 million that we open'
    assert second['words'] == '30000.png: a damaged image, or one too large for this browser'   # the browser says no
    assert not third['error'] and most[0] - before < 200

# Restricted browsers

HIDDEN = """{ const own = CanvasRenderingContext2D.prototype.getImageData;
    CanvasRenderingContext2D.prototype.getImageData = function(...a) {
        const found = own.apply(this, a), {data} = found;
        for (let i = 0; i < data.length; i++) data[i] = CHANGE;
        return found; } }"""

@pytest.mark.parametrize('change,harmless', [('255', False), ('256*Math.random()', False),
                                             ('data[i] ^ (i%64 ? 0 : 1)', True)])
def test_protection_against_fingerprinting(page, url, change, harmless):
    "Firefox and others replace canvas pixels by white or noise; Brave changes a few bits"
    page.add_init_script(HIDDEN.replace('CHANGE', change))
    open_page(page, url)
    page.set_input_files('#file', as_files({'cat.jpg': CAT}))
    if harmless: expect(page.get_by_role('heading', level=2)).to_contain_text('cat, ')
    else:
        expect(page.locator('#status .error')).to_contain_text('This browser hides the pixels of images from pages')
        expect(page.locator('article')).to_have_text('cat.jpg: no answer')

@pytest.mark.parametrize('sandbox', ['allow-scripts', 'allow-scripts allow-same-origin'])
def test_in_a_sandboxed_frame(page, site, tmp_path, sandbox):
    "As on learning platforms and in wikis: without service workers, storage and an origin"
    shutil.copytree(site, tmp_path/'site')
    (tmp_path/'lesson.html').write_text(f'<iframe sandbox="{sandbox}" src="site/index.html" width=800 height=700></iframe>')
    with hosted(tmp_path) as (url,_):
        page.goto(f'{url}lesson.html')
        frame = page.frame_locator('iframe')
        expect(frame.get_by_role('status')).to_have_text('Ready.')
        frame.locator('#file').set_input_files(as_files({'cat.jpg': CAT}))
        expect(frame.get_by_role('heading', level=2)).to_contain_text('cat, ')

class Plain(Files):
    "A host that knows few endings, and sends no or one type"
    known,kind = {'', '.html', '.js', '.css', '.png', '.bin', '.webmanifest'},None
    def guess_type(self, path): return self.kind
    def send_header(self, name, value):
        if value is not None: super().send_header(name, value)
    def do_GET(self):
        return super().do_GET() if Path(self.path.split('?')[0]).suffix in self.known else self.send_error(404)

class Binary(Plain):
    def guess_type(self, path): return 'text/html' if path.endswith('.html') else 'application/octet-stream'

@pytest.mark.parametrize('host', [Plain, Binary])
def test_on_a_host_that_knows_few_endings_and_types(page, site, host):
    "Without a type for the scripts, too: a module runs only with that of JavaScript"
    with hosted(site, host=host) as (url,_):
        open_page(page, f'{url}index.html')
        assert ask(page, dict(cat=CAT))[0]['words'].startswith('cat, ')

def test_opened_as_a_file_the_page_explains_what_to_do(site, page):
    page.goto((site/'index.html').as_uri())
    status(page).to_contain_text('python -m http.server')

# No image leaves the device

LEAKS = {'fetch': 'url => fetch(url, {method: "POST", body: "an image"}).then(() => true, () => false)',
         'beacon': 'url => { try { return navigator.sendBeacon(url, "an image") && false } catch { return false } }',
         'request': """url => new Promise(done => { const o = new XMLHttpRequest(); o.onload = () => done(true);
                       o.onerror = () => done(false); o.open("POST", url); o.send("an image"); })""",
         'image': """url => new Promise(done => Object.assign(new Image(), {onload: () => done(true),
                       onerror: () => done(false), src: url}))""",
         'socket': """url => new Promise(done => { try { const o = new WebSocket(url.replace("http", "ws"));
                      o.onopen = () => done(true); o.onerror = () => done(false); } catch { done(false) } })""",
         'frame': """url => { const o = document.createElement("iframe"); o.src = url; document.body.append(o);
                     return new Promise(done => setTimeout(done, 300, false)); }""",
         'form': """url => { const o = document.createElement("form"); Object.assign(o, {action: url, method: "post"});
                    document.body.append(o); o.submit(); return new Promise(done => setTimeout(done, 300, false)); }""",
         'script': """url => { const o = document.createElement("script"); o.src = url; document.body.append(o);
                      return new Promise(done => { o.onload = () => done(true); o.onerror = () => done(false); }); }"""}

def test_page_cannot_send_anything(page, site):
    "Neither to its own host nor to another; no request reaches the host"
    with hosted(site) as (url,log):
        open_page(page, url)
        for name,way in LEAKS.items():
            for address in (f'{url}icon-192.png?leak', 'http://127.0.0.2:9/?leak'):
                assert page.evaluate(way, address) is False, (name, address)
        assert page.url == url
    assert log and not [o for o in log if 'leak' in o]

def test_leaks_work_without_the_policy(context, tmp_path):
    (tmp_path/'index.html').write_text('<!doctype html><title>open</title>')
    (tmp_path/'icon.svg').write_bytes((ROOT/'catdog'/'static'/'icon.svg').read_bytes())
    with hosted(tmp_path) as (url,log):
        for name,way in LEAKS.items():
            page = context.new_page()   # another page would interrupt the form
            page.goto(url)
            with suppress(Error): page.evaluate(way, f'{url}icon.svg?{name}')   # the form leaves the page
            until(lambda: any(f'?{name}' in o for o in log))

@contextmanager
def own_browser(playwright, launch_args, folder, *args):
    "A browser that keeps its profile in `folder`, with more command line"
    launch_args = {**launch_args, 'args': [*launch_args['args'], *args]}
    context = playwright.chromium.launch_persistent_context(folder, **launch_args)
    try: yield context
    finally: context.close()

def installed(page):
    "Wait until the service worker has everything"
    page.evaluate('async () => { await navigator.serviceWorker.ready; }')
    expect(page.locator('body')).to_be_visible()

def requests_of_pages(log):
    "URLs that pages and their workers requested, by the browser's `log`, without the browser's own requests"
    text = log.read_text(encoding='utf8', errors='replace').rstrip()
    log = json.loads(text if text.endswith('}') else text.rstrip(',') + ']}')
    start = log['constants']['logEventTypes']['URL_REQUEST_START_JOB']
    started = [o['params'] for o in log['events'] if o['type'] == start and 'url' in o.get('params', {})]
    return {o['url'] for o in started if o.get('initiator', '').startswith('http')}

def test_local_page_contacts_no_other_host_and_can_be_installed(site, playwright, browser_type_launch_args, tmp_path):
    "By the browser's network log"
    log = tmp_path/'net.json'
    with hosted(site) as (url,_):
        with own_browser(playwright, browser_type_launch_args, tmp_path/'user', f'--log-net-log={log}') as browser:
            page = open_page(browser.pages[0], url)
            ask(page, dict(cat=CAT))
            installed(page)
            devtools = browser.new_cdp_session(page)
            assert devtools.send('Page.getInstallabilityErrors')['installabilityErrors'] == []
            manifest = json.loads(devtools.send('Page.getAppManifest')['data'])
            assert manifest['name'] == 'Is it a cat or a dog?' and manifest['display'] == 'standalone'
    found = requests_of_pages(log)
    assert {f'{url}{o}' for o in ('model.bin', 'sw.js', 'runtime/ort-wasm-simd-threaded.bin')} <= found
    assert {o for o in found if not o.startswith(url)} == set()

# Offline, and the next version

def test_offline_after_the_first_load(site, page, context, classifier):
    with hosted(site) as (url,_):
        open_page(page, url)
        installed(page)
        context.set_offline(True)
        assert ask(page, dict(cat=CAT))[0]['words'] == str(classifier.predict(CAT))
        for address in (url, f'{url}index.html', f'{url}?from=home-screen'): open_page(page, address)
    open_page(page, url)   # the server is gone, too
    assert ask(page, dict(cat=CAT))[0]['words'] == str(classifier.predict(CAT))

@pytest.mark.parametrize('cut', [0, 100])
def test_missing_or_wrong_model_file(site, page, cut):
    "Missing, or with another hash than the page has"
    data = (site/'model.bin').read_bytes()[cut:]
    with hosted(site) as (url,_):
        page.route('**/model.bin', lambda o: o.fulfill(body=data) if cut else o.abort())
        page.goto(url)
        status(page).to_contain_text('The model cannot be loaded')
        status(page).to_contain_text('Load the page again when there is a connection.')

def relabelled(folder, labels, **more):
    "The model that ships, with other labels: its folder"
    model = onnx.load(shipped_model()/'model.onnx')
    meta = {**json.loads(model.metadata_props[0].value), 'labels': labels, **more}
    onnx.helper.set_model_props(model, {'catdog': json.dumps(meta)})
    folder.mkdir(parents=True)
    onnx.save(model, folder/'model.onnx')
    return folder

KEEPS = """async ([cacheName, text]) => {
    const page = await caches.match('./', {cacheName});   // `caches.open` would make one that is gone again
    return Boolean(page && (await page.text()).includes(text)); }"""

def test_new_version_replaces_the_old(site, page, tmp_path):
    shutil.copytree(site, tmp_path/'a')
    shutil.copytree(site, tmp_path/'b')
    with hosted(tmp_path) as (url,_):
        open_page(page, f'{url}b/')
        installed(page)
        open_page(page, f'{url}a/')
        installed(page)
        build_site(relabelled(tmp_path/'other', ['tabby', 'hound']), tmp_path/'a', local=True)
        page.reload()   # opens from the cache, and finds that there is a new version
        def updated():
            names = page.evaluate('() => caches.keys()')
            return len(names) == 2 and page.evaluate(KEEPS, [next(o for o in names if '/a/' in o), 'tabby']) and names
        names = until(updated)
        open_page(page, f'{url}a/')
        expect(page.get_by_role('heading', level=1)).to_have_text('Is it a tabby or a hound?')
        words = ask(page, dict(cat=CAT))[0]['words']
        assert 'tabby' in words or 'hound' in words
        assert len([o for o in names if '/b/' in o]) == 1   # another page on the same host keeps its files

# The runtime from a public network

def openssl(*args, data=None, cwd=None):
    return subprocess.run(['openssl', *args], input=data, capture_output=True, check=True, cwd=cwd).stdout

@pytest.fixture(scope='module')
def jsdelivr(site, tmp_path_factory):
    "(folder laid out like jsDelivr, SSL context, hash by which a browser can trust its certificate)"
    if not shutil.which('openssl'): pytest.skip('no openssl, which makes the certificate of a server')
    folder = tmp_path_factory.mktemp('jsdelivr')
    version = re.search(r'onnxruntime-web@[\d.]+', page_of(shipped_model(), folder/'page'))[0]
    dist = folder/'npm'/version/'dist'
    dist.mkdir(parents=True)
    (dist/'ort.wasm.bundle.min.mjs').write_bytes((site/'runtime'/'ort.wasm.bundle.min.js').read_bytes())
    wasm = gzip.decompress((site/'runtime'/'ort-wasm-simd-threaded.bin').read_bytes())
    (dist/'ort-wasm-simd-threaded.wasm').write_bytes(wasm)
    names = 'req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=cdn.jsdelivr.net -keyout key.pem -out cert.pem'
    openssl(*names.split(), cwd=folder)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder/'cert.pem', folder/'key.pem')
    key = openssl('x509', '-pubkey', '-noout', data=(folder/'cert.pem').read_bytes())
    der = openssl('dgst', '-sha256', '-binary', data=openssl('pkey', '-pubin', '-outform', 'der', data=key))
    return folder,tls,base64.b64encode(der).decode()

def page_of(model, out): return (build_site(model, out)/'index.html').read_text()

@pytest.mark.parametrize('changed', [None, 'ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm'])
def test_the_runtime_from_a_public_network(playwright, browser_type_launch_args, jsdelivr, tmp_path, classifier, changed):
    "It is used only if it has the expected hash, and it is kept for offline"
    folder,tls,trusted = jsdelivr
    assert not (folder/'page'/'runtime').exists()
    shutil.copytree(folder/'npm', tmp_path/'npm')
    if changed:
        file = next((tmp_path/'npm').rglob(changed))
        file.write_bytes(file.read_bytes() + b'\n\n')
    with hosted(tmp_path, tls) as (network,log), hosted(folder/'page') as (url,_), \
         own_browser(playwright, browser_type_launch_args, tmp_path/'user',
                     f'--host-resolver-rules=MAP cdn.jsdelivr.net:443 127.0.0.1:{network.split(":")[2].strip("/")}',
                     f'--ignore-certificate-errors-spki-list={trusted}') as context:
        page = context.pages[0]
        if changed:
            page.goto(url)
            status(page).to_contain_text('The model cannot be loaded')
            return
        open_page(page, url)
        assert ask(page, dict(cat=CAT))[0]['words'] == str(classifier.predict(CAT))
        installed(page)
        assert len(log) == 2, log   # what the page has loaded, its worker does not fetch again
        context.set_offline(True)
        open_page(page, url)
        assert ask(page, dict(cat=CAT))[0]['words'] == str(classifier.predict(CAT))

# Any model

def test_any_labels(tmp_path, site, page):
    labels = ['Katze "Mimi" <b>Infinity</b>', "כלב's 🐶"]
    model = relabelled(tmp_path/'other', labels, neither=dict(probability=0., distance=float('inf')))
    out = build_site(model, tmp_path/'page', local=True)
    assert yaml.safe_load((out/'README.md').read_text().split('---')[1])['title'].startswith('Is it a Katze "Mimi" <b>')
    with hosted(out) as (url,_):
        card, = ask(open_page(page, url), dict(cat=CAT))
        assert card['sure'] and list(card['shown']) == labels and card['words'].startswith(labels[0])

@pytest.mark.nightly
def test_three_labels_from_the_sample_web(tmp_path, page):
    "From three words to the page, by the commands"
    build = [script('catdog-build'), 'grizzly', 'black bear', 'teddy', '--n', '30', '--size', '96', '--engine',
             'sample', '--path', 'data/bears', '--out', 'models/bears']
    res = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    res = catdog_site('--model', 'models/bears', '--out', 'page', '--local', cwd=tmp_path)
    assert res.returncode == 0, res.stderr
    bears = Classifier(tmp_path/'models'/'bears')
    files = [o for label in bears.labels for o in sorted((tmp_path/'data'/'bears'/label).iterdir())[:4]]
    with hosted(tmp_path/'page') as (url,_):
        open_page(page, url)
        expect(page.get_by_role('heading', level=1)).to_have_text('Is it a black bear, a grizzly or a teddy?')
        labels,off,same_doubt,_ = zip(*agreement(page, bears, files))
    assert all(labels) and max(off) < .01 and all(same_doubt)

# The command

def test_files_of_the_command(tmp_path, monkeypatch):
    res = catdog_site('--model', shipped_model(), '--out', 'my page', '--github-pages', cwd=tmp_path)
    assert res.returncode == 0 and "-d 'my page', then http://127.0.0.1:8000" in res.stdout
    out = tmp_path/'my page'
    shipped = (shipped_model()/'model.onnx').read_bytes()
    nodes = onnx.load_from_string(gzip.decompress((out/'model.bin').read_bytes())).graph.node
    made = {o.output[0]: o.op_type for o in nodes}
    kinds = {(any(a.name == 'group' and a.i > 1 for a in o.attribute), made[o.input[1]]) for o in nodes if o.op_type == 'Conv'}
    assert kinds == {(True, 'Mul'), (False, 'DequantizeLinear')}   # depthwise convolutions, which are slow in 8 bits there
    assert (out/'model.bin').stat().st_size < .8*len(shipped)
    front = yaml.safe_load((out/'README.md').read_text().split('---')[1])
    assert front['sdk'] == 'static' and front['title'] == 'Is it a cat or a dog?'
    workflow = yaml.safe_load((out/'.github'/'workflows'/'pages.yml').read_text())
    assert workflow['permissions'] == {'contents': 'read', 'pages': 'write', 'id-token': 'write'}
    steps = {o['uses'].split('@')[0]: o.get('with') for o in workflow['jobs']['publish']['steps']}
    assert steps == {'actions/checkout': None, 'actions/configure-pages': None,
                     'actions/upload-pages-artifact': {'path': '.'}, 'actions/deploy-pages': None}
    (out/'CNAME').write_text('pets.example')
    monkeypatch.setattr(page_module, 'find_spec', lambda name: None)   # where onnx is not installed
    build_site(shipped_model(), out)   # a page of ours is written again, and other files stay
    assert gzip.decompress((out/'model.bin').read_bytes()) == shipped
    assert (out/'CNAME').read_text() == 'pets.example'

def test_the_worker_keeps_every_file_and_its_hash(site):
    text = (site/'sw.js').read_text()
    files = json.loads(text[text.index('= {') + 2:text.index('};') + 1])
    def integrity(data): return 'sha384-' + base64.b64encode(hashlib.sha384(data).digest()).decode()
    assert files.pop('./') == ''
    assert files == {o: integrity((site/o).read_bytes()) for o in files}
    there = {o.relative_to(site).as_posix() for o in site.rglob('*') if o.is_file()}
    assert there - set(files) == {'index.html', 'sw.js', 'README.md'}

@pytest.mark.parametrize('args,words', [
    (['--model', 'nowhere'], 'nowhere: there is no such model folder'),
    (['--model', shipped_model(), '--out', 'full'], 'full holds other files: give a new folder'),
    (['--model', shipped_model(), '--out', 'full/notes.txt'], 'full/notes.txt is a file: give a new folder'),
    (['--model', shipped_model()], 'is not installed: install Node.js')])
def test_errors_are_reported_before_anything_is_written(tmp_path, args, words):
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'notes.txt').write_text('mine')
    res = catdog_site(*args, '--local', cwd=tmp_path, PATH='/nowhere')   # without npm
    assert res.returncode == 2 and res.stderr.startswith('catdog-site: ') and words in res.stderr and 'Traceback' not in res.stderr
    assert [o.name for o in tmp_path.rglob('*')] == ['full', 'notes.txt']

@pytest.mark.skipif(not shutil.which('npm'), reason='no npm: install Node.js')
def test_npm_without_a_connection(tmp_path):
    res = catdog_site('--model', shipped_model(), '--local', cwd=tmp_path, npm_config_registry='http://127.0.0.1:9/',
                      npm_config_fetch_retries='0', npm_config_cache=str(tmp_path/'cache'))
    assert res.returncode == 2 and re.search(r'npm cannot fetch onnxruntime-web [\d.]+ \(.*ECONNREFUSED', res.stderr)
    assert res.stderr.count('\n') == 1 and not (tmp_path/'site').exists()

def test_wrong_hash_from_npm_is_refused(tmp_path):
    with tarfile.open(tmp_path/'package.tgz', 'w:gz') as tar:
        for name in ('ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm'):
            info = tarfile.TarInfo(f'package/dist/{name}')
            info.size = 4
            tar.addfile(info, io.BytesIO(b'else'))
    (tmp_path/'bin').mkdir()
    (tmp_path/'bin'/'npm').write_text(f'#!/bin/sh\ncp "{tmp_path}/package.tgz" .\n')
    (tmp_path/'bin'/'npm').chmod(0o755)
    res = catdog_site('--model', shipped_model(), '--local', cwd=tmp_path, PATH=f'{tmp_path}/bin:{os.environ["PATH"]}')
    assert res.returncode == 2 and 'does not have the hashes that catdog expects' in res.stderr
    assert not (tmp_path/'site').exists()
