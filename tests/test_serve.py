"The page and the JSON API: every format, every limit, several visitors at once, slow lines, nothing on disk"
import collections, functools, io, json, os, re, shlex, signal, socket, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor, as_completed
from html import escape
from pathlib import Path

import flask, hypothesis, numpy as np, psutil, pytest, requests, schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance
from werkzeug.serving import make_server

from catdog.sample.draw import draw
from catdog.core.images import FORMATS, jpeg_bytes
from catdog.predict import Classifier, shipped_model
from catdog.serve import MAX_BODY, MAX_FIELDS, MAX_FILES, MAX_WAITING, create_app

ROOT = Path(__file__).parent.parent
BROWSER = 'text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8'

def script(name): return str(Path(sys.executable).with_name(name))
def environment(**kw): return {**os.environ, 'CATDOG_MODEL': str(shipped_model()), **kw}
def saved(img, format='JPEG', **kw):
    f = io.BytesIO()
    img.save(f, format, **kw)
    return f.getvalue()

@pytest.fixture(scope='module')
def classifier(): return Classifier(shipped_model())

@pytest.fixture(scope='module')
def images(): return [jpeg_bytes(draw(['cat', 'dog'][i%2], i, (240, 200))) for i in range(8)]

@pytest.fixture(scope='module')
def server(tmp_path_factory):
    "(url, its folder for temporary files) of a `catdog-serve` that runs in its own process"
    temporary = tmp_path_factory.mktemp('tmp')
    process = subprocess.Popen([script('catdog-serve'), '--port', '0'], stdout=subprocess.PIPE, text=True,
                               env=environment(TMPDIR=str(temporary)))
    yield process.stdout.readline().split()[0].rstrip('/'), temporary
    process.terminate()
    assert process.wait(20) == 0

@pytest.fixture
def client(classifier): return create_app(classifier).test_client()

def post(server, *files, accept='*/*', **kw):
    files = [('file', o if isinstance(o, tuple) else ('image', o)) for o in files]
    return requests.post(f'{server[0]}/predict', files=files, headers={'Accept': accept}, timeout=60, **kw)

def refused(res, status, words):
    assert (res.status_code, res.headers['Content-Type']) == (status, 'application/json')
    assert words in res.json()['error'] and 'Traceback' not in res.text
    return True

@pytest.mark.parametrize('format', FORMATS)
def test_formats(server, classifier, format):
    data = saved(draw('cat', 5, (200, 150)), format)
    res,expected = post(server, data).json(),classifier.predict(data)
    assert res['label'] == expected.label and res['text'] == str(expected) and res['doubt'] == expected.doubt
    assert res['probabilities'] == pytest.approx(expected.probabilities, abs=1e-5)

def test_several_images(server, classifier, images):
    res = post(server, ('a.jpg', images[0]), ('notes.txt', b'buy cat food'), ('b.jpg', images[1]))
    seen = res.json()['predictions']
    assert res.status_code == 200 and [o['file'] for o in seen] == ['a.jpg', 'notes.txt', 'b.jpg']
    assert seen[1] == {'file': 'notes.txt', 'error': 'notes.txt: a text file, not an image'}
    for o,data in [(seen[0], images[0]), (seen[2], images[1])]:
        assert o['probability'] == pytest.approx(classifier.predict(data).probability, abs=1e-5)

@pytest.mark.parametrize('data,status,words', [
    *[(b'\0\0\0\x18ftyp' + o + bytes(100), 415, 'HEIC photograph') for o in
      (b'heic', b'heix', b'hevc', b'hevx', b'heim', b'heis', b'hevm', b'hevs', b'mif1', b'msf1')],
    (b'', 400, 'empty'), (b'buy cat food', 415, 'a text file'), (b'<!doctype html><p>404', 415, 'a web page'),
    (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415, 'SVG'), (bytes(range(256))*40, 415, 'no image'),
    (b'%PDF-1.7 ...', 415, 'PDF')])
def test_not_images(server, data, status, words): refused(post(server, ('cat.jpg', data)), status, words)

def test_damaged_images(server, images):
    refused(post(server, images[0][:2000]), 400, 'damaged')
    refused(post(server, saved(draw('cat', 1, (200, 200)), 'PNG')[:500]), 400, 'damaged')

def test_bomb(server):
    bomb = saved(Image.new('L', (9000, 9000)), 'PNG', compress_level=9)
    assert len(bomb) < 200_000
    refused(post(server, bomb), 413, '9000 x 9000')

def test_no_file(server, images):
    url = f'{server[0]}/predict'
    refused(requests.post(url, files={'other': images[0]}), 400, "no file in the field 'file'")
    refused(requests.post(url, files={'file': (None, 'a text')}), 400, 'no file')
    refused(requests.post(url, files={'file': ('', b'')}), 400, 'no file')
    refused(requests.post(url), 415, 'multipart/form-data')
    refused(requests.post(url, json={'file': 'cat.jpg'}), 415, 'multipart/form-data')
    refused(requests.post(url, data=images[0], headers={'Content-Type': 'image/jpeg'}), 415, 'multipart/form-data')
    def send(body, kind): return requests.post(url, data=body, headers={'Content-Type': kind})
    refused(send(b'--x\r\nnonsense', 'multipart/form-data'), 400, 'no file')
    refused(send(b'--y\r\n\r\n--y--', 'multipart/form-data; boundary=x'), 400, 'no file')

def test_limits(server, images):
    url = f'{server[0]}/predict'
    refused(post(server, *[images[0]]*(MAX_FILES + 1)), 413, f'at most {MAX_FILES}')
    assert len(post(server, *[images[0]]*MAX_FILES).json()['predictions']) == MAX_FILES
    refused(requests.post(url, files=[(f'f{i}', b'1') for i in range(MAX_FIELDS + 1)]), 413, 'too much')
    refused(post(server, bytes(MAX_BODY)), 413, 'too much')
    refused(requests.post(url, data={'text': 'x'*1_000_000}, files={'file': images[0]}), 413, 'too much')

def test_a_body_of_unknown_length_is_limited_too(server, images):
    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="cat.jpg"\r\n\r\n'
        for _ in range(40): yield bytes(2**20)
    headers = {'Content-Type': 'multipart/form-data; boundary=x'}
    try: status = requests.post(f'{server[0]}/predict', data=endless(), headers=headers).status_code
    except requests.ConnectionError: status = 413   # the server need not listen to the end
    assert status == 413
    assert post(server, images[0]).status_code == 200

def test_other_addresses(server):
    refused(requests.get(f'{server[0]}/predict'), 405, 'does not answer')
    refused(requests.get(f'{server[0]}/static/../serve.py'), 404, 'no such page')
    assert requests.get(f'{server[0]}/healthz').json()['status'] == 'ok'

@pytest.mark.parametrize('path', ['/', '/healthz', '/static/page.css'])
def test_head(server, path):
    "As monitors ask"
    res = requests.head(server[0] + path)
    assert res.status_code == 200 and res.content == b'' and int(res.headers['Content-Length']) > 100

# Pages of other sites

@pytest.fixture
def sharing(classifier):
    "What headers the answers to a page of `origin` have, of an app that shares with `cors`"
    def ask(cors, origin, path='/predict', method='POST', **headers):
        client = create_app(classifier, cors=cors).test_client()
        data = {'file': (io.BytesIO(jpeg_bytes(draw('cat', 1, (90, 80)))), 'cat.jpg')} if method == 'POST' else None
        return client.open(path, method=method, data=data, headers={'Origin': origin, **headers})
    return ask

def test_who_may_read_the_answers(sharing):
    name,page = 'Access-Control-Allow-Origin','https://example.org'
    for cors,value in [(page, page), (f'https://b.org, {page}/', page), ('*', '*'), ('https://b.org', None),
                       (None, None)]:
        for path,method in [('/predict', 'POST'), ('/predict', 'GET'), ('/healthz', 'GET'), ('/openapi.json', 'GET')]:
            res = sharing(cors, page, path, method)
            assert res.headers.get(name) == value and ('Origin' in res.vary), (cors, path)
    assert 'Accept' in sharing('*', page).vary and sharing('*', page).status_code == 200
    asked = {'Access-Control-Request-Method': 'POST', 'Access-Control-Request-Headers': 'x-mine'}
    told = sharing(page, page, method='OPTIONS', **asked)
    assert told.status_code == 200 and told.headers[name] == page
    assert told.headers['Access-Control-Allow-Headers'] == '*'
    for path in ('/metrics', '/'): assert name not in sharing('*', page, path, 'GET').headers

def test_the_command_shares_too():
    process = subprocess.Popen([script('catdog-serve'), '--port', '0', '--cors', 'https://a.org,https://it-s.b.org'],
                               stdout=subprocess.PIPE, text=True, env=environment())
    try:
        url = process.stdout.readline().split()[0]
        res = requests.get(f'{url}healthz', headers={'Origin': 'https://it-s.b.org'}, timeout=60)
        assert res.headers['Access-Control-Allow-Origin'] == 'https://it-s.b.org'
    finally:
        process.terminate()
        process.wait(30)
    wrong = subprocess.run([script('catdog-serve'), '--cors', 'a.org'], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2 and wrong.stderr.count('\n') == 1 and 'a.org is no origin' in wrong.stderr

def test_everyone_reads_about_their_own_image(server, classifier, images):
    expected = [classifier.predict(o) for o in images]
    assert len({round(o.probability, 6) for o in expected}) == 8   # so that a mix-up shows
    def visit(i):
        res = post(server, (f'{i}.jpg', images[i%8])).json()
        return res['predictions'][0]['file'],res['probabilities']
    with ThreadPoolExecutor(8) as pool: answers = list(pool.map(visit, range(96)))
    for i,(name,probabilities) in enumerate(answers):
        assert name == f'{i}.jpg' and probabilities == pytest.approx(expected[i%8].probabilities, abs=1e-5)

_opened,_listening = [],[False]
def _audit(event, args):
    if _listening[0] and event == 'open' and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
        _opened.append(args[0])

def opened_for_writing(do):
    "What Python opens for writing while `do` runs"
    if not _opened and not _listening[0]: sys.addaudithook(_audit)
    _opened.clear(); _listening[0] = True
    try: do()
    finally: _listening[0] = False
    return list(_opened)

def test_nothing_is_written_to_disk(classifier, server):
    noise = saved(Image.fromarray(np.random.default_rng(1).integers(0, 255, (1000, 1500, 3), 'uint8')), 'PNG')
    assert len(noise) > 4_000_000   # eight times what Werkzeug keeps in memory
    app,plain = create_app(classifier),create_app(classifier)
    plain.request_class = flask.Request
    def send(app):
        head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="n.png"\r\n\r\n'
        body = head + noise + b'\r\n--x--\r\n'
        return lambda: app.test_client().post('/predict', data=body, content_type='multipart/form-data; boundary=x')
    assert opened_for_writing(send(app)) == []
    assert opened_for_writing(send(plain)) != []   # that is, we would notice
    before = set(server[1].iterdir())
    assert post(server, noise).status_code == 200 and set(server[1].iterdir()) == before

def test_people_get_the_page(server, classifier, images):
    res = post(server, ('<img src=x onerror=alert(1)>.jpg', images[0]), accept=BROWSER)
    assert res.headers['Content-Type'].startswith('text/html') and res.headers['Cache-Control'] == 'no-store'
    assert escape(str(classifier.predict(images[0]))) in res.text and 'src="data:image/jpeg;base64,' in res.text
    assert '<img src=x' not in res.text
    wrong = post(server, ('cat.jpg', b'buy cat food'), accept=BROWSER)
    assert wrong.status_code == 415 and 'cat.jpg: a text file, not an image' in wrong.text and '<form' in wrong.text
    none = post(server, ('', b''), accept=BROWSER)
    assert none.status_code == 400 and 'Choose an image first.' in none.text
    nowhere = requests.get(f'{server[0]}/nowhere', headers={'Accept': BROWSER})
    assert nowhere.headers['Content-Type'].startswith('text/html')

def test_programs_get_json(server, images):
    for accept in ('application/json', '*/*', 'application/json, text/plain;q=0.5'):
        assert post(server, images[0], accept=accept).headers['Content-Type'] == 'application/json'

def test_the_page_is_closed_to_others(server):
    for path in ('/', '/static/page.js', '/nowhere', '/healthz'):
        headers = requests.get(server[0] + path).headers
        assert headers['X-Content-Type-Options'] == 'nosniff'
        policy = headers['Content-Security-Policy']
        assert "default-src 'none'" in policy and 'unsafe' not in policy and "frame-ancestors 'self'" in policy
    html = requests.get(server[0], headers={'Accept': BROWSER}).text
    assert not re.findall(r'(?:src|href|action)="(?:https?:)?//', html)
    assert not re.search(r'\sstyle=|\son\w+=|<script>|<style', html)

def test_the_description_is_right(server, images):
    spec = requests.get(f'{server[0]}/openapi.json').json()
    assert set(spec['paths']) == {'/', '/predict', '/healthz', '/metrics', '/openapi.json'}
    assert spec['openapi'].startswith('3.')
    def schema(path, method):
        return spec['paths'][path][method]['responses']['200']['content']['application/json']['schema']
    answer = schema('/predict', 'post')
    def fits(value, schema):
        kind = {'string': str, 'boolean': bool, 'number': (int, float), 'object': dict, 'array': list}[schema['type']]
        assert isinstance(value, kind)
        if kind is list: [fits(o, schema['items']) for o in value]
        if kind is dict:
            assert set(schema.get('required', [])) <= set(value)
            known,other = schema.get('properties', {}),schema.get('additionalProperties')
            for k,v in value.items(): fits(v, known[k] if k in known else other)
    fits(post(server, images[0]).json(), answer)
    fits(post(server, *images).json(), answer)
    fits(requests.get(f'{server[0]}/healthz').json(), schema('/healthz', 'get'))

def test_serving_needs_no_torch():
    code = 'import catdog.predict, catdog.serve, catdog.app, json, sys; print(json.dumps(sorted(sys.modules)))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    modules = json.loads(done.stdout)
    assert 'onnxruntime' in modules
    assert {'torch', 'fastai', 'torchvision', 'fastbook', 'pandas', 'matplotlib', 'nbdev'}.isdisjoint(modules)

@pytest.mark.parametrize('command', ['catdog-serve', 'catdog-app'])
def test_commands_say_what_is_wrong(command, tmp_path):
    (tmp_path/'model.onnx').write_bytes(b'no model')
    with socket.create_server(('127.0.0.1', 0)) as busy:
        taken = busy.getsockname()[1]
        for args,words in [(['--model', tmp_path/'nothing'], 'no such model folder'),
                           (['--model', tmp_path], 'cannot open it'),
                           (['--port', taken], 'give another --port'), (['--port', 70000], 'give another --port')]:
            res = subprocess.run([script(command), *map(str, args)], capture_output=True, text=True,
                                 env=environment(), timeout=60)
            assert res.returncode == 2 and res.stderr.count('\n') == 1 and words in res.stderr, res

def test_the_procfile_serves_the_api(images):
    "The line of the `Procfile`, as a host runs it: with $PORT"
    with socket.create_server(('127.0.0.1', 0)) as sock: port = sock.getsockname()[1]
    line = next(o for o in (ROOT/'Procfile').read_text().splitlines() if o.startswith('api:'))[4:].strip()
    args = shlex.split(line.replace('$PORT', str(port)).replace('0.0.0.0', '127.0.0.1'))
    process = subprocess.Popen([script(args[0]), *args[1:]], stdout=subprocess.PIPE, text=True,
                               env=environment(), cwd=ROOT)
    try:
        assert f':{port}/ is open' in process.stdout.readline()
        res = requests.post(f'http://127.0.0.1:{port}/predict', files={'file': images[0]}, timeout=60)
        assert res.status_code == 200 and res.json()['label'] in ('cat', 'dog')
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=40)

# Many at once

def test_64_clients_with_64_images(server, classifier):
    "2,000 requests: every answer is about its own image; whoever is told to come back comes back"
    data = [jpeg_bytes(draw(['cat', 'dog'][i%2], i, (120, 100))) for i in range(64)]
    expected = [classifier.predict(o).probabilities for o in data]
    assert len({round(o['cat'], 6) for o in expected}) > 56   # so that a mix-up shows
    seen,sent = collections.Counter(),iter(range(2000))
    def client(i):
        with requests.Session() as session:
            for n in sent:
                name = f'{i}-{n}.jpg'
                def ask(): return session.post(f'{server[0]}/predict', files={'file': (name, data[i])}, timeout=120)
                while (res := ask()).status_code == 503:
                    seen[503] += 1
                    time.sleep(float(res.headers['Retry-After']))
                assert res.status_code == 200, res.text
                assert res.json()['predictions'][0]['file'] == name
                assert res.json()['probabilities'] == pytest.approx(expected[i], abs=1e-4)
                seen[200] += 1
    with ThreadPoolExecutor(64) as pool: list(pool.map(client, range(64)))
    assert seen[200] == 2000, seen

def test_a_full_queue_says_when_to_come_back(images):
    "A network that hangs: as many as may wait do so, the others are told at once; then all is well again"
    let_go = threading.Event()
    class Hanging(Classifier):
        def answers(self, pixels):
            let_go.wait(60)
            return super().answers(pixels)
    app = create_app(Hanging(shipped_model()))
    here = make_server('127.0.0.1', 0, app, threaded=True)
    threading.Thread(target=here.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{here.port}'
    with ThreadPoolExecutor(MAX_WAITING + 8) as pool:
        try:
            asked = [pool.submit(post, [url], images[i%8]) for i in range(MAX_WAITING + 8)]
            first = [o.result() for _,o in zip(range(8), as_completed(asked, 50))]
            assert all(refused(o, 503, 'Too many') and int(o.headers['Retry-After']) >= 1 for o in first)
            assert requests.get(f'{url}/healthz', timeout=20).status_code == 200   # it is busy, not dead
            assert 'path="/predict",status="503"} 8.0' in requests.get(f'{url}/metrics', timeout=20).text
        finally: let_go.set()
        assert sorted(o.result().status_code for o in asked) == [200]*MAX_WAITING + [503]*8
    assert post([url], images[0]).status_code == 200
    here.shutdown()

@functools.lru_cache
def master(url):
    "The process that was started for the server at `url`"
    port = int(url.rsplit(':', 1)[1])
    process = next(psutil.Process(o.pid) for o in psutil.net_connections('tcp')
                   if o.pid and o.status == 'LISTEN' and o.laddr.port == port)
    return process.parent() if 'gunicorn' in ' '.join(process.parent().cmdline()) else process

def processes(server):
    "The server and its workers"
    return [master(server[0]), *master(server[0]).children()]

def memory(server):
    "Megabytes of the server and its workers"
    return sum(o.memory_info().rss for o in processes(server))/2**20

# Slow lines

LARGE = 16_000_000
HEAD = (b'POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n'
        b'Content-Length: %d\r\n\r\n')
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="cat.jpg"\r\n\r\n'

def begun(n=0, path=b'/predict'):
    "The beginning of a large upload, and `n` bytes of its image"
    return HEAD % (path, LARGE) + PART + bytes(n)

def connect(server, data, timeout=20):
    "A connection to `server` on which `data` has been sent"
    sock = socket.create_connection(('127.0.0.1', int(server[0].rsplit(':', 1)[1])), timeout=timeout)
    try: sock.sendall(data)
    except OSError: pass   # the server has had enough of it
    return sock

def timed(do, *args, **kw):
    start = time.perf_counter()
    return do(*args, **kw),time.perf_counter() - start

STALLED = {'an upload that has begun': begun(), 'a part of an upload': begun(LARGE//40),
           'half the headers': begun()[:60], 'nothing': b'', 'an upload to nowhere': begun(path=b'/nowhere')}

@pytest.mark.parametrize('n', [100, 300])   # fewer and more than there are threads
@pytest.mark.parametrize('what', STALLED)
def test_the_next_visitor_is_served_while_others_stall(server, images, what, n):
    assert post(server, images[0]).status_code == 200   # the first answer of all takes longer
    workers,before = processes(server),memory(server)
    stalled = [connect(server, STALLED[what]) for _ in range(n)]
    try:
        for wait,most in [(0, 3), (.5, 1), (.5, 1)]:   # at first the server is busy with letting them in
            time.sleep(wait)
            health,seconds = timed(requests.get, f'{server[0]}/healthz', timeout=20)
            assert health.status_code == 200 and seconds < most
            res,seconds = timed(post, server, images[0])
            assert res.status_code == 200 and seconds < most
        assert memory(server) < before + 200
        assert processes(server) == workers
    finally:
        for o in stalled: o.close()

def test_stalled_uploads_of_any_size_take_bounded_memory(server, images):
    "A gigabyte of them: what the server holds stays below the 256 MB that it allows, and a bit"
    assert post(server, images[0]).status_code == 200
    before,body = memory(server),begun(LARGE - 1000)
    stalled = [connect(server, body) for _ in range(64)]
    try:
        time.sleep(1)
        res,seconds = timed(post, server, images[0])
        assert res.status_code == 200 and seconds < 1
        assert memory(server) < before + 350
    finally:
        for o in stalled: o.close()

def test_who_is_slow_but_steady_is_served_while_others_stall(server):
    image = saved(Image.fromarray(np.random.default_rng(1).integers(0, 255, (500, 600, 3), 'uint8')), 'PNG')
    body = PART + image + b'\r\n--x--\r\n'
    slow,stalled = connect(server, HEAD % (b'/predict', len(body))),[]
    for i in range(0, len(body), 90_000):
        slow.sendall(body[i:i+90_000])
        stalled += [connect(server, STALLED['an upload that has begun']) for _ in range(30)]
        time.sleep(.05)
    assert len(stalled) > 240 and b'HTTP/1.1 200 OK' in slow.recv(1000)
    for o in stalled: o.close()

HASTY = '''
from catdog.deploy import arrivals
arrivals.ARRIVALS.silence,arrivals.ARRIVALS.whole = 1,3
from catdog.serve import create_app
'''

def test_there_is_a_deadline(tmp_path, images):
    "Silence, a drop now and then, half the headers: all are ended, with a reason where one can be given"
    (tmp_path/'hasty.py').write_text(HASTY)
    with socket.create_server(('127.0.0.1', 0)) as sock: port = sock.getsockname()[1]
    process = subprocess.Popen([sys.executable, '-m', 'gunicorn', 'hasty:create_app()', '--bind', f'127.0.0.1:{port}',
                                '--worker-class', 'catdog.deploy.worker.Worker', '--threads', '20'],
                               cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        while 'Booting worker' not in (line := process.stderr.readline()): assert line
        here = [f'http://127.0.0.1:{port}']
        assert post(here, images[0]).status_code == 200
        silent,headers,dripping = (connect(here, STALLED[o]) for o in
                                   ('an upload that has begun', 'half the headers', 'an upload that has begun'))
        start,ended = time.monotonic(),{}
        while len(ended) < 3 and time.monotonic() < start + 15:
            time.sleep(.2)
            if dripping not in ended: dripping.sendall(bytes(70_000))
            for o in (silent, headers, dripping):
                o.setblocking(False)
                try: answer = o.recv(10_000)
                except BlockingIOError: continue
                finally: o.settimeout(5)
                ended.setdefault(o, (answer, time.monotonic() - start))
        due = {silent: (1, 2, 3), headers: (1, 2, 3), dripping: (3, 4, 5)}
        assert {o: round(ended[o][1]) in r for o,r in due.items()} == dict.fromkeys(due, True), ended.values()
        for o in (silent, dripping):
            assert b' 408 ' in ended[o][0].split(b'\r\n')[0] and b'too slow, or it stalled' in ended[o][0]
        assert ended[headers][0] == b''
        assert post(here, images[0]).status_code == 200
    finally:
        process.terminate()
        process.communicate(timeout=40)

def test_large_images_are_opened_a_few_at_a_time(server):
    "Each is 150 MB once it is open; of a small file"
    data,cores = saved(Image.new('RGB', (7000, 7100)), 'PNG', compress_level=1),min(8, os.cpu_count())
    assert len(data) < 1_000_000
    before,peak,done = memory(server),[0],threading.Event()
    def look():
        while not done.wait(.02): peak[0] = max(peak[0], memory(server))
    looking = threading.Thread(target=look)
    looking.start()
    try:
        with ThreadPoolExecutor(5*cores) as pool: asked = list(pool.map(lambda _: post(server, data), range(5*cores)))
    finally:
        done.set()
        looking.join()
    assert {o.status_code for o in asked} == {200}
    assert peak[0] < before + 400*cores

# Uploads that mean harm

def hostile(images):
    "A strategy of (content type, body)"
    bombs = [saved(Image.new('1', (20_000, 20_000)), 'PNG'), saved(Image.new('L', (7000, 7100)), 'GIF'),
             saved(Image.new('RGB', (12_000, 5000)), 'JPEG', quality=1)]
    def changed(args):
        data,places = bytearray(args[0]),args[1]
        for place,value in places: data[int(place*(len(data) - 1))] = value
        return bytes(data)
    images = [saved(draw('cat', 5, (60, 50)), format) for format in FORMATS]
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

def test_hostile_uploads(server, images):
    "1,000 of them: each is answered with a reason, memory stays, and the next good request is answered"
    assert post(server, images[0]).status_code == 200
    statuses,before = collections.Counter(),[]
    @hypothesis.settings(max_examples=1000, deadline=None, database=None,
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(hostile(images))
    def attack(upload):
        res = requests.post(f'{server[0]}/predict', data=upload[1], headers={'Content-Type': upload[0]}, timeout=60)
        statuses[res.status_code] += 1
        assert res.status_code in (200, 400, 413, 415) and 'Traceback' not in res.text, res.text
        assert res.headers['Content-Type'] == 'application/json', res.text
        assert res.status_code == 200 or res.json()['error']
        if sum(statuses.values()) == 100: before.append(memory(server))   # by then it has opened large images
    attack()
    for _ in range(2):   # 100 MB; the server may close the line before it has read it all
        try: assert post(server, bytes(100*2**20)).status_code == 413
        except requests.ConnectionError: pass
    assert sum(statuses.values()) >= 1000 and set(statuses) >= {200, 400, 413, 415}, statuses
    assert memory(server) < before[0] + 100
    assert post(server, images[0]).status_code == 200

def test_the_server_keeps_to_its_description(server):
    "schemathesis makes requests from the OpenAPI description and compares the answers with it"
    # that bytes are an image is more than a schema can say: a refusal of what fits the schema is no fault
    left_out = [positive_data_acceptance]
    operations,seen = schemathesis.openapi.from_url(f'{server[0]}/openapi.json').get_all_operations(),set()
    for operation in operations:
        @hypothesis.settings(max_examples=40, deadline=None, database=None,
                             suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(operation.ok().as_strategy())
        def ask(case):
            seen.add(case.path)
            case.call_and_validate(excluded_checks=left_out, timeout=60)
        ask()
    assert seen >= {'/', '/predict', '/healthz', '/metrics'}
