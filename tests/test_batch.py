"Batch prediction: interrupted and concurrent runs, changed images, a full disk, odd names and labels, killed workers"
import csv, json, os, re, resource, shutil, signal, sqlite3, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd, pytest
from clean_helpers import as_nobody, reachable

from catdog.core.errors import CatdogError, DataError, ImageError
from catdog.core.images import jpeg_bytes, open_image
from catdog.deploy import batch
from catdog.predict import Classifier, predict_bucket, predict_files, shipped_model
from catdog.sample.draw import draw

NOT_UTF8 = os.fsdecode(b'caf\xe9.jpg')

def album(folder, n):
    "`n` images below `folder`; those with an even number are cats, the others dogs"
    data = [jpeg_bytes(draw(['cat', 'dog'][i%2], i, (200, 160))) for i in range(8)]
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n): (folder/f'{i:05}.jpg').write_bytes(data[i%8])

def start(folder, *args, **kw):
    "`catdog-predict` with `args`, as typed in `folder`"
    program = str(Path(sys.executable).with_name('catdog-predict'))
    env = {**os.environ, 'CATDOG_MODEL': str(shipped_model()), **kw.pop('env', {})}
    return subprocess.Popen([program, *args], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, errors='surrogateescape', **kw)

def ended(process):
    out,err = process.communicate(timeout=120)
    assert 'Traceback' not in err, err
    return process.returncode,out,err

def run(folder, *args, **kw): return ended(start(folder, *args, **kw))

def rows(file):
    with open(file, newline='', encoding='utf8', errors='surrogateescape') as f: return list(csv.DictReader(f))

def stored(folder):
    "Return file -> JSON of its row, for the predictions that a stopped run saved for answers.csv"
    db = sqlite3.connect(folder/'.answers.csv.part')
    res = {os.fsdecode(file): row for file,row in db.execute('SELECT file, row FROM answers')}
    db.close()
    return res

def begun(folder, n=600, size=30_000):
    "Start a run about `n` images that has saved more than `size` bytes of predictions and is still running"
    album(folder/'album', n)
    process,part = start(folder, 'album', '--out', 'answers.csv'),folder/'.answers.csv.part'
    while not (part.exists() and part.stat().st_size > size):
        assert process.poll() is None
        time.sleep(.02)
    return process

# In a terminal

@pytest.mark.parametrize('url', ['https://example.org/a%20cat.jpg?x=1', 's3://bucket/cat.jpg', 'HTTP://example.org'])
def test_url_is_refused_and_quoted_as_typed(tmp_path, url):
    draw('cat', 1).save(tmp_path/'cat.jpg')
    for out in (None, tmp_path/'answers.csv'):
        with pytest.raises(CatdogError) as e: predict_files(tmp_path/'cat.jpg', url, model=shipped_model(), out=out)
        assert str(e.value).startswith(f'{url}: ') and 'download' in str(e.value)
    assert os.listdir(tmp_path) == ['cat.jpg']

def test_error_line_names_its_image_once(tmp_path):
    "Also for something that is not a path, such as a `data:` URL, which is longer than any file name can be"
    draw('cat', 1).save(tmp_path/'cat.jpg')
    (tmp_path/'page.jpg').write_text('<html>')
    url = 'data:image;base64,' + 'x'*300
    code,said,err = run(tmp_path, 'cat.jpg', 'gone.jpg', 'page.jpg', url)
    gone,page,long = err.splitlines()
    assert (code, gone, page) == (2, 'gone.jpg: there is no such file', 'page.jpg: a web page, not an image')
    assert said.startswith('cat.jpg: ') and said.count('\n') == 1 and long.count(url) == 1

def test_name_that_is_not_utf8(tmp_path):
    "Parquet cannot hold it and gets it escaped; CSV keeps its bytes"
    album(tmp_path/'album', 2)
    draw('cat', 1).save(tmp_path/'album'/NOT_UTF8)
    code,_,err = run(tmp_path, 'album', '--out', 'answers.parquet')
    assert code == 0 and pd.read_parquet(tmp_path/'answers.parquet').file[2] == r'album/caf\xe9.jpg', err
    predict_files(tmp_path/'album', model=shipped_model(), out=tmp_path/'answers.csv')
    assert [o['file'] for o in rows(tmp_path/'answers.csv')][-1] == f'{tmp_path}/album/{NOT_UTF8}'
    code,said,_ = run(tmp_path, f'album/{NOT_UTF8}', env=dict(PYTHONIOENCODING='utf8:strict'))
    assert code == 0 and said.startswith(r'album/caf\udce9.jpg: ')

def test_unreadable_folder_has_a_row(tmp_path):
    "Missing images must not go unnoticed"
    album(tmp_path/'album', 2)
    album(tmp_path/'album'/'locked', 2)
    reachable(tmp_path)
    (tmp_path/'album'/'locked').chmod(0o311)
    def say(): raise LookupError([(o.name, _reason(o)) for o in batch.found_files([tmp_path/'album'])])
    def _reason(file):
        try: return open_image(file).size
        except ImageError as e: return e.reason.removeprefix(f'{file}: ')
    said = as_nobody(say)
    assert re.match(r"LookupError: \[\('00000.jpg', \(200, 160\)\), \('00001.jpg', \(200, 160\)\), "
                    r"\('locked', .cannot be read", said)

@pytest.mark.parametrize('out,words', [('there.csv', 'is a folder'), ('answers.xls', 'ends in .csv'),
                                       ('nowhere/answers.csv', 'no such folder')])
def test_unwritable_out_is_refused_at_the_start(tmp_path, monkeypatch, out, words):
    monkeypatch.chdir(tmp_path)
    album(Path('album'), 1)
    Path('there.csv').mkdir()
    with pytest.raises(CatdogError, match=words): predict_files('album', out=out)
    with pytest.raises(CatdogError, match='no images'): predict_files(out='answers.csv')
    assert sorted(os.listdir()) == ['album', 'there.csv']

# Stopped runs

def test_killed_run_resumes_and_repredicts_changed_images(tmp_path):
    process = begun(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path/'answers.csv').exists()
    done = stored(tmp_path)
    assert 30 < len(done) < 600
    (tmp_path/'album'/'00000.jpg').write_bytes((tmp_path/'album'/'00001.jpg').read_bytes())   # a dog by now
    (tmp_path/'album'/'00003.jpg').write_text('<html>')
    (tmp_path/'album'/'00002.jpg').unlink()
    (tmp_path/'album'/'00000-new.jpg').write_bytes((tmp_path/'album'/'00004.jpg').read_bytes())
    code,_,err = run(tmp_path, 'album', '--out', 'answers.csv')
    assert code == 2 and f'{len(done) - 3} of 600 images are predicted already' in err   # 2: no image in 00003.jpg
    by_file = {o['file']: o for o in rows(tmp_path/'answers.csv')}
    assert list(by_file) == sorted(f'album/{o.name}' for o in (tmp_path/'album').iterdir()) and len(by_file) == 600
    assert json.loads(done['album/00000.jpg'])[0] == 'cat' and by_file['album/00000.jpg']['label'] == 'dog'
    assert by_file['album/00003.jpg']['error'] == 'a web page, not an image'
    by_image = {(i%8, o['label'], o['probability'][:6]) for i in range(8, 600) for o in [by_file[f'album/{i:05}.jpg']]}
    assert len(by_image) == 8
    assert sorted(os.listdir(tmp_path)) == ['album', 'answers.csv']

class Counting(Classifier):
    "A classifier that records which images it opens"
    def __init__(self, *args):
        super().__init__(*args)
        self.opened = []
    def pixels(self, img):
        self.opened.append(Path(img).name)
        return super().pixels(img)

class Stop(Exception): pass

class Stopping(Counting):
    "A classifier that is stopped after its first batch"
    def answers(self, pixels):
        if getattr(self, 'batches', 0): raise Stop
        self.batches = 1
        return super().answers(pixels)

def write(classifier, files, out=Path('answers.csv')):
    "Return the images that `classifier` opens to write `out` for `files`"
    classifier.opened.clear()
    batch.write_file(classifier, files, out)
    return list(classifier.opened)

def test_only_new_and_changed_images_are_predicted_again(tmp_path, monkeypatch):
    "By size and modification time; also when images were added, removed or reordered"
    monkeypatch.chdir(tmp_path)
    album(Path('album'), 40)
    files,out = sorted(Path('album').iterdir()),Path('answers.csv')
    with pytest.raises(Stop): write(Stopping(shipped_model()), files)
    known = set(stored(tmp_path))
    assert len(known) == 32 and not out.exists()
    os.utime(files[2], (1, 1))
    before = files[4].stat().st_atime_ns,files[4].stat().st_mtime_ns
    files[4].write_bytes(files[4].read_bytes() + b' ')   # the same time, another size
    os.utime(files[4], ns=before)
    new = Path(shutil.copy(files[5], 'album/00005-2.jpg'))
    order = [*files[10:], new, *files[:10]]
    asked = write(Counting(shipped_model()), order)
    assert asked == [o.name for o in order if str(o) not in known or o in (files[2], files[4])]
    assert [o['file'] for o in rows(out)] == list(map(str, order))
    whole = out.read_bytes()
    assert not list(Path().glob('.*'))
    assert len(write(Counting(shipped_model()), order)) == 41 and out.read_bytes() == whole   # a finished run leaves nothing

def test_another_model_predicts_all_images_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    album(Path('album'), 40)
    shutil.copytree(shipped_model(), 'other')
    with open('other/model.onnx', 'ab') as f: f.write(b'\x72\x00')   # an empty field of the ONNX file
    with pytest.raises(Stop): write(Stopping(shipped_model()), ['album'])
    assert len(write(Counting('other'), ['album'])) == 40

@pytest.mark.parametrize('junk', [b'', b'junk', b'SQLite format 3\0' + bytes(100), b'\0\xff\r\n'*900])
def test_foreign_file_in_place_of_the_database(tmp_path, monkeypatch, junk):
    monkeypatch.chdir(tmp_path)
    album(Path('album'), 3)
    Path('.answers.csv.part').write_bytes(junk)
    assert len(write(Counting(shipped_model()), ['album'])) == 3 and os.listdir() != ['album']
    assert len(rows('answers.csv')) == 3 and not list(Path().glob('.*'))

def test_second_run_into_the_same_file_is_refused(tmp_path):
    first = begun(tmp_path, 300, size=0)
    first.send_signal(signal.SIGSTOP)   # so that it is not at its end before the second has come
    try:
        code,_,err = run(tmp_path, 'album', '--out', 'answers.csv')
        assert code == 2 and 'another process is writing answers.csv' in err and len(err.splitlines()) == 1
        assert run(tmp_path, 'album/00001.jpg', '--out', 'others.csv')[0] == 0   # other files are not locked
    finally: first.send_signal(signal.SIGCONT)
    assert ended(first)[0] == 0 and len(rows(tmp_path/'answers.csv')) == 300

@pytest.mark.parametrize('suffix', ['csv', 'parquet'])
def test_full_disk_is_reported_and_nothing_is_lost(tmp_path, suffix):
    "The limit is real: the kernel refuses to write more"
    album(tmp_path/'album', 120)
    def limit(size): return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    for size in (0, 26_000):   # nothing fits; then some predictions do
        code,_,err = run(tmp_path, 'album', '--out', f'answers.{suffix}', preexec_fn=limit(size))
        last = err.splitlines()[-1]
        assert code == 2 and last.startswith(f'catdog-predict: answers.{suffix}: cannot be written'), err
        assert not (tmp_path/f'answers.{suffix}').exists()
    code,_,err = run(tmp_path, 'album', '--out', f'answers.{suffix}')
    assert code == 0 and 'predicted already' in err
    out = tmp_path/f'answers.{suffix}'
    assert len(rows(out) if suffix == 'csv' else pd.read_parquet(out)) == 120
    assert sorted(os.listdir(tmp_path)) == ['album', out.name]

# What is written

ODD = ['A+', 'NA', 'null', 'True', '1.5', '"', "it's, \"so\"", '<b>|*_', '😀', 'قطة', 'c\n++', '=1+1']

def test_odd_labels_in_csv_and_parquet(tmp_path, monkeypatch):
    "The file has the same content as the list"
    import onnx
    monkeypatch.chdir(tmp_path)
    album(Path('album'), 4)
    Path('album/broken.jpg').write_text('<html>')
    model = onnx.load(shipped_model()/'model.onnx')
    meta = json.loads(next(o.value for o in model.metadata_props if o.key == 'catdog'))
    for i,pair in enumerate(zip(ODD[::2], ODD[1::2])):
        onnx.helper.set_model_props(model, {'catdog': json.dumps(dict(meta, labels=pair))})
        Path(f'{i}').mkdir()
        onnx.save(model, f'{i}/model.onnx')
        expected = predict_files('album', model=f'{i}')
        assert {o['label'] for o in expected if 'error' not in o} == set(pair)
        assert [o['file'] for o in expected if 'error' in o] == ['album/broken.jpg']
        csv_file,parquet = (predict_files('album', model=f'{i}', out=f'answers.{o}') for o in ('csv', 'parquet'))
        for row,line,o in zip(expected, rows(csv_file), pd.read_parquet(parquet).to_dict('records'), strict=True):
            assert list(o) == list(line) == [*expected[0], 'error']
            known = {k: v for k,v in row.items() if v is not None}
            assert {k: v for k,v in o.items() if pd.notna(v)} == known
            assert {k: v for k,v in line.items() if v} == {k: str(v) for k,v in known.items()}

# Very many

@pytest.mark.nightly
def test_dask_predicts_the_same_when_a_worker_is_killed(tmp_path, monkeypatch):
    "On Dask's cluster of this machine: two processes, one of which gets SIGKILL while it works"
    from dask.distributed import Client, LocalCluster
    monkeypatch.setattr(batch, '_TASK_SIZE', 60)
    album(tmp_path/'album', 360)
    (tmp_path/'album'/'broken.jpg').write_bytes(b'<html>')
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        workers = client.run(os.getpid)
        assert len(set(workers.values()) - {os.getpid()}) == 2
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(predict_bucket, tmp_path/'album', tmp_path/'answers', shipped_model())
            while not any(client.processing().values()): assert not asked.done(); time.sleep(.05)
            os.kill(next(iter(workers.values())), signal.SIGKILL)
            asked.result(120)
        assert workers != client.run(os.getpid)
    table = pd.read_parquet(tmp_path/'answers')
    rows = sorted(predict_files(tmp_path/'album', model=shipped_model()), key=lambda o: o['file'])
    assert list(table.file) == [Path(o['file']).as_uri() for o in rows] and len(rows) == 361
    assert table.error.notna().sum() == 1
    for row,o in zip(table.to_dict('records'), rows):
        assert row['error'] == o['error'] if 'error' in o else row['p_cat'] == pytest.approx(o['p_cat'], abs=1e-5)

def test_bucket_in_memory(tmp_path):
    import dask, fsspec
    album(tmp_path/'album', 4)
    bucket,classifier = fsspec.filesystem('memory'),Classifier(shipped_model())
    for o in (tmp_path/'album').iterdir(): bucket.pipe(f'/bucket/{o.name}', o.read_bytes())
    bucket.pipe('/bucket/.hidden/a.jpg', b'')
    with dask.config.set(scheduler='threads'): predict_bucket('memory://bucket', tmp_path/'answers', shipped_model())
    table = pd.read_parquet(tmp_path/'answers')
    rows = list(batch.answer_rows(classifier, sorted((tmp_path/'album').iterdir())))
    assert list(table.file) == [f'memory:///bucket/{Path(o["file"]).name}' for o in rows]
    assert table.p_cat.tolist() == pytest.approx([o['p_cat'] for o in rows], abs=1e-5)
    with pytest.raises(DataError, match='Parquet files already'): predict_bucket('memory://bucket', tmp_path/'answers')
    with pytest.raises(DataError, match='no images'): predict_bucket('memory://nothing', tmp_path/'others')

def peak(folder, *args):
    "Return the peak memory in MB of `predict_files` with `args` (Linux)"
    code = ('import sys; from catdog.predict import predict_files; predict_files(sys.argv[1], out=sys.argv[2]); '
            'print(open("/proc/self/status").read())')
    done = subprocess.run([sys.executable, '-c', code, *args], cwd=folder, capture_output=True, text=True, check=True,
                          env={**os.environ, 'CATDOG_MODEL': str(shipped_model())})
    return int(done.stdout.split('VmHWM:')[1].split()[0])/1024

@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_memory_is_independent_of_the_number_of_images(tmp_path):
    album(tmp_path/'few', 60)
    album(tmp_path/'many', 500)
    assert peak(tmp_path, 'many', 'many.csv') < peak(tmp_path, 'few', 'few.csv') + 20
