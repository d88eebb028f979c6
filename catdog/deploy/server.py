"""The server: predictions for uploads as page and JSON, limits, metrics, OpenAPI, and waitress around it"""

import errno, io, logging, os, re, signal, socket, threading, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.resources import files as package_files
from ipaddress import ip_address
import flask, idna, prometheus_client
from waitress import create_server, wasyncore
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer
from werkzeug.exceptions import ServiceUnavailable
from ..core.errors import CatdogError, ImageError
from ..core.images import data_url, open_image
from .page import MAX_BODY, MAX_FILES, error_answer, render_answer, secure, wants_page
from .predictor import Classifier, keep_image

MAX_FIELDS = 64   # form fields in a request
MAX_WAITING = 32   # requests with images that may run or wait at a time

# From uploads to predictions
class _Request(flask.Request):
    "A request whose uploads stay in memory; Werkzeug would write large ones to a temporary file"
    def _get_file_stream(self, total_content_length, content_type, filename=None, content_length=None):
        return io.BytesIO()

def _uploaded_files():
    "Return the files in the field `file`; raise an `HTTPException` with the reason if there are none"
    if flask.request.mimetype != 'multipart/form-data':
        flask.abort(415, "Send the image as multipart/form-data, in a field called 'file'.")
    files = [o for o in flask.request.files.getlist('file') if o.filename]
    if len(files) > MAX_FILES: flask.abort(413, f'{len(files)} files at once: send at most {MAX_FILES}.')
    if not files:
        flask.abort(400, "Choose an image first." if wants_page() else "There is no file in the field 'file'.")
    return files

_statuses = {'too-large': 413, 'truncated': 400, 'empty': 400}   # of every other `ImageError`: 415
def _predict_upload(classifier, upload, image, why):
    "Return the result for the file `upload`, as for `render_answer`; `image` and `why` add `data:` URLs"
    name,data = re.split(r'[\\/]', upload.filename)[-1][:100],upload.read()
    try:
        if not data: raise ImageError('the file is empty', 'empty')
        pred = classifier.predict(data)
    except ImageError as e: return dict(file=name, error=f'{name}: {e.reason}', status=_statuses.get(e.status, 415))
    res = dict(file=name, label=pred.label, probability=pred.probability, sure=pred.sure, doubt=pred.doubt,
               text=str(pred), probabilities=pred.probabilities)
    if image: res['image'] = data_url(open_image(data, max_side=640))
    if why:
        try: res['why'] = data_url(classifier.why(data, pred.label, max_side=640))
        except CatdogError: res['why_not'] = 'This model cannot say why.'   # its network has no feature maps
    return res

class UploadPredictor:
    "Predicts uploads in a few threads; more than `MAX_WAITING` requests at a time are refused"
    def __init__(self,
        classifier:Classifier # What predicts
    ):
        self.classifier,self.slots = classifier,threading.BoundedSemaphore(MAX_WAITING)
        # one thread per core: more would only keep more decoded images in memory
        self.pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    def _predict(self, files, image=False, why=False):
        if not self.slots.acquire(blocking=False):
            raise ServiceUnavailable('Too many images at the moment. Try again in a second.', retry_after=1)
        try: return list(self.pool.map(lambda o: _predict_upload(self.classifier, o, image, why), files))
        finally: self.slots.release()
    def answer(self) -> tuple: # A page, or a dict for JSON; and the status
        "Answer the current request; raise an `HTTPException` if it has no files or too many requests wait"
        files,form = _uploaded_files(),flask.request.form
        results = self._predict(files, wants_page() or bool(form.get('image')), bool(form.get('why')))
        return render_answer(self.classifier, results)
    def correct(self) -> dict: # text: a sentence for the visitor
        "Keep the image of the current request, in the app's folder `KEEP`, under the label that the visitor gives"
        # a page of another site can send a form, but not this header
        if 'X-Requested-With' not in flask.request.headers: flask.abort(403, 'Only the page itself may send this.')
        (file,*more),label,labels = _uploaded_files(),flask.request.form.get('label'),self.classifier.labels
        if more or label not in labels:
            flask.abort(400, f"Send one image, and its label in the field 'label': {', '.join(labels)}.")
        found, = self._predict([file])
        if 'error' in found: flask.abort(found['status'], found['error'])
        file.seek(0)
        try: return dict(text=keep_image(flask.current_app.config['KEEP'], file.read(), label, 'page', found['text']))
        except CatdogError as e: raise ServiceUnavailable(str(e))

# The Flask app
_origin = re.compile(r'([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[^][/?#@:*%\\\s]*)(?::(\d{1,5}))?(/?)(.*)', re.I)
def _parse_origin(text):
    "Return the origin `text` as browsers send it, also those of apps: capacitor://localhost, chrome-extension://id"
    if text.lower() in ('*', 'null'): return text.lower()   # `null`: a file, a frame with the attribute sandbox
    error = f'{text} is not an origin: give one such as https://example.org, several with commas, or *'
    if not (found := _origin.fullmatch(text)): raise CatdogError(error)
    scheme,host,port,slash,path = found.groups()
    scheme,host,default = scheme.lower(),host.lower(),dict(http='80', https='443').get(scheme.lower())
    try:
        if host[:1] == '[': host = f'[{ip_address(host[1:-1])}]'
        elif default and re.fullmatch(r'(.*\.)?(\d+|0x[\da-f]*)\.?', host):   # 127.1
            host = socket.inet_ntoa(socket.inet_aton(host.rstrip('.')))
        elif default and not host.isascii(): host = idna.encode(host, uts46=True).decode()
    except (ValueError, OSError): raise CatdogError(error) from None   # idna's errors, too
    if not host and scheme != 'file' or int(port or 0) > 65535 or path and not slash: raise CatdogError(error)
    origin = f'{scheme}://{host}' + (f':{int(port)}' if port and port.lstrip('0') != default else '')
    if path: raise CatdogError(f'{text} has a path, and an origin has none: give {origin}')
    return origin

def read_origins(
    cors:str|None # Origins such as 'https://example.org', separated by commas; '*' is every one; None is none
) -> list: # Of origins
    "Parse `cors`; raise `CatdogError` if one of them is not an origin"
    return [_parse_origin(o.strip()) for o in (cors or '').split(',') if o.strip()]

def _allow_origins(app, origins):
    @app.after_request
    def allow(response):
        origin = '*' if '*' in origins else flask.request.headers.get('Origin', '')
        if flask.request.path not in ('/predict', '/healthz', '/openapi.json'): return response
        response.vary.add('Origin')
        if origin.lower() not in origins: return response
        response.headers['Access-Control-Allow-Origin'] = origin
        response.headers['Access-Control-Expose-Headers'] = 'Retry-After'
        if flask.request.method == 'OPTIONS':   # a browser's preflight request
            response.headers.update({'Access-Control-Allow-Methods': 'GET, POST', 'Access-Control-Allow-Headers': '*',
                                     'Access-Control-Max-Age': '600'})
        return response

def _add_metrics(app):
    "Count the responses of `app`, time those of `/predict`, and expose both to Prometheus at `/metrics`"
    registry = prometheus_client.CollectorRegistry()
    count = prometheus_client.Counter('catdog_requests', 'Requests, by path and status', ['path', 'status'],
                                      registry=registry)
    seconds = prometheus_client.Histogram('catdog_predict_seconds', 'Duration of POST /predict', registry=registry)
    running = prometheus_client.Gauge('catdog_running_requests', 'Requests that are being answered', registry=registry)
    @app.before_request
    def start():
        running.inc()
        flask.g.start = time.perf_counter()
    @app.teardown_request
    def end(_): running.dec()
    @app.after_request
    def observe(response):
        path = str(flask.request.url_rule or 'other')
        count.labels(path, response.status_code).inc()
        if path == '/predict': seconds.observe(time.perf_counter() - flask.g.start)
        return response
    @app.get('/metrics')
    def show_metrics():
        return prometheus_client.generate_latest(registry), {'Content-Type': prometheus_client.CONTENT_TYPE_LATEST}

_ours = re.compile(r'(.*?)(/(?:predict|correct|healthz|openapi\.json|static/[^/]+)?)')
def _below_any_prefix(app):
    "Let the WSGI app `app` work below any path prefix; `/metrics`, which a proxy may block, only without one"
    def _app(environ, start_response):
        if found := _ours.fullmatch(environ['PATH_INFO']):
            environ['SCRIPT_NAME'],environ['PATH_INFO'] = environ['SCRIPT_NAME'] + found[1],found[2]
        return app(environ, start_response)
    return _app

def configure(
    app:flask.Flask, # A new one
    classifier:Classifier, # The model it serves
    origins:list=() # Origins whose pages may read the API's responses, from `read_origins`
) -> flask.Flask: # `app`
    "Add our limits, headers, error responses, `/healthz`, `/metrics` and `/openapi.json` to `app`"
    app.wsgi_app = _below_any_prefix(app.wsgi_app)
    app.request_class = _Request
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY, MAX_FORM_PARTS=MAX_FIELDS)
    app.json.sort_keys = False
    app.after_request(secure)
    _add_metrics(app)
    _allow_origins(app, origins)
    app.register_error_handler(Exception, lambda e: error_answer(classifier, e))
    @app.get('/healthz')
    def healthz(): return dict(status='ok', labels=list(classifier.labels), model=classifier.summary)
    @app.get('/openapi.json')
    def openapi():
        text = (package_files('catdog')/'templates/openapi.json').read_text(encoding='utf8')
        text = flask.render_template_string(text, max_body=MAX_BODY, max_files=MAX_FILES)
        return flask.Response(text, content_type='application/json')
    return app

# waitress
def listen(
    host:str, # A name or an address, IPv4 or IPv6; '::' and '' are every address of both families
    port:int # The port; 0 takes a free one
) -> tuple: # Sockets; the URL that opens in a browser on this machine
    "Listen on `port` of every address of `host`; raise `CatdogError` if that fails"
    name,sockets,missing = (host.strip('[] ') if ':' in host else host.strip('* ')),[],None
    try:
        for family,*_,(address, _, *scope) in socket.getaddrinfo(name or None, 0, type=socket.SOCK_STREAM,
                                                                 flags=socket.AI_PASSIVE):
            both = bool(name) and address == '::' and socket.has_dualstack_ipv6()
            try: sockets.append(socket.create_server((address, port, *scope), family=family, backlog=1024,
                                                     dualstack_ipv6=both))
            except OSError as e:   # `localhost` may have an IPv6 address on a machine without IPv6
                if e.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT): raise
                missing = e
            else: port = port or sockets[0].getsockname()[1]
            if ip_address(address.partition('%')[0]).is_multicast or address == '255.255.255.255':
                raise socket.gaierror(errno.EADDRNOTAVAIL, 'no machine has this address')
        if not sockets: raise missing
    except (OSError, OverflowError, UnicodeError) as e:
        for o in sockets: o.close()
        of_host = isinstance(e, (socket.gaierror, UnicodeError)) or e is missing
        raise CatdogError(f'cannot listen on {host} port {port} ({getattr(e, "strerror", None) or e}): '
                          f'give another --{"host" if of_host else "port"}') from None
    address = sockets[0].getsockname()[0]
    name = {'0.0.0.0': '127.0.0.1', '::': '::1'}.get(address, name).replace('%', '%25')
    return sockets,f'http://[{name}]:{port}/' if ':' in name else f'http://{name}:{port}/'

_MAX_MEMORY = 256*2**20   # bytes of uploads that may be held at a time
_IDLE_SECONDS = 30   # after which an idle connection is closed

class _Channel(HTTPChannel):
    "A connection; while all uploads together exceed `_MAX_MEMORY`, the one that has been idle longest is closed"
    def received(self, data):
        res,channels = super().received(data),list(self.server.active_channels.values())
        if sum(r.body_bytes_received for o in channels for r in (o.request, *o.requests) if r) > _MAX_MEMORY:
            unfinished = [o for o in channels if o.request and not o.will_close]
            if unfinished: min(unfinished, key=lambda o: o.last_activity).handle_close()
        return res

def _max_connections():
    "Return how many connections may be open: 1000, or fewer if the system allows fewer open files"
    try: import resource
    except ImportError: return 400   # Windows: its `select` takes at most 512 sockets
    soft,_ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1000 if soft == resource.RLIM_INFINITY else max(50, min(1000, soft - 60))

class Server:
    "waitress, serving a WSGI app; it reads a whole request into memory before a thread handles it"
    def __init__(self,
        app, # The WSGI app
        host:str='127.0.0.1', # A name or an address, IPv4 or IPv6; every address of a name is listened on
        port:int=0 # 0 takes a free one
    ):
        "Listen on `host` and `port`; raise `CatdogError` if that fails"
        sockets,self.url = listen(host, port)
        self.stopping,self._map = False,{}
        logging.getLogger('waitress.queue').setLevel(logging.ERROR)   # it would warn whenever a request has to wait
        most = 4*MAX_BODY   # larger bodies than allowed are read up to here, so that the client receives the refusal
        self._server = create_server(
            app, map=self._map, sockets=sockets, threads=MAX_WAITING + 8, connection_limit=_max_connections(),
            channel_timeout=_IDLE_SECONDS, cleanup_interval=min(5, _IDLE_SECONDS), asyncore_use_poll=True,
            recv_bytes=2**16, max_request_body_size=most, inbuf_overflow=most, expose_tracebacks=False)
        for o in self._listening(): o.channel_class = _Channel
    def _listening(self): return [o for o in self._map.values() if isinstance(o, BaseWSGIServer)]
    def _busy(self):
        return any(o.requests or o.total_outbufs_len for o in self._map.values() if isinstance(o, HTTPChannel))
    def stop(self, *_):
        "Make `run` return within a second; safe to call from a signal handler or another thread"
        self.stopping = True
    def run(self,
        grace:float=20 # Seconds to finish running requests after `stop`
    ):
        "Serve until `stop` or, in the main thread, Ctrl-C or SIGTERM; then finish running requests"
        main = threading.current_thread() is threading.main_thread()
        before = {o: signal.signal(o, self.stop) for o in (signal.SIGINT, signal.SIGTERM) if main}
        try:
            while not self.stopping: wasyncore.loop(1, True, self._map, 1)
            for o in self._listening(): wasyncore.dispatcher.close(o)
            end = time.monotonic() + grace
            while self._busy() and time.monotonic() < end: wasyncore.loop(.05, True, self._map, 1)
        finally:
            for o,handler in before.items(): signal.signal(o, handler)
            self._server.task_dispatcher.shutdown(timeout=1)
            with suppress(OSError): wasyncore.close_all(self._map)
