"Commands in a terminal: an error is one line on stderr and exit status 2, never a traceback."
import os, re, shutil, signal, subprocess, sys
from pathlib import Path

import pytest
from command_helpers import run_command

def run(*args, cwd, **env):
    "Run a catdog command in the folder `cwd` with `env` added to the environment"
    clean = {k: v for k,v in os.environ.items() if not k.startswith(('CATDOG_', 'AZURE_'))}
    return run_command(*args, cwd=cwd, env={**clean, **env})

@pytest.fixture
def folders(tmp_path):
    "A folder to work in, with an empty data set, one of a single class, and a text file"
    from catdog.sample.draw import draw
    (tmp_path/'empty').mkdir()
    (tmp_path/'one'/'cat').mkdir(parents=True)
    for i in range(6): draw('cat', seed=i).save(tmp_path/'one'/'cat'/f'{i}.jpg')
    shutil.copytree(tmp_path/'one', tmp_path/'few')
    (tmp_path/'few'/'dog').mkdir()
    shutil.copy(tmp_path/'one'/'cat'/'0.jpg', tmp_path/'few'/'dog')
    (tmp_path/'notes.txt').write_text('a cat')
    (tmp_path/'no_model').mkdir()
    return tmp_path

WRONG = {
    'unknown engine':       (['catdog-scrape', 'cat', 'dog', '--engine', 'altavista'], 'altavista'),
    'unknown engine, build': (['catdog-build', 'cat', 'dog', '--engine', 'altavista'], 'altavista'),
    'label with a slash':   (['catdog-scrape', 'cat/dog', 'bird'], 'cat/dog'),
    'label that climbs':    (['catdog-scrape', '..', 'bird'], '..'),
    'missing key':          (['catdog-scrape', 'cat', 'dog', '--engine', 'bing'], 'AZURE_SEARCH_KEY'),
    'unknown architecture': (['catdog-build', 'cat', 'dog', '--arch', 'resnet19'], 'resnet18'),
    'no labels':            (['catdog-build', '--photos', 'empty'], 'empty: there are no images'),
    'no label folders':     (['catdog-build', '--photos', 'one/cat'], 'lies outside any label'),
    'photos of one label':  (['catdog-build', '--photos', 'one'], "'cat' alone"),
    'few photographs':      (['catdog-build', '--photos', 'few'], "fewer than 5 images of 'dog' (1)"),
    'keep is a file':       (['catdog-app', '--keep', 'notes.txt'], 'notes.txt: is no folder'),
    'no photographs':       (['catdog-build', 'cat', 'dog', '--photos', 'nowhere'], 'nowhere'),
    'empty photographs':    (['catdog-build', 'cat', 'dog', '--photos', 'empty'], 'cat'),
    'one label':            (['catdog-build', 'cat', '--engine', 'sample', '--n', '10'], 'two labels'),
    'size below 0':         (['catdog-build', 'cat', 'dog', '--size', '-5'], 'size is -5'),
    'out is a file':        (['catdog-build', 'cat', 'dog', '--out', 'notes.txt'], 'notes.txt is a file'),
    'not a model':          (['catdog-predict', 'one', '--model', 'no_model'], 'model.onnx'),
    'no such model':        (['catdog-predict', 'one', '--model', 'nowhere'], 'nowhere'),
    'a text file':          (['catdog-predict', 'notes.txt'], 'text file'),
    'no such image':        (['catdog-predict', 'nothing.jpg'], 'no such file'),
    'an empty folder':      (['catdog-predict', 'empty'], 'no images'),
    'serve, not a model':   (['catdog-serve', '--model', 'no_model'], 'model.onnx'),
    'app, not a model':     (['catdog-app', '--model', 'no_model'], 'model.onnx'),
}

@pytest.mark.parametrize('args,words', WRONG.values(), ids=WRONG)
def test_bad_input_is_one_line_and_exit_status_2(folders, args, words):
    before = sorted(folders.rglob('*'))
    done = run(*args, cwd=folders)
    assert done.returncode == 2, done
    assert words in done.stderr and len(done.stderr.splitlines()) == 1 and 'Traceback' not in done.stdout
    assert set(before) <= set(folders.rglob('*'))   # no file is lost

WAITS = '''import signal, sys, time
from catdog.core.errors import command
signal.signal(signal.SIGINT, signal.default_int_handler)   # ignored where the tests run in the background
@command
def wait():
    print('ready', flush=True)
    time.sleep(60)
sys.exit(wait())
'''

def test_ctrl_c_is_one_line(tmp_path):
    (tmp_path/'wait').write_text(WAITS)
    p = subprocess.Popen([sys.executable, 'wait'], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))})
    assert p.stdout.readline() == 'ready\n'
    p.send_signal(signal.SIGINT)
    assert p.communicate(timeout=30)[1] == '\nwait: stopped\n' and p.returncode == 130

@pytest.mark.parametrize('folder,words', [('empty', 'no images'), ('one', "labelled 'cat'"), ('nowhere', 'no such folder')])
def test_bad_folder_is_refused_for_training(folders, folder, words):
    from catdog.core.errors import CatdogError
    from catdog.train import train
    with pytest.raises(CatdogError, match=words): train(folders/folder)

@pytest.mark.parametrize('command', ['catdog-scrape', 'catdog-build', 'catdog-review', 'catdog-predict', 'catdog-serve',
                                     'catdog-app', 'catdog-site'])
def test_help_documents_each_parameter(command, tmp_path):
    done = run(command, '--help', cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith(f'usage: {command}')
    options = [o for o in done.stdout.splitlines() if o.startswith('  -') and '--help' not in o]
    assert options and all(len(o.split('  ')[-1]) > 8 for o in options)

@pytest.mark.parametrize('args', [('build', '--help'), ('review', '--help'), ('build', 'cat'), ('review', '--model', 'x'),
    ('scrape', 'cat', '--engine', 'sample', '--n', '5'), ('predict', 'one'), ('site',), ('serve', '--port', '-1')], ids=' '.join)
def test_torch_is_imported_only_to_train(folders, args):
    "Not for help, wrong arguments, scraping and serving"
    script = Path(sys.executable).with_name(f'catdog-{args[0]}')   # not `run`, whose processes have the imports done
    done = subprocess.run([sys.executable, '-X', 'importtime', script, *args[1:]], cwd=folders, capture_output=True, text=True)
    assert 'import time:' in done.stderr and not re.search(r'\| +(torch|fastai|timm)$', done.stderr, re.M)
    assert args[0] == 'serve' or 'Traceback' not in done.stderr

WAITING = '''import sys, time
from catdog import scrape, train
def wait(*args, **kw):
    print('searching', 'torch' in sys.modules)
    for _ in range(2000):
        time.sleep(.05)
        if 'run_recipe' in vars(train): sys.exit('imported while images are downloaded')
scrape.scrape = wait
train.build(['cat', 'dog'], engine='sample')
'''

def test_torch_is_imported_while_images_are_downloaded(tmp_path):
    done = subprocess.run([sys.executable, '-c', WAITING], cwd=tmp_path, capture_output=True, text=True)
    assert 'searching False' in done.stdout and done.stderr.endswith('imported while images are downloaded\n'), done

def test_predict_with_an_image_and_a_text_file(folders):
    done = run('catdog-predict', 'one/cat/0.jpg', 'notes.txt', cwd=folders)
    assert done.returncode == 2
    assert done.stdout.startswith('one/cat/0.jpg: ') and len(done.stdout.splitlines()) == 1
    assert done.stderr == 'notes.txt: a text file, not an image\n'

def test_scrape_prints_a_table_and_a_contact_sheet(tmp_path):
    from catdog.core.images import open_image
    from catdog.dataset.split import check_folder
    done = run('catdog-scrape', 'cat', 'dog', '--n', '20', '--engine', 'sample', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = {o.split()[0]: o.split()[1:] for o in done.stdout.splitlines() if o.split()}
    assert table['all'] == ['20', '20', '40'] and int(table['ok'][2]) > 20
    assert open_image(tmp_path/'data'/'cat-dog_contact_sheet.png').width > 500
    assert sum(check_folder(tmp_path/'data'/'cat-dog').values()) == int(table['ok'][2])

def test_different_words_get_different_folders(tmp_path):
    for words in (['cat', 'dog'], ['grizzly', 'black bear', 'teddy']):
        done = run('catdog-scrape', *words, '--n', '8', '--engine', 'sample', cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f'Images of {", ".join(words)} go to data/{"-".join(words)}' in done.stdout
    labels = {o.name: sorted(k.name for k in o.iterdir() if k.is_dir() and not k.name.startswith('.'))
              for o in (tmp_path/'data').iterdir() if o.is_dir()}
    assert labels == {'cat-dog': ['cat', 'dog'], 'grizzly-black bear-teddy': ['black bear', 'grizzly', 'teddy']}
