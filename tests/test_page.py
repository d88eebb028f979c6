"The page in a browser, with both of its back ends: the server and onnxruntime-web"
import base64, io, os, re, zipfile
from pathlib import Path

import pillow_heif, pytest, requests
from PIL import Image, ImageOps
from network_helpers import violations
from page_helpers import (BEAR, CAT, LOADED, ask, as_files, cards, classifier, drop, hosted, open_page, saved, serving,   # noqa: F401
    site)
from playwright.sync_api import expect

from catdog.core.images import jpeg_bytes, open_image
from catdog.dataset.journal import add_images
from catdog.dataset.manifest import read_rows
from catdog.deploy.predictor import forced_choice, percent, shown_probabilities
from catdog.sample.draw import draw

@pytest.fixture(scope='module')
def kept(tmp_path_factory): return tmp_path_factory.mktemp('kept')

@pytest.fixture(scope='module')
def server(kept):
    with serving('--keep', str(kept)) as url: yield url

@pytest.fixture(scope='module', params=['server', 'browser'])
def url(request):
    "The page's URL"
    if request.param == 'server': yield request.getfixturevalue('server')
    else:
        with hosted(request.getfixturevalue('site')) as (url,_): yield url

@pytest.fixture(scope='module')
def desktop(browser, url):
    context = browser.new_context(viewport=dict(width=1100, height=800), permissions=['clipboard-read', 'clipboard-write'])
    page = open_page(context.new_page(), url)
    page.wrong = []
    page.on('pageerror', lambda e: page.wrong.append(str(e)))
    page.on('console', lambda o: page.wrong.append(o.text) if o.type == 'error' else None)
    yield page
    context.close()

@pytest.fixture
def app(desktop):
    "The page, open for all tests of this module; an error in its console fails the test"
    desktop.wrong.clear()
    yield desktop
    assert [o for o in desktop.wrong if 'responded with a status of 4' not in o] == []   # a file that is no image

def status(page): return expect(page.get_by_role('status'))

def test_answers_agree_with_the_classifier(app, url, classifier):
    images = {'cat.jpg': CAT, 'notes.txt': b'buy cat food', 'bear.jpg': BEAR, 'dog.jpg': jpeg_bytes(draw('dog', 6, (320, 240)))}
    shown = ask(app, images)
    assert [o['name'] for o in shown] == list(images) and [o['error'] for o in shown] == [False, True, False, False]
    for card in (o for o in shown if not o['error']):
        pred = classifier.predict(images[card['name']])
        assert card['words'] == str(pred) and card['sure'] == pred.sure and card['image']
        assert card['shown'] == {k: percent(v) for k,v in shown_probabilities(pred)}
        assert card['forced'] == forced_choice(pred)
    assert shown[0]['words'].startswith('cat, ') and shown[2]['words'] == 'This does not look like a cat or a dog'
    assert shown[1]['words'] == 'notes.txt: a text file, not an image'
    status(app).to_contain_text('1 cat, 1 cannot be opened, 2 like none of them')
    assert app.url == url and app.evaluate('scrollX || document.scrollingElement.scrollWidth - innerWidth') <= 0
    card, = ask(app, {'cat.jpg': CAT})   # replaces the first four
    status(app).to_have_text(card['words'])

def test_new_choice_replaces_a_running_one(app):
    many = {f'{i}.jpg': jpeg_bytes(draw('cat', i, (400, 400))) for i in range(40)}
    app.set_input_files('#file', as_files(many))
    if app.locator('#predict').count(): app.locator('#predict').click()
    app.locator('article bdi', has_text='0.jpg').first.wait_for()
    card, = ask(app, {'last.jpg': CAT})
    assert card['name'] == 'last.jpg'
    app.wait_for_timeout(500)
    expect(app.locator('article')).to_have_count(1)

# Dropping and pasting

@pytest.fixture
def folder(tmp_path):
    "Images in folders, and other files"
    for name in ('cat 10.jpg', 'cat 9.jpg', 'inner/Kätzchen auf dem Dach.jpg', 'inner/deep/כלב.jpg'):
        (tmp_path/'my pets'/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/'my pets'/name).write_bytes(jpeg_bytes(draw('cat', len(name), (200, 200))))
    for name in ('notes.txt', 'inner/list.csv', '.DS_Store'): (tmp_path/'my pets'/name).write_text('not an image')
    return tmp_path/'my pets'

def test_drop_files_anywhere(app, folder):
    assert app.evaluate('document.elementFromPoint(20, 600).closest(".drop")') is None
    drop(app, folder/'cat 9.jpg', folder/'notes.txt')
    assert [(o['name'], o['error']) for o in cards(app, 2)] == [('cat 9.jpg', False), ('notes.txt', True)]

def test_drop_a_folder(app, folder):
    drop(app, folder)
    assert [o['name'] for o in cards(app, 4)] == ['cat 9.jpg', 'cat 10.jpg', 'כלב.jpg', 'Kätzchen auf dem Dach.jpg']
    status(app).to_contain_text('left out, as their names are not those of images: 2')

def test_drop_a_folder_of_more_than_a_hundred(app, tmp_path):
    "A browser lists a hundred files at a time, and the server accepts 16 per request"
    data = jpeg_bytes(draw('cat', 1, (64, 64)))
    for i in range(110): (tmp_path/f'{i}.jpg').write_bytes(data)
    drop(app, tmp_path)
    assert [o['name'] for o in cards(app, 110)] == [f'{i}.jpg' for i in range(110)]

def test_drop_no_image(app, tmp_path):
    (tmp_path/'empty').mkdir()
    drop(app, tmp_path/'empty')
    status(app).to_have_text('There is no image in this folder.')
    app.evaluate('''() => { const data = new DataTransfer(); data.setData('text/plain', 'cat');
        document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})); }''')
    status(app).to_contain_text('That was not a file')

def test_paste(app):
    app.bring_to_front()
    app.evaluate('''async data => navigator.clipboard.write([new ClipboardItem({'image/png':
        new Blob([Uint8Array.from(atob(data), o => o.charCodeAt(0))], {type: 'image/png'})})])''',
        base64.b64encode(saved(draw('cat', 13, (320, 320)), 'PNG')).decode())
    app.keyboard.press('Control+v')
    assert not cards(app, 1)[0]['error']
    app.evaluate('() => navigator.clipboard.writeText("a cat")')
    app.keyboard.press('Control+v')
    status(app).to_have_text('There is no image in the clipboard.')

# The camera, the keyboard, "Why?"

def test_camera_button_on_a_phone(new_context, url, playwright, app):
    expect(app.get_by_text('Take a photo')).to_be_hidden()
    phone = open_page(new_context(**playwright.devices['Pixel 7']).new_page(), url)
    camera = phone.get_by_label('Take a photo')
    assert camera.get_attribute('capture') == 'environment'
    with phone.expect_file_chooser() as chooser: camera.tap()
    chooser.value.set_files(as_files({'image.jpg': CAT}))
    assert not cards(phone, 1)[0]['error']
    assert phone.evaluate('document.scrollingElement.scrollWidth - innerWidth') <= 0

def test_keyboard_alone(page, url, tmp_path):
    open_page(page, url)
    (tmp_path/'cat.jpg').write_bytes(CAT)
    page.keyboard.press('Tab')
    expect(page.locator('#file')).to_be_focused()
    with page.expect_file_chooser() as chooser: page.keyboard.press('Space')
    chooser.value.set_files(tmp_path/'cat.jpg')
    if page.locator('#predict').count():
        status(page).to_have_text('1 image chosen')
        page.keyboard.press('Tab')
        page.keyboard.press('Enter')
    expect(page.locator('article')).to_have_count(1)
    page.keyboard.press('Tab')
    button = page.get_by_role('button', name='Why? cat.jpg')
    expect(button).to_be_focused()
    page.keyboard.press('Space')
    expect(button).to_have_attribute('aria-expanded', 'true')
    expect(page.get_by_text('Bright: what spoke for cat. Dark and grey: what did not.')).to_be_visible()
    page.keyboard.press('Space')
    expect(page.locator('figure')).to_be_hidden()

# "Wrong? Say what it is"

def correct(card, label):
    "Say that `card` shows `label`; return what the page says to it"
    card.get_by_label('It is').select_option(label)
    card.get_by_role('group').get_by_role('button').click()
    expect(card.locator('details > div')).not_to_be_empty()
    return card.locator('details > div').inner_text()

def test_a_correction_is_learned_from(page, url, kept, tmp_path):
    "By keyboard: the server keeps the image, the other page makes a zip file of it; without metadata, such as the place"
    exif,folder,before = Image.Exif(),tmp_path/'unzipped',{*kept.rglob('*.jpg')}
    exif[0x010e] = 'at home'
    mine = saved(ImageOps.mirror(Image.open(io.BytesIO(CAT))), exif=exif)   # which no other test corrects
    open_page(page, url)
    ask(page, {'Käse/../猫 1.jpg': mine, 'notes.txt': b'buy cat food', '2.png': CAT})
    assert page.locator('details').count() == 2 and page.get_by_label('It is').first.is_hidden()
    page.locator('summary').first.focus()
    for key in ('Enter', 'Tab', 'd', 'Tab', 'Enter'): page.keyboard.press(key)
    said = page.locator('article').first.locator('details > div')
    expect(said).not_to_be_empty()
    expect(page.locator('summary').first).to_be_focused()
    expect(page.get_by_label('It is').first).to_be_disabled()
    if page.locator('#predict').count():
        expect(said).to_have_text('Thank you: kept as dog.')
        file, = {*kept.rglob('*.jpg')} - before
        row = [*read_rows(kept).values()][-1]
        assert row['file'] == f'dog/{file.name}' and row['engine'] == 'page' and row['reason'].startswith('the page said cat, ')
        folder = kept
    else:
        expect(said).to_have_text('Added as dog: download the zip file below.')
        assert 'Added as cat' in (page.locator('summary').last.click(), correct(page.locator('article').last, 'cat'))[1]
        with page.expect_download() as download: page.get_by_role('button', name='Download 2 corrections').click()
        with zipfile.ZipFile(download.value.path()) as file:
            assert file.testzip() is None
            file.extractall(folder)
        assert sorted(o.parent.name for o in folder.rglob('*.jpg')) == ['cat', 'dog']
        file, = folder.glob('dog/*猫 1-*.jpg')
    assert not Image.open(file).getexif() and max(Image.open(file).size) == min(1024, max(open_image(CAT).size))
    assert add_images(tmp_path/'data', folder, ['dog']) == 1 and (tmp_path/'data'/'dog'/file.name).exists()   # --also

def test_a_correction_that_cannot_be_kept_can_be_tried_again(page, server):
    ask(open_page(page, server), {'cat.jpg': jpeg_bytes(draw('cat', 99, (320, 240)))})
    page.route('**/correct', lambda o: o.abort())
    page.locator('summary').click()
    card = page.locator('article')
    assert correct(card, 'cat') == 'The connection broke. Try again in a moment, or with a smaller image.'
    page.unroute('**/correct')
    card.get_by_role('button', name='Send').click()
    expect(card.locator('details > div')).to_have_text('Thank you: kept as cat.')

BRIGHTNESS = '''all => all.map(o => { const c = document.createElement('canvas'); c.width = c.height = 32;
    const g = c.getContext('2d'); g.drawImage(o, 0, 0, 32, 32);
    return [o.naturalWidth/o.naturalHeight, g.getImageData(0, 0, 32, 32).data.reduce((sum, o) => sum + o, 0)]; })'''

def test_why(app):
    ask(app, {'notes.txt': b'buy cat food', 'dog.jpg': jpeg_bytes(draw('dog', 6, (320, 240))), 'cat.jpg': CAT})
    assert app.get_by_role('button', name='Why?').count() == 2
    app.get_by_role('button', name='Why? cat.jpg').click()
    app.get_by_text('Bright: what spoke for cat.').wait_for()
    app.locator('article img').evaluate_all(LOADED)
    (shape,light),(same,dark) = app.locator('article').nth(2).locator('img').evaluate_all(BRIGHTNESS)
    assert shape == pytest.approx(same, rel=.01) and dark < .9*light
    expect(app.locator('figure').first).to_be_hidden()

def test_names_of_any_kind(app):
    names = ['Kätzchen auf dem Dach.jpg', 'כלב על הגג.jpg', '<img src=x onerror=alert(1)>.jpg', '猫 "&amp;".jpg', 'x'*90 + '.jpg']
    assert [o['name'] for o in ask(app, {o: CAT for o in names})] == names
    assert app.evaluate('document.documentElement.scrollWidth <= innerWidth')

@pytest.mark.parametrize('scheme,width', [('light', 1100), ('dark', 390)])
def test_accessibility(new_context, url, scheme, width):
    page = open_page(new_context(color_scheme=scheme, viewport=dict(width=width, height=800)).new_page(), url)
    everything = ('critical', 'serious', 'moderate', 'minor')
    page.set_input_files('#file', as_files({'cat.jpg': CAT, 'notes.txt': b'a text', 'bear.jpg': BEAR}))
    assert violations(page, everything) == []   # while the server's page shows what was chosen
    if page.locator('#predict').count(): cards(page, 3)
    expect(page.locator('article')).to_have_count(3)
    page.get_by_role('button', name='Why?').first.click()
    expect(page.get_by_text('Bright: what spoke')).to_be_visible()
    page.get_by_text('Wrong? Say what it is cat.jpg').click()
    page.get_by_text('Wrong? Say what it is bear.jpg').click()
    correct(page.locator('article').first, 'dog')
    assert violations(page, everything) == []
    if folder := os.environ.get('CATDOG_SCREENSHOTS'):
        page.screenshot(path=Path(folder)/f'page-{width}-{scheme}.png', full_page=True)

def test_no_inline_script_or_style(url):
    html = requests.get(url, timeout=20).text
    assert not re.search(r'<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)', html)

# Only the server

def test_without_script(browser, server, classifier):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(server)
    page.set_input_files('#file', as_files({'cat.jpg': CAT, 'notes.txt': b'buy cat food', 'bear.jpg': BEAR}))
    page.get_by_label('Also show why').check()
    page.get_by_role('button', name='Predict!').click()
    expect(page.get_by_role('heading', level=2)).to_have_text([str(classifier.predict(o)) for o in (CAT, BEAR)])
    expect(page.get_by_role('alert')).to_have_text('notes.txt: a text file, not an image')
    expect(page.get_by_text('Bright: what spoke for cat.')).to_be_visible()
    expect(page.get_by_text('If it had to be one of them')).to_be_visible()
    assert page.locator('article img').count() == 4 and page.locator('rect').count() == 2
    page.goto(server)
    page.get_by_role('button', name='Predict!').click()   # nothing is chosen: the browser says so
    assert page.url == server
    context.close()

def test_preview_of_chosen_images(page, server):
    open_page(page, server)
    page.get_by_role('button', name='Predict!').click()
    status(page).to_have_text('Choose an image first.')
    page.set_input_files('#file', as_files({'cat.jpg': CAT, 'notes.txt': b'buy cat food'}))
    expect(page.locator('#preview li')).to_have_text(['cat.jpg', '?notes.txt'])
    page.locator('#preview img').evaluate_all(LOADED)
    assert page.locator('#preview img').evaluate('o => o.naturalWidth') > 0
    expect(page.get_by_label('Also show why')).to_be_hidden()

def test_server_opens_formats_that_the_browser_cannot(page, server):
    pillow_heif.register_heif_opener()
    img = Image.open(io.BytesIO(CAT))
    shown = ask(open_page(page, server), {'photo.heic': saved(img, 'HEIF'), 'scan.tif': saved(img, 'TIFF')})
    assert all(o['words'].startswith('cat, ') and o['image'] for o in shown)

HTML = dict(content_type='text/html', body='<h1>nginx</h1>')

@pytest.mark.parametrize('answer,words', [
    (None, 'The connection broke. Try again in a moment, or with a smaller image.'),
    (dict(status=502, **HTML), 'The server did not answer (502 Bad Gateway). Try again in a moment.'),
    (dict(status=413, **HTML), 'cat.jpg: too large for the server: choose a smaller image'),
    (dict(status=503, json=dict(error='Too many images at the moment.')), 'Too many images at the moment.')])
def test_failed_requests_are_reported(page, server, answer, words):
    open_page(page, server)
    page.route('**/predict', lambda o: o.fulfill(**answer) if answer else o.abort())
    page.set_input_files('#file', as_files({'cat.jpg': CAT}))
    page.get_by_role('button', name='Predict!').click()
    status(page).to_have_text(words)
    expect(page.locator('article.error')).to_contain_text('cat.jpg: ')
    page.unroute('**/predict')
    page.get_by_role('button', name='Predict!').click()   # the choice is still there
    expect(page.get_by_role('heading', level=2)).to_contain_text('cat, ')

def test_too_large_upload_is_refused_by_the_page(page, server, tmp_path):
    (tmp_path/'large.jpg').write_bytes(bytes(17*2**20))
    open_page(page, server)
    page.route('**/predict', lambda o: pytest.fail('it was sent'))
    card, = ask(page, [tmp_path/'large.jpg'])
    assert card['words'] == 'large.jpg: larger than 16 MB'

FETCH = '''async ([url, data]) => {
    const body = new FormData();
    body.append('file', new File([Uint8Array.from(atob(data), o => o.charCodeAt(0))], 'cat.jpg'));
    try { return (await (await fetch(url + 'predict', {method: 'POST', body,
                                                       headers: {'X-Mine': '1'}})).json()).label; }
    catch (e) { return e.message; } }'''

@pytest.mark.parametrize('shared', [True, False])
def test_cross_origin_request(shared, page, server, tmp_path, request):
    "With a custom header, so that the browser sends a preflight request"
    (tmp_path/'index.html').write_text('<!doctype html><title>elsewhere</title>')
    with hosted(tmp_path) as (elsewhere,_):
        page.goto(elsewhere)
        data = base64.b64encode(CAT).decode()
        if not shared: assert page.evaluate(FETCH, [server, data]) == 'Failed to fetch'
        else:
            with serving('--cors', elsewhere) as url: assert page.evaluate(FETCH, [url, data]) == 'cat'
