"What chapter 04 adds to the rooms: a learner from a model folder, a comparison, the report as a command."
import os, re, shutil, subprocess, sys
from pathlib import Path

import pytest
from clean_helpers import drawings

from catdog.sample.draw import draw

def exported(folder, arch, size=64):
    "Images in `folder`, and a model of `arch` that was trained on them"
    from catdog.data import get_dls
    from catdog.train import ARCHS, export, train
    from fastai.vision.all import vision_learner
    if arch == 'as catdog-build trains':
        learn = train(drawings(folder/'data'), size=size, bs=8)
        return learn,export(learn, folder/'models'/'drawn')
    dls = get_dls(drawings(folder/'data'), size=size, bs=8, num_workers=0)
    learn = vision_learner(dls, ARCHS[arch].arch, pretrained=False)
    learn.arch_name = arch
    learn.fit(2, 1e-3)
    return learn,export(learn, folder/'models'/'drawn')

@pytest.mark.parametrize('arch', ['squeezenet1_0', 'resnet18', 'as catdog-build trains'])
def test_a_saved_learner_says_the_same(tmp_path, arch):
    "Also where the export has merged batch normalisation into the body"
    from catdog.review import gradcam, predictions, saved_learner
    learn,model = exported(tmp_path, arch)
    again = saved_learner(tmp_path/'data', model)
    a,b = (predictions(o).set_index('file').sort_index() for o in (learn, again))
    assert (a.loss - b.loss).abs().max() < 1e-3
    assert abs(gradcam(learn, a.index[:6], ['cat']*6) - gradcam(again, a.index[:6], ['cat']*6)).max() < .02

def review(folder, *args):
    program = str(Path(sys.executable).with_name('catdog-review'))
    return subprocess.run([program, *args], cwd=folder, capture_output=True, text=True)

def test_report_in_a_browser(page, tmp_path):
    _,model = exported(tmp_path, 'squeezenet1_0')
    # a pickle that leaves a trace when it is opened; what a stranger's might do is worse
    (model/'export.pkl').write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    (tmp_path/'data'/'cat'/'07.jpg').rename(tmp_path/'data'/'cat'/'<img src=x onerror=alert(1)>.jpg')
    done = review(tmp_path, '--path', 'data', '--model', 'models/drawn', '--out', 'r.html')
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == 'Wrote r.html; open it in a browser.', done
    assert not (tmp_path/'opened').exists()
    requests,messages = [],[]
    page.on('request', lambda o: requests.append(o.url))
    page.on('console', lambda o: messages.append(o.text))
    page.set_viewport_size(dict(width=360, height=700))
    page.goto((tmp_path/'r.html').as_uri())
    fetched = [o for o in requests if not o.startswith('data:')]
    assert fetched == [(tmp_path/'r.html').as_uri()] and not messages   # nothing from elsewhere
    assert page.evaluate('document.documentElement.scrollWidth') <= 360   # a phone need not scroll sideways
    assert page.evaluate('[...document.images].every(o => o.naturalWidth > 0)') and page.locator('img').count() > 10
    text = page.inner_text('body')
    for o in ('cat or dog?', '28 images', 'Precision', 'Where it was most wrong', 'Images that look wrong'):
        assert o in text
    rows = [o.inner_text().split('\t')[1:] for o in page.locator('table').nth(0).locator('tr').all()[1:]]
    assert sum(int(n) for row in rows for n in row) == 28

@pytest.mark.parametrize('args,words', [
    (['--model', 'nowhere'], 'catdog-build'), (['--path', 'nowhere'], 'no such folder'),
    (['--model', 'odd'], 'cannot open it')])
def test_report_says_what_is_wrong(tmp_path, args, words):
    from catdog.predict import shipped_model
    drawings(tmp_path/'data', 6)
    (tmp_path/'odd').mkdir()
    (tmp_path/'odd'/'model.onnx').write_text('odd')
    options = {'--path': 'data', '--model': str(shipped_model()), args[0]: args[1]}
    done = review(tmp_path, *(o for pair in options.items() for o in pair))
    assert done.returncode == 2 and words in done.stderr and 'Traceback' not in done.stderr

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "Drawings in data/drawn, models/drawn trained on them with seed 1, and the names of the validation images"
    from catdog.train import export, train
    folder = tmp_path_factory.mktemp('built')
    learn = train(drawings(folder/'data'/'drawn', 24), size=64, bs=8, seed=1)
    export(learn, folder/'models'/'drawn')
    return folder,{o.relative_to(folder) for o in learn.dls.valid_ds.items}

@pytest.fixture
def project(built, tmp_path, monkeypatch):
    "A copy of it to work in, and the names of the validation images"
    shutil.copytree(built[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return built[1]

def card():
    "Errors and validation images, as the model's card has them"
    text = Path('models/drawn/model_card.md').read_text(encoding='utf8')
    rows = re.findall(r'^\| (?:cat|dog) \| (\d+) \| (\d+) \|$', text, re.M)
    (a,b),(c,d) = (map(int, o) for o in rows)
    return b + c,a + b + c + d

def reviewed(*args):
    "What `catdog-review` prints, and of how many images it says how many wrong"
    done = review('.', *args)
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
    share,n = re.search(r'^([\d.]+)% \(.*?\) of ([\d,]+) images that it had not been trained on', done.stdout,
                        re.M).groups()
    return done.stdout,(round(float(share)*int(n)/100), int(n))

def predicted():
    "The table of predictions of the saved learner, by file"
    from catdog.review import predictions, saved_learner
    return predictions(saved_learner('data/drawn', 'models/drawn')).set_index('file')

def test_card_and_report_agree_whatever_the_seed_was(project):
    "All by default, and by another seed than that by which a folder is split without a word"
    said,figures = reviewed()
    assert figures == card() and figures[1] == len(project) >= 8
    assert f'Measured on {len(project)} of the {len(project)} images that validated the model.' in said
    assert 'The network in models/drawn, and the images in data/drawn.' in said
    table = predicted()
    assert set(table.index[table.dataset == 'Valid']) == project
    assert set(table.dataset) == {'Train', 'Valid'} and len(table) == 48

def test_after_one_image_was_relabelled_card_and_report_differ_by_that_image(project):
    from catdog.review import apply_choices
    before = predicted()
    file = sorted(o for o in project if o.parent.name == 'cat' and before.predicted[o] == 'cat')[0]
    moved, = apply_choices('data/drawn', {file: 'dog'})
    _,(wrong,n) = reviewed()
    assert (wrong, n) == (card()[0] + 1, card()[1])
    after = predicted()
    assert after.label[moved.to] == 'dog' and after.dataset[moved.to] == 'Valid'
    assert (after.drop(moved.to).sort_index().dataset == before.drop(file).sort_index().dataset).all()

def test_new_images_stand_apart_and_what_is_left_is_counted(project):
    table = predicted()
    dogs,cats = (sorted(o for o in project if o.parent.name == label) for label in ('dog', 'cat'))
    for o in dogs: o.unlink()
    cats[0].rename('data/drawn/cat/renamed.jpg')   # the same image, whatever it is called
    draw('cat', 'new', (128, 128)).save('data/drawn/cat/new.jpg')
    trained = sorted(table.index[(table.dataset == 'Train') & (table.label == 'cat')])[2]
    from PIL import Image
    with Image.open(trained) as img: img.resize((100, 100)).save('data/drawn/cat/smaller.png')
    shutil.copy(trained, 'data/drawn/dog/again.jpg')
    said,(_,n) = reviewed()
    assert n == len(cats)
    measured = f'Measured on {n} of the {len(project)} images that validated the model'
    assert f'{measured}; the others are no longer in' in said
    assert 'None of these is labelled dog.' in said and 'New in data/drawn, and measured separately: 1.' in said
    assert 'Copies of training images, which count as such: 1.' in said
    assert re.search(r'of 1 images that are new since it was trained were given the wrong label', said)
    sets = predicted().dataset
    of = {k: set(sets.index[sets == k]) for k in ('Train', 'Valid', 'New')}
    assert of['New'] == {Path('data/drawn/cat/new.jpg')}
    assert of['Valid'] == {*cats[1:], Path('data/drawn/cat/renamed.jpg')}
    assert {Path('data/drawn/cat/smaller.png'), Path('data/drawn/dog/again.jpg'), trained} < of['Train']
    page = Path('report.html').read_text(encoding='utf8')
    assert '>for training<' in page and '>new<' in page and 'None of these is labelled dog' in page

def test_an_older_model_does_not_pretend(project):
    Path('models/drawn/images.json').unlink()
    done = review('.')
    page = Path('report.html').read_text(encoding='utf8')
    for text in (done.stdout, page):
        assert 'of 48 images, some of which it may have been trained on, were given the wrong label' in text
        assert 'it is unknown which images' in text and 'may look too small' in text
        assert 'had not been trained on' not in text
    assert done.returncode == 0 and set(predicted().dataset) == {'Unknown'}

def test_none_of_the_images_is_left(project):
    "Another folder, or all saved anew: no figure is made up"
    shutil.rmtree('data/drawn')
    for label in ('cat', 'dog'):
        Path('data/drawn', label).mkdir(parents=True)
        for i in range(6): draw(label, f'other {i}', (96, 96)).save(f'data/drawn/{label}/{i}.jpg')
    done = review('.')
    assert done.returncode == 0 and 'No image that validated the network is here' in done.stdout, done
    assert 'Measured on 0 of the' in done.stdout and 'of 12 images that are new' in done.stdout
    assert 'Recall' not in Path('report.html').read_text(encoding='utf8')

def test_what_cannot_be_opened_and_what_the_model_does_not_know_is_named(project):
    sorted(project)[0].write_text('<html>')
    (Path('data/drawn')/'fox').mkdir()
    draw('cat', 'fox', (64, 64)).save('data/drawn/fox/1.jpg')
    said,(_,n) = reviewed()
    assert n == len(project) - 1 and 'The model does not know fox: left out.' in said
    page = Path('report.html').read_text(encoding='utf8')
    assert f'{sorted(project)[0].relative_to("data/drawn")}: a web page, not an image' in page

def test_defaults_are_what_there_is(project):
    for name,args in (('pets', ()), ('pets', ('--path', 'data/pets')), ('drawn', ('--path', 'data/drawn'))):
        if not Path('models/pets').exists():
            for o in ('models', 'data'): shutil.copytree(f'{o}/drawn', f'{o}/pets')
            os.utime('models/drawn/model.onnx', (1, 1))
        assert f'The network in models/{name}, and the images in data/{name}.' in reviewed(*args)[0]
    shutil.rmtree('data/pets')
    done = review('.')
    assert done.returncode == 2 and 'data/pets: there is no such folder' in done.stderr and 'models/pets' in done.stderr
    shutil.rmtree('models')
    done = review('.')
    assert done.returncode == 2 and 'no model in models' in done.stderr and 'catdog-build' in done.stderr
    assert len(done.stderr.splitlines()) == 1

def test_a_damaged_record_is_said(project):
    from catdog.core.errors import ModelError
    from catdog.review import saved_learner
    file = Path('models/drawn/images.json')
    for text in ('', '[1]', '{"training": 1}'):
        file.write_text(text)
        with pytest.raises(ModelError, match='images.json'): saved_learner()

def test_a_test_set_has_its_own_line(tmp_path, monkeypatch):
    "Images in test/ are not trained on, and stand beside the validation error in card and report"
    from catdog.review import predictions, saved_learner
    from catdog.train import export, train
    monkeypatch.chdir(tmp_path)
    drawings(Path('data/pets/train'), 10)
    for i,part in enumerate(('valid', 'test')):
        for label in ('cat', 'dog'):
            Path('data/pets', part, label).mkdir(parents=True)
            for j in range(4): draw(label, f'{part} {j}', (96, 96)).save(f'data/pets/{part}/{label}/{j}.jpg')
    export(train('data/pets', size=64, bs=8), 'models/pets')
    said,(_,n) = reviewed()
    assert n == 8 and 'of 8 test images were given the wrong label' in said
    table = predictions(saved_learner())
    assert {k: set(o.file.map(lambda f: f.parts[2])) for k,o in table.groupby('dataset')} == \
           dict(Train={'train'}, Valid={'valid'}, Test={'test'})

def test_the_model_must_know_the_labels_of_the_folder(project):
    from catdog.core.errors import CatdogError
    from catdog.review import saved_learner
    for a,b in (('cat', 'cat'), ('dog', 'fox')): shutil.copytree(f'data/drawn/{a}', f'other/{b}')
    with pytest.raises(CatdogError, match="has no folder 'dog'; there are 'cat', 'fox'"):
        saved_learner('other', 'models/drawn')

def test_compare_counts_what_a_person_would(tmp_path):
    from catdog.review import compare, predictions
    learn,_ = exported(tmp_path, 'squeezenet1_0')
    row = compare(tmp_path/'data', this=learn, same=learn).loc['this']
    table = predictions(learn)
    assert (row.wrong, row.n) == ((table.label != table.predicted).sum(), 28)
    assert row.error == row.wrong/row.n and 0 <= row.low <= row.error <= row.high <= 1

def test_compare_takes_the_labels_of_the_folder_it_is_given(tmp_path):
    "However deep its images lie, and wherever those lay that were trained on"
    from catdog.core.errors import CatdogError
    from catdog.review import compare
    learn,_ = exported(tmp_path, 'squeezenet1_0')
    plain = compare(tmp_path/'data', this=learn).loc['this']
    (tmp_path/'deep').mkdir()
    for label in ('cat', 'dog'): shutil.copytree(tmp_path/'data'/label, tmp_path/'deep'/label/'indoor')
    assert compare(tmp_path/'deep', this=learn).loc['this'].tolist() == plain.tolist()
    (tmp_path/'deep'/'dog').rename(tmp_path/'deep'/'fox')
    with pytest.raises(CatdogError, match="this does not know 'fox'"): compare(tmp_path/'deep', this=learn)
