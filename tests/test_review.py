"What chapter 04 adds to the rooms: a learner from a model folder, a comparison, the report as a command."
import shutil, subprocess, sys
from pathlib import Path

import pytest
from clean_helpers import drawings

def exported(folder, arch, size=64):
    "Pictures in `folder`, and a model of `arch` that was trained on them"
    from catdog.data import get_dls
    from catdog.train import ARCHS, export, train
    from fastai.vision.all import vision_learner
    if arch == 'as catdog-build trains':
        learn = train(drawings(folder/'data'), 'squeezenet1_0', size=size, bs=8)
        return learn,export(learn, folder/'models'/'drawn')
    dls = get_dls(drawings(folder/'data'), size=size, bs=8, num_workers=0)
    learn = vision_learner(dls, ARCHS[arch], pretrained=False)
    learn.arch_name = arch
    learn.fit(2, 1e-3)
    return learn,export(learn, folder/'models'/'drawn')

@pytest.mark.parametrize('arch', ['squeezenet1_0', 'resnet18', 'as catdog-build trains'])
def test_a_saved_learner_says_the_same(tmp_path, arch, monkeypatch):
    "Also where the export has merged batch normalisation into the body"
    from catdog.review import gradcam, predictions, saved_learner
    learn,model = exported(tmp_path, arch)
    again = saved_learner(tmp_path/'data', model)
    # ONNX Runtime knows no bfloat16
    monkeypatch.setattr('catdog.clean.interpret._bfloat16_if_faster', lambda learn: ())
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
    for o in ('cat or dog?', '28 pictures', 'Precision', 'Where it was most wrong', 'Pictures that look wrong'):
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

def test_a_saved_learner_knows_what_it_was_made_from(tmp_path):
    from catdog.core.images import CatdogError
    from catdog.review import saved_learner
    _,model = exported(tmp_path, 'squeezenet1_0')
    assert not hasattr(saved_learner(tmp_path/'data', model), 'note')   # the same pictures
    (tmp_path/'data'/'cat'/'00.jpg').unlink()
    assert 'may have been trained on' in saved_learner(tmp_path/'data', model).note
    for a,b in (('cat', 'cat'), ('dog', 'fox')): shutil.copytree(tmp_path/'data'/a, tmp_path/'other'/b)
    with pytest.raises(CatdogError, match='the model knows cat, dog'): saved_learner(tmp_path/'other', model)

def test_compare_counts_what_a_person_would(tmp_path):
    from catdog.review import compare, predictions
    learn,_ = exported(tmp_path, 'squeezenet1_0')
    row = compare(tmp_path/'data', this=learn, same=learn).loc['this']
    table = predictions(learn)
    assert (row.wrong, row.n) == ((table.label != table.predicted).sum(), 28)
    assert row.error == row.wrong/row.n and 0 <= row.low <= row.error <= row.high <= 1
