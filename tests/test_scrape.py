"""Scrapes that are killed or stopped, and resumed; the URL list for img2dataset.
The command's options and messages are in test_collect.py and test_commands.py."""
import json, os, random, signal, subprocess, sys, threading, time
from collections import Counter

import pytest

from catdog.sample.draw import draw
from catdog.core.errors import ImageError
from catdog.core.images import jpeg_bytes, open_image
from catdog.scrape import ENGINES, Photo, SampleWeb, SearchError, read_manifest, save_urls, scrape
from web_helpers import copies, files, image, serve, serve_images

SCRIPT = '''
import json, sys
from catdog.scrape import ENGINES, Photo, scrape
from catdog.web import download
found = json.loads(open(sys.argv[2]).read())
ENGINES['test'] = lambda term, n: [Photo(u, engine='test', term=term) for u in found.get(term, [])][:n]
download._TIMEOUT = 300   # so that no stall ends by itself
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)   # ignored, where the tests run in the background
sys.argv[1:] = [*found, '--path', sys.argv[1], '--engine', 'test']
sys.exit(scrape())
'''

@pytest.fixture
def start(tmp_path):
    "A function that starts a scrape of `found` into `path` in a process of its own"
    def _start(found, path):
        (tmp_path/'run.py').write_text(SCRIPT)
        (tmp_path/'found.json').write_text(json.dumps(found))
        return subprocess.Popen([sys.executable, tmp_path/'run.py', path, tmp_path/'found.json'],
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return _start

def lines(path): return (path/'manifest.jsonl').read_bytes().count(b'\n') if (path/'manifest.jsonl').exists() else 0

def mess():
    "Two labels with every kind of outcome"
    r,res = random.Random(5),{}
    for label in ('cat', 'dog'):
        good = [draw(label, i, (200 + 4*i, 160 + 3*i)) for i in range(30)]
        again = [good[4]]*2 + [o for i in (1, 2, 3) for o in copies(good[i]).values()]
        res[label] = [jpeg_bytes(o) for o in good + again]
        res[label] += [404, 410, b'<!doctype html>', jpeg_bytes(good[5])[:900], b'']
        r.shuffle(res[label])
    res['dog'] += res['cat'][:12]   # conflicts
    return res

def test_killed_run_resumes(start, tmp_path):
    whole,torn = tmp_path/'whole',tmp_path/'torn'
    r = random.Random(int(os.environ.get('CATDOG_KILLS_SEED', 1)))
    with serve_images(mess(), latency=.03) as (found, asked):
        p = start(found, whole)
        out = p.communicate(timeout=120)[0]
        assert p.returncode == 0, out
        total,kills = lines(whole),0
        moments = sorted(r.sample(range(total - 1), 6))
        for moment in moments:
            p = start(found, torn)
            while p.poll() is None and lines(torn) <= moment:
                for o in torn.glob('[!.]*/[!.]*'):   # visible files are complete
                    if lines(torn) > moment: break
                    try: open_image(o)
                    except ImageError as e: assert e.status == 'missing'   # it has just been moved
            p.kill()
            kills += p.wait() == -signal.SIGKILL
            p.stdout.close()
        assert kills >= 4   # a run may end before its moment comes
        for o in torn.rglob('*.part'): os.utime(o, (0, 0))   # for a minute they may be another program's
        p = start(found, torn)
        assert p.communicate(timeout=120) and p.returncode == 0
    assert files(torn) == files(whole)
    assert (torn/'manifest.jsonl').read_text() == (whole/'manifest.jsonl').read_text()
    assert set(read_manifest(whole).status) >= {
        'ok', 'duplicate', 'near-duplicate', 'conflict', 'not-found', 'not-an-image', 'truncated'}
    assert not list(torn.rglob('*.part'))

def test_ctrl_c_stops_at_once_and_the_same_command_resumes(monkeypatch, start, tmp_path):
    monkeypatch.setenv('CATDOG_ALLOW_PRIVATE', '1')
    data = {'cat': [jpeg_bytes(image(i)) for i in range(20)]}
    stalled,ready = threading.Event(),threading.Event()
    def answer(path, params, headers):
        i = int(path[1:])
        if i >= 13 and not stalled.is_set():   # 7: one less than the connections to a host, so that the others go on
            ready.set()
            stalled.wait(600)   # a server that does not answer
        return 200, {}, data['cat'][i]
    with serve(answer) as (url, asked):
        found = {'cat': [f'{url}/{i}' for i in range(20)]}
        p = start(found, tmp_path/'out')
        while lines(tmp_path/'out') < 13 and p.poll() is None: time.sleep(.05)
        assert ready.wait(60)
        p.send_signal(signal.SIGINT)
        out = p.communicate(timeout=60)[0]   # far less than the time-out, which is 300 s here
        assert p.returncode == 130 and 'the same command again' in out and 'Traceback' not in out
        stalled.set()
        p = start(found, tmp_path/'out')
        assert p.communicate(timeout=60) and p.returncode == 0
    assert set(read_manifest(tmp_path/'out').status) == {'ok'} and len(files(tmp_path/'out')) == 20

# --- img2dataset

def test_img2dataset_reads_the_list(tmp_path):
    "Its requirements exclude ours, so it lives in an environment of its own: pip install img2dataset there"
    if not (img2dataset := os.environ.get('CATDOG_IMG2DATASET')): pytest.skip('set CATDOG_IMG2DATASET to the command')
    with SampleWeb(faults=None) as _:
        save_urls(['cat', 'dog'], tmp_path/'urls.parquet', n=20, engine='sample')
        subprocess.run([img2dataset, '--url_list', tmp_path/'urls.parquet', '--input_format', 'parquet',
            '--url_col', 'url', '--caption_col', 'caption', '--output_folder', tmp_path/'fetched',
            '--output_format', 'files',
            '--processes_count', '1'], check=True, timeout=300)
    fetched = [json.loads(o.read_text()) for o in tmp_path.glob('fetched/0*/*.json')]
    assert Counter((o['caption'], o['status']) for o in fetched) == {('cat', 'success'): 20, ('dog', 'success'): 20}

# --- One pool for all labels

def test_stalled_image_does_not_delay_the_next_label(monkeypatch, tmp_path):
    monkeypatch.setenv('CATDOG_ALLOW_PRIVATE', '1')
    monkeypatch.setattr('catdog.web.download._TIMEOUT', 60)
    dogs = threading.Event()
    def answer(path, params, headers):
        i = int(path[1:])
        if i == 5: assert dogs.wait(60)   # the last cat comes when all dogs have been asked for
        if len({o for o,_,_ in asked if int(o[1:]) >= 10}) == 6: dogs.set()
        return 200, {}, jpeg_bytes(image(i))
    with serve(answer) as (url, asked):
        first = dict(cat=0, dog=10)
        monkeypatch.setitem(ENGINES, 'test', lambda term, n: [Photo(f'{url}/{first[term] + i}') for i in range(6)])
        df = scrape(['cat', 'dog'], tmp_path, n=6, engine='test')
    assert set(df.status) == {'ok'} and df.label.tolist() == ['cat']*6 + ['dog']*6

def test_earlier_labels_are_kept_when_a_later_search_fails(monkeypatch, tmp_path):
    with serve_images({'cat': [jpeg_bytes(image(i)) for i in range(6)]}) as _:
        find = ENGINES['test']
        def refuse(term, n):
            if term != 'cat': raise SearchError('test', 'it answered 429')
            return find(term, n)
        monkeypatch.setitem(ENGINES, 'test', refuse)
        with pytest.raises(SearchError, match='429'): scrape(['cat', 'dog'], tmp_path, n=6, engine='test')
        assert read_manifest(tmp_path).status.tolist() == ['ok']*6 and len(files(tmp_path)) == 6
