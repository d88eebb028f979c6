"The page and the widget app in a real browser: choose, press Predict!, read the label"
import importlib.util, json, os, re, shlex, signal, socket, subprocess, sys, time
from pathlib import Path

import nbformat, psutil, pytest

from catdog.app import App
from catdog.core.drawing import draw
from catdog.core.images import jpeg_bytes
from catdog.deploy.voila import VOILA_CONFIG, app_notebook
from catdog.predict import Classifier, shipped_model

ROOT = Path(__file__).parent.parent
SIZES = {'desktop': dict(viewport=dict(width=1280, height=800)),
         'phone': dict(viewport=dict(width=390, height=844), device_scale_factor=2, is_mobile=True, has_touch=True)}

def script(name): return str(Path(sys.executable).with_name(name))
def environment(): return {**os.environ, 'CATDOG_MODEL': str(shipped_model())}
def free_port():
    with socket.create_server(('127.0.0.1', 0)) as sock: return sock.getsockname()[1]

def until_open(process, port):
    "Wait until `process` listens on `port`"
    while process.poll() is None:
        with socket.socket() as sock:
            if sock.connect_ex(('127.0.0.1', port)) == 0: return f'http://127.0.0.1:{port}/'
        time.sleep(.1)
    raise AssertionError('the server has ended')

def ended(process):
    "Stop `process` as a host does; what it started has to end with it"
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    code = process.wait(30)
    return code,[o for o in family if o.is_running() and o.status() != psutil.STATUS_ZOMBIE]

@pytest.fixture
def start():
    "`subprocess.Popen`, whose processes end with the test, however that ends"
    started = []
    def _start(*args, **kw):
        started.append(subprocess.Popen(*args, env=environment(), **kw))
        return started[-1]
    yield _start
    for o in started:
        o.terminate()
        o.wait(30)

@pytest.fixture(scope='module')
def classifier(): return Classifier(shipped_model())

@pytest.fixture(scope='module')
def cat():
    "A real photograph of a cat, which comes with fastbook"
    return Path(importlib.util.find_spec('fastbook').origin).parent/'images'/'cat.jpg'

@pytest.fixture(scope='module')
def drawings(tmp_path_factory):
    "A file the model takes for a cat and one that it takes for a dog or the like: in any case two different answers"
    folder = tmp_path_factory.mktemp('drawings')
    for i in range(2): (folder/f'drawing{i}.jpg').write_bytes(jpeg_bytes(draw(['cat', 'dog'][i], i, (400, 300))))
    (folder/'notes.txt').write_text('buy cat food')
    return folder

@pytest.fixture(scope='module')
def page_url():
    process = subprocess.Popen([script('catdog-serve'), '--port', '0'],
                               stdout=subprocess.PIPE, text=True, env=environment())
    yield process.stdout.readline().split()[0]
    assert ended(process) == (0, [])

@pytest.fixture(scope='module')
def app_url():
    "Voilà, started by the line of the `Procfile`"
    port = free_port()
    line = next(o for o in (ROOT/'Procfile').read_text().splitlines() if o.startswith('web:'))[4:].strip()
    args = shlex.split(line.replace('$PORT', str(port)).replace('0.0.0.0', '127.0.0.1'))
    process = subprocess.Popen([script(args[0]), *args[1:], '--Voila.log_level=ERROR'], env=environment(), cwd=ROOT)
    yield until_open(process, port)
    assert ended(process) == (0, [])

@pytest.fixture(params=SIZES)
def visitor(browser, request):
    "A page of a browser of its own, of a desktop's or a phone's size"
    context = browser.new_context(**SIZES[request.param])
    yield context.new_page()
    context.close()

def percent(p): return f'{100*p:.2f} %'
def said(pred): return f'{pred.label}, {percent(pred.probability)}' if pred.sure else f'Not sure; {pred.label}?'
def sideways(page): return page.evaluate('document.scrollingElement.scrollWidth - innerWidth')

# The page of `catdog-serve`

def choose(page, files):
    with page.expect_file_chooser() as chooser: page.get_by_text('Choose pictures', exact=True).click()
    chooser.value.set_files(files)

def test_page(page_url, visitor, cat, classifier):
    broken = []
    visitor.on('console', lambda o: broken.append(o.text) if o.type == 'error' else None)
    visitor.on('pageerror', lambda o: broken.append(str(o)))
    visitor.goto(page_url)
    choose(visitor, cat)
    visitor.get_by_text('1 picture chosen').wait_for()
    assert visitor.locator('#preview img').evaluate('o => o.naturalWidth') > 0
    visitor.get_by_role('button', name='Predict!').click()
    pred = classifier.predict(cat)
    assert pred.label == 'cat'
    assert visitor.locator('.sentence').inner_text() == (
        f'The uploaded picture is predicted to be a cat with {percent(pred.probability)} confidence !')
    assert visitor.locator('.result img').evaluate('o => o.naturalWidth') > 0
    shown = [o for k,v in pred.probabilities.items() for o in (k, percent(v))]
    assert visitor.locator('.result dl').inner_text().split('\n') == shown
    assert visitor.url == page_url and sideways(visitor) <= 0 and broken == []

def test_page_drop(page_url, visitor, cat):
    visitor.goto(page_url)
    visitor.evaluate('window.dropped = new DataTransfer()')
    visitor.evaluate(
        '([bytes, name]) => dropped.items.add(new File([new Uint8Array(bytes)], name, {type: "image/jpeg"}))',
        [list(cat.read_bytes()), 'dropped.jpg'])
    data = visitor.evaluate_handle('dropped')
    for event in ('dragenter', 'dragover', 'drop'): visitor.dispatch_event('#drop', event, {'dataTransfer': data})
    visitor.get_by_role('button', name='Predict!').click()
    assert 'a cat' in visitor.locator('.sentence').inner_text()
    assert 'dropped.jpg' in visitor.locator('.result').inner_text()

def test_page_errors(page_url, visitor, drawings):
    visitor.goto(page_url)
    choose(visitor, drawings/'notes.txt')
    visitor.get_by_role('button', name='Predict!').click()
    assert visitor.get_by_role('alert').inner_text() == 'notes.txt: a text file, not a picture'
    big = drawings/'big.jpg'
    big.write_bytes(bytes(17*2**20))
    choose(visitor, big)
    visitor.get_by_text('more than 16 MB').wait_for()   # said before a long upload, not after it

def test_page_without_script(page_url, browser, cat, drawings):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_url)
    page.set_input_files('#file', [cat, drawings/'notes.txt'])
    page.get_by_role('button', name='Predict!').click()
    assert 'a cat' in page.locator('.sentence').inner_text()
    assert page.get_by_role('alert').inner_text() == 'notes.txt: a text file, not a picture'
    context.close()

def press_and_choose(page, files):
    with page.expect_file_chooser() as chooser: page.keyboard.press('Enter')
    chooser.value.set_files(files)

def test_page_by_keyboard(page_url, page, cat):
    # from now on, so that a key press cannot come before Playwright looks out for the dialog
    page.on('filechooser', lambda _: None)
    page.goto(page_url)
    page.keyboard.press('Tab')
    page.wait_for_function('document.activeElement.id == "file"')
    press_and_choose(page, cat)
    page.keyboard.press('Tab')
    page.keyboard.press('Enter')
    page.locator('.sentence').wait_for()
    assert page.evaluate('document.activeElement.id') == 'results'   # where a screen reader goes on

# The widget app

def upload(page, files):
    with page.expect_file_chooser() as chooser: page.get_by_role('button', name='Choose pictures').click()
    chooser.value.set_files(files)

def test_app(app_url, visitor, cat, drawings, classifier):
    visitor.goto(app_url)
    predict = visitor.get_by_role('button', name='Predict!')
    upload(visitor, [cat, drawings/'notes.txt', drawings/'drawing1.jpg'])
    visitor.get_by_text('2 pictures chosen').wait_for()
    assert visitor.locator('.catdog-card img').evaluate_all('imgs => imgs.every(o => o.naturalWidth > 0)')
    predict.click()
    visitor.locator('.catdog-label').nth(1).wait_for()
    preds = [classifier.predict(o) for o in (cat, drawings/'drawing1.jpg')]
    assert preds[0].label == 'cat'
    assert visitor.locator('.catdog-label').all_inner_texts() == [said(o) for o in preds]
    assert visitor.locator('.catdog-card').first.locator('.catdog-bar').count() == len(classifier.labels)
    assert visitor.get_by_role('alert').inner_text() == 'notes.txt: a text file, not a picture'
    before = visitor.locator('.catdog-card img').first.get_attribute('src')
    visitor.get_by_role('button', name='Why?').first.click()
    visitor.get_by_text('what spoke for cat').wait_for()
    assert visitor.locator('.catdog-card img').first.get_attribute('src') != before
    assert visitor.get_by_role('button', name='Why?').count() == 1   # the other picture's
    assert visitor.evaluate('document.activeElement.innerText') == 'Show all'
    visitor.keyboard.press('Enter')
    visitor.get_by_text('what spoke for cat').wait_for(state='hidden')
    assert visitor.locator('.catdog-card img').first.get_attribute('src') == before
    assert sideways(visitor) <= 0

def test_app_shows_the_app_alone(app_url, page, classifier):
    page.goto(app_url)
    page.get_by_role('button', name='Predict!').wait_for()
    assert page.title() == 'Cat or dog?' and page.locator('h1').all_inner_texts() == ['Cat or dog?']
    text = page.locator('body').inner_text()
    assert classifier.summary in text and 'import' not in text and 'FileUpload' not in text
    assert page.locator('.jp-OutputArea-output .catdog').count() == 1 and page.locator('.jp-Cell').count() == 1

def test_app_try_these(app_url, page, classifier):
    page.goto(app_url)
    page.get_by_role('button', name='drawn dog').first.click()
    pred = classifier.predict(next(data for name,data in App(classifier).drawings if 'dog' in name))
    assert pred.label == 'dog' and pred.sure
    assert page.locator('.catdog-label').inner_text() == said(pred)

def test_app_by_keyboard(app_url, page, cat):
    page.on('filechooser', lambda _: None)
    page.goto(app_url)
    page.get_by_role('button', name='Predict!').wait_for()
    focused = 'document.activeElement.tagName == "BUTTON" ? document.activeElement.innerText : ""'
    for _ in range(10):
        page.keyboard.press('Tab')
        if page.evaluate(focused).startswith('Choose pictures'): break
    press_and_choose(page, cat)
    page.get_by_text('1 picture chosen').wait_for()
    page.keyboard.press('Tab')
    assert page.evaluate(focused) == 'Predict!'
    page.keyboard.press('Enter')
    assert page.locator('.catdog-label').inner_text().startswith('cat, ')

def test_two_visitors_see_their_own(app_url, browser, classifier, drawings):
    contexts = [browser.new_context() for _ in range(2)]
    pages = [o.new_page() for o in contexts]
    for page in pages: page.goto(app_url)
    for i,page in enumerate(pages): upload(page, drawings/f'drawing{i}.jpg')
    for page in pages: page.get_by_text('1 picture chosen').wait_for()
    for page in pages: page.get_by_role('button', name='Predict!').click()
    preds = [classifier.predict(drawings/f'drawing{i}.jpg') for i in range(2)]
    assert percent(preds[0].probability) != percent(preds[1].probability)   # so that a mix-up shows
    for page,pred in zip(pages, preds):
        page.locator('.catdog-label').wait_for()
        assert percent(pred.probabilities['cat']) in page.locator('.catdog-bar').first.inner_text()
    for o in contexts: o.close()

def is_kernel(process):
    try: return 'ipykernel_launcher' in ' '.join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess): return False   # it ended between the listing and the look

def kernels(process): return [o for o in psutil.Process(process.pid).children(recursive=True) if is_kernel(o)]

def test_kernels_end_with_their_visitors(browser, start):
    port = free_port()
    process = start([script('voila'), 'nbs/07_app.ipynb', '--no-browser', f'--port={port}'],
                    cwd=ROOT, stderr=subprocess.DEVNULL)
    url = until_open(process, port)
    for _ in range(4):
        page = browser.new_page()
        page.goto(url)
        page.get_by_role('button', name='Predict!').wait_for()
        page.goto('about:blank')
        page.close()
    end = time.monotonic() + 60
    while len(kernels(process)) > 1 and time.monotonic() < end: time.sleep(.5)
    assert len(kernels(process)) == 1   # the one that waits for the next visitor
    assert ended(process) == (0, [])

def serve_app(way, start, folder, *more):
    "(process, url) of Voilà, as the `Procfile` starts it in the project, or of `catdog-app` in an empty `folder`"
    port = free_port()
    args,cwd = {'voila': ([script('voila'), 'nbs/07_app.ipynb', '--no-browser', f'--port={port}', *more], ROOT),
                'catdog-app': ([script('catdog-app'), '--port', str(port)], folder)}[way]
    process = start(args, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return process,until_open(process, port)

def kernel_of(page, process):
    "The kernel of the visitor who sees `page`"
    id = json.loads(page.locator('#jupyter-config-data').text_content())['kernelId']
    return next(o for o in kernels(process) if id in ' '.join(o.cmdline()))

def gone(page):
    "Wait until `page` says that the app is gone"
    page.get_by_role('alert').filter(has_text='The connection to the app is gone.').wait_for()
    assert all(page.locator('.catdog').evaluate_all('all => all.map(o => o.inert)'))

def reload(page):
    "Follow the link in the notice on `page`, and use the app"
    page.get_by_role('link', name='Reload the page.').click()
    page.get_by_role('button', name='drawn dog').first.click()
    page.locator('.catdog-label').wait_for()
    assert page.locator('.catdog-label').inner_text().startswith('dog, ')
    assert page.get_by_role('alert').all_inner_texts() in ([], [''])

@pytest.mark.parametrize('way', ['voila', 'catdog-app'])
def test_a_kernel_is_killed_under_a_visitor(way, page, tmp_path, start):
    process,url = serve_app(way, start, tmp_path)
    page.goto(url)
    page.get_by_role('button', name='Predict!').wait_for()
    dead = kernel_of(page, process)
    dead.send_signal(signal.SIGKILL)
    gone(page)
    reload(page)
    assert kernel_of(page, process).pid != dead.pid

def test_a_kernel_is_killed_while_it_waits_for_a_visitor(page, tmp_path, start):
    process,url = serve_app('voila', start, tmp_path)
    while not (waiting := kernels(process)): time.sleep(.1)
    time.sleep(5)   # it runs the notebook
    waiting[0].send_signal(signal.SIGKILL)
    page.goto(url)
    gone(page)
    reload(page)

def test_a_kernel_that_nobody_uses_is_ended(page, tmp_path, start):
    more = ['--MappingKernelManager.cull_idle_timeout=4', '--MappingKernelManager.cull_interval=1']
    process,url = serve_app('voila', start, tmp_path, *more)
    page.goto(url)
    page.get_by_role('button', name='Predict!').wait_for()
    kernel_of(page, process).wait(30)
    gone(page)

def test_the_server_ends_under_a_visitor(page, tmp_path, start):
    process,url = serve_app('catdog-app', start, tmp_path)
    page.goto(url)
    page.get_by_role('button', name='Predict!').wait_for()
    process.terminate()
    gone(page)

def test_an_upload_that_is_too_large_for_one_message(app_url, page, tmp_path, cat):
    "The page says so, and what is chosen next arrives"
    for i in range(5): (tmp_path/f'{i}.jpg').write_bytes(cat.read_bytes() + bytes(15*2**20))
    page.goto(app_url)
    page.get_by_role('button', name='Predict!').wait_for()
    upload(page, [*tmp_path.iterdir()])
    page.get_by_role('alert').filter(has_text='76 MB are too much at once').wait_for()
    upload(page, [*tmp_path.iterdir()][:3])
    page.get_by_text('3 pictures chosen').wait_for()
    assert page.get_by_role('alert').all_inner_texts() in ([], [''])

def test_app_without_a_copy_of_the_project(page, tmp_path, cat, start):
    "As somebody has it who installed the package: `catdog-app` in any folder"
    port = free_port()
    process = start([script('catdog-app'), '--port', str(port)], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    lines = [process.stdout.readline() for _ in range(2)]
    assert f'http://127.0.0.1:{port}/' in lines[1]
    page.goto(f'http://127.0.0.1:{port}/')
    upload(page, cat)
    page.get_by_text('1 picture chosen').wait_for()
    page.get_by_role('button', name='Predict!').click()
    assert page.locator('.catdog-label').inner_text().startswith('cat, ')
    assert ended(process) == (0, []) and list(tmp_path.iterdir()) == []

def test_only_the_app_is_reachable(app_url, page):
    for path in ('voila/files/00_start.ipynb', 'voila/files/data/animals/manifest.jsonl',
                 'voila/files/07_app.ipynb', 'api/contents'):
        assert page.request.get(app_url + path).status in (403, 404), path
    policy = page.goto(app_url).headers['content-security-policy']
    assert "default-src 'self'" in policy and "frame-ancestors 'self'" in policy

def test_voila_is_told_the_same_everywhere(monkeypatch, tmp_path):
    assert json.loads((ROOT/'voila.json').read_text()) == VOILA_CONFIG
    pattern = re.compile(VOILA_CONFIG['RegexRemovePreprocessor']['patterns'][0])
    chapter = nbformat.read(ROOT/'nbs'/'07_app.ipynb', 4)
    monkeypatch.chdir(tmp_path)
    for nb in (chapter, nbformat.read(app_notebook(tmp_path), 4)):
        shown = [o.source for o in nb.cells if not pattern.match(o.source)]
        assert len(shown) == 1 and shown[0].endswith('App()')
    assert set(chapter.metadata) == {'kernelspec', 'title'}   # no saved state of widgets
