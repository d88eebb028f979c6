"Helpers for the tests of cleaning: small data sets, drawings, the contents of a folder."
import os
from pathlib import Path
from threading import Thread

import numpy as np

from catdog.sample.draw import draw
from catdog.dataset.manifest import Manifest

JOURNAL = Path('.removed/journal.jsonl')

def dataset(folder, n=15):
    "Write `n` cats and `n` dogs under the same names, each with different content, and their manifest"
    rows = []
    for label in ('cat', 'dog'):
        (folder/label).mkdir(parents=True)
        for i in range(n):
            (folder/label/f'{i}.jpg').write_text(f'{label} {i}')
            rows.append(dict(label=label, file=f'{label}/{i}.jpg', status='ok', reason='',
                             url=f'http://127.0.0.1/{label}/{i}', title='Größe'))
    Manifest(folder).add(*rows)
    Manifest(folder).rewrite()   # with all columns
    return folder

def state(folder):
    return {o.relative_to(folder).as_posix(): o.read_bytes() for o in folder.rglob('*')
            if o.is_file() and o.parent.name != '.removed' and o.name != '.lock' and not o.name.endswith('.part')}
def images(folder): return sorted(v for k,v in state(folder).items() if k.endswith('.jpg'))

def drawings(folder, n=14):
    "Draw `n` cats and `n` dogs; the first cat and the first two dogs lie in the wrong folder"
    for label,other,wrong in (('cat', 'dog', 1), ('dog', 'cat', 2)):
        (folder/label).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            draw(other if i < wrong else label, i, (128, 128)).save(folder/label/f'{i:02}.jpg', quality=95)
    return folder

def unsorted(folder, n=30, words=('cat', 'dog')):
    "Draw `n` of each of `words` into one folder, under names that say nothing; return name -> word"
    folder.mkdir(parents=True)
    truth = {f'{i:03}.jpg': words[i%len(words)] for i in np.random.default_rng(0).permutation(n*len(words)).tolist()}
    for name,word in truth.items(): draw(word, name, (96, 96)).save(folder/name)
    return truth

def as_nobody(what):
    "Run `what` without root's right to write everywhere; return what it raised, as text"
    read,write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            if not os.getuid(): os.setresuid(65534, 65534, 65534)
            what()
            os.write(write, b'nothing')
        except BaseException as e: os.write(write, f'{type(e).__name__}: {e}'.encode())
        finally: os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as f: return f.read()

def reachable(folder):
    "Make `folder` accessible to all users"
    for o in (folder, *folder.parents):
        mode = o.stat().st_mode
        if o.stat().st_uid == os.getuid() and o != Path('/') and not mode & 1: o.chmod(mode | 0o11)

def recorded_threads(monkeypatch):
    "The threads that cleaners and labellers start from now on, also those that have ended"
    threads = []
    monkeypatch.setattr('catdog.clean.cleaner.Thread', lambda **kw: threads.append(Thread(**kw)) or threads[-1])
    return threads
