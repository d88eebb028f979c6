"Many images: runs that are killed or cut off anywhere, constant memory, workers of Dask that die"
import csv, os, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from catdog.sample.draw import draw
from catdog.core.errors import CatdogError
from catdog.core.images import jpeg_bytes
from catdog.deploy import batch
from catdog.predict import Classifier, predict_bucket, predict_files, shipped_model

def script(name): return str(Path(sys.executable).with_name(name))
def environment(): return {**os.environ, 'CATDOG_MODEL': str(shipped_model())}

@pytest.fixture(scope='module')
def classifier(): return Classifier(shipped_model())

def write_album(folder, n):
    data = [jpeg_bytes(draw(['cat', 'dog'][i%2], i, (200, 160))) for i in range(8)]
    for i in range(n):
        file = folder/f'{i//500:02}'/f'{i:05}.jpg'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data[i%8])
    return n

def start(folder, *args):
    return subprocess.Popen([script('catdog-predict'), *args], cwd=folder, env=environment(),
                            stderr=subprocess.PIPE, text=True)

def test_a_killed_run_goes_on(tmp_path):
    n = write_album(tmp_path/'album', 600)
    process = start(tmp_path, 'album', '--out', 'answers.csv')
    def part(): return next(tmp_path.glob('.answers.csv.*.part'), None)
    while not (part() and part().stat().st_size > 4000): assert process.poll() is None; time.sleep(.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path/'answers.csv').exists()
    done = len(part().read_bytes().splitlines()) - 2   # without the head, and the last may be half a line
    second = start(tmp_path, 'album', '--out', 'answers.csv')
    said = second.communicate()[1]
    assert second.returncode == 0 and 'going on from there' in said
    assert int(said.split(' has ')[1].split()[0].replace(',', '')) >= done > 10
    with open(tmp_path/'answers.csv', newline='') as f: rows = list(csv.DictReader(f))
    assert [o['file'] for o in rows] == [f'album/{i//500:02}/{i:05}.jpg' for i in range(n)]
    by_image = {i: {(o['label'], o['probability'][:6]) for o in rows[i::8]} for i in range(8)}
    assert all(len(o) == 1 for o in by_image.values()) and part() is None

class Counting(Classifier):
    "Notes which images it opens"
    def __init__(self, *args):
        super().__init__(*args)
        self.opened = []
    def pixels(self, img):
        self.opened.append(str(img))
        return super().pixels(img)

@pytest.fixture
def again(tmp_path, monkeypatch):
    """A file of answers about eleven images, one of them broken, the lines of the log that it was made of, and what
    writes it once more when a stopped run has left a log of the content given; it returns how many were opened"""
    monkeypatch.chdir(tmp_path)
    write_album(Path('album'), 10)
    Path('album/00/broken.jpg').write_bytes(b'<html>')
    monkeypatch.setenv('CATDOG_MODEL', str(shipped_model()))
    out,classifier = Path('answers.csv'),Counting(shipped_model())
    part = batch._part_file(classifier, out)
    answers = batch.write_rows(classifier, batch.found_files(['album']), out, batch.tqdm(disable=True))
    for _ in range(11): next(answers)
    answers.close()   # stopped after the last answer
    log = part.read_bytes().splitlines(True)
    whole = predict_files('album', out=out).read_bytes()
    def write(content):
        classifier.opened.clear()
        part.write_bytes(content)
        out.unlink()
        batch.write_file(classifier, ['album'], out)
        return len(classifier.opened)
    return out,whole,log,write

def test_a_file_and_the_list_say_the_same(again):
    whole = again[1]
    rows = predict_files('album')
    assert len(rows) == 11 and [o['file'] for o in rows if 'error' in o] == ['album/00/broken.jpg']
    for row,line in zip(rows, csv.DictReader(whole.decode().splitlines()), strict=True):
        for k in ('file', 'label', 'error'): assert line[k] == row.get(k, '')

def test_what_predict_files_refuses(again):
    for paths,out,words in (([], None, 'no images'), (['album'], 'answers.xls', 'ends in .csv'),
                            (['album'], 'nowhere/answers.csv', 'no such folder')):
        with pytest.raises(CatdogError, match=words): predict_files(*paths, out=out)
    assert not list(Path().glob('.*.part'))

def test_a_line_cut_off_at_any_place(again):
    out,whole,log,write = again
    n = len(log) - 1
    assert write(b''.join(log[:6]) + log[6][:20]) == n - 5 and out.read_bytes() == whole
    for cut in (0, 1, 3, len(log[2]) - 1):
        assert write(b''.join(log[:2]) + log[2][:cut]) == n - 1 and out.read_bytes() == whole

def test_an_unfinished_file_that_is_none_of_ours(again):
    out,whole,log,write = again
    for junk in (b'', b'junk', b'"', log[0][:-3], b'\0\xff\r\n'*9, whole):
        assert write(junk) == len(log) - 1 and out.read_bytes() == whole

def test_images_that_came_or_went_meanwhile(again):
    out,whole,log,write = again
    assert write(b''.join(log)) == 0 and out.read_bytes() == whole
    # of those that the log has in between, none is asked again
    assert write(b''.join(log[:3] + log[4:6])) == len(log) - 1 - 4 and out.read_bytes() == whole

def test_dask_says_the_same_though_a_worker_is_killed(tmp_path, classifier, monkeypatch):
    "On Dask's cluster of this machine: two processes, one of which gets SIGKILL while it works"
    import pandas as pd
    from dask.distributed import Client, LocalCluster
    monkeypatch.setattr(batch, 'TASK_SIZE', 100)
    n = write_album(tmp_path/'album', 600)
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
    assert list(table.file) == [Path(o['file']).as_uri() for o in rows] and len(rows) == n + 1
    assert table.error.notna().sum() == 1
    for row,o in zip(table.to_dict('records'), rows):
        assert row['error'] == o['error'] if 'error' in o else row['p_cat'] == pytest.approx(o['p_cat'], abs=1e-5)

def peak(folder, *args):
    "Peak memory in MB of `predict_files` with `args`, as Linux counts it"
    code = ('import sys; from catdog.predict import predict_files; predict_files(sys.argv[1], out=sys.argv[2]); '
            'print(open("/proc/self/status").read())')
    done = subprocess.run([sys.executable, '-c', code, *args], cwd=folder, env=environment(),
                          capture_output=True, text=True, check=True)
    return int(done.stdout.split('VmHWM:')[1].split()[0])/1024

@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    write_album(tmp_path/'few', 100)
    write_album(tmp_path/'many', 1200)
    assert peak(tmp_path, 'many', 'many.csv') < peak(tmp_path, 'few', 'few.csv') + 20
