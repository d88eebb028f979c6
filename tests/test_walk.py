"""From words to the app, as on Windows: open files cannot be deleted, there is no `fcntl`, output is in cp1252.

Elsewhere than on Windows tests/windows/sitecustomize.py imitates that.
"""
import contextlib, csv, os, subprocess, sys, time
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
def env():
    "The environment of a process on Windows, or that imitates one"
    clean = {k: v for k,v in os.environ.items() if not k.startswith(('CATDOG_', 'AZURE_'))}
    clean |= dict(PYTHONIOENCODING='cp1252', PYTHONWARNINGS='ignore')
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
def running(command, path, env, cwd):
    "The URL of a server, once it answers"
    port = free_port()
    args = [str(Path(sys.executable).with_name(command)), '--port', str(port), '--model', 'model']
    with open(cwd/f'{command}.log', 'wb') as log:
        process = subprocess.Popen(args, cwd=cwd, env=env, stdout=log, stderr=log)
    url,end = f'http://127.0.0.1:{port}/',time.monotonic() + 90
    try:
        while True:
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(url + path, timeout=60).ok: break
            assert process.poll() is None and time.monotonic() < end, (cwd/f'{command}.log').read_text('cp1252')
            time.sleep(.1)
        yield url
    finally: process.terminate()
    process.wait(30)
    said = (cwd/f'{command}.log').read_text('cp1252')
    assert str(port) in said and 'Traceback' not in said

def test_the_server_answers_and_ends(walked, env):
    with running('catdog-serve', 'healthz', env, walked) as url:
        with open(next((walked/'mine'/'кот').iterdir()), 'rb') as f:
            answer = requests.post(f'{url}predict', files={'file': f}, headers={'Accept': 'application/json'}).json()
    assert answer['predictions'][0]['label'] in LABELS

def test_the_app_opens_and_ends(walked, env):
    with running('catdog-app', '', env, walked) as url: assert 'cat' in requests.get(url).text
