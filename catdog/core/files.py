"""Files on disk: atomic writes, locks, formats, walking folders, names, work done ahead by threads, cached results"""

import errno, hashlib, os, re, secrets, sqlite3, tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import cache, wraps
from pathlib import Path
from threading import RLock
import PIL
from fastcore.basics import chunked
from .errors import CatdogError

# The formats that `open_image` opens, by Pillow's names (HEIF: pillow-heif), and the suffixes of their files
IMAGE_FORMATS = {
    'JPEG': ('.jpg', '.jpeg', '.jpe', '.jfif', '.jif', '.jfi', '.pjpeg', '.pjp', '.mpo'), 'PNG': ('.png', '.apng'),
    'GIF': ('.gif',), 'WEBP': ('.webp',), 'AVIF': ('.avif', '.avifs'), 'BMP': ('.bmp', '.dib'),
    'TIFF': ('.tif', '.tiff'), 'HEIF': ('.heic', '.heif', '.hif', '.heics', '.heifs')}

def is_image_name(
    file:str|os.PathLike # A path or a file name
) -> bool:
    "Return whether `file` has the suffix of an image"
    return os.path.splitext(file)[1].lower() in sum(IMAGE_FORMATS.values(), ())

# Folders that file servers, operating systems and programs add to a user's files: thumbnails, deleted files, older
# versions. Names that begin with a dot, such as .git, .dvc and .ipynb_checkpoints, are skipped in any case.
_SYSTEM_FOLDERS = (
    r'@eadir|@tmp|@sharebin|@database|@s2s|#recycle|#snapshot',   # Synology DSM
    r'@recycle|@recently-snapshot|@qmap|@__thumb|@downloads|#recycled|trashbox',   # QNAP QTS, Buffalo
    r'~snapshot|lost\+found|lost\.dir',   # NetApp; ext4; Android
    r'\$recycle\.bin|recycle\.bin|recycler|recycled|\$extend|system volume information|found\.\d{3}',   # Windows
    r'__macosx|network trash folder|temporary items|thevolumesettingsfolder|resource\.frk',   # macOS
    r'files_trashbin|files_versions|onedrivetemp|__pycache__')   # Nextcloud, OneDrive, Python
def is_system_folder(
    name:str # Of a folder
) -> bool:
    "Return whether file servers, operating systems or programs use `name` for a folder without data"
    return bool(re.fullmatch('|'.join(_SYSTEM_FOLDERS), name.lower()))

def walk_files(
    folder:str|os.PathLike, # Where to look
    onerror=None, # Called with the `OSError` of each folder that cannot be read; default: skip it silently
    onskip=None, # Called with the path of each empty folder, and of each system folder, which is skipped
    _above:tuple=()
): # Yields paths, sorted
    "Yield all files below `folder`, following links to folders; skip hidden files, hidden folders and system folders"
    here = os.path.realpath(folder)
    if here in _above: return   # a link to a folder above
    try: entries = sorted((o for o in os.scandir(folder) if o.name[0] != '.'), key=lambda o: o.name)
    except OSError as e:
        if onerror: onerror(e)
        return
    if onskip and not entries: onskip(Path(folder))
    for o in entries:
        if o.is_dir():
            if not is_system_folder(o.name): yield from walk_files(o.path, onerror, onskip, (*_above, here))
            elif onskip: onskip(Path(o.path))
        elif o.is_file() or not os.path.exists(o.path): yield Path(o.path)   # a dead link is reported when opened

def write_atomic(
    path:str|os.PathLike, # The file to write
    data:bytes # Its content
) -> Path: # `path`
    "Write `data` to a temporary file beside `path`, then rename it, so that `path` is never half written"
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.part')
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally: temporary.unlink(missing_ok=True)
    return path

def check_writable(
    path:str|os.PathLike # A file or a folder; may be missing
):
    "Raise `CatdogError` if no file can be made in the folder `path`, or in the nearest folder above"
    above = Path(path).absolute()
    try: tempfile.TemporaryFile(dir=next(o for o in (above, *above.parents) if os.path.isdir(o))).close()
    except OSError as e: raise CatdogError(f'{path}: cannot be written ({e.strerror}); give another place') from None

def check_new_file(
    file:str|os.PathLike # A file that is to be written, or to be replaced
) -> Path: # `file`
    "Raise `CatdogError` if `file` cannot be written, before the work for it is done"
    file = Path(file)
    if file.is_dir(): raise CatdogError(f'{file}: is a folder; give another file to write')
    if not file.parent.is_dir(): raise CatdogError(f'{file.parent}: there is no such folder; give another file')
    check_writable(file)
    return file

def can_write_home() -> bool:
    "Whether files can be made in the home folder; a container may run as any user, which has none"
    return os.access(os.path.expanduser('~'), os.W_OK | os.X_OK)

def content_id(
    data:bytes|str|os.PathLike # Bytes, or the path of a file
) -> str: # 16 hex digits
    "Identify an image, or any other file, by its content: the first 64 bits of the SHA-256 of `data`"
    return hashlib.sha256(data if isinstance(data, bytes) else Path(data).read_bytes()).hexdigest()[:16]

@contextmanager
def folder_lock(
    path:str|os.PathLike, # A folder that exists
    wait:float=float('inf') # Seconds to wait for another process
): # A context manager
    "Hold an exclusive lock on the folder `path`, its file `.lock`; raise `CatdogError` on timeout"
    from filelock import FileLock, Timeout   # its import takes 50 ms
    lock,busy = FileLock(Path(path)/'.lock'),f'another catdog process is working in {path}'
    try:
        os.stat(path)   # filelock would create a missing folder
        try: lock.acquire(timeout=min(wait, .1))
        except Timeout:
            if wait == float('inf'): print(f'{busy}: waiting for it to finish.', flush=True)
            lock.acquire(timeout=-1 if wait == float('inf') else wait)
    except Timeout: raise CatdogError(f'{busy}: try again when it has finished') from None
    except OSError as e:
        if e.errno not in (errno.ENOLCK, errno.ENOTSUP):   # on a file system without locks, go on without one
            raise CatdogError(f'{path} cannot be written to ({e.strerror}): give another folder') from None
    try: yield
    finally: lock.release()

def free_name(
    file:Path, # The wanted path
    taken:set=None # Paths in use that do not exist yet, as `str(path).casefold()`; the result is added
) -> Path:
    "`file`, or the first of `file-2`, `file-3`, ... that neither exists nor is in `taken`"
    k,free,taken = 2,file,set() if taken is None else taken
    while os.path.lexists(free) or str(free).casefold() in taken:
        k,free = k + 1,file.with_name(f'{file.stem}-{k}{file.suffix}')
    taken.add(str(free).casefold())
    return free

def map_ahead(
    f, # Function of one item
    items, # Any iterable; read only as far as needed
    n:int=16 # Maximum number of results that wait
): # Yields results in order
    "Map `f` over `items` in one thread per core, at most `n` items ahead"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = deque()
        for o in items:
            waiting.append(pool.submit(f, o))
            if len(waiting) > n: yield waiting.popleft().result()
        while waiting: yield waiting.popleft().result()

def batches_ahead(
    f, # Function of one item
    items, # Any iterable
    bs:int # Batch size
): # Yields lists of `bs` results; the last may be shorter
    "Map `f` over `items` in threads and return batches, while threads work on the next one"
    return chunked(map_ahead(f, items, bs), bs)

_callbacks = RLock()
def one_at_a_time(
    func # A callback of a widget
): # A function
    "Let `func` wait for other callbacks: JupyterLab runs those of widgets that a callback has made in another thread"
    @wraps(func)
    def _f(*args):
        with _callbacks: return func(*args)
    return _f

# Results computed from images: kept in memory, and by the image's content on disk for the next session
_MAX_ROWS,_WAIT = 40_000,5   # rows on disk, of about 12 kB; seconds for another process to write

def cache_folder() -> Path:
    "Return the folder of catdog beside the weights that PyTorch caches; it may be missing"
    home = os.environ.get('TORCH_HOME') or Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache')/'torch'
    home = os.path.expanduser(home)   # unlike Path.expanduser, no error if there is no home
    return Path(os.devnull if home[0] == '~' else home)/'hub'/'catdog'   # or it would make a folder called ~

@cache
def _code():
    "Identify the code that opens images and computes from them; what another release computed is not used"
    files = [f for o in ('core', 'dataset', 'learn') for f in sorted((Path(__file__).parent.parent/o).glob('*.py'))]
    return content_id(b''.join(f.read_bytes() for f in files) + PIL.__version__.encode())

_code()   # at import: later the files may be of another release, but not what this process computes

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

def _with_sum(result): return result + hashlib.blake2b(result, digest_size=8).digest()   # SQLite has no checksums
def _load(kind, ids):
    sql = 'select value from results where kind = ? and id = ?'
    rows = _with_database(lambda db: {o: row[0] for o in ids if (row := db.execute(sql, (kind, o)).fetchone())})
    return {k: o[:-8] for k,o in rows.items() if o == _with_sum(o[:-8])}

def _keep(kind, results):
    def _insert(db):
        rows = [(kind, k, _with_sum(o)) for k,o in results.items()]
        db.executemany('insert or replace into results values (?, ?, ?)', rows)
        db.execute('delete from results where rowid <= (select max(rowid) from results) - ?', (_MAX_ROWS,))
    if results: _with_database(_insert)

_memory = {}   # kind -> {stamp of a file: result}, of the last three kinds

def _stamp(file):
    try: s = os.stat(file)
    except OSError: return str(file),
    return str(file),s.st_mtime_ns,s.st_ctime_ns,s.st_size,s.st_ino   # unpacked archives give many files one time

def _content(file):
    with suppress(OSError): return content_id(file)

def _in_memory(kind):
    "Return the results of `kind` in memory; drop those of the kinds before the last three"
    while kind not in _memory and len(_memory) > 2: del _memory[next(iter(_memory))]
    return _memory.setdefault(kind, {})

def keep_in_memory(
    kind:str, # As for `cached`
    results:dict # File -> bytes
):
    "Let `cached` return `results` until the session ends"
    _in_memory(kind).update((_stamp(f), o) for f,o in results.items())

def cached(
    kind:str, # What is computed, and all that it depends on except the images and the code of catdog
    files, # Paths of images
    compute, # Function of the files that are not cached: yields a pair for each that could be opened, file and bytes
    what:str, # What the progress bar says
    on_disk:bool=True # Keep the results for other sessions, too?
) -> dict: # File -> bytes, without those that could not be opened
    "Return what `compute` yields about `files`, cached by their contents, so that an image that has changed is opened"
    from tqdm.auto import tqdm   # its import takes 50 ms
    def _bar(items, n):   # Voilà would show an error in place of a bar that is gone
        return tqdm(items, what, n, leave=False, delay=2, unit=' images', disable='VOILA_BASE_URL' in os.environ)
    known,stamps,computed = _in_memory(kind),{f: _stamp(f) for f in files},{}
    new = [f for f,o in stamps.items() if o not in known]
    ids = dict(zip(new, _bar(map_ahead(_content, new), len(new)))) if on_disk else {}
    kind = f'{kind} {_code()}'
    kept = _load(kind, set(ids.values())) if ids else {}
    known.update((stamps[f], kept[o]) for f,o in ids.items() if o in kept)
    new = [f for f in new if stamps[f] not in known]
    try:
        for f,result in _bar(compute(new), len(new)) if new else ():
            known[stamps[f]] = result
            if ids.get(f) and _stamp(f) == stamps[f]: computed[ids[f]] = result   # else it was replaced meanwhile
    finally: _keep(kind, computed)
    return {f: known[o] for f,o in stamps.items() if o in known}
