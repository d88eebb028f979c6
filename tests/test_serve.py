"The JSON API and its server: formats, limits, concurrent requests, slow and hostile clients, signals"
import collections, functools, io, json, os, re, shlex, signal, socket, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import flask, hypothesis, numpy as np, pillow_heif, psutil, pytest, requests, schemathesis
from hypothesis import strategies as st
from network_helpers import free_port, until
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance

from catdog.core.errors import CatdogError
from catdog.core.files import IMAGE_FORMATS
from catdog.core.images import jpeg_bytes
from catdog.deploy import server as deploy_server
from catdog.deploy.page import MAX_BODY, MAX_FILES
from catdog.deploy.server import MAX_FIELDS, MAX_WAITING
from catdog.predict import Classifier, shipped_model
from catdog.sample.draw import draw
from catdog.serve import create_app

ROOT = Path(__file__).parent.parent
BROWSER = 'text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8'

pillow_heif.register_heif_opener()   # to write HEIC

def script(name): return str(Path(sys.executable).with_name(name))
def environment(**kw): return {**os.environ, 'CATDOG_MODEL': str(shipped_model()), **kw}
def saved(img, format='JPEG', **kw):
    f = io.BytesIO()
    img.save(f, format, **kw)
    return f.getvalue()
def noise(w, h):
    return saved(Image.fromarray(np.random.default_rng(1).integers(0, 255, (h, w, 3), 'uint8')), 'PNG')

@pytest.fixture(scope='module')
def classifier(): return Classifier(shipped_model())

@pytest.fixture(scope='module')
def images(): return [jpeg_bytes(draw(['cat', 'dog'][i%2], i, (120, 100))) for i in range(16)]

@pytest.fixture(scope='module')
def server(tmp_path_factory):
    "(url, its folder for temporary files) of the line `api` of the Procfile, in its own process as a host runs it"
    temporary,port = tmp_path_factory.mktemp('tmp'),free_port()
    line = next(o for o in (ROOT/'Procfile').read_text().splitlines() if o.startswith('api:'))[4:].strip()
    args = shlex.split(line.replace('$PORT', str(port)).replace('0.0.0.0', '127.0.0.1'))
    process = subprocess.Popen([script(args[0]), *args[1:], '--cors', 'https://a.org,https://it-s.b.org'], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(TMPDIR=str(temporary)))
    url = process.stdout.readline().split()[0].rstrip('/')
    assert url == f'http://127.0.0.1:{port}'
    yield url,temporary
    process.terminate()
    assert process.communicate(timeout=60) == ('', '') and process.returncode == 0

@pytest.fixture
def run_app():
    "Serve an app in a thread; return its URL"
    servers = []
    def run(app, host='127.0.0.1'):
        servers.append(deploy_server.Server(app, host))
        threading.Thread(target=servers[-1].run, daemon=True).start()
        return servers[-1].url.rstrip('/')
    yield run
    for o in servers: o.stop()

def post(server, *files, accept='*/*', timeout=120, **kw):
    files = [('file', o if isinstance(o, tuple) else ('image', o)) for o in files]
    return requests.post(f'{server[0]}/predict', files=files, headers={'Accept': accept}, timeout=timeout, **kw)

def refused(res, status, words):
    assert (res.status_code, res.headers['Content-Type']) == (status, 'application/json'), res.text
    assert words in res.json()['error'] and 'Traceback' not in res.text
    return True

# Answers and refusals

def test_formats(server, classifier):
    for format in IMAGE_FORMATS:
        data = saved(draw('cat', 5, (200, 150)), format)
        res,expected = post(server, data).json(),classifier.predict(data)
        assert res['label'] == expected.label and res['text'] == str(expected) and res['doubt'] == expected.doubt
        assert res['probabilities'] == pytest.approx(expected.probabilities, abs=1e-5), format

def test_several_images(server, classifier, images):
    res = post(server, ('a.jpg', images[0]), ('notes.txt', b'buy cat food'), ('b.jpg', images[1]))
    seen = res.json()['predictions']
    assert res.status_code == 200 and [o['file'] for o in seen] == ['a.jpg', 'notes.txt', 'b.jpg']
    assert seen[1] == {'file': 'notes.txt', 'error': 'notes.txt: a text file, not an image'}
    for o,data in [(seen[0], images[0]), (seen[2], images[1])]:
        assert o['probability'] == pytest.approx(classifier.predict(data).probability, abs=1e-5)
    assert len(post(server, *[images[0]]*MAX_FILES).json()['predictions']) == MAX_FILES

@pytest.mark.parametrize('data,status,words', [
    (b'', 400, 'empty'), (b'buy cat food', 415, 'a text file'), (b'<!doctype html><p>404', 415, 'a web page'),
    (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415, 'SVG'), (bytes(range(256))*40, 415, ''),
    (b'%PDF-1.7 ...', 415, 'PDF'), (jpeg_bytes(draw('cat', 0, (240, 200)))[:2000], 400, 'damaged'),
    (saved(draw('cat', 1, (200, 200)), 'PNG')[:500], 400, 'damaged'),
    (saved(Image.new('L', (9000, 9000)), 'PNG', compress_level=9), 413, '9000 x 9000')],
    ids='empty text page svg junk pdf jpeg png bomb'.split())
def test_not_images(server, data, status, words): refused(post(server, ('cat.jpg', data)), status, words)

def test_requests_that_are_refused(server, images):
    url,form = f'{server[0]}/predict','multipart/form-data'
    def send(body, kind): return requests.post(url, data=body, headers={'Content-Type': kind})
    for res,status,words in [
            (requests.post(url, files={'other': images[0]}), 400, "no file in the field 'file'"),
            (requests.post(url, files={'file': (None, 'a text')}), 400, 'no file'),
            (requests.post(url, files={'file': ('', b'')}), 400, 'no file'),
            (requests.post(url), 415, form), (requests.post(url, json={'file': 'cat.jpg'}), 415, form),
            (send(images[0], 'image/jpeg'), 415, form), (send(b'--x\r\nnonsense', form), 400, 'no file'),
            (send(b'--y\r\n\r\n--y--', f'{form}; boundary=x'), 400, 'no file'),
            (post(server, *[images[0]]*(MAX_FILES + 1)), 413, f'at most {MAX_FILES}'),
            (requests.post(url, files=[(f'f{i}', b'1') for i in range(MAX_FIELDS + 1)]), 413, 'too much'),
            (requests.post(url, data={'text': 'x'*1_000_000}, files={'file': images[0]}), 413, 'too much'),
            (post(server, bytes(MAX_BODY)), 413, 'too much'), (post(server, bytes(3*MAX_BODY)), 413, 'too much'),
            (requests.get(url), 405, 'does not support'), (requests.get(f'{server[0]}/any/metrics'), 404, 'no such page'),
            (requests.get(f'{server[0]}/static/../serve.py'), 404, 'no such page')]:
        refused(res, status, words)

def test_a_body_of_unknown_length_is_limited_too(server, images):
    def body(megabytes):
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="cat.jpg"\r\n\r\n'
        yield images[0]
        for _ in range(megabytes): yield bytes(2**20)
        yield b'\r\n--x--\r\n'
    def send(n):
        headers = {'Content-Type': 'multipart/form-data; boundary=x'}
        try: return requests.post(f'{server[0]}/predict', data=body(n), headers=headers, timeout=60).status_code
        except requests.ConnectionError: return 413   # the server need not listen to the end
    assert [send(n) for n in (1, 20, 100)] == [200, 413, 413]

@pytest.mark.parametrize('path', ['/', '/healthz', '/static/page.css'])
def test_head(server, path):
    "As monitors do"
    res = requests.head(server[0] + path)
    assert res.status_code == 200 and res.content == b'' and int(res.headers['Content-Length']) > 100

def test_cors(classifier, images):
    name,page = 'Access-Control-Allow-Origin','https://example.org'
    def ask(client, path='/predict', method='POST', **headers):
        data = {'file': (io.BytesIO(images[0]), 'cat.jpg')} if method == 'POST' else None
        return client.open(path, method=method, data=data, headers={'Origin': page, **headers})
    for cors,value in [(page, page), (f'https://b.org, {page}/', page), ('*', '*'), ('https://b.org', None),
                       (None, None)]:
        client = create_app(classifier, cors=cors).test_client()
        for path,method in [('/predict', 'POST'), ('/predict', 'GET'), ('/healthz', 'GET'), ('/openapi.json', 'GET')]:
            res = ask(client, path, method)
            assert res.headers.get(name) == value and 'Origin' in res.vary, (cors, path)
    client = create_app(classifier, cors='*').test_client()
    assert 'Accept' in ask(client).vary and ask(client).status_code == 200
    for path in ('/metrics', '/'): assert name not in ask(client, path, 'GET').headers
    told = ask(create_app(classifier, cors=page).test_client(), method='OPTIONS', **{
        'Access-Control-Request-Method': 'POST', 'Access-Control-Request-Headers': 'x-mine'})
    assert told.status_code == 200 and told.headers[name] == page
    assert told.headers['Access-Control-Allow-Headers'] == '*'

ORIGINS = {   # what a person gives: what browsers and apps send
    'https://Example.ORG:443/': 'https://example.org', 'HTTP://localhost:80': 'http://localhost', 'NULL': 'null',
    'http://localhost:5173': 'http://localhost:5173', 'http://a.org:443': 'http://a.org:443',
    'http://[0:0::1]:8080/': 'http://[::1]:8080', 'https://ПРИМЕР.рф': 'https://xn--e1afmkfd.xn--p1ai',
    'https://a_b.org': 'https://a_b.org', 'http://192.168.0.7:3000': 'http://192.168.0.7:3000',
    'http://127.1:3000': 'http://127.0.0.1:3000', 'http://[::ffff:127.0.0.1]': 'http://[::ffff:7f00:1]',
    'file:///': 'file://', 'capacitor://localhost/': 'capacitor://localhost', 'ionic://localhost': 'ionic://localhost',
    'tauri://localhost': 'tauri://localhost', 'app://.': 'app://.', 'chrome-extension://abcdefgh': 'chrome-extension://abcdefgh',
    'moz-extension://0b-1/': 'moz-extension://0b-1', 'vscode-webview://0c1a': 'vscode-webview://0c1a',
    'safari-web-extension://0A1B-2': 'safari-web-extension://0A1B-2'}

def test_every_origin_that_is_sent_can_be_given(classifier):
    client,name = create_app(classifier, cors=', '.join(ORIGINS)).test_client(),'Access-Control-Allow-Origin'
    for sent in [*ORIGINS.values(), 'https://b.org', 'http://example.org', 'https://example.org:8443', '']:
        allowed = client.get('/healthz', headers={'Origin': sent}).headers.get(name)
        assert allowed == (sent if sent in ORIGINS.values() else None), sent

@pytest.mark.parametrize('cors,words', [
    ('https://a.org/page', 'has a path, and an origin has none: give https://a.org'), ('a.org', 'not an origin'),
    ('file:///home/a', 'give file://'), ('localhost:5173', 'not an origin'), ('https://', 'not an origin'),
    ('https://*.a.org', 'not an origin'), ('https://me@a.org', 'not an origin'), ('https://a.org:70000', 'not an origin'),
    ('https://a.org https://b.org', 'not an origin'), ('http://1.2.3.999', 'not an origin'),
    ('http://[zz]', 'not an origin'), ('https://-ж-.рф', 'not an origin')])
def test_invalid_origins_are_refused(classifier, cors, words):
    with pytest.raises(CatdogError, match=re.escape(words)): create_app(classifier, cors=cors)

# Corrections

def test_corrections_that_are_refused(classifier, images, tmp_path, monkeypatch):
    "What the page does not send; and without `keep`, all"
    app,mine = create_app(classifier, cors='*', keep=tmp_path/'new'/'kept'),{'X-Requested-With': 'catdog'}
    def send(label, *data, app=app, path='/correct', headers=mine):
        form = dict(label=label, file=[(io.BytesIO(o), 'cat.jpg') for o in data])
        return app.test_client().post(path, data={k: v for k,v in form.items() if v}, headers=headers)
    for res,status,words in [
            (send('cat', images[0], headers={}), 403, 'Only the page'), (send('cat'), 415, 'multipart'),
            (send(None, images[0]), 400, "'label': cat, dog"), (send('../cat', images[0]), 400, 'its label'),
            (send('/tmp', images[0]), 400, 'its label'), (send('cat', *images[:2]), 400, 'one image'),
            (send('cat', b'buy cat food'), 415, 'a text file'), (send('cat', b''), 400, 'empty'),
            (send('cat', bytes(17*2**20)), 413, 'too much')]:
        assert res.status_code == status and words in res.json['error'], (status, words, res.json)
    assert [*(tmp_path/'new'/'kept').iterdir()] == []
    assert send('cat', images[0], path='/some/where/correct').json == dict(text='Thank you: kept as cat.')
    assert send('dog', images[0]).json == dict(text='It has been kept already.')
    monkeypatch.setattr('catdog.deploy.predictor.MAX_KEPT', 1)
    res = send('cat', images[1])
    assert res.status_code == 503 and 'not kept: 1 images' in res.json['error']
    told = app.test_client().options('/correct', headers={'Origin': 'https://b.org'})   # pages of another site
    assert 'Access-Control-Allow-Origin' not in told.headers
    assert b'Images that you correct are kept' in app.test_client().get('/').data
    plain = create_app(classifier)
    page = plain.test_client().get('/').data
    assert b'<details>' not in page and b'never stored' in page and send('cat', images[0], app=plain).status_code == 404

def test_command_allows_origins(server):
    res = requests.get(f'{server[0]}/healthz', headers={'Origin': 'https://it-s.b.org'}, timeout=60)
    assert res.headers['Access-Control-Allow-Origin'] == 'https://it-s.b.org' and res.json()['status'] == 'ok'

def test_html_or_json_by_accept_header(server, images):
    for accept,kind in [(BROWSER, 'text/html'), ('application/json', 'application/json'), ('*/*', 'application/json'),
                        ('application/json, text/plain;q=0.5', 'application/json')]:
        for res in (post(server, images[0], accept=accept), post(server, b'no image', accept=accept),
                    requests.get(f'{server[0]}/nowhere', headers={'Accept': accept})):
            assert res.headers['Content-Type'].startswith(kind)

def test_security_headers(server):
    for path in ('/', '/static/page.js', '/nowhere', '/healthz'):
        headers = requests.get(server[0] + path).headers
        assert headers['X-Content-Type-Options'] == 'nosniff'
        policy = headers['Content-Security-Policy']
        assert "default-src 'none'" in policy and 'unsafe' not in policy and "frame-ancestors 'self'" in policy

_opened,_listening = [],[False]
def _audit(event, args):
    if _listening[0] and event == 'open' and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
        _opened.append(args[0])

def opened_for_writing(do):
    "Return the files that Python opens for writing while `do` runs"
    if not _opened and not _listening[0]: sys.addaudithook(_audit)
    _opened.clear(); _listening[0] = True
    try: do()
    finally: _listening[0] = False
    return list(_opened)

def test_nothing_is_written_to_disk(classifier, server, run_app):
    "Neither by Flask nor by waitress, whose defaults write large uploads to disk"
    data = noise(1500, 1000)
    assert len(data) > 4_000_000   # eight times what Werkzeug and waitress keep in memory
    app,plain = create_app(classifier),create_app(classifier)
    plain.request_class = flask.Request
    for o,written in ((app, False), (plain, True)):   # the second: we would notice
        url = run_app(o)
        assert bool(opened_for_writing(lambda: post([url], data))) == written
    before = set(server[1].iterdir())
    assert post(server, data).status_code == 200 and set(server[1].iterdir()) == before

# OpenAPI

def test_openapi_document(server, images):
    spec = requests.get(f'{server[0]}/openapi.json').json()
    assert set(spec['paths']) == {'/', '/predict', '/healthz', '/metrics', '/openapi.json'}
    assert spec['openapi'].startswith('3.')
    def resolved(o):
        "`o`, or the schemas that it refers to as one"
        if '$ref' in o: o = spec['components']['schemas'][o['$ref'].rpartition('/')[2]]
        parts = [resolved(k) for k in o.get('allOf', [])]
        return dict(type='object', required=[name for k in parts for name in k.get('required', [])],
                    properties={name: v for k in parts for name,v in k.get('properties', {}).items()}) if parts else o
    def schema(path, method):
        return spec['paths'][path][method]['responses']['200']['content']['application/json']['schema']
    def fits(value, schema):
        schema = resolved(schema)
        kind = {'string': str, 'boolean': bool, 'number': (int, float), 'object': dict, 'array': list}[schema['type']]
        assert isinstance(value, kind)
        if kind is list: [fits(o, schema['items']) for o in value]
        if kind is dict:
            assert set(schema.get('required', [])) <= set(value)
            known,other = schema.get('properties', {}),schema.get('additionalProperties')
            for k,v in value.items(): fits(v, known[k] if k in known else other)
    fits(post(server, images[0]).json(), schema('/predict', 'post'))
    fits(post(server, *images[:3], data=dict(image=1, why=1)).json(), schema('/predict', 'post'))
    assert post(server, images[0], data=dict(image=1, why=1)).text.count('data:image') == 2   # each is sent once
    fits(requests.get(f'{server[0]}/healthz').json(), schema('/healthz', 'get'))

def test_server_follows_its_openapi_document(server):
    "schemathesis makes requests from the OpenAPI document and checks the responses"
    # that bytes are an image is more than a schema can say: a refusal of what fits the schema is no fault
    left_out = [positive_data_acceptance]
    operations,seen = schemathesis.openapi.from_url(f'{server[0]}/openapi.json').get_all_operations(),set()
    for operation in operations:
        @hypothesis.settings(max_examples=15, deadline=None, database=None, derandomize=True,
                             suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(operation.ok().as_strategy())
        def ask(case):
            seen.add(case.path)
            case.call_and_validate(excluded_checks=left_out, timeout=60)
        ask()
    assert seen >= {'/', '/predict', '/healthz', '/metrics'}

# The command

def test_serving_needs_no_torch():
    code = 'import catdog.predict, catdog.serve, catdog.app, json, sys; print(json.dumps(sorted(sys.modules)))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    modules = json.loads(done.stdout)
    assert 'onnxruntime' in modules
    assert {'torch', 'fastai', 'torchvision', 'fastbook', 'pandas', 'matplotlib', 'nbdev'}.isdisjoint(modules)

@pytest.mark.parametrize('command', ['catdog-serve', 'catdog-app'])
def test_command_errors(command, tmp_path):
    (tmp_path/'model.onnx').write_bytes(b'no model')
    with socket.create_server(('127.0.0.1', 0)) as busy:
        taken = busy.getsockname()[1]
        cases = [(['--model', tmp_path], 'cannot open it'), (['--port', taken], 'give another --port'),
                 (['--host', 'nowhere.invalid'], 'give another --host')]
        if command == 'catdog-serve':   # the app starts in three seconds, and listens in the same way
            cases += [(['--model', tmp_path/'nothing'], 'no such model folder'), (['--port', 70000], 'give another --port'),
                      (['--host', '224.0.0.1'], 'give another --host'), (['--host', '127.0.0.1:80'], 'another --host'),
                      (['--cors', 'a.org'], 'a.org is not an origin')]
        for args,words in cases:
            res = subprocess.run([script(command), *map(str, args)], capture_output=True, text=True,
                                 env=environment(), timeout=120)
            assert res.returncode == 2 and res.stderr.count('\n') == 1 and words in res.stderr, res

@pytest.mark.parametrize('host', ['127.0.0.1', ' 127.1', '0.0.0.0', '0', '', '*', 'localhost', socket.gethostname(),
                                  '::1', '[::1]', '::', '0::0', '0:0:0:0:0:0:0:0'])
def test_printed_url_opens(host, run_app, classifier):
    try: socket.create_server(('::1', 0), family=socket.AF_INET6).close()
    except OSError:
        if ':' in host: pytest.skip('this machine has no IPv6')
        ipv6 = False
    else: ipv6 = host in ('', '*', '::', '0::0', '0:0:0:0:0:0:0:0')
    url = run_app(create_app(classifier), host)
    for name in [re.search('//(.+):', url)[1], *['127.0.0.1']*('::1' not in host), *['[::1]']*ipv6]:
        assert requests.get(f'http://{name}:{url.rsplit(":", 1)[1]}/healthz', timeout=60).json()['status'] == 'ok'
    assert not re.match(r'http://(0|\*|:|\[::\])', url)

SLOW = '''
import sys, time
from catdog.deploy.server import Server
from catdog.predict import Classifier
from catdog.serve import create_app
class Slow(Classifier):
    def answers(self, pixels):
        while not server.stopping: time.sleep(.02)
        time.sleep(.5)
        return super().answers(pixels)
server = Server(create_app(Slow(threads=1)))
print(server.url, flush=True)
server.run()
'''

@pytest.mark.skipif(os.name != 'posix', reason='sends signals')
@pytest.mark.parametrize('sent', [signal.SIGINT, signal.SIGTERM])
def test_signal_lets_running_requests_finish(sent, images):
    process = subprocess.Popen([sys.executable, '-c', SLOW], text=True, env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    url,stalled = process.stdout.readline().strip().rstrip('/'),[]
    try:
        stalled.append(connect([url], begun()))   # is not waited for
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(post, [url], images[i]) for i in range(2)]
            until(lambda: 'catdog_running_requests 3.0' in requests.get(f'{url}/metrics', timeout=60).text)   # with this one
            process.send_signal(sent)
            assert [o.result().status_code for o in asked] == [200, 200]
        out,err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, '')
        with pytest.raises(requests.ConnectionError): requests.get(url, timeout=5)
    finally:
        process.kill()
        for o in stalled: o.close()

# Concurrency

def test_concurrent_clients_get_their_own_answers(server, classifier, images):
    "48 clients with 16 images: every answer is about the client's own; a client that gets 503 retries"
    expected = [classifier.predict(o).probabilities for o in images]
    assert len({round(o['cat'], 6) for o in expected}) == 16   # so that a mix-up shows
    seen,sent = collections.Counter(),iter(range(400))
    def client(i):
        with requests.Session() as session:
            for n in sent:
                name = f'{i}-{n}.jpg'
                def ask(): return session.post(f'{server[0]}/predict', files={'file': (name, images[i%16])}, timeout=120)
                while (res := ask()).status_code == 503:
                    seen[503] += 1
                    time.sleep(float(res.headers['Retry-After']))
                assert res.status_code == 200, res.text
                assert res.json()['predictions'][0]['file'] == name
                assert res.json()['probabilities'] == pytest.approx(expected[i%16], abs=1e-4)
                seen[200] += 1
    with ThreadPoolExecutor(48) as pool: list(pool.map(client, range(48)))
    assert seen[200] == 400, seen

def test_full_queue_has_retry_after(images, run_app):
    "A network that hangs: requests up to the limit wait, the others are refused at once; then all works again"
    let_go = threading.Event()
    class Hanging(Classifier):
        def answers(self, pixels):
            let_go.wait(240)
            return super().answers(pixels)
    url = run_app(create_app(Hanging(shipped_model())))
    with ThreadPoolExecutor(MAX_WAITING + 8) as pool:
        try:
            asked = [pool.submit(post, [url], images[i%8]) for i in range(MAX_WAITING + 8)]
            first = [o.result() for _,o in zip(range(8), as_completed(asked, 120))]
            assert all(refused(o, 503, 'Too many') and int(o.headers['Retry-After']) >= 1 for o in first)
            assert requests.get(f'{url}/healthz', timeout=60).status_code == 200   # it is busy, not dead
            metrics = requests.get(f'{url}/metrics', timeout=60).text
            assert 'path="/predict",status="503"} 8.0' in metrics
            assert f'catdog_running_requests {MAX_WAITING + 1}.0' in metrics   # with this one
        finally: let_go.set()
        assert sorted(o.result().status_code for o in asked) == [200]*MAX_WAITING + [503]*8
    assert post([url], images[0]).status_code == 200

@functools.lru_cache
def process_of(url):
    "The process that listens at `url`"
    port = int(url.rsplit(':', 1)[1])
    return next(psutil.Process(o.pid) for o in psutil.net_connections('tcp')
                if o.pid and o.status == 'LISTEN' and o.laddr.port == port)

def memory(server): return process_of(server[0]).memory_info().rss/2**20   # megabytes

# Slow connections

LARGE = 16_000_000
HEAD = (b'POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n'
        b'Content-Length: %d\r\n\r\n')
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="cat.jpg"\r\n\r\n'

def begun(n=0, path=b'/predict'):
    "The beginning of a large upload, and `n` bytes of its image"
    return HEAD % (path, LARGE) + PART + bytes(n)

def connect(server, data, timeout=60):
    "A connection to `server` on which `data` has been sent"
    sock = socket.create_connection(('127.0.0.1', int(server[0].rsplit(':', 1)[1])), timeout=timeout)
    try: sock.sendall(data)
    except OSError: pass   # the server has had enough of it
    return sock

BEFORE = .8*deploy_server._IDLE_SECONDS   # when the server closes what stalls, and could answer others

STALLED = [begun(), begun(LARGE//40), begun()[:60], b'', begun(path=b'/nowhere')]   # also half the headers, and nothing

def test_the_next_visitor_is_served_while_others_stall(server, images):
    "100 of each kind: many more than there are threads"
    assert post(server, images[0]).status_code == 200   # the first answer of all takes longer
    before,stalled = memory(server),[]
    try:
        for _ in range(100): stalled += [connect(server, o) for o in STALLED]
        for wait in (0, .5, .5):
            time.sleep(wait)
            assert requests.get(f'{server[0]}/healthz', timeout=BEFORE).status_code == 200
            assert post(server, images[0], timeout=BEFORE).status_code == 200
        assert memory(server) < before + 200
    finally:
        for o in stalled: o.close()

def test_stalled_uploads_of_any_size_take_bounded_memory(server, images):
    "A gigabyte of them: the server holds little more than the allowed 256 MB, and serves steady clients meanwhile"
    assert post(server, images[0]).status_code == 200
    data = noise(600, 500)
    before,body = memory(server),PART + data + b'\r\n--x--\r\n'
    steady,stalled = connect(server, HEAD % (b'/predict', len(body))),[]
    try:
        for i in range(0, len(body), 60_000):
            steady.sendall(body[i:i+60_000])
            stalled += [connect(server, begun(LARGE - 1000)) for _ in range(4)]
        assert len(stalled) >= 60 and b'HTTP/1.1 200 OK' in steady.recv(1000)
        assert post(server, images[0], timeout=BEFORE).status_code == 200
        assert memory(server) < before + 350
    finally:
        for o in [steady, *stalled]: o.close()

def test_silent_connections_are_closed(classifier, images, run_app, monkeypatch):
    monkeypatch.setattr(deploy_server, '_IDLE_SECONDS', 1)
    here = [run_app(create_app(classifier))]
    socks = [connect(here, o) for o in STALLED]
    for o in socks:
        try: assert o.recv(1000) == b''
        except ConnectionResetError: pass
    assert post(here, images[0]).status_code == 200

def test_large_images_are_opened_a_few_at_a_time(server):
    "Each is a small file of 150 MB once decoded"
    data,cores = saved(Image.new('RGB', (7000, 7100)), 'PNG', compress_level=1),min(8, os.cpu_count())
    assert len(data) < 1_000_000
    before,peak,done = memory(server),[0],threading.Event()
    def look():
        while not done.wait(.02): peak[0] = max(peak[0], memory(server))
    looking = threading.Thread(target=look)
    looking.start()
    try:
        with ThreadPoolExecutor(4*cores) as pool: asked = list(pool.map(lambda _: post(server, data), range(4*cores)))
    finally:
        done.set()
        looking.join()
    assert {o.status_code for o in asked} == {200}
    assert peak[0] < before + 400*cores

# Hostile uploads

def hostile():
    "A strategy of (content type, body)"
    bombs = [saved(Image.new('1', (20_000, 20_000)), 'PNG'), saved(Image.new('L', (7000, 7100)), 'GIF'),
             saved(Image.new('RGB', (12_000, 5000)), 'JPEG', quality=1)]
    def changed(args):
        data,places = bytearray(args[0]),args[1]
        for place,value in places: data[int(place*(len(data) - 1))] = value
        return bytes(data)
    images = [saved(draw('cat', 5, (60, 50)), format) for format in IMAGE_FORMATS]
    place = st.tuples(st.floats(0, 1), st.integers(0, 255))
    files = st.one_of(st.binary(max_size=300), st.sampled_from(bombs + [bombs[0]]*9),
        st.tuples(st.sampled_from(images), st.floats(0, 1)).map(lambda o: o[0][:int(len(o[0])*o[1])]),
        st.tuples(st.sampled_from(images), st.lists(place, min_size=1, max_size=30)).map(changed),
        st.tuples(st.sampled_from([b'GIF89a', b'%PDF-1.4', b'PK\3\4', b'<script>', b'\xff\xd8\xff', b'BM', b'II*\0']),
                  st.sampled_from(images)).map(b''.join),
        st.tuples(st.sampled_from(images), st.sampled_from([b'PK\3\4', b'<?php ?>', bytes(100_000)])).map(b''.join))
    name = st.one_of(st.text(max_size=40), st.sampled_from(['../../etc/passwd', '\0.jpg', 'a'*5000, '"; name="x']))
    def field(name, file, data):
        head = f'Content-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'
        return b'--x\r\n' + head.encode('utf8', 'replace') + data + b'\r\n'
    def body(args): return b''.join(field('file', name, data) for name,data in args) + b'--x--\r\n'
    multipart = st.lists(st.tuples(name, files), min_size=1, max_size=4).map(body)
    broken = st.tuples(multipart, st.floats(0, 1)).map(lambda o: o[0][:int(len(o[0])*o[1])])
    fields = st.integers(60, 5000).map(lambda n: b''.join(field(f'f{i}', '', b'1') for i in range(n)) + b'--x--\r\n')
    kind = st.sampled_from(['multipart/form-data; boundary=x']*6 + [
        'multipart/form-data', 'multipart/form-data; boundary=', 'multipart/form-data; boundary=' + 'y'*300,
        'multipart/form-data; boundary="x', 'application/json', 'image/jpeg', 'application/x-www-form-urlencoded', ''])
    return st.tuples(kind, st.one_of(multipart, multipart, broken, fields, st.binary(max_size=2000)))

@pytest.mark.parametrize('n', [150, pytest.param(1000, marks=pytest.mark.nightly)])
def test_hostile_uploads(server, images, n):
    "Each is refused with a reason, memory stays bounded, and the next good request is answered"
    assert post(server, images[0]).status_code == 200
    statuses = collections.Counter()
    # the same ones each time, but other ones every night
    @hypothesis.settings(max_examples=n, deadline=None, database=None, derandomize=n < 1000,
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(hostile())
    def attack(upload):
        res = requests.post(f'{server[0]}/predict', data=upload[1], headers={'Content-Type': upload[0]}, timeout=60)
        statuses[res.status_code] += 1
        assert res.status_code in (200, 400, 413, 415) and 'Traceback' not in res.text, res.text
        assert res.headers['Content-Type'] == 'application/json', res.text
        assert res.status_code == 200 or res.json()['error']
    attack()
    for _ in range(2):   # 100 MB; the server may close the line before it has read it all
        try: assert post(server, bytes(100*2**20)).status_code == 413
        except requests.ConnectionError: pass
    assert sum(statuses.values()) >= n and set(statuses) >= {400, 413, 415}, statuses
    assert memory(server) < 700   # each of the two threads for large images may keep 200 MB
    assert post(server, images[0]).status_code == 200
