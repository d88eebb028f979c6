"""Builds from the command line: only the requested labels, own folders as they are now, a given split.
Each runs in its own folder, twice where the first run could affect the second."""
import hashlib, json, os, subprocess, sys, time
from pathlib import Path

import pytest
from command_helpers import run_command

from catdog.sample.draw import draw
from catdog.core.files import content_id
from catdog.deploy.predictor import Classifier

QUICK = '--size', '64'

def environment():
    env = {k: v for k,v in os.environ.items() if not k.startswith(('CATDOG_', 'AZURE_'))}
    shared = Path(__file__).parent.parent.parent/'shared'/'torch_home'
    if shared.is_dir(): env.setdefault('TORCH_HOME', str(shared))
    return env

def start(*args, cwd):
    "Run a quick catdog-build with `args`"
    command = [str(Path(sys.executable).with_name('catdog-build')), *map(str, args), *QUICK]
    return subprocess.Popen(command, cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)

def build(*args, cwd, ok=True):
    "Return what catdog-build prints"
    done = run_command('catdog-build', *args, *QUICK, cwd=cwd, env=environment())
    out,err = done.stdout,done.stderr
    assert done.returncode == (0 if ok else 2) and 'Traceback' not in err, out[-2000:] + err[-3000:]
    return out if ok else err

def fill(folder, **counts):
    "Draw the given number of images of each label, which starts with a drawable word, into `folder`"
    for label,n in counts.items():
        (folder/label).mkdir(parents=True, exist_ok=True)
        for i in range(n): draw(label.partition('_')[0], f'{label}{i}', (120, 90)).save(folder/label/f'{i:03}.jpg')
    return folder

def contents(folder):
    return {o.relative_to(folder).as_posix(): (hashlib.sha256(o.read_bytes()).hexdigest(), o.stat().st_mtime_ns)
            for o in sorted(folder.rglob('*')) if o.is_file()}

def known(model):
    "Return the labels of `model`, and the content ids of its images"
    ids = json.loads((model/'images.json').read_text())
    return Classifier(model).labels,{o for k in ids.values() for o in k}

def ids(*folders): return {content_id(o) for folder in folders for o in folder.rglob('*.jpg')}

def test_other_labels_in_the_folder_are_reported_and_not_trained_on(tmp_path):
    fill(tmp_path/'data', cat=6, dog=6, house=6, tree=6)
    said = build('house', 'tree', '--photos', 'data', '--out', 'model', cwd=tmp_path)
    assert known(tmp_path/'model') == (['house', 'tree'], ids(tmp_path/'data'/'house', tmp_path/'data'/'tree'))
    assert 'data also has images of cat, dog, which are not used' in said

def test_own_folder_is_read_again_on_each_build(tmp_path):
    "Build again from the same folder after changes, then from another folder"
    mine,other = fill(tmp_path/'mine', cat=15, dog=15),fill(tmp_path/'other', cat_b=9, dog_b=8)
    for o in ('cat', 'dog'): (other/f'{o}_b').rename(other/o)
    def check(folder):
        before,n = contents(folder),len(ids(folder))
        assert f'used {n} of {n} images' in build('cat', 'dog', '--photos', folder.name, cwd=tmp_path)
        assert known(tmp_path/'models'/'cat-dog') == (['cat', 'dog'], ids(folder))
        assert contents(folder) == before and not (tmp_path/'data').exists()
        meta = Classifier(tmp_path/'models'/'cat-dog').meta
        assert (meta['n_images'], meta['n_train'] + meta['n_valid']) == (n, n)
        card = (tmp_path/'models'/'cat-dog'/'model_card.md').read_text()
        assert f'{meta["n_train"]} photographs for training, {meta["n_valid"]} for validation' in card
    check(mine)
    for o in sorted(mine.rglob('*.jpg'))[::3]: o.unlink()
    for label in ('cat', 'dog'):
        for i in range(5): draw(label, f'new{i}', (120, 90)).save(mine/label/f'new{i}.jpg')
    draw('cat', 'changed', (120, 90)).save(sorted(mine.rglob('*.jpg'))[0])
    check(mine)   # unchanged images are not duplicates of earlier ones
    check(other)

def test_every_usable_image_of_a_folder_is_used(tmp_path):
    "Similar labels, other Unicode forms, deep folders, all suffixes, tiny images, half a file"
    typed,stored = 'caf\u00e9','cafe\u0301'
    mine = fill(tmp_path/'mine', cat=6, dog=20, house=5, tree=5, fish=5)
    for old,new in dict(cat='A+', dog=stored, house='A-', tree='c++', fish='c').items(): (mine/old).rename(mine/new)
    deep = mine/stored/'indoor'/'night'
    deep.mkdir(parents=True)
    for i,o in enumerate(('.jfif', '.jpe', '.webp', '.JPG', '.avif', '.bmp', '.tif')):
        kind = {'.jfif': 'jpeg', '.jpe': 'jpeg', '.JPG': 'jpeg', '.tif': 'tiff'}.get(o, o[1:])
        draw('dog', f'deep{i}', (100, 80)).save(deep/f'{i}{o}', kind)
    draw('cat', 'tiny', (9, 7)).save(mine/'A+'/'tiny.png')
    cut = mine/stored/'000.jpg'
    cut.write_bytes(cut.read_bytes()[:1500])
    (mine/'A+'/'notes.txt').write_text('cats')
    before = contents(mine)
    said = build('A-', typed, 'A+', 'c++', '--photos', 'mine', '--out', 'model', cwd=tmp_path)
    labels,images = known(tmp_path/'model')
    assert labels == ['A+', 'A-', 'c++', typed] and len(images) == 43
    card = (tmp_path/'model'/'model_card.md').read_text()
    for text in (said, card):
        assert 'used 43 of 45 images; left out 1 that cannot be opened' in text and '1 as not an image (.txt)' in text
    assert f'{stored}/000.jpg' in said and '000.jpg' not in card   # the card goes with the model, and names no file
    assert contents(mine) == before

def test_without_labels_all_of_the_folder_are_used(tmp_path):
    fill(tmp_path/'mine', cat=6, dog=6, tree=6)
    assert 'Images of cat, dog, tree' in build('--photos', 'mine', cwd=tmp_path)
    assert known(tmp_path/'models'/'mine')[0] == ['cat', 'dog', 'tree']
    assert 'give at least one word' in build(cwd=tmp_path, ok=False)

def test_label_without_a_folder_is_refused_before_any_work(tmp_path):
    fill(tmp_path/'mine', cat=6, dog=6)
    said = build('cat', 'bird', '--photos', 'mine', cwd=tmp_path, ok=False)
    assert "no folder 'bird'; there are 'cat', 'dog'" in said and not (tmp_path/'models').exists()

def test_given_split_is_used(tmp_path):
    "A label without images in valid is reported as not validated"
    mine = fill(tmp_path/'mine'/'train', cat=10, dog=10, tree=5).parent
    fill(mine/'valid', cat_v=4, dog_v=4), fill(mine/'test', cat_t=5, dog_t=5, tree_t=5, house=2)
    for o in (*mine.glob('valid/*_v'), *mine.glob('test/*_t')): o.rename(o.with_name(o.name[:-2]))
    said = build('cat', 'dog', 'tree', '--photos', 'mine', '--out', 'model', cwd=tmp_path)
    record,labels = json.loads((tmp_path/'model'/'images.json').read_text()),('cat', 'dog', 'tree')
    of = [ids(*(mine/part/o for o in labels)) for part in ('train', 'valid', 'test')]
    assert [set(record[o]) for o in ('training', 'validation', 'test')] == of and list(map(len, of)) == [25, 8, 15]
    card = (tmp_path/'model'/'model_card.md').read_text()
    for text in (said, card):
        assert '8 validation images' in text and '15 test images' in text
        assert any('tree' in o and 'validat' in o for o in text.splitlines())
    assert 'house' not in card.split('## ')[0] and known(tmp_path/'model')[0] == [*labels]

@pytest.mark.nightly
def test_missing_and_damaged_files_do_not_end_training(tmp_path):
    mine = fill(tmp_path/'mine', cat=30, dog=30)
    p = start('cat', 'dog', '--photos', 'mine', '--out', 'model', '--recipe', 'classic', '--arch', 'efficientnet_lite0',
              '--epochs', 6, cwd=tmp_path)
    while not list(tmp_path.glob('models/.unfinished/*.pth')):   # until an epoch is over
        assert p.poll() is None, p.communicate()
        time.sleep(.02)
    (mine/'cat'/'003.jpg').unlink()
    (mine/'dog'/'004.jpg').write_text('<!doctype html>')
    out,err = p.communicate(timeout=300)
    assert p.returncode == 0 and 'Traceback' not in err, err[-3000:]
    for o in ('cat/003.jpg: left out from now on: there is no such file',
              'dog/004.jpg: left out from now on: a web page'):
        assert err.count(o) == 1, err
    card = (tmp_path/'model'/'model_card.md').read_text()
    assert 'used 58 of 60 images; left out 2 that cannot be opened' in card
    assert ids(mine) - {content_id(mine/'dog'/'004.jpg')} <= known(tmp_path/'model')[1]
