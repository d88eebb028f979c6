"The labeller: what it proposes, what it keeps, and what it moves."
import json, os, signal

import numpy as np, pytest
import tqdm.auto as tqdm_auto
from clean_helpers import images, recorded_threads, state, unsorted

from catdog.clean.labeller import Labeller, propose
from catdog.core import files as core_files
from catdog.core.errors import DataError

WORDS = 'cat', 'dog'

@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp('drawn')/'data'
    return folder,unsorted(folder)

@pytest.fixture
def data(drawn, tmp_path):
    "A copy to work in; with the same modification times, so that features are computed once"
    folder = tmp_path/'data'
    folder.mkdir()
    for o in drawn[0].iterdir(): os.link(o, folder/o.name)
    return folder,drawn[1]

def answer(labeller, truth, pages=1):
    "Choose the right label for each image of `pages` pages"
    for _ in range(pages):
        for o in labeller.shown: labeller.choose(o, truth[o.name])
        labeller.bt_agree.click()

def test_pages_teach(data):
    "Each page has new images; suggestions come once there are a few of each, and mostly are right"
    folder,truth = data
    labeller = Labeller(folder, WORDS, max_n=6)
    assert not any(map(labeller.open_suggestion, labeller.shown)) and labeller.learned.value.startswith('0 labelled')
    answer(labeller, truth, 3)
    assert len({*labeller.choices}) == 18 and not {*labeller.shown} & {*labeller.choices}
    assert labeller.learned.value.startswith('18 labelled (cat 9, dog 9)') or '18 labelled' in labeller.learned.value
    assert '42 left' in labeller.learned.value
    suggested = {o.name: labeller.open_suggestion(o) for o in labeller.shown}
    assert None not in suggested.values()
    labeller.bt_agree.click()   # all suggestions of the page at once
    assert {o.name: labeller.choices[o] for o in labeller.choices if o.name in suggested} == suggested
    labeller.bt_back.click()
    assert {o.name for o in labeller.shown} == {*suggested}   # to correct one
    assert images(folder) == sorted(o.read_bytes() for o in folder.iterdir() if o.is_file())   # nothing has moved

@pytest.mark.parametrize('slow', [False, True])
def test_apply_and_undo(data, slow, monkeypatch):
    "Also where learning takes long, and runs in a thread"
    (folder,truth),threads = data,recorded_threads(monkeypatch)
    start,labeller = state(folder),Labeller(folder, WORDS, max_n=6)
    answer(labeller, truth, 2)
    files = [*labeller.choices]
    labeller.choose(files[0], '<Delete>')
    labeller.choose(files[1], '<Keep>')
    labeller.iw.slow = slow
    labeller.bt_apply.click()
    for o in threads: o.join()
    assert labeller.message.value == 'Moved 11 images.'
    assert (folder/'.removed'/files[0].name).exists() and files[1].exists()
    for o in files[2:]: assert (folder/truth[o.name]/o.name).exists()
    assert not {o.name for o in files} & {o.name for o in labeller.shown}
    assert labeller.learned.value.startswith('10 labelled')   # those in folders count
    again = Labeller(folder, WORDS, max_n=6)
    assert again.learned.value.startswith('10 labelled') and again.choices == {files[1]: '<Keep>'}
    again.iw.slow = slow
    again.bt_undo.click()
    for o in threads: o.join()
    assert bool(threads) == slow
    assert {k: v for k,v in state(folder).items() if 'json' not in k} == start
    assert len(again.choices) == 11 and all(truth[o.name] == k for o,k in again.choices.items() if o != files[1])

def test_a_killed_kernel_loses_nothing(data):
    "Each answer is on the disk as soon as it was given, the file is never half written, and nothing has moved"
    folder,truth = data
    labeller,(read,write) = Labeller(folder, WORDS, max_n=6),os.pipe()
    pid = os.fork()
    if not pid:
        try:
            for i in range(3):
                for o in labeller.shown:
                    labeller.choose(o, truth[o.name])
                    os.write(write, o.name.encode())
                if i < 2: labeller.bt_agree.click()
        finally: os._exit(0)
    os.close(write)   # or reading would wait forever, should the child end early
    told = b''
    while len(told) < 7*15 and (new := os.read(read, 7)): told += new
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    again = Labeller(folder, WORDS, max_n=6)
    given = {told[i:i + 7].decode() for i in range(0, len(told), 7)}
    assert len(given) == 15 and given <= {o.name for o in again.choices}
    assert all(truth[o.name] == label for o,label in again.choices.items())
    assert not {*again.shown} & {*again.choices} and len({*folder.glob('*.jpg')}) == 60

def test_the_rest_is_labelled_after_a_sample_only(data, monkeypatch):
    folder,truth = data
    labeller = Labeller(folder, WORDS, max_n=6)
    answer(labeller, truth, 3)
    labeller.dd_sure.value = .9
    monkeypatch.setattr(labeller, '_p', np.eye(2)[[WORDS.index(truth[o.name]) for o in labeller.files]])   # sure of all
    labeller.bt_rest.click()
    assert '6 of the 42' in labeller.message.value and labeller.bt_rest.description == 'Label the rest'
    sample = {*labeller.shown}
    labeller.choose(labeller.shown[0], next(o for o in WORDS if o != truth[labeller.shown[0].name]))
    labeller.bt_agree.click()
    assert '1 of these 6 were wrong, 16.7%' in labeller.message.value and len(labeller.choices) == 24
    assert labeller.bt_rest.description == 'Label 36 images' and not labeller.auto
    labeller.bt_rest.click()
    assert len(labeller.auto) == 36 and not {*labeller.auto} & {*labeller.choices} and sample <= {*labeller.choices}
    assert len(Labeller(folder, WORDS, max_n=6).auto) == 36   # kept, too
    labeller.bt_rest.click()
    assert not labeller.auto and labeller.tally.value.count('to') == 2
    assert len([*folder.glob('*.jpg')]) == 60
    labeller.bt_rest.click()
    labeller.bt_apply.click()
    labeller.bt_undo.click()
    assert 'suggestions were right' not in labeller.learned.value   # labels by the network are no answers to them

def edit(labeller, what, new=''):
    labeller.edit.value = dict(labeller.edit.options)[what]
    labeller.new.value = new
    labeller.widget.children[1].children[2].click()   # OK

def test_another_label(data):
    folder,truth = data
    labeller = Labeller(folder, 'cat', max_n=6)
    assert labeller.labels == ['cat'] and '60 left, sure of 0' in labeller.learned.value   # nothing is learned from one label
    edit(labeller, 'Add label', 'cat')
    assert 'given twice' in labeller.message.value
    edit(labeller, 'Add label', 'dog')
    assert not labeller.message.value
    assert labeller.cards[0].menu.options == ('<Keep>', '<Delete>', 'cat', 'dog') and '<kbd>2</kbd> dog' in labeller.keys.value
    answer(labeller, truth, 1)
    assert Labeller(folder, ['cat'], max_n=6).labels == ['cat', 'dog']

def test_a_label_with_a_typing_error(data):
    "It is renamed, in answers, by the network and in folders, or joined with another; or removed, if no image has it"
    folder,truth = data
    (folder/'dgo').mkdir()
    there,other = (next(k for k,o in truth.items() if o == word) for word in WORDS[::-1])
    (folder/there).rename(folder/'dgo'/there)
    labeller = Labeller(folder, ['cat', 'dgo', 'bird'], max_n=6)
    labeller.choose(folder/other, 'dgo')
    labeller.auto = {o: 'dgo' for o in labeller.files[-2:] if o.parent == folder}
    edit(labeller, 'Remove dgo')
    assert 'images are labelled dgo: rename it instead' in labeller.message.value and 'dgo' in labeller.labels
    edit(labeller, 'Rename dgo', '')
    assert 'a label is empty' in labeller.message.value
    edit(labeller, 'Remove bird')
    edit(labeller, 'Rename dgo', 'dog')
    assert labeller.labels == ['cat', 'dog'] and not labeller.message.value and {*labeller.auto.values()} == {'dog'}
    assert labeller.choices == {folder/'dgo'/there: 'dog', folder/other: 'dog'} and 'dog' in labeller.cards[0].menu.options
    assert Labeller(folder, 'cat', max_n=6).labels == ['cat', 'dog']
    edit(labeller, 'Rename dog', 'cat')   # the same as another
    assert labeller.labels == ['cat'] and {*labeller.choices.values()} == {'cat'}
    edit(labeller, 'Rename cat', 'dog')
    labeller.bt_apply.click()
    assert (folder/'dog'/there).exists() and (folder/'dog'/other).exists() and not labeller.choices

def test_two_labellers_of_one_folder(data):
    "The answers of both are kept; of two about one image, the last"
    folder,truth = data
    one,two = (Labeller(folder, WORDS, max_n=6) for _ in range(2))
    a,b,c,d = one.shown[:4]
    def kept(): return {o.name: k for o,k in Labeller(folder, WORDS, max_n=6).choices.items()}
    one.choose(a, 'cat')
    two.choose(b, 'dog')
    two.choose(c, 'dog')
    one.choose(b, 'cat')
    edit(two, 'Add label', 'bird')
    two.choose(d, 'bird')
    one.choose(c, '<Keep>')
    assert kept() == {a.name: 'cat', b.name: 'cat', c.name: '<Keep>', d.name: 'bird'}
    assert Labeller(folder, WORDS, max_n=6).labels == [*WORDS, 'bird']
    one.bt_apply.click()
    two.choose(two.files[-1], 'dog')
    assert (folder/'cat'/a.name).exists() and kept() == {c.name: '<Keep>', d.name: 'bird', two.files[-1].name: 'dog'}

def test_a_folder_that_is_renamed_meanwhile(data):
    "It is said; and nothing is made in its old place"
    folder,truth = data
    labeller = Labeller(folder, WORDS, max_n=6)
    answer(labeller, truth)
    folder.rename(folder.with_name('moved'))
    labeller.choose(labeller.shown[0], 'cat')
    assert 'is no longer in' in labeller.message.value
    for o in (labeller.bt_agree, labeller.bt_next, labeller.bt_back, labeller.bt_apply, labeller.bt_undo): o.click()
    assert not folder.exists() and labeller.message.value.startswith('<b>')
    assert len(Labeller(folder.with_name('moved'), WORDS, max_n=6).choices) == 6

def test_files_that_are_no_images(tmp_path, data):
    folder = data[0]
    (folder/'000.jpg').write_text('no image')
    labeller = Labeller(folder, WORDS, max_n=6)
    assert '1 cannot be opened: 000.jpg' in labeller.message.value and len(labeller.files) == 59
    (tmp_path/'empty').mkdir()
    for name,words in (('empty', 'no image that can be opened'), ('nowhere', 'no such folder')):
        with pytest.raises(DataError, match=words): Labeller(tmp_path/name, WORDS)

def test_a_progress_bar_only_outside_voila(data, monkeypatch):
    "Voilà would show an error in place of a bar that is gone"
    bars,tqdm = [],tqdm_auto.tqdm
    monkeypatch.setattr(core_files, '_memory', {})
    monkeypatch.setattr(core_files, '_load', lambda *_: {})
    monkeypatch.setattr(tqdm_auto, 'tqdm', lambda *args, **kw: bars.append(kw['disable']) or tqdm(*args, **kw))
    Labeller(data[0], WORDS, max_n=6)
    assert bars and not any(bars)
    bars.clear()
    core_files._memory.clear()
    monkeypatch.setenv('VOILA_BASE_URL', '/')
    Labeller(data[0], WORDS, max_n=6)
    assert bars and all(bars)

@pytest.mark.parametrize('text', ['', '{"labels": ["ca', '[]', '{"labels": ["cat"], "choices": [], "auto": {}}'])
def test_damaged_answers_are_not_replaced(data, text):
    file = data[0]/'.removed'/'answers.json'
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(DataError, match='answers.json: holds the answers given so far'): Labeller(data[0], WORDS, max_n=6)
    assert file.read_text() == text

def test_proposals_are_uncertain_and_unlike_each_other():
    "Of two clouds, those between them come first, and no two that are the same"
    r = np.random.default_rng(0)
    z = np.concatenate([r.normal(size=(400, 8)) + [4]*8, r.normal(size=(400, 8)) - [4]*8]).astype('float32')
    middle = r.normal(size=(40, 8)).astype('float32')*.3
    z = np.concatenate([z, middle, np.repeat(middle[:1], 30, 0)])   # the same image 31 times
    known = np.full(len(z), -1)
    known[:20],known[400:420] = 0,1
    p,which = propose(z, known, 10, 2)
    assert p.shape == (len(z), 2) and (p[:400].argmax(1) == 0).mean() > .99
    assert len({*which}) == len(which) and (known[which] == -1).all() and sum(which >= 800) >= 6
    assert sum((which == 800) | (which >= 840)) <= 2
