"`ImageFolder`: labels, a given split, ignored files, default folders."
import tempfile
from pathlib import Path
from unicodedata import normalize

import pytest
from clean_helpers import as_nobody
from hypothesis import given, settings, strategies as st

from catdog.sample.draw import draw
from catdog.dataset.folder import ImageFolder, _part, default_folder, parse_labels
from catdog.core.errors import CatdogError, DataError
from catdog.core.files import is_system_folder

def touch(folder, *names):
    for o in names:
        (folder/o).parent.mkdir(parents=True, exist_ok=True)
        (folder/o).touch()
    return folder

SPLITS = dict(train='train', Training='train', val='valid', valid='valid', Test='test')
names = st.text(st.characters(blacklist_characters='/\0', blacklist_categories=['Cs']), min_size=1, max_size=20).filter(
    lambda o: not o.startswith('.') and not _part(o) and not is_system_folder(o) and len(o.encode()) < 200)

@given(st.lists(names, min_size=1, max_size=6, unique_by=lambda o: normalize('NFC', o)), st.sampled_from(['', *SPLITS]))
@settings(max_examples=60, deadline=None)
def test_label_is_the_exact_folder_name(labels, above):
    with tempfile.TemporaryDirectory() as d:
        path = touch(Path(d), *(f'{above}/{o}/deep/er/1.jpg' if above else f'{o}/deep/1.jpg' for o in labels))
        wanted = sorted(normalize('NFC', o) for o in labels)
        if SPLITS.get(above, 'train') != 'train':
            with pytest.raises(CatdogError, match='no folder train'): ImageFolder(path)
            return
        folder = ImageFolder(path, [normalize('NFD', o) for o in labels])
        assert folder.labels == ImageFolder(path).labels == wanted
        assert sorted(map(folder.label, folder.files)) == wanted
        for o in folder.files:
            assert folder.place(o, folder.label(o)) == o and folder.split(o) == SPLITS.get(above)
            assert folder.label(folder.place(o, labels[0])) == normalize('NFC', labels[0])

def test_similar_labels_stay_apart(tmp_path):
    labels = ['A+', 'A-', 'c', 'c++', 'cat', 'wild cat', '🐈', '🐈‍⬛', 'Cat', '"quoted"', 'a|b', '<b>', 'חתול', '*']
    path = touch(tmp_path, *(f'{o}/1.jpg' for o in labels))
    assert ImageFolder(path).labels == sorted(labels)
    for o in labels: assert ImageFolder(path, [o]).files == [path/o/'1.jpg']

def test_error_for_a_label_without_a_folder_lists_the_labels(tmp_path):
    path = touch(tmp_path, 'cat/1.jpg', 'wild cat/1.jpg')
    with pytest.raises(CatdogError, match="no folder 'dog', 'fish'; there are 'cat', 'wild cat'"):
        ImageFolder(path, ['cat', 'dog', 'fish'])
    assert ImageFolder(path, 'wild cat').others == ['cat']

def test_unicode_forms_of_a_name_are_one_label(tmp_path):
    nfc,nfd = '\u00e9','e\u0301'
    path = touch(tmp_path, f'train/{nfc}/1.jpg', f'test/{nfd}/2.jpg', 'train/dog/1.jpg')
    folder = ImageFolder(path, [nfd, 'dog'])
    assert folder.labels == ['dog', nfc] and len(folder.files) == 3
    assert folder.place(path/'test'/'dog'/'9.jpg', nfc) == path/'test'/nfd/'9.jpg'
    touch(path, f'train/{nfd}/3.jpg')
    with pytest.raises(CatdogError, match='two folders whose names look the same'): ImageFolder(path)

GIVEN = {
    'train and valid':          (['train/cat/1.jpg', 'valid/cat/2.jpg'], ['train', 'valid']),
    'val':                      (['train/cat/1.jpg', 'val/cat/2.jpg'], ['train', 'val']),
    'validation and test':      (['train/cat/1.jpg', 'validation/cat/2.jpg', 'test/cat/3.jpg'],
                                 ['train', 'validation', 'test']),
    'capitals':                 (['Train/cat/1.jpg', 'Test/cat/3.jpg'], ['Train', 'Test']),
    'training and testing':     (['Training/cat/1.jpg', 'Testing/cat/3.jpg'], ['Training', 'Testing']),
    'train alone':              (['train/cat/1.jpg', 'train/dog/1.jpg'], ['train']),
    'a list beside them':       (['train/cat/1.jpg', 'test/cat/3.jpg', 'labels.csv', '.git/x/1.jpg'],
                                 ['train', 'test']),
    'untold test images':     (['train/cat/1.jpg', 'test/3.jpg'], ['train', 'test']),
    'other names':              (['training_set/cat/1.jpg', 'test_set/cat/3.jpg'], ['training_set', 'test_set']),
    'dev':                      (['train/cat/1.jpg', 'dev/cat/3.jpg'], ['train', 'dev']),
    'years':                    (['train2017/cat/1.jpg', 'VAL 2017/cat/3.jpg'], ['train2017', 'VAL 2017']),
    'plurals and short words':  (['Trainings/cat/1.jpg', 'tst/cat/2.jpg'], ['Trainings', 'tst']),
    'trainval':                 (['trainval/cat/1.jpg', 'test_images/cat/2.jpg'], ['test_images', 'trainval']),
    'trains and buses':         (['train/1.jpg', 'bus/1.jpg'], []),
    'trains in folders':        (['train/steam/1.jpg', 'bus/1.jpg'], []),
    'train and test are labels': (['train/1.jpg', 'test/1.jpg'], []),
    'images beside labels':   (['train/1.jpg', 'train/cat/1.jpg', 'test/cat/1.jpg'], []),
}

@pytest.mark.parametrize('files,above', GIVEN.values(), ids=GIVEN)
def test_given_split_is_recognised(tmp_path, files, above):
    folder = ImageFolder(touch(tmp_path, *files))
    assert sorted(folder.splits) == sorted(above)
    assert 'cat' in folder.labels if above else 'train' in folder.labels

def test_role_of_an_evaluation_set(tmp_path):
    folder = ImageFolder(touch(tmp_path, 'train/cat/1.jpg', 'eval/cat/2.jpg'))
    assert folder.splits == dict(train='train', eval='valid')
    assert ImageFolder(touch(tmp_path, 'dev/cat/3.jpg')).splits == dict(train='train', dev='valid', eval='test')

def test_folder_only_in_test_is_not_a_label(tmp_path):
    folder = ImageFolder(touch(tmp_path, 'train/cat/1.jpg', 'train/dog/1.jpg', 'test/unknown/1.jpg',
                                 'test/cat/2.jpg'))
    assert folder.labels == ['cat', 'dog'] and [folder.split(o) for o in folder.files] == ['test', 'train', 'train']
    assert folder.ignored == [(tmp_path/'test'/'unknown'/'1.jpg', 'no label in train (unknown)')]

@pytest.mark.parametrize('one,two,words', [
    ('pets_train', 'pets_test', 'looks split into pets_test, pets_train: call the parts'),
    ('01-train', '02-val', '01-train'),
    ('seg_train', 'seg_pred', 'seg_pred, seg_train'), ('trainA', 'testA', 'testA, trainA'), ('tr', 'te', 'te, tr'),
    ('entrenamiento', 'prueba', 'prueba'), ('train', 'query', 'query, train'),
    ('train', 'unknown.jpg', 'split into train'),
    ('data/train', 'data/test', 'has only the folder data: give'),
    ('training_set/training_set', 'test_set/test_set', 'has only the folder training_set to learn from')])
def test_split_folders_are_never_labels(tmp_path, one, two, words):
    files = [f'{o}/{label}/1.jpg' for o in (one, two) for label in ('cat', 'dog') if '.jpg' not in o]
    path = touch(tmp_path, *files, *['more/1.jpg']*(two == 'unknown.jpg'))
    with pytest.raises(DataError, match=words): ImageFolder(path)
    if '/' not in one and '.jpg' not in two: assert ImageFolder(path, [one, two]).labels == sorted([one, two])

def test_labels_may_have_the_same_sub_folders(tmp_path):
    assert ImageFolder(touch(tmp_path, *(f'{o}/{k}/1.jpg' for o in ('cat', 'dog') for k in ('2019', '2020-05',
        'small')))
        ).labels == ['cat', 'dog']

def test_folder_beside_a_split_is_an_error_unless_labels_are_named(tmp_path):
    path = touch(tmp_path, 'train/cat/1.jpg', 'test/cat/1.jpg', 'more/1.jpg')
    with pytest.raises(CatdogError, match='has more beside them'): ImageFolder(path)
    assert ImageFolder(path, ['train', 'test']).labels == ['test', 'train']

def test_no_possible_image_is_left_out_without_a_reason(tmp_path):
    files = ['cat/1.jpg', 'cat/2.PSD', 'cat/3', 'cat/deep/4.txt', 'dog/5.jpg', 'fox/6.jpg', '7.jpg', 'manifest.jsonl',
             'cat/.hidden.jpg', '.removed/cat/8.jpg', 'bird/9.psd']
    folder = ImageFolder(touch(tmp_path, *files), ['cat', 'dog'])
    reasons = {f.relative_to(tmp_path).as_posix(): o for f,o in folder.ignored}
    assert reasons == {'cat/2.PSD': 'not an image (.psd)', 'cat/3': 'not an image (no suffix)',
                       'cat/deep/4.txt': 'not an image (.txt)', '7.jpg': 'outside any label'}
    assert folder.others == ['bird', 'fox'] and len(folder) == 2
    everything = ImageFolder(tmp_path)
    assert everything.loose == [tmp_path/'7.jpg'] and everything.counts() == dict(bird=0, cat=1, dog=1, fox=1)

def test_system_folders_are_neither_data_nor_labels(tmp_path):
    folders = ['@eaDir', '#recycle', 'lost+found', '.Trash-1000', '$RECYCLE.BIN', 'System Volume Information',
               'FOUND.001', 'Recycled', '@Recycle', '@Database', 'trashbox', '~snapshot', 'LOST.DIR', 'files_trashbin',
               '__MACOSX', '.AppleDouble', '.thumbnails', '.stversions', '.dropbox.cache', '.git', '.dvc',
               '.ipynb_checkpoints']
    files = [f'{above}{o}/1.jpg' for o in folders for above in ('', 'cat/', 'cat/deep/')]
    folder = ImageFolder(touch(tmp_path, 'cat/1.jpg', 'dog/1.jpg', *files))
    assert folder.labels == ['cat', 'dog'] and len(folder) == 2 and not folder.ignored
    assert sorted({o.name for o in folder.skipped}) == sorted(o for o in folders if not o.startswith('.'))
    assert len(folder.skipped) == 3*sum(not o.startswith('.') for o in folders)

@pytest.mark.parametrize('labels,error', [(None, True), (['cat', 'dog'], True), (['cat', 'fox'], False)])
def test_unreadable_folder_is_an_error_only_if_it_may_be_a_label(labels, error):
    with tempfile.TemporaryDirectory() as d:
        path = touch(Path(d), 'cat/1.jpg', 'dog/2.jpg', 'fox/3.jpg')
        path.chmod(0o755)
        (path/'dog').chmod(0)
        try: done = as_nobody(lambda: ImageFolder(path, labels))
        finally: (path/'dog').chmod(0o755)
    assert done.startswith(f'DataError: {path/"dog"}: cannot be read') if error else done == 'nothing'

def test_contact_sheet_and_training_agree_on_labels(tmp_path):
    from catdog.data import get_dls
    from catdog.dataset.folder import contact_sheet
    for label in ('cat', 'dog'):
        for i in range(10):
            to = tmp_path/label/('indoor' if i%2 else '')/f'{i}.jpg'
            to.parent.mkdir(parents=True, exist_ok=True)
            draw(label, i, (90, 70)).save(to)
    dls = get_dls(tmp_path, 64, num_workers=0)
    assert list(dls.vocab) == ['cat', 'dog']
    items = dls.train_ds.items + dls.valid_ds.items
    assert {dls.vocab[y] for y in dls.train_ds.tls[1]} == {'cat', 'dog'}
    assert all(dls.vocab[dls.train_ds.tls[1][i]] in o.parts for i,o in enumerate(dls.train_ds.items))
    assert len(items) == 20 and contact_sheet(tmp_path, columns=10, side=50).height == 2*(24 + 50)

@pytest.mark.parametrize('words,message', [
    ([], 'at least one word'), (['cat', ' \u200b'], 'a label is empty'), (['Cat', 'cat '], "'cat' is given twice"),
    ('con', 'Windows reserves it'), ('Lost+Found', 'operating systems use it'), ('.removed', 'begins with a dot'),
    ('a/b', 'cannot be part of it'), ('x'*101, 'at most 100')])
def test_words_that_cannot_be_labels(words, message):
    with pytest.raises(DataError, match=message): parse_labels(words)

def test_labels_have_the_names_of_existing_folders(tmp_path):
    touch(tmp_path, 'black bear/1.jpg', 'fox/1.jpg', 'Fox/1.jpg', 'dog')
    assert parse_labels(['Black  Bear', ' t-shirt '], tmp_path) == ['black bear', 't-shirt']
    assert parse_labels('T-Shirt', tmp_path, ['t-shirt']) == ['t-shirt'] and parse_labels('Fox', tmp_path) == ['Fox']
    with pytest.raises(DataError, match="can be 'Fox' or 'fox'"): parse_labels('FOX', tmp_path)
    with pytest.raises(DataError, match='dog is a file'): parse_labels('dog', tmp_path)

@pytest.mark.parametrize('labels,name', [
    ('cat', 'cat'), (['grizzly', 'black bear', 'teddy'], 'grizzly-black bear-teddy'), (['c', 'c++'], 'c-c++')])
def test_default_folder_is_named_after_the_words(labels, name):
    assert default_folder(labels) == Path('data')/name and default_folder(labels, 'models') == Path('models')/name

def test_default_folders_are_distinct():
    several = ['cat', 'dog-house'], ['cat-dog', 'house'], ['cat', 'dog', 'house'], ['dog', 'cat', 'house'], \
        ['A-', 'A+'], ['A', '-A+'], ['A', 'A+'], ['a--b', 'c'], ['a', 'b', 'c'], ['a-b', 'c'], ['a', 'b--c'], \
        ['a', 'b-', 'c'], ['a', '-b', 'c']
    assert len({default_folder(o) for o in several}) == len(several)
    assert default_folder(['cat', 't-rex']) == Path('data/cat--t-rex')

def test_default_folder_of_a_thousand_words(tmp_path):
    many = [f'Breed número {i} 🐕' for i in range(1000)]
    names = {default_folder(o, tmp_path) for o in (many, many[1:], many[:-1])}
    for o in names: (o.with_name(f'{o.name}_contact_sheet.png')).write_bytes(b'')
    assert len(names) == 3
