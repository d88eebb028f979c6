"""What is computed from an image, kept in memory, and by the image's content on disk for the next session"""

import os, sqlite3
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
import PIL
from tqdm.auto import tqdm
from .files import content_id, map_ahead

_MAX_ROWS,_WAIT = 50_000,5   # rows on disk, of about 10 kB; seconds for another process to write

def cache_folder() -> Path:
    "Return the folder of catdog beside the weights that PyTorch caches; it may be missing"
    home = os.environ.get('TORCH_HOME') or Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache')/'torch'
    return Path(home).expanduser()/'hub'/'catdog'

@cache
def _code():
    "Identify the code that opens images and computes from them; what another release computed is not used"
    root = Path(__file__).parent.parent
    files = [f for o in ('core', 'learn') for f in sorted((root/o).glob('*.py'))]
    return content_id(b''.join(f.read_bytes() for f in files) + PIL.__version__.encode())

def _with_database(do):
    "Return `do` of the database, or {} if it cannot be used: a home folder may be missing, read-only or full"
    file = cache_folder()/'results.sqlite'
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file, _WAIT)) as db, db:
            db.execute('create table if not exists results (kind text, id text, value blob, primary key (kind, id))')
            return do(db)
    except (OSError, sqlite3.Error) as e:
        if type(e) is sqlite3.DatabaseError:   # the file is damaged
            with suppress(OSError): file.unlink()
        return {}

def _load(kind, ids):
    sql = 'select value from results where kind = ? and id = ?'
    return _with_database(lambda db: {o: row[0] for o in ids if (row := db.execute(sql, (kind, o)).fetchone())})

def _keep(kind, results):
    def _insert(db):
        db.executemany('insert or replace into results values (?, ?, ?)', ((kind, *o) for o in results.items()))
        db.execute('delete from results where rowid <= (select max(rowid) from results) - ?', (_MAX_ROWS,))
    if results: _with_database(_insert)

_memory = {}   # kind -> {stamp of a file: result}, of the last three kinds

def _stamp(file):
    try: s = os.stat(file)
    except OSError: return str(file),
    return str(file),s.st_mtime_ns,s.st_size

def _content(file):
    with suppress(OSError): return content_id(file)

def in_memory(
    kind:str # As for `cached`
) -> dict: # Stamp of a file -> bytes
    "Return the results of `kind` in memory; drop those of the kinds before the last three"
    if kind not in _memory:
        while len(_memory) > 2: del _memory[next(iter(_memory))]
    return _memory.setdefault(kind, {})

def keep_in_memory(
    kind:str, # As for `cached`
    results:dict # File -> bytes
):
    "Let `cached` return `results` until the session ends"
    in_memory(kind).update((_stamp(f), o) for f,o in results.items())

def cached(
    kind:str, # What is computed, and all that it depends on except the images and the code of catdog
    files, # Paths of images
    compute, # Function of the files that are not cached: yields a pair for each that could be opened, file and bytes
    what:str, # What the progress bar says
    on_disk:bool=True # Keep the results for other sessions, too?
) -> dict: # File -> bytes, without those that could not be opened
    "Return what `compute` yields about `files`, cached by their contents, so that an image that has changed is opened"
    def _bar(items, n):   # Voilà would show an error in place of a bar that is gone
        return tqdm(items, what, n, leave=False, delay=2, unit=' images', disable='VOILA_BASE_URL' in os.environ)
    known,stamps,computed = in_memory(kind),{f: _stamp(f) for f in files},{}
    new = [f for f,o in stamps.items() if o not in known]
    ids = dict(zip(new, _bar(map_ahead(_content, new), len(new)))) if on_disk else {}
    kind = f'{kind} {_code()}'
    kept = _load(kind, set(ids.values())) if ids else {}
    known.update((stamps[f], kept[o]) for f,o in ids.items() if o in kept)
    new = [f for f in new if stamps[f] not in known]
    try:
        for f,result in _bar(compute(new), len(new)) if new else ():
            known[stamps[f]] = result
            if ids.get(f): computed[ids[f]] = result
    finally: _keep(kind, computed)
    return {f: known[o] for f,o in stamps.items() if o in known}
