"""Which words can be labels, and which of them are the same; A folder of images with a sub-folder a label, read where it lies; A contact sheet of a folder of images, and what is damaged set aside"""

import io, os, re, shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from unicodedata import category, normalize

from PIL import Image, ImageDraw, ImageFont, ImageOps
from fastcore.basics import patch

from ..core.errors import CatdogError, DataError, ImageError
from ..core.files import Moved, content_id, folder_lock, free_name, is_image_name, progress_bar, walk_files, write_atomic
from ..core.images import open_image

# device names of Windows, which no file may have: learn.microsoft.com/windows/win32/fileio/naming-a-file
_DEVICES = {'con', 'prn', 'aux', 'nul', 'conin$', 'conout$', *(f'{o}{i}' for o in ('com', 'lpt') for i in range(1, 10))}
_OURS = 'manifest.jsonl','credits.txt'

def _key(label):
    "`label` without case, Unicode form, invisible characters and repeated blanks: the same for all its spellings"
    text = normalize('NFKC', normalize('NFKC', label).casefold())
    return ' '.join(''.join(o for o in text if category(o) != 'Cf' and not '\ufe00' <= o <= '\ufe0f').split())

def _fault(label):
    "Why `label` cannot be the name of a folder, or None"
    try: size = len(label.encode('utf8')) if os.fsencode(label) else 0
    except UnicodeError: return 'it has characters that cannot be written here'
    if label.startswith('.'): return 'a name that begins with a dot is hidden'
    if label.endswith('.'): return 'it ends with a dot'
    if re.search(r'[\\/:*?"<>|]', label): return r'\ / : * ? " < > and | cannot be part of it'
    if any(category(o) in ('Cc', 'Zl', 'Zp') for o in label): return 'it has a control character'
    if len(label) > 100 or size > 255: return f'{len(label)} characters, {size} bytes: at most 100 and 255'
    if _key(label).partition('.')[0].strip() in _DEVICES: return 'Windows reserves it for a device'
    if _key(label) in _OURS: return 'catdog has a file of that name'

def parse_labels(
    words:str|list, # A word to search for, such as 'cat', 't-shirt' or 'black bear', or several
    path:str|os.PathLike=None, # Folder of a data set whose names for the same words are used; it need not exist
    known=() # More labels that this data set has, such as those in its manifest
) -> list: # A label for each word, in order: its search term and the name of its folder
    "Make labels of `words`; raise `DataError` if one cannot be a folder, is given twice or is ambiguous in `path`"
    labels = [normalize('NFC', str(o).strip()) for o in ([words] if isinstance(words, str) else words)]
    if not labels: raise DataError('give at least one word to search for, such as: cat dog')
    for o in labels:
        if not _key(o): raise DataError('a label is empty: give a word such as cat')
        if fault := _fault(o):
            raise DataError(f'{o[:100]!r} cannot be the name of a folder ({fault}): use letters, digits and spaces')
    twice = [o for o,k in Counter(map(_key, labels)).items() if k > 1]
    if twice: raise DataError(f'the label {twice[0]!r} is given twice')
    return labels if path is None else [_name_in(Path(path), o, known) for o in labels]

def _name_in(path, label, known):
    "What `label` is called in the data set `path`, where its spelling may be another"
    there = [o.name for o in path.iterdir() if o.is_dir() and not o.name.startswith('.')] if path.is_dir() else []
    same = {o for o in (*there, *known) if _key(o) == _key(label)}
    exact = [o for o in same if normalize('NFC', o) == label]
    if len(exact or same) > 1:
        raise DataError(f'{label!r} can be {" or ".join(map(repr, sorted(same)))} in {path}: join those first')
    name = next(iter(exact or same), label)
    if (path/name).exists() and not (path/name).is_dir():
        raise DataError(f'{path/name} is a file: a folder of that name is needed for the images')
    if not exact and same: print(f'{label!r} is the label {name!r}, which {path} already has.')
    return name

def default_folder(
    labels:str|list, # A label or several, in the order they were typed
    parent:str|os.PathLike='data' # Folder it lies in: 'data' or 'models'
) -> Path: # Such as data/cat-dog
    "Return the folder in `parent` named after `labels`, a different one for different labels"
    labels = [labels] if isinstance(labels, str) else labels
    name = ('--' if any('-' in o for o in labels) else '-').join(labels)   # t-shirt, hoodie: t-shirt--hoodie
    short = os.fsencode(name)[:150].decode(errors='ignore')   # a name may have 255 bytes; others are derived from it
    clear = short == name and not any('--' in o or '-' in (o[:1], o[-1:]) for o in labels)
    return Path(parent)/(name if clear else f'{short}-{content_id(os.fsencode(chr(0).join(labels)))[:8]}')

def label_name(
    folder:str|os.PathLike # A folder, or what somebody typed
) -> str: # In Unicode form NFC
    "The label that the last part of `folder` stands for"
    return normalize('NFC', os.path.basename(folder))

SPLITS = dict(train='train', training='train', valid='valid', val='valid', validation='valid', test='test',
              testing='test')   # what a folder is called, in small letters -> its part of the data set

def _split_folders(path, inside):
    "The folders in `path` that split it -> their part; `inside`: folder -> (has sub-folders, has images of its own)"
    parts = {o: SPLITS.get(o.lower()) for o in inside}
    training = [o for o,part in parts.items() if part == 'train']
    above = {o for o,(deeper,own) in inside.items() if parts[o] and deeper and not own}   # labels lie below
    if all(parts.values()) and above and above >= set(training): return parts
    if any(parts[o] == 'train' for o in above) and any(parts[o] in ('valid', 'test') for o in above):
        others = ', '.join(o for o in inside if not parts[o])
        raise CatdogError(f'{path}: is split into {", ".join(sorted(above))}, and has {others} beside them: '
                          'move what is no part of the data set elsewhere, or name the labels')
    return {}

class ImageFolder:
    "The images below a folder with a sub-folder a label, or with `train`, `valid` and `test` above the labels"
    def __init__(self,
        path:str|os.PathLike, # The folder
        labels:str|list=None # Those that are meant; None: all that there are
    ):
        "Read what lies in `path` now; `CatdogError` where it is no such folder, or one of `labels` has none in it"
        self.path,self.asked = Path(path),None if labels is None else _asked(labels)
        if not self.path.is_dir():
            raise CatdogError(f'{path}: there is no such folder; make one with catdog-scrape, or give one that has a '
                              'sub-folder of images for each label')
        self.splits = {}   # folder above the labels -> 'train', 'valid' or 'test'
        self.folders = {}  # (folder above the labels or '', label) -> what its folder is called
        self.labels = []   # sorted
        self.others = []   # labels that are there, but not meant, sorted
        self.files = []    # images of `labels`, sorted
        self.loose = []    # images outside of any label
        self.ignored = []  # (file, why it is not used): what is no image by its name, or has no label
        self._read()

    def __len__(self): return len(self.files)
    def __repr__(self): return f'ImageFolder({str(self.path)!r}: {len(self)} images, {", ".join(self.labels)})'

def _asked(labels): return sorted({normalize('NFC', o) for o in ([labels] if isinstance(labels, str) else labels)})

def _unreadable(e):
    raise CatdogError(f'{e.filename}: cannot be read ({e.strerror}); give the right to, or move it away')

@patch
def _read(self:ImageFolder):
    parts = [(o, o.relative_to(self.path).parts) for o in walk_files(self.path, _unreadable)]
    inside = {}
    for o,names in parts:
        if len(names) < 2: continue
        deeper,own = inside.get(names[0], (False, False))
        inside[names[0]] = deeper or len(names) > 2,own or (len(names) == 2 and is_image_name(o))
    tops = {label_name(o) for o in inside}
    if not (self.asked and tops.issuperset(self.asked)): self.splits = _split_folders(self.path, inside)
    for o,names in parts: self._find_label(names)
    self._choose_labels()
    for o,names in parts: self._add(o, names)

@patch
def _above(self:ImageFolder, names): return names[0] if names[0] in self.splits else ''

@patch
def _find_label(self:ImageFolder, names):
    above = self._above(names)
    depth = 1 if above else 0
    if len(names) < depth + 2: return
    key = above,label_name(names[depth])
    if key[1].encode(errors='ignore').decode() != key[1]:
        raise CatdogError(f'{self.path/above}: has a folder whose name is no UTF-8, {names[depth]!r}: rename it')
    if self.folders.setdefault(key, names[depth]) == names[depth]: return
    raise CatdogError(f'{self.path/above}: has two folders whose names look the same, {key[1]!r}: '
                      'put their images into one')

@patch
def _choose_labels(self:ImageFolder):
    there = sorted({label for above,label in self.folders if self.splits.get(above, 'train') == 'train'})
    if self.splits and not there:
        raise CatdogError(f'{self.path}: has {", ".join(sorted(self.splits))}, but no folder train to learn from')
    self.labels = there if self.asked is None else self.asked
    self.others = [o for o in there if o not in self.labels]
    if missing := [o for o in self.labels if o not in there]:
        raise CatdogError(f'{self.path}: has no folder {", ".join(map(repr, missing))}; '
                          f'there {"is" if len(there) == 1 else "are"} {", ".join(map(repr, there)) or "none"}')

@patch
def _add(self:ImageFolder, file, names):
    above = self._above(names)
    depth,image = 1 if above else 0,is_image_name(file)
    if len(names) < depth + 2:
        may = self.asked is None and self.splits.get(above, 'train') == 'train'   # was it perhaps meant to train with?
        if image: self.loose.append(file) if may else self.ignored.append((file, 'outside of any label'))
    elif (label := label_name(names[depth])) in self.labels:
        if image: self.files.append(file)
        else: self.ignored.append((file, f'no image ({file.suffix.lower() or "no ending"})'))
    elif image and label not in self.others: self.ignored.append((file, f'no label in train ({label})'))

@patch
def _names(self:ImageFolder, file):
    "(folder above the labels or '', names of the folders and of the file from the label on)"
    try: names = Path(file).relative_to(self.path).parts
    except ValueError:
        try: names = Path(os.path.abspath(file)).relative_to(os.path.abspath(self.path)).parts
        except ValueError: names = ()
    above = names and self._above(names)
    if len(names) < (3 if above else 2): raise CatdogError(f'{file}: lies outside of any label in {self.path}')
    return above,names[1:] if above else names

@patch
def label(self:ImageFolder,
    file:str|os.PathLike # A file below the folder; it need not exist
) -> str: # In Unicode form NFC
    "The label of `file`; `CatdogError` where it lies outside of any"
    return label_name(self._names(file)[1][0])

@patch
def split(self:ImageFolder,
    file:str|os.PathLike # A file below the folder
) -> str|None: # 'train', 'valid' or 'test'
    "What `file` is meant for; None where the folder does not say"
    return self.splits.get(self._names(file)[0])

@patch
def place(self:ImageFolder,
    file:str|os.PathLike, # An image below the folder
    label:str # Another label, with a folder or without
) -> Path: # Below the same folder; nothing is moved
    "Where `file` would lie if it had `label`"
    above,(_,*rest) = self._names(file)
    folder = self.folders.get((above, normalize('NFC', label)), label)
    return self.path.joinpath(above, folder, *rest)

@patch
def by_label(self:ImageFolder) -> dict: # Label -> paths, sorted
    "The images of each label, also of those that have none"
    res = {o: [] for o in self.labels}
    for o in self.files: res[self.label(o)].append(o)
    return res

@patch
def counts(self:ImageFolder) -> Counter: # Label -> images
    "How many images each label has"
    return Counter({label: len(o) for label,o in self.by_label().items()})

@patch
def without_files(self:ImageFolder) -> ImageFolder: # A copy
    "The same folder, as if it had no images"
    res = copy(self)
    res.files,res.loose,res.ignored = [],[],[]
    return res

def contact_sheet(
    path:str|os.PathLike, # A folder with a sub-folder for each label
    n:int=20, # How many of each label
    columns:int=10, # How many beside each other
    side:int=96 # Side of each, in pixels
) -> Image.Image: # To look at, or to save
    "The first `n` images of each label in `path`, `columns` to a row, each in a square of `side`"
    files,head = ImageFolder(path).by_label(),24
    if not files: raise CatdogError(f'{path} has no folders with images in it: give one that catdog-scrape made')
    rows = {o: max(1, -(-min(n, len(k))//columns)) for o,k in files.items()}
    sheet = Image.new('RGB', (columns*side, sum(head + k*side for k in rows.values())), 'white')
    draw,y = ImageDraw.Draw(sheet),0
    for o in files:
        draw.text((4, y + 4), f'{o}: {len(files[o])} images', 'black', ImageFont.load_default(14))
        for i,f in enumerate(files[o][:n]):
            try: img = ImageOps.contain(open_image(f, side), (side - 4, side - 4))
            except ImageError: img = Image.new('RGB', (side - 4, side - 4), 'firebrick')
            left,top = i%columns*side,y + head + i//columns*side
            sheet.paste(img, (left + (side - img.width)//2, top + (side - img.height)//2))
        y += head + rows[o]*side
    return sheet

def save_contact_sheet(
    path:Path # A folder with a sub-folder for each label
) -> Path: # The file, `<path>_contact_sheet.png`
    "Write the contact sheet of `path` beside it (in it, it would be an image without a label)"
    f = io.BytesIO()
    contact_sheet(path).save(f, 'PNG')
    return write_atomic(path.with_name(f'{path.name}_contact_sheet.png'), f.getvalue())

def _image_fault(file):
    "Why `file` cannot be used, or None; a file that cannot even be read is left alone"
    try: open_image(file, max_side=64)
    except ImageError as e: return None if e.status == 'missing' else str(e)

def set_aside(
    path:str|os.PathLike # A folder with a sub-folder for each label
) -> list[Moved]: # What was moved: the file, where it is now, and why
    "Move the files in `path` that cannot be opened as images to `path/.removed/<label>/`"
    path = Path(path)
    folder,moved = ImageFolder(path),[]
    files = sorted([*folder.files, *(f for f,_ in folder.ignored)])
    with (folder_lock(path, wait=10), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
          progress_bar(len(files), 'check') as bar):
        for file,reason in zip(files, pool.map(_image_fault, files)):
            bar.update()
            if not reason: continue
            to = free_name(path/'.removed'/file.relative_to(path))
            to.parent.mkdir(parents=True, exist_ok=True)
            moved.append(Moved(file, shutil.move(file, to), reason))
    return moved
