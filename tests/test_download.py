"""Downloads from servers that misbehave in ways that the sample web does not.
What fits in a cell is in nbs/web/download.ipynb."""
import threading, time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from catdog.core.images import jpeg_bytes
from catdog.web.download import download_images

class Odd(BaseHTTPRequestHandler):
    "What it does is in the address: /drip.jpg sends a byte now and then"
    protocol_version,asked = 'HTTP/1.1',Counter()
    def log_message(self, *args): pass
    def do_GET(self):
        kind = self.path[1:].split('.')[0]
        self.asked[kind] += 1
        if kind in ('later', 'never', 'wait') and self.asked[kind] < (2 if kind == 'later' else 99):
            self.send_response(dict(later=503, never=500, wait=429)[kind])
            if kind != 'never': self.send_header('Retry-After', dict(later='1', wait='3600')[kind])
        elif kind in ('circle', 'elsewhere', 'long'):
            self.send_response(302)
            self.send_header('Location', 'file:///etc/passwd' if kind == 'elsewhere' else '/circle.jpg')
            if kind != 'long': self.send_header('Content-Length', '0')
        else:
            self.send_response(200)
            if kind == 'huge': self.send_header('Content-Length', '200000000')
            if kind == 'robots': self.send_header('X-Robots-Tag', 'noimageai')
        self.end_headers()
        self.close_connection = True
        try: self.send_body(kind)
        except OSError: pass   # the client has left

    def send_body(self, kind):
        if kind == 'huge': self.wfile.write(bytes(1000))
        if kind in ('later', 'robots'): self.wfile.write(jpeg_bytes(Image.new('RGB', (64, 48), 'red')))
        if kind in ('endless', 'long'):
            while True: self.wfile.write(bytes(2**20))
        while kind == 'drip':
            self.wfile.write(b'.')
            time.sleep(.05)

@pytest.fixture
def fetch(monkeypatch, tmp_path):
    "A function that downloads from an odd server: kind -> status"
    monkeypatch.setenv('CATDOG_ALLOW_PRIVATE', '1')
    Odd.asked.clear()
    server = ThreadingHTTPServer(('127.0.0.1', 0), Odd)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}'
    yield lambda kind, **kw: download_images([f'{url}/{kind}.jpg'], tmp_path, **kw)[0].status
    server.shutdown()
    server.server_close()

@pytest.mark.parametrize('kind,status', dict(circle='refused', elsewhere='refused', long='refused', robots='refused',
                                             huge='too-large', endless='too-large').items())
def test_odd_answers_have_a_status(fetch, kind, status): assert fetch(kind) == status

def test_a_byte_now_and_then_does_not_hold_a_worker(fetch):
    start = time.monotonic()
    assert fetch('drip', timeout=.2) == 'timed-out' and time.monotonic() - start < 5

@pytest.mark.parametrize('kind,status,asked', [('later', 'ok', 2), ('never', 'http-500', 3), ('wait', 'http-429', 1)])
def test_a_busy_server_is_asked_again(fetch, kind, status, asked):
    assert (fetch(kind), Odd.asked[kind]) == (status, asked)
