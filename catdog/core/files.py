"""Which files are images, what they are called, and work done ahead by threads; One writer at a time in a folder, across processes"""

import hashlib, os, secrets, socket, sys, time
from collections import deque, namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from fastcore.basics import chunked

from .errors import CatdogError

def write_atomic(
    path:str|os.PathLike, # Where the file shall appear
    data:bytes # Its content
) -> Path: # `path`
    "Write `data` to `path` by way of a temporary file in the same folder, so that `path` is never half written"
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.part')
    try:
        with temporary.open('wb') as f:
            with suppress(OSError, AttributeError): fcntl.flock(f, fcntl.LOCK_EX)   # nobody shall think it left over
            f.write(data)
            f.flush()
            if fcntl: os.replace(temporary, path)
        if not fcntl: os.replace(temporary, path)   # Windows renames no open file
    finally: temporary.unlink(missing_ok=True)
    return path

def progress_bar(
    total:int, # How many images there are
    desc:str # What is said before the bar
): # A `tqdm`, to be used in a `with` statement
    "A progress bar that counts images"
    from tqdm.auto import tqdm
    return tqdm(total=total, desc=desc, unit=' images', delay=1)

# What the names of images in the formats that `open_image` opens end in, in small letters
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.jfif', '.jif', '.jfi', '.pjpeg', '.pjp', '.mpo', '.png', '.apng', '.gif',
                  '.webp', '.avif', '.avifs', '.bmp', '.dib', '.tif', '.tiff')

def is_image_name(
    file:str|os.PathLike # A path, or a name
) -> bool: # Does it end as the names of images do?
    "Is `file` an image, by its name?"
    return os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES

# Folders that file servers, systems and programs put among a person's files, in small letters. They hold thumbnails
# and deleted files, not data. Most such folders begin with a dot and are skipped for that. Sources: Synology DSM and
# QNAP QTS (@, #), Windows (recycle bins, restore points, chkdsk), ext4, macOS on file servers and in archives, NetApp.
SYSTEM_FOLDERS = frozenset((
    '@eadir', '@tmp', '@sharebin', '@recycle', '@recently-snapshot', '@qmap', '@__thumb', '@downloads', '#recycle',
    '#snapshot', '#recycled', '~snapshot', '$recycle.bin', 'recycle.bin', 'recycler', '$extend',
    'system volume information', 'found.000', 'lost+found', '__macosx', 'network trash folder', 'temporary items',
    'thevolumesettingsfolder', 'resource.frk', 'lost.dir', '__pycache__'))

def walk_files(
    folder:str|os.PathLike, # Where to look
    onerror=None, # Called with the `OSError` of each folder that cannot be read; default: skip it silently
    onskip=None, # Called with the path of each of the `SYSTEM_FOLDERS`, which are skipped
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
            if o.name.lower() not in SYSTEM_FOLDERS: yield from walk_files(o.path, onerror, onskip, (*_above, here))
            elif onskip: onskip(Path(o.path))
        elif o.is_file() or not os.path.exists(o.path): yield Path(o.path)   # a dead link is reported when opened

def find_images(
    paths # Files and folders
): # Yields paths: the files as they are, and the images below the folders
    "The files that `paths` stand for, in an order that stays the same"
    for path in map(Path, paths):
        if path.is_dir(): yield from (o for o in walk_files(path) if is_image_name(o))
        else: yield path

def content_id(
    data:bytes|str|os.PathLike # The bytes of a file, or its path
) -> str: # 16 hex digits
    "What tells one content from another: the start of the SHA-256 of `data`"
    return hashlib.sha256(data if isinstance(data, bytes) else Path(data).read_bytes()).hexdigest()[:16]

Moved = namedtuple('Moved', 'file to reason')

def free_name(
    file:Path, # Where something shall go
    taken:set=None # Names in use that are not on the disk yet, as `str(path).casefold()`; the result is added
) -> Path: # `file`, or with a number before its suffix
    "`file`, or the first of `file-2`, `file-3`, ... that is neither on the disk nor in `taken`"
    k,free,taken = 2,file,set() if taken is None else taken
    while os.path.lexists(free) or str(free).casefold() in taken:
        k,free = k + 1,file.with_name(f'{file.stem}-{k}{file.suffix}')
    taken.add(str(free).casefold())
    return free

def map_ahead(
    f, # Called with each of `items`, in several threads
    items, # Any iterable; it is read no further than needed
    n:int=16 # How many results may wait
): # Yields the results, in order
    "`f` of each of `items`, in order, computed by a thread for each core, at most `n` of them ahead"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = deque()
        for o in items:
            waiting.append(pool.submit(f, o))
            if len(waiting) > n: yield waiting.popleft().result()
        while waiting: yield waiting.popleft().result()

def batches_ahead(
    f, # As for `map_ahead`
    items, # As for `map_ahead`
    bs:int # Results in a batch
): # Yields lists of `bs` results; the last may be shorter
    "`map_ahead` of `f` and `items` in batches of `bs`, while threads work on the next one"
    return chunked(map_ahead(f, items, bs), bs)

try: import fcntl
except ImportError: fcntl = None   # on Windows nothing is locked

def try_lock(
    f # An open file
) -> bool: # False while somebody else has it
    "Lock the file `f` until it is closed, unless it is locked already"
    if not fcntl: return True
    try: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError: return False
    except OSError: pass   # a file system without locks
    return True

LOCK = '.lock'   # name of the file

def _lock_file(file):
    "`file`, open, locked and with our name in it, or None while somebody else has it"
    f = file.open('a+', encoding='utf8')
    try:
        if try_lock(f) and os.path.samestat(os.fstat(f.fileno()), file.stat()):
            f.truncate(0)
            f.write(f'{Path(sys.argv[0]).stem or "python"} (process {os.getpid()} on {socket.gethostname()}, '
                    f'since {time.strftime("%H:%M")})')
            f.flush()
            return f
    except FileNotFoundError: pass   # its holder has just gone
    except BaseException: f.close(); raise
    f.close()

def _holder(file):
    "Who has locked `file`"
    try: return file.read_text(encoding='utf8') or 'another program'
    except OSError: return 'another program'

@contextmanager
def file_lock(
    file:str|os.PathLike, # The file of the lock, in a folder that exists
    where:str, # What it stands for, as messages name it: 'in data', 'on answers.csv'
    wait:float=float('inf') # Seconds to wait for whoever has it
):
    "In a `with` statement: the only one that has `file`; `CatdogError` when somebody else has it for too long"
    file,end,announced = Path(file),time.monotonic() + wait,False
    try:
        while not (f := _lock_file(file)):
            if time.monotonic() > end:
                raise CatdogError(f'{_holder(file)} is at work {where}: try again when it has ended')
            if not announced and wait == float('inf'):
                print(f'{_holder(file)} is at work {where}: waiting until it has ended.', flush=True)
            announced = True
            time.sleep(.1)
    except OSError as e:
        raise CatdogError(f'{file.parent} cannot be written to ({e.strerror}): give another folder') from None
    try: yield
    finally:
        file.unlink(missing_ok=True)
        f.close()

def folder_lock(
    path:str|os.PathLike, # The folder
    wait:float=float('inf') # Seconds to wait for whoever is at work there
): # For a `with` statement
    "In a `with` statement: the only one that writes into `path`; `CatdogError` when somebody else does for too long"
    return file_lock(Path(path)/LOCK, f'in {path}', wait)
