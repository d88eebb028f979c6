"""One page with two back ends: rendered by the server, or written to files that run the model in the browser"""

import base64, gzip, hashlib, json, math, os, re, shlex, shutil, subprocess, tarfile, tempfile
from importlib.util import find_spec
from importlib.resources import files as package_files
from pathlib import Path
from types import SimpleNamespace
import flask, jinja2
from fastcore.script import is_cli
from werkzeug.exceptions import HTTPException
from ..core.errors import CatdogError, command
from ..core.files import can_write_home, check_writable, write_atomic
from .predictor import NOTICE, Classifier, forced_choice, one_of, percent, question, shown_probabilities

MAX_BODY,MAX_FILES = 16*2**20,16   # bytes and files per request
_static = package_files('catdog')/'static'
_templates = jinja2.Environment(loader=jinja2.FileSystemLoader([_static.parent/'templates', _static/'site']),
                                autoescape=jinja2.select_autoescape(['html']), keep_trailing_newline=True)
def _render(name, **values): return _templates.get_template(name).render(**values)

def _page(classifier, **values):
    return _render('page.html', title=question(classifier.labels), labels=classifier.labels,
                   summary=classifier.summary, percent=percent,
                   can_explain='activation' in [o.name for o in classifier.session.get_outputs()], **values)

def render_page(
    classifier:Classifier, # Model of the page
    results:list=(), # Answers, from `predict_uploads` of deploy.server
    error:str=None # Message to show instead of answers
) -> str: # HTML
    "Return the server's page, with `results` or an `error`"
    return _page(classifier, static='static/', icon='static/icon.svg', results=results, error=error,
                 notice=flask.current_app and flask.current_app.config.get('KEEP') and NOTICE, max_bytes=MAX_BODY,
                 max_files=MAX_FILES, shown=lambda o: shown_probabilities(SimpleNamespace(**o)),
                 forced=lambda o: forced_choice(SimpleNamespace(**o)))

_headers = {
    'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'same-origin', 'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Resource-Policy': 'same-origin', 'Permissions-Policy': 'camera=(), microphone=(), geolocation=()',
    'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
                               "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"}
def secure(
    response:flask.Response # Response to the current request
) -> flask.Response: # The same
    "Add security headers to `response`, and forbid caching of answers"
    response.headers.extend(_headers)
    if flask.request.path == '/predict':
        response.headers['Cache-Control'] = 'no-store'
        response.vary.add('Accept')
    return response

def wants_page() -> bool: # False: JSON
    "Return whether the client of the current request prefers HTML to JSON"
    return flask.request.accept_mimetypes.best_match(['application/json', 'text/html']) == 'text/html'

def render_answer(
    classifier:Classifier, # Model of the page
    results:list # A dict for each image, from `predict_uploads` of deploy.server
) -> tuple: # HTML or a dict for JSON; HTTP status
    "Return the page or the JSON for `results`, with the lowest of their statuses if all of them are errors"
    status = min(o.get('status', 200) for o in results)
    if wants_page(): return render_page(classifier, results), status
    predictions = [{k: v for k,v in o.items() if k != 'status'} for o in results]
    twice = predictions[0].items() if len(predictions) == 1 else ()
    single = {k: v for k,v in twice if k not in ('file', 'image', 'why')}   # images are large
    if status != 200: single['error'] = '; '.join(o['error'] for o in predictions)
    return {**single, 'predictions': predictions}, status

_messages = {404: 'There is no such page.', 405: 'This URL does not support that method.',
             413: f'That is too much at once: send at most {MAX_BODY//2**20} MB and {MAX_FILES} images.',
             500: 'Something went wrong here. Try again.'}
def error_answer(
    classifier:Classifier, # Model of the page
    e:Exception # Raised while the current request was handled
) -> tuple: # HTML or a dict for JSON; HTTP status; headers. A redirect is returned as it is
    "Return the response to a request that raised `e`: its message, as page or JSON"
    known = isinstance(e, HTTPException)
    if known and e.code < 400: return e
    if not known: flask.current_app.logger.error('%s %s', flask.request.method, flask.request.path, exc_info=e)
    status = e.code if known else 500
    # our own `abort` calls have messages for users; Werkzeug's are for programmers
    ours = known and e.description != type(e).description
    reason = e.description if ours else _messages.get(status, 'This request was not understood.')
    headers = {'Allow': ', '.join(e.valid_methods)} if getattr(e, 'valid_methods', None) else {}
    if getattr(e, 'retry_after', None): headers['Retry-After'] = str(e.retry_after)
    return (render_page(classifier, error=reason) if wants_page() else dict(error=reason)), status, headers

_VERSION = '1.30.0'   # of onnxruntime-web
_CDN = f'https://cdn.jsdelivr.net/npm/onnxruntime-web@{_VERSION}/dist/'
_RUNTIME = {
    'ort.wasm.bundle.min.mjs': 'sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG',
    'ort-wasm-simd-threaded.wasm': 'sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM'}

def _integrity(data): return 'sha384-' + base64.b64encode(hashlib.sha384(data).digest()).decode()

def _runtime_files(local):
    "Return the URLs of script and WebAssembly, and the files to put beside the page"
    if not local: return [_CDN + o for o in _RUNTIME],{}
    if not (npm := shutil.which('npm')):
        raise CatdogError('npm, which fetches onnxruntime-web, is not installed: install Node.js, or leave out --local')
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ if can_write_home() else {**os.environ, 'HOME': folder}   # where its cache is
        res = subprocess.run([npm, 'pack', f'onnxruntime-web@{_VERSION}', '--loglevel=error'], cwd=folder, env=env,
                             capture_output=True, encoding='utf8', errors='replace')
        packed = next(Path(folder).glob('*.tgz'), None)
        if res.returncode or not packed:
            lines = re.findall(r'^npm (?:ERR!|error) (?!code|syscall|errno)(.+)', res.stderr, re.M)
            raise CatdogError(f'npm cannot fetch onnxruntime-web {_VERSION} ({[*lines, res.stderr.strip()[-200:]][0]}'
                              '): try again, or leave out --local')
        with tarfile.open(packed) as tar: script,wasm = (tar.extractfile(f'package/dist/{o}').read() for o in _RUNTIME)
    if [_integrity(script), _integrity(wasm)] != [*_RUNTIME.values()]:
        raise CatdogError(f'onnxruntime-web {_VERSION} from npm does not have the hashes that catdog expects')
    files = {'runtime/ort.wasm.bundle.min.js': script,
             'runtime/ort-wasm-simd-threaded.bin': gzip.compress(wasm, mtime=0)}
    return list(files),files

def _data_url(kind, file): return f'data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode()}'

def _browser_model(file):
    "Return the content of the ONNX `file`, its depthwise convolutions in float32: 8 bits are slow in WebAssembly"
    if not find_spec('onnx'): return file.read_bytes()   # apps have no need of it; the same answers, more slowly
    import onnx
    graph,nodes = (model := onnx.load(file)).graph,[]
    depthwise = {o.input[1] for o in graph.node if any(a.name == 'group' and a.i > 1 for a in o.attribute)}
    arrays = {o.name: o for o in graph.initializer}
    for node in graph.node:
        nodes.append(node)
        if node.op_type != 'DequantizeLinear' or node.output[0] not in depthwise: continue
        weights,scale,zero = node.input   # 0, as quantization of weights is symmetric
        arrays[scale].dims.extend([1, 1, 1])
        graph.initializer.remove(arrays[zero])
        nodes[-1:] = [onnx.helper.make_node('Cast', [weights], [f'{weights}_float'], to=onnx.TensorProto.FLOAT),
                      onnx.helper.make_node('Mul', [f'{weights}_float', scale], node.output)]
    del graph.node[:]
    graph.node.extend(nodes)
    return model.SerializeToString()

def _page_files(classifier, local=False):
    "Return name -> content of the files of a page that runs the model of `classifier` in the browser"
    (script,wasm),files = _runtime_files(local)
    icons = [_data_url('png', _static/'site'/f'icon-{n}.png') for n in (192, 512)]
    manifest = _render('manifest.webmanifest', title=question(classifier.labels), icons=icons)
    files |= {o: (_static/o).read_bytes() for o in ('page.js', 'page.css')}
    files |= {o: (_static/'site'/o).read_bytes() for o in ('browser.js', 'icon-192.png')}
    files |= {'model.bin': gzip.compress(_browser_model(classifier.file), mtime=0),
              'manifest.webmanifest': manifest.encode()}
    hashes = dict(zip([script, wasm], _RUNTIME.values())) | {k: _integrity(v) for k,v in files.items()}
    allowed = '' if local else f' {_CDN}'
    policy = (f"default-src 'none'; script-src 'self' blob: 'wasm-unsafe-eval'{allowed}; connect-src 'self'{allowed}; "
              "style-src 'self'; img-src 'self' blob: data:; manifest-src 'self'; worker-src 'self'; "
              "form-action 'none'; base-uri 'none'")
    keys = 'labels', 'size', 'resize_to', 'min_side', 'opened', 'resize', 'temperature'
    limits = {k: v if v < math.inf else None for k,v in classifier.limits.items()}   # JSON has no infinity
    model = {k: classifier.meta[k] for k in keys if k in classifier.meta}
    model |= dict(limits=limits, one_of=one_of(classifier.labels))
    site = dict(policy=policy, runtime=script, runtime_integrity=hashes[script], wasm=wasm, model=model,
                wasm_integrity=hashes[wasm], model_integrity=hashes['model.bin'])
    files['index.html'] = _page(classifier, site=site, icon=_data_url('svg+xml', _static/'icon.svg')).encode()
    version = hashlib.sha256(json.dumps(hashes).encode() + files['index.html']).hexdigest()[:12]
    files['sw.js'] = _render('sw.js', files={'./': '', **hashes}, version=version).encode()
    return files

def _check_out(out):
    "Raise `CatdogError` unless the folder `out` is new, empty or holds a page that `catdog-site` wrote"
    if out.exists() and not out.is_dir(): raise CatdogError(f'{out} is a file: give a new folder')
    index = out/'index.html'
    ours = index.is_file() and 'content="catdog-site"' in index.read_text(encoding='utf8', errors='replace')
    others = [o.name for o in out.iterdir() if o.name[0] != '.' and o.name != 'README.md'] if out.exists() else []
    if others and not ours: raise CatdogError(f'{out} holds other files: give a new folder, such as {out/"site"}')

@command
def build_site(
    model:str=None, # Model folder; default: the one the app starts with
    out:str='site', # Folder for the page
    local:bool=False, # Include onnxruntime-web (fetched through npm), so that the page contacts no other host?
    github_pages:bool=False # Also write a workflow that publishes the folder with GitHub Pages?
): # The folder
    "Write a page that runs `model` in the visitor's browser to `out`, for any static file host"
    classifier,out = Classifier(model),Path(out)
    _check_out(out)
    check_writable(out)
    files = _page_files(classifier, local)
    once = {'README.md': _render('README.md', title=question(classifier.labels), summary=classifier.summary)}
    if github_pages: once['.github/workflows/pages.yml'] = (_static/'site'/'pages.yml').read_text(encoding='utf8')
    files |= {k: v.encode() for k,v in once.items() if not (out/k).exists()}
    for name,data in files.items():
        (out/name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out/name, data)
    if is_cli(build_site):
        print(f'{out/"index.html"}: {classifier.summary}\nTo view it: python -m http.server -b 127.0.0.1 '
              f'-d {shlex.quote(str(out))}, then http://127.0.0.1:8000. {out/"README.md"} says how to put it online.')
    return out
