"""Move images of a data set to other labels or out of it, and undo that: a journal records every move

The journal, `.removed/journal.jsonl` in the folder of the data set, gets a line for each event. A batch of moves is
`planned`, which is on the disk before any file moves; each of its moves is `done` or `skipped`; then the batch is
`finished`. A rename is atomic, so after a crash the files themselves show which of the planned moves were made. A batch
is undone by another batch with the same moves in reverse."""

import errno, filecmp, io, json, os, shutil
from collections import namedtuple
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from ..core.errors import CatdogError, DataError, ImageError
from ..core.files import folder_lock, free_name, map_ahead, write_atomic
from ..core.images import open_image
from .folder import ImageFolder, label_name
from .manifest import Manifest, read_rows, write_rows

REMOVED = '.removed'   # sub-folder of the data set for removed images
_GONE = 'it is no longer there'
_LOCK_SECONDS = 10   # how long to wait for another process that works in the folder
Moved = namedtuple('Moved', 'file to reason')

class _Journal:
    """The batches of moves in the journal of a data set

    `batches`: number -> dict with `number`, `undoes` (the number of the batch it undoes, or None), `finished` and
    `moves`, dicts with `file` and `to` (paths in the data set), `choice`, `row` (of `file` in the manifest, or None)
    and `state` ('planned', 'done' or 'skipped')."""
    def __init__(self, path, f):   # f: binary file, open to append
        self.path,self.f,self.batches = path,f,{}
        f.seek(0)
        lines = f.read().split(b'\n')
        if lines[-1]: f.write(b'\n')   # a crash cut the last line off: start a new one
        for line in lines:
            try: self._add(**json.loads(line))
            except (ValueError, TypeError, KeyError, IndexError): pass   # cut off: its moves have not begun
    def _add(self, event, batch, moves=(), move=None, undoes=None, **_):
        if event == 'planned':
            moves = [dict(o, state='planned') for o in moves]
            self.batches[batch] = dict(number=batch, undoes=undoes, finished=False, moves=moves)
        elif event == 'finished': self.batches[batch]['finished'] = True
        else: self.batches[batch]['moves'][move]['state'] = event
    def write(self, **line):
        "Append a line to the journal, then apply it; all but single moves are flushed to the disk"
        data = json.dumps(line, ensure_ascii=False).encode() + b'\n'
        while data: data = data[self.f.write(data):]
        if 'move' not in line: os.fsync(self.f.fileno())
        self._add(**line)
    def plan(self, moves, undoes=None):
        "Append a batch of `moves`, dicts with file, to, choice and row, and return it; `undoes`: a batch's number"
        n,now = max(self.batches, default=0) + 1,datetime.now().isoformat(timespec='seconds')
        self.write(event='planned', batch=n, time=now, moves=moves, undoes=undoes)
        return self.batches[n]
    @property
    def applied(self):
        "The batches that have not been undone, not even in part"
        undone = {o['undoes'] for o in self.batches.values()}
        return [o for k,o in self.batches.items() if o['undoes'] is None and k not in undone]
    @property
    def unfinished(self):
        "The last batch if it was interrupted, or None"
        last = self.batches[max(self.batches)] if self.batches else None
        return last and (None if last['finished'] else last)

def _read_journal(path):
    "Return the journal of `path`, to read only; it is empty if nothing was ever moved"
    file = Path(path)/REMOVED/'journal.jsonl'
    return _Journal(Path(path), io.BytesIO(file.read_bytes() if file.exists() else b''))

def present_places(
    path:str|os.PathLike, # Folder of the data set
    files:list # Paths of images
) -> list: # The present path of each; its old one if it is nowhere
    "Return where `files` are now, by the journal of `path`"
    moves = (o for b in _read_journal(path).batches.values() for o in b['moves'] if o['state'] != 'skipped')
    moved,places = {Path(path)/o['file']: Path(path)/o['to'] for o in moves},[]
    for f in files:
        while not f.exists() and f in moved: f = moved.pop(f)   # each move once: some lead back
        places.append(f)
    return places

@contextmanager
def _open_journal(path):
    try:
        with folder_lock(path, _LOCK_SECONDS):
            (path/REMOVED).mkdir(exist_ok=True)
            with (path/REMOVED/'journal.jsonl').open('a+b', buffering=0) as f: yield _Journal(path, f)
    except OSError as e:
        raise CatdogError(f'{e.filename or path}: {e.strerror}. Nothing is lost: fix that and do the same again, '
                          'or undo') from e

def _copy(file, to):
    "Copy `file` to `to` on another disk, so that a crash leaves no incomplete file under that name"
    part = to.with_name(f'.{to.name[-60:]}.00000000.part')   # the same name next time; `Manifest` removes old ones
    shutil.copy2(file, part)
    with part.open('rb+') as f: os.fsync(f.fileno())
    os.replace(part, to)
    if os.name == 'nt': return   # it opens no folders
    folder = os.open(to.parent, os.O_RDONLY)
    try: os.fsync(folder)
    finally: os.close(folder)

def _move(file, to):
    "Move `file` to `to`, which does not exist; keep relative links valid, and copy first if `to` is on another disk"
    to.parent.mkdir(parents=True, exist_ok=True)
    if file.is_symlink():
        target = os.readlink(file)
        if not os.path.isabs(target):
            target = os.path.relpath(os.path.join(os.path.realpath(file.parent), target), os.path.realpath(to.parent))
        os.symlink(target, to)
        return file.unlink()
    try: os.rename(file, to)
    except OSError as e:
        if e.errno != errno.EXDEV: raise
        _copy(file, to)
        file.unlink()

def _was_made(file, to):
    "Return whether a planned move was made before a crash; remove the original if only that was left to do"
    if not os.path.lexists(to) or not os.path.lexists(file): return os.path.lexists(to)
    if file.is_symlink() or to.is_symlink():
        same = file.is_symlink() and to.is_symlink() and file.resolve() == to.resolve()
    else: same = not file.samefile(to) and filecmp.cmp(file, to, shallow=False)
    if same: file.unlink()
    return same

def _places(path, choices):
    "Return file -> its wanted place in the data set `path`, free or not, for the files that `choices` moves"
    folder,places = None,{}
    for file,choice in choices.items():
        if choice == '<Keep>': continue
        if not file.is_relative_to(path): raise DataError(f'{file} is not in {path}: nothing was moved')
        if choice == '<Delete>': places[file] = path/REMOVED/file.relative_to(path)
        elif not choice or choice.startswith('.') or {'/', '\0', os.sep, os.altsep} & {*choice}:
            raise DataError(f'{choice!r} cannot be the name of a folder')
        else:
            folder = folder or ImageFolder(path, grouped=(path/choice).is_dir())
            try: there,label = file,folder.label(file)
            except DataError: there,label = file.parent/choice/file.name,None   # it has no label yet
            if label_name(choice) != label: places[file] = folder.place(there, choice)
    return places

def _update_manifest(path, batch):
    moved,rows = {o['file']: o for o in batch['moves'] if o['state'] == 'done' and o['row']},read_rows(path)
    changed = {k: moved[o['file']] for k,o in rows.items() if o['file'] in moved}
    for k,o in changed.items():
        out,row = o['to'].startswith(REMOVED + '/'),dict(o['row'], file=o['to'])
        if not batch['undoes']:   # an undo restores the row from before the batch
            row['reason'] = 'removed in review' if out else f'moved here from {o["file"]} in review'
            if out: row['status'] = 'removed'
        rows[k] = row
    if changed: write_rows(path, rows.values())

def _finish(journal, batch):
    "Make the pending moves of `batch`; return a list of `Moved`"
    path,moved = journal.path,[]
    for i,o in enumerate(batch['moves']):
        if o['state'] != 'planned': continue
        file,to,reason = path/o['file'],path/o['to'],''
        if not _was_made(file, to):
            if not os.path.lexists(file): reason = _GONE
            elif os.path.lexists(to): reason = f'another file has become {o["to"]}'
            else: _move(file, to)
        journal.write(event='skipped' if reason else 'done', batch=batch['number'], move=i)
        moved.append(Moved(file, None if reason else to, reason))
    _update_manifest(path, batch)
    journal.write(event='finished', batch=batch['number'])
    return moved

def _undo(journal, batch):
    "Move the files of `batch` back, the last one first; return a list of `Moved`"
    path,taken,moves = journal.path,set(),[]
    for i,o in enumerate(batch['moves']):
        if o['state'] == 'planned' and _was_made(path/o['file'], path/o['to']):
            journal.write(event='done', batch=batch['number'], move=i)
    if not batch['finished']: _update_manifest(path, batch)
    for o in reversed(batch['moves']):
        if o['state'] != 'done': continue
        back = free_name(path/o['file'], taken).relative_to(path).as_posix()
        moves.append(dict(file=o['to'], to=back, choice='<Undo>', row=o['row']))
    return _finish(journal, journal.plan(moves, undoes=batch['number']))

def can_undo(
    path:str|os.PathLike # Folder of the data set
) -> bool:
    "Return whether `undo_choices` has anything to undo, or to finish, in `path`"
    journal = _read_journal(path)
    return bool(journal.applied or journal.unfinished)

def unfinished_moves(
    path:str|os.PathLike # Folder of the data set
) -> int: # 0 unless an application was interrupted
    "Return the number of pending moves of the last batch in `path`"
    batch = _read_journal(path).unfinished
    return 0 if not batch or batch['undoes'] else sum(o['state'] == 'planned' for o in batch['moves'])

def apply_choices(
    path:str|os.PathLike, # Folder of the data set, with a sub-folder for each label
    choices:dict # File below `path` -> '<Keep>', '<Delete>' or the label where it belongs
) -> list[Moved]: # file, to (None: it was not moved), reason (why not)
    "Finish an interrupted batch, then move files by `choices`; raise `CatdogError` if that is impossible"
    path,choices = Path(path),{Path(f): o for f,o in choices.items()}
    if not path.is_dir(): raise DataError(f'{path}: there is no such folder')
    places = _places(path, choices)
    if not places and not can_undo(path): return []
    with _open_journal(path) as journal:
        moved,done = [],{}
        if batch := journal.unfinished:
            finished = _finish(journal, batch)
            if not batch['undoes']: moved,done = finished,{path/o['file']: o['choice'] for o in batch['moves']}
        rows,taken,moves = {o['file']: o for o in read_rows(path).values()},set(),[]
        for file,to in places.items():
            if os.path.lexists(file):
                name,to = (o.relative_to(path).as_posix() for o in (file, free_name(to, taken)))
                moves.append(dict(file=name, to=to, choice=choices[file], row=rows.get(name)))
            elif done.get(file) != choices[file]: moved.append(Moved(file, None, _GONE))
        return moved + (_finish(journal, journal.plan(moves)) if moves else [])

def undo_choices(
    path:str|os.PathLike, # Folder of the data set
    everything:bool=False # Whether to undo all batches instead of the last
) -> list[Moved]: # file (where it was), to (where it is again; None: that failed), reason (why)
    "Undo the last `apply_choices` in `path`, or all of them"
    if not can_undo(path): return []
    with _open_journal(Path(path)) as journal:
        moved,batch = [],journal.unfinished
        if batch and batch['undoes']:
            moved = _finish(journal, batch)
            if not everything: return moved
        for batch in reversed(journal.applied if everything else journal.applied[-1:]): moved += _undo(journal, batch)
    return moved

def _fault(file):
    "Return why `file` is not an image, or None; also None if it cannot be read at all"
    try: open_image(file, max_side=64)
    except ImageError as e: return None if e.status == 'missing' else str(e)

def set_aside(
    path:str|os.PathLike # Folder with a sub-folder for each label
) -> list[Moved]: # file, to, and reason: why it cannot be opened
    "Move the files in `path` that cannot be opened as images to `path/.removed`; `undo_choices` moves them back"
    folder = ImageFolder(path)
    files = sorted([*folder.files, *(f for f,_ in folder.ignored)])
    faults = {f: o for f,o in zip(files, map_ahead(_fault, files)) if o}
    moved = apply_choices(path, dict.fromkeys(faults, '<Delete>'))
    return [o._replace(reason=o.reason or faults[o.file]) for o in moved]

def add_images(
    path:str|os.PathLike, # Folder of a data set; may be missing
    also:str|os.PathLike, # Another, such as the one that `catdog-app --keep` fills
    labels:list=None # Only images of these; default: all
) -> int: # Number of images that were not there yet
    "Copy the images of the data set `also`, with their rows in the manifest, to their labels in `path`"
    path,folder,rows = Path(path),ImageFolder(also),{o['file']: o for o in read_rows(also).values()}
    new = {f: o for f in folder.files if labels is None or folder.label(f) in labels
           if not (o := path/folder.label(f)/f.name).exists()}
    for f,to in new.items():
        to.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(to, f.read_bytes())
    names = {f.relative_to(also).as_posix(): to.relative_to(path).as_posix() for f,to in new.items()}
    Manifest(path).add(*(dict(o, file=names[k]) for k,o in rows.items() if k in names))
    return len(new)
