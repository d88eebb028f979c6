"The lines of fastai's tutorials, on what `get_dls`, `train` and `load_learner` return"
import os, warnings
from pathlib import Path

import matplotlib, numpy as np, pytest
matplotlib.use('Agg')
warnings.filterwarnings('ignore')   # of torch and fastai, about themselves

from catdog.sample.draw import draw

@pytest.fixture(scope='module')
def learners(tmp_path_factory):
    "'train' -> the learner from `train`, 'load_learner' -> fastai's, from its export"
    from fastai.learner import load_learner
    from catdog.train import export, train
    folder = tmp_path_factory.mktemp('tutorial')
    os.chdir(folder)
    for label in ('cat', 'dog'):
        (folder/'images'/label).mkdir(parents=True)
        for i in range(20): draw(label, 700 + i, (150, 100)).save(folder/'images'/label/f'{i}.jpg')
    learn = train('images', size=64, bs=8)
    model = export(learn, 'models/images')
    return dict(train=learn, load_learner=load_learner(model/'export.pkl'))

FILE = 'images/cat/3.jpg'
def forms():
    "The same image in each form that `predict` accepts"
    import torch
    from fastai.vision.core import PILImage
    img = PILImage.create(FILE)
    return dict(str=FILE, path=Path(FILE), bytes=Path(FILE).read_bytes(), PILImage=img, array=np.array(img),
                tensor=torch.from_numpy(np.array(img)), opened=__import__('PIL.Image').Image.open(FILE))

@pytest.mark.parametrize('name', ['train', 'load_learner'])
@pytest.mark.parametrize('form', ['str', 'path', 'bytes', 'PILImage', 'array', 'tensor', 'opened'])
def test_predict_accepts_all_inputs_of_fastai(learners, name, form):
    learn = learners[name]
    with learn.no_bar():
        label,index,probabilities = learn.predict(forms()[form])
        expected = learners['train'].predict(Path(FILE))
    assert label in ('cat', 'dog') and learn.dls.vocab[index] == label
    assert (label, probabilities.tolist()) == (expected[0], expected[2].tolist())

@pytest.mark.parametrize('name', ['train', 'load_learner'])
def test_test_dl_and_get_preds(learners, name):
    learn,files = learners[name],sorted(Path('images').rglob('*.jpg'))
    with learn.no_bar():
        probabilities,_ = learn.get_preds(dl=learn.dls.test_dl(files))
        assert probabilities.shape == (40, 2)
        assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
        one = learn.get_preds(dl=learn.dls.test_dl([str(o) for o in files]))[0]
        labelled,truth = learn.get_preds(dl=learn.dls.test_dl(files, with_labels=True))
    assert np.allclose(one, probabilities, atol=1e-5) and np.allclose(labelled, probabilities, atol=1e-5)
    assert [str(learn.dls.vocab[o]) for o in truth] == [o.parent.name for o in files]

def test_get_preds_of_the_validation_set(learners):
    learn = learners['train']
    with learn.no_bar():
        probabilities,truth = learn.get_preds()
        both = learn.get_preds(with_decoded=True, with_loss=True)
        loss,error = learn.validate()
    assert len(probabilities) == len(truth) == len(learn.dls.valid_ds) and len(both) == 4
    assert error == pytest.approx((probabilities.argmax(1) != truth).float().mean().item())

def drawn():
    "How many images the current figure shows"
    from matplotlib import pyplot as plt
    n = sum(bool(ax.images) for ax in plt.gcf().axes)
    plt.close('all')
    return n

def test_show_batch_and_show_results(learners):
    learn = learners['train']
    learn.dls.show_batch(max_n=4)
    assert drawn() == 4
    learn.dls.train.show_batch(max_n=3, unique=True)
    assert drawn() == 3
    learn.dls.valid.show_batch(max_n=2, nrows=1)
    assert drawn() == 2
    with learn.no_bar(): learn.show_results(max_n=4)
    assert drawn() == 4

def test_plot_top_losses_and_the_confusion_matrix(learners):
    from fastai.interpret import ClassificationInterpretation
    learn = learners['train']
    with learn.no_bar():
        interp = ClassificationInterpretation.from_learner(learn)
        interp.plot_top_losses(5, nrows=1)
        assert drawn() == 5
        interp.plot_confusion_matrix()
        assert drawn() == 1
        assert interp.confusion_matrix().sum() == len(learn.dls.valid_ds)

def test_lr_find_and_fine_tune(learners, tmp_path):
    from catdog.train import get_dls, get_learner
    learn = get_learner(get_dls('images', size=64, bs=8, num_workers=0), path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        assert learn.lr_find(num_it=5, show_plot=False).valley > 0
        learn.fine_tune(1)
    assert learn.validate()[0] > 0

def test_export_and_load_learner(learners, tmp_path):
    from fastai.learner import load_learner
    learn = learners['train']
    learn.export(tmp_path/'export.pkl')
    again = load_learner(tmp_path/'export.pkl')
    with learn.no_bar(), again.no_bar(): assert again.predict(FILE)[2].tolist() == learn.predict(FILE)[2].tolist()
    assert list(again.dls.vocab) == ['cat', 'dog']
    assert len(learn.dls.train_ds) == 32   # the first one keeps its images

def test_the_cleaner_of_fastai(learners, monkeypatch):
    from IPython.display import display
    from fastai.vision.widgets import ImageClassifierCleaner
    monkeypatch.setattr('builtins.display', display, raising=False)   # a notebook has it
    with learners['train'].no_bar(): cleaner = ImageClassifierCleaner(learners['train'])
    assert len(cleaner.fns) == len([o for o in learners['train'].dls.train_ds.items if o.parent.name == 'cat'])
    assert cleaner.delete() == [] and cleaner.change() == []

def test_what_get_dls_returns(learners):
    from catdog.data import get_dls
    dls = get_dls('images', size=64, bs=8)
    x,y = dls.one_batch()
    assert x.shape == (8, 3, 64, 64) and y.shape == (8,)
    assert list(dls.vocab) == ['cat', 'dog'] and dls.c == 2 and dls.path == Path('images')
    assert len(dls.train_ds) + len(dls.valid_ds) == 40 and dls.train_ds[0][0].shape == (100, 150)
    assert len(dls.train.items) == 32 and dls.valid_ds.items[0].exists()
