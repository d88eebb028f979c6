"""From words to the app on other people's machines

As on Windows: open files cannot be deleted, there is no `fcntl`, output is in cp1252; elsewhere than on Windows
tests/windows/sitecustomize.py imitates that. And as any user: no home folder, and a folder that cannot be written to.
"""
import contextlib, csv, os, shutil, subprocess, sys, time
from pathlib import Path

import pytest, requests

from catdog.sample.draw import draw
from network_helpers import free_port

HERE = Path(__file__).parent
LABELS = {'кот': 'cat', 'пёс': 'dog'}
WALK = '''
from pathlib import Path
from catdog.scrape import scrape
from catdog.train import build
from catdog.review import apply_choices, undo_choices, write_report
from catdog.predict import predict_files
from catdog.deploy.page import build_site

scrape(['house', 'tree'], n=6, engine='sample')
build(['кот', 'пёс'], photos='mine', out='model', size=64)
write_report('mine', 'model', 'report.html')
file = sorted(Path('mine/кот').glob('*.png'))[0]
apply_choices('mine', {file: '<Delete>'})
assert not file.exists()
undo_choices('mine')
assert file.exists()
predict_files('mine', model='model', out='answers.csv')
predict_files('mine', model='model', out='answers.csv')   # over the old file
predict_files('mine', model='model')
build_site('model')
'''

@pytest.fixture(scope='module')
def env(tmp_path_factory):
    "The environment of a process on Windows, or that imitates one, with an empty home folder"
    clean = {k: v for k,v in os.environ.items() if not k.startswith(('CATDOG_', 'AZURE_'))}
    home = str(tmp_path_factory.mktemp('home'))
    clean |= dict(PYTHONIOENCODING='cp1252', PYTHONWARNINGS='ignore', HOME=home, USERPROFILE=home)
    if sys.platform != 'win32':
        clean['PYTHONPATH'] = os.pathsep.join([str(HERE/'windows'), os.environ.get('PYTHONPATH', '')]).strip(os.pathsep)
    return clean

@pytest.fixture(scope='module')
def walked(tmp_path_factory, env):
    "A folder in which the walk was done"
    folder = tmp_path_factory.mktemp('walk')
    for label,word in LABELS.items():
        (folder/'mine'/label).mkdir(parents=True)
        for i in range(20): draw(word, i, (96, 96)).save(folder/'mine'/label/f'{label} {i:02}.png')
    done = subprocess.run([sys.executable, '-c', WALK], cwd=folder, env=env, capture_output=True)
    (folder/'stderr').write_bytes(done.stderr)
    assert done.returncode == 0, done.stderr.decode('cp1252')
    (folder/'stdout').write_bytes(done.stdout)
    return folder

def test_all_files_are_written_and_no_temporary_ones_remain(walked):
    for o in ('data/house-tree/house', 'model/model.onnx', 'report.html', 'site/index.html'): assert (walked/o).exists(), o
    assert len(list((walked/'mine').rglob('*.png'))) == 40
    with open(walked/'answers.csv', encoding='utf8') as f: assert len(list(csv.DictReader(f))) == 40
    assert not [o for o in walked.rglob('*') if o.suffix in ('.part', '.tmp') or '.part' in o.name]

def test_names_that_cannot_be_printed_are_escaped(walked):
    out = (walked/'stdout').read_bytes().decode('cp1252')
    assert '\\u043a\\u043e\\u0442' in out and 'house' in out   # кот

@contextlib.contextmanager
def running(command, path, env, cwd, prefix=()):
    "The URL of a server, once it answers"
    port = free_port()
    args = [*prefix, str(Path(sys.executable).with_name(command)), '--port', str(port), '--model', 'model']
    with open(cwd/f'{command}.log', 'wb') as log:
        process = subprocess.Popen(args, cwd=cwd, env=env, stdout=log, stderr=log)
    url,end = f'http://127.0.0.1:{port}/',time.monotonic() + 240
    try:
        while True:
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(url + path, timeout=60).ok: break
            assert process.poll() is None and time.monotonic() < end, (cwd/f'{command}.log').read_text('cp1252')
            time.sleep(.1)
        yield url
    finally: process.terminate()
    process.wait(60)
    said = (cwd/f'{command}.log').read_text('cp1252')
    assert str(port) in said and 'is open' in said and (process.returncode == 0 or sys.platform == 'win32')

def test_the_server_answers_and_ends(walked, env):
    with running('catdog-serve', 'healthz', env, walked) as url:
        with open(next((walked/'mine'/'кот').iterdir()), 'rb') as f:
            answer = requests.post(f'{url}predict', files={'file': f}, headers={'Accept': 'application/json'}).json()
    assert answer['predictions'][0]['label'] in LABELS

def test_the_app_opens_and_ends(walked, env):
    with running('catdog-app', '', env, walked) as url: assert 'cat' in requests.get(url).text

def test_onnxruntime_keeps_no_file(walked, env, tmp_path):
    code = f"import catdog, onnxruntime; onnxruntime.InferenceSession({str(walked/'model'/'model.onnx')!r})"
    subprocess.run([sys.executable, '-c', code], env={**env, 'HOME': str(tmp_path), 'TMPDIR': str(tmp_path)}, check=True)
    assert not [*tmp_path.iterdir()]
    assert not [o for o in Path(env['HOME']).rglob('*') if 'onnxruntime' in o.name]   # of all commands above

# Any user: a container may run as one that has no name, no home and no right to write

ANY_USER = """
import sys
from pathlib import Path
from catdog.core.errors import CatdogError
from catdog.scrape import scrape
from catdog.train import build
from catdog.review import write_report
from catdog.predict import predict_files
from catdog.deploy.page import build_site

out,words = Path('out'),['кот', 'пёс']
for f,args,kwargs in [
        (scrape, (['house', 'tree'],), dict(n=6, engine='sample')),
        (scrape, (['house', 'tree'],), dict(n=6, engine='sample', urls_only='urls.parquet')),
        (build, (words,), dict(photos='mine')), (write_report, ('mine', 'model'), {}),
        (predict_files, ('mine',), dict(model='model', out='answers.parquet')), (build_site, ('model',), dict(out='page'))]:
    try: f(*args, **kwargs)
    except CatdogError as e: print('refused', e, file=sys.stderr)
    else: print(f, 'worked', file=sys.stderr)
scrape(['house', 'tree'], out/'data', n=6, engine='sample')
build(words, photos='mine', out=out/'model', size=64)
predict_files('mine', model=out/'model', out=out/'answers.csv')
build_site(out/'model', out/'site')
"""

@pytest.fixture(scope='module')
def any_user(walked, env):
    "What to put before a command, and its environment: it may read everything, and write to `out` alone"
    if not hasattr(os, 'getuid') or os.getuid() or not shutil.which('setpriv'): pytest.skip('only root may become another user')
    (walked/'out').mkdir()
    (walked/'out').chmod(0o777)
    read = '+dac_read_search'   # Python itself may lie in a folder of root
    prefix = ['setpriv', '--reuid=12345', '--regid=12345', '--clear-groups', f'--inh-caps=-all,{read}',
              f'--ambient-caps=-all,{read}', f'--bounding-set=-all,{read}']
    if subprocess.run([*prefix, 'true'], capture_output=True).returncode: pytest.skip('root lacks rights here')
    return prefix,{k: v for k,v in env.items() if k not in ('HOME', 'USER', 'LOGNAME')} | dict(
        HOME='/nonexistent', PYTHONPATH=os.environ.get('PYTHONPATH', ''), PYTHONDONTWRITEBYTECODE='1')

def test_any_user_is_told_at_once_or_served(walked, any_user):
    prefix,env = any_user
    done = subprocess.run([*prefix, sys.executable, '-c', ANY_USER], cwd=walked, env=env, capture_output=True)
    lines = [o for o in done.stderr.decode('cp1252').splitlines() if 'images/s' not in o and o.strip()]
    assert done.returncode == 0, lines
    refused = [o for o in lines if o.startswith('refused')]
    assert len(refused) == 6 and all('written' in o and 'give another' in o for o in refused), lines
    assert len(lines) == 6, lines
    for o in ('data/house', 'model/model.onnx', 'answers.csv', 'site/index.html'):
        assert (walked/'out'/o).exists(), o

@pytest.mark.parametrize('command,path', [('catdog-serve', 'healthz'), ('catdog-app', '')])
def test_any_user_can_serve(walked, any_user, command, path):
    prefix,env = any_user
    with running(command, path, env, walked, prefix) as url: assert requests.get(url).ok
