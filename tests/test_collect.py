"""Data sets: retries, refusals, the command, and which of several copies is kept.
Killed runs are in test_scrape.py, servers that misbehave in test_http.py."""
import json, os, re, shutil, signal, subprocess, sys, threading, time
from pathlib import Path

import pytest

from catdog.core.errors import CatdogError, SearchError
from catdog.core.images import jpeg_bytes, open_image
from catdog.scrape import ENGINES, Photo, SampleWeb, read_manifest, scrape, write_credits
from catdog.web.download import collect
from catdog.dataset.folder import parse_labels
from catdog.dataset.manifest import Manifest, count_outcomes
from network_helpers import until
from web_helpers import copies, files, image, serve, serve_images

@pytest.fixture(scope='module')
def web():
    "Drawings for the tests of this file, with the same faults each time"
    with SampleWeb() as web: yield web

@pytest.fixture
def data(web, tmp_path):
    "A data set of drawings"
    scrape(['cat', 'dog'], tmp_path/'animals', n=20, engine='sample')
    return tmp_path/'animals'

def rows(path): return [json.loads(o) for o in (path/'manifest.jsonl').read_text().splitlines()]

def test_scrape_returns_the_manifest(data):
    again = scrape(['cat', 'dog'], data, n=20, engine='sample')
    assert again.to_dict('records') == read_manifest(data).to_dict('records') and len(again) == 40

def test_larger_n_fetches_more(data):
    before = rows(data)
    assert len(scrape(['cat', 'dog'], data, n=25, engine='sample')) == 50
    assert [o for o in rows(data) if o in before] == before

def test_failed_downloads_are_retried_only_on_request(data):
    lines = rows(data)
    i = next(i for i,o in enumerate(lines) if o['status'] == 'ok')
    (data/lines[i]['file']).unlink()
    spoilt = [*lines[:i], {**lines[i], 'status': 'timeout', 'file': None}, *lines[i+1:]]
    (data/'manifest.jsonl').write_text(''.join(json.dumps(o) + '\n' for o in spoilt))
    assert scrape(['cat', 'dog'], data, n=20, engine='sample').iloc[i].status == 'timeout'
    assert scrape(['cat', 'dog'], data, n=20, engine='sample', retry=True).iloc[i].status == 'ok'
    assert rows(data) == lines

@pytest.mark.parametrize('kw,words', [
    (dict(labels='cat/dog'), 'cannot be the name of a folder'), (dict(n=0), 'n is 0'),
    (dict(engine='altavista'), 'no engine'), (dict(queries=['outdoors']), 'a query has no {}'),
    (dict(safe='on'), 'no safe search'), (dict(ignore_robots=['noindex', 'everything']), 'not an opt-out')])
def test_bad_search_arguments_are_refused(tmp_path, kw, words):
    with pytest.raises(CatdogError, match=words):
        scrape(**{'labels': 'cat', 'path': tmp_path/'data', 'engine': 'sample', **kw})
    assert not (tmp_path/'data').exists()

def test_no_manifest(tmp_path):
    with pytest.raises(CatdogError, match='manifest.jsonl'): read_manifest(tmp_path)

def one_closed_port(term, n): return [Photo('http://127.0.0.1:9/1.jpg', engine='live', term=term)]

def test_nothing_found_and_nothing_kept(web, tmp_path, monkeypatch):
    monkeypatch.setitem(ENGINES, 'nothing', lambda term, n: [])
    with pytest.raises(CatdogError, match='nothing was found'): scrape('cat', tmp_path, engine='nothing')
    monkeypatch.setitem(ENGINES, 'broken', one_closed_port)
    with pytest.raises(CatdogError, match='1 unreachable'): scrape('cat', tmp_path, engine='broken')

def test_photographs_and_drawings_are_not_mixed(data, monkeypatch):
    monkeypatch.setitem(ENGINES, 'live', one_closed_port)
    with pytest.raises(CatdogError, match='holds drawings'): scrape('bird', data, engine='live')
    assert not (data/'bird').exists()

def run(cwd, *args):
    "`catdog-scrape` in a process of its own"
    args = [Path(sys.executable).with_name('catdog-scrape'), *args]
    return subprocess.run(args, cwd=cwd, capture_output=True, text=True)

def test_command(tmp_path):
    usage,bad = run(tmp_path, '--help'),run(tmp_path, 'cat', 'a/b')
    assert usage.returncode == 0 and '--retry' in usage.stdout and 'becomes a folder' in ' '.join(usage.stdout.split())
    said = (r"catdog-scrape: 'a/b' cannot be the name of a folder (\ / : * ? \" < > and | cannot be part of it): "
            'use letters, digits and spaces\n')
    assert (bad.returncode, bad.stderr) == (2, said.replace(r'\"', '"'))
    good = run(tmp_path, 'cat', 'tabby cat', '--n', '8', '--path', 'data/command', '--engine', 'sample', '--credits')
    assert good.returncode == 0 and 'tabby cat' in good.stdout and 'all' in good.stdout
    assert len(read_manifest(tmp_path/'data'/'command')) == 16
    assert (tmp_path/'data'/'command'/'CREDITS.txt').read_text().count('licence not stated') > 8

def test_command_that_only_writes_urls(tmp_path):
    import pyarrow.parquet as pq
    assert run(tmp_path, 'cat', '--urls-only', 'urls.parquet', '--n', '5', '--engine', 'sample').returncode == 0
    assert pq.read_table(tmp_path/'urls.parquet').num_rows == 5 and not (tmp_path/'data').exists()

# --- Copies and conflicts

def statuses(df, label): return df[df.label == label].status.tolist()

def test_larger_of_two_copies_is_kept(tmp_path):
    a,b = image(1),image(2)
    bytes_ = {k: jpeg_bytes(v) for k,v in copies(a).items()}
    order = [bytes_['half'], *[jpeg_bytes(a)]*2, bytes_['larger'], bytes_['q50'], bytes_['cropped'], jpeg_bytes(b)]
    with serve_images({'cat': order}) as _: df = scrape('cat', str(tmp_path), engine='test')
    near = 'near-duplicate'
    assert statuses(df, 'cat') == [near, near, 'duplicate', 'ok', near, near, 'ok']
    kept = df[df.status == 'ok'].file.tolist()
    assert open_image(tmp_path/kept[0]).size == (480, 360)
    assert all(o.startswith('.removed/cat/') for o in df.file[:2])
    assert files(tmp_path) == sorted(kept + df.file[:2].tolist())   # nothing is deleted
    assert [open_image(tmp_path/o).size for o in df.file[:2]] == [(160, 120), (320, 240)]
    assert (tmp_path/'manifest.jsonl').read_text().count('\n') == 7   # one line per URL

def test_same_image_under_two_labels_is_a_conflict(tmp_path, capsys):
    a,b,c = image(1),image(2),image(3)
    half = jpeg_bytes(a.resize((160, 120)))
    images = {'cat': [jpeg_bytes(a), jpeg_bytes(b)], 'dog': [half, jpeg_bytes(c), jpeg_bytes(a)]}
    with serve_images(images) as (_, asked):
        df = scrape(['cat', 'dog'], str(tmp_path), engine='test')
        assert '3 images were found under two labels' in capsys.readouterr().out
        assert statuses(df, 'cat') == ['conflict', 'ok'] and statuses(df, 'dog') == ['conflict', 'ok', 'conflict']
        assert all(o.startswith('.removed/') and (tmp_path/o).exists() for o in df[df.status == 'conflict'].file)
        assert len(list(tmp_path.glob('cat/*'))) == len(list(tmp_path.glob('dog/*'))) == 1
        # the user decides that it is a cat: it stays one, and nothing is fetched again
        conflict = Path(df.file[0])
        os.rename(tmp_path/conflict, tmp_path/conflict.relative_to('.removed'))
        n = len(asked)
        scrape(['cat', 'dog'], str(tmp_path), n=200, engine='test')
        assert len(asked) == n and (tmp_path/conflict.relative_to('.removed')).exists()

def test_images_moved_by_the_user_stay_where_they_are(tmp_path):
    a,b = image(1),image(2)
    with serve_images({'cat': [jpeg_bytes(a)], 'dog': [jpeg_bytes(b), jpeg_bytes(a)]}) as _:
        df = scrape('cat', str(tmp_path), engine='test')
        (tmp_path/'dog').mkdir()
        moved = (tmp_path/df.file[0]).rename(tmp_path/'dog'/Path(df.file[0]).name)   # "this is a dog"
        df = scrape('dog', str(tmp_path), engine='test')
        assert statuses(df, 'dog') == ['ok', 'duplicate'] and moved.exists()

def test_copies_of_photographs_are_found(photos, tmp_path):
    "At least 95% of planted copies are found, and hardly any original is dropped (all 500 + 200: bench/scrape.py)"
    originals = [open_image(o, 512) for o in sorted((photos/'photos'/'web'/'cat').iterdir())[:100]]
    planted = [jpeg_bytes(o) for i,img in enumerate(originals[:40]) for o in [list(copies(img).values())[i%5]]]
    with serve_images({'cat': [jpeg_bytes(o) for o in originals] + planted}) as _:
        df = scrape('cat', str(tmp_path), engine='test')
    df['seen'] = df.status.isin(['duplicate', 'near-duplicate'])
    # a copy that is larger is kept in place of its original
    larger = [i for i in range(40) if df.status[i] == 'near-duplicate' and df.status[100 + i] == 'ok']
    assert df.seen[100:].sum() + len(larger) >= 38
    assert df.seen[:100].sum() - len(larger) <= 1

# --- Spellings of a label, and invalid labels

SPELLINGS = [('cat', 'Cat'), ('cat', 'CAT'), ('Cat', 'cat'), ('\u00e9t\u00e9', 'e\u0301te\u0301'),
             ('cafe\u0301', 'CAF\u00c9'),
             ('stra\u00dfe', 'STRASSE'), ('cat', '\uff43\uff41\uff54'),
             ('tabby cat', 'Tabby  cat'), ('cat', 'cat\u200b'),
             ('\u2764', '\u2764\ufe0f')]

@pytest.mark.parametrize('first,second', SPELLINGS)
def test_another_spelling_of_a_label_is_the_same_label(tmp_path, capsys, first, second):
    with serve_images({'all': [jpeg_bytes(image(i)) for i in range(6)]}) as (found, asked):
        def find(term, n): return [Photo(o, engine='test', term=term) for o in found['all']]
        ENGINES['spelt'] = find
        scrape(first, tmp_path, n=6, engine='spelt')
        before = files(tmp_path)
        df = scrape(second, tmp_path, n=6, engine='spelt')
        assert files(tmp_path) == before and len(before) == 6 and len(asked) == 6
        assert df.status.tolist() == ['ok']*6 and set(df.label) == {before[0].split('/')[0]}

@pytest.mark.parametrize('second', ['dog', 'cats', 'c', 'cat+', 'ca t'])
def test_different_words_are_different_labels(tmp_path, second):
    (tmp_path/'cat').mkdir()
    assert parse_labels([second], tmp_path) == [second]

RESERVED = ['CON', 'nul.txt', 'COM1', '.removed', '..', 'manifest.jsonl', 'Credits.txt', 'x'*101, '\u732b'*86, 'a\nb',
            'a:b', 'a.', '\u200b', 'caf\udce9', 'LPT\u00b9', 'conin$', 'CONOUT$.txt']

@pytest.mark.parametrize('label', RESERVED)
def test_invalid_folder_name_is_refused_first(tmp_path, monkeypatch, label):
    asked = []
    monkeypatch.setitem(ENGINES, 'spy', lambda term, n: asked.append(term) or [])
    with pytest.raises(CatdogError, match='cannot be the name of a folder|is empty'):
        scrape(['dog', label], tmp_path/'data', engine='spy')
    assert not asked and not (tmp_path/'data').exists()

def test_word_in_another_encoding_is_refused(tmp_path):
    command = [Path(sys.executable).with_name('catdog-scrape'), 'dog', 'caf\udce9', '--engine', 'sample']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, env={**os.environ, 'PYTHONUTF8': '1'})
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and b'Traceback' not in done.stderr
    assert os.listdir(tmp_path) == []

def test_file_in_place_of_a_folder_is_reported(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setitem(ENGINES, 'spy', lambda term, n: asked.append(term) or [])
    (tmp_path/'cat').write_text('mine')
    with pytest.raises(CatdogError, match='cat is a file'): scrape('cat', tmp_path, engine='spy')
    with pytest.raises(CatdogError, match='cat: (File exists|Not a directory)'):
        scrape('cat', tmp_path/'cat', engine='spy')
    assert not asked and (tmp_path/'cat').read_text() == 'mine'

# --- One at a time

def search_server(gate, n=24):
    "A service with Bing's protocol, and its images: cat is 0 to 23, dog 100 to 123; 8 to 23 wait for `gate`"
    def answer(path, params, headers):
        if path == '/search':
            base = {'cat': 0, 'dog': 100}[params['q']]
            host = headers['Host']
            return 200, {}, {'value': [{'contentUrl': f'http://{host}/{base + i}', 'name': 'x'} for i in range(n)]}
        i = int(path[1:])
        if 8 <= i < 24: gate.wait(240)
        return 200, {}, jpeg_bytes(image(i))
    return serve(answer)

def start(label, cwd, url, n=24, *args):
    "catdog-scrape for `label` in a process of its own, which waits five minutes for an image"
    env = {**os.environ, 'AZURE_SEARCH_KEY': 'X', 'CATDOG_BING_ENDPOINT': f'{url}/search', 'CATDOG_ALLOW_PRIVATE': '1'}
    (cwd/'run.py').write_text('import sys; from catdog.web import download; download._TIMEOUT = 300\n'
                              'from catdog.scrape import scrape; sys.exit(scrape())')
    command = [sys.executable, 'run.py', label, '--n', str(n), '--path', 'x', *args, '--engine', 'bing']
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))   # ignored in background

def lines(path): return (path/'manifest.jsonl').read_text().count('\n') if (path/'manifest.jsonl').exists() else 0

def count(path, label):
    return len(list((path/label).glob('*.jpg'))), sum(o['label'] == label and o['status'] == 'ok' for o in rows(path))

def first_and_second(tmp_path, url):
    "Start a run for cat, and one for dog that waits for it and has reported that"
    first = start('cat', tmp_path, url)
    until(lambda: lines(tmp_path/'x') > 2)
    second = start('dog', tmp_path, url)
    said = next(o for o in second.stdout if 'is working' in o)
    assert 'another catdog process is working in x: waiting' in said
    return first,second

def test_two_runs_in_one_folder_lose_nothing(tmp_path):
    gate = threading.Event()
    with search_server(gate) as (url, asked):
        runs = first_and_second(tmp_path, url)
        gate.set()
        said = [o.communicate(timeout=120)[0] for o in runs]
    assert [o.returncode for o in runs] == [0, 0], said
    assert count(tmp_path/'x', 'cat') == count(tmp_path/'x', 'dog') == (24, 24)
    assert sorted(os.listdir(tmp_path/'x')) == ['.lock', 'cat', 'dog', 'manifest.jsonl']

def test_second_run_continues_when_the_first_is_killed(tmp_path):
    gate = threading.Event()
    with search_server(gate) as (url, asked):
        first,second = first_and_second(tmp_path, url)
        first.kill()
        assert second.communicate(timeout=120) and second.returncode == 0
        assert count(tmp_path/'x', 'dog') == (24, 24)
        gate.set()
        again = start('cat', tmp_path, url)
        assert again.communicate(timeout=120) and again.returncode == 0
        first.communicate()
    assert count(tmp_path/'x', 'cat') == (24, 24)

def test_waiting_run_can_be_stopped(tmp_path):
    gate = threading.Event()
    with search_server(gate) as (url, asked):
        first,second = first_and_second(tmp_path, url)
        second.send_signal(signal.SIGINT)
        assert 'Run the same command again' in second.communicate(timeout=60)[0] and second.returncode == 130
        gate.set()
        assert first.communicate(timeout=120) and first.returncode == 0
    assert count(tmp_path/'x', 'cat') == (24, 24) and not (tmp_path/'x'/'dog').exists()

def test_ctrl_c_while_waiting_for_a_service_loses_nothing(tmp_path):
    with serve(lambda path, params, headers: answer(path, params, headers)) as (url, asked):
        def answer(path, params, headers):
            if path != '/search': return 200, {}, jpeg_bytes(image(int(path[1:])))
            if params['q'] != 'cat': return 429, {'Retry-After': '60'}, b''
            return 200, {}, {'value': [{'contentUrl': f'{url}/{i}', 'name': 'x'} for i in range(6)]}
        run = start('cat', tmp_path, url, 6, '--queries', '{}', '{} outdoors')
        def refused(): return sum(params.get('q') == 'cat outdoors' for _,params,_ in asked)
        until(refused)
        time.sleep(.2)
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=60)[0]
        assert run.returncode == 130 and 'the same command again' in said and refused() == 1   # it did not wait until then
        run = start('cat', tmp_path, url, 6)
        assert run.communicate(timeout=60) and run.returncode == 0
    assert count(tmp_path/'x', 'cat') == (6, 6)

WRITER = '''import os, sys
from catdog.core.files import write_atomic
replace = os.replace
def wait(*args):
    print('written', flush=True)
    sys.stdin.readline()
    replace(*args)
os.replace = wait
write_atomic(sys.argv[1], b'2')'''

def test_temporary_files_of_running_programs_are_kept(tmp_path):
    "Abandoned temporary files are removed; one that is still being written is kept"
    (tmp_path/'cat').mkdir()
    old = tmp_path/'cat'/'.1.jpg.0123abcd.part'
    old.write_bytes(b'1')
    os.utime(old, (0, 0))
    writer = subprocess.Popen([sys.executable, '-c', WRITER, tmp_path/'cat'/'large'], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == 'written\n'
    Manifest(tmp_path)
    assert not old.exists() and list(tmp_path.glob('cat/.large.*.part'))
    writer.communicate('\n', timeout=60)
    assert writer.returncode == 0 and (tmp_path/'cat'/'large').read_bytes() == b'2'

# --- Files that a person has deleted or moved

@pytest.fixture
def six(tmp_path):
    "A data set of six cats, and the requests to their host"
    with serve_images({'cat': [jpeg_bytes(image(i)) for i in range(6)]}) as (_, asked):
        scrape('cat', tmp_path, n=6, engine='test')
        yield tmp_path,asked

def credits(path): return write_credits(path).read_text().splitlines()

def test_a_label_called_all(tmp_path):
    with serve_images({'all': [jpeg_bytes(image(0))]}): counts = count_outcomes(scrape('all', tmp_path, n=1, engine='test'))
    assert counts.loc['ok'].to_dict() == {'all': 1, 'all labels': 1}

@pytest.mark.parametrize('retry', [False, True])
def test_label_with_deleted_folder_is_fetched_again(six, capsys, retry):
    path,asked = six
    before = files(path)
    shutil.rmtree(path/'cat')
    assert count_outcomes(read_manifest(path)).loc['missing', 'cat'] == 6 and credits(path) == []
    df = scrape('cat', path, n=6, engine='test', retry=retry)
    assert files(path) == before and df.status.tolist() == ['ok']*6 and len(asked) == 12 and len(credits(path)) == 6
    assert '6 images of cat are no longer in' in capsys.readouterr().out

def test_deleted_image_is_reported_and_fetched_on_request(six, capsys):
    path,asked = six
    before = files(path)
    (path/before[0]).unlink()
    df = scrape('cat', path, n=6, engine='test')
    assert sorted(df.status) == ['missing'] + ['ok']*5 and len(asked) == 6 and len(credits(path)) == 5
    assert '1 images of cat are no longer in' in capsys.readouterr().out
    assert not any(o.startswith(before[0]) for o in credits(path))
    df = scrape('cat', path, n=6, engine='test', retry=True)
    assert files(path) == before and df.status.tolist() == ['ok']*6 and len(asked) == 7 and len(credits(path)) == 6

def test_copies_of_a_deleted_image_do_not_prevent_its_download(tmp_path):
    "The small one lies in .removed, for a larger one that the user deleted; that one is fetched again"
    a = image(1)
    data = {'cat': [jpeg_bytes(a.resize((160, 120))), jpeg_bytes(a), jpeg_bytes(a.resize((480, 360))), jpeg_bytes(a)]}
    with serve_images(data) as (_, asked):
        before = scrape('cat', tmp_path, n=4, engine='test').status.tolist()
        kept = files(tmp_path)
        shutil.rmtree(tmp_path/'cat')
        after = scrape('cat', tmp_path, n=4, engine='test').status.tolist()
    assert before == after == ['near-duplicate', 'near-duplicate', 'ok', 'near-duplicate'] and files(tmp_path) == kept

def test_moved_image_is_counted_in_its_new_place(six):
    path,asked = six
    one,two,three,*_ = files(path)
    (path/'dog').mkdir()
    for file,folder in ((one, 'dog'), (two, '.removed/cat')):
        (path/folder).mkdir(parents=True, exist_ok=True)
        os.rename(path/file, path/folder/Path(file).name)
    df = scrape('cat', path, n=6, engine='test')
    assert sorted(df.status) == ['ok']*5 + ['removed'] and len(asked) == 6
    said = credits(path)
    assert len(said) == 5 and not any(Path(two).name in o for o in said)
    assert any(o.startswith(f'dog/{Path(one).name}: ') for o in said)

def test_deleted_and_settled_conflicts_are_not_reported(tmp_path, capsys):
    a = jpeg_bytes(image(1))
    data = {'cat': [a, jpeg_bytes(image(2))], 'dog': [a, jpeg_bytes(image(3))]}
    with serve_images(data) as _:
        scrape(['cat', 'dog'], tmp_path, engine='test')
        cat,dog = (next(o for o in files(tmp_path) if o.startswith(f'.removed/{k}/')) for k in ('cat', 'dog'))
        os.rename(tmp_path/cat, tmp_path/cat.removeprefix('.removed/'))   # it is a cat
        (tmp_path/dog).unlink()
        capsys.readouterr()
        df = scrape(['cat', 'dog'], tmp_path, engine='test')
    assert df.status.tolist() == ['ok', 'ok', 'missing', 'ok'] and 'under two labels' not in capsys.readouterr().out
    assert [o.partition(':')[0] for o in credits(tmp_path)] == df.file[df.status == 'ok'].tolist()

def test_killed_run_resumes_fetching_deleted_images(six):
    path,asked = six
    before = files(path)
    shutil.rmtree(path/'cat')
    manifest = Manifest(path)   # it notes that they are missing, and is killed
    manifest.add(*({**o, 'status': 'missing', 'file': None, 'phash': None} for o in manifest.of('cat')))
    assert scrape('cat', path, n=6, engine='test').status.tolist() == ['ok']*6 and files(path) == before

# --- Every URL has a row

def test_invalid_urls_have_a_row_and_repaired_ones_an_image(tmp_path, monkeypatch):
    good = jpeg_bytes(image(1))
    with serve(lambda path, *_: (200, {}, good) if path == '/my%20cat.jpg' else (404, {}, b'')) as (url, asked):
        monkeypatch.setenv('CATDOG_ALLOW_PRIVATE', '1')
        urls = [f' {url.replace("http", "HTTP")}/my cat.jpg\n', 'data:image/png;base64,AA', 'javascript:1', '//',
                'http://[', 'no address', f'{url}/gone.jpg', 'ftp://example.org/1.jpg', 'x'*3000, '\u732b']
        monkeypatch.setitem(ENGINES, 'odd', lambda term, n: [Photo(o, engine='odd') for o in urls])
        df = scrape('cat', tmp_path, n=20, engine='odd')
    assert df.url.tolist() == urls
    assert df.status.tolist() == ['ok'] + ['invalid']*5 + ['not-found'] + ['invalid']*3 and all(df.reason[1:])

def test_missing_images_are_retried_when_the_search_is_refused(tmp_path, monkeypatch, capsys):
    data = {'cat': [jpeg_bytes(image(i)) for i in range(2)] + [500]}
    with serve_images(data) as (found, asked):
        assert sorted(scrape('cat', tmp_path, n=3, engine='test').status) == ['busy', 'ok', 'ok']
        data['cat'][2] = jpeg_bytes(image(9))
        def refused(term, n): raise SearchError('test', 'it answered 429')
        monkeypatch.setitem(ENGINES, 'test', refused)
        assert scrape('cat', tmp_path, n=9, engine='test', retry=True).status.tolist() == ['ok']*3
        assert 'it answered 429. The 1 photos that were found earlier are tried again.' in capsys.readouterr().out
        with pytest.raises(SearchError): scrape('cat', tmp_path, n=9, engine='test')

def test_named_opt_outs_are_ignored(tmp_path, monkeypatch):
    headers = {'X-Robots-Tag': 'noindex, max-snippet: 3, noml'}
    with serve(lambda *_: (200, headers, jpeg_bytes(image(1)))) as (url, asked):
        monkeypatch.setenv('CATDOG_ALLOW_PRIVATE', '1')
        monkeypatch.setitem(ENGINES, 'mine', lambda term, n: [Photo(url, engine='mine')])
        with pytest.raises(CatdogError, match="'noinde' is not an opt-out"):
            collect(['cat'], tmp_path, 1, 'mine', ignore_robots='noinde')
        assert not asked
        with pytest.raises(CatdogError, match='1 refused'):
            collect(['cat'], tmp_path, 1, 'mine', ignore_robots=['noindex'])
        collect(['cat'], tmp_path, 1, 'mine', retry=True, ignore_robots=['noindex', 'noml'])
    assert len(files(tmp_path)) == 1
