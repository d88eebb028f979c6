"Deployment: an environment from requirements-serve.txt alone, Procfile, Dockerfile, a Space, Binder"
import importlib.metadata, importlib.util, json, os, re, shlex, shutil, socket, subprocess, sys, time, zipfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urljoin, urlparse

import network_helpers, pytest, requests, yaml
from network_helpers import free_port, kernels, nginx, until

from catdog.predict import Classifier, shipped_model

ROOT = Path(__file__).parent.parent

def tracked():
    names = subprocess.check_output(['git', 'ls-files', '-z'], cwd=ROOT, text=True).split('\0')
    return [o for o in names if o and (ROOT/o).exists()]

def copied(names, folder):
    "The files `names` of the project, in `folder`"
    for name in names:
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/name, folder/name)
    return folder

@pytest.fixture(scope='session')
def fresh(tmp_path_factory):
    "An environment with only the requirements of requirements-serve.txt: its bin folder, and the project there"
    folder = tmp_path_factory.mktemp('fresh')
    project = copied(tracked(), folder/'project')
    subprocess.run([sys.executable, '-m', 'venv', folder/'venv'], check=True)
    install = [folder/'venv'/'bin'/'python', '-m', 'pip', 'install', '-q', '-r', 'requirements-serve.txt']
    res = subprocess.run(install, cwd=project, capture_output=True, text=True)
    if res.returncode: pytest.fail(f'pip cannot install requirements-serve.txt (this needs an index):\n{res.stderr}')
    return SimpleNamespace(folder=folder/'venv', bin=folder/'venv'/'bin', project=project)

@pytest.fixture(scope='module')
def cat():
    "A real photograph of a cat, which comes with fastbook"
    return Path(importlib.util.find_spec('fastbook').origin).parent/'images'/'cat.jpg'

def environment(fresh=None, **kw):
    "Environment variables of a new shell where the fresh environment, or this one, is activated"
    unset = ('PYTHON', 'VIRTUAL_ENV', 'CATDOG', 'JUPYTER') if fresh else ('CATDOG', 'JUPYTER')
    mine = {k: v for k,v in os.environ.items() if not k.startswith(unset)}
    return {**mine, 'PATH': f'{fresh.bin if fresh else Path(sys.executable).parent}{os.pathsep}{mine["PATH"]}',
            **{k: str(o) for k,o in kw.items()}}

@contextmanager
def starter(fresh=None):
    "Yield a function that starts command lines with `sh`; they end with the block"
    started = []
    def _start(line, folder, **kw):
        started.append(subprocess.Popen(['sh', '-c', f'exec {line}'], cwd=folder, env=environment(fresh, **kw),
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return started[-1]
    yield _start
    for o in started:
        o.terminate()
        o.wait(60)

@pytest.fixture
def start():
    with starter() as res: yield res

@pytest.fixture
def start_fresh(fresh):
    with starter(fresh) as res: yield res

def until_open(process, port):
    "Wait until `process` listens on `port`"
    while process.poll() is None:
        with socket.socket() as sock:
            if sock.connect_ex(('127.0.0.1', port)) == 0: return f'http://127.0.0.1:{port}/'
        time.sleep(.1)
    raise AssertionError('the server has ended')

def asked(url, cat):
    "Return the API's answer at `url` about the image `cat`"
    res = requests.post(f'{url}predict', files={'file': ('cat.jpg', cat.read_bytes())}, timeout=60)
    assert res.status_code == 200, res.text
    return res.json()

def used(page, cat):
    "Upload `cat` to the app on `page` and press Predict!; return the answer"
    page.get_by_role('button', name='Predict!').wait_for()
    with page.expect_file_chooser() as chooser: page.get_by_role('button', name='Choose images').click()
    chooser.value.set_files(cat)
    page.get_by_text('1 image chosen').wait_for()
    page.get_by_role('button', name='Predict!').click()
    page.locator('.catdog-label').wait_for()
    return page.locator('.catdog-label').inner_text()

def expected(cat):
    pred = Classifier(shipped_model()).predict(cat)
    assert pred.label == 'cat' and pred.sure
    return pred

# The environment

@pytest.mark.nightly
def test_serving_needs_little(fresh, capsys):
    code = """if 1:
        import catdog.app, catdog.serve, catdog.predict, importlib.metadata, importlib.util, json
        names = 'torch torchvision fastai fastbook pandas matplotlib sklearn scipy nbdev jupyterlab notebook'.split()
        print(json.dumps([[o for o in names if importlib.util.find_spec(o)], importlib.metadata.version('ipywidgets'),
                          catdog.app.__file__]))"""
    res = subprocess.run([fresh.bin/'python', '-c', code], capture_output=True, text=True, cwd=fresh.folder,
                         env=environment(fresh))
    assert res.returncode == 0, res.stderr
    heavy,widgets,file = json.loads(res.stdout)
    assert heavy == [] and Path(file).is_relative_to(fresh.folder)
    # FileUpload.value differs between these two: here is the one, and test_app.py runs with the other
    assert widgets.startswith('8.') and importlib.metadata.version('ipywidgets').startswith('7.8.')
    size = sum(o.lstat().st_blocks*512 for o in fresh.folder.rglob('*'))/1e6
    with capsys.disabled(): print(f'\nThe serving environment has {size:.0f} MB.')
    assert size < 700

@pytest.fixture(scope='module')
def procfile(): return dict(o.split(': ', 1) for o in (ROOT/'Procfile').read_text().splitlines())

@pytest.mark.nightly
def test_api_in_the_fresh_environment(fresh, start_fresh, procfile, cat):
    port = free_port()
    process = start_fresh(procfile['api'], fresh.project, PORT=port)
    answer = asked(until_open(process, port), cat)
    assert answer['label'] == 'cat' and answer['probability'] == pytest.approx(expected(cat).probability, abs=1e-4)

@pytest.mark.nightly
def test_app_in_the_fresh_environment(fresh, start_fresh, procfile, cat, page):
    port = free_port()
    process = start_fresh(procfile['web'], fresh.project, PORT=port)
    page.goto(until_open(process, port))
    assert used(page, cat) == str(expected(cat))

@pytest.mark.nightly
def test_lost_connection_is_reported_with_these_widgets(fresh, start_fresh, tmp_path, page):
    port = free_port()
    process = start_fresh(f'catdog-app --port {port}', tmp_path)
    page.goto(until_open(process, port))
    page.get_by_role('button', name='Predict!').wait_for()
    id = json.loads(page.locator('#jupyter-config-data').text_content())['kernelId']
    kernels(process)[id].kill()
    page.get_by_role('alert').filter(has_text='The connection to the app is lost.').wait_for()

# The app behind nginx

WEBSOCKETS = ('proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; '
              'proxy_set_header Connection $connection_upgrade; ')
HOST = 'proxy_set_header Host $http_host; '

@pytest.fixture(scope='module')
def app_port(tmp_path_factory):
    "A `catdog-app` that listens there"
    with starter() as start:
        until_open(start(f'catdog-app --port {(port := free_port())}', tmp_path_factory.mktemp('app')), port)
        yield port

def test_app_below_a_path_of_a_proxy(app_port, page, cat, tmp_path):
    "nginx allows 1 MB per HTTP request; the app's uploads use a WebSocket"
    (tmp_path/'nginx').mkdir()
    (tmp_path/'large.jpg').write_bytes(cat.read_bytes() + bytes(12*2**20))
    more = f'client_max_body_size 1m; {WEBSOCKETS}{HOST}'
    with proxied(tmp_path/'nginx', app_port, more=more) as host:
        asked_for = []
        page.on('response', lambda o: asked_for.append(o.url))
        page.goto(f'{host}/catdog/')
        assert used(page, tmp_path/'large.jpg').startswith('cat, ')
        own = [o for o in asked_for if o.startswith('http')]
        assert len(own) > 5 and all(o.startswith(f'{host}/catdog/') for o in own)
        page.wait_for_timeout(5000)   # the page knows where its kernel is
        assert page.get_by_role('alert').count() == 0
        page.goto('about:blank')      # and ends it
        until(lambda: requests.head(f'{host}/catdog/', timeout=60).status_code == 200)   # once the next kernel is there
        assert requests.head(f'{host}/catdog/wp-admin/', timeout=60).status_code == 404

@pytest.mark.parametrize('passed_on', [HOST, WEBSOCKETS])   # so WebSockets are refused; so is a changed Host
def test_app_reports_refused_websockets(passed_on, app_port, page, tmp_path):
    with proxied(tmp_path, app_port, path='/', more=passed_on) as host:
        page.goto(host)
        alert = page.get_by_role('alert').filter(has_text='its live connection to the app (a WebSocket) is refused')
        alert.wait_for()
        assert 'let the proxy before the app pass WebSockets on, and keep the Host header' in alert.inner_text()

def test_restored_connection_is_used_again(app_port, page, cat, tmp_path, monkeypatch):
    port = network_helpers.free_port()
    monkeypatch.setattr(network_helpers, 'free_port', lambda: port)   # the same each time
    all_of_it = WEBSOCKETS + HOST
    def shown(text): page.get_by_role('alert').filter(has_text=text).wait_for()
    def usable():
        page.get_by_role('alert').wait_for(state='hidden')
        page.get_by_role('button', name='Why?').click()
        page.get_by_text('what spoke for cat').wait_for()   # the app still has the image
        page.get_by_role('button', name='Show all').click()
        page.get_by_text('what spoke for cat').wait_for(state='hidden')
    with proxied(tmp_path, app_port, path='/', more=all_of_it) as host:
        page.goto(host)
        assert used(page, cat).startswith('cat, ')
        page.wait_for_timeout(5000)
    shown('The connection to the app is lost.')
    assert page.locator('.catdog').evaluate('o => o.inert')
    with proxied(tmp_path, app_port, path='/', more=all_of_it): usable()
    with proxied(tmp_path, app_port, path='/', more=HOST):   # HTTP answers, no WebSocket comes through
        shown('The connection to the app is interrupted.')
        assert page.evaluate('fetch("/", {method: "HEAD"}).then(o => o.status)') == 200
    with proxied(tmp_path, app_port, path='/', more=all_of_it):
        usable()
        assert not page.locator('.catdog').evaluate('o => o.inert')

# The page and the API behind nginx

def served(port):
    "A `catdog-serve` that listens on `port`"
    process = subprocess.Popen([Path(sys.executable).with_name('catdog-serve'), '--port', str(port)],
                               stdout=subprocess.DEVNULL, env={**os.environ, 'CATDOG_MODEL': str(shipped_model())})
    until_open(process, port)
    return process

@pytest.fixture(scope='module')
def api_port():
    process = served(port := free_port())
    yield port
    process.terminate()
    process.wait(60)

def proxied(folder, port, path='/catdog/', stripped=True, told=False, more=''):
    "nginx before the server at `port`, below `path`, which it strips if `stripped`, and sends as a header if `told`"
    header = f'proxy_set_header X-Forwarded-Prefix {path.rstrip("/")};'*told
    return nginx(folder, f'location {path} {{ proxy_pass http://127.0.0.1:{port}{"/"*stripped}; {header} {more} }}')

@pytest.mark.parametrize('path,told,stripped', [('/catdog/', False, True), ('/our/apps/', True, False)])
def test_page_and_api_below_a_path_of_a_proxy(stripped, told, path, api_port, page, cat, tmp_path):
    with proxied(tmp_path, api_port, path, stripped, told) as host:
        url,asked_for = host + path,[]
        page.on('response', lambda o: asked_for.append((o.status, o.url)))
        page.goto(url)
        radius = page.evaluate('getComputedStyle(document.querySelector("#predict")).borderRadius')
        assert radius == '12px'   # the style
        page.set_input_files('#file', cat)
        page.get_by_text('1 image chosen').wait_for()   # the script
        page.get_by_role('button', name='Predict!').click()
        page.get_by_role('heading', level=2).filter(has_text=re.compile('^cat, ')).wait_for()
        page.get_by_role('button', name='Why?').click()
        page.get_by_text('what spoke for cat').wait_for()
        page.get_by_role('link', name='the same as JSON').click()
        wrong = [o for o in asked_for if o[0] != 200 or not o[1].startswith((url, 'blob:', 'data:'))]
        assert len(asked_for) > 5 and not wrong
        # programs
        assert asked(url, cat)['label'] == 'cat'
        assert requests.get(f'{url}healthz', timeout=60).json()['status'] == 'ok'
        spec = requests.get(f'{url}openapi.json', timeout=60)
        assert urljoin(urljoin(spec.url, spec.json()['servers'][0]['url']), 'predict') == f'{url}predict'
        assert requests.get(f'{url}nowhere', timeout=60).status_code == 404

def test_page_below_a_path_without_script_and_missing_pages(api_port, browser, cat, tmp_path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    with proxied(tmp_path, api_port, stripped=False) as host:
        for address in ('/catdog/', '/catdog/nowhere/at/all'):
            page.goto(host + address)
            page.set_input_files('#file', cat)
            page.get_by_role('button', name='Predict!').click()
            page.get_by_role('heading', level=2).filter(has_text=re.compile('^cat, ')).wait_for()
            assert page.locator('#predict').evaluate('o => getComputedStyle(o).borderRadius') == '12px'
    context.close()

def test_metrics_blocked_by_a_proxy_cannot_be_reached(api_port, tmp_path):
    closed = f'location = /metrics {{ return 403; }} location / {{ proxy_pass http://127.0.0.1:{api_port}; }}'
    with nginx(tmp_path, closed) as host:
        for path,status in [('/metrics', 403), ('/any/metrics', 404), ('//metrics', 403), ('/healthz', 200)]:
            res = requests.get(host + path, headers={'X-Forwarded-Prefix': '/any'}, timeout=60)
            assert res.status_code == status and 'catdog_requests' not in res.text, path

@pytest.mark.parametrize('megabytes', [2, 12])
def test_image_too_large_for_the_proxy(megabytes, api_port, page, cat, tmp_path):
    "By default nginx allows 1 MB, and answers itself"
    (tmp_path/'large.jpg').write_bytes(cat.read_bytes() + bytes(megabytes*2**20))
    (tmp_path/'nginx').mkdir()
    with proxied(tmp_path/'nginx', api_port) as host:
        page.goto(f'{host}/catdog/')
        page.set_input_files('#file', tmp_path/'large.jpg')
        page.get_by_role('button', name='Predict!').click()
        page.locator('article').filter(has_text='large.jpg: too large for the server').wait_for()
        page.set_input_files('#file', cat)   # and it goes on
        page.get_by_role('button', name='Predict!').click()
        page.get_by_role('heading', level=2).filter(has_text=re.compile('^cat, ')).wait_for()

def test_proxy_error_when_the_server_is_down(page, cat, tmp_path):
    process = served(port := free_port())
    with proxied(tmp_path, port) as host:
        page.goto(f'{host}/catdog/')
        process.terminate()
        process.wait(60)
        page.set_input_files('#file', cat)
        page.get_by_role('button', name='Predict!').click()
        page.get_by_role('status').filter(has_text='The server did not answer (502 Bad Gateway)').wait_for()

def test_curl_commands_of_the_readme_and_the_chapter(api_port, cat, tmp_path):
    cells = json.loads((ROOT/'nbs'/'06_serve.ipynb').read_text())['cells']
    chapter = '\n'.join(''.join(o['source']) for o in cells if o['cell_type'] == 'markdown')
    readme = (ROOT/'README.md').read_text()
    lines = {o for text in (readme, chapter) for o in re.findall(r'^    (curl .+)$', text, re.M)}
    assert lines
    shutil.copy(cat, tmp_path/'cat.jpg')
    for line in lines:
        assert '127.0.0.1:8000' in line
        out = subprocess.run(['sh', '-c', line.replace(':8000', f':{api_port}')], cwd=tmp_path, capture_output=True,
                             timeout=60)
        answer = json.loads(out.stdout)
        assert answer['label'] == 'cat'

# The Dockerfile, without Docker

def instructions():
    "Return the (instruction, rest) pairs of the Dockerfile"
    text = re.sub(r'^#.*\n', '', (ROOT/'Dockerfile').read_text(), flags=re.M).replace('\\\n', ' ')
    return [o.split(maxsplit=1) for o in text.splitlines() if o.strip()]

def stages():
    "Return stage -> its settings in the Dockerfile: env, user, cmd, health, expose, copied"
    res = {}
    for word,rest in instructions():
        if word == 'FROM':
            image,_,name = rest.partition(' AS ')
            stage = res[name] = {'env': {}, 'copied': [], **{k: v.copy() if hasattr(v, 'copy') else v
                                                             for k,v in res.get(image, {}).items()}}
        if word == 'COPY':
            *sources,target = rest.split()
            stage['copied'] += [(o, target) for o in sources]
        if word == 'ENV': stage['env'].update(o.split('=', 1) for o in shlex.split(rest))
        if word in ('USER', 'EXPOSE'): stage[word.lower()] = rest
        if word == 'CMD': stage['cmd'] = json.loads(rest)
        if word == 'HEALTHCHECK': stage['health'] = json.loads(rest.split('CMD ')[1])
    return res

def ignored(name):
    "Whether .dockerignore excludes the file `name`: the last line that matches it or a folder above it decides"
    res = False
    for line in (ROOT/'.dockerignore').read_text().split():
        pattern = re.escape(line.lstrip('!')).replace(r'\*\*/', '(.*/)?').replace(r'\*', '[^/]*')
        if any(re.fullmatch(pattern, str(o)) for o in [Path(name), *Path(name).parents]): res = line[0] != '!'
    return res

@pytest.fixture(scope='session')
def image(tmp_path_factory):
    "The folder /app of the container image: the files that the Dockerfile copies, without ignored ones"
    folder = tmp_path_factory.mktemp('image')
    seen = [o for o in tracked() if not ignored(o)]
    for source,target in stages()['base']['copied']:
        names = [o for o in seen if o == source or o.startswith(f'{source}/')]
        assert names, f'the Dockerfile copies {source}, which is not there or hidden by .dockerignore'
        assert target.rstrip('/') in ('.', source, str(Path(source).parent))   # so that it keeps its place
        copied(names, folder)
    return folder

def test_dockerignore():
    assert not ignored('catdog/app.py') and not ignored('catdog/deploy/voila.py') and not ignored('nbs/07_app.ipynb')
    for name in ('nbs/00_start.ipynb', 'nbs/deploy/widgets.ipynb', 'data/animals/cat/1.jpg', '.git/config',
                 'catdog/__pycache__/a.pyc', 'catdog/core/__pycache__/a.pyc', '.venv/x'): assert ignored(name)

@pytest.mark.nightly
def test_container_has_what_pip_needs(fresh, image, tmp_path):
    line = next(rest for word,rest in instructions() if word == 'RUN' and 'pip' in rest)
    assert line == 'python -m pip install --no-cache-dir -r requirements-serve.txt'
    line = line.replace('install', f'wheel -q --no-deps -w {tmp_path}')
    subprocess.run(['sh', '-c', line], cwd=shutil.copytree(image, tmp_path/'app'), env=environment(fresh), check=True)
    names = zipfile.ZipFile(next(tmp_path.glob('catdog-*.whl'))).namelist()
    assert {'catdog/pretrained/model.onnx', 'catdog/static/app.js', 'catdog/templates/page.html',
            'catdog/core/images.py', 'catdog/deploy/server.py'} <= set(names)

@pytest.mark.nightly
@pytest.mark.parametrize('stage', ['app', 'api'])
def test_container_runs(stage, fresh, image, start_fresh, cat, page):
    it = stages()[stage]
    assert it['user'] not in ('root', '0') and it['expose'] == it['env']['PORT']
    port = free_port()
    env = {**it['env'], 'PORT': port}   # as a host sets it
    def healthy():
        return subprocess.run(it['health'], env=environment(fresh, **env), capture_output=True).returncode == 0
    assert not healthy()
    process = start_fresh(shlex.join(it['cmd']), image, **env)
    url = until_open(process, port)
    while not healthy(): assert process.poll() is None   # until the app has a kernel
    if stage == 'api': assert asked(url, cat)['label'] == 'cat'
    else:
        page.goto(url)
        assert used(page, cat).startswith('cat, ')
    process.terminate()
    process.wait(60)
    assert not healthy()

@pytest.mark.parametrize('stage', ['app', 'api'])
def test_health_check_requests_the_page(stage, request):
    "Without Docker; a kernel that cannot start makes it fail, too"
    def healthy(port, **kw):
        return subprocess.run(stages()[stage]['health'], env=environment(PORT=port, **kw), capture_output=True).returncode == 0
    assert not healthy(free_port())
    port = request.getfixturevalue(f'{stage}_port')
    until(lambda: healthy(port))   # until the app has a kernel

# A Hugging Face Space

def front_matter(text): return yaml.safe_load(re.match(r'---\n(.*?)\n---\n', text, re.S)[1])

def test_space_metadata(tmp_path):
    text = (ROOT/'space'/'README.md').read_text()
    told,last = front_matter(text),list(stages().values())[-1]
    colours = {'red', 'yellow', 'green', 'blue', 'indigo', 'purple', 'pink', 'gray'}
    assert told['sdk'] == 'docker' and told['title'] and len(told['emoji']) == 1 and told['license'] == 'apache-2.0'
    assert {told['colorFrom'], told['colorTo']} <= colours and len(told['short_description']) <= 60
    assert str(told['app_port']) == last['env']['PORT'] == last['expose']
    # the commands in the README make a folder that a Space can build
    *lines,upload = re.findall(r'^    (.+)$', text, re.M)
    assert upload.startswith('hf upload ') and ' ../my-space .' in upload
    clone = tmp_path/'clone'
    subprocess.run(['git', 'clone', '-q', ROOT, clone], check=True)
    copied(['space/README.md', 'Dockerfile'], clone)
    subprocess.run(['sh', '-ec', '\n'.join(lines)], cwd=clone, check=True)
    space = tmp_path/'my-space'
    assert front_matter((space/'README.md').read_text()) == told
    assert all((space/source).exists() for source,_ in last['copied']) and (space/'Dockerfile').exists()

@pytest.mark.parametrize('where', [{'SPACE_ID': 'somebody/catdog'}, {}])
def test_space_can_be_framed_by_its_page(where, image, start, cat, page):
    port = free_port()
    process = start(f'catdog-app --port {port}', image, **where)
    url = until_open(process, port)
    page.route('https://somebody-catdog.hf.space/**', lambda o: o.abort())   # the page alone is enough here
    page.route('https://somebody-catdog.hf.space/', lambda o: o.fulfill(response=o.fetch(url=url, timeout=120_000)))
    html = '<iframe src="https://somebody-catdog.hf.space/"></iframe>'
    page.route('https://huggingface.co/**', lambda o: o.fulfill(body=html, content_type='text/html'))
    page.goto('https://huggingface.co/spaces/somebody/catdog')
    assert (page.frames[1].title() == 'catdog') == bool(where)

# Binder

@pytest.fixture
def binder_url(tmp_path):
    "The URL in .binder/README.md on a Jupyter server started as Binder does it"
    env = {k: v for k,v in os.environ.items() if not k.startswith('CATDOG')}
    env = {**env, 'NB_PYTHON_PREFIX': str(tmp_path), 'JUPYTER_CONFIG_PATH': str(tmp_path/'etc'/'jupyter')}
    subprocess.run([ROOT/'.binder'/'postBuild'], cwd=ROOT, env=env, check=True)
    port,jupyter = free_port(),Path(sys.executable).with_name('jupyter')
    process = subprocess.Popen([jupyter, 'server', '--no-browser', '--allow-root', f'--port={port}',
        '--ServerApp.base_url=/user/somebody/', '--IdentityProvider.token=secret'], cwd=ROOT, env=env,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = re.search(r'https://mybinder\S+', (ROOT/'.binder'/'README.md').read_text())[0]
    path = parse_qs(urlparse(address).query)['urlpath'][0]
    yield f'{until_open(process, port)}user/somebody/{path}?token=secret'
    process.terminate()
    process.wait(60)

def test_binder_serves_the_app(binder_url, page, tmp_path, cat):
    page.goto(binder_url)
    large = tmp_path/'large.jpg'
    large.write_bytes(cat.read_bytes() + bytes(12*2**20))   # more than Jupyter lets through when it is told nothing
    assert used(page, large).startswith('cat, ')
    assert page.locator('.jp-Cell').count() == 2 and 'import' not in page.locator('body').inner_text()   # one is empty
    # the page finds its kernel below the path of that user
    page.wait_for_timeout(6000)
    assert page.get_by_role('alert').all_inner_texts() in ([], [''])

@pytest.mark.nightly
def test_binder_installs_the_serving_requirements(fresh, tmp_path):
    "repo2docker runs pip in the project's folder, with the requirements of the folder .binder"
    line = [fresh.bin/'python', '-m', 'pip', 'install', '-q', '--dry-run', '--force-reinstall', '--no-deps',
            '--report', tmp_path/'report.json', '-r', '.binder/requirements.txt']
    copied(['.binder/requirements.txt'], fresh.project)
    subprocess.run(line, cwd=fresh.project, env=environment(fresh), check=True)
    report = json.loads((tmp_path/'report.json').read_text())
    assert [o['metadata']['name'] for o in report['install']] == ['catdog']
    assert re.fullmatch(r'python-3\.1[0-9]', (ROOT/'.binder'/'runtime.txt').read_text().strip())
    assert os.access(ROOT/'.binder'/'postBuild', os.X_OK)
