"Helpers for the tests of the web: a server with given answers, images, an engine that finds them"
import json, os, random, socket, threading, time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch
from urllib.parse import parse_qsl, urlsplit

from PIL import ImageEnhance

from catdog.sample.draw import draw
from catdog.core.images import jpeg_bytes, open_image
from catdog.dataset.manifest import Photo
from catdog.web.engines import ENGINES

class Server(ThreadingHTTPServer):
    "A server that answers `answer(path, params, headers)`: status, headers, body; `asked` records the requests"
    daemon_threads = True
    def __init__(self, answer=None):
        self.answer,self.asked = answer,[]
        super().__init__(('127.0.0.1', 0), _Handler)
        self.url = f'http://127.0.0.1:{self.server_port}'
        threading.Thread(target=self.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
    def handle_error(self, *args): pass   # an answer that is meant to break off
    def close(self):
        self.shutdown()
        self.server_close()

class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass
    def do_GET(self):
        url = urlsplit(self.path)
        params = dict(parse_qsl(url.query))
        self.server.asked.append((url.path, params, dict(self.headers)))
        status,headers,body = self.server.answer(url.path, params, self.headers)
        if not isinstance(body, bytes) and isinstance(body, (dict, list)): body = json.dumps(body).encode()
        self.send_response(status)
        headers = [*(headers.items() if isinstance(headers, dict) else headers)]
        if not isinstance(body, bytes): self.close_connection = True   # a generator: until it ends
        elif 'Content-Length' not in dict(headers): headers.append(('Content-Length', str(len(body))))
        for k,v in headers: self.send_header(k, v)
        self.end_headers()
        try:
            for o in [body] if isinstance(body, bytes) else body: self.wfile.write(o)
        except OSError: pass   # the client has left

@contextmanager
def serve(answer):
    "Start a `Server`; yield its URL and its requests"
    server = Server(answer)
    try: yield server.url, server.asked
    finally: server.close()

@contextmanager
def resolving(*names):
    "Resolve the hosts `names` to this machine, and no others"
    real = socket.getaddrinfo
    def _lookup(host, *args, **kwargs):
        if host not in ('127.0.0.1', 'localhost', *names): raise socket.gaierror(f'{host} is unknown')
        return real('127.0.0.1', *args, **kwargs)
    with patch.object(socket, 'getaddrinfo', _lookup): yield

def image(seed=0, size=(320, 240)): return draw('cat', seed, size)

def copies(img):
    w,h = img.size
    return dict(half=img.resize((w//2, h//2)), larger=img.resize((w*3//2, h*3//2)), q50=open_image(jpeg_bytes(img, 50)),
                cropped=img.crop((w//50, h//50, w - w//50, h - h//50)),
                bright=ImageEnhance.Brightness(img).enhance(1.1))

@contextmanager
def serve_images(images, latency=0):
    """A server of `images`: label -> list of bytes, or of statuses, and the engine 'test', which finds them;
    yields the URLs and the requests"""
    def answer(path, params, headers):
        label,i = path[1:].split('/')
        o = images[label][int(i)]
        if latency: time.sleep(latency*random.random())
        return (200, {}, o) if isinstance(o, bytes) else (o, {}, b'')
    def find(term, n): return [Photo(u, engine='test', term=term) for u in found.get(term, [])][:n]
    with (patch.dict(os.environ, CATDOG_ALLOW_PRIVATE='1'), patch.dict(ENGINES, test=find),
          serve(answer) as (url, asked)):
        found = {label: [f'{url}/{label}/{i}' for i in range(len(o))] for label,o in images.items()}
        yield found, asked

def files(path): return sorted(o.relative_to(path).as_posix() for o in path.rglob('*.jpg'))
