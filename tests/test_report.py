"The report and the plots for whatever a label, an image or a file may be called."
import re

import numpy as np
import pandas as pd
import pytest
from fastai.vision.augment import Resize, ResizeMethod

from catdog.clean.interpret import plot_confusion, precision_recall, predictions
from catdog.clean.issues import suspects
from catdog.clean.report import error_sentences, report
from catdog.sample.draw import draw
from catdog.core.errors import CatdogError
from catdog.data import get_dls
from catdog.learn.backbones import get_learner

ODD = ['A+', 'c++', '"quoted"', "it's, so", '<img src=x onerror=alert(1)>', '|*_`', '😀', 'قطة', '$x_$', 'a\\b', 'NA']

@pytest.fixture(scope='module')
def learn(tmp_path_factory):
    "A learner for eleven labels; one of its images lies under two of them, and one has a name that is no text"
    folder = tmp_path_factory.mktemp('odd')
    for i,label in enumerate(ODD):
        (folder/label).mkdir()
        for j in range(5): draw(('cat', 'dog', 'fish')[i%3], f'{i} {j}', (96, 96)).save(folder/label/f'{j}.jpg')
    (folder/ODD[0]/'copy.jpg').write_bytes((folder/ODD[7]/'1.jpg').read_bytes())
    (folder/ODD[1]/'0.jpg').rename(folder/ODD[1]/'caf\udce9.jpg')
    return get_learner(get_dls(folder, 64, bs=8, num_workers=0, item_tfms=Resize(64, ResizeMethod.Squish)))

def test_labels_come_through_the_report(learn, tmp_path, page):
    report(learn, tmp_path/'r.html')
    messages = []
    page.on('console', lambda o: messages.append(o.text))
    page.on('dialog', lambda o: messages.append(o.message))
    page.goto((tmp_path/'r.html').as_uri())
    assert page.title() == ' or '.join(learn.dls.vocab) + '?' and not messages
    for i in range(3):   # images; confusion; precision and recall
        heads = page.locator('table').nth(i).locator('th[scope=row]')
        assert [o.text_content() for o in heads.all()] == list(learn.dls.vocab)
    heads = page.locator('table').nth(1).locator('th[scope=col]')
    assert [o.text_content() for o in heads.all()][1:] == list(learn.dls.vocab)
    assert page.locator('bdi').count() > 50 and page.locator('img').count() > 10
    assert page.evaluate('[...document.images].every(o => o.naturalWidth > 0)')
    assert r'caf\udce9.jpg' in page.content()

def test_labels_come_through_tables_and_plots(learn, tmp_path):
    assert sorted(predictions(learn).label.unique()) == sorted(ODD) == list(learn.dls.vocab)
    assert set(suspects(learn).label) <= set(ODD)
    assert list(precision_recall(np.eye(len(ODD), dtype=int), ODD).index) == ODD
    axes = plot_confusion(learn)
    for ax in axes:
        for ticks in (ax.get_xticklabels(), ax.get_yticklabels()):
            assert [o.get_text() for o in ticks] == list(learn.dls.vocab)
    axes[0].figure.savefig(tmp_path/'plot.png')   # where it would be read as a formula

def test_a_report_is_refused_before_the_work_when_it_cannot_be_written(learn, tmp_path, monkeypatch):
    monkeypatch.setattr('catdog.clean.report.prediction_table', None)   # nobody asks for it
    (tmp_path/'folder').mkdir()
    for out,words in (('nowhere/r.html', 'no such folder'), ('folder', 'is a folder')):
        with pytest.raises(CatdogError, match=f'{words}; give another file'): report(learn, tmp_path/out)

def test_where_labels_are_uneven_the_balanced_error_stands_beside_the_plain_one():
    t = pd.DataFrame(dict(label=['cat']*8 + ['dog']*2, predicted=['cat']*8 + ['dog', 'cat'], dataset='Valid'))
    plain,balanced = error_sentences(t)
    assert plain.startswith('10.0%') and balanced.startswith('25.0% balanced error')
    assert len(error_sentences(t[5:])) == 1   # three cats, two dogs

def table(**n):
    "Predictions: for each data set so many, one of them wrong"
    rows = [dict(label='cat dog'.split()[i%2], predicted='cat dog'.split()[i%2 or not i], dataset=k)
            for k,v in n.items() for i in range(v)]
    return pd.DataFrame(rows, columns=['label', 'predicted', 'dataset'])

def test_a_trained_image_is_never_called_unseen():
    first, = error_sentences(table(Train=50, Valid=4))
    assert first.startswith('25.0%') and 'of 4 images that it had not been trained on' in first
    assert len(error_sentences(table(Train=50, Valid=4, Test=5, New=10))) == 3
    assert re.match(r'20.0% .* of 5 test images', error_sentences(table(Valid=4, Test=5))[1])
    assert re.match(r'10.0% .* of 10 images that are new', error_sentences(table(Valid=4, New=10))[1])
    for o in (table(Unknown=5), table(Train=5), table(Train=5, New=2)):
        assert 'had not been trained on' not in ' '.join(error_sentences(o))
