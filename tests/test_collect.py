"""Data sets: what is tried again, what is refused, the command, and which of several copies is kept.
What fits in a cell is in nbs/web/collect.ipynb; killed runs are in test_scrape.py, hostile servers in test_http.py
and test_download.py."""
import json, os, subprocess, sys
from pathlib import Path

import pytest

from catdog.core.images import CatdogError, jpeg_bytes, open_image
from catdog.scrape import ENGINES, Photo, SampleWeb, read_manifest, scrape, search_images
from web_helpers import copies, files, picture, serve_pictures

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

def test_more_are_fetched_when_more_are_asked_for(data):
    before = rows(data)
    assert len(scrape(['cat', 'dog'], data, n=25, engine='sample')) == 50
    assert [o for o in rows(data) if o in before] == before

def test_what_failed_is_tried_again_only_when_asked(data):
    lines = rows(data)
    i = next(i for i,o in enumerate(lines) if o['status'] == 'ok')
    (data/lines[i]['file']).unlink()
    spoilt = [*lines[:i], {**lines[i], 'status': 'timed-out', 'file': None}, *lines[i+1:]]
    (data/'manifest.jsonl').write_text(''.join(json.dumps(o) + '\n' for o in spoilt))
    assert scrape(['cat', 'dog'], data, n=20, engine='sample').iloc[i].status == 'timed-out'
    assert scrape(['cat', 'dog'], data, n=20, engine='sample', retry=True).iloc[i].status == 'ok'
    assert rows(data) == lines

@pytest.mark.parametrize('kw,words', [
    (dict(labels='cat/dog'), 'cannot be the name of a folder'), (dict(n=0), 'n is 0'),
    (dict(engine='altavista'), 'no engine'), (dict(queries=['outdoors']), 'no {} in it')])
def test_what_cannot_be_searched_for(tmp_path, kw, words):
    with pytest.raises(CatdogError, match=words): scrape(**{'labels': 'cat', 'path': tmp_path, **kw})

def test_no_manifest(tmp_path):
    with pytest.raises(CatdogError, match='manifest.jsonl'): read_manifest(tmp_path)

def one_closed_port(term, n): return [Photo('http://127.0.0.1:9/1.jpg', engine='live', term=term)]

def test_nothing_found_and_nothing_kept(web, tmp_path, monkeypatch):
    monkeypatch.setitem(ENGINES, 'nothing', lambda term, n: [])
    with pytest.raises(CatdogError, match='nothing was found'): scrape('cat', tmp_path, engine='nothing')
    monkeypatch.setitem(ENGINES, 'broken', one_closed_port)
    with pytest.raises(CatdogError, match='1 unreachable'): scrape('cat', tmp_path, engine='broken')

def test_photographs_do_not_go_beside_drawings(data, monkeypatch):
    monkeypatch.setitem(ENGINES, 'live', one_closed_port)
    with pytest.raises(CatdogError, match='holds drawings'): scrape('bird', data, engine='live')
    assert not (data/'bird').exists()
    with SampleWeb(photos=data):   # a sample web that serves a folder gives photographs
        assert {p.engine for p in search_images('cat', 5, engine='sample')} == {'photos'}
        with pytest.raises(CatdogError, match='holds drawings'): scrape('cat', data, n=70, engine='sample')

def run(cwd, *args):
    "`catdog-scrape` in a process of its own"
    args = [Path(sys.executable).with_name('catdog-scrape'), *args]
    return subprocess.run(args, cwd=cwd, capture_output=True, text=True)

def test_command(tmp_path):
    usage,bad = run(tmp_path, '--help'),run(tmp_path, 'cat', 'a/b')
    assert usage.returncode == 0 and '--retry' in usage.stdout and 'becomes a folder' in ' '.join(usage.stdout.split())
    said = "catdog-scrape: 'a/b' cannot be the name of a folder: use letters, digits and spaces\n"
    assert (bad.returncode, bad.stderr) == (2, said)
    good = run(tmp_path, 'cat', 'tabby cat', '--n', '8', '--path', 'data/command', '--engine', 'sample', '--credits')
    assert good.returncode == 0 and 'tabby cat' in good.stdout and 'all' in good.stdout
    assert len(read_manifest(tmp_path/'data'/'command')) == 16
    assert (tmp_path/'data'/'command'/'CREDITS.txt').read_text().count('licence not stated') > 8

def test_command_that_only_writes_addresses(tmp_path):
    import pyarrow.parquet as pq
    assert run(tmp_path, 'cat', '--urls-only', 'urls.parquet', '--n', '5', '--engine', 'sample').returncode == 0
    assert pq.read_table(tmp_path/'urls.parquet').num_rows == 5 and not (tmp_path/'data').exists()

# --- Copies and conflicts among pictures that a test chose

def statuses(df, label): return df[df.label == label].status.tolist()

def test_larger_of_two_copies_is_kept(tmp_path):
    a,b = picture(1),picture(2)
    bytes_ = {k: jpeg_bytes(v) for k,v in copies(a).items()}
    order = [bytes_['half'], *[jpeg_bytes(a)]*2, bytes_['larger'], bytes_['q50'], bytes_['cropped'], jpeg_bytes(b)]
    with serve_pictures({'cat': order}) as _: df = scrape('cat', str(tmp_path), engine='test')
    near = 'near-duplicate'
    assert statuses(df, 'cat') == [near, near, 'duplicate', 'ok', near, near, 'ok']
    kept = df[df.status == 'ok'].file.tolist()
    assert open_image(tmp_path/kept[0]).size == (480, 360)
    assert all(o.startswith('.removed/cat/') for o in df.file[:2])
    assert files(tmp_path) == sorted(kept + df.file[:2].tolist())   # nothing is deleted
    assert [open_image(tmp_path/o).size for o in df.file[:2]] == [(160, 120), (320, 240)]
    assert (tmp_path/'manifest.jsonl').read_text().count('\n') == 7   # one line an address

def test_same_picture_under_two_labels_is_a_conflict(tmp_path, capsys):
    a,b,c = picture(1),picture(2),picture(3)
    half = jpeg_bytes(a.resize((160, 120)))
    pictures = {'cat': [jpeg_bytes(a), jpeg_bytes(b)], 'dog': [half, jpeg_bytes(c), jpeg_bytes(a)]}
    with serve_pictures(pictures) as (_, asked):
        df = scrape(['cat', 'dog'], str(tmp_path), engine='test')
        assert '3 pictures were found under two labels' in capsys.readouterr().out
        assert statuses(df, 'cat') == ['conflict', 'ok'] and statuses(df, 'dog') == ['conflict', 'ok', 'conflict']
        assert all(o.startswith('.removed/') and (tmp_path/o).exists() for o in df[df.status == 'conflict'].file)
        assert len(list(tmp_path.glob('cat/*'))) == len(list(tmp_path.glob('dog/*'))) == 1
        # somebody decides that it is a cat: it stays one, and nothing is fetched again
        conflict = Path(df.file[0])
        os.rename(tmp_path/conflict, tmp_path/conflict.relative_to('.removed'))
        n = len(asked)
        scrape(['cat', 'dog'], str(tmp_path), n=200, engine='test')
        assert len(asked) == n and (tmp_path/conflict.relative_to('.removed')).exists()

def test_what_a_person_has_moved_stays_where_it_is(tmp_path):
    a,b = picture(1),picture(2)
    with serve_pictures({'cat': [jpeg_bytes(a)], 'dog': [jpeg_bytes(b), jpeg_bytes(a)]}) as _:
        df = scrape('cat', str(tmp_path), engine='test')
        (tmp_path/'dog').mkdir()
        moved = (tmp_path/df.file[0]).rename(tmp_path/'dog'/Path(df.file[0]).name)   # "this is a dog"
        df = scrape('dog', str(tmp_path), engine='test')
        assert statuses(df, 'dog') == ['ok', 'duplicate'] and moved.exists()

def test_copies_of_photographs_are_found(photos, tmp_path):
    "At least 95% of planted copies are found, and hardly an original is dropped (all 500 + 200: bench/scrape.py)"
    originals = [open_image(o, 512) for o in sorted((photos/'photos'/'web'/'cat').iterdir())[:100]]
    planted = [jpeg_bytes(o) for i,img in enumerate(originals[:40]) for o in [list(copies(img).values())[i%5]]]
    with serve_pictures({'cat': [jpeg_bytes(o) for o in originals] + planted}) as _:
        df = scrape('cat', str(tmp_path), engine='test')
    df['seen'] = df.status.isin(['duplicate', 'near-duplicate'])
    # a copy that is larger is kept in place of its original
    larger = [i for i in range(40) if df.status[i] == 'near-duplicate' and df.status[100 + i] == 'ok']
    assert df.seen[100:].sum() + len(larger) >= 38
    assert df.seen[:100].sum() - len(larger) <= 1
