"The page of `catdog-serve` in a real browser: dropping, pasting, the camera, Why?, other sites, who needs contrast"
import functools, http.server, importlib.util, os, subprocess, sys, threading
from pathlib import Path

import pytest
from network_helpers import violations

from catdog.sample.draw import draw
from catdog.core.images import jpeg_bytes
from catdog.predict import shipped_model

SIZES = {'desktop': dict(viewport=dict(width=1280, height=800)),
         'phone': dict(viewport=dict(width=390, height=844), device_scale_factor=2, is_mobile=True, has_touch=True)}

@pytest.fixture(scope='module')
def cat():
    "A real photograph of a cat, which comes with fastbook"
    return Path(importlib.util.find_spec('fastbook').origin).parent/'images'/'cat.jpg'

def serving(*options):
    "A `catdog-serve` in its own process, and its address"
    process = subprocess.Popen([str(Path(sys.executable).with_name('catdog-serve')), '--port', '0', *options],
                               stdout=subprocess.PIPE, text=True,
                               env={**os.environ, 'CATDOG_MODEL': str(shipped_model())})
    return process,process.stdout.readline().split()[0]

@pytest.fixture(scope='module')
def url():
    process,url = serving()
    yield url
    process.terminate()
    assert process.wait(30) == 0

@pytest.fixture
def visitor(browser):
    "Opens a page of a browser of its own, of a desktop's or a phone's size"
    contexts = []
    def _visitor(url, size='desktop', **kw):
        contexts.append(browser.new_context(**SIZES[size], **kw))
        page = contexts[-1].new_page()
        page.goto(url)
        return page
    yield _visitor
    for o in contexts: o.close()

def predict(page):
    page.get_by_role('button', name='Predict!').click()
    page.locator('#results > *').first.wait_for()
    return page.locator('.sentence, #results .error').all_inner_texts()

# What is dropped

def drop(page, *paths, at=(30, 700)):
    "Drop files and folders of this machine on `page`, as a person does, at a place far from the frame"
    data = dict(items=[], files=list(map(str, paths)), dragOperationsMask=1)
    cdp = page.context.new_cdp_session(page)
    for kind in ('dragEnter', 'dragOver', 'drop'):
        cdp.send('Input.dispatchDragEvent', dict(type=kind, x=at[0], y=at[1], data=data))

@pytest.fixture
def folder(tmp_path):
    "A folder `holidays` of images, with a folder within it and what computers add"
    holidays = tmp_path/'holidays'
    (holidays/'second').mkdir(parents=True)
    for i,name in enumerate(['a.jpg', 'b.jpg', 'second/c.jpg']):
        (holidays/name).write_bytes(jpeg_bytes(draw('cat', i, (90, 80))))
    for name in ('.DS_Store', 'Thumbs.db', 'notes.txt'): (holidays/name).write_text('nothing to see')
    return holidays

def status(page, text): page.get_by_role('status').filter(has_text=text).wait_for()

def test_a_image_is_dropped_anywhere(url, visitor, cat):
    page = visitor(url)
    assert page.evaluate('document.elementFromPoint(30, 700).closest("#drop")') is None
    drop(page, cat)
    status(page, '1 image chosen')
    assert predict(page)[0].startswith('cat, ') and page.url == url

def test_a_dropped_folder_is_opened(url, visitor, folder):
    page = visitor(url)
    drop(page, folder)
    status(page, '3 images chosen')
    assert sorted(page.locator('#preview li').all_inner_texts()) == ['a.jpg', 'b.jpg', 'c.jpg']
    assert len(predict(page)) == 3

def test_a_file_and_a_folder_are_dropped_together(url, visitor, folder, cat):
    page = visitor(url)
    drop(page, cat, folder)
    status(page, '4 images chosen')

def test_a_dropped_folder_without_images_is_named(url, visitor, folder):
    page = visitor(url)
    for o in folder.rglob('*.jpg'): o.unlink()
    drop(page, folder)
    status(page, 'There are no images in the folder holidays.')

def test_a_dropped_folder_with_too_many_images_is_named(url, visitor, folder):
    for i in range(30): (folder/f'{i}.png').write_bytes(b'')
    page = visitor(url)
    drop(page, folder)
    status(page, 'There are more than 16 images in the folder holidays')

def test_text_that_is_dropped_is_left_to_the_browser(url, visitor):
    page = visitor(url)
    page.evaluate('''() => { const data = new DataTransfer(); data.setData('text/plain', 'cat');
        const event = new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true});
        document.body.dispatchEvent(event); window.taken = event.defaultPrevented; }''')
    assert page.evaluate('taken') is False and page.get_by_role('status').inner_text() == ''

# What is pasted

def test_a_image_is_pasted(url, visitor, cat):
    page = visitor(url, permissions=['clipboard-read', 'clipboard-write'])
    page.evaluate('''async bytes => {
        const bitmap = await createImageBitmap(new Blob([new Uint8Array(bytes)], {type: 'image/jpeg'}));
        const canvas = Object.assign(document.createElement('canvas'), {width: bitmap.width, height: bitmap.height});
        canvas.getContext('2d').drawImage(bitmap, 0, 0);
        const png = await new Promise(done => canvas.toBlob(done, 'image/png'));
        await navigator.clipboard.write([new ClipboardItem({'image/png': png})]); }''', list(cat.read_bytes()))
    page.keyboard.press('Control+v')
    status(page, '1 image chosen')
    assert predict(page)[0].startswith('cat, ')

# The camera

def test_a_phone_offers_its_camera(url, visitor, cat):
    page = visitor(url, 'phone')
    camera = page.locator('#camera')
    assert camera.get_attribute('capture') == 'environment' and camera.get_attribute('accept') == 'image/*'
    with page.expect_file_chooser() as chooser: page.get_by_role('button', name='Take a photo').tap()
    assert chooser.value.element.get_attribute('id') == 'camera'
    chooser.value.set_files(cat)
    status(page, '1 image chosen')
    assert predict(page)[0].startswith('cat, ')

def test_a_desktop_does_not(url, visitor):
    page = visitor(url)
    assert not page.get_by_role('button', name='Take a photo').is_visible()
    assert page.get_by_text('drop or paste them anywhere').is_visible()

# Why?

def is_darker(page, which, than):
    "Is the image `which` darker than the image `than`?"
    a,b = (page.locator(o).evaluate('''o => { const c = document.createElement('canvas'); c.width = c.height = 32;
        const g = c.getContext('2d'); g.drawImage(o, 0, 0, 32, 32);
        return g.getImageData(0, 0, 32, 32).data.reduce((sum, o) => sum + o, 0); }''') for o in (which, than))
    return a < .9*b

@pytest.mark.parametrize('size', SIZES)
def test_why(url, visitor, size, cat, tmp_path):
    (tmp_path/'notes.txt').write_text('buy cat food')
    (tmp_path/'dog.jpg').write_bytes(jpeg_bytes(draw('dog', 6, (320, 240))))
    page = visitor(url, size)
    page.set_input_files('#file', [tmp_path/'notes.txt', tmp_path/'dog.jpg', cat])
    assert len(predict(page)) == 3
    whys,third = page.get_by_role('button', name='Why?'),page.locator('article').nth(2)
    assert whys.count() == 2 and page.locator('article').first.get_by_role('button').count() == 0
    whys.nth(1).click()
    third.get_by_text('Bright: what spoke for cat.').wait_for()
    assert whys.count() == 1 and page.locator('figure.why').count() == 1
    sizes = third.locator('img').evaluate_all('all => all.map(o => `${o.naturalWidth} x ${o.naturalHeight}`)')
    assert len(sizes) == 2 and len(set(sizes)) == 1 and sizes[0] != '0 x 0'
    assert is_darker(page, 'article:nth-of-type(3) .why img', 'article:nth-of-type(3) > img')
    assert page.evaluate('document.activeElement.className') == 'why'   # where a screen reader goes on
    assert page.evaluate('document.scrollingElement.scrollWidth - innerWidth') <= 0

def test_why_without_script(url, visitor, cat):
    page = visitor(url, java_script_enabled=False)
    page.set_input_files('#file', cat)
    page.get_by_label('Also show why').check()
    page.get_by_role('button', name='Predict!').click()
    page.get_by_text('Bright: what spoke for cat.').wait_for()
    assert page.locator('.sentence').inner_text().startswith('cat, ') and page.locator('.result img').count() == 2

def test_with_script_there_is_no_box_for_it(url, visitor):
    assert not visitor(url).get_by_label('Also show why').is_visible()

# Pages of other sites

@pytest.fixture
def elsewhere(tmp_path):
    "The address of another site, with one empty page"
    (tmp_path/'index.html').write_text('<!doctype html><title>elsewhere</title>')
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    site = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=tmp_path))
    threading.Thread(target=site.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{site.server_port}'
    site.shutdown()

FETCH = '''async ([url, bytes]) => {
    const body = new FormData();
    body.append('file', new File([new Uint8Array(bytes)], 'cat.jpg'));
    try { return (await (await fetch(url + 'predict', {method: 'POST', body,
                                                       headers: {'X-Mine': '1'}})).json()).label; }
    catch (e) { return e.message; } }'''

@pytest.mark.parametrize('shared', [True, False])
def test_a_page_of_another_site_asks(shared, elsewhere, visitor, cat):
    "With a header of its own, so that the browser asks beforehand whether it may"
    process,url = serving(*(['--cors', elsewhere] if shared else []))
    try:
        answer = visitor(elsewhere).evaluate(FETCH, [url, list(cat.read_bytes())])
        assert answer == ('cat' if shared else 'Failed to fetch')
    finally:
        process.terminate()
        process.wait(30)

# Who reads with a screen reader, at night, or on a phone

@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('size', SIZES)
def test_axe_finds_nothing(url, visitor, size, scheme, cat, tmp_path):
    page = visitor(url, size, color_scheme=scheme)
    assert violations(page) == []
    (tmp_path/'notes.txt').write_text('buy cat food')
    page.set_input_files('#file', [cat, tmp_path/'notes.txt', cat.with_name('grizzly.jpg')])
    status(page, '3 images chosen')
    assert violations(page) == []
    *_,bear = predict(page)
    assert bear == 'This does not look like a cat or a dog' and page.locator('article').last.locator('dl').count() == 0
    page.get_by_role('button', name='Why?').first.click()
    page.locator('figure.why').wait_for()
    assert violations(page) == []
    if folder := os.environ.get('CATDOG_SCREENSHOTS'):   # for whoever wants to look at it
        page.evaluate('scrollTo(0, 0)')
        page.screenshot(path=Path(folder)/f'page-{size}-{scheme}.png')
