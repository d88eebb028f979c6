"""Which images train and which validate: each opened once, copies together, every label on both sides"""

import io, json, os, shutil, tempfile, warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from weakref import finalize
import numpy as np
from PIL import Image
from ..core.duplicates import CLOSE, find_copies, image_quality
from ..core.errors import DataError, ImageError, ModelError
from ..core.files import cached, content_id, map_ahead
from ..core.images import open_image
from ..core.model_file import model_file
from .folder import ImageFolder, label_name
from .manifest import as_found, read_rows

def _check_counts(path, counts, which='images'):
    if not sum(counts.values()): raise DataError(f'{path}: there are no {which} in it; put some into a folder for '
                                                'each label, or fetch some with catdog-scrape')
    if len(counts) < 2:
        raise DataError(f'{path}: all images are labelled {[*counts][0]!r}; a classifier needs two labels or more')
    if few := ', '.join(f'{label!r} ({n})' for label,n in counts.items() if n < 5):
        raise DataError(f'{path}: fewer than 5 {which} of {few}; add some, or name the other labels')

def _read_folder(path, labels, grouped=False):
    "Return the `ImageFolder` at `path` if a network can be trained on it"
    folder = ImageFolder(path, labels, grouped)
    if folder.loose:
        raise DataError(f'{folder.loose[0]}: lies outside any label; put it into a folder named after its label')
    _check_counts(path, folder.counts())
    return folder

def check_folder(
    path:str|os.PathLike, # Folder with a sub-folder for each label
    labels:list=None # Labels to use; default: every sub-folder
) -> Counter: # Label -> number of images
    "Count the images of each label below `path`; raise `DataError` if no network can be trained on them"
    return _read_folder(path, labels).counts()

def check_images(
    files:list # Paths
) -> tuple: # File -> what `image_quality` measured, and `content_id`, if it can be opened; (file, reason) of the others
    "Open `files`, unless images with the same content were opened before"
    faults = {}
    def _open(file):
        try:
            data = Path(file).read_bytes()
            quality = image_quality(open_image(data, max_side=512))   # the size at which `scrape` keeps images
            with suppress(Exception), Image.open(io.BytesIO(data)) as o: quality['pixels'] = o.width*o.height
        except ImageError as e: faults[file] = e.reason
        except OSError as e: faults[file] = f'cannot be read ({e.strerror})'
        else: return json.dumps(dict(quality, content_id=content_id(data)), default=np.ndarray.tolist).encode()
    def _measure(new): return (o for o in zip(new, map_ahead(_open, new)) if o[1])
    good = {f: json.loads(o) for f,o in cached('quality', files, _measure, 'opening images').items()}
    for o in good.values(): o.update(bits=np.array(o['bits']), colours=np.array(o['colours'], 'float32'))
    return good,[(f, faults[f]) for f in files if f in faults]

def _group(files, good, labels):
    "Return a group number for each of `files`, equal for copies, and whether the images are alike by nature"
    opened,groups = [i for i,f in enumerate(files) if f in good],np.arange(len(files)) + len(files)
    bits,colours = ([good[files[i]][k] for i in opened] for k in ('bits', 'colours'))
    groups[opened],limits = find_copies(bits, colours, [labels[i] for i in opened])
    if limits[0] < 0:
        groups = np.unique([good[f]['content_id'] if f in good else str(f) for f in files], return_inverse=True)[1]
    return groups,limits[0] < CLOSE

def copies(
    files # Paths of images, each in a folder named after its label
) -> np.ndarray: # Shape (n,), int: group number of each file
    "Group `files` by the image that they show: copies of one image have the same number"
    return _group(files, check_images(files)[0], [Path(f).parent.name for f in files])[0]

SOURCES = 'host','author','folder'

def image_sources(
    folder:ImageFolder, # With or without a manifest
    files # Paths of images in it
) -> dict: # Kind -> list: host, author and engine of each file by the manifest, and its folder inside a label, or None
    "Return where each of `files` comes from"
    rows = {o['file']: o for o in as_found(folder.path, list(read_rows(folder.path).values())) if o['file']}
    found = [rows.get(Path(os.path.relpath(f, folder.path)).as_posix(), {}) for f in files]
    folders = [None if label_name(f.parent.name) == folder.label(f) else str(f.parent) for f in map(Path, files)]
    return dict(host=[urlsplit(o.get('url') or '').hostname for o in found], folder=folders,
                author=[o.get('creator') or None for o in found], engine=[o.get('engine') or None for o in found])

def stratify(
    labels, # Label of each image
    groups, # Group number of each image; a group stays on one side
    valid_pct:float=0.2, # Fraction of each label for validation
    seed:int=42 # Seed of the random choice
) -> tuple: # Two lists of indices: for training, for validation
    "Split images at random with every label on both sides, as far as `groups` allow it"
    members,n,taken,validates = {},Counter(labels),Counter(),set()
    for i in np.random.default_rng(seed).permutation(len(labels)).tolist(): members.setdefault(groups[i], []).append(i)
    share = {o: max(1, round(valid_pct*k)) for o,k in n.items()}
    def _take(group, limits):
        new = Counter(labels[i] for i in members[group])
        if any(taken[o] + k > min(limits[o], n[o] - 1) for o,k in new.items()): return
        taken.update(new)
        validates.add(group)
    for o in members: _take(o, share)
    for o in sorted(members, key=lambda o: len(members[o])):   # a label of large groups: its smallest, over its share
        if any(not taken[labels[i]] for i in members[o]): _take(o, n)
    return tuple([i for o,k in members.items() for i in k if (o in validates) is side] for side in (False, True))

def _sides(folder, files, good, valid_pct, seed, group_by=None):
    "Return the indices into `files` of those for training and of those for validation, and a note about them"
    parts = [folder.split(o) or 'train' for o in files]
    train,valid = ([i for i,o in enumerate(parts) if o == part] for part in ('train', 'valid'))
    if valid: return train,valid,''
    labels,note = [folder.label(files[i]) for i in train],''
    groups,alike = _group([files[i] for i in train], good, labels)
    if alike: note = 'Many images are nearly alike, as from a fixed camera: only the same shot counts as a copy.'
    if group_by:
        keys = image_sources(folder, [files[i] for i in train])[group_by]
        for i,key in enumerate(keys):
            if key is not None: groups[groups == groups[i]] = groups[keys.index(key)]
        n,of = len({*keys} - {None}),' of a label'*(group_by == 'folder')
        if n < 2:
            raise DataError(f'{folder.path}: its images do not come from several {group_by}s{of}: leave out group_by')
        note = f'{note} Images of one {group_by} are on one side of the split ({n} {group_by}s).'.strip()
    return *([train[i] for i in side] for side in stratify(labels, groups, valid_pct, seed)),note

def ApartSplitter(
    path:str|os.PathLike, # Folder with a sub-folder for each label
    valid_pct:float=0.2, # Fraction of each label for validation
    seed:int=42 # Seed of the random choice
): # A function from files to two lists of indices: for training, for validation
    "A `RandomSplitter` that has each label of `path` on both sides and keeps copies of an image together"
    return lambda files: _sides(ImageFolder(path), files, check_images(files)[0], valid_pct, seed)[:2]

class _LeftOut(Sequence):
    "Images that are not used, as (file, reason) pairs; other processes of a training may add to it"
    def __init__(self, pairs=()):
        self.pairs,self._file = list(pairs),Path(tempfile.mkdtemp(prefix='catdog-'))/'left_out'
        finalize(self, shutil.rmtree, self._file.parent, ignore_errors=True)
    def add(self, file, reason):
        "Leave out `file`, with one warning"
        if file in {f for f,_ in self}: return
        reason = reason.removeprefix(f'{file}: ')
        warnings.warn(f'{file}: left out from now on: {reason}')
        with self._file.open('a') as f: f.write(json.dumps([str(file), reason]) + '\n')
    def _all(self):
        rows = self._file.read_text().split('\n')[:-1] if self._file.exists() else []
        return self.pairs + list({Path(f): reason for f,reason in map(json.loads, rows)}.items())
    def __len__(self): return len(self._all())
    def __getitem__(self, i): return self._all()[i]
    def __repr__(self): return repr(self._all())

def check_left_out(
    left_out:Sequence, # (file, reason) of the images that cannot be opened
    n:int # Number of images in all
):
    "Raise `DataError` if more than three, and more than a tenth, of `n` images are `left_out`"
    if len(left_out) > max(3, n/10):
        names = '; '.join(f'{f}: {reason}' for f,reason in left_out[:3])
        raise DataError(f'{len(left_out)} of {n} images cannot be opened ({names}; ...): repair them or move them '
                        'elsewhere')

@dataclass
class Split:
    "How the images of a folder are used, from `split_files` or `saved_split`"
    folder:ImageFolder   # The folder as it was read
    train:list           # Files for training
    valid:list           # Files for validation
    test:list            # Files for testing, sorted
    left_out:_LeftOut     # Images that cannot be opened
    content_ids:dict     # File -> 16 hex digits, for all that can be opened
    unvalidated:list     # Labels without an image for validation
    new:list=()          # For a saved model: files that it was neither trained, validated nor tested with
    known:bool=True      # For a saved model: whether it is known which images it was trained on
    note:str=''          # Sentences about how it was split; for a saved model: about what its error is measured on
    quality:dict=None    # File -> what `image_quality` measured, and `content_id`, for all that can be opened

def check_number(
    n:int|None # Maximum number of images of each label; None: no limit
):
    "Raise `DataError` if `n` images of each label are too few"
    if n is not None and n < 5: raise DataError(f'n is {n}: a label needs 5 images or more; give a number such as 150')

def _choose(folder, n, seed):
    "Keep `n` random images of each label in `folder`, and all that are for testing"
    kept,taken = {o for o in folder.files if folder.split(o) == 'test'},Counter()
    for file in (folder.files[i] for i in np.random.default_rng(seed).permutation(len(folder))):
        if file in kept or taken[label := folder.label(file)] == n: continue
        taken[label] += 1
        kept.add(file)
    folder.ignored += [(f, f'more than {n} of a label') for f in folder.files if f not in kept]
    folder.files = [f for f in folder.files if f in kept]

def _missing(folder, files):
    return sorted({*folder.labels} - {*map(folder.label, files)})

def split_files(
    path:str|os.PathLike, # Folder with a sub-folder for each label, or `train`, `valid` and `test` above the labels
    valid_pct:float=0.2, # Fraction of each label for validation, if the folder has no `valid`
    seed:int=42, # Seed of the random choice
    labels:list=None, # Labels to use; default: every sub-folder
    n:int=None, # Maximum number of images of each label, not counting those for testing; default: no limit
    group_by:str=None # Keep images of one 'host', 'author' or 'folder' on one side; default: only copies
) -> Split:
    "Open and split the images below `path`; raise `DataError` if no network can be trained on them"
    check_number(n)
    if group_by not in (None, *SOURCES): raise DataError(f'group_by is {group_by!r}: use {" or ".join(SOURCES)}')
    if not 0 < valid_pct < 1:
        raise DataError(f'valid_pct is the fraction for validation, above 0 and below 1, not {valid_pct}')
    folder = _read_folder(path, labels, group_by == 'folder')
    if n is not None: _choose(folder, n, seed)
    good,left_out = check_images(folder.files)
    check_left_out(left_out, len(folder))
    files,test = ([f for f in good if (folder.split(f) == 'test') is part] for part in (False, True))
    counts = Counter(map(folder.label, files))
    _check_counts(path, {o: counts[o] for o in folder.labels}, 'good images')
    train,valid,note = _sides(folder, files, good, valid_pct, seed, group_by)
    train,valid = ([files[i] for i in side] for side in (train, valid))
    if not valid:
        why = f'come from one {group_by}; leave out group_by' if group_by else 'are one image; fetch others'
        raise DataError(f'{path}: nearly all images {why}')
    if lacking := _missing(folder, train): raise DataError(f'{path}: has no image of {lacking[0]!r} to train with')
    ids = {f: o['content_id'] for f,o in good.items()}
    return Split(folder, train, valid, test, _LeftOut(left_out), ids, _missing(folder, valid), note=note, quality=good)

def used_sentence(
    split:Split # From `split_files`
) -> str: # 'used 57 of 62 images; left out 2 that cannot be opened (...), 3 as not an image (.heic)'
    "Say how many files in the folder of `split` are used, and why the others are not"
    folder,out = split.folder,list(split.left_out)
    names = '; '.join(f'{f.relative_to(folder.path)}: {reason}' for f,reason in out[:3]) + '; ...'*(len(out) > 3)
    names = names.encode(errors='replace').decode()   # a name that is not UTF-8 could not be printed
    reasons = [f'{len(out)} that cannot be opened ({names})'] if out else []
    reasons += [f'{k} as {reason}' for reason,k in Counter(o for _,o in folder.ignored).most_common()]
    used = f'used {len(folder) - len(out)} of {len(folder) + len(folder.ignored)} images'
    if reasons: used += '; left out ' + ', '.join(reasons)
    if n := len(folder.skipped):
        names = ', '.join(sorted({o.name for o in folder.skipped}))
        used += f'; skipped {n} folder{"s"*(n > 1)} without data ({names})'
    return used

_PARTS = 'training','validation','test'

def _recorded_images(model):
    "Return part -> content ids of the images in `images.json` of the folder of `model`; None if it has no such file"
    file = model_file(model).with_name('images.json')
    try: found = json.loads(file.read_text(encoding='utf8'))
    except FileNotFoundError: return None
    except (OSError, ValueError) as e:
        raise ModelError(f'{file}: cannot be read ({e}); export the model again') from None
    if not isinstance(found, dict) or not all(isinstance(found.get(o, []), list) for o in _PARTS):
        raise ModelError(f'{file}: does not say which images it was trained on; export the model again')
    return {o: found.get(o, []) for o in _PARTS}

def _content(file):
    try: return content_id(file)
    except OSError as e: return e   # of this file: it is left out

def saved_split(
    path:str|os.PathLike, # Folder with a sub-folder for each label
    model:str|os.PathLike, # Model folder, or its `model.onnx`
    labels:list # Labels of the model
) -> Split: # With `new`, `known` and `note`; if the model's training images are unknown, all images are in `valid`
    "Split the images below `path` into those that `model` was trained, validated and tested with, and new ones"
    folder,recorded = ImageFolder(path, labels),_recorded_images(model)
    unknown = f'The model does not know {", ".join(folder.others)}: left out' if folder.others else ''
    if recorded is None:
        good,bad = check_images(folder.files)
        note = ('The model folder has no images.json, so it is unknown which images the network was trained on: '
                'they may be among these, and the error may look too small')
        return Split(folder, [], list(good), [], _LeftOut(bad), {f: o['content_id'] for f,o in good.items()}, [],
                     known=False, note='. '.join(filter(None, [note, unknown])) + '.')
    contents = dict(zip(folder.files, map_ahead(_content, folder.files)))
    bad = [(f, f'cannot be read ({o.strerror})') for f,o in contents.items() if isinstance(o, OSError)]
    ids = {f: o for f,o in contents.items() if isinstance(o, str)}
    part = {o: k for k in reversed(_PARTS) for o in recorded[k]}   # an image in several parts counts as trained on
    train,valid,test,new = ([f for f,o in ids.items() if part.get(o, 'new') == k] for k in (*_PARTS, 'new'))
    copied = []   # new files that show the same as training images: smaller, or in another format
    if new:
        good,faults = check_images(new + train)
        groups = dict(zip(good, _group([*good], good, [*map(folder.label, good)])[0]))
        trained = {groups[f] for f in train if f in groups}
        copied,new = ([f for f in new if f in groups and (groups[f] in trained) is side] for side in (True, False))
        bad += [(f, reason) for f,reason in faults if f not in {*train}]
    unvalidated,before = _missing(folder, valid),Counter(recorded['validation'])
    n,of = (before & Counter(ids[f] for f in valid)).total(),before.total()
    notes = [f'Measured on {n:,} of the {of:,} images that validated the model'
             + f'; the others are no longer in {path}, or have changed'*(n < of)]
    if n and unvalidated: notes.append(f'None of these is labelled {" or ".join(unvalidated)}')
    if new: notes.append(f'New in {path}, and measured separately: {len(new):,}')
    if copied: notes.append(f'Copies of training images, which count as such: {len(copied):,}')
    return Split(folder, train + copied, valid, test, _LeftOut(bad), ids, unvalidated, new,
                 note='. '.join(filter(None, [*notes, unknown])) + '.')

def saved_folders(
    path:str|os.PathLike=None, # Folder of images; default: the one in `data` with the name of `model`
    model:str|os.PathLike=None # Model folder; default: the one in `models` with the name of `path`, or the newest
) -> tuple: # (path, model)
    "Fill in the default folders of images and model"
    if model is None:
        there = sorted(Path('models').glob('*/model.onnx'), key=lambda o: o.stat().st_mtime)
        if not there: raise DataError('there is no model in models; make one with catdog-build, or give its folder')
        model = ([o for o in there if path and o.parent.name == Path(path).resolve().name] or there)[-1].parent
    if path is None:
        path = Path('data')/model_file(model).resolve().parent.name
        if not path.is_dir():
            raise DataError(f'{path}: there is no such folder; give the one with the images of {model}')
    return path,model
