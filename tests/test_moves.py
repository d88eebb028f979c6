"Moves and undo: no image is lost when the process is killed, the disk is full or a folder is read-only."
import errno, json, multiprocessing, os, resource, shutil, signal, sys, tempfile
from pathlib import Path

import pytest
from clean_helpers import JOURNAL, as_nobody, dataset, images, reachable, state

from catdog.dataset.journal import add_images, apply_choices, can_undo, undo_choices, unfinished_moves
from catdog.core.errors import CatdogError
from catdog.dataset.manifest import read_rows

def choices(folder, n=15):
    "Choices: a third move to the other folder, where each name is taken; a third are removed; a third stay"
    kinds = {'cat': ('dog', '<Delete>', '<Keep>'), 'dog': ('cat', '<Delete>', '<Keep>')}
    return {folder/label/f'{i}.jpg': kinds[label][i%3] for label in kinds for i in range(n)}

def check_manifest(folder):
    "Assert that each row names an existing file with its original content"
    rows = [json.loads(o) for o in (folder/'manifest.jsonl').read_text(encoding='utf8').splitlines()]
    assert len({o['file'] for o in rows}) == len(rows)
    for o in rows: assert (folder/o['file']).read_text() == ' '.join(o['url'].split('/')[-2:])

class Killed(BaseException): pass

class KillAt:
    "Count the executed lines of dataset.journal; call `kill` before line number `last`"
    functions = '_open_journal', 'write', '_copy', '_move', '_was_made', '_update_manifest', '_finish', '_undo', \
        'apply_choices', 'undo_choices'
    def __init__(self, last=None, kill=None): self.n,self.last,self.kill = 0,last,kill
    def __call__(self, frame, event, arg):
        if not frame.f_code.co_filename.endswith('dataset/journal.py'): return None
        if frame.f_code.co_name not in self.functions: return None
        if event == 'line':
            self.n += 1
            if self.n == self.last: self.kill()
        return self
    def __enter__(self): sys.settrace(self); return self
    def __exit__(self, *_): sys.settrace(None)

def die(): raise Killed

def linked(folder):
    "A data set in which every image is a relative link to one beside the data set"
    dataset(folder, 2)
    store = folder.with_name(folder.name + '.store')
    store.mkdir()
    for o in sorted(folder.glob('*/*.jpg')):
        o.rename(store/f'{o.parent.name}-{o.name}')
        o.symlink_to(f'../../{store.name}/{o.parent.name}-{o.name}')
    return folder

def other_disk(monkeypatch):
    "Imitate a label folder, and `.removed`, on disks of their own"
    rename = os.rename
    def _rename(a, b):
        if Path(a).parent != Path(b).parent: raise OSError(errno.EXDEV, 'Invalid cross-device link', str(a))
        rename(a, b)
    monkeypatch.setattr(os, 'rename', _rename)

def do(folder): return apply_choices(folder, {folder/'cat'/'0.jpg': 'dog', folder/'cat'/'1.jpg': '<Delete>'})

@pytest.mark.parametrize('what', [do, undo_choices], ids=['applying', 'undoing'])
@pytest.mark.parametrize('kind', ['files', 'links', 'another disk'])
def test_killed_before_any_line(tmp_path, monkeypatch, kind, what):
    "Wherever the process ends, no image is lost, and applying or undoing again completes"
    make = linked if kind == 'links' else lambda o: dataset(o, 2)
    if kind == 'another disk': other_disk(monkeypatch)
    def fresh(name):
        folder = make(tmp_path/name/'data')
        if what is undo_choices: do(folder)
        return folder
    folder = fresh('counted')
    everything = set(images(folder))
    start = state(folder) if what is do else state(make(tmp_path/'start'/'data'))
    with KillAt() as lines: what(folder)
    applied = state(folder)
    assert lines.n > 60
    for k in range(1, lines.n + 1):
        folder = fresh(str(k))
        with pytest.raises(Killed), KillAt(k, die): what(folder)
        assert set(images(folder)) == everything
        if what is do and k%3:   # apply again with the same choices, or without any, or undo at once
            do(folder) if k%3 == 1 or not can_undo(folder) else apply_choices(folder, {})
            assert state(folder) == applied, k
        undo_choices(folder, everything=k%2)
        assert state(folder) == start and not can_undo(folder), k
        shutil.rmtree(folder.parent)

@pytest.mark.parametrize('what', [do, undo_choices], ids=['applying', 'undoing'])
def test_sigkill(tmp_path, what):
    for k in (20, 40, 50, 60):
        folder = dataset(tmp_path/str(k)/'data', 2)
        start,everything = state(folder),images(folder)
        if what is undo_choices: do(folder)
        pid = os.fork()
        if not pid:
            try:
                with KillAt(k, lambda: os.kill(os.getpid(), signal.SIGKILL)): what(folder)
            finally: os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]) and images(folder) == everything
        apply_choices(folder, {folder/'dog'/'1.jpg': 'cat'})   # something else finishes it first
        assert images(folder) == everything
        check_manifest(folder)
        undo_choices(folder, everything=True)
        assert state(folder) == start

def test_interrupted_batch_is_finished_before_new_choices(tmp_path):
    folder = dataset(tmp_path/'data', 3)
    apply_choices(folder, choices(folder, 3))
    plan = (folder/JOURNAL).read_bytes().splitlines(keepends=True)[0]
    undo_choices(folder)
    (folder/JOURNAL).write_bytes(plan)   # nothing but the plan was written
    assert unfinished_moves(folder) == 4
    moved = apply_choices(folder, {folder/'cat'/'0.jpg': '<Delete>', folder/'cat'/'2.jpg': '<Delete>'})
    assert (folder/'dog/0-2.jpg').read_text() == 'cat 0' and (folder/'.removed/cat/2.jpg').exists()
    assert [(o.file, o.reason) for o in moved if not o.to] == [(folder/'cat'/'0.jpg', 'it is no longer there')]

def test_label_folder_on_another_disk(tmp_path):
    "Its images can be moved and removed, and back; on a real other disk if there is one"
    other = Path(tempfile.mkdtemp(prefix='catdog-', dir='/dev/shm' if Path('/dev/shm').is_dir() else tmp_path))
    try:
        folder = dataset(tmp_path/'data')
        shutil.move(folder/'cat', other/'cat')
        (folder/'cat').symlink_to(other/'cat')
        before = {o.name: (o.read_text(), o.stat().st_mtime_ns) for o in (folder/'cat').iterdir()}
        moved = apply_choices(folder, choices(folder))
        assert len(moved) == 20 and all(o.to.exists() and not o.file.exists() for o in moved)
        check_manifest(folder)
        undo_choices(folder)
        assert before == {o.name: (o.read_text(), o.stat().st_mtime_ns) for o in (folder/'cat').iterdir()}
    finally: shutil.rmtree(other)

def test_moved_relative_link_stays_valid(tmp_path):
    folder = linked(tmp_path/'data')
    start = state(folder)
    for o in do(folder): assert o.to.is_symlink() and o.to.read_text() == f'{o.file.parent.name} {o.file.stem}'
    undo_choices(folder)
    assert state(folder) == start and all(o.is_symlink() for o in folder.glob('*/*.jpg'))

def test_journal_cut_off_anywhere(tmp_path):
    "After a power failure the last lines may be missing or incomplete"
    folder = dataset(tmp_path/'data', 3)
    start = state(folder)
    apply_choices(folder, choices(folder, 3))
    journal,applied = (folder/JOURNAL).read_bytes(),state(folder)
    first = journal.index(b'\n') + 1   # the plan is on the disk before anything moves
    for cut in range(first, len(journal), 7):
        copy = tmp_path/str(cut)
        shutil.copytree(folder, copy)
        (copy/JOURNAL).write_bytes(journal[:cut])
        apply_choices(copy, {})
        assert state(copy) == applied
        undo_choices(copy)
        assert state(copy) == start
        shutil.rmtree(copy)

def test_full_disk(tmp_path):
    "If the journal cannot be written, nothing moves, and the error says so"
    folder = dataset(tmp_path/'data')
    start,everything = state(folder),images(folder)
    counted = dataset(tmp_path/'counted')
    apply_choices(counted, choices(counted))
    size,plan = (counted/JOURNAL).stat().st_size,(counted/JOURNAL).read_bytes().index(b'\n')
    # the limit is real: the kernel writes the part of a line that still fits, then refuses
    for limit in (0, 10, plan - 9, plan + 1, *range(plan + 50, size - 1, size//20), size - 1):
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try: apply_choices(folder, choices(folder))
            except CatdogError as e: os._exit('File too large' in str(e))
            finally: os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        assert images(folder) == everything
        if limit <= plan: assert state(folder) == start   # what is not in the journal has not moved
        apply_choices(folder, {})   # there is room again
        check_manifest(folder)
        undo_choices(folder, everything=True)
        assert state(folder) == start
        (folder/JOURNAL).unlink(missing_ok=True)

@pytest.mark.parametrize('locked', ['.', 'dog', 'cat'])
def test_read_only_folder(tmp_path, locked):
    folder = dataset(tmp_path/'data')
    start,everything = state(folder),images(folder)
    reachable(tmp_path)
    for o in (folder, folder/'cat', folder/'dog'): o.chmod(0o777)
    (folder/locked).chmod(0o555)
    said = as_nobody(lambda: apply_choices(folder, choices(folder)))
    assert said.startswith('CatdogError') and 'Permission denied' in said and str(folder) in said
    assert images(folder) == everything
    (folder/locked).chmod(0o777)
    assert as_nobody(lambda: apply_choices(folder, choices(folder))) == 'nothing'
    assert images(folder) == everything and state(folder) != start
    check_manifest(folder)
    assert as_nobody(lambda: undo_choices(folder, True)) == 'nothing'
    assert state(folder) == start

def test_vanished_image(tmp_path):
    "If images have disappeared meanwhile, the others move, and each missing one is named"
    folder = dataset(tmp_path/'data')
    gone = [folder/'cat'/'0.jpg', folder/'cat'/'1.jpg']
    for o in gone: o.unlink()
    start = state(folder)
    moves = apply_choices(folder, choices(folder))
    assert {o.file: o.reason for o in moves if not o.to} == dict.fromkeys(gone, 'it is no longer there')
    assert sum(o.to is not None and o.to.exists() for o in moves) == len(moves) - 2 == 18
    (moves[-1].to).unlink()   # and before undo one more
    kept = {k: v for k,v in start.items() if k != moves[-1].file.relative_to(folder).as_posix()}
    lost = [o for o in undo_choices(folder) if not o.to]
    assert [(o.file, o.reason) for o in lost] == [(moves[-1].to, 'it is no longer there')]
    assert {k for k in state(folder) if k.endswith('.jpg')} == {k for k in kept if k.endswith('.jpg')}

def test_two_at_once(tmp_path, monkeypatch):
    "Four processes apply the same choices at the same time: each image moves once"
    monkeypatch.setattr('catdog.dataset.journal._LOCK_SECONDS', 120)
    folder = dataset(tmp_path/'data', 200)
    start,everything = state(folder),images(folder)
    barrier,pids = multiprocessing.get_context('fork').Barrier(4),[]
    for _ in range(4):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                barrier.wait()
                apply_choices(folder, choices(folder, 200))
                code = 0
            finally: os._exit(code)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(o, 0)[1]) for o in pids] == [0]*4
    assert images(folder) == everything
    check_manifest(folder)
    undo_choices(folder, everything=True)
    assert state(folder) == start

def test_journal_has_a_line_before_and_after(tmp_path):
    folder = dataset(tmp_path/'data', 3)
    apply_choices(folder, choices(folder, 3))
    lines = [json.loads(o) for o in (folder/JOURNAL).read_text().splitlines()]
    assert [o['event'] for o in lines] == ['planned', *['done']*4, 'finished']
    assert (lines[0]['moves'][0]['file'], lines[0]['moves'][0]['to']) == ('cat/0.jpg', 'dog/0-2.jpg')
    assert (folder/'.removed/cat/1.jpg').read_text() == 'cat 1'

def test_batches_are_undone_one_by_one_or_all_at_once(tmp_path):
    folder = dataset(tmp_path/'data', 4)
    start = state(folder)
    apply_choices(folder, {folder/'cat'/'1.jpg': 'dog'})
    middle = state(folder)
    apply_choices(folder, {folder/'dog'/'1-2.jpg': '<Delete>', folder/'dog'/'3.jpg': 'dog',
                           folder/'cat'/'2.jpg': '<Keep>'})
    assert (folder/'.removed/dog/1-2.jpg').exists() and unfinished_moves(folder) == 0
    undo_choices(folder)
    assert state(folder) == middle
    apply_choices(folder, {folder/'dog'/'1-2.jpg': '<Delete>'})
    assert len(undo_choices(folder, everything=True)) == 2
    assert state(folder) == start and not can_undo(folder) and undo_choices(folder) == []

def test_impossible_moves_are_refused_before_anything_moves(tmp_path):
    folder = dataset(tmp_path/'data', 4)
    start = state(folder)
    for bad in ('../x', '.removed', 'a/b', ''):
        with pytest.raises(CatdogError, match='cannot be the name'):
            apply_choices(folder, {folder/'cat'/'1.jpg': 'dog', folder/'cat'/'2.jpg': bad})
    with pytest.raises(CatdogError, match='is not in'): apply_choices(folder, {Path('elsewhere/cat/2.jpg'): 'dog'})
    with pytest.raises(CatdogError, match='no such folder'):
        apply_choices(folder/'nowhere', {folder/'cat'/'2.jpg': 'dog'})
    assert state(folder) == start
    assert [o.to for o in apply_choices(folder, {folder/'cat'/'9.jpg': 'dog'})] == [None]   # it is not there

def test_manifest_is_updated(tmp_path):
    "The label stays the search term; `read_manifest` can read the file"
    from catdog.dataset.manifest import read_manifest
    folder = dataset(tmp_path/'data', 4)
    apply_choices(folder, {folder/'cat'/'1.jpg': 'dog', folder/'cat'/'2.jpg': '<Delete>'})
    rows = read_manifest(folder).set_index('file')
    assert tuple(rows.loc['dog/1-2.jpg', ['label', 'status']]) == ('cat', 'ok')
    assert (rows.status == 'removed').sum() == 1
    undo_choices(folder)
    assert (read_manifest(folder).status == 'removed').sum() == 0

def tree(folder, *files):
    "A data set of `files` with their names as content"
    for o in files:
        (folder/o).parent.mkdir(parents=True, exist_ok=True)
        (folder/o).write_text(o)
    return folder

@pytest.mark.parametrize('file,label,to', [
    ('cat/indoor/1.jpg', 'dog', 'dog/indoor/1.jpg'), ('train/cat/1.jpg', 'dog', 'train/dog/1.jpg'),
    ('test/cat/old/1.jpg', 'dog', 'test/dog/old/1.jpg'), ('cat/indoor/1.jpg', 'cat', None),
    ('train/cat/1.jpg', 'cat', None), ('cat/indoor/1.jpg', '<Delete>', '.removed/cat/indoor/1.jpg'),
    ('train/cat/1.jpg', '<Delete>', '.removed/train/cat/1.jpg'), ('1.jpg', '<Delete>', '.removed/1.jpg')])
def test_image_keeps_its_place_under_another_label(tmp_path, file, label, to):
    "The label is the first folder, or the first below train, valid and test; the rest of the path stays"
    top = '' if file[0] in 'c1' else 'train/'
    folder = tree(tmp_path/'data', file, f'{top}cat/2.jpg', f'{top}dog/2.jpg', *(['valid/cat/3.jpg'] if top else []))
    start = state(folder)
    moves = apply_choices(folder, {folder/file: label})
    assert [o.to.relative_to(folder).as_posix() for o in moves] == ([to] if to else [])
    if to: assert (folder/to).read_text() == file and not (folder/file).exists()
    assert (folder/JOURNAL).exists() == bool(to)
    undo_choices(folder)
    assert state(folder) == start

ODD = ['A+', 'A-', 'c', 'c++', '😀', '"quoted"', "it's", '<b>', 'قطة', 'a|b*_', ' wild  cat', 'Größe', '$x$', 'a,b']

def test_labels_of_any_name(tmp_path):
    from unicodedata import normalize
    stored = [normalize('NFD', o) for o in ODD]   # as a Mac may have written the folders
    folder = tree(tmp_path/'data', *(f'{o}/{i}.jpg' for i,o in enumerate(stored)))
    start = state(folder)
    wanted = {folder/o/f'{i}.jpg': label for i,(o,label) in enumerate(zip(stored, ODD[1:] + ODD[:1]))}
    moves = apply_choices(folder, wanted)
    assert [o.to.parent.name for o in moves] == stored[1:] + stored[:1]   # into the folder that there was
    assert sorted(o.name for o in folder.iterdir() if not o.name.startswith('.')) == sorted(stored)
    assert apply_choices(folder, {o.to: label for o,label in zip(moves, wanted.values())}) == []   # there they are
    undo_choices(folder)
    assert state(folder) == start

@pytest.mark.skipif(os.sep != '/', reason='such a name is a path there')
def test_backslash_in_a_label(tmp_path):
    folder = tree(tmp_path/'data', 'a\\b/1.jpg', 'cat/2.jpg')
    assert [o.to for o in apply_choices(folder, {folder/'cat'/'2.jpg': 'a\\b'})] == [folder/'a\\b'/'2.jpg']

def test_nothing_moves_while_another_process_holds_the_lock(tmp_path, monkeypatch):
    "Such as a scrape"
    from catdog.core.files import folder_lock
    monkeypatch.setattr('catdog.dataset.journal._LOCK_SECONDS', .2)
    folder = dataset(tmp_path/'data', 4)
    start = state(folder)
    with folder_lock(folder), pytest.raises(CatdogError, match='another catdog process is working in .*data'):
        apply_choices(folder, choices(folder, 4))
    assert state(folder) == start
    assert len(apply_choices(folder, choices(folder, 4))) == 6

@pytest.mark.parametrize('files,to', [
    (['1.jpg'], 'cat/1.jpg'), (['2026/1.jpg'], 'cat/1.jpg'), (['1.jpg', 'cat/1.jpg'], 'cat/1-2.jpg'),
    (['valid/1.jpg', 'train/cat/2.jpg', 'valid/cat/3.jpg'], 'valid/cat/1.jpg')])
def test_image_without_a_label(tmp_path, files, to):
    "It goes into the folder of its label, and undo takes it back"
    folder = tree(tmp_path/'data', *files)
    start = state(folder)
    assert [o.to.relative_to(folder).as_posix() for o in apply_choices(folder, {folder/files[0]: 'cat'})] == [to]
    undo_choices(folder)
    assert state(folder) == start

def test_images_of_another_data_set_are_added_once(tmp_path):
    "Under their labels, with their rows; nothing is overwritten, and the other one stays as it is"
    path,also = dataset(tmp_path/'data', 3),tree(tmp_path/'also', 'dog/0.jpg', 'dog/new.jpg', 'bird/1.jpg')
    (also/'manifest.jsonl').write_text(json.dumps(dict(label='dog', url='app:1', status='ok', file='dog/new.jpg')) + '\n'
                                        + json.dumps(dict(label='dog', url='app:0', status='ok', file='dog/0.jpg')) + '\n')
    before,other,n = state(path),state(also),len(read_rows(path))
    assert [add_images(path, also, ['dog']), add_images(path, also), add_images(path, also)] == [1, 1, 0] and state(also) == other
    assert {k: v for k,v in state(path).items() if k in before and k != 'manifest.jsonl'} == {
        k: v for k,v in before.items() if k != 'manifest.jsonl'}
    assert (path/'dog'/'new.jpg').read_text() == 'dog/new.jpg' and (path/'bird'/'1.jpg').exists()
    assert len(read_rows(path)) == n + 1 and read_rows(path)['dog', 'app:1']['file'] == 'dog/new.jpg'
