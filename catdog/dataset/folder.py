"""The images of a data set on disk: labels, which are words and folders, a given split, a contact sheet"""

import io, os, re
from collections import Counter
from copy import copy
from pathlib import Path
from unicodedata import category, normalize
from fastcore.basics import groupby
from PIL import Image, ImageDraw, ImageFont, ImageOps
from ..core.errors import DataError, ImageError
from ..core.files import content_id, is_image_name, is_system_folder, walk_files, write_atomic
from ..core.images import open_image

# device names of Windows, which no file can have: learn.microsoft.com/windows/win32/fileio/naming-a-file
_DEVICES = {'con', 'prn', 'aux', 'nul', 'conin$', 'conout$', *(f'{o}{i}' for o in ('com', 'lpt') for i in range(1, 10))}

def _key(label):
    "Return `label` without case, Unicode form, invisible characters and repeated blanks: equal for all its spellings"
    text = normalize('NFKC', normalize('NFKC', label).casefold())
    return ' '.join(''.join(o for o in text if category(o) != 'Cf' and not '\ufe00' <= o <= '\ufe0f').split())

def _fault(label):
    "Return why `label` cannot be the name of a folder, or None"
    try: size = len(label.encode('utf8')) if os.fsencode(label) else 0
    except UnicodeError: return 'it has characters that cannot be written here'
    if label.startswith('.'): return 'a name that begins with a dot is hidden'
    if label.endswith('.'): return 'it ends with a dot'
    if re.search(r'[\\/:*?"<>|]', label): return r'\ / : * ? " < > and | cannot be part of it'
    if any(category(o) in ('Cc', 'Zl', 'Zp') for o in label): return 'it has a control character'
    if len(label) > 100 or size > 255: return f'{len(label)} characters, {size} bytes: at most 100 and 255'
    if _key(label).partition('.')[0].strip() in _DEVICES: return 'Windows reserves it for a device'
    if _key(label) in ('manifest.jsonl', 'credits.txt'): return 'catdog has a file of that name'
    if is_system_folder(_key(label)): return 'operating systems use it for folders that catdog skips'

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
    "Return the name of `label` in the data set `path`, where it may be spelled differently"
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
    parent:str|os.PathLike='data' # Parent folder: 'data' or 'models'
) -> Path: # Such as data/cat-dog
    "Return the folder in `parent` named after `labels`, a different one for different labels"
    labels = [labels] if isinstance(labels, str) else labels
    name = ('--' if any('-' in o for o in labels) else '-').join(labels)   # t-shirt, hoodie: t-shirt--hoodie
    short = os.fsencode(name)[:150].decode(errors='ignore')   # a name may have 255 bytes; others are derived from it
    clear = short == name and not any('--' in o or '-' in (o[:1], o[-1:]) for o in labels)
    return Path(parent)/(name if clear else f'{short}-{content_id(os.fsencode(chr(0).join(labels)))[:8]}')

def label_name(
    folder:str|os.PathLike # A folder, or text typed by the user
) -> str: # In Unicode form NFC
    "Return the label that the last part of `folder` stands for"
    return normalize('NFC', os.path.basename(folder))

_PARTS = {o: part for part,names in dict(
    train='train training trn trainset trainval learn learning', valid='valid val validation dev devel holdout',
    eval='eval evaluation', test='test testing tst testset').items() for o in names.split()}

def _part(name):
    "Return which part of a split the folder `name` is, such as 'Test Set', 'tests' or 'val2017'; None: maybe a label"
    found = re.fullmatch(r'([a-z]+?)s?[-_ ]*(set|data|dataset|split|image|img|photo)?s?[-_ ]*\d*', name.lower())
    return found and _PARTS.get(found[1])

def _find_splits(path, tops, grouped):
    "Return the folders in `path` that split it -> part; `tops`: folder -> (names of its sub-folders, has own images)"
    parts = {o: _part(o) for o in tops}
    if 'eval' in parts.values():   # beside a validation set it is the test set
        parts = {o: ('test' if 'valid' in parts.values() else 'valid') if k == 'eval' else k for o,k in parts.items()}
    above = {o: below for o,(below,own) in tops.items() if below and not own}   # labels lie below
    known = {o for o in above if parts[o]}
    if all(parts.values()) and known and known >= {o for o,k in parts.items() if k == 'train'}: return parts
    words = {o: {_PARTS[k] for k in re.findall('[a-z]+', o.lower()) if k in _PARTS} for o in above}   # cats_train
    lettered = {o: {k for k in below if re.search(r'[^\W\d_]{2}', k)} for o,below in above.items()}   # not years
    kinds = set().union(*words.values())
    named = {o for o in above if words[o]} if 'train' in kinds and len(kinds) > 1 else set()
    for o,below in above.items():
        has_same_labels = not grouped and any(len(lettered[o] & lettered[k]) > 1 for k in above if k != o)
        if has_same_labels or parts[o] == 'train' and len(below) > 1: named.add(o)
        if len(tops) == 1 and 'train' in map(_part, below):
            raise DataError(f'{path}: has only the folder {o}: give {path/o}')
    if named:
        others = ', '.join(o for o in tops if o not in named)
        raise DataError(f'{path}: looks split into {", ".join(sorted(named))}'
                        + f', and has {others} beside them'*bool(others) + ': call the parts train, valid and test '
                        'and move anything else elsewhere, or, if these are labels, name them or group by folder')
    return {}

class ImageFolder:
    """The images below a folder that has a sub-folder for each label, or `train`, `valid` and `test` above these

    Attributes: `labels` (sorted), `others` (labels that exist but were not asked for), `files` (images of `labels`,
    sorted), `loose` (images outside any label), `ignored` ((file, reason) of files not used), `skipped` (folders that
    are empty, of the system or unreadable), `splits` (folder above the labels -> 'train', 'valid' or 'test') and
    `folders` ((folder above the labels or '', label) -> name of the label's folder)."""
    def __init__(self,
        path:str|os.PathLike, # The folder
        labels:str|list=None, # Labels to use; default: every sub-folder
        grouped:bool=False # May labels have sub-folders of the same names? Else the labels look like parts of a split
    ):
        "Read the folder; raise `DataError` if it is missing, unreadable or lacks one of `labels`"
        labels = None if labels is None else [labels] if isinstance(labels, str) else labels
        self.path,self.asked = Path(path),labels and sorted({normalize('NFC', o) for o in labels})
        if not self.path.is_dir():
            raise DataError(f'{path}: there is no such folder; make one with catdog-scrape, or give one that has a '
                            'sub-folder of images for each label')
        self.splits,self.folders,self.files,self.loose,self.ignored,self.skipped = {},{},[],[],[],[]
        unread = []
        found = [(o, o.relative_to(self.path).parts) for o in walk_files(self.path, unread.append, self.skipped.append)]
        self._find_folders([names for _,names in found], grouped)
        for e in unread: self._check_unread(e)
        self._choose_labels()
        for file,names in found: self._add(file, names)
    def __len__(self): return len(self.files)
    def __repr__(self): return f'ImageFolder({str(self.path)!r}: {len(self)} images, {", ".join(self.labels)})'
    def _below(self, names):
        "Return (folder above the labels or '', the rest of `names`, from the label's folder on)"
        return (names[0], names[1:]) if names and names[0] in self.splits else ('', names)
    def _find_folders(self, found, grouped):
        "Find the split and the folders of labels by the parts of the paths `found`"
        tops = {}   # folder -> (names of its sub-folders, whether it has images of its own)
        for top,*names in found:
            if not names: continue
            below,own = tops.get(top, (set(), False))
            tops[top] = below | set(names[:-1][:1]),own or (len(names) == 1 and is_image_name(names[0]))
        if not (self.asked and {label_name(o) for o in tops}.issuperset(self.asked)):
            self.splits = _find_splits(self.path, tops, grouped)
        for names in found:
            above,rest = self._below(names)
            if len(rest) < 2: continue
            name,label,where = rest[0],label_name(rest[0]),self.path/above
            if label.encode(errors='ignore').decode() != label:
                raise DataError(f'{where}: has a folder whose name is not UTF-8, {name!r}: rename it')
            if self.folders.setdefault((above, label), name) != name:
                raise DataError(f'{where}: has two folders whose names look the same, {label!r}: '
                                'put their images into one')
    def _check_unread(self, e):
        "Skip the unreadable folder of the error `e` if it cannot be one of the labels asked for"
        folder = Path(e.filename)
        _,rest = self._below(folder.relative_to(self.path).parts)
        if not (self.asked and rest and label_name(rest[0]) not in self.asked and not _part(rest[0])):
            raise DataError(f'{folder}: cannot be read ({e.strerror}): fix its permissions or move it elsewhere')
        print(f'{folder}: cannot be read ({e.strerror}); skipped, as it is not one of the labels')
        self.skipped.append(folder)
    def _choose_labels(self):
        there = sorted({label for above,label in self.folders if self.splits.get(above, 'train') == 'train'})
        if self.splits and not there:
            raise DataError(f'{self.path}: has {", ".join(sorted(self.splits))}, but no folder train to learn from')
        if self.splits and self.asked is None and len(there) == 1 and _part(there[0]):
            raise DataError(f'{self.path}: has only the folder {there[0]} to learn from: move its folders up')
        self.labels = there if self.asked is None else self.asked
        self.others = [o for o in there if o not in self.labels]
        if missing := [o for o in self.labels if o not in there]:
            raise DataError(f'{self.path}: has no folder {", ".join(map(repr, missing))}; '
                            f'there {"is" if len(there) == 1 else "are"} {", ".join(map(repr, there)) or "none"}')
    def _add(self, file, names):
        (above,rest),image = self._below(names),is_image_name(file)
        if len(rest) < 2:
            if not image: return
            if self.asked is None and self.splits.get(above, 'train') == 'train': self.loose.append(file)
            else: self.ignored.append((file, 'outside any label'))
        elif (label := label_name(rest[0])) in self.labels:
            if image: self.files.append(file)
            else: self.ignored.append((file, f'not an image ({file.suffix.lower() or "no suffix"})'))
        elif image and label not in self.others: self.ignored.append((file, f'no label in train ({label})'))
    def _place(self, file):
        "Return `_below` of the path of `file`; raise `DataError` if it lies outside any label"
        try: names = Path(file).relative_to(self.path).parts
        except ValueError:
            try: names = Path(os.path.abspath(file)).relative_to(os.path.abspath(self.path)).parts
            except ValueError: names = ()
        above,rest = self._below(names)
        if len(rest) < 2: raise DataError(f'{file}: lies outside any label in {self.path}')
        return above,rest
    def label(self,
        file:str|os.PathLike # A file below the folder; it need not exist
    ) -> str: # In Unicode form NFC
        "Return the label of `file`; raise `DataError` if it has none"
        return label_name(self._place(file)[1][0])
    def split(self,
        file:str|os.PathLike # A file below the folder
    ) -> str|None: # 'train', 'valid' or 'test'; None: the folder does not say
        "Return which part of the split `file` belongs to"
        return self.splits.get(self._place(file)[0])
    def place(self,
        file:str|os.PathLike, # An image below the folder
        label:str # Another label, whose folder need not exist
    ) -> Path: # Below the same folder; nothing is moved
        "Return where `file` would lie if it had `label`"
        above,(_,*rest) = self._place(file)
        return self.path.joinpath(above, self.folders.get((above, normalize('NFC', label)), label), *rest)
    def by_label(self) -> dict: # Label -> paths, sorted
        "Return the images of each label, including labels without images"
        return {o: [] for o in self.labels} | groupby(self.files, self.label)
    def counts(self) -> Counter: # Label -> number of images
        "Return how many images each label has"
        return Counter({label: len(o) for label,o in self.by_label().items()})
    def without_files(self): # An `ImageFolder`
        "Return a copy of the folder that has no files, to be saved with a model"
        res = copy(self)
        res.files,res.loose,res.ignored,res.skipped = [],[],[],[]
        return res

def contact_sheet(
    path:str|os.PathLike, # A folder with a sub-folder for each label
    n:int=20, # Number of images per label
    columns:int=10, # Number of images in a row
    side:int=96 # Side of the square that each image is fitted into, in pixels
) -> Image.Image:
    "Draw the first `n` images of each label in `path`, with a red square for an image that cannot be opened"
    files,head = ImageFolder(path).by_label(),24
    if not files: raise DataError(f'{path} has no folders with images in it: give one that catdog-scrape made')
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
    "Write the contact sheet of `path` beside the folder; inside, it would be an image without a label"
    f = io.BytesIO()
    contact_sheet(path).save(f, 'PNG')
    return write_atomic(path.with_name(f'{path.name}_contact_sheet.png'), f.getvalue())
