"core.files and core.errors: image suffixes, walking folders, atomic writes, locks, errors of commands."
import os, signal, subprocess, sys, threading, time
from pathlib import Path

import pytest

from catdog.core.errors import CatdogError
from catdog.core.files import (IMAGE_FORMATS, content_id, folder_lock, free_name, is_image_name, map_ahead,
    one_at_a_time, walk_files, write_atomic)
from catdog.sample.draw import draw

def touch(folder, *names):
    for o in names:
        (folder/o).parent.mkdir(parents=True, exist_ok=True)
        (folder/o).touch()

def test_all_suffixes_of_pillow_for_our_formats_are_listed():
    from PIL import Image
    import pillow_heif
    pillow_heif.register_heif_opener()
    Image.init()
    theirs = {k for k,v in Image.registered_extensions().items() if v in {*IMAGE_FORMATS, 'MPO', 'DIB'}}
    assert not [o for o in theirs if not is_image_name(f'a{o.upper()}')] and '.heic' in theirs
    assert is_image_name('a.jfif') and not is_image_name('a.txt') and not is_image_name('jpg')

WITHOUT_MIME_TYPES = '''
import mimetypes, sys
mimetypes.knownfiles = []   # as on a machine that has no mime.types, with a Python that knows no .webp
mimetypes.init()
for o in ('.webp', '.avif', '.jfif'): mimetypes.types_map.pop(o, None)
from catdog.learn.loaders import image_files
from catdog.dataset.split import split_files
print(len(image_files(sys.argv[1])), sum(split_files(sys.argv[1]).folder.counts().values()))
'''

def test_all_suffixes_are_read_without_a_mime_types_table(tmp_path):
    suffixes = '.jfif .jpe .webp .JPG .avif .bmp .tif'.split()
    for label in ('cat', 'dog'):
        for i,o in enumerate(suffixes):
            (tmp_path/label).mkdir(exist_ok=True)
            kind = dict(jfif='jpeg', jpe='jpeg', jpg='jpeg', tif='tiff').get(o[1:].lower(), o[1:])
            draw(label, i, (90, 70)).save(tmp_path/label/f'{i}{o}', kind)
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', WITHOUT_MIME_TYPES, str(tmp_path)],
                          capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ['14', '14'], done.stderr

def test_links_are_followed_and_cycles_are_not(tmp_path):
    touch(tmp_path, 'elsewhere/1.jpg', 'data/dog/2.jpg')
    (tmp_path/'data'/'cat').symlink_to(tmp_path/'elsewhere')
    (tmp_path/'data'/'again').symlink_to(tmp_path/'elsewhere')   # the same folder twice is not a cycle
    (tmp_path/'data'/'dog'/'up').symlink_to(tmp_path/'data')
    (tmp_path/'elsewhere'/'over').symlink_to(tmp_path/'data'/'dog')
    found = [o.relative_to(tmp_path/'data').as_posix() for o in walk_files(tmp_path/'data')]
    assert {'cat/1.jpg', 'again/1.jpg', 'dog/2.jpg'} <= set(found) and len(found) < 50
    assert found == sorted(found, key=lambda o: o.split('/'))

def test_special_files_are_never_opened(tmp_path):
    os.mkfifo(tmp_path/'pipe.jpg')   # opening it would block for ever
    touch(tmp_path, '1.jpg', 'folder.jpg/2.png', 'notes.txt')
    (tmp_path/'gone.jpg').symlink_to('nowhere')
    assert [o.name for o in walk_files(tmp_path)] == ['1.jpg', '2.png', 'gone.jpg', 'notes.txt']

def test_unreadable_folder_is_skipped_or_reported(tmp_path, monkeypatch):
    touch(tmp_path, 'cat/1.jpg', 'dog/2.jpg')
    scan = os.scandir
    def _scan(folder):
        if Path(folder).name == 'dog': raise PermissionError(13, 'Permission denied', str(folder))
        return scan(folder)
    monkeypatch.setattr(os, 'scandir', _scan)
    told = []
    assert [o.name for o in walk_files(tmp_path, told.append)] == ['1.jpg']
    assert [o.filename for o in told] == [str(tmp_path/'dog')]
    assert [o.name for o in walk_files(tmp_path)] == ['1.jpg']

def test_write_is_atomic(tmp_path):
    file = write_atomic(tmp_path/'a.txt', b'old')
    with pytest.raises(TypeError): write_atomic(file, 'text')
    assert file.read_bytes() == b'old' and os.listdir(tmp_path) == ['a.txt']
    with pytest.raises(FileNotFoundError): write_atomic(tmp_path/'missing'/'a.txt', b'1')

def test_content_id_depends_only_on_content(tmp_path):
    for o in ('a', 'b'): (tmp_path/o).write_bytes(b'cat')
    assert content_id(tmp_path/'a') == content_id(tmp_path/'b') == content_id(b'cat') != content_id(b'dog')
    assert len(content_id(b'cat')) == 16 and int(content_id(b'cat'), 16) >= 0

def test_free_name(tmp_path):
    touch(tmp_path, 'a.jpg')
    taken = {str(tmp_path/'A-2.JPG').casefold()}
    assert [free_name(tmp_path/'a.jpg', taken).name for _ in range(2)] == ['a-3.jpg', 'a-4.jpg']

def test_map_ahead_keeps_order_and_limit():
    asked = []
    def items():
        for i in range(20): asked.append(i); yield i
    results = map_ahead(lambda o: o*o, items(), n=3)
    assert next(results) == 0 and len(asked) == 4 and list(results) == [o*o for o in range(1, 20)]

# Locks

def start(code, *args):
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)

HOLD = '''
import select, sys
from catdog.core.files import folder_lock
with folder_lock(sys.argv[1]):
    print('locked', flush=True)
    select.select([sys.stdin], [], [], 60)
'''
COUNT = '''
import sys
from pathlib import Path
from catdog.core.files import folder_lock
file = Path(sys.argv[1])/'count'
for _ in range(30):
    with folder_lock(sys.argv[1]): file.write_text(str(int(file.read_text()) + 1))
'''

def test_second_process_waits_and_reports_it_once(tmp_path, capsys, monkeypatch):
    first = start(HOLD, tmp_path)
    def release(*args, **kw):
        print(*args, **kw)
        first.stdin.close()
    monkeypatch.setattr('catdog.core.files.print', release, raising=False)
    assert first.stdout.readline() == 'locked\n'
    with pytest.raises(CatdogError, match='another catdog process is working in .*: try again when it has finished'):
        with folder_lock(tmp_path, wait=.2): pass
    with folder_lock(tmp_path): assert first.wait() == 0
    assert capsys.readouterr().out == f'another catdog process is working in {tmp_path}: waiting for it to finish.\n'

def test_lock_ends_with_its_process_even_by_sigkill(tmp_path):
    first = start(HOLD, tmp_path)
    assert first.stdout.readline() == 'locked\n'
    first.send_signal(signal.SIGKILL)
    with folder_lock(tmp_path): pass

def test_many_processes_take_turns(tmp_path):
    (tmp_path/'count').write_text('0')
    runs = [start(COUNT, tmp_path) for _ in range(3)]
    for o in runs: assert o.wait(120) == 0, o.stdout.read()
    assert (tmp_path/'count').read_text() == '90'

def test_lock_is_released_on_error_and_needs_a_folder(tmp_path, monkeypatch):
    with pytest.raises(ZeroDivisionError):
        with folder_lock(tmp_path): 1/0
    with folder_lock(tmp_path, wait=0): pass
    with pytest.raises(CatdogError, match='cannot be written to'):
        with folder_lock(tmp_path/'missing'): pass
    assert not (tmp_path/'missing').exists()

def test_file_system_without_locks_is_usable(tmp_path, monkeypatch):
    import errno, fcntl
    def flock(*args): raise OSError(errno.ENOTSUP, 'Operation not supported')
    monkeypatch.setattr(fcntl, 'flock', flock)
    with folder_lock(tmp_path): pass

# Errors of commands

def test_command_error_is_one_line_with_exit_status_2(tmp_path):
    (tmp_path/'halve.py').write_text('''from catdog.core.errors import command, CatdogError
@command
def halve(
    n:int # An even number
):
    "Half of `n`"
    if n%2: raise CatdogError(f'{n} is odd: give an even number')
    print(n//2)
if __name__ == '__main__': halve()
''')
    def halve(arg): return subprocess.run([sys.executable, tmp_path/'halve.py', arg], capture_output=True, text=True)
    assert halve('4').stdout == '2\n' and 'An even number' in halve('--help').stdout
    odd = halve('5')
    assert (odd.returncode, odd.stderr) == (2, 'halve.py: 5 is odd: give an even number\n')
    assert halve('five').returncode == 2

def test_callbacks_of_two_threads_take_turns():
    "And one may call another"
    seen = []
    @one_at_a_time
    def inner(o): seen.append(o)
    @one_at_a_time
    def outer(o):
        inner(o)
        time.sleep(.05)
        seen.append(o)
    threads = [threading.Thread(target=outer, args=(i,)) for i in range(3)]
    for o in threads: o.start()
    for o in threads: o.join(60)
    assert seen[::2] == seen[1::2] and sorted(seen) == [0, 0, 1, 1, 2, 2]
