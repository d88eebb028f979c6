"The widget app in a real browser, served by Voilà and in JupyterLab"
import contextlib, importlib.util, io, json, os, re, shlex, shutil, socket, subprocess, sys, threading, time
from pathlib import Path

import nbformat, numpy as np, psutil, pytest, requests
from network_helpers import free_port, kernels, until, violations
from page_helpers import drop
from PIL import Image
from playwright.sync_api import expect

from catdog.app import App
from catdog.core.images import jpeg_bytes
from catdog.dataset.folder import ImageFolder
from catdog.dataset.manifest import read_rows
from catdog.deploy.voila import _VOILA_CONFIG, _app_notebook
from catdog.deploy.widgets import MAX_MESSAGE
from catdog.predict import Classifier, shipped_model
from catdog.sample.draw import draw

ROOT = Path(__file__).parent.parent
SIZES = {'desktop': dict(viewport=dict(width=1280, height=800)),
         'phone': dict(viewport=dict(width=390, height=844), device_scale_factor=2, is_mobile=True, has_touch=True)}

def script(name): return str(Path(sys.executable).with_name(name))
def environment(**kw): return {**os.environ, 'CATDOG_MODEL': str(shipped_model()), **kw}

def until_open(process, port):
    "Wait until `process` listens on `port`"
    while process.poll() is None:
        with socket.socket() as sock:
            if sock.connect_ex(('127.0.0.1', port)) == 0: return f'http://127.0.0.1:{port}/'
        time.sleep(.01)
    raise AssertionError('the server has ended')

def runs(process):
    try: return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False

def ended(process):
    "Stop `process` as a host does; its child processes must end with it"
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    code = process.wait(60)
    for _ in range(20):   # what is killed ends as soon as it gets a core
        if not any(map(runs, family)): break
        time.sleep(.05)
    return code,list(filter(runs, family))

@pytest.fixture
def start():
    "`subprocess.Popen`; the processes end with the test"
    started = []
    def _start(*args, env={}, **kw):
        started.append(subprocess.Popen(*args, env=environment(**env), **kw))
        return started[-1]
    yield _start
    for o in started:
        o.terminate()
        o.wait(60)

@pytest.fixture(scope='module')
def classifier(): return Classifier(shipped_model())

@pytest.fixture(scope='module')
def cat():
    "A real photograph of a cat, which comes with fastbook"
    return Path(importlib.util.find_spec('fastbook').origin).parent/'images'/'cat.jpg'

@pytest.fixture(scope='module')
def drawings(tmp_path_factory):
    "Two files with different answers, one of them cat"
    folder = tmp_path_factory.mktemp('drawings')
    for i in range(2): (folder/f'drawing{i}.jpg').write_bytes(jpeg_bytes(draw(['cat', 'dog'][i], i, (400, 300))))
    (folder/'notes.txt').write_text('buy cat food')
    return folder

@pytest.fixture(scope='module')
def app_url(tmp_path_factory):
    "Voilà, started by the line of the `Procfile`; it keeps corrections"
    keep = str(tmp_path_factory.mktemp('kept'))
    port = free_port()
    line = next(o for o in (ROOT/'Procfile').read_text().splitlines() if o.startswith('web:'))[4:].strip()
    args = shlex.split(line.replace('$PORT', str(port)).replace('0.0.0.0', '127.0.0.1'))
    process = subprocess.Popen([script(args[0]), *args[1:]], env=environment(CATDOG_KEEP=keep), cwd=ROOT,
                               stderr=subprocess.DEVNULL)
    yield until_open(process, port)
    assert ended(process) == (0, [])

def sideways(page): return page.evaluate('document.scrollingElement.scrollWidth - innerWidth')

def upload(page, files):
    with page.expect_file_chooser() as chooser: page.get_by_role('button', name='Choose images').click()
    chooser.value.set_files(files)

def opened(page, url):
    page.goto(url)
    page.get_by_role('button', name='Predict!').wait_for()
    return page

def notice(page, text): page.get_by_role('alert').filter(has_text=text).wait_for()
def quiet(page): assert page.get_by_role('alert').all_inner_texts() in ([], [''])
def names(page): return sorted(o.split('\n')[-1] for o in page.locator('.catdog-card').all_inner_texts())
def shows(page, *files):
    "Wait until the cards on `page` are those of `files`"
    expect(page.locator('.catdog-card')).to_have_count(len(files))
    assert names(page) == sorted(files)
def labels(page): return expect(page.locator('.catdog-label'))

# Corrections

def corrected(monkeypatch, keep, data, label):
    "The card of `data` after a visitor has said that it shows `label`"
    monkeypatch.setenv('CATDOG_KEEP', str(keep))
    app = App(Classifier(shipped_model()))
    app.choose([('mine.jpg', data)])
    app.predict()
    card = app.images[0]
    card.truth.value = label
    assert not card.thanks   # arrow keys pass the labels in between
    card.send.click()
    return app,app.images[0]

def test_corrections_are_kept_if_the_owner_wants(monkeypatch, tmp_path, cat, capsys):
    "As a data set, without metadata such as the place, once each, and not more than a limit"
    keep,exif = tmp_path/'kept',Image.Exif()
    exif[0x010e] = 'at home'
    keep.mkdir()
    f = io.BytesIO()
    Image.open(cat).save(f, 'JPEG', exif=exif)
    app,card = corrected(monkeypatch, keep, f.getvalue(), 'dog')
    assert 'kept by the owner of this page, 1,000 at most' in app.about.value
    file, = keep.glob('dog/*.jpg')
    assert not Image.open(file).getexif() and max(Image.open(file).size) <= 1024 and 'kept as dog' in card.html.value
    row, = read_rows(keep).values()
    assert (row['label'], row['file'], row['engine'], row['status']) == ('dog', f'dog/{file.name}', 'app', 'ok')
    assert row['reason'] == 'the app said cat' or row['reason'].startswith('the app said')
    assert ImageFolder(keep).labels == ['dog']
    card.truth.value = 'cat'
    card.send.click()   # once
    for label in ('dog', 'cat'): assert 'kept already' in corrected(monkeypatch, keep, f.getvalue(), label)[1].html.value
    monkeypatch.setattr('catdog.deploy.predictor.MAX_KEPT', 1)
    assert 'not kept: 1 images' in corrected(monkeypatch, keep, jpeg_bytes(draw('cat', 1)), 'dog')[1].html.value
    assert len([*keep.rglob('*.jpg')]) == 1
    text = corrected(monkeypatch, tmp_path/'gone', jpeg_bytes(draw('cat', 1)), 'dog')[1].html.value
    assert 'cannot be kept' in text and 'gone' not in text and 'gone' in capsys.readouterr().err   # for the owner

def test_nothing_is_kept_otherwise(monkeypatch, classifier, cat):
    monkeypatch.delenv('CATDOG_KEEP', raising=False)
    app = App(classifier)
    app.choose([('cat.jpg', cat.read_bytes())])
    app.predict()
    assert app.images[0].wrong not in app.images[0].children and 'kept' not in app.about.value

# Appearance and accessibility: dark theme, screen readers, phones

def luminance(rgb):
    rgb = np.asarray(rgb, float)/255
    return np.where(rgb <= .04045, rgb/12.92, ((rgb + .055)/1.055)**2.4) @ [.2126, .7152, .0722]

def contrast(element, below=0):
    "Measure the contrast of the text on `element`, below the fraction `below`, by its pixels; WCAG requires 4.5"
    img = np.array(Image.open(io.BytesIO(element.screenshot())).convert('RGB'))
    h,w = img.shape[:2]
    values = luminance(img[int(below*h):int(.97*h), int(.1*w):int(.9*w)]).ravel()
    ground = np.median(values)
    text = values[abs(values - ground).argmax()]
    return (max(text, ground) + .05)/(min(text, ground) + .05)

def captions(page):
    "The contrast of the captions of the drawings on `page`"
    page.mouse.move(1, 1)
    expect(page.locator('.catdog-try')).to_have_count(4)
    return [contrast(o, below=.82) for o in page.locator('.catdog-try').all()]

def test_contrast_is_measured(page):
    page.set_content('<p style="background:#000; color:#595959; font:40px sans-serif; text-align:center">cat</p>'
                     '<p style="background:#fff; color:#767676; font:40px sans-serif; text-align:center">cat</p>')
    assert [round(contrast(o), 1) for o in page.locator('p').all()] == [3.0, 4.5]   # WCAG's own examples

@pytest.mark.parametrize('size,scheme', [('desktop', 'light'), ('phone', 'dark')])
def test_app(app_url, browser, size, scheme, cat, drawings, classifier, tmp_path):
    "Choose, press Predict!, ask why; axe finds nothing, and the colours follow the visitor's scheme"
    context = browser.new_context(**SIZES[size], color_scheme=scheme)
    page = opened(context.new_page(), app_url)
    page.locator('[role=main]').wait_for()
    ground = re.findall(r'\d+', page.evaluate('getComputedStyle(document.body).backgroundColor'))[:3]
    assert luminance([*map(int, ground)]) < .05 if scheme == 'dark' else luminance([*map(int, ground)]) > .9
    assert min(captions(page)) >= 4.5 and violations(page) == []
    camera = page.get_by_role('button', name='Take a photo')
    if size == 'desktop': assert camera.count() == 0   # nor for screen readers
    else:
        with page.expect_file_chooser() as chooser: camera.tap()
        assert chooser.value.element.get_attribute('capture') == 'environment' and not chooser.value.is_multiple()
        chooser.value.set_files(cat)
        page.get_by_text('1 image chosen').wait_for()
    with page.expect_file_chooser() as chooser: page.get_by_role('button', name='Choose images').click()
    assert chooser.value.element.get_attribute('capture') is None and chooser.value.is_multiple()
    chosen = [cat, drawings/'notes.txt', cat.with_name('grizzly.jpg')]
    chooser.value.set_files(chosen)
    page.get_by_text('2 images chosen').wait_for()
    expect(page.locator('.catdog-card img')).to_have_count(2)
    page.wait_for_function("[...document.querySelectorAll('.catdog-card img')].every(o => o.naturalWidth > 0)")
    page.get_by_role('button', name='Predict!').click()
    page.get_by_text('1 cat, 1 like none of them').wait_for()
    preds = [classifier.predict(o) for o in (chosen[0], chosen[2])]
    assert (preds[0].label, str(preds[1])) == ('cat', 'This does not look like a cat or a dog')
    labels(page).to_have_text([str(o) for o in preds])
    cards = page.locator('.catdog-card')
    assert [o.locator('.catdog-bar').count() for o in (cards.first, cards.last)] == [len(classifier.labels), 0]
    expect(page.get_by_role('alert')).to_have_text('notes.txt: a text file, not an image')
    before = cards.first.locator('img').get_attribute('src')
    page.get_by_role('button', name='Why?').first.click()
    page.get_by_text('what spoke for cat').wait_for()
    expect(cards.first.locator('img')).not_to_have_attribute('src', before)
    expect(page.get_by_role('button', name='Why?')).to_have_count(1)   # the other image's
    assert page.evaluate('document.activeElement.innerText') == 'Show all'
    assert violations(page) == [] and sideways(page) <= 0
    page.keyboard.press('Enter')
    page.get_by_text('what spoke for cat').wait_for(state='hidden')
    assert cards.first.locator('img').get_attribute('src') == before
    page.get_by_label('Wrong? It is').first.select_option('dog')
    page.get_by_role('button', name='Send').first.click()
    page.get_by_text(re.compile('kept (as dog|already)')).wait_for()   # or by the visitor before
    page.screenshot(path=tmp_path/'corrected.png')
    context.close()

def test_app_in_the_dark_theme_of_voila(app_url, page):
    opened(page, f'{app_url}?theme=dark')
    assert min(captions(page)) >= 4.5 and violations(page) == []

def test_page_has_only_the_app_and_works_by_keyboard(app_url, page, classifier, cat):
    page.on('filechooser', lambda _: None)
    policy = page.goto(app_url).headers['content-security-policy']
    assert "default-src 'self'" in policy and "frame-ancestors 'self'" in policy
    for path in ('voila/files/00_start.ipynb', 'voila/files/data/animals/manifest.jsonl',
                 'voila/files/07_app.ipynb', 'api/contents'):
        assert page.request.get(app_url + path).status in (403, 404), path
    page.get_by_role('button', name='Predict!').wait_for()
    expect(page.locator('h1')).to_have_text('Is it a cat or a dog?')
    page.wait_for_function("document.title == 'Is it a cat or a dog?'")   # not the name of the notebook
    expect(page.locator('body')).to_contain_text(classifier.summary)
    text = page.locator('body').inner_text()
    assert 'import' not in text and 'FileUpload' not in text
    assert page.locator('.jp-OutputArea-output .catdog').count() == 1 and page.locator('.jp-Cell').count() <= 2   # one imports
    focused = 'document.activeElement.tagName == "BUTTON" ? document.activeElement.innerText : ""'
    for _ in range(10):
        page.keyboard.press('Tab')
        if page.evaluate(focused).startswith('Choose images'): break
    with page.expect_file_chooser() as chooser: page.keyboard.press('Enter')
    chooser.value.set_files(cat)
    page.get_by_text('1 image chosen').wait_for()
    page.keyboard.press('Tab')
    assert page.evaluate(focused) == 'Predict!'
    page.keyboard.press('Enter')
    page.get_by_text('cat, ').wait_for()
    page.get_by_role('button', name='drawn dog').first.click()
    pred = classifier.predict(next(data for name,data in App(classifier).examples if 'dog' in name))
    page.get_by_text(str(pred)).wait_for()

# Dropping, pasting, limits

@pytest.fixture
def folder(tmp_path):
    "A folder `holidays` of images, with a sub-folder and system files"
    holidays = tmp_path/'holidays'
    (holidays/'second').mkdir(parents=True)
    for o in ('a.jpg', 'b.jpg', 'second/c.jpg'): (holidays/o).write_bytes(jpeg_bytes(draw('cat', o, (90, 80))))
    for o in ('.DS_Store', 'Thumbs.db', 'notes.txt'): (holidays/o).write_text('nothing to see')
    return holidays

def test_drop_and_paste(app_url, browser, cat, folder, tmp_path):
    context = browser.new_context(**SIZES['desktop'], permissions=['clipboard-read', 'clipboard-write'])
    page = opened(context.new_page(), app_url)
    drop(page, cat)
    page.get_by_text('1 image chosen').wait_for()
    drop(page, folder, cat)
    page.get_by_text('4 images chosen').wait_for()
    shows(page, 'a.jpg', 'b.jpg', 'c.jpg', 'cat.jpg')
    for i in range(30): (folder/f'{i}.png').write_bytes(b'')
    drop(page, folder)
    notice(page, 'There are more than 32 images in the folder holidays: drop at most 32.')
    for o in [*folder.rglob('*.jpg'), *folder.rglob('*.png')]: o.unlink()
    drop(page, folder)
    notice(page, 'There are no images in the folder holidays.')
    drop(page, items=[('text/uri-list', 'https://example.com/cat.jpg')])
    notice(page, 'This is a link, not an image')
    (tmp_path/'large').mkdir()
    for i in range(5): (tmp_path/'large'/f'{i}.jpg').write_bytes(cat.read_bytes() + bytes(15*2**20))
    large = [*(tmp_path/'large').iterdir()]
    upload(page, large)
    notice(page, '76 MB are too much at once')
    assert len(names(page)) == 4   # those from before, which can be predicted
    page.get_by_role('button', name='Predict!').click()
    page.locator('.catdog-label').nth(3).wait_for()
    quiet(page)
    upload(page, large[:3])
    page.get_by_text('3 images chosen').wait_for()
    quiet(page)
    page.evaluate('''async bytes => {
        const bitmap = await createImageBitmap(new Blob([new Uint8Array(bytes)], {type: 'image/jpeg'}))
        const canvas = Object.assign(document.createElement('canvas'), {width: bitmap.width, height: bitmap.height})
        canvas.getContext('2d').drawImage(bitmap, 0, 0)
        const png = await new Promise(done => canvas.toBlob(done, 'image/png'))
        await navigator.clipboard.write([new ClipboardItem({'image/png': png})]) }''', list(cat.read_bytes()))
    page.keyboard.press('Control+v')
    page.get_by_text('1 image chosen').wait_for()
    page.get_by_role('button', name='Predict!').click()
    page.get_by_text('cat, ').wait_for()
    context.close()

# In JupyterLab

@pytest.fixture
def lab(tmp_path, start):
    "A function that starts JupyterLab on a notebook with the app, and opens it"
    kernel = dict(name='python3', display_name='Python 3')
    (tmp_path/'nbs').mkdir()
    cell = nbformat.v4.new_code_cell('from catdog.app import App\nApp()')
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=dict(kernelspec=kernel)), tmp_path/'nbs'/'app.ipynb')
    def _lab(page, line, **env):
        port = free_port()
        quiet = ['--allow-root', '--no-browser', '--IdentityProvider.token=', '--ServerApp.log_level=ERROR',
                 f'--port={port}', '--ServerApp.port_retries=0', '--LabApp.news_url=None']
        process = start(['env', *(f'{k}={v}' for k,v in env.items()), 'sh', '-c', f'exec {line} {shlex.join(quiet)}'],
                        cwd=tmp_path, stderr=subprocess.DEVNULL)
        page.set_viewport_size(dict(width=1400, height=1200))
        page.goto(f'{until_open(process, port)}lab/tree/app.ipynb', timeout=240_000)
        page.get_by_text('| Idle').wait_for(timeout=240_000)
        page.locator('.jp-CodeCell .cm-content').first.click()   # JupyterLab moves the focus until then
        page.keyboard.press('Shift+Enter')
        page.get_by_role('button', name='Predict!').wait_for()
    return _lab

@pytest.fixture
def large(cat, tmp_path):
    "An image of 12 MB"
    (tmp_path/'large.jpg').write_bytes(cat.read_bytes() + bytes(12*2**20))
    return tmp_path/'large.jpg'

@pytest.mark.nightly
def test_make_lab_lets_large_images_through(lab, page, cat, large):
    "The line that `make lab` runs"
    line = subprocess.check_output(['make', '--no-print-directory', '-n', '-o', '.venv/installed', 'lab',
                                    f'BIN={Path(sys.executable).parent}'],
                                   cwd=ROOT, text=True)
    lab(page, line.strip())
    upload(page, cat)
    page.get_by_text('1 image chosen').wait_for()
    upload(page, large)
    page.locator('.catdog-card').filter(has_text='large.jpg').wait_for()
    shows(page, 'large.jpg')
    expect(page.locator('.catdog-notice')).to_have_count(0)

def test_upload_too_large_for_jupyterlab_is_reported(lab, page, cat, large, tmp_path):
    "With Jupyter's default limit of 10 MB, in its dark theme"
    settings = tmp_path/'settings'/'@jupyterlab'/'apputils-extension'
    settings.mkdir(parents=True)
    (settings/'themes.jupyterlab-settings').write_text('{"theme": "JupyterLab Dark"}')
    lab(page, f'{script("jupyter")} lab nbs', JUPYTERLAB_SETTINGS_DIR=tmp_path/'settings')
    assert page.locator('body').get_attribute('data-jp-theme-light') == 'false'
    assert min(captions(page)) >= 4.5 and violations(page, within='.catdog') == []
    upload(page, cat)
    page.get_by_text('1 image chosen').wait_for()
    upload(page, large)
    notice(page, '13 MB did not arrive: that is more than Jupyter takes at once')
    page.get_by_text('0 images chosen').wait_for()   # not the one from before
    shows(page)
    upload(page, cat)   # the app still works
    page.get_by_text('1 image chosen').wait_for()
    shows(page, 'cat.jpg')
    expect(page.locator('.catdog-notice')).to_have_count(0)   # one says for a moment how much is sent
    # files dropped on the app go to the app, files dropped elsewhere to Jupyter
    taken = '''([selector, bytes]) => {
        const data = new DataTransfer()
        data.items.add(new File([new Uint8Array(bytes)], 'dropped.jpg', {type: 'image/jpeg'}))
        const event = new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})
        document.querySelector(selector).dispatchEvent(event)
        return event.defaultPrevented }'''
    assert page.evaluate(taken, ['.jp-Toolbar', list(cat.read_bytes())]) is False
    assert page.evaluate(taken, ['.catdog-hint', list(cat.read_bytes())]) is True
    page.locator('.catdog-card').filter(has_text='dropped.jpg').wait_for()

def test_two_visitors_are_independent(app_url, browser, classifier, cat):
    files = cat,cat.with_name('grizzly.jpg')
    contexts = [browser.new_context() for _ in range(2)]
    pages = [o.new_page() for o in contexts]
    for page in pages: page.goto(app_url)
    for i,page in enumerate(pages): upload(page, files[i])
    for page in pages: page.get_by_text('1 image chosen').wait_for()
    for page in pages: page.get_by_role('button', name='Predict!').click()
    preds = [classifier.predict(o) for o in files]
    assert str(preds[0]) != str(preds[1])   # so that a mix-up shows
    for page,pred in zip(pages, preds):
        labels(page).to_have_text(str(pred))
    for o in contexts: o.close()

# Kernels

def serve_app(way, start, folder, *more):
    "(process, url) of Voilà, as the `Procfile` starts it in the project, or of `catdog-app` in an empty `folder`"
    port = free_port()
    args,cwd = {'voila': ([script('voila'), 'nbs/07_app.ipynb', '--no-browser', f'--port={port}', *more], ROOT),
                'catdog-app': ([script('catdog-app'), '--port', str(port)], folder)}[way]
    process = start(args, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return process,until_open(process, port)

def kernel_of(page, process):
    "(id, process) of the kernel of the visitor of `page`"
    id = json.loads(page.locator('#jupyter-config-data').text_content())['kernelId']
    return id,kernels(process)[id]

def idle(url, id, kernel):
    "Wait until `kernel` has run the notebook: it has loaded the model, and is idle for three seconds"
    seconds = 0
    while seconds < 3:
        time.sleep(1)
        loaded = any('onnxruntime' in o.path for o in kernel.memory_maps())
        answer = requests.get(f'{url}api/kernels/{id}', timeout=60)
        done = loaded and answer.ok and answer.json()['execution_state'] == 'idle'
        seconds = seconds + 1 if done else 0

def gone(page):
    "Wait until `page` reports that the connection is lost"
    page.get_by_role('alert').filter(has_text='The connection to the app is lost.').wait_for()
    assert all(page.locator('.catdog').evaluate_all('all => all.map(o => o.inert)'))

def reload(page):
    "Follow the link in the notice on `page`, and use the app"
    page.get_by_role('link', name='Reload the page.').click()
    page.get_by_role('button', name='drawn dog').first.click()
    labels(page).to_have_text('This does not look like a cat or a dog')
    quiet(page)

def test_unvisited_kernels_are_ended(browser, tmp_path, start):
    "Monitors and crawlers keep none; a page that loads slowly keeps its kernel"
    (tmp_path/'voila.json').write_text(json.dumps(dict(
        VisitorKernels=dict(unvisited_timeout=15), MappingKernelManager=dict(cull_interval=1, cull_idle_timeout=15))))
    process,url = serve_app('catdog-app', start, tmp_path)
    while (status := requests.head(url, timeout=60).status_code) != 200:   # no kernel yet
        assert status == 503
        time.sleep(.1)
    waiting = kernels(process)
    time.sleep(3)   # it runs the notebook
    assert requests.head(url, timeout=60).status_code == 200 and kernels(process) == waiting
    ids = [re.search(r'"kernelId": "(.*?)"', requests.get(url, timeout=120).text)[1] for _ in range(5)]
    assert len({*ids}) == 5
    ready, = until(lambda: {*kernels(process)} - {*ids})   # for the next visitor
    def others_ended():
        assert requests.get(f'{url}api/kernels/{ids[-1]}', timeout=60).ok   # as a page does that loads slowly
        return not {*kernels(process)} & {*ids[:-1]}
    until(others_ended)
    assert {*kernels(process)} == {ids[-1], ready}
    until(lambda: {*kernels(process)} == {ready})   # it stays, longer than kernels that are idle
    page = browser.new_page()
    page.goto(url)
    page.get_by_role('button', name='Predict!').wait_for()
    id,kernel = kernel_of(page, process)
    assert id == ready
    kernel.wait(120)   # it is unused now
    gone(page)

def test_kernels_end_with_their_visitors_and_killed_kernels_are_reported(browser, start, tmp_path):
    process,url = serve_app('voila', start, tmp_path)
    for _ in range(3):
        page = opened(browser.new_page(), url)
        page.goto('about:blank')
        page.close()
    until(lambda: len(kernels(process)) == 1)   # the one that waits for the next visitor
    page = opened(browser.new_page(), url)
    dead,kernel = kernel_of(page, process)
    kernel.kill()
    gone(page)
    reload(page)
    mine,_ = kernel_of(page, process)
    assert mine != dead
    (id,kernel), = until(lambda: [o for o in kernels(process).items() if o[0] != mine])
    idle(url, id, kernel)
    kernel.kill()   # the next visitor gets it
    page.goto('about:blank')
    page.goto(url)
    gone(page)
    reload(page)
    page.close()
    assert ended(process) == (0, [])

def test_app_without_a_copy_of_the_project(page, tmp_path, cat, start):
    """`catdog-app` in a folder with a model that `CATDOG_MODEL` names relative to it, below a path that a proxy left on,
    by a user without a home; it says where it is and no more, and leaves nothing"""
    (tmp_path/'file').touch()
    shutil.copytree(shipped_model(), tmp_path/'models'/'mine')
    before,port = sorted(tmp_path.rglob('*')),free_port()
    env = dict(CATDOG_MODEL='models/mine', HOME=str(tmp_path/'file'/'home'))
    process = start([script('catdog-app'), '--port', str(port), '--host', '', '--prefix', '/catdog/'],
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, env=env)
    lines,root = [process.stdout.readline() for _ in range(2)],f'http://127.0.0.1:{port}/'
    assert lines[0].startswith('Model: cat / dog') and lines[1] == f'{root} is open: Ctrl+C closes it.\n'
    page.goto(f'{root}catdog/')
    upload(page, cat)
    page.get_by_text('1 image chosen').wait_for()
    page.get_by_role('button', name='Predict!').click()
    page.get_by_text('cat, ').wait_for()
    assert page.locator('.catdog-model select').evaluate('o => o.options[o.selectedIndex].text') == 'models/mine'
    for path,status in (('', 200), ('catdog/', 200), ('wp-admin/', 404), ('catdog/wp-admin/', 404)):
        assert requests.head(root + path, timeout=60).status_code == status, path
    with contextlib.suppress(OSError):   # a machine without IPv6
        socket.create_server(('::1', 0), family=socket.AF_INET6).close()
        assert requests.head(root.replace('127.0.0.1', '[::1]'), timeout=60).status_code == 200
    res = requests.get(f'{root}catdog', timeout=20, allow_redirects=False)
    assert (res.status_code, res.headers['Location']) == (302, '/catdog/')
    process.terminate()
    gone(page)
    assert process.wait(60) == 0 and sorted(tmp_path.rglob('*')) == before
    assert [o for o in process.stdout if '404 HEAD' not in o] == []

@pytest.mark.parametrize('seconds', [0, .05, .2])
def test_stopped_while_a_page_loads(start, seconds, tmp_path):
    "Kernels that are just starting end without a word"
    port = free_port()
    process = start([script('catdog-app'), '--port', str(port)], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    url = until_open(process, port)
    def _visit():
        with contextlib.suppress(requests.RequestException): requests.get(url)
    threads = [threading.Thread(target=_visit, daemon=True) for _ in range(2)]
    for o in threads: o.start()
    time.sleep(seconds)
    assert ended(process) == (0, []) and process.stderr.read() == ''

def test_voila_settings_agree(monkeypatch, tmp_path):
    assert json.loads((ROOT/'voila.json').read_text()) == _VOILA_CONFIG
    assert _VOILA_CONFIG['Voila']['tornado_settings']['websocket_max_message_size'] == MAX_MESSAGE
    pattern = re.compile(_VOILA_CONFIG['RegexRemovePreprocessor']['patterns'][0])
    chapter = nbformat.read(ROOT/'nbs'/'07_app.ipynb', 4)
    monkeypatch.chdir(tmp_path)
    for nb in (chapter, nbformat.read(_app_notebook(tmp_path), 4)):
        shown = [o.source for o in nb.cells if not pattern.match(o.source)]
        assert len(shown) <= 2 and shown[-1].endswith('App()')   # one may import
    assert set(chapter.metadata) == {'kernelspec', 'title'}   # no saved state of widgets
