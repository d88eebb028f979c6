"Chapter 4: a learner from a model folder, `compare`, the report command."
import os, re, shutil
from pathlib import Path

import pytest
from clean_helpers import drawings
from command_helpers import run_command
from PIL import Image

from catdog.core.errors import CatdogError, DataError, ModelError
from catdog.dataset.split import saved_folders
from catdog.review import apply_choices, compare, gradcam, predictions, saved_learner, write_report
from catdog.sample.draw import draw
from catdog.train import export, train

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "A folder with drawings in data/drawn and models/drawn trained on them with seed 1, and the learner"
    folder = tmp_path_factory.mktemp('built')
    learn = train(drawings(folder/'data'/'drawn', 24), size=64, bs=8, seed=1)
    export(learn, folder/'models'/'drawn')
    return folder,learn

@pytest.fixture
def project(built, tmp_path, monkeypatch):
    "A copy to work in, and the names of the validation images"
    shutil.copytree(built[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return {o.relative_to(built[0]) for o in built[1].dls.valid_ds.items}

@pytest.fixture
def reviewed(capsys):
    "A function that returns the output of `write_report`, and its numbers of wrong and all validation images"
    def _reviewed():
        write_report()
        said = capsys.readouterr().out
        found = re.search(r'^([\d.]+)% \(.*?\) of ([\d,]+) images that it had not been trained on', said, re.M)
        return said,found and (round(float(found[1])*int(found[2])/100), int(found[2]))
    return _reviewed

def predicted():
    "The table of predictions of the saved learner, by file"
    return predictions(saved_learner('data/drawn', 'models/drawn')).set_index('file')

def page(): return Path('report.html').read_text(encoding='utf8')

def card():
    "Errors and validation images, as the model's card has them"
    text = Path('models/drawn/model_card.md').read_text(encoding='utf8')
    rows = re.findall(r'^\| (?:cat|dog) \| (\d+) \| (\d+) \| \d', text, re.M)
    (a,b),(c,d) = (map(int, o) for o in rows)
    return b + c,a + b + c + d

def says_the_same(learn, again):
    a,b = (predictions(o).set_index('file').sort_index() for o in (learn, again))
    assert (a.loss - b.loss).abs().max() < 1e-3
    assert abs(gradcam(learn, a.index[:6], ['cat']*6) - gradcam(again, a.index[:6], ['cat']*6)).max() < .02

def test_saved_learner_gives_the_same_answers(built):
    says_the_same(built[1], saved_learner(built[0]/'data'/'drawn', built[0]/'models'/'drawn'))

@pytest.mark.nightly
@pytest.mark.parametrize('arch', ['squeezenet1_0', 'resnet18'])
def test_saved_learner_of_other_architectures(tmp_path, arch):
    "Also where the export has merged batch normalisation into the body"
    import torchvision
    from fastai.vision.all import vision_learner
    from catdog.data import get_dls
    learn = vision_learner(get_dls(drawings(tmp_path/'data'), size=64, bs=8, num_workers=0),
                           getattr(torchvision.models, arch), pretrained=False)
    learn.arch_name = arch
    learn.fit(2, 1e-3)
    says_the_same(learn, saved_learner(tmp_path/'data', export(learn, tmp_path/'models'/'drawn')))

def test_report_command(project):
    "It prints its defaults, and opens no pickle: this one would leave a trace"
    Path('models/drawn/export.pkl').write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    done = run_command('catdog-review', '--out', 'r.html', cwd=Path.cwd())
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == 'Wrote r.html; open it in a browser.', done
    assert 'The network in models/drawn, and the images in data/drawn.' in done.stdout
    assert not Path('opened').exists()
    Path('models/drawn/model.onnx').write_text('odd')
    done = run_command('catdog-review', cwd=Path.cwd())
    assert done.returncode == 2 and 'cannot open it' in done.stderr and 'Traceback' not in done.stderr
    assert len(done.stderr.splitlines()) == 1

def test_card_and_report_agree_for_any_seed(project, reviewed):
    "With default folders, and a seed other than the default"
    said,figures = reviewed()
    assert figures == card() and figures[1] == len(project) >= 8
    assert f'Measured on {len(project)} of the {len(project)} images that validated the model.' in said
    table = predicted()
    assert set(table.index[table.dataset == 'Valid']) == project
    assert set(table.dataset) == {'Train', 'Valid'} and len(table) == 48
    for o in ('Twice as many images would lower the error by about', 'class="figure"'): assert o in page()   # kept with the model

def test_relabelled_image_changes_the_report(project, reviewed):
    before = predicted()
    file = sorted(o for o in project if o.parent.name == 'cat' and before.predicted[o] == 'cat')[0]
    moved, = apply_choices('data/drawn', {file: 'dog'})
    assert reviewed()[1] == (card()[0] + 1, card()[1])
    after = predicted()
    assert after.label[moved.to] == 'dog' and after.dataset[moved.to] == 'Valid'
    assert (after.drop(moved.to).sort_index().dataset == before.drop(file).sort_index().dataset).all()

def test_new_and_missing_images_are_reported(project, reviewed):
    table = predicted()
    dogs,cats = (sorted(o for o in project if o.parent.name == label) for label in ('dog', 'cat'))
    for o in dogs: o.unlink()
    cats[0].rename('data/drawn/cat/renamed.jpg')   # the same image, whatever it is called
    draw('cat', 'new', (128, 128)).save('data/drawn/cat/new.jpg')
    trained = sorted(table.index[(table.dataset == 'Train') & (table.label == 'cat')])[2]
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
    assert '>for training<' in page() and '>new<' in page() and 'None of these is labelled dog' in page()

def test_model_without_a_record_of_its_images(project, reviewed):
    Path('models/drawn/images.json').unlink()
    for text in (reviewed()[0], page()):
        assert 'of 48 images, some of which it may have been trained on, were given the wrong label' in text
        assert 'it is unknown which images' in text and 'may look too small' in text
        assert 'had not been trained on' not in text
    assert set(predicted().dataset) == {'Unknown'}

def test_model_without_any_of_its_images(project, reviewed):
    "Another folder, or all files re-encoded: no error is reported"
    shutil.rmtree('data/drawn')
    for label in ('cat', 'dog'):
        Path('data/drawn', label).mkdir(parents=True)
        for i in range(6): draw(label, f'other {i}', (96, 96)).save(f'data/drawn/{label}/{i}.jpg')
    said,_ = reviewed()
    assert 'None of the validation images of the network is here' in said
    assert 'Measured on 0 of the' in said and 'of 12 images that are new' in said and 'Recall' not in page()

def test_bad_images_and_unknown_labels_are_named(project, reviewed):
    sorted(project)[0].write_text('<html>')
    (Path('data/drawn')/'fox').mkdir()
    draw('cat', 'fox', (64, 64)).save('data/drawn/fox/1.jpg')
    said,(_,n) = reviewed()
    assert n == len(project) - 1 and 'The model does not know fox: left out.' in said
    assert f'{sorted(project)[0].relative_to("data/drawn")}: a web page, not an image' in page()

def test_default_folders(project):
    for o in ('models', 'data'): shutil.copytree(f'{o}/drawn', f'{o}/pets')
    os.utime('models/drawn/model.onnx', (1, 1))
    for args,name in (((), 'pets'), (('data/pets',), 'pets'), (('data/drawn',), 'drawn')):
        path,model = saved_folders(*args)
        assert (Path(path), model) == (Path('data', name), Path('models', name))
    shutil.rmtree('data/pets')
    with pytest.raises(DataError, match='data/pets: there is no such folder.*models/pets'): write_report()
    with pytest.raises(DataError, match='no such folder'): write_report('nowhere')
    with pytest.raises(ModelError): write_report(model='nowhere', path='data/drawn')
    shutil.rmtree('models')
    with pytest.raises(DataError, match='no model in models.*catdog-build'): write_report()

@pytest.mark.parametrize('text', ['', '[1]', '{"training": 1}'])
def test_damaged_record_is_an_error(project, text):
    Path('models/drawn/images.json').write_text(text)
    with pytest.raises(ModelError, match='images.json'): saved_learner()

def test_test_set_has_its_own_line(project, reviewed):
    "Images in test/ are not trained on; their error is beside the validation error in card and report"
    shutil.rmtree('data'); shutil.rmtree('models')
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

def test_model_must_know_the_labels_of_the_folder(project):
    for a,b in (('cat', 'cat'), ('dog', 'fox')): shutil.copytree(f'data/drawn/{a}', f'other/{b}')
    with pytest.raises(CatdogError, match="has no folder 'dog'; there are 'cat', 'fox'"):
        saved_learner('other', 'models/drawn')

def test_compare(built, tmp_path):
    "By the labels of the given folder, at any depth, wherever the training images are"
    path,learn = built[0]/'data'/'drawn',built[1]
    row = compare(path, this=learn, same=learn).loc['this']
    table = predictions(learn)
    assert (row.wrong, row.n) == ((table.label != table.predicted).sum(), 48)
    assert row.error == row.wrong/row.n and 0 <= row.low <= row.error <= row.high <= 1
    for label in ('cat', 'dog'): shutil.copytree(path/label, tmp_path/label/'indoor')
    assert compare(tmp_path, this=learn).loc['this'].tolist() == row.tolist()
    (tmp_path/'dog').rename(tmp_path/'fox')
    with pytest.raises(CatdogError, match="this does not know 'fox'"): compare(tmp_path, this=learn)
