"The model folder: training and serving must give the same answers."
import json, os, signal, subprocess, sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from catdog.predict import Classifier, shipped_model
from catdog.sample.draw import draw

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "A build on drawings with an epoch of fine-tuning: the Learner, the model folder, and the output"
    from catdog import train as chapter
    folder,learners,printed = tmp_path_factory.mktemp('build'),[],StringIO()
    def train(*args, **kw):
        learners.append(train_(*args, **kw))
        return learners[0]
    train_ = chapter.train
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(chapter, 'train', train)
        model = chapter.build(['cat', 'dog'], folder/'data', folder/'model', n=60, engine='sample', size=96, epochs=1)
    return learners[0],model,printed.getvalue()

def images_of(learn): return sorted(Path(learn.dls.path).glob('*/*.jpg'))

def assert_agree(learn, model, files):
    "Assert that labels are the same and probabilities within 1e-4"
    with learn.no_bar(): expected = learn.get_preds(dl=learn.dls.test_dl(files, num_workers=0))[0].numpy()
    classifier = Classifier(model)
    answers = classifier.predict_batch(files)
    assert [o.label for o in answers] == [classifier.labels[o] for o in expected.argmax(1)]
    assert np.abs(np.array([list(o.probabilities.values()) for o in answers]) - expected).max() < 1e-4

def large(folder):
    "JPEG files that both sides decode at a half, a quarter and an eighth of their size, upright and rotated"
    exif = Image.Exif()
    exif[0x112] = 6
    files = [folder/f'{i}.jpg' for i in range(6)]
    for i,size in enumerate([(500, 400), (900, 1000), (3000, 2000)]*2):
        draw(['cat', 'dog'][i%2], 2000 + i, size).save(files[i], exif=exif if i%4 else b'')
    return files

def test_the_onnx_model_and_the_pickle_agree_with_the_learner(built, tmp_path):
    from fastai.learner import load_learner
    learn,model,_ = built
    assert Classifier(model).meta['min_side'] == 2*96
    files = images_of(learn)[:100] + large(tmp_path)
    assert_agree(learn, model, files)
    assert_agree(load_learner(model/'export.pkl'), model, files[-20:])

def test_build_prints_its_steps_and_warns_about_drawings(built):
    learn,model,printed = built
    assert [o[:5] for o in printed.splitlines() if o.startswith('[')] == [f'[{i}/4]' for i in range(1, 5)]
    assert 'validation images (95% interval' in printed and 'knows nothing about photographs' in printed
    assert Classifier(model).meta['trained_on'] == 'drawings'
    assert 'mean nothing' in (model/'model_card.md').read_text()

def test_model_file_contains_no_local_paths(built):
    learn,model,_ = built
    data = (model/'model.onnx').read_bytes()
    meta = json.loads(onnxruntime.InferenceSession(data).get_modelmeta().custom_metadata_map['catdog'])
    assert meta['labels'] == ['cat', 'dog']
    assert (meta['n_train'], meta['n_valid']) == (len(learn.dls.train_ds), len(learn.dls.valid_ds))
    assert str(Path(__file__).parent.parent).encode() not in data and b'site-packages' not in data

def test_int8_gives_the_same_answers_from_a_smaller_file(built, tmp_path, monkeypatch):
    from catdog.learn import export as exporter
    learn,model,_ = built
    # a small model of drawings moves by more than `export` tolerates, which learn/export.ipynb tests; here it may
    monkeypatch.setattr(exporter, '_rounding_fault', lambda *logits: '')
    small = exporter.export(learn, tmp_path/'small', int8=True)
    assert (small/'model.onnx').stat().st_size < .4*(model/'model.onnx').stat().st_size
    assert '8-bit' in (small/'model_card.md').read_text()
    files = images_of(learn)
    exact,rounded = (Classifier(o) for o in (model, small))
    given = [(a.label, b.label, abs(a.probability - b.probability))
             for a,b in zip(exact.predict_batch(files), rounded.predict_batch(files))]
    assert sum(a != b for a,b,_ in given) <= .05*len(files) and np.mean([o for *_,o in given]) < .1
    why = [o.explain(files[0], given[0][0]) for o in (exact, rounded)]
    assert np.corrcoef(*[o.ravel() for o in why])[0, 1] > .9
    assert rounded.meta['int8'] and rounded.meta['neither'] != exact.meta['neither']   # measured anew

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs a process that can be killed cheaply')
def test_killed_export_leaves_the_old_model(built):
    from catdog.core.model_file import staged_folder
    _,model,_ = built
    before = {o.name: o.read_bytes() for o in model.iterdir()}
    if not (pid := os.fork()):
        try:
            with staged_folder(model) as part:
                for name in before: (part/name).write_bytes(b'half')
                os.kill(os.getpid(), signal.SIGKILL)
        finally: os._exit(1)   # or this process would go on with the tests
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert {o.name: o.read_bytes() for o in model.iterdir() if o.is_file()} == before
    assert Classifier(model).labels == ['cat', 'dog']

# On photographs

def error_of(model, photos):
    "The error of `model` on a quarter of the 1,998 photographs in photos/test"
    files = sorted((photos/'photos'/'test').glob('*/*'))[::4]
    return np.mean([o.label != f.parent.name for o,f in zip(Classifier(model).predict_batch(files), files)])

def test_shipped_model_on_photographs(photos):
    assert (shipped_model()/'model.onnx').stat().st_size < 6_000_000
    assert error_of(shipped_model(), photos) < .015

def test_build_on_photographs(photos, tmp_path):
    from fastai.learner import load_learner
    command = [Path(sys.executable).with_name('catdog-build'), 'cat', 'dog', '--photos', photos/'photos'/'web',
               '--out', 'models/photographs', '--n', '200']
    env = {**os.environ, 'TORCH_HOME': str(photos/'torch_home')}
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, env=env)
    assert done.returncode == 0, done.stderr
    assert '% error on ' in done.stdout
    model = tmp_path/'models'/'photographs'
    meta = Classifier(model).meta
    assert meta['trained_on'] == 'photographs' and meta['n_images'] == 400
    assert error_of(model, photos) < .03
    files = [o for label in ('cat', 'dog') for o in sorted((photos/'photos'/'web'/label).iterdir())[:25]]
    assert_agree(load_learner(model/'export.pkl'), model, files)
