"The report and the plots, with odd labels and file names."
import re

import numpy as np
import pandas as pd
import pytest
from fastai.vision.augment import Resize, ResizeMethod

from catdog.clean.interpret import plot_confusion, precision_recall, predictions, suspects
from catdog.clean.report import error_sentences, report
from catdog.core.errors import CatdogError
from catdog.data import get_dls
from catdog.learn.backbones import get_learner
from catdog.sample.draw import draw

ODD = ['A+', 'c++', '"quoted"', "it's, so", '<img src=x onerror=alert(1)>', '|*_`', '😀', 'قطة', '$x_$', 'a\\b', 'NA']

@pytest.fixture(scope='module')
def learn(tmp_path_factory):
    "A learner for eleven labels; one image has two of them, and two files have odd names, one of them not UTF-8"
    folder = tmp_path_factory.mktemp('odd')
    for i,label in enumerate(ODD):
        (folder/label).mkdir()
        for j in range(5): draw(('cat', 'dog', 'fish')[i%3], f'{i} {j}', (96, 96)).save(folder/label/f'{j}.jpg')
    (folder/ODD[0]/'caf\udce9.jpg').write_bytes((folder/ODD[7]/'1.jpg').read_bytes())
    (folder/ODD[2]/'0.jpg').rename(folder/ODD[2]/'<img src=x onerror=alert(1)>.jpg')
    return get_learner(get_dls(folder, 64, bs=8, num_workers=0, item_tfms=Resize(64, ResizeMethod.Squish)))

def test_report_in_a_browser(learn, tmp_path, page):
    "It loads and runs nothing, shows every image and label, and fits on a phone"
    report(learn, tmp_path/'r.html')
    requests,messages = [],[]
    page.on('request', lambda o: requests.append(o.url))
    page.on('console', lambda o: messages.append(o.text))
    page.on('dialog', lambda o: messages.append(o.message))
    page.set_viewport_size(dict(width=360, height=700))
    page.goto((tmp_path/'r.html').as_uri())
    assert page.title() == f'Which of {len(learn.dls.vocab)} labels?' and not messages
    assert [o for o in requests if not o.startswith('data:')] == [(tmp_path/'r.html').as_uri()]
    assert page.evaluate('document.documentElement.scrollWidth') <= 360
    assert page.evaluate('[...document.images].every(o => o.naturalWidth > 0)') and page.locator('img').count() > 10
    for i in range(3):   # images; confusion; precision and recall
        heads = page.locator('table').nth(i).locator('th[scope=row]')
        assert [o.text_content() for o in heads.all()] == list(learn.dls.vocab)
    heads = page.locator('table').nth(1).locator('th[scope=col]')
    assert [o.text_content() for o in heads.all()][1:] == list(learn.dls.vocab)
    rows = [o.inner_text().split('\t')[1:] for o in page.locator('table').nth(0).locator('tr').all()[1:]]
    assert sum(int(n) for row in rows for n in row) == 56 and '56 images' in page.inner_text('body')
    for o in ('Precision', 'Where it was most wrong', 'Images that look wrong'): assert o in page.inner_text('body')
    assert page.locator('bdi').count() > 50 and r'caf\udce9.jpg' in page.content()

def test_odd_labels_in_tables_and_plots(learn, tmp_path):
    assert sorted(predictions(learn).label.unique()) == sorted(ODD) == list(learn.dls.vocab)
    assert set(suspects(learn).label) <= set(ODD)
    assert list(precision_recall(np.eye(len(ODD), dtype=int), ODD).index) == ODD
    axes = plot_confusion(learn)
    for ax in axes:
        for ticks in (ax.get_xticklabels(), ax.get_yticklabels()):
            assert [o.get_text() for o in ticks] == list(learn.dls.vocab)
    axes[0].figure.savefig(tmp_path/'plot.png')   # where it would be read as a formula

@pytest.mark.parametrize('out,words', [('nowhere/r.html', 'no such folder'), ('folder', 'is a folder')])
def test_unwritable_report_is_refused_first(learn, tmp_path, monkeypatch, out, words):
    monkeypatch.setattr('catdog.clean.report.prediction_table', None)   # not called
    (tmp_path/'folder').mkdir()
    with pytest.raises(CatdogError, match=f'{words}; give another file'): report(learn, tmp_path/out)

def table(**n):
    "A prediction table with the given number of rows per data set, one of them wrong"
    rows = [dict(label='cat dog'.split()[i%2], predicted='cat dog'.split()[i%2 or not i], dataset=k)
            for k,v in n.items() for i in range(v)]
    return pd.DataFrame(rows, columns=['label', 'predicted', 'dataset'])

@pytest.mark.parametrize('n,starts', [
    (dict(Train=50, Valid=4), ['25.0% .* of 4 images that it had not been trained on']),
    (dict(Valid=4, Test=5), ['25.0% ', '20.0% .* of 5 test images']),
    (dict(Train=50, Valid=4, Test=5, New=10), ['25.0% ', '20.0% ', '10.0% .* of 10 images that are new']),
    (dict(Unknown=5), ['20.0% .* of 5 images, some of which it may have been trained on']),
    (dict(Train=5), ['None of the validation images']),
    (dict(Train=5, New=2), ['None of the validation images', '50.0% .* of 2 images that are new'])])
def test_training_images_are_never_called_unseen(n, starts):
    sentences = [o for o in error_sentences(table(**n)) if 'balanced' not in o]
    assert len(sentences) == len(starts) and all(map(re.match, starts, sentences))
    assert ('had not been trained on' in ' '.join(sentences)) == ('Valid' in n)

def test_balanced_error_for_uneven_labels():
    t = pd.DataFrame(dict(label=['cat']*8 + ['dog']*2, predicted=['cat']*8 + ['dog', 'cat'], dataset='Valid'))
    plain,balanced = error_sentences(t)
    assert plain.startswith('10.0%') and balanced.startswith('25.0% balanced error')
    assert len(error_sentences(t[5:])) == 1   # three cats, two dogs
