"One writer at a time in a folder, across processes. What fits in a cell is in nbs/core/lock.ipynb."
import os, signal, subprocess, sys

import pytest

from catdog.core import files as lock
from catdog.core.errors import CatdogError
from catdog.core.files import folder_lock

def start(code, *args):
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)

HOLD = '''
import sys, time
from catdog.core.files import folder_lock
with folder_lock(sys.argv[1]):
    print('locked', flush=True)
    time.sleep(float(sys.argv[2]))
'''
COUNT = '''
import sys
from pathlib import Path
from catdog.core.files import folder_lock
file = Path(sys.argv[1])/'count'
for _ in range(30):
    with folder_lock(sys.argv[1]): file.write_text(str(int(file.read_text()) + 1))
'''

def test_the_second_waits_and_says_for_whom(tmp_path, capsys):
    first = start(HOLD, tmp_path, 1.5)
    assert first.stdout.readline() == 'locked\n'
    with pytest.raises(CatdogError, match=rf'process {first.pid} on .* is at work in .*try again when it has ended'):
        with folder_lock(tmp_path, wait=.2): pass
    with folder_lock(tmp_path): assert first.wait() == 0
    assert capsys.readouterr().out.count(f'process {first.pid} ') == 1
    assert os.listdir(tmp_path) == []

def test_a_lock_ends_with_its_holder_even_by_kill_9(tmp_path):
    first = start(HOLD, tmp_path, 600)
    assert first.stdout.readline() == 'locked\n'
    second = start(HOLD, tmp_path, 0)
    assert f'process {first.pid} ' in second.stdout.readline()
    first.send_signal(signal.SIGKILL)
    assert second.stdout.readline() == 'locked\n' and second.wait(20) == 0
    with folder_lock(tmp_path, wait=0): pass

def test_many_writers_one_after_the_other(tmp_path):
    "The file of the lock comes and goes; nobody may lock one that has gone"
    (tmp_path/'count').write_text('0')
    runs = [start(COUNT, tmp_path) for _ in range(4)]
    for o in runs: assert o.wait(120) == 0, o.stdout.read()
    assert (tmp_path/'count').read_text() == '120'

def test_a_file_that_went_away_before_it_was_locked_does_not_count(tmp_path, monkeypatch):
    "Its holder removed it after we had opened it: a third one may have made a new file meanwhile"
    real,missed = lock.try_lock,[]
    def _late(f):
        if not missed:
            missed.append(f.name)
            os.unlink(f.name)
        return real(f)
    monkeypatch.setattr(lock, 'try_lock', _late)
    with folder_lock(tmp_path): assert missed and os.listdir(tmp_path) == ['.lock']

def test_an_error_inside_frees_it(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with folder_lock(tmp_path): 1/0
    with folder_lock(tmp_path, wait=0): assert os.listdir(tmp_path) == ['.lock']
