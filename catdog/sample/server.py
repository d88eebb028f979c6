"""What the sample web serves at one address: an image in some format, or one of the faults of the web; The HTTP side of the sample web: a server on localhost that speaks the Bing v7 protocol; A search engine and image host on localhost that knows the truth about every address"""

import atexit, io, itertools, os, re, socket, threading, time, zlib
from contextlib import suppress
from pathlib import Path
from random import Random
from urllib.parse import quote, unquote, urlsplit

from PIL import Image
from fastcore.basics import patch
from flask import Flask, Response, abort, jsonify, redirect, request
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.test import run_wsgi_app

from ..core.errors import CatdogError
from ..core.files import IMAGE_FORMATS
from ..core.images import jpeg_bytes, open_image
from .draw import DRAWABLE, draw, drawable, random_size, words_of

def _encode(img, **kw):
    f = io.BytesIO()
    img.save(f, **kw)
    return f.getvalue()

def _sideways(img):
    "`img` as a phone stores it: turned, with a note in the EXIF block that says so"
    exif = Image.Exif()
    exif[0x112] = 6
    return _encode(img.transpose(Image.Transpose.ROTATE_90), format='JPEG', quality=88, exif=exif)

# Format: share of the drawings, suffix, media type, how to write one
SERVED_FORMATS = {
    'jpeg':    (.70, 'jpg', 'image/jpeg', lambda img: jpeg_bytes(img, 88)),
    'png':     (.10, 'png', 'image/png', lambda img: _encode(img, format='PNG', compress_level=1)),
    'webp':    (.08, 'webp', 'image/webp', lambda img: _encode(img, format='WEBP', quality=80, method=0)),
    'gif':     (.04, 'gif', 'image/gif', lambda img: _encode(img, format='GIF')),
    'cmyk':    (.04, 'jpg', 'image/jpeg', lambda img: _encode(img.convert('CMYK'), format='JPEG', quality=88)),
    'rotated': (.04, 'jpg', 'image/jpeg', _sideways),
    'avif':    (.00, 'avif', 'image/avif', lambda img: _encode(img, format='AVIF', quality=70, speed=10))}

SUFFIX_FORMATS = {o: format.lower() for format,suffixes in IMAGE_FORMATS.items() for o in suffixes}   # of photographs

_INVALID = ('not-found', 'html', 'truncated', 'tiny', 'stall', 'bomb', 'large-body', 'no-ai')
_JPEGS = ('truncated', 'html', 'near-duplicate', 'huge', 'tiny', 'stall', 'large-body')

# These show no image that is not shown elsewhere: they come on top of a folder's photographs
EXTRA_FAULTS = (*_INVALID, 'duplicate', 'near-duplicate', 'wrong-label')

TOTAL = 10_000   # how many drawings there are of each label

class Result:
    "Result number `n` for `label`: `kind` is 'ok' or a fault; `source` is a photograph, or the seed of a drawing"
    def __init__(self,
        web, # The `SampleWeb`: its address, and whether it is stopping
        label:str, # What was searched for
        n:int, # Its place among the results for `label`, from 0
        kind:str, # One of `ANSWERS`
        drawn:str, # What the image shows
        source:Path|str, # A photograph, or the seed of a drawing
        original=None # Of a copy: the `Result` that it is a copy of
    ):
        self.web,self.label,self.n,self.kind = web,label,n,kind
        self.drawn,self.source,self.original = drawn,source,original
        self.is_photo = isinstance(source, Path)
        self._photo_facts() if self.is_photo else self._drawing_facts()
        own = self.is_photo and kind in ('truncated', 'stall')   # a photograph's own bytes, up to the middle
        force = dict(bomb='png', **{o: 'jpeg' for o in _JPEGS}, **{o: o for o in SERVED_FORMATS}).get(kind)
        if force and not own: self.format,(_,self.suffix,self.type,_) = force,SERVED_FORMATS[force]
        if kind == 'huge': self.size = tuple(max(1, round(o*3000/max(self.size))) for o in self.size)
        if kind == 'near-duplicate': self.size = tuple(max(1, round(o*.7)) for o in self.size)

    @property
    def path(self): return f'/images/{quote(self.label, safe="")}/{self.n:05}.{self.suffix}'
    @property
    def url(self): return self.web.url + self.path

@patch
def _photo_facts(self:Result):
    self.format = SUFFIX_FORMATS[self.source.suffix.lower()]
    self.suffix,self.type = self.source.suffix[1:],Image.MIME.get(self.format.upper(), 'image/jpeg')
    self.size,self.bytes = (0, 0),self.source.stat().st_size
    with suppress(Exception), Image.open(self.source) as img:   # only the header: what is broken is served as it is
        self.size = img.size[::-1] if img.getexif().get(0x112, 1) > 4 else img.size

@patch
def _drawing_facts(self:Result):
    r = Random(f'format of {self.source}')
    self.format = r.choices(list(SERVED_FORMATS), [o[0] for o in SERVED_FORMATS.values()])[0]
    _,self.suffix,self.type,_ = SERVED_FORMATS[self.format]
    self.size = random_size(r)
    self.bytes = self.size[0]*self.size[1]//8   # an estimate: nothing is drawn yet

@patch
def image(self:Result,
    size:tuple=None # (width, height) of a drawing, in pixels; None: its own
): # A `PIL.Image`
    "The image that this is about, as it is drawn or photographed"
    if self.is_photo: return open_image(self.source)
    return draw(self.drawn, self.source, size or self.size)

@patch(as_prop=True)
def data(self:Result):
    "The bytes of the image, whole"
    if self.kind == 'duplicate': return self.original.data
    if self.kind == 'near-duplicate': return jpeg_bytes(self.original.image().resize(self.size), 60)
    if self.kind == 'huge': return jpeg_bytes(self.image([o//3 for o in self.size]).resize(self.size))
    if self.kind == 'tiny': return jpeg_bytes(self.image().resize((16, 16)))
    if self.is_photo and self.kind not in SERVED_FORMATS: return self.source.read_bytes()
    return SERVED_FORMATS[self.format][3](self.image())

@patch(as_prop=True)
def truth(self:Result):
    "What the result really is; `valid` says whether somebody who collects images should keep what comes back"
    return dict(kind=self.kind, label=self.label, drawn=self.drawn, format=self.format,
                valid=self.kind not in _INVALID and min(self.size) > 0, width=self.size[0], height=self.size[1],
                original=self.original.url if self.original else None, file=self.source if self.is_photo else None)

@patch(as_prop=True)
def json(self:Result):
    "The result in the words of the Bing v7 protocol"
    (w,h),n = self.size,self.n
    page = f'{self.web.url}/pages/{quote(self.label, safe="")}/{n}'
    return dict(name=f'{self.label.title()} number {n}', contentUrl=self.url, hostPageUrl=page, hostPageDisplayUrl=page,
                width=w, height=h, contentSize=f'{self.bytes} B', imageId=f'{zlib.crc32(self.path.encode()):08X}',
                encodingFormat=dict(cmyk='jpeg', rotated='jpeg').get(self.format, self.format),
                datePublished=f'20{10+n%15}-{1+n%12:02}-{1+n%28:02}T12:00:00.0000000Z',
                thumbnailUrl=self.url.replace('/images/', '/thumbnails/'),
                thumbnail=dict(width=160, height=round(160*h/w) if w else 160))

def _stall(o, first):
    "Half of the image, then silence until the web is stopped"
    data = o.data
    def _half():
        yield data[:len(data)//2]
        o.web.stopping.wait(300)
        raise ConnectionAbortedError
    return Response(_half(), mimetype=o.type, headers={'Content-Length': str(len(data))})

def _large_body(o, first, megabytes=200):
    "200 MB that call themselves a JPEG"
    body,size = (bytes(2**20) for _ in range(megabytes)),megabytes*2**20
    return Response(body, mimetype='image/jpeg', headers={'Content-Length': str(size)})

def _packed_zeros(n):
    "`n` zeros as zlib packs them"
    def _pack(k, end):
        z = zlib.compressobj(9, zlib.DEFLATED, -15)
        return z.compress(bytes(k)) + z.flush(end)
    whole,rest = _pack(2**20, zlib.Z_FULL_FLUSH)*(n//2**20),_pack(n%2**20, zlib.Z_FINISH)
    checksum = n%65521 << 16 | 1   # Adler-32 of zeros
    return b'\x78\xda' + whole + rest + checksum.to_bytes(4, 'big')

def _png_bomb(side=17_500):
    "A valid PNG of 306 million black pixels in 300 kB"
    def _number(n): return n.to_bytes(4, 'big')
    def _chunk(kind, data): return _number(len(data)) + kind + data + _number(zlib.crc32(kind + data))
    head,rows = _number(side)*2 + bytes([8, 0, 0, 0, 0]),_packed_zeros(side*(side + 1))
    return b'\x89PNG\r\n\x1a\n' + _chunk(b'IHDR', head) + _chunk(b'IDAT', rows) + _chunk(b'IEND', b'')

PAGE = '<!DOCTYPE html><html><head><title>{0}</title></head><body><h1>{0}</h1></body></html>'

def serve_whole(
    o:Result, # What was asked for
    first:bool # Is it asked for for the first time?
) -> Response: # Of Flask
    "The image, as it should be"
    return Response(o.data, mimetype=o.type)

USUAL_FAULTS = {
    'not-found': lambda o, first: Response(PAGE.format('This page is gone'), 404),
    'html': lambda o, first: Response(PAGE.format('Please accept our cookies'), mimetype='image/jpeg'),
    'truncated': lambda o, first: Response(o.data[:len(o.data)//2], mimetype=o.type),
    **{o: serve_whole for o in ('duplicate', 'near-duplicate', 'tiny', 'huge', 'wrong-label')}}

ANSWERS = {
    'ok': serve_whole, **USUAL_FAULTS,
    'server-error-once': lambda o, first: Response('try again', 500) if first else serve_whole(o, first),
    'rate-limit': lambda o, first: (Response('not so fast', 429, {'Retry-After': '1'}) if first else
                                    serve_whole(o, first)),
    'redirect': lambda o, first: redirect(o.path.replace('/images/', '/moved/')),
    'stall': _stall, 'large-body': _large_body,
    'bomb': lambda o, first: Response(_png_bomb(), mimetype='image/png'),
    'no-ai': lambda o, first: Response(o.data, mimetype=o.type, headers={'X-Robots-Tag': 'noai, noimageai'}),
    **{o: serve_whole for o in SERVED_FORMATS}}

class _Handler(WSGIRequestHandler):
    "Answers on a connection that stays open, without a word in the log"
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    def log(self, *args): pass
    def setup(self):
        super().setup()
        self.server.connections.add(self.connection)
    def finish(self):
        self.server.connections.discard(self.connection)
        with suppress(OSError): super().finish()
    def run_wsgi(self):
        body,status,headers = run_wsgi_app(self.server.app, self.make_environ())
        if 'Content-Length' not in headers or 'Content-Length' in self.headers: headers['Connection'] = 'close'
        try:
            self.send_response(int(status[:3]), status[4:])
            for k,v in headers.items(): self.send_header(k, v)
            self.end_headers()
            for o in body: self.wfile.write(o)
        except OSError: self.close_connection = True   # the client has left, or we stall
        finally:
            if hasattr(body, 'close'): body.close()

class Server(ThreadedWSGIServer):
    "Serves a Flask app in threads, on connections that stay open"
    def __init__(self,
        app:Flask, # What answers
        sock:socket.socket # From `listen_locally`
    ):
        self.connections = set()
        super().__init__('127.0.0.1', sock.getsockname()[1], app, _Handler, fd=sock.fileno())
        sock.close()
    def handle_error(self,
        request, # The socket
        client_address # Its (host, port)
    ): "Says nothing: visitors who hang up are expected"
    def close_connections(self):
        "Close what clients still hold open"
        for o in list(self.connections):
            with suppress(OSError): o.shutdown(socket.SHUT_RDWR)

def listen_locally(
    port:int # Where to listen; 0 for any that is free
) -> socket.socket: # Bound and listening, on this machine alone
    "A socket at `port`, or at a free one when that is taken"
    try: return socket.create_server(('127.0.0.1', port), backlog=256)
    except OSError: return socket.create_server(('127.0.0.1', 0), backlog=256)

def _bing_error(status, code, sub, message, **kw):
    res = jsonify(_type='ErrorResponse', errors=[dict(code=code, subCode=sub, message=message, **kw)])
    res.status_code = status
    return res

BING_PARAMETERS = frozenset("""aspect cc color count freshness height id imageContent imageType license maxFileSize
    maxHeight maxWidth minFileSize minHeight minWidth mkt offset q safeSearch setLang size width""".split())

class _BadParameter(Exception): pass

def _number(name, default=0):
    "The parameter `name` as a whole number"
    value = request.args.get(name, str(default))
    if not re.fullmatch(r'\d{1,9}', value): raise _BadParameter(name, value)
    return int(value)

def _search(web):
    "An answer of the Bing v7 image search protocol"
    if request.headers.get('Ocp-Apim-Subscription-Key', '') in ('', 'wrong'):
        return _bing_error(401, 'InvalidAuthorization', 'AuthorizationMissing', 'Authorization is required.',
                           moreDetails='Subscription key is not recognized.')
    if unknown := sorted(set(request.args) - BING_PARAMETERS):
        return _bing_error(400, 'InvalidRequest', 'ParameterUnknown', f'There is no parameter {unknown[0]}.',
                           parameter=unknown[0])
    q = request.args.get('q', '').strip()
    if not q:
        return _bing_error(400, 'InvalidRequest', 'ParameterMissing', 'Required parameter is missing.', parameter='q')
    try:
        count,offset = min(150, _number('count', default=35)),_number('offset')
        low,narrow = _number('minHeight'),_number('minWidth')
    except _BadParameter as e:
        return _bing_error(400, 'InvalidRequest', 'ParameterInvalidValue', 'Parameter has invalid value.',
                           parameter=e.args[0], value=e.args[1])
    label = web.label_of(q)
    fit = (o for o in (web.results(label) if label else ()) if o.size[0] >= narrow and o.size[1] >= low)
    page = list(itertools.islice(fit, offset, offset + count))
    web.returned.update((o.path, o) for o in page)
    total = len(list(web.results(label))) if web.photos and label else TOTAL if label else 0
    return jsonify(_type='Images', readLink=f'{web.endpoint}?q={quote(q)}', queryContext=dict(originalQuery=q),
                   totalEstimatedMatches=total, currentOffset=offset, nextOffset=offset + len(page),
                   value=[o.json for o in page])

def sample_app(
    web # A `SampleWeb`
) -> Flask: # To be served
    "The Flask app of `web`"
    app = Flask(__name__)
    app.json.sort_keys = False
    def _find(label, name):
        n,_,suffix = name.partition('.')
        o = web.find_result(label, int(n)) if n.isdigit() else None
        return o if o and suffix in ('', o.suffix) else abort(404)

    @app.get('/v7.0/images/search')
    def search(): return _search(web)

    @app.get('/images/<label>/<name>')
    def image(label, name):
        o = _find(label, name)
        with web.lock:
            first = o.path not in web.fetched
            web.fetched.add(o.path)
        time.sleep(Random(f'{web.seed}{o.path}').uniform(*web.latency))
        return ANSWERS[o.kind](o, first)

    @app.get('/moved/<label>/<name>')
    def moved(label, name): return serve_whole(_find(label, name), False)

    @app.get('/thumbnails/<label>/<name>')
    def thumbnail(label, name):
        o = _find(label, name)
        img = o.image() if min(o.size) else abort(404)
        img.thumbnail((160, 160))
        return Response(jpeg_bytes(img), mimetype='image/jpeg')

    @app.get('/pages/<label>/<name>')
    def page(label, name):
        o = _find(label, name)
        return PAGE.format(f'Number {o.n}') + f'<img src="{o.path}" alt="">'
    return app

def _shares(faults):
    "`faults` as kind -> share"
    if not isinstance(faults, dict): faults = {o: (faults or 0)/len(USUAL_FAULTS) for o in USUAL_FAULTS}
    if unknown := sorted(set(faults)-set(ANSWERS)):
        raise CatdogError(f'no such fault: {", ".join(unknown)}; there are {", ".join(ANSWERS)}')
    if min(faults.values(), default=0) < 0 or sum(faults.values()) > 1 + 1e-9:
        raise CatdogError('give the faults shares between 0 and 1, together at most 1')
    return faults

def _photo_folders(path, seed):
    "Label -> its images, in an order that `seed` chooses"
    if not path.is_dir():
        raise CatdogError(f'{path} is not a folder: give one that has a sub-folder of photographs for each label')
    res = {}
    for d in sorted(o for o in path.iterdir() if o.is_dir() and not o.name.startswith('.')):
        files = sorted(o for o in d.iterdir() if o.suffix.lower() in SUFFIX_FORMATS and not o.name.startswith('.'))
        Random(f'{seed}/{d.name}').shuffle(files)
        if files: res[d.name] = files
    if not res:
        raise CatdogError(f'{path} has no sub-folder with images: give each label one, like {path/"cat"}')
    return res

_running,_before,_starting = [],[],threading.Lock()

class SampleWeb:
    "A search engine and image host on localhost that draws what is searched for, or serves a folder of `photos`"
    def __init__(self,
        photos:str|os.PathLike=None, # A folder with a sub-folder for each label, served instead of drawings
        seed:int=42, # The same seed gives the same results
        faults:float|dict|str|None='auto', # Share of faults, or kind -> share; 'auto': 0.2 of drawings, no photographs
        latency:tuple=(0, 0), # Each image is answered after a time between these two, in seconds
        port:int=0 # Where to listen; 0, or one that is taken: a free one
    ):
        self.photos,self.seed,self.latency,self.port = photos and Path(photos),seed,latency,port
        self.faults = _shares((0 if photos else .2) if faults == 'auto' else faults)
        self.folders = _photo_folders(self.photos, seed) if photos else {}
        self.url,self._server,self.stopping = None,None,threading.Event()
        self._results,self._used,self.lock = {},{},threading.RLock()
        self.returned,self.fetched = {},set()   # path -> result that a search has returned; paths that were asked for
        self.app = sample_app(self)

    @property
    def endpoint(self): return f'{self.url}/v7.0/images/search'

    def __enter__(self): return self.start()
    def __exit__(self, *args): self.stop()
    def __repr__(self): return f'SampleWeb({self.photos or "drawings"}, {self.url or "not started"})'

@patch
def start(self:SampleWeb):
    "Listen, and let the downloader of this process fetch from localhost"
    if self._server: return self
    self.stopping.clear()
    self._server = Server(self.app, listen_locally(self.port))
    self.url = f'http://127.0.0.1:{self._server.port}'
    threading.Thread(target=self._server.serve_forever, kwargs=dict(poll_interval=.05), daemon=True).start()
    if not _running: _before[:] = [os.environ.get('CATDOG_ALLOW_PRIVATE')]
    os.environ['CATDOG_ALLOW_PRIVATE'] = '1'
    _running.append(self)
    return self

@patch
def stop(self:SampleWeb):
    "Close all connections; the last to stop puts the environment back"
    if not self._server: return
    self.stopping.set()
    self._server.shutdown()
    self._server.close_connections()
    self._server = None
    _running.remove(self)
    if _running: return
    if _before[0] is None: os.environ.pop('CATDOG_ALLOW_PRIVATE', None)
    else: os.environ['CATDOG_ALLOW_PRIVATE'] = _before[0]

# Words that say how to search, not what for
_FILLERS = set('''a an the of in on at with and photo photos photograph photographs picture pictures image images
    pic pics jpg portrait outdoor outdoors outside indoor indoors inside sun sunny shade close up closeup face animal
    real high quality hd'''.split())

@patch
def label_of(self:SampleWeb,
    q:str # What somebody typed, such as 'cat photo'
) -> str|None: # The label that this search is about; None if a folder of photographs has none of it
    "The label in the search words `q`"
    text = ' '.join(words_of(q))
    if not self.photos: return ' '.join(w for w in text.split() if w not in _FILLERS) or text
    names = {' '.join(words_of(o)): o for o in self.folders}
    found = [o for o in sorted(names, key=len, reverse=True) if re.search(rf'\b{re.escape(o)}s?\b', text)]
    return names[found[0]] if found else None

@patch
def _next(self:SampleWeb, label, so_far):
    "The result that follows the list `so_far` for `label`, or None at the end"
    n = len(so_far)
    r = Random(f'{self.seed}/{label}/{n}')
    kind = r.choices([*self.faults, 'ok'], [*self.faults.values(), max(0, 1-sum(self.faults.values()))])[0]
    fine = [o for o in so_far if o.kind == 'ok'] if 'duplicate' in kind else []
    others = [o for o in (self.folders or DRAWABLE) if o != label] if kind == 'wrong-label' else []
    if ('duplicate' in kind and not fine) or (kind == 'wrong-label' and not others): kind = 'ok'
    if self.photos:
        files = self.folders[label]
        used = self._used.get(label, 0)
        if used == len(files): return None
        drawn = r.choice(others) if kind == 'wrong-label' else label
        source = r.choice(self.folders[drawn]) if kind in EXTRA_FAULTS else files[used]
        self._used[label] = used + (kind not in EXTRA_FAULTS)
    else:
        if n == TOTAL: return None
        opposite = dict(cat='dog', dog='cat').get(drawable(label))
        drawn = label if kind != 'wrong-label' else opposite or r.choice(others)
        source = f'{self.seed}/{label}/{n}'
    if not fine: return Result(self, label, n, kind, drawn, source)
    original = r.choice(fine)
    return Result(self, label, n, kind, original.drawn, original.source, original)

@patch
def results(self:SampleWeb,
    label:str # As `label_of` gives it
): # Yields one `Result` after the other
    "All results for `label`, worked out as they are asked for"
    so_far = self._results.setdefault(label, [])
    for n in itertools.count():
        with self.lock:
            if n == len(so_far):
                o = self._next(label, so_far)
                if o is None: return
                so_far.append(o)
        yield so_far[n]

@patch
def find_result(self:SampleWeb,
    label:str, # As `label_of` gives it
    n:int # From 0
) -> Result|None:
    "Result number `n` for `label`, or None"
    if self.photos and label not in self.folders or not 0 <= n < 10*TOTAL: return None
    return next(itertools.islice(self.results(label), n, None), None)

@patch
def truth(self:SampleWeb,
    url:str # A contentUrl of this web
) -> dict: # kind, label, drawn (what it shows), valid (worth keeping), original (of a copy), format, ...
    "What `url` really is; `CatdogError` when it is no address of this web"
    match = re.fullmatch(r'/(?:images|moved|thumbnails)/([^/]+)/(\d+)\.\w+', urlsplit(url).path)
    found = match and self.find_result(unquote(match[1]), int(match[2]))
    if not found or not url.startswith(f'{self.url}/'): raise CatdogError(f'{url} is not an address of {self}')
    return found.truth

@patch(as_prop=True)
def truths(self:SampleWeb) -> dict: # url -> its truth, in the order of the answers
    "The truth about every address that a search has returned so far"
    return {o.url: o.truth for o in list(self.returned.values())}

_PORT = 8742     # where `sample_web` listens if it can: the same address at each run

def sample_web() -> SampleWeb: # A web that is running
    "The `SampleWeb` that this process runs, started with defaults if there is none"
    with _starting:
        if not _running: atexit.register(SampleWeb(port=_PORT).start().stop)
        os.environ['CATDOG_ALLOW_PRIVATE'] = '1'   # as `start` has it, whatever became of it since
        return _running[-1]
