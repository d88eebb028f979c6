"Many images into a file: what is refused beforehand, images that change, two runs at once, a full disk, labels."
import csv, json, os, re, resource, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest
from clean_helpers import as_nobody, reachable

from catdog.sample.draw import draw
from catdog.core.errors import ImageError, CatdogError
from catdog.core.images import jpeg_bytes, open_image
from catdog.deploy import batch
from catdog.predict import Classifier, predict_bucket, predict_files, shipped_model

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
def part(folder): return next(folder.glob('.answers.*.part'), None)
def rows(file):
    with open(file, newline='', encoding='utf8', errors='surrogateescape') as f: return list(csv.DictReader(f))

def started(folder, n=600):
    "A run that has written some answers about `n` images into a file and goes on"
    album(folder/'album', n)
    process = start(folder, 'album', '--out', 'answers.csv')
    while not (part(folder) and part(folder).stat().st_size > 4000):
        assert process.poll() is None
        time.sleep(.02)
    return process

@pytest.mark.parametrize('address', ['https://example.org/a%20cat.jpg?x=1', 's3://bucket/cat.jpg',
                                     'HTTP://example.org'])
@pytest.mark.parametrize('out', [(), ('--out', 'answers.csv')], ids=['printed', 'written'])
def test_an_address_is_refused_in_words_that_quote_it_as_typed(tmp_path, address, out):
    draw('cat', 1).save(tmp_path/'cat.jpg')
    code,said,err = run(tmp_path, 'cat.jpg', address, *out)
    assert code == 2 and not said and err.startswith(f'catdog-predict: {address}: ') and 'download' in err
    assert os.listdir(tmp_path) == ['cat.jpg']
    with pytest.raises(CatdogError, match='download'): predict_files(address, model=shipped_model())

def test_what_is_no_path_at_all_has_its_line(tmp_path):
    "An image written out as an address is longer than any name may be"
    draw('cat', 1).save(tmp_path/'cat.jpg')
    address = 'data:image;base64,' + 'x'*300
    code,said,err = run(tmp_path, address, 'cat.jpg')
    assert code == 2 and said.startswith('cat.jpg: ') and len(err.splitlines()) == 1 and err.count(address) == 1

def test_a_line_names_its_image_once(tmp_path):
    draw('cat', 1).save(tmp_path/'cat.jpg')
    (tmp_path/'page.jpg').write_text('<html>')
    code,said,err = run(tmp_path, 'cat.jpg', 'gone.jpg', 'page.jpg')
    assert code == 2 and err.splitlines() == ['gone.jpg: there is no such file', 'page.jpg: a web page, not an image']

def test_a_name_that_is_not_utf8(tmp_path):
    "Parquet cannot hold it, which is said before anything is predicted; CSV can, and so can a terminal"
    album(tmp_path/'album', 2)
    draw('cat', 1).save(tmp_path/'album'/NOT_UTF8)
    code,_,err = run(tmp_path, 'album', '--out', 'answers.parquet')
    assert code == 2 and r'album/caf\xe9.jpg: ' in err and '.csv' in err and len(err.splitlines()) == 1
    assert os.listdir(tmp_path) == ['album']
    code,_,_ = run(tmp_path, 'album', '--out', 'answers.csv')
    assert code == 0 and [o['file'] for o in rows(tmp_path/'answers.csv')][-1] == f'album/{NOT_UTF8}'
    code,said,_ = run(tmp_path, f'album/{NOT_UTF8}', env=dict(PYTHONIOENCODING='utf8:strict'))
    assert code == 0 and said.startswith(f'album/{NOT_UTF8}: ')
    with pytest.raises(CatdogError, match='UTF-8'): predict_bucket(tmp_path/'album', tmp_path/'answers')

def test_a_folder_that_cannot_be_read_has_its_row(tmp_path):
    "Nobody should believe that all images were asked about"
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

@pytest.mark.parametrize('out,words', [('there', 'is a folder'), ('answers.xls', 'ends in .csv'),
                                       ('nowhere/answers.csv', 'no such folder')])
def test_an_out_that_cannot_be_written_is_told_at_the_start(tmp_path, out, words):
    album(tmp_path/'album', 1)
    (tmp_path/'there.csv').mkdir()
    code,_,err = run(tmp_path, 'album', '--out', out if '.' in out else 'there.csv')
    assert code == 2 and words in err and len(err.splitlines()) == 1 and part(tmp_path) is None

def test_a_image_that_changed_since_the_stopped_run_is_asked_again(tmp_path):
    process = started(tmp_path)
    process.kill()
    process.wait()
    done = rows(part(tmp_path))[:-1]
    assert len(done) > 20
    (tmp_path/'album'/'00000.jpg').write_bytes((tmp_path/'album'/'00001.jpg').read_bytes())   # a dog by now
    (tmp_path/'album'/'00003.jpg').write_text('<html>')
    (tmp_path/'album'/'00002.jpg').unlink()
    (tmp_path/'album'/'00000-new.jpg').write_bytes((tmp_path/'album'/'00004.jpg').read_bytes())
    code,_,err = run(tmp_path, 'album', '--out', 'answers.csv')
    assert code == 2 and 'going on from there' in err   # 2: there is no image in 00003.jpg any more
    by_file,before = ({o['file']: o for o in some} for some in (rows(tmp_path/'answers.csv'), done))
    assert list(by_file) == sorted(f'album/{o.name}' for o in (tmp_path/'album').iterdir()) and len(by_file) == 600
    assert before['album/00000.jpg']['label'] == 'cat' and by_file['album/00000.jpg']['label'] == 'dog'
    assert by_file['album/00003.jpg']['error'] == 'a web page, not an image'
    left = [f for f in before if f in by_file and f[6:11] not in ('00000', '00003')]
    assert len(left) > 15
    assert all(by_file[f] == {k: before[f][k] for k in by_file[f]} for f in left)

class Counting(Classifier):
    "Notes which images it opens"
    def __init__(self, *args):
        super().__init__(*args)
        self.opened = []
    def pixels(self, img):
        self.opened.append(Path(img).name)
        return super().pixels(img)

def test_only_what_is_new_or_changed_is_asked_again(tmp_path, monkeypatch):
    "By size and by time of change; also where images came, went, or are asked for in another order"
    monkeypatch.chdir(tmp_path)
    album(Path('album'), 20)
    classifier,files = Counting(shipped_model()),sorted(Path('album').iterdir())
    def ask(files, stop=None):
        "Which of `files` are opened when a run is stopped after `stop` answers; None: at its end"
        classifier.opened.clear()
        answers = batch.write_rows(classifier, files, Path('answers.csv'), batch.tqdm(disable=True))
        for _ in range(stop or len(files) + 1): next(answers, None)
        answers.close()
        return list(classifier.opened)
    assert len(ask(files, 10)) >= 10 and not Path('answers.csv').exists()
    known = {o['file'] for o in rows(part(tmp_path))}
    assert len(known) >= 10
    os.utime(files[2], (1, 1))
    before = files[4].stat().st_atime_ns,files[4].stat().st_mtime_ns
    files[4].write_bytes(files[4].read_bytes() + b' ')   # the same time, another size
    os.utime(files[4], ns=before)
    shutil.copy(files[5], 'album/00005-2.jpg')
    asked = ask([*files[10:], Path('album/00005-2.jpg'), *files[:10]])
    assert asked == [o.name for o in files[10:] if str(o) not in known] + ['00005-2.jpg', '00002.jpg', '00004.jpg']
    assert [o['file'] for o in rows('answers.csv')] == list(map(str, [*files[10:], 'album/00005-2.jpg', *files[:10]]))
    assert [o.name for o in Path().glob('.*')] == ['.answers.csv.lock']

def test_of_two_runs_into_one_file_the_second_says_who_is_at_work(tmp_path):
    first = started(tmp_path)
    first.send_signal(signal.SIGSTOP)   # it is slow, and it is not at its end before the second has come
    try:
        code,_,err = run(tmp_path, 'album', '--out', 'answers.csv')
        assert code == 2 and 'another catdog process is working on answers.csv: try again' in err
        assert run(tmp_path, 'album/00001.jpg', '--out', 'others.csv')[0] == 0   # another file is another matter
    finally: first.send_signal(signal.SIGCONT)
    assert ended(first)[0] == 0 and len(rows(tmp_path/'answers.csv')) == 600

def test_a_lock_does_not_outlive_its_run(tmp_path):
    first = started(tmp_path, 100)
    first.kill()
    first.wait()
    assert run(tmp_path, 'album', '--out', 'answers.csv')[0] == 0
    assert len(rows(tmp_path/'answers.csv')) == 100 and sorted(os.listdir(tmp_path)) == ['.answers.csv.lock', 'album', 'answers.csv']

@pytest.mark.parametrize('suffix', ['csv', 'parquet'])
def test_a_full_disk_ends_in_a_sentence_and_nothing_is_lost(tmp_path, suffix):
    "The limit is real: the kernel writes the part of a line that still fits, then refuses"
    import pandas as pd
    album(tmp_path/'album', 120)
    def limit(size): return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    # some answers fit; then all of them do, but not the file that is made of them
    for size in (0, 3000, 9500):
        code,_,err = run(tmp_path, 'album', '--out', f'answers.{suffix}', preexec_fn=limit(size))
        last = err.splitlines()[-1]
        assert code == 2 and last.startswith('catdog-predict: ') and 'File too large' in last
        if size: assert 'the same command goes on from there' in last
        assert not (tmp_path/f'answers.{suffix}').exists()
    code,_,err = run(tmp_path, 'album', '--out', f'answers.{suffix}')
    assert code == 0 and 'going on from there' in err
    out = tmp_path/f'answers.{suffix}'
    assert len(rows(out) if suffix == 'csv' else pd.read_parquet(out)) == 120
    assert sorted(os.listdir(tmp_path)) == [f'.{out.name}.lock', 'album', out.name]

ODD = ['A+', 'NA', 'null', 'True', '1.5', '"', "it's, \"so\"", '<b>|*_', '😀', 'قطة', 'c\n++', '=1+1']

def test_odd_labels_come_through_csv_and_parquet(tmp_path, monkeypatch):
    import onnx
    import pandas as pd
    monkeypatch.chdir(tmp_path)
    album(Path('album'), 4)
    model = onnx.load(shipped_model()/'model.onnx')
    meta = json.loads(next(o.value for o in model.metadata_props if o.key == 'catdog'))
    for i,pair in enumerate(zip(ODD, reversed(ODD))):
        onnx.helper.set_model_props(model, {'catdog': json.dumps(dict(meta, labels=pair))})
        Path(f'{i}').mkdir()
        onnx.save(model, f'{i}/model.onnx')
        expected = predict_files('album', model=f'{i}')
        assert {o['label'] for o in expected} == set(pair)
        code,_,err = run(tmp_path, 'album', '--model', f'{i}', '--out', 'answers.csv')
        assert code == 0, err
        table = pd.read_parquet(predict_files('album', model=f'{i}', out='answers.parquet'))
        for row,line,o in zip(expected, rows('answers.csv'), table.to_dict('records'), strict=True):
            assert list(o) == list(line) == [*row, 'error']
            known = {k: v for k,v in row.items() if v is not None}
            assert {k: v for k,v in o.items() if pd.notna(v)} == known and line['label'] == row['label']
