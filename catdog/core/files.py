"""Files on disk: atomic writes, locks, image formats, walking folders, file names, and work done ahead by threads"""

import errno, hashlib, os, re, secrets, tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
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
    onskip=None, # Called with the path of each system folder, which is skipped
    _above:tuple=()
): # Yields paths, sorted
    "Yield all files below `folder`, following links to folders; skip hidden files, hidden folders and system folders"
    here = os.path.realpath(folder)
    if here in _above: return   # a link to a folder above
    try: entries = sorted(os.scandir(folder), key=lambda o: o.name)
    except OSError as e:
        if onerror: onerror(e)
        return
    for o in entries:
        if o.name.startswith('.'): continue
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
