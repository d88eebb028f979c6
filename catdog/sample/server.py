"""A search engine (Bing v7 protocol) and image host on localhost, with the ground truth for every URL it returns"""

import atexit, io, itertools, json, os, re, sys, threading, time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from random import Random
from socketserver import ThreadingTCPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from weakref import WeakSet
from PIL import Image
from ..core.errors import CatdogError
from ..core.images import jpeg_bytes
from .draw import DRAWABLE, draw, drawable, random_size, words_of

def _encode(img, format, **kw):
    f = io.BytesIO()
    img.save(f, format, **kw)
    return f.getvalue()

def _rotated(img):
    "Encode `img` as a phone does: rotated, with its orientation in the EXIF block"
    exif = Image.Exif()
    exif[0x112] = 6
    return _encode(img.transpose(Image.Transpose.ROTATE_90), 'JPEG', quality=88, exif=exif)

_FORMATS = {   # name: share of the drawings, encoder
    'jpeg': (.70, lambda img: jpeg_bytes(img, 88)),
    'png': (.10, lambda img: _encode(img, 'PNG', compress_level=1)),
    'webp': (.08, lambda img: _encode(img, 'WEBP', quality=80, method=0)),
    'gif': (.04, lambda img: _encode(img, 'GIF')),
    'cmyk': (.04, lambda img: _encode(img.convert('CMYK'), 'JPEG', quality=88)),
    'rotated': (.04, _rotated)}
FAULTS = 'not-found', 'html', 'truncated', 'duplicate', 'near-duplicate', 'tiny', 'huge', 'wrong-label', 'stall'
_INVALID = 'not-found', 'html', 'truncated', 'tiny', 'stall'   # nothing worth keeping
_TOTAL = 10_000   # results for each label

def _html(text, status=200, type='text/html', more=''):
    page = f'<!DOCTYPE html><html><head><title>{text}</title></head><body><h1>{text}</h1>{more}</body></html>'
    return status, {'Content-Type': type}, page.encode()

def _json(status=200, **kw): return status, {'Content-Type': 'application/json'}, json.dumps(kw).encode()

class _Result:
    "Search result `n` for `label`: `kind` is 'ok' or a fault; shows `drawn`, drawn with the seed `source`"
    def __init__(self, web, label, n, kind, drawn, source, original=None):
        self.web,self.label,self.n,self.kind = web,label,n,kind
        self.drawn,self.source,self.original = drawn,source,original   # `original`: the result that this is a copy of
        r = Random(f'format of {source}')
        self.format,(w,h) = r.choices(list(_FORMATS), [o[0] for o in _FORMATS.values()])[0],random_size(r)
        if kind not in ('ok', 'duplicate', 'wrong-label', 'not-found'): self.format = 'jpeg'
        scale = {'huge': 3000/max(w, h), 'near-duplicate': .7}.get(kind, 1)
        self.size = round(w*scale),round(h*scale)
        self.type = 'image/' + dict(cmyk='jpeg', rotated='jpeg').get(self.format, self.format)
        self.suffix = self.type[6:].replace('jpeg', 'jpg')
        self.path = f'/images/{quote(label, safe="")}/{n:05}.{self.suffix}'
    @property
    def url(self): return f'{self.web.url}{self.path}'   # changes when the web is restarted
    @property
    def truth(self):
        return dict(kind=self.kind, label=self.label, drawn=self.drawn, original=self.original and self.original.url,
                    valid=self.kind not in _INVALID)
    def image(self, size=None): return draw(self.drawn, self.source, size or self.size)
    def data(self):
        "Return the bytes of the image, before any transmission fault"
        match self.kind:
            case 'duplicate': return self.original.data()
            case 'near-duplicate': return jpeg_bytes(self.original.image().resize(self.size), 60)
            case 'huge': return jpeg_bytes(self.image([o//3 for o in self.size]).resize(self.size))
            case 'tiny': return jpeg_bytes(self.image().resize((16, 16)))
        return _FORMATS[self.format][1](self.image())
    def answer(self):
        "Return status, headers and the body; a stall announces more than it sends"
        if self.kind == 'not-found': return _html('This page is gone', 404)
        if self.kind == 'html': return _html('Please accept our cookies', type='image/jpeg')
        headers,data = {'Content-Type': self.type},self.data()
        if self.kind == 'stall': headers['Content-Length'] = str(len(data))
        return 200, headers, data[:len(data)//2] if self.kind in ('truncated', 'stall') else data
    def json(self):
        "Return the result as in the Bing v7 protocol"
        (w,h),n = self.size,self.n
        return dict(name=f'{self.label.title()} number {n}', contentUrl=self.url, width=w, height=h,
                    hostPageUrl=f'{self.web.url}/pages/{quote(self.label, safe="")}/{n}', encodingFormat=self.type[6:])

class _Handler(BaseHTTPRequestHandler):
    protocol_version,disable_nagle_algorithm = 'HTTP/1.1',True
    def log_message(self, *args): pass
    def do_GET(self):
        status,headers,body = self.server.web._respond(urlsplit(self.path), self.headers)
        headers = {'Content-Length': str(len(body)), **headers}
        try:
            self.send_response(status)
            for o in headers.items(): self.send_header(*o)
            self.end_headers()
            self.wfile.write(body)
            if len(body) == int(headers['Content-Length']): return
            self.server.web._stopping.wait(300)
        except OSError: pass   # the client has left
        self.close_connection = True

class _Server(ThreadingTCPServer):
    allow_reuse_address,daemon_threads,request_queue_size = True,True,256
    def __init__(self, web):
        self.web,self.connections = web,WeakSet()
        try: super().__init__(('127.0.0.1', web.port), _Handler)
        except OSError: super().__init__(('127.0.0.1', 0), _Handler)   # the port is taken
    def process_request(self, request, address):
        self.connections.add(request)
        super().process_request(request, address)
    def handle_error(self, *args):   # clients that hang up are expected
        if not isinstance(sys.exception(), OSError): super().handle_error(*args)

def _shares(faults):
    if not isinstance(faults, dict): faults = {o: (faults or 0)/8 for o in FAULTS[:8]}
    if unknown := sorted(set(faults) - {'ok', *FAULTS}):
        raise CatdogError(f'no such fault: {", ".join(unknown)}; there are {", ".join(FAULTS)}')
    if min(faults.values(), default=0) < 0 or sum(faults.values()) > 1 + 1e-9:
        raise CatdogError('the shares of faults must be between 0 and 1, and together at most 1')
    return faults

# Words of a search term that are not part of the label
_FILLERS = set('''a an the of in on at with and photo photos photograph photographs picture pictures image images
    pic pics jpg portrait outdoor outdoors outside indoor indoors inside sun sunny shade close up closeup face animal
    real high quality hd'''.split())

_running,_saved,_starting = [],[],threading.Lock()

class SampleWeb:
    "A search engine and image host on localhost that draws what is searched for"
    def __init__(self,
        seed:int=42, # The same seed gives the same results
        faults:float|dict|None=.2, # Share of faults, or one of `FAULTS` -> share
        latency:tuple=(0, 0), # Shortest and longest delay of an image, in seconds
        port:int=0 # Port to listen on; 0, or a port in use: any free one
    ):
        self.seed,self.latency,self.port,self.faults = seed,latency,port,_shares(faults)
        self.url,self._server,self._stopping,self._lock = None,None,threading.Event(),threading.RLock()
        self._results,self._returned = {},{}
    def __enter__(self): return self.start()
    def __exit__(self, *args): self.stop()
    def __repr__(self): return f'SampleWeb({self.url or "not started"})'
    @property
    def endpoint(self): return f'{self.url}/v7.0/images/search'   # of the search engine
    def start(self) -> 'SampleWeb': # This web
        "Listen, and allow downloads from localhost in this process"
        if self._server: return self
        self._stopping.clear()
        self._server = _Server(self)
        self.url = f'http://127.0.0.1:{self._server.server_address[1]}'
        threading.Thread(target=self._server.serve_forever, kwargs=dict(poll_interval=.05), daemon=True).start()
        if not _running: _saved[:] = [os.environ.get('CATDOG_ALLOW_PRIVATE')]
        os.environ['CATDOG_ALLOW_PRIVATE'] = '1'
        _running.append(self)
        return self
    def stop(self):
        "Close all connections; when the last web stops, restore the environment"
        if not self._server: return
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        for o in list(self._server.connections):
            with suppress(OSError): o.shutdown(2)
        self._server = None
        _running.remove(self)
        if not _running: os.environ.pop('CATDOG_ALLOW_PRIVATE', None)
        if not _running and _saved[0] is not None: os.environ['CATDOG_ALLOW_PRIVATE'] = _saved[0]
    def _next(self, label, so_far):
        n,drawn,original = len(so_far),label,None
        source = f'{self.seed}/{label}/{n}'
        r = Random(source)
        kind = r.choices([*self.faults, 'ok'], [*self.faults.values(), max(0, 1 - sum(self.faults.values()))])[0]
        if 'duplicate' in kind and (fine := [o for o in so_far if o.kind == 'ok']):
            original = r.choice(fine)
            drawn,source = original.drawn,original.source
        elif 'duplicate' in kind: kind = 'ok'
        elif kind == 'wrong-label':
            drawn = dict(cat='dog', dog='cat').get(drawable(label)) or r.choice([o for o in DRAWABLE if o != label])
        return _Result(self, label, n, kind, drawn, source, original)
    def _result(self, label, n):
        with self._lock:
            so_far = self._results.setdefault(label, [])
            while len(so_far) <= n < _TOTAL: so_far.append(self._next(label, so_far))
        return so_far[n] if n < _TOTAL else None
    def results(self,
        label:str # A label, as in `truth`
    ): # Yields objects with `kind` ('ok' or a fault), `url`, `size` and `truth`
        "Yield all results for `label`"
        return itertools.takewhile(bool, (self._result(label, n) for n in itertools.count()))
    @property
    def truths(self) -> dict: # URL -> its `truth`, in the order of the answers
        "The ground truth for every URL that a search has returned so far: kind, label, drawn, valid, original"
        return {o.url: o.truth for o in list(self._returned.values())}
    def _search(self, params, key):
        def _error(text, status): return _json(status, _type='ErrorResponse', errors=[dict(message=text)])
        if key in ('', 'wrong'): return _error('Authorization is required.', 401)
        q = params.get('q', '').strip()
        numbers = [params.get(*o) for o in dict(count='35', offset='0', minHeight='0', minWidth='0').items()]
        if not q or not all(re.fullmatch(r'\d{1,9}', o) for o in numbers):
            return _error('A parameter is missing or has an invalid value.', 400)
        count,offset,height,width = map(int, numbers)
        text = ' '.join(words_of(q))
        found = self.results(' '.join(w for w in text.split() if w not in _FILLERS) or text)
        large = (o for o in found if o.size[0] >= width and o.size[1] >= height)
        page = list(itertools.islice(large, offset, offset + min(150, count)))
        self._returned.update((o.path, o) for o in page)
        return _json(_type='Images', readLink=f'{self.endpoint}?q={quote(q)}', queryContext=dict(originalQuery=q),
            totalEstimatedMatches=_TOTAL, currentOffset=offset, nextOffset=offset + len(page),
            value=[o.json() for o in page])
    def _respond(self, url, headers):
        if url.path == '/v7.0/images/search':
            return self._search(dict(parse_qsl(url.query, True)), headers.get('Ocp-Apim-Subscription-Key', ''))
        match = re.fullmatch(r'/(images|pages)/([^/]+)/(\d{1,5})(?:\.(\w+))?', url.path)
        o = match and self._result(unquote(match[2]), int(match[3]))
        if not o or match[4] not in (None, o.suffix): return _html('Not found', 404)
        if match[1] == 'pages': return _html(f'Number {o.n}', more=f'<img src="{o.path}" alt="">')
        time.sleep(Random(f'{self.seed}{o.path}').uniform(*self.latency))
        return o.answer()

def sample_web() -> SampleWeb: # A running web
    "Return the `SampleWeb` that runs in this process; start one with defaults if there is none"
    with _starting:
        if not _running: atexit.register(SampleWeb(port=8742).start().stop)   # the same URLs in each run, if it can
        os.environ['CATDOG_ALLOW_PRIVATE'] = '1'   # even if it was changed since `start`
        return _running[-1]
