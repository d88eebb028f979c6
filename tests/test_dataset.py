"From a folder to batches: which images train and validate, what is left out, and the inputs of a `Learner`."
import hashlib, io, json, random, warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catdog.sample.draw import draw
from catdog.core.errors import ImageError, CatdogError

def fill(folder, **counts):
    "Draw the given number of small images of each label into `folder`"
    for label,n in counts.items():
        (folder/label).mkdir(parents=True, exist_ok=True)
        for i in range(n): draw(label.partition('_')[0], f'{label}{i}', (80, 60)).save(folder/label/f'{i:03}.png')
    return folder

def contents(folder):
    "Return path -> content hash and modification time, for every file below `folder`"
    return {o.relative_to(folder).as_posix(): (hashlib.sha256(o.read_bytes()).hexdigest(), o.stat().st_mtime_ns)
            for o in sorted(folder.rglob('*')) if o.is_file()}

def truncate(file):
    with file.open('r+b') as f: f.truncate(file.stat().st_size//2)

def sides(dls):
    return [Counter(dls.split.folder.label(o) for o in ds.items) for ds in (dls.train_ds, dls.valid_ds)]

@pytest.fixture(scope='module')
def drawings(tmp_path_factory):
    "40 drawings each of cats and dogs"
    return fill(tmp_path_factory.mktemp('drawings'), cat=40, dog=40)

@pytest.fixture
def few(tmp_path): return fill(tmp_path/'few', cat=12, dog=12)

def make_learner(dls):
    "A tiny network"
    from fastai.vision.all import CrossEntropyLossFlat, Learner, error_rate, nn
    net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, len(dls.vocab)))
    return Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=error_rate)

# batches

def test_shape_and_labels_of_batches(drawings):
    from catdog.data import get_dls
    dls = get_dls(drawings, bs=32, num_workers=0)
    x,y = dls.one_batch()
    assert x.shape == (32, 3, 224, 224) and y.shape == (32,)
    assert list(dls.vocab) == ['cat', 'dog']
    assert get_dls(drawings, size=64, bs=8, num_workers=0).one_batch()[0].shape == (8, 3, 64, 64)

def test_validation_split_is_reproducible(drawings):
    from catdog.data import get_dls
    dls = get_dls(drawings, bs=32)
    assert dls.valid_ds.items == get_dls(drawings).valid_ds.items != get_dls(drawings, seed=1).valid_ds.items
    assert not set(dls.valid_ds.items) & set(dls.train_ds.items)
    assert (len(dls.train_ds), len(dls.valid_ds)) == (64, 16)

def test_small_folder_gives_a_batch(drawings):
    from catdog.data import get_dls
    assert len(list(get_dls(drawings, size=64, bs=10_000, num_workers=0).train)) == 1

def test_batches_depend_only_on_the_seed(drawings):
    import torch
    from catdog.data import get_dls
    def order(seed, before):
        random.seed(before), np.random.seed(before), torch.manual_seed(before)
        states = random.getstate(),torch.get_rng_state()
        dls = get_dls(drawings, 64, seed=seed, num_workers=0)
        assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
        return dls.train.get_idxs()
    assert order(1, 5) == order(1, 6) != order(2, 5)

# labels

def test_only_the_requested_labels_are_used(tmp_path):
    from catdog.data import get_dls
    path = fill(tmp_path/'A', cat=6, dog=6, house=6, tree=2)
    dls = get_dls(path, 64, labels=['cat', 'house'])
    assert list(dls.vocab) == ['cat', 'house'] and dls.split.folder.others == ['dog', 'tree']
    assert {o.parent.name for o in dls.train_ds.items + dls.valid_ds.items} == {'cat', 'house'}
    with pytest.raises(CatdogError, match=r"fewer than 5 images of 'tree' \(2\)"): get_dls(path, 64)
    with pytest.raises(CatdogError, match="no folder 'bird'; there are 'cat', 'dog', 'house', 'tree'"):
        get_dls(path, 64, labels=['cat', 'bird'])

def test_odd_labels_reach_the_answers(tmp_path):
    from catdog.data import get_dls
    labels = ['A+', 'A-', 'c', 'c++', 'caf\u00e9', '🐈', '"x|y"', 'חתול']
    for k,label in enumerate(labels):
        folder = tmp_path/('cafe\u0301' if label.startswith('caf') else label)
        folder.mkdir()
        for i in range(5): draw('cat', 100*k + i, (80, 60)).save(folder/f'{i}.png')
    dls = get_dls(tmp_path, 64, num_workers=0)
    assert sorted(dls.vocab) == sorted(labels)
    for i,o in enumerate(dls.valid_ds.items): assert dls.vocab[dls.valid_ds.tls[1][i]] == dls.split.folder.label(o)
    learn = make_learner(dls)
    with learn.no_bar(): assert str(learn.predict(dls.valid_ds.items[0])[0]) in labels

# validation sets

def test_rare_label_is_validated(tmp_path):
    from catdog.data import get_dls
    path = fill(tmp_path, cat=120, dog=6)
    for seed in range(5):
        dls = get_dls(path, 64, seed=seed)
        assert sides(dls) == [dict(cat=96, dog=5), dict(cat=24, dog=1)] and not dls.unvalidated

def test_a_hundred_small_labels_are_all_validated(tmp_path):
    from catdog.data import get_dls
    path = fill(tmp_path, **{f'{("cat", "dog", "house", "tree", "fish")[i%5]}_{i}': 5 for i in range(100)})
    dls = get_dls(path, 64)
    assert sides(dls) == [{o: 4 for o in dls.vocab}, {o: 1 for o in dls.vocab}] and len(dls.vocab) == 100
    assert not dls.unvalidated

def test_label_of_copies_is_reported_as_not_validated(few):
    from catdog.data import get_dls
    for o in (few/'dog').iterdir(): o.unlink()
    for i in range(6): draw('dog', 1, (80 + 8*i, 60 + 6*i)).save(few/'dog'/f'{i}.png')
    dls = get_dls(few, 64)
    assert dls.unvalidated == ['dog'] and sides(dls)[0] == dict(cat=10, dog=6)

def test_copies_stay_on_one_side(tmp_path):
    from catdog.data import get_dls
    path = fill(tmp_path, cat=20, dog=20)
    for o in sorted(path.rglob('*.png'))[::2]:
        img = Image.open(o)
        for k in (1.5, 2): img.resize((int(80*k), int(60*k))).save(o.with_stem(f'{o.stem}-{k}'))
    for seed in range(5):
        dls = get_dls(path, 64, seed=seed)
        train,valid = ({(o.parent.name, o.name[:3]) for o in ds.items} for ds in (dls.train_ds, dls.valid_ds))
        assert not train & valid and {o for o,_ in valid} == {'cat', 'dog'}

@pytest.mark.parametrize('valid_pct', [0, 1, 20, -0.2, 1.5])
def test_bad_share_is_refused_before_any_image_is_opened(few, valid_pct, monkeypatch):
    from catdog.data import get_dls
    from catdog.dataset import split
    monkeypatch.setattr(split, 'check_images', lambda files: pytest.fail('it was opened'))
    with pytest.raises(CatdogError, match=f'above 0 and below 1, not {valid_pct}'): get_dls(few, valid_pct=valid_pct)

# a given split

@pytest.fixture
def given(tmp_path):
    "10 images of each label in train, 5 in valid, 5 in test; and 3 of a label that train lacks"
    fill(tmp_path/'given'/'train', cat=10, dog=10)
    fill(tmp_path/'given'/'valid', cat=5, dog=5)
    fill(tmp_path/'given'/'test', cat=5, dog=5, house=3)
    for part in ('valid', 'test'):   # not the same images
        for o in (tmp_path/'given'/part).rglob('*.png'): draw(o.parent.name, f'{part}{o.name}', (80, 60)).save(o)
    return tmp_path/'given'

def test_given_split_is_respected(given, capsys):
    from catdog.data import get_dls
    dls = get_dls(given, 64)
    assert list(dls.vocab) == ['cat', 'dog']
    for files,part,n in ((dls.train_ds.items, 'train', 20), (dls.valid_ds.items, 'valid', 10),
                         (dls.test_files, 'test', 10)):
        assert len(files) == n and all(o.is_relative_to(given/part) for o in files)
    assert 'used 40 of 43 images; left out 3 as no label in train (house)' in capsys.readouterr().out
    assert len(dls.content_ids) == 40

def test_without_valid_images_of_train_validate(given):
    from catdog.data import get_dls
    for o in sorted((given/'valid').rglob('*'), reverse=True): o.unlink() if o.is_file() else o.rmdir()
    dls = get_dls(given, 64)
    assert (len(dls.train_ds), len(dls.valid_ds), len(dls.test_files)) == (16, 4, 10)
    assert all(o.is_relative_to(given/'train') for o in dls.train_ds.items + dls.valid_ds.items)

def test_label_missing_in_valid_is_reported(given):
    from catdog.data import get_dls
    for o in (given/'valid'/'dog').iterdir(): o.unlink()
    assert get_dls(given, 64).unvalidated == ['dog']

def test_splitter_respects_a_given_split(given):
    from catdog.data import ApartSplitter
    from catdog.dataset.folder import ImageFolder
    files = ImageFolder(given).files
    train,valid = ([files[i] for i in side] for side in ApartSplitter(given)(files))
    assert (len(train), len(valid)) == (20, 10)
    assert all('train' in o.parts for o in train) and all('valid' in o.parts for o in valid)

# bad files

def test_truncated_file_is_left_out_and_reported(tmp_path, capsys):
    from catdog.data import get_dls
    path = tmp_path/'sixty'
    for label in ('cat', 'dog'):
        (path/label).mkdir(parents=True)
        for i in range(30): draw(label, i, (160, 120)).save(path/label/f'{i}.jpg')
    bad = path/'cat'/'7.jpg'
    truncate(bad)
    for o in ('cat/notes.txt', 'dog/Thumbs.db', 'dog/1.psd'): (path/o).write_bytes(b'no image')
    before = contents(path)
    dls = get_dls(path, 64, num_workers=0)
    assert [f for f,_ in dls.left_out] == [bad] and dls.left_out[0][1]
    assert bad not in dls.train_ds.items + dls.valid_ds.items and len(dls.content_ids) == 59
    said = capsys.readouterr().out
    assert 'used 59 of 63 images; left out 1 that cannot be opened (cat/7.jpg: ' in said
    for o in ('1 as not an image (.txt)', '1 as not an image (.db)', '1 as not an image (.psd)'): assert o in said
    learn = make_learner(dls)
    with learn.no_bar(): learn.fit(1)
    assert contents(path) == before

def test_images_are_opened_whatever_the_manifest_says(few):
    from catdog.data import get_dls
    rows = [dict(label=o.parent.name, url=str(o), status='ok', file=o.relative_to(few).as_posix(), engine='ddg',
                 phash='0'*36) for o in sorted(few.rglob('*.png'))]
    (few/'manifest.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    (few/'dog'/'003.png').write_text('<!doctype html>')
    assert list(get_dls(few, 64).left_out) == [(few/'dog'/'003.png', 'a web page, not an image')]

def test_many_bad_files_stop_training_before_the_first_epoch(few):
    from catdog.data import get_dls
    bad = sorted(few.rglob('*.png'))[::6]
    for o in bad[:3]: o.write_bytes(b'')
    assert len(get_dls(few, 64).left_out) == 3
    bad[3].write_bytes(b'')
    with pytest.raises(CatdogError, match='4 of 24 images cannot be opened .*the file is empty'): get_dls(few, 64)

def test_too_few_good_images_are_refused(few):
    from catdog.data import get_dls
    for o in sorted((few/'dog').iterdir())[6:]: o.unlink()
    for o in sorted((few/'dog').iterdir())[:2]: o.write_bytes(b'')
    with pytest.raises(CatdogError, match=r"fewer than 5 good images of 'dog' \(4\)"): get_dls(few, 64)

@pytest.mark.parametrize('workers', [0, 2])
def test_missing_or_damaged_file_does_not_end_training(few, workers):
    from catdog.data import get_dls
    from catdog.learn.calibration import validation_logits
    dls = get_dls(few, 64, bs=4, num_workers=workers)
    learn = make_learner(dls)
    gone,broken = dls.train_ds.items[3],dls.valid_ds.items[2]
    gone.unlink()
    broken.write_bytes(broken.read_bytes()[:300])
    with learn.no_bar(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        learn.fit(3)
    assert {f for f,_ in dls.left_out} == {gone, broken} and len(dls.left_out) == 2
    if not workers: assert sum('left out from now on' in str(o.message) for o in said) == 2   # others say it themselves
    assert len(validation_logits(learn)[1]) == len(dls.valid_ds) - 1
    # with given images, a bad one is an error that names it
    with learn.no_bar(), pytest.raises(ImageError, match=broken.name): learn.get_preds()
    with learn.no_bar(), pytest.raises(ImageError, match=f'{gone.name}: there is no such file'): learn.predict(gone)

def test_only_batch_may_be_short(few):
    from catdog.data import get_dls
    dls = get_dls(few, 64, num_workers=0)
    assert len(dls.train) == 1
    dls.train_ds.items[0].unlink()
    with pytest.warns(UserWarning, match='left out'): assert [len(y) for _,y in dls.train] == [len(dls.train_ds) - 1]

# a fastai learner

@pytest.fixture(scope='module')
def learners(drawings, tmp_path_factory):
    from fastai.vision.all import load_learner
    from catdog.data import get_dls
    learn = make_learner(get_dls(drawings, 64, bs=8, num_workers=0))
    with learn.no_bar(): learn.fit(1)
    file = tmp_path_factory.mktemp('saved')/'export.pkl'
    learn.export(file)
    return dict(trained=learn, loaded=load_learner(file))

@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    "A large image that is stored sideways, by its EXIF orientation"
    file,note = tmp_path_factory.mktemp('photo')/'big.jpg',Image.Exif()
    note[0x0112] = 6
    draw('cat', 1, (1200, 900)).save(file, exif=note)
    return file

def kinds(file):
    from fastai.vision.all import PILImage, TensorImage, tensor
    from catdog.core.images import open_image
    upright = np.array(open_image(file))
    chw = tensor(upright).permute(2, 0, 1)
    return {'a path': file, 'a str': str(file), 'bytes': file.read_bytes(), 'an image': Image.open(file),
            'an upright image': open_image(file), 'a PILImage': PILImage(open_image(file)), 'an array': upright,
            'floats': upright/255, 'a tensor': tensor(upright), 'its channels first': chw,
            'a TensorImage': TensorImage(chw), 'a float tensor': chw.float()/255}

@pytest.mark.parametrize('which', ['trained', 'loaded'])
def test_learner_accepts_every_kind_of_input(learners, photo, which):
    learn = learners[which]
    with learn.no_bar():
        answers = {name: learn.predict(o)[2] for name,o in kinds(photo).items()}
        batches = {name: learn.get_preds(dl=learn.dls.test_dl([o, o], num_workers=0))[0]
                   for name,o in kinds(photo).items()}
    for name,p in answers.items():
        assert (p == answers['a path']).all(), name
        assert (batches[name] == batches['a path']).all() and abs(batches[name] - p).max() < 1e-6, name

def test_learner_returns_its_input(learners, photo):
    with learners['trained'].no_bar():
        img,label,index,p = learners['trained'].predict(photo, with_input=True)
    assert img.shape == (3, 64, 64) and str(label) == ['cat', 'dog'][int(index)] and len(p) == 2

def test_labels_of_files_outside_the_folder(learners, tmp_path):
    fill(tmp_path/'other', dog=2)
    for kind in (str, Path):
        files = [kind(o) for o in sorted((tmp_path/'other').rglob('*.png'))]
        assert learners['loaded'].dls.test_dl(files, with_labels=True, num_workers=0).one_batch()[1].tolist() == [1, 1]

def test_saved_learner_contains_no_file_names(learners, drawings, tmp_path):
    learners['trained'].export(tmp_path/'export.pkl')
    assert b'007.png' not in (tmp_path/'export.pkl').read_bytes()

def test_bad_image_is_named(learners):
    with learners['loaded'].no_bar():
        for o in ('nowhere.jpg', Path('nowhere.jpg')):
            with pytest.raises(ImageError, match='nowhere.jpg: there is no such file'): learners['loaded'].predict(o)
        with pytest.raises(ImageError, match='web page'): learners['loaded'].predict(b'<!doctype html>')
        with pytest.raises(ImageError): learners['loaded'].predict(io.BytesIO(b'').getvalue())

def test_an_image_that_has_not_changed_is_opened_once(tmp_path, monkeypatch):
    from catdog.core import files as core_files
    from catdog.dataset import split
    fill(tmp_path, cat=6, dog=6)
    monkeypatch.setattr(core_files, '_memory', {})
    monkeypatch.setattr(core_files, '_load', lambda *_: {})   # of another run of the tests
    opened,open_image = [],split.open_image
    monkeypatch.setattr(split, 'open_image', lambda *args, **kw: opened.append(1) or open_image(*args, **kw))
    first,again = (split.split_files(tmp_path).content_ids for _ in range(2))
    assert first == again and len(opened) == 12
    draw('cat', 99, (90, 70)).save(tmp_path/'cat'/'000.png')
    assert split.split_files(tmp_path).content_ids != first and len(opened) == 13
