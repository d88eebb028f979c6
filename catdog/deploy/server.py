"""What a request may bring, and which kind of answer it wants; How to use the server, in the words of OpenAPI: what `/openapi.json` holds; Requests while they arrive: all of them in bounded memory, and whoever stalls gives way to the next; Request batching: the images of all requests in one queue, and workers that predict several at once; What people and programs get: the page, the JSON, and both when something went wrong; The server around a classifier: answers about uploads, metrics, and a Flask app that is set up for both; A listening socket, and the process that serves an app on it"""

import io, os, queue, re, socket, sys, threading, time
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec

import flask, prometheus_client
from fastcore.basics import patch
from fastcore.script import is_cli
from werkzeug.exceptions import RequestTimeout, ServiceUnavailable

from ..core.errors import ImageError, CatdogError
from ..core.images import data_url, open_image
from .page import MAX_BODY, MAX_FILES, error_answer, render_answer, secure, wants_page
from .predictor import Classifier

MAX_FIELDS = 64   # form fields a request

class UploadRequest(flask.Request):
    "A request whose uploads never touch the disk"
    def _get_file_stream(self, total_content_length, content_type, filename=None, content_length=None):
        return io.BytesIO()

def uploaded_files() -> list: # What Werkzeug calls `FileStorage`, at least one
    "The files that this request brings in its field `file`; an `HTTPException` with the reason if there are none"
    if flask.request.mimetype != 'multipart/form-data':
        flask.abort(415, "Send the image as multipart/form-data, in a field called 'file'.")
    files = [o for o in flask.request.files.getlist('file') if o.filename]
    if len(files) > MAX_FILES: flask.abort(413, f'{len(files)} files at once: send at most {MAX_FILES}.')
    if not files:
        flask.abort(400, "Choose an image first." if wants_page() else "There is no file in the field 'file'.")
    return files

_text,_number = dict(type='string'),dict(type='number', minimum=0, maximum=1)

def _schema(required=(), **properties): return dict(type='object', required=list(required), properties=properties)

def _answer_schema():
    "The JSON of an answer: label, probability and so on of the first image, and `predictions` of all"
    shares = dict(type='object', additionalProperties=_number)
    doubt = dict(type='string', enum=['', 'between', 'unlike'],
                 description="Why it is not sure: 'between' the labels, or 'unlike' all that the model was trained on, "
                             'so that label and probabilities mean nothing')
    pred = dict(label=_text, probability=_number, probabilities=shares, sure=dict(type='boolean'), doubt=doubt,
                text={**_text, 'description': 'The answer in words'})
    url = {**_text, 'format': 'uri', 'description': 'A `data:` URL, if asked for'}
    pred |= dict(image=url, why=url, why_not={**_text, 'description': 'The reason if there is no `why`'})
    one = _schema(['file'], file=_text, error=_text, **pred)
    return _schema(['predictions'], predictions=dict(type='array', items=one), **pred)

def _content(schema): return {'application/json': {'schema': schema}, 'text/html': {'schema': _text}}

def _refused(why): return dict(description=why, content=_content(_schema(['error'], error=_text)))

def _predict_operation():
    "`POST /predict`: the form, and the answers by status"
    field = dict(type='array', items=dict(type='string', format='binary'), minItems=1, maxItems=MAX_FILES)
    image = {**_text, 'description': 'Not empty: answer with the upright image, too, at most 640 pixels wide and high'}
    why = {**_text, 'description': 'Not empty: answer with the image with all but what spoke for its label darkened'}
    schema = _schema(['file'], file=field, image=image, why=why)
    body = dict(required=True, content={'multipart/form-data': {'schema': schema}})
    seconds = dict(description='Seconds', schema=dict(type='integer'))
    what = 'What each image shows; label, probability and so on also at the top if there is one image'
    responses = {'200': dict(description=what, content=_content(_answer_schema())),
                 '400': _refused('No file, an empty or a damaged one'),
                 '413': _refused(f'More than {MAX_BODY} bytes, {MAX_FILES} files or the pixels that we open'),
                 '408': _refused('It took too long to arrive'),
                 '415': _refused('Not multipart/form-data, or not an image'),
                 '503': {**_refused('Too many at the moment'), 'headers': {'Retry-After': seconds}}}
    return dict(summary='What do these images show?', requestBody=body, responses=responses)

def _get_operation(what, kind, schema):
    return dict(get=dict(summary=what, responses={'200': dict(description=what, content={kind: {'schema': schema}})}))

def openapi_description() -> dict: # Ready for JSON
    "How to use this server, in the words of OpenAPI"
    health = _schema(['status', 'labels', 'model'], status=_text, model=_text, labels=dict(type='array', items=_text))
    return dict(openapi='3.0.3', info=dict(title='catdog', version='1', description='Tells images apart'),
                servers=[dict(url='./', description='Where this description is')], paths={
        '/': _get_operation('The page', 'text/html', _text),
        '/metrics': _get_operation('Figures for Prometheus', 'text/plain', _text),
        '/openapi.json': _get_operation('This description', 'application/json', dict(type='object')),
        '/healthz': _get_operation('Which model is served', 'application/json', health),
        '/predict': dict(post=_predict_operation())})

class _Arrival:
    "A request on the connection `sock`, from its first byte until its answer is sent"
    def __init__(self, sock):
        self.sock,self.began,self.size = sock,time.monotonic(),0
        self.last,self.arriving,self.refusal = self.began,True,None

    def shut(self, how):
        "End the connection's reading, or all of it; a thread that waits for it goes on at once"
        with suppress(OSError):   # it is closed already
            if self.sock is not None: self.sock.shutdown(how)

MAX_ARRIVING,MAX_MEMORY = 192,256*2**20   # requests that arrive at a time; bytes of all uploads in memory
SILENCE,WHOLE = 30,300   # seconds without anything; seconds until a request has to be here

class Arrivals:
    "An account of requests from their first byte until the answer is sent; those that stall give way"
    def __init__(self,
        most:int=MAX_ARRIVING, # Requests that may arrive at a time
        memory:int=MAX_MEMORY, # Bytes that all of them may hold
        silence:float=SILENCE, # Seconds in which something has to come
        whole:float=WHOLE # Seconds in which all of it has to come
    ):
        self.most,self.memory,self.silence,self.whole = most,memory,silence,whole
        self.all,self.lock,self.mine = set(),threading.RLock(),threading.local()
        self.watchman = None   # the thread that looks for those that are overdue

    def current(self):
        "The account of the request that this thread is busy with, or None"
        return getattr(self.mine, 'arrival', None)

def _crowded():
    why = 'Too many visitors at the moment, and this upload had stalled. Try again in a second.'
    return ServiceUnavailable(why, retry_after=1)

def _late(): return RequestTimeout('The upload was too slow, or it stalled. Try again, or with a smaller image.')

@patch
def _give_up(self:Arrivals, arrival, refusal):
    arrival.arriving,arrival.size,arrival.refusal,arrival.last = False,0,refusal,time.monotonic()
    arrival.shut(socket.SHUT_RD)

@patch
def _make_room(self:Arrivals, mine=None, full=lambda: False):
    "While it is `full`, give up the one that is silent longest of those, but for `mine`, that hold something"
    while full():
        others = [o for o in self.all if o.arriving and o is not mine and (o.size or mine is None)]
        if not others:
            raise ServiceUnavailable('Too many images at the moment. Try again in a second.', retry_after=1)
        longest = min(others, key=lambda o: o.last)
        self._give_up(longest, _crowded)

@patch
@contextmanager
def watch(self:Arrivals,
    sock # The connection, or None if there is none
):
    "Within this the thread is busy with a request on `sock`"
    arrival = _Arrival(sock)
    with self.lock:
        self.all.add(arrival)
        self._make_room(full=lambda: sum(o.arriving for o in self.all) > self.most)
        if self.watchman is None:
            self.watchman = threading.Thread(target=self._keep_watch, daemon=True)
            self.watchman.start()
    self.mine.arrival = arrival
    try: yield
    finally:
        self.mine.arrival = None
        with self.lock: self.all.discard(arrival)

@patch
def received(self:Arrivals,
    n:int # Bytes that have just come
):
    "Note that `n` bytes have come; an `HTTPException` if this request has been given up, or if they are too many"
    if not (arrival := self.current()): return
    with self.lock:
        if arrival.refusal: raise arrival.refusal()
        arrival.last = time.monotonic()
        arrival.size += n
        self._make_room(arrival, lambda: sum(o.size for o in self.all) > self.memory)

@patch
def arrived(self:Arrivals):
    "Note that all of this request is here: from now on it cannot be given up for others"
    self.received(0)
    if arrival := self.current(): arrival.arriving = False

@patch
def _keep_watch(self:Arrivals):
    while True:
        time.sleep(min(1, self.silence/4))
        with self.lock: self.end_overdue()

@patch
def end_overdue(self:Arrivals):
    "Give up the requests that are silent for too long, or on their way for too long"
    now = time.monotonic()
    for o in self.all:
        if o.arriving and (now - o.last > self.silence or now - o.began > self.whole):
            self._give_up(o, _late)
        elif not o.arriving and now - o.last > 4*self.silence: o.shut(socket.SHUT_RDWR)

class _Input:
    "The body `stream` of a request, whose reading is noted in `arrivals`"
    def __init__(self, stream, arrivals): self.stream,self.arrivals = stream,arrivals

    def read(self, size=-1):
        try: data = self.stream.read(size)
        except OSError:
            self.arrivals.received(0)   # it was given up: say why
            raise
        self.arrivals.received(len(data))
        return data

@patch
def wrap(self:Arrivals,
    app # A WSGI app
): # The same, and this knows what arrives
    "Keep account of what `app` reads"
    def _app(environ, start_response):
        environ['wsgi.input'] = _Input(environ['wsgi.input'], self)
        watched = nullcontext() if self.current() else self.watch(environ.get('werkzeug.socket'))
        with watched: return app(environ, start_response)
    return _app

ARRIVALS = Arrivals()   # of this process

MAX_WAITING = 32   # requests with images at a time

class RequestBatcher:
    "Threads that predict the images of all requests with one classifier, a few at a time"
    def __init__(self,
        classifier, # A `Classifier`, or what has its `pixels` and `answers`
        n:int=4, # Images that a worker predicts at once, at most
        limit:int=MAX_WAITING, # Requests that may wait at a time
        workers:int=min(8, os.cpu_count() or 1) # Threads that predict
    ):
        self.classifier,self.n = classifier,n
        self.queue,self.slots = queue.SimpleQueue(),threading.BoundedSemaphore(limit)
        self.opening = threading.BoundedSemaphore(workers)
        for _ in range(workers): threading.Thread(target=self._work, daemon=True).start()

    def _work(self):
        while True:
            waiting = [self.queue.get()]
            with suppress(queue.Empty):   # another worker may be quicker
                while len(waiting) < self.n: waiting.append(self.queue.get_nowait())
            pixels,answers = zip(*waiting)
            try:
                for answer,pred in zip(answers, self.classifier.answers(list(pixels))): answer.set_result(pred)
            except Exception as e:
                for answer in answers: answer.set_exception(e)

@patch
def submit(self:RequestBatcher,
    data # What `Classifier.pixels` takes, such as the bytes of a file
) -> Future: # Its result will be a `Prediction`
    "Open the image in `data` now and queue it; `ImageError` if it is none"
    with self.opening: pixels,answer = self.classifier.pixels(data),Future()
    self.queue.put((pixels, answer))
    return answer

@patch
@contextmanager
def slot(self:RequestBatcher):
    "Within this the request may wait for its answers; `ServiceUnavailable` when too many do already"
    if not self.slots.acquire(blocking=False):
        raise ServiceUnavailable('Too many images at the moment. Try again in a second.', retry_after=1)
    try: yield
    finally: self.slots.release()

def _submit(batcher, upload):
    "The name of `upload`, its bytes, and what `batcher` will say about it, or the `ImageError` that it is"
    name,data = re.split(r'[\\/]', upload.filename)[-1][:100],upload.read()
    try:
        if not data: raise ImageError('the file is empty', 'empty')
        return name,data,batcher.submit(data)
    except ImageError as e: return name,data,e

_statuses = {'too-large': 413, 'truncated': 400, 'empty': 400}   # every other reason: 415, "Unsupported Media Type"

def _result(name, answer):
    "What there is to say about an image as a dict: with `error` and `status` if it is none"
    if isinstance(answer, ImageError):
        return dict(file=name, error=f'{name}: {answer.reason}', status=_statuses.get(answer.status, 415))
    pred = answer.result(60)
    return dict(file=name, label=pred.label, probability=float(pred.probability), sure=bool(pred.sure),
                doubt=pred.doubt, text=str(pred), probabilities={k: float(v) for k,v in pred.probabilities.items()})

def _with_images(batcher, result, data, image, why):
    "`result` with `image` and `why`, those that are asked for, as `data:` URLs"
    if 'error' in result or not (image or why): return result
    with batcher.opening:
        if image: result['image'] = data_url(open_image(data, max_side=640))
        if why:
            try: result['why'] = data_url(batcher.classifier.why(data, result['label'], max_side=640))
            except CatdogError: result['why_not'] = 'This model cannot say why.'   # it was exported without
    return result

def predict_uploads(
    batcher:RequestBatcher, # What predicts
    uploads:list, # Files, from `uploaded_files`
    with_image:bool=False, # Add each image as a `data:` URL (`image`)?
    with_why:bool=False # Add the image with what spoke for its label (`why`, or the reason in `why_not`)?
) -> list: # A dict each: file, label, probability, sure, doubt, text, probabilities; or file, error, status
    "What each of `uploads` shows"
    submitted = [_submit(batcher, o) for o in uploads]
    results = [_result(name, answer) for name,_,answer in submitted]
    return [_with_images(batcher, o, data, with_image, with_why) for o,(_,data,_) in zip(results, submitted)]

class Metrics:
    "What `/metrics` shows to Prometheus"
    def __init__(self,
        batcher:RequestBatcher # Whose queue is watched
    ):
        self.registry = prometheus_client.CollectorRegistry()
        kw = dict(registry=self.registry)
        self.requests = prometheus_client.Counter(
            'catdog_requests', 'Requests, by address and status', ['path', 'status'], **kw)
        self.seconds = prometheus_client.Histogram('catdog_predict_seconds', 'How long POST /predict took', **kw)
        waiting = prometheus_client.Gauge('catdog_waiting_images', 'Images that wait for the network', **kw)
        waiting.set_function(batcher.queue.qsize)

    def response(self):
        "The counts so far, as Prometheus reads them"
        return flask.Response(prometheus_client.generate_latest(self.registry),
                              content_type=prometheus_client.CONTENT_TYPE_LATEST)

@patch
def watch(self:Metrics,
    app:flask.Flask # Whose answers shall count
):
    "Count every answer of `app`, and time those of `/predict`"
    @app.before_request
    def start(): flask.g.start = time.perf_counter()
    @app.after_request
    def count(response):
        path = str(flask.request.url_rule or 'other')
        self.requests.labels(path, response.status_code).inc()
        if path == '/predict': self.seconds.observe(time.perf_counter() - flask.g.start)
        return response

_ours = re.compile(r'(.*?)(/(?:predict|healthz|openapi\.json|static/[^/]+)?)')

def below_any_prefix(
    app # A WSGI app
): # The same, below any prefix
    "Let `app` answer at its addresses whatever folder they seem to be in"
    def _app(environ, start_response):
        if found := _ours.fullmatch(environ['PATH_INFO']):
            environ['SCRIPT_NAME'],environ['PATH_INFO'] = environ['SCRIPT_NAME'] + found[1],found[2]
        return app(environ, start_response)
    return _app

def read_origins(
    cors:str|None # Origins such as 'https://example.org', with commas between them; '*' is every one; None is none
) -> list: # Of origins
    "The origins in `cors`; `CatdogError` if one of them is none"
    res = [o.strip().rstrip('/').lower() for o in (cors or '').split(',') if o.strip()]
    for o in res:
        if o != '*' and not re.fullmatch(r'https?://[^/?#@\s]+', o):
            raise CatdogError(f'{o} is no origin: give one such as https://example.org, several with commas, or *')
    return res

def allow_origins(
    app:flask.Flask, # Whose API it is
    origins:list # From `read_origins`
):
    "Let pages of `origins` read what the API of `app` answers"
    @app.after_request
    def allow(response):
        origin = '*' if '*' in origins else flask.request.headers.get('Origin')
        if flask.request.path not in ('/predict', '/healthz', '/openapi.json'): return response
        response.vary.add('Origin')
        if origin not in origins: return response
        response.headers['Access-Control-Allow-Origin'] = origin
        response.headers['Access-Control-Expose-Headers'] = 'Retry-After'
        if flask.request.method == 'OPTIONS':   # the browser asks beforehand
            response.headers.update({'Access-Control-Allow-Methods': 'GET, POST', 'Access-Control-Allow-Headers': '*',
                                     'Access-Control-Max-Age': '600'})
        return response

def configure(
    app:flask.Flask, # A new one
    classifier:Classifier, # What it is about
    metrics:Metrics # What counts its answers
) -> flask.Flask: # `app`
    "Give `app` our limits, headers and error answers, and the addresses for programs: health, metrics, OpenAPI"
    app.wsgi_app = ARRIVALS.wrap(below_any_prefix(app.wsgi_app))
    app.request_class = UploadRequest
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY, MAX_FORM_PARTS=MAX_FIELDS)
    app.json.sort_keys = False
    app.after_request(secure)
    metrics.watch(app)
    app.register_error_handler(Exception, lambda e: error_answer(classifier, e))

    @app.get('/healthz')
    def healthz(): return dict(status='ok', labels=list(classifier.labels), model=classifier.summary)

    @app.get('/metrics')
    def show_metrics(): return metrics.response()

    @app.get('/openapi.json')
    def openapi(): return openapi_description()

    return app

def answer_uploads(
    classifier:Classifier, # What the page is about
    batcher:RequestBatcher # What predicts
) -> tuple: # A page or a dict for JSON, and the status
    "The answer to the images that this request brings; an `HTTPException` when there are none or too many wait"
    uploads,form = uploaded_files(),flask.request.form
    ARRIVALS.arrived()
    with batcher.slot():
        results = predict_uploads(batcher, uploads, wants_page() or bool(form.get('image')), bool(form.get('why')))
    return render_answer(classifier, results)

def listen(
    host:str, # A name or an address, of IPv4 or IPv6
    port:int # 0 takes a free one
) -> socket.socket: # Listening; who connects from now on waits for an answer
    "A socket that listens on `host` and `port`; `CatdogError` says why nobody can"
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    try: sock = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as e:
        reason = getattr(e, 'strerror', None) or e
        raise CatdogError(f'cannot listen on {host} port {port} ({reason}): give another --port') from None
    # Visitors who come before the server is up shall not wait, either, for the rest of an answer (Nagle's algorithm)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock

def check_port(
    host:str, # As for `listen`
    port:int # The port in question
):
    "Raise the `CatdogError` of `listen` if nobody can listen on `host` and `port`"
    listen(host, port).close()

def page_address(
    host:str, # Where the server listens
    port:int # Its port
) -> str: # With http:// and a slash at the end
    "What to type into a browser to reach a server on `host` and `port`"
    host = {'0.0.0.0': 'localhost', '::': 'localhost'}.get(host, host)
    return f'http://[{host}]:{port}/' if ':' in host else f'http://{host}:{port}/'

THREADS = MAX_ARRIVING + MAX_WAITING + 32   # the last ones are for what is answered at once

def _gunicorn_command(sock, app):
    "What to run so that gunicorn serves `app`, such as 'catdog.serve:create_app()', on `sock`"
    options = ['--bind', f'fd://{sock.fileno()}', '--worker-class', 'catdog.deploy.worker.Worker',
               '--threads', str(THREADS), '--log-level', 'warning']
    if os.path.isdir('/dev/shm'): options += ['--worker-tmp-dir', '/dev/shm']   # its heartbeat file: memory, not disk
    import gunicorn.config
    # gunicorn 25.1 and later
    if hasattr(gunicorn.config, 'ControlSocketDisable'): options.append('--no-control-socket')
    return [sys.executable, '-m', 'gunicorn', app, *options]

def _become_gunicorn(sock, model, app):
    "Turn this process into gunicorn, which serves `app` with `model` on `sock`"
    command = _gunicorn_command(sock, app)
    os.set_inheritable(sock.fileno(), True)
    if model: os.environ['CATDOG_MODEL'] = os.path.abspath(model)
    # glibc would keep the memory of large images in a pool for each thread; this gives it back
    os.environ.setdefault('MALLOC_MMAP_THRESHOLD_', str(2**20))
    os.execv(sys.executable, command)

def run_server(
    sock:socket.socket, # From `listen`
    model:str|None, # Model folder; None: the one that `Classifier()` takes
    make_app, # A function of a module, from a `Classifier` or nothing, and `options`, to a WSGI app
    **options
):
    "Serve what `make_app` makes of `model` on `sock` with the best server there is, until a signal comes"
    if is_cli() and os.name == 'posix' and find_spec('gunicorn'):
        written = ', '.join(f'{k}={v!r}' for k,v in options.items())
        _become_gunicorn(sock, model, f'{make_app.__module__}:{make_app.__name__}({written})')
    from werkzeug.serving import make_server
    app = make_app(Classifier(model, threads=1), **options)
    make_server(*sock.getsockname()[:2], app, threaded=True, fd=sock.fileno()).serve_forever()
