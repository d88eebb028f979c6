"catdog.core.files.cached: results of images, in memory and on disk"
import os, sqlite3

import pytest

from catdog.core import files as core_files
from catdog.core.files import cache_folder, cached

@pytest.fixture
def files(tmp_path, monkeypatch):
    "Three files, and an empty cache"
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'home'))
    monkeypatch.setattr(core_files, '_memory', {})
    for o in 'abc': (tmp_path/o).write_text(o)
    return [tmp_path/o for o in 'abc']

class Upper:
    "Computes the text of files in capitals, and notes which"
    def __init__(self): self.seen = []
    def __call__(self, files):
        for f in files:
            self.seen.append(f.name)
            if f.exists(): yield f,f.read_bytes().upper()

def ask(files, compute, on_disk=True, session='new'):
    if session == 'new': core_files._memory.clear()
    return {f.name: o.decode() for f,o in cached('upper', files, compute, 'upper', on_disk).items()}

def test_what_has_not_changed_is_computed_once(files):
    compute = Upper()
    everything = dict(a='A', b='B', c='C')
    assert ask(files, compute) == ask(files, compute, session='same') == ask(files, compute) == everything
    files[1].write_text('d')
    os.rename(files[0], files[0].with_name('moved'))
    assert ask([files[0].with_name('moved'), *files[1:]], compute) == dict(moved='A', b='D', c='C')
    assert compute.seen == ['a', 'b', 'c', 'b']
    assert ask([files[0], *files[1:]], compute) == dict(b='D', c='C') and compute.seen[4:] == ['a']   # it is not there

def test_another_file_in_its_place_with_its_size_and_time(files):
    compute = Upper()
    for o in files: os.utime(o, (1e9, 1e9))   # as an archive gives them
    ask(files, compute)
    os.replace(files[1], files[0])
    assert ask(files[:1], compute, session='same') == dict(a='B')

def test_a_file_that_is_replaced_while_it_is_computed(files):
    def replaced(some):
        files[0].write_text('later')
        yield files[0],b'LATER'
    assert ask(files[:1], replaced) == dict(a='LATER')
    files[0].write_text('a')
    assert ask(files[:1], Upper()) == dict(a='A')

def test_results_of_other_code_are_not_used(files, monkeypatch):
    compute = Upper()
    ask(files, compute)
    monkeypatch.setattr(core_files, '_code', lambda: 'of another release')
    ask(files, compute)
    assert compute.seen == [*'abc']*2

def test_only_in_memory(files):
    compute = Upper()
    for session in ('new', 'same', 'new'): ask(files, compute, False, session)
    assert compute.seen == [*'abc']*2 and not cache_folder().exists()

def test_what_was_computed_before_ctrl_c_is_kept(files):
    def interrupted(some):
        yield files[0],b'A'
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): ask(files, interrupted)
    compute = Upper()
    assert ask(files, compute) == dict(a='A', b='B', c='C') and compute.seen == ['b', 'c']

def test_the_latest_results_stay(files, monkeypatch):
    monkeypatch.setattr(core_files, '_MAX_ROWS', 2)
    compute = Upper()
    for _ in range(2): ask(files, compute)
    assert compute.seen == ['a', 'b', 'c', 'a']

def test_a_damaged_result_is_computed_again(files):
    compute,file = Upper(),cache_folder()/'results.sqlite'
    files[0].write_text('intact'*10)
    ask(files, compute)
    file.write_bytes(file.read_bytes().replace(b'INTACT', b'INTACU'))
    assert ask(files, compute)['a'] == 'INTACT'*10 and compute.seen == [*'abc', 'a']

@pytest.mark.parametrize('fault', ['damaged', 'a folder', 'no home', 'no user', 'locked'])
def test_a_cache_that_cannot_be_used_is_no_error(files, fault, monkeypatch):
    compute,file = Upper(),cache_folder()/'results.sqlite'
    if fault == 'no home': monkeypatch.setenv('TORCH_HOME', str(files[0]/'home'))   # below a file
    elif fault == 'no user':
        monkeypatch.chdir(files[0].parent)
        for o in ('TORCH_HOME', 'XDG_CACHE_HOME', 'HOME', 'USERPROFILE', 'HOMEPATH'): monkeypatch.delenv(o, raising=False)
        if hasattr(os, 'getuid'): monkeypatch.setattr(os, 'getuid', lambda: 2**31 - 9)   # who has no name
    else: ask(files, Upper())
    if fault == 'damaged': file.write_bytes(b'no database'*1000)
    if fault == 'a folder':
        file.unlink()
        file.mkdir()
    if fault == 'locked':
        monkeypatch.setattr(core_files, '_WAIT', .1)
        db = sqlite3.connect(file)
        db.execute('begin exclusive')
    for _ in range(2): assert ask(files, compute) == dict(a='A', b='B', c='C')
    assert compute.seen == [*'abc']*(1 if fault == 'damaged' else 2)   # a damaged one is replaced
    assert not os.path.exists('~')
