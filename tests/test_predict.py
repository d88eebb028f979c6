"The classifier on real photographs, many pictures in constant memory, runs that are killed, model files that lie"
import csv, os, random, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from catdog.images import jpeg_bytes
from catdog.predict import Classifier, ModelError, shipped_model
from catdog.sample import draw

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
    by_picture = {i: {(o['label'], o['probability'][:6]) for o in rows[i::8]} for i in range(8)}
    assert all(len(o) == 1 for o in by_picture.values()) and part() is None

def test_dask_says_the_same_though_a_worker_is_killed(tmp_path, classifier, monkeypatch):
    "On Dask's cluster of this machine: two processes, one of which gets SIGKILL while it works"
    import pandas as pd
    from dask.distributed import Client, LocalCluster
    from catdog import predict
    monkeypatch.setattr(predict, '_A_TASK', 100)
    n = write_album(tmp_path/'album', 600)
    (tmp_path/'album'/'broken.jpg').write_bytes(b'<html>')
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        workers = client.run(os.getpid)
        assert len(set(workers.values()) - {os.getpid()}) == 2
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(predict.predict_bucket, tmp_path/'album', tmp_path/'answers', shipped_model())
            while not any(client.processing().values()): assert not asked.done(); time.sleep(.05)
            os.kill(next(iter(workers.values())), signal.SIGKILL)
            asked.result(120)
        assert workers != client.run(os.getpid)
    table = pd.read_parquet(tmp_path/'answers')
    rows = sorted(predict.predict_files(tmp_path/'album', model=shipped_model()), key=lambda o: o['file'])
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
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path):
    write_album(tmp_path/'few', 100)
    write_album(tmp_path/'many', 1200)
    assert peak(tmp_path, 'many', 'many.csv') < peak(tmp_path, 'few', 'few.csv') + 20

def test_a_tampered_model_is_refused_or_answers(tmp_path, classifier):
    "Bytes changed anywhere: a sentence, or a model that gives probabilities, and never a crash"
    whole,rng,refused = (shipped_model()/'model.onnx').read_bytes(),random.Random(2),0
    head = whole.rfind(b'catdog')   # metadata stand near the end
    picture = draw('cat', 1)
    for i in range(60):
        data = bytearray(whole)
        if i % 3 == 0: data = data[:rng.randrange(len(data))]
        else:
            start = head - 200 if i % 3 == 1 else 0
            for _ in range(rng.choice([1, 20, 2000])): data[rng.randrange(start, len(data))] = rng.randrange(256)
        (tmp_path/'model.onnx').write_bytes(data)
        try: answer = Classifier(tmp_path).predict(picture)
        except ModelError as e:
            refused += 1
            assert str(e).startswith(str(tmp_path)) and '\n' not in str(e) and len(str(e)) < 400
        else: assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert refused >= 20

def test_a_model_larger_than_a_gigabyte_is_not_read(tmp_path):
    with open(tmp_path/'model.onnx', 'wb') as f: f.truncate(2_000_000_000)
    with pytest.raises(ModelError, match='larger than 1 GB'): Classifier(tmp_path)
