"""Moves images to the folders that a person chose, by a journal: apply, undo, nothing lost"""

import io, json, os
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from fastcore.basics import patch

from ..core.errors import CatdogError
from ..core.files import Moved, folder_lock, free_name
from .folder import ImageFolder, label_name

REMOVED = '.removed'   # the folder, in that of the data set, of what was taken out

class Journal:
    "`batches` of the data set in `path` by the lines of the journal, an open binary file"
    def __init__(self,
        path:Path, # The folder of the data set
        f # Binary file with what was written so far
    ):
        self.path,self.f,self.batches = path,f,{}
        f.seek(0)
        lines = f.read().split(b'\n')
        if lines[-1]: f.write(b'\n')   # the last line was cut off: start a new one
        for line in lines:
            try: self._add(**json.loads(line))
            # a line cut off by a crash: what it announced has not begun
            except (ValueError, TypeError, KeyError, IndexError): pass

@patch
def _add(self:Journal, event, batch, moves=(), move=None, to=None, **_):
    "Take in one line"
    b = self.batches.setdefault(batch, dict(number=batch, state='', moves=[]))
    if event == 'planned': b['moves'] += [dict(o, state='planned') for o in moves]
    if move is None: b['state'] = event
    else:
        o = b['moves'][move]
        o['state'] = event
        if event == 'moving': o['to'] = to
        if event == 'putting back': o['back'],b['state'] = to,'undoing'

@patch
def write(self:Journal,
    **line # event, batch, perhaps move, file, to, moves
):
    "Write one line to the disk, then take it in"
    data = json.dumps(line, ensure_ascii=False).encode() + b'\n'
    while data: data = data[self.f.write(data):]
    if 'move' not in line: os.fsync(self.f.fileno())
    self._add(**line)

@patch(as_prop=True)
def last(self:Journal):
    "The last batch that is not undone; None if there is none"
    return next((o for o in reversed(self.batches.values()) if o['state'] != 'undone'), None)

def read_journal(
    path:str|os.PathLike # The folder of the data set
) -> Journal: # To read only
    "The `Journal` of `path`; empty if nothing was ever applied there"
    file = Path(path)/REMOVED/'journal.jsonl'
    return Journal(Path(path), io.BytesIO(file.read_bytes() if file.exists() else b''))

_PATIENCE = 10   # seconds to wait for whoever else is at work in the folder

@contextmanager
def _open_journal(path):
    "The `Journal` of `path`, for one process at a time"
    if not path.is_dir(): raise CatdogError(f'{path}: there is no such folder')
    try:
        with folder_lock(path, _PATIENCE):
            (path/REMOVED).mkdir(exist_ok=True)
            with (path/REMOVED/'journal.jsonl').open('a+b', buffering=0) as f: yield Journal(path, f)
    except OSError as e:
        raise CatdogError(f'{e.filename or path}: {e.strerror}. '
                          'Nothing is lost: see to that and do the same again, or undo') from e

def _rename(file, to):
    "Move `file` to `to`, which must not exist"
    to.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(to): raise FileExistsError(17, 'there is another file of that name', str(to))
    os.rename(file, to)

def _check_label(choice):
    if not choice or choice.startswith('.') or {'/', '\0', os.sep, os.altsep} & {*choice}:
        raise CatdogError(f'{choice!r} cannot be the name of a folder')

def _places(path, choices):
    "From each file that moves by `choices` in the data set `path` to its place there, whether that is free or not"
    folder,places = None,{}
    for file,choice in choices.items():
        if choice == '<Keep>': continue
        if not file.is_relative_to(path): raise CatdogError(f'{file} is not in {path}: nothing was moved')
        if choice == '<Delete>': places[file] = path/REMOVED/file.relative_to(path)
        else:
            _check_label(choice)
            folder = folder or ImageFolder(path)
            if label_name(choice) != folder.label(file): places[file] = folder.place(file, choice)
    return places

def _settle_move(path, o):
    "Set the state of the move `o` to 'moved' if it was made without a line that says so"
    there,here = os.path.lexists(path/o['to']),os.path.lexists(path/o['file'])
    if o['state'] in ('planned', 'moving') and there and not here: o['state'] = 'moved'

def _manifest_lines(path):
    "The lines of `path`'s manifest as bytes; none where there is no manifest"
    file = path/'manifest.jsonl'
    return file.read_bytes().splitlines(keepends=True) if file.exists() else []

def _parse_line(line):
    try: o = json.loads(line)
    except ValueError: return {}
    return o if isinstance(o, dict) else {}

def _update_manifest(path, changes):
    "Put the lines of `changes`, a dict from file to a function of its line, in place of those in `path`'s manifest"
    old = _manifest_lines(path)
    new = [changes[file](line) if (file := _parse_line(line).get('file')) in changes else line for line in old]
    if new == old: return
    part = path/REMOVED/'manifest.part'
    part.write_bytes(b''.join(new))
    os.replace(part, path/'manifest.jsonl')

def _line_forward(move):
    "A function from the manifest's line about the file of `move` to that after it"
    def _follow(line):
        row,out = _parse_line(line),move['to'].startswith(REMOVED + '/')
        row = dict(row, file=move['to'], status='removed' if out else row.get('status'),
                   reason='taken out in review' if out else f'moved here from {row.get("file")} in review')
        return (json.dumps(row, ensure_ascii=False) + '\n').encode()
    return _follow

def _line_back(move):
    "A function from the manifest's line about the file of `move` to that after it was put back"
    if move['back'] == move['file']: return lambda line: move['row'].encode()
    return lambda line: (json.dumps(dict(json.loads(move['row']), file=move['back']),
                                    ensure_ascii=False) + '\n').encode()

def _plan(path, choices, places):
    "The moves to `places`, from `_places`, that `choices` ask for; a name that is taken gets a number"
    rows,taken,moves = {_parse_line(o).get('file'): o.decode() for o in _manifest_lines(path)},set(),[]
    for file,to in places.items():
        name = file.relative_to(path).as_posix()
        to = free_name(to, taken).relative_to(path).as_posix()
        moves.append(dict(file=name, to=to, choice=choices[file], row=rows.get(name)))
    return moves

def _apply_batch(journal, batch):
    "Do what is left to do in `batch`; a list of `Moved`"
    path,done = journal.path,[]
    for i,o in enumerate(batch['moves']):
        if o['state'] not in ('planned', 'moving'): continue
        _settle_move(path, o)
        file,to,reason = path/o['file'],path/o['to'],''
        if o['state'] != 'moved':
            if not os.path.lexists(file): reason = 'it is no longer there'
            else:
                to = free_name(to)
                journal.write(batch=batch['number'], event='moving', move=i, file=o['file'],
                              to=to.relative_to(path).as_posix())
                _rename(file, to)
        journal.write(batch=batch['number'], event='skipped' if reason else 'moved', move=i)
        done.append(Moved(file, None if reason else to, reason))
    _update_manifest(path, {o['file']: _line_forward(o) for o in batch['moves'] if o['state'] == 'moved' and o['row']})
    journal.write(batch=batch['number'], event='applied')
    return done

def _undo_batch(journal, batch):
    "Move the files of `batch` back to where they were, the last one first; a list of `Moved`"
    path,done = journal.path,[]
    for i,o in reversed(list(enumerate(batch['moves']))):
        _settle_move(path, o)
        if o['state'] not in ('moved', 'putting back'): continue
        now,back,reason = path/o['to'],path/o['file'],''
        begun = o['state'] == 'putting back' and os.path.lexists(path/o['back'])
        if begun and not os.path.lexists(now): back = path/o['back']
        elif not os.path.lexists(now): reason = 'it is no longer there'
        else:
            back = free_name(back)
            journal.write(batch=batch['number'], event='putting back', move=i, file=o['to'],
                          to=back.relative_to(path).as_posix())
            _rename(now, back)
        journal.write(batch=batch['number'], event='lost' if reason else 'put back', move=i)
        done.append(Moved(now, None if reason else back, reason))
    _update_manifest(path, {o['to']: _line_back(o) for o in batch['moves'] if o['state'] == 'put back' and o['row']})
    journal.write(batch=batch['number'], event='undone')
    return done

def _skip_changed(journal, batch, new):
    "Skip what is left of the broken-off `batch` where `new` moves differ; the files of those that stay in it"
    left = [o for o in batch['moves'] if o['state'] in ('planned', 'moving')]
    wanted = {o['file']: o['choice'] for o in new}
    for i,o in enumerate(batch['moves']):
        if o in left and wanted.get(o['file'], o['choice']) != o['choice'] and os.path.lexists(journal.path/o['file']):
            journal.write(batch=batch['number'], event='skipped', move=i)
    return {o['file'] for o in left if o['state'] != 'skipped'}

def can_undo(
    path:str|os.PathLike # The folder of the data set
) -> bool: # Is there a batch in its journal that can be taken back (or finished)?
    "Whether `undo_choices` would have something to do in `path`"
    return read_journal(path).last is not None

def apply_choices(
    path:str|os.PathLike, # The folder of the data set, with a sub-folder a label
    choices:dict # From files below `path` to '<Keep>', '<Delete>' or the label where each belongs
) -> list[Moved]: # file, to (None if it was not moved), reason (why not)
    "Move files as `choices` say, and finish what an earlier call could not; `CatdogError` says what stands in the way"
    path,choices = Path(path),{Path(f): o for f,o in choices.items()}
    if not path.is_dir(): raise CatdogError(f'{path}: there is no such folder')
    places = _places(path, choices)
    if not places and not can_undo(path): return []
    with _open_journal(path) as journal:
        batch = journal.last
        if batch and batch['state'] == 'undoing': _undo_batch(journal, batch)
        open_batch = batch if batch and batch['state'] == 'planned' else None
        new = _plan(path, choices, places)
        if open_batch:
            planned = _skip_changed(journal, batch, new)
            new = [o for o in new if o['file'] not in planned]
        else:
            if not new: return []
            batch = dict(number=len(journal.batches) + 1)
        if new:
            now = datetime.now().isoformat(timespec='seconds')
            journal.write(batch=batch['number'], event='planned', time=now, moves=new)
        return _apply_batch(journal, journal.batches[batch['number']])

def undo_choices(
    path:str|os.PathLike, # The folder of the data set
    everything:bool=False # All batches, or only the last?
) -> list[Moved]: # file (where it was), to (where it is again; None if that failed), reason (why)
    "Take back what `apply_choices` did last in `path`, or all that it ever did"
    done = []
    if not can_undo(path): return done
    with _open_journal(Path(path)) as journal:
        while journal.last:
            done += _undo_batch(journal, journal.last)
            if not everything: break
    return done

def unfinished_moves(
    path:str|os.PathLike # The folder of the data set
) -> int: # 0 unless an application broke off
    "How many moves of the last batch in `path` have not been made, because it broke off"
    batch = read_journal(path).last
    if not batch or batch['state'] != 'planned': return 0
    return sum(o['state'] in ('planned', 'moving') for o in batch['moves'])
