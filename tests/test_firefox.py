"The page in a real Firefox, driven by WebDriver BiDi (https://w3c.github.io/webdriver-bidi), which Firefox speaks itself"
import json, re, shutil, subprocess, time
from contextlib import contextmanager

import pytest
from page_helpers import CAT, classifier, hosted, site   # noqa: F401
from websocket import create_connection

FIREFOX = next(filter(None, map(shutil.which, ('firefox', 'firefox-esr'))), None)
pytestmark = pytest.mark.skipif(not FIREFOX, reason='no Firefox: tests/get_browser installs it')

class Page:
    "A page of the browser at the other end of the WebSocket `socket`"
    def __init__(self, socket):
        self.socket,self.n = socket,0
        self('session.new', capabilities={})
        self.context = self('browsingContext.getTree')['contexts'][0]['context']
    def __call__(self, method, **params):
        self.n += 1
        self.socket.send(json.dumps(dict(id=self.n, method=method, params=params)))
        while (answer := json.loads(self.socket.recv())).get('id') != self.n: pass   # events
        if answer['type'] == 'error': raise RuntimeError(answer['message'])
        return answer['result']
    def open(self, url): self('browsingContext.navigate', context=self.context, url=url, wait='complete')
    def evaluate(self, js):
        return self('script.evaluate', expression=js, target=dict(context=self.context), awaitPromise=True)['result']
    def wait(self, js, words, seconds=90):
        "Wait until the string that `js` gives contains `words`; return it"
        end,found = time.time() + seconds,None
        while time.time() < end:
            found = self.evaluate(js).get('value')
            if words in (found or ''): return found
            time.sleep(.2)
        raise AssertionError(f'{words!r} is not in {found!r}')
    def choose(self, file):
        self('input.setFiles', context=self.context, element=dict(sharedId=self.evaluate('get("file")')['sharedId']), files=[str(file)])

@contextmanager
def firefox(profile, **preferences):
    "A `Page` of a Firefox with these preferences"
    profile.mkdir()
    lines = [f'user_pref({json.dumps(k)}, {json.dumps(v)});\n' for k,v in preferences.items()]
    (profile/'user.js').write_text(''.join(lines))
    process = subprocess.Popen([FIREFOX, '--headless', '--no-remote', '--profile', profile, '--remote-debugging-port', '0'],
                               stderr=subprocess.PIPE, text=True)
    try:
        address = next(m[1] for o in process.stderr if (m := re.search(r'BiDi listening on (ws://\S+)', o)))
        socket = create_connection(f'{address}/session', timeout=120, suppress_origin=True)
        try: yield Page(socket)
        finally: socket.close()
    finally:
        process.terminate()
        process.wait(30)

STATUS = 'document.getElementById("status").textContent'

@pytest.fixture(scope='module')
def url(site):   # noqa: F811
    with hosted(site) as (url,_): yield url

@pytest.fixture
def cat(tmp_path):
    (tmp_path/'cat.jpg').write_bytes(CAT)
    return tmp_path/'cat.jpg'

def test_answers_in_firefox(url, tmp_path, cat, classifier):   # noqa: F811
    with firefox(tmp_path/'profile') as page:
        page.open(url)
        page.wait(STATUS, 'Ready.')
        page.choose(cat)
        assert page.wait(STATUS, '%') == str(classifier.predict(CAT))
        page.wait('String(document.querySelector("article img").naturalWidth > 0)', 'true')

def test_firefox_that_hides_pixels_says_so(url, tmp_path, cat):
    with firefox(tmp_path/'profile', **{'privacy.resistFingerprinting': True}) as page:
        page.open(url)
        page.wait(STATUS, 'Ready.')
        page.choose(cat)
        page.wait(STATUS, 'This browser hides the pixels of images from pages')
        assert page.evaluate('document.querySelector("article").textContent')['value'] == 'cat.jpg: no answer'
