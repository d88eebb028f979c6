"The classifier, tampered model files (metadata, limits, weights, random bytes), and the order of models"
import io, json, os, pickle, random, shutil, signal, subprocess, sys, time
from copy import copy
from pathlib import Path

import numpy as np, onnx, pandas as pd, pytest
from PIL import Image
from fastbook import image_bear, image_cat

from catdog.sample.draw import draw
from catdog.core.errors import CatdogError, ImageError, ModelError
from catdog.core.images import open_image
from catdog.deploy.batch import print_rows
from catdog.deploy.predictor import Classifier, find_models, shipped_model
from catdog.predict import predict_files

@pytest.fixture(scope='module')
def classifier(): return Classifier(shipped_model())

@pytest.fixture
def tampered(tmp_path, classifier):
    "A function that makes a folder with the shipped model and changed metadata; without changes, no metadata"
    def make(**changes):
        model = onnx.load(shipped_model()/'model.onnx')
        meta = {**classifier.meta, **changes}
        onnx.helper.set_model_props(model, {'catdog': json.dumps(meta)} if changes else {})
        (tmp_path/'tampered').mkdir(exist_ok=True)
        onnx.save(model, tmp_path/'tampered'/'model.onnx')
        return tmp_path/'tampered'
    return make

@pytest.fixture
def changed(tmp_path):
    "A function that makes a folder with the shipped model and changed weights of the last layer"
    def make(change):
        model = onnx.load(shipped_model()/'model.onnx')
        change(next(o for o in model.graph.initializer if o.name == 'head.2.weight'))
        (tmp_path/'changed').mkdir(exist_ok=True)
        (tmp_path/'changed'/'model.onnx').write_bytes(model.SerializeToString())
        return tmp_path/'changed'
    return make

# Answers

def test_every_kind_of_source_gives_the_same_answer(classifier):
    photo = image_cat().read()
    answer = classifier.predict(photo)
    assert (answer.label, answer.sure, sum(answer.probabilities.values())) == ('cat', True, pytest.approx(1, abs=1e-9))
    assert answer.probability == answer.probabilities['cat'] > .9
    for form in (io.BytesIO(photo), open_image(photo), np.asarray(open_image(photo))):
        assert classifier.predict(form).probability == pytest.approx(answer.probability, abs=1e-6)
    assert pickle.loads(pickle.dumps(classifier)).predict(photo) == answer
    assert classifier.answers([]) == classifier.predict_batch([]) == []

def test_batch_gives_the_same_answers_and_names_bad_images(classifier, tmp_path):
    (tmp_path/'notes.txt').write_text('a cat')
    drawn = [draw(label, seed=i) for i in range(5) for label in ('cat', 'dog')]
    for one,many in zip(map(classifier.predict, drawn), classifier.predict_batch(drawn, bs=4), strict=True):
        assert (one.label, one.probability) == (many.label, pytest.approx(many.probability, abs=1e-5))
    for bad,name in ((tmp_path/'notes.txt', 'notes.txt: '), (b'', 'imgs[7]: '), (np.zeros(3), 'imgs[7]: ')):
        with pytest.raises(ImageError) as e: classifier.predict_batch(drawn[:7] + [bad] + drawn)
        assert name in str(e.value)

def test_why_highlights_the_cat(classifier):
    photo,scene = image_cat().read(),Image.new('RGB', (512, 256), (128, 128, 128))
    scene.paste(open_image(photo).resize((256, 256)), (0, 0))   # a cat on the left, nothing on the right
    heat = classifier.explain(scene)
    half = heat.shape[1]//2
    assert (heat.ndim, heat.dtype.name, heat.min() >= 0, heat.max()) == (2, 'float32', True, 1)
    assert heat[:, :half].sum() > 3*heat[:, half+1:].sum()
    assert (classifier.explain(photo, 'cat') == classifier.explain(photo)).all()
    assert (classifier.explain(scene, 'dog') != heat).any()
    with pytest.raises(CatdogError, match='none of cat, dog'): classifier.explain(scene, 'cow')
    a = np.asarray(classifier.why(scene)).astype(int)
    assert a.shape == (240, 480, 3)
    assert np.ptp(a[:, 240:], axis=2).max() <= np.ptp(a[:, :240], axis=2).max()   # colour stays where the cat is
    def constant(img):   # the shares of the places add up to the score, but for a constant
        logits,places = classifier.session.run(['logits', 'activation'], {'pixels': classifier.pixels(img)[None]})
        return logits[0] - places[0].sum((1, 2))
    assert constant(photo) == pytest.approx(constant(scene), abs=1e-3)

def test_why_is_grey_outside_the_crop(classifier):
    side = copy(classifier)
    side.meta,scene = {**classifier.meta, 'resize': dict(method='crop')},draw('cat', 242, (600, 200))
    a = np.asarray(side.why(scene, max_side=600)).astype(int)
    off = np.abs(a - np.asarray(scene.convert('L').point(lambda o: o*2//5).convert('RGB')).astype(int))
    assert off[:, :195].max() <= 2 and off[:, 405:].max() <= 2 < off[:, 205:395].max()

# Tampered model files

def test_model_not_exported_by_catdog_is_refused(tampered):
    with pytest.raises(ModelError, match='not exported by catdog'): Classifier(tampered())

@pytest.mark.parametrize('changes,words', [
    (dict(labels='cat'), 'which labels'), (dict(labels=['a', 'a']), 'which labels'),
    (dict(temperature=0), 'its scores'), (dict(neither='yes'), 'not sure'),
    (dict(neither=dict(distance=-1)), 'not sure'), (dict(error='low'), 'how good'),
    (dict(resize_to='192'), 'which size'), (dict(min_side=0), 'which size'), (dict(min_side=[9]), 'which size'),
    (dict(size=10**6), 'which size'), (dict(labels=['a', 'b', 'c']), 'do not fit'),
    (dict(size=100, resize_to=100), 'do not fit')])
def test_wrong_metadata_is_refused(tampered, changes, words):
    with pytest.raises(ModelError, match=words): Classifier(tampered(**changes))

def test_either_limit_alone_makes_an_answer_unsure(tampered):
    never,always = dict(probability=0, distance=1e9),dict(probability=0, distance=0)
    assert Classifier(tampered(neither=never)).predict(image_bear()).sure
    assert not Classifier(tampered(neither=always)).predict(image_cat()).sure
    assert not Classifier(tampered(neither=dict(never, probability=1))).predict(image_cat()).sure

@pytest.mark.parametrize('neither,doubt,words', [
    (dict(probability=0, distance=1e9), '', 'cat, '),
    (dict(probability=1, distance=1e9), 'between', 'Not sure, between cat and dog (cat '),
    (dict(probability=0, distance=0), 'unlike', 'This does not look like a cat or a dog'),
    (dict(probability=.9999, distance=0), 'unlike', 'This does not look like a cat or a dog'),
    (dict(probability=1, distance=0), 'between', 'Not sure, between cat and dog (cat ')])   # it is sure of nothing
def test_two_kinds_of_doubt(tmp_path, tampered, capsys, neither, doubt, words):
    "In Python, on the terminal, in CSV and in Parquet; no answer is certain"
    model,file = tampered(neither=neither),tmp_path/'cat.jpg'
    file.write_bytes(image_cat().read())
    pred = Classifier(model).predict(file)
    assert (pred.doubt, pred.sure, pred.label) == (doubt, not doubt, 'cat') and str(pred).startswith(words)
    assert '100.0' not in str(pred) and ('%' in str(pred)) == (doubt != 'unlike')
    print_rows(predict_files(file, model=model))
    assert capsys.readouterr().out == f'{file}: {pred}\n'
    for name,read in (('a.csv', pd.read_csv), ('a.parquet', pd.read_parquet)):
        row = read(predict_files(file, model=model, out=tmp_path/name)).astype(object).fillna('').iloc[0]
        assert (row.label, row.sure, row.doubt, row.text) == ('cat', pred.sure, doubt, str(pred))

def test_summary(tampered, classifier):
    m = classifier.meta
    assert classifier.summary == f'cat / dog: trained on {m["n_train"]:,} photographs, {m["error"]:.1%} validation error'
    assert Classifier(tampered(trained_on='drawings', neither=dict(probability=1.0, distance=0.0))).summary.endswith(
        '; knows nothing about photographs; sure of nothing')
    other = copy(classifier)
    other.meta = dict(trained_on='images')
    assert other.summary == 'cat / dog: trained on images, its error was not measured'

def test_model_without_distances(tampered):
    def without_distance(neither):
        model = onnx.load(tampered(neither=neither)/'model.onnx')
        del model.graph.output[2]
        return onnx.save(model, (folder := tampered(neither=neither))/'model.onnx') or folder
    assert Classifier(without_distance(dict(probability=0))).predict(image_bear()).sure
    assert not Classifier(without_distance(dict(probability=1))).predict(image_cat()).sure
    with pytest.raises(ModelError, match='but no such output'):
        Classifier(without_distance(dict(probability=0, distance=1e9)))

def test_probability_limit(tampered):
    drawing = draw('dog', seed=5)
    assert not Classifier(tampered(neither=dict(probability=.9999999))).predict(drawing).sure
    assert Classifier(tampered(neither=dict(probability=.5))).predict(drawing).sure

@pytest.mark.parametrize('location', ['weights.bin', '../weights.bin', None])
def test_external_weights_are_not_read(tmp_path, changed, monkeypatch, location):
    monkeypatch.chdir(tmp_path)
    def point(weight):
        for folder in (Path(), Path('changed')): (folder/'weights.bin').write_bytes(weight.raw_data)
        weight.data_location = onnx.TensorProto.EXTERNAL
        for k,v in (('location', location or str(Path('weights.bin').resolve())), ('offset', '0'),
                    ('length', str(len(weight.raw_data)))):
            weight.external_data.add(key=k, value=v)
        weight.ClearField('raw_data')
    Path('changed').mkdir()
    with pytest.raises(ModelError, match='cannot open'): Classifier(changed(point))

def test_non_finite_weights_are_refused(changed):
    def change(weight): weight.raw_data = np.full(weight.dims, np.nan, 'float32').tobytes()
    with pytest.raises(ModelError, match='is damaged'): Classifier(changed(change))

class Trap:
    def __reduce__(self): return Path.touch, (Path('caught'),)

def test_pickle_beside_the_model_is_never_opened(tmp_path, changed, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = changed(lambda weight: None)
    (folder/'export.pkl').write_bytes(pickle.dumps(Trap()))
    assert Classifier(folder).predict(image_cat()).label == 'cat'
    with pytest.raises(ModelError, match='not a model'): Classifier(folder/'export.pkl')
    assert not Path('caught').exists()

def test_model_of_drawings_is_never_the_default(tmp_path, tampered, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('CATDOG_MODEL', raising=False)
    def put(name, **changes): shutil.copytree(tampered(note='', **changes), f'models/{name}')
    put('drawn', trained_on='drawings')
    assert list(find_models()) == ['catdog (ships with the package)', 'models/drawn']
    assert Classifier().path == shipped_model()
    put('first'); time.sleep(.02); put('second'); os.utime('models/first/model.onnx', (0, 0))
    assert list(find_models()) == ['models/second', 'models/first', 'catdog (ships with the package)', 'models/drawn']
    monkeypatch.setenv('CATDOG_MODEL', 'models/drawn')
    assert Classifier().meta['trained_on'] == 'drawings' and 'nothing about photographs' in Classifier().summary
    Path('nbs').mkdir()
    monkeypatch.chdir('nbs')   # where Voilà starts the kernels of the chapter
    assert Classifier().path == tmp_path/'models'/'drawn' and next(iter(find_models())) == '../models/drawn'

@pytest.mark.parametrize('model', ['models/mine', './models/mine/', 'models/mine/model.onnx', ' models/mine ',
                                   '"models/mine"', "'models/mine'", '~/models/mine'])
def test_chosen_model_as_people_write_it(tmp_path, monkeypatch, model):
    shutil.copytree(shipped_model(), tmp_path/'models'/'mine')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('CATDOG_MODEL', model)
    assert Classifier().path == tmp_path/'models'/'mine'

def test_unreadable_model_is_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'models'/'bad').mkdir(parents=True)
    (tmp_path/'models'/'bad'/'model.onnx').write_bytes(b'')
    with pytest.warns(UserWarning, match='cannot open'): assert 'models/bad' not in find_models()

def test_tampered_model_is_refused_or_answers(tmp_path, classifier):
    "Random bytes changed: an error message, or a model that gives probabilities, never a crash"
    whole,rng,refused = (shipped_model()/'model.onnx').read_bytes(),random.Random(2),0
    head = whole.rfind(b'catdog')   # metadata stand near the end
    image = draw('cat', 1)
    for i in range(60):
        data = bytearray(whole)
        if i % 3 == 0: data = data[:rng.randrange(len(data))]
        else:
            start = head - 200 if i % 3 == 1 else 0
            for _ in range(rng.choice([1, 20, 2000])): data[rng.randrange(start, len(data))] = rng.randrange(256)
        (tmp_path/'model.onnx').write_bytes(data)
        try: answer = Classifier(tmp_path).predict(image)
        except ModelError as e:
            refused += 1
            assert str(e).startswith(str(tmp_path)) and '\n' not in str(e) and len(str(e)) < 400
        else: assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert refused >= 20

def test_model_larger_than_a_gigabyte_is_not_read(tmp_path):
    with open(tmp_path/'model.onnx', 'wb') as f: f.truncate(2_000_000_000)
    with pytest.raises(ModelError, match='larger than 1 GB'): Classifier(tmp_path)

FORK = """
import gc, os
from catdog.core.model_file import open_session
from catdog.predict import shipped_model
class Cycle: pass
cycle = Cycle()
cycle.me,cycle.session = cycle,open_session('', (shipped_model()/'model.onnx').read_bytes(), 2)
del cycle
child = os.fork()
if not child:
    gc.collect()
    os._exit(0)
os.waitpid(child, 0)
"""

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork on this system')
def test_forked_process_does_not_wait_for_a_session_of_its_parent():
    "As data loader workers do, which collect garbage now and then"
    process = subprocess.Popen([sys.executable, '-c', FORK], start_new_session=True)
    try: assert process.wait(60) == 0
    finally:
        if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
