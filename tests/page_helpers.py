"Helpers for the tests of the page: servers for both of its back ends, and actions of a visitor"
import importlib.util, io, os, shutil, subprocess, sys, threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import expect

from catdog.deploy.page import build_site
from catdog.deploy.predictor import Classifier, shipped_model

# Photographs that come with fastbook
CAT,BEAR = (Path(importlib.util.find_spec('fastbook').origin).with_name('images')/o for o in ('cat.jpg', 'grizzly.jpg'))
CAT,BEAR = CAT.read_bytes(),BEAR.read_bytes()

def script(name): return str(Path(sys.executable).with_name(name))

def catdog_site(*args, cwd, **env):
    "`catdog-site` in a process of its own"
    return subprocess.run([script('catdog-site'), *map(str, args)], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, **env})

def saved(img, format='JPEG', **kw):
    "`img` as the bytes of a file"
    f = io.BytesIO()
    img.save(f, format, **kw)
    return f.getvalue()

class Files(SimpleHTTPRequestHandler):
    "The files of a folder, readable for pages of all hosts, as GitHub Pages and jsDelivr serve them"
    def end_headers(self):
        self.send_header('Access-Control-Allow-Origin', '*')
        super().end_headers()
    def log_message(self, *args): self.server.log.append(self.path)

@contextmanager
def hosted(folder, tls=None, host=Files):
    "(URL, paths that were requested) of a static host of `folder`; `tls` is an SSL context"
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(host, directory=str(folder)))
    server.log = []
    if tls: server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_port}/',server.log
    finally:
        server.shutdown()
        server.server_close()

@contextmanager
def serving(*options):
    "URL of a `catdog-serve` with the model that ships"
    process = subprocess.Popen([script('catdog-serve'), '--port', '0', *options], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, 'CATDOG_MODEL': str(shipped_model())})
    try: yield process.stdout.readline().split()[0]
    finally:
        process.terminate()
        process.wait(60)

@pytest.fixture(scope='module')
def classifier(): return Classifier(shipped_model())

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The folder that `catdog-site --local` writes for the model that ships"
    if not shutil.which('npm'): pytest.skip('no npm, which fetches onnxruntime-web: install Node.js')
    return build_site(shipped_model(), tmp_path_factory.mktemp('site'), local=True)

def open_page(page, url):
    "Open the page, and wait until it can predict"
    page.goto(url)
    if page.locator('#predict').count() == 0: expect(page.get_by_role('status')).to_have_text('Ready.')
    return page

# Wait until each of `all` images is loaded, which is after it has its URL
LOADED = """all => Promise.all(all.map(o => o.complete || new Promise(done => o.onload = o.onerror = () => done())))"""

CARDS = '''all => all.map(o => ({name: o.querySelector('bdi').textContent, words: o.querySelector('h2, p').textContent,
    error: o.matches('.error'), sure: !o.querySelector('.unsure'), forced: o.querySelector('.forced')?.textContent,
    image: o.querySelector('img')?.naturalWidth > 0, shown: Object.fromEntries([...o.querySelectorAll('dl > div')].map(
        d => [...d.children].map(e => e.textContent)))}))'''

def cards(page, n):
    "Return what the `n` cards of `page` show, once all are there"
    button = page.locator('#predict')
    if button.count():
        expect(page.get_by_role('status')).to_contain_text(f'{n} image{"s"*(n > 1)} chosen')
        button.click()
    expect(page.locator('article')).to_have_count(n)
    expect(page.get_by_role('status')).not_to_contain_text('Looking')
    page.locator('article img').evaluate_all(LOADED)
    return page.locator('article').evaluate_all(CARDS)

def as_files(images): return [dict(name=k, mimeType='image/jpeg', buffer=v) for k,v in images.items()]

def ask(page, images):
    "Choose `images`, paths or a dict of name -> bytes; return the cards of `page` about them"
    page.set_input_files('#file', as_files(images) if isinstance(images, dict) else images)
    return cards(page, len(images))

def drop(page, *paths, items=(), at=(20, 600)):
    "Drop files and folders, or other `items`, on `page` with the mouse, far from the frame"
    assert page.evaluate('([x, y]) => document.elementFromPoint(x, y).closest(".catdog")', at) is None
    data = dict(items=[dict(mimeType=k, data=v) for k,v in items], files=list(map(str, paths)), dragOperationsMask=1)
    mouse = page.context.new_cdp_session(page)
    page.evaluate("""() => { window.sawDrop = window.sawDragover = false
        addEventListener('dragover', () => window.sawDragover = true, {capture: true, once: true})
        addEventListener('drop', () => window.sawDrop = true, {capture: true, once: true}) }""")
    while not page.evaluate('sawDrop'):   # Chromium drops nothing before the page has answered `dragover`
        for kind in ('dragEnter', 'dragOver', 'drop'):
            if kind == 'drop': page.wait_for_function('sawDragover')
            mouse.send('Input.dispatchDragEvent', dict(type=kind, x=at[0], y=at[1], data=data))
        page.wait_for_timeout(200)
