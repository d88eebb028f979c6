"What would help: the learning curve, shortcuts, images from one source, sets that are alike by nature."
import json
from collections import Counter

import numpy as np
import pytest
from PIL import ImageEnhance

from catdog import train as chapter
from catdog.clean.interpret import prediction_table
from catdog.clean.report import report
from catdog.core.duplicates import image_quality
from catdog.core.errors import CatdogError
from catdog.core.images import open_image
from catdog.data import get_dls
from catdog.dataset.folder import ImageFolder
from catdog.dataset.journal import apply_choices
from catdog.dataset.split import check_images, image_sources, split_files
from catdog.learn.card import model_card, model_metadata
from catdog.learn.finetune import recipe_learner, recipe_tfms
from catdog.learn.head import fit_head
from catdog.learn.insights import _grouped_errors, insight_sentences, insights, learning_curve, shortcuts
from catdog.sample.draw import draw
from test_duplicates import camera

def clouds(n, seed, apart=1.6, channels=200):
    "Two clouds of `n` points in all, which overlap"
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return rng.normal(size=(n, channels)) + apart*(y[:, None] - .5)*(np.arange(channels) < 2),y

def test_predicted_error_lies_in_its_interval():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    def actual(m, seed):
        x,y = clouds(m + 4000, seed)
        z = StandardScaler().fit(x[:m]).transform(x)
        return 1 - LogisticRegression(C=.003, max_iter=1000).fit(z[:m], y[:m]).score(z[m:], y[m:])
    inside = 0
    for seed in range(10):
        curve,error = learning_curve(*clouds(150, seed)),actual(960, seed)   # four fifths of 150, times 8
        inside += curve['low'][-1] <= error <= curve['high'][-1]
        assert curve['high'][-1] < curve['errors'][-1] + .1 and curve['gain'] == sorted(curve['gain'])
    assert inside >= 9

def test_curve_of_few_and_of_uneven_images():
    x,y = clouds(100, 0)
    for some in (np.arange(10), np.flatnonzero((y == 0) | (np.arange(100) < 12))):
        curve = learning_curve(x[some], y[some])
        assert curve['sizes'][-1] == pytest.approx(.8*len(some)) and json.loads(json.dumps(curve)) == curve
    assert learning_curve(x, y, 400)['more'][3] == 400

def traits(n=120, dark=None, suffix='.jpg', hosts=('a.example', 'b.example', None)):
    "Arguments of `shortcuts`: cats, dogs and fish at random, but one `dark`, one with a `suffix`, one from one host"
    rng,which = np.random.default_rng(0),np.arange(n) % 3
    brightness = rng.normal(140, 25, n) - 80*(which == dark)
    quality = [dict(size=(int(w), 300), sharpness=90., contrast=o/3, brightness=o)
               for w,o in zip(rng.integers(200, 500, n), brightness)]
    files = [f'{i}{suffix if k == 0 else ".jpg"}' for i,k in enumerate(which)]
    host = [hosts if isinstance(hosts, str) and k == 2 else str(rng.integers(3)) for k in which]
    return np.array(['cat', 'dog', 'fish'])[which],files,quality,dict(host=host, engine=[None]*n)

@pytest.mark.parametrize('planted,trait,label,words', [
    (dict(dark=1), 'brightness', 'dog', 'Brightness alone tells dog from the others: 9'),
    (dict(suffix='.png'), 'file format', 'cat', 'tells cat from the others: 100% right'),
    (dict(hosts='one.example'), 'host', 'fish', '(one.example: 100% of fish, 0% of the others)')])
def test_planted_shortcuts_are_found(planted, trait, label, words):
    labels,*rest = traits(**planted)
    found = shortcuts(labels, *rest)
    assert (found[0]['trait'], found[0]['label']) == (trait, label)
    assert words in insight_sentences(dict(shortcuts=found))[0]
    assert shortcuts(*traits()) == shortcuts(np.random.default_rng(2).permutation(labels), *rest) == []
    assert shortcuts(*traits(12, **planted)) == shortcuts(['cat']*120, *rest) == []   # too few; one label

def test_size_of_large_photographs_is_a_shortcut(tmp_path):
    "They are measured at 512 pixels"
    files = [tmp_path/f'{label}{i}.jpg' for label in ('cat', 'dog') for i in range(20)]
    for i,f in enumerate(files): draw('cat', i, (1200 + 9*i, 900) if i < 20 else (800 + 9*i, 600)).save(f)
    found = shortcuts(['cat']*20 + ['dog']*20, files, [check_images(files)[0][f] for f in files], {})
    assert ('image size', 'median 800 for dog, 1,080 for cat') in {(o['trait'], o['example']) for o in found}

def test_no_shortcut_in_100_splits_of_photographs(photos):
    files = [o for label in ('cat', 'dog') for o in sorted((photos/'photos'/'web'/label).iterdir())[:150]]
    quality = [image_quality(open_image(o, 512)) for o in files]
    for seed in range(100):
        some = np.random.default_rng(seed).permutation(len(files))[:30 + 2*seed]
        labels = [files[i].parent.name for i in some]
        assert shortcuts(labels, [files[i] for i in some], [quality[i] for i in some], {}) == []

def fill(folder, n, look=lambda img, label, i: img):
    for label in ('cat', 'dog'):
        (folder/label).mkdir(parents=True)
        for i in range(n): look(draw(label, i, (96, 72)), label, i).save(folder/label/f'{i:02}.jpg')
    return folder

def write_manifest(folder, **of):
    "A manifest that gives each image what the functions in `of` return for it"
    with (folder/'manifest.jsonl').open('w') as f:
        for o in sorted(folder.rglob('*.jpg')):
            row = dict(label=o.parent.name, url=f'https://a.example/{o.name}', status='ok', engine='ddg',
                       file=o.relative_to(folder).as_posix())
            f.write(json.dumps(row | {k: v(o) for k,v in of.items()}) + '\n')

@pytest.mark.parametrize('by', ['host', 'author', 'folder'])
def test_images_of_one_source_stay_on_one_side(tmp_path, by, capsys):
    path = fill(tmp_path/'mine', 30)
    def source(o): return f'{int(o.stem) % 6}.example'
    if by == 'folder':
        for o in sorted(path.rglob('*.jpg')):
            (o.parent/source(o)).mkdir(exist_ok=True)
            o.rename(o.parent/source(o)/o.name)
    elif by == 'host': write_manifest(path, url=lambda o: f'https://{source(o)}/{o.parent.name}{o.name}')
    else: write_manifest(path, url=lambda o: f'https://a.example/{o.parent.name}{o.name}', creator=source)
    for seed in range(3):
        split = split_files(path, seed=seed, labels=['cat', 'dog'], group_by=by)
        train,valid = ({source(o) for o in part} for part in (split.train, split.valid))
        if by == 'folder': train,valid = ({o.parent for o in part} for part in (split.train, split.valid))
        assert not train & valid and len(split.train) + len(split.valid) == 60
        assert {split.folder.label(o) for o in split.valid} == {'cat', 'dog'}
        assert f'Images of one {by} are on one side of the split ({12 if by == "folder" else 6} {by}s)' in split.note
    apart = split_files(path, labels=['cat', 'dog'])
    assert {source(o) for o in apart.train} >= {source(o) for o in apart.valid}
    found = image_sources(split.folder, split.train)[by]
    assert None not in found and len(found) == len(split.train)

@pytest.mark.parametrize('by,words', [('page', 'use host or author or folder'), ('host', 'do not come from several hosts'),
                                      ('folder', 'do not come from several folders of a label')])
def test_group_by_what_is_not_known(tmp_path, by, words):
    with pytest.raises(CatdogError, match=words): split_files(fill(tmp_path/'mine', 6), group_by=by)

def test_labels_with_the_same_sub_folders(tmp_path):
    path = fill(tmp_path/'mine', 16)
    for o in sorted(path.rglob('*.jpg')):
        (to := o.parent/('indoor' if int(o.stem) % 2 else 'outdoor')).mkdir(exist_ok=True)
        o.rename(to/o.name)
    with pytest.raises(CatdogError, match='if these are labels, name them or group by folder'): split_files(path)
    split = split_files(path, group_by='folder')
    assert split.folder.labels == ['cat', 'dog'] and len({o.parent for o in split.valid}) == 2
    file = split.train[0]
    moved, = apply_choices(path, {file: 'dog' if file.parent.parent.name == 'cat' else 'cat'})
    assert moved.to.relative_to(path).parts[1:2] == (file.parent.name,) and moved.to.exists()

def test_error_about_unknown_sources():
    rng = np.random.default_rng(0)
    y,author = np.arange(300) % 2,rng.integers(0, 30, 300)
    pets = rng.normal(size=(30, 2, 99))[author, y]
    none = [None]*300
    sources = dict(host=none, author=author.tolist(), folder=none)
    found, = _grouped_errors(pets + .1*rng.normal(size=(300, 99)), y, sources)
    assert found['by'] == 'author' and found['groups'] == 30 and found['alone'] < .1 < .3 < found['error']
    assert 'With whole authors left out (30)' in insight_sentences(dict(groups=[found]))[0]
    assert _grouped_errors(pets, y, dict(host=list(range(300)), author=none, folder=none)) == []   # nothing is shared

@pytest.fixture(scope='module')
def learn(tmp_path_factory):
    "A learner of three labels, dogs darker; its insights, and its head fitted"
    path = tmp_path_factory.mktemp('three')
    fill(path/'mine', 24, lambda img, label, i: ImageEnhance.Brightness(img).enhance(.5 if label == 'dog' else 1))
    (path/'mine'/'fish').mkdir()
    for i in range(24): draw('cat' if i % 4 else 'fish', 99 + i, (96, 72)).save(path/'mine'/'fish'/f'{i:02}.jpg')
    dls = get_dls(path/'mine', 64, bs=8, num_workers=0, **recipe_tfms('fast', 64))
    learn = recipe_learner(dls, 'efficientnet_lite0', 'fast')
    learn.insights = insights(learn)
    return fit_head(learn)

def test_insights_reach_the_card(learn):
    logits,truth = np.eye(3)[[0, 0, 1, 1, 0, 0]],np.array([0, 0, 1, 1, 2, 2])
    meta = model_metadata(learn, logits, truth)
    assert json.loads(json.dumps(meta)) == meta and set(meta['insights']) == {'curve', 'shortcuts', 'groups'}
    card = model_card(meta)
    assert 'Twice as many images would lower the error by about' in card and 'Brightness alone tells dog from the others' in card
    assert 'most confused: cat for fish, 2 of 2' in card
    assert '| cat | 2 | 0 | 0 | 100.0% (34.2% to 100.0%) |' in card and '| fish | 2 | 0 | 0 | 0.0%' in card
    assert 'Not measured.' in model_card({**meta, 'insights': {}})

def test_curve_of_a_tuned_network_is_about_its_head(tmp_path, monkeypatch, capsys):
    def tune(learn, *args, **kw):
        fit_head(learn)
        learn.tuned = 'last stages'
    chapter._load()
    monkeypatch.setattr(chapter, 'run_recipe', tune)
    monkeypatch.setattr(chapter, '_load', lambda: None)
    learn = chapter.train(fill(tmp_path/'mine', 20), size=64)
    words = 'Twice as many images would lower the error of the head alone by about'
    assert words in capsys.readouterr().out and words in insight_sentences(learn.insights)[0]

def test_no_curve_of_one_point(learn, monkeypatch):
    "Of so few images of each label that no part of them has all labels, nothing can be predicted"
    from catdog.learn import insights as module
    curve = module.learning_curve
    for few,kept in ((1, True), (8, False)):
        monkeypatch.setattr(module, 'learning_curve', lambda x, y, n: curve(x[::few], y[::few], n))
        assert ('curve' in insights(learn)) is kept

def test_insights_reach_the_report(learn, tmp_path):
    table = prediction_table(learn).table
    table = table[table.dataset == 'Valid']
    wrong = Counter(zip(table.label, table.predicted))
    pairs = [(*k, n) for k,n in wrong.items() if k[0] != k[1] and n > 1]
    page = report(learn, tmp_path/'r.html').read_text()
    assert pairs and 'The labels that it confuses most' in page
    for truth,answer,n in pairs[:1]: assert f'<bdi>{answer}</bdi> for <bdi>{truth}</bdi>: {n} of ' in page
    for o in ('What would help', 'Twice as many images', 'Brightness alone tells dog', 'class="figure"'): assert o in page

def test_fixed_camera_validates_a_fifth_of_each_label(tmp_path):
    for i,img in enumerate(camera(60, .6)):
        folder = tmp_path/('open' if i%2 else 'closed')
        folder.mkdir(exist_ok=True)
        img.save(folder/f'{i}.png')
    split = split_files(tmp_path)
    assert Counter(o.parent.name for o in split.valid) == dict(open=6, closed=6) and not split.unvalidated
    assert 'nearly alike' in split.note and not split_files(fill(tmp_path/'mine', 20)).note

def test_rare_label_is_not_sacrificed(tmp_path):
    "Twelve dogs beside eighty cats: the head finds most dogs that it has not seen"
    path = fill(tmp_path/'mine', 80)
    for i in range(12, 80): (path/'dog'/f'{i:02}.jpg').unlink()
    learn = recipe_learner(get_dls(path, 128, num_workers=0, **recipe_tfms('fast', 128)), 'efficientnet_lite0', 'fast')
    answers = fit_head(learn).get_preds(dl=learn.dls.test_dl([draw('dog', i, (96, 72)) for i in range(100, 150)]))[0]
    assert (answers.argmax(1) == 1).float().mean() > .7
