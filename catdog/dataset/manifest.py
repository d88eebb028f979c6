"""A row for every address that was met: where an image is from and what became of it"""

import json, os, re, time
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path

from ..core.errors import CatdogError
from ..core.files import write_atomic

@dataclass
class Photo:
    "An image that a search found, before anybody has fetched it"
    url:str              # Where the image itself is
    title:str=''         # What the page or the service calls it
    page_url:str=''      # The page that shows it
    width:int=None       # In pixels, as the service says; None where it does not
    height:int=None      # In pixels, as the service says
    license:str=''       # Such as 'CC BY-SA 4.0'; empty where the service does not say
    creator:str=''       # Who made it
    engine:str=''        # The engine that found it
    term:str=''          # What was searched for

@dataclass
class Outcome:
    "What became of a `Photo`"
    photo:Photo          # The photo
    status:str           # 'ok', or why not in one word, such as 'duplicate', 'http-404', 'missing' or 'not-an-image'
    reason:str=''        # Why it was not kept, as a person would say it
    file:Path=None       # The file, when it was kept, or set aside because of a conflict

_COLUMNS = ['label', 'file', 'status', 'reason', *(f.name for f in fields(Photo)), 'phash', 'area', 'copy_of']

def _read_rows(file):
    "The rows in the manifest `file`, by label and address; where there are two for one, the last"
    rows,empty = {},dict.fromkeys(_COLUMNS)
    if not file.exists(): return rows
    for line in file.read_text(encoding='utf8', errors='replace').split('\n'):
        try: o = json.loads(line)
        except (ValueError, RecursionError): continue
        if isinstance(o, dict) and all(isinstance(o.get(k), str) for k in ('label', 'url', 'status')):
            rows[o['label'], o['url']] = {**empty, **o} if o.keys() <= empty.keys() else {k: o.get(k) for k in _COLUMNS}
    return rows

def _is_left_over(file):
    "Whether `file` is a temporary file of `write_atomic` that has not been written to for half a second"
    if not re.search(r'\.[0-9a-f]{8}\.part$', file.name): return False
    try: return time.time() - file.stat().st_mtime > .5
    except OSError: return False   # it has just been renamed

def _remove_unfinished(path):
    "Remove what `write_atomic` leaves under `path` when it is killed: beginnings of files, not a person's images"
    for pattern in ('.*.part', '*/.*.part', '.removed/*/.*.part'):
        for o in path.glob(pattern):
            if _is_left_over(o): o.unlink(missing_ok=True)

class Manifest:
    "The rows of `path/manifest.jsonl`: (label, address) -> a dict"
    def __init__(self,
        path:Path # Folder of the data set; made if it is missing
    ):
        self.path,self.file = path,path/'manifest.jsonl'
        path.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(path)
        self.rows = _read_rows(self.file)
        text = self.file.read_bytes() if self.file.exists() else b''
        if text and not (text.endswith(b'\n') and text.count(b'\n') == len(self.rows)): self.rewrite()

    @staticmethod
    def _lines(rows): return ''.join(json.dumps(o, ensure_ascii=False) + '\n' for o in rows)

    def rewrite(self):
        "Write all rows anew, one line an address"
        write_atomic(self.file, self._lines(self.rows.values()).encode())

    def of(self,
        label:str, # The label
        *statuses:str # Such as 'ok'; none: all
    ) -> list: # Rows, in the order in which their addresses were met
        "The rows of `label`, or only those with one of `statuses`"
        return [o for (l,_),o in self.rows.items() if l == label and (not statuses or o['status'] in statuses)]

    def add(self,
        *rows:dict # New rows, or new states of old ones
    ):
        "Append `rows` to the file"
        for o in rows: self.rows[o['label'], o['url']] = o
        with self.file.open('a', encoding='utf8') as f: f.write(self._lines(rows))

def _places(path):
    "Name of each file below `path` -> where it is, as in a manifest; what is in `.removed` comes last"
    places = defaultdict(list)
    for folder,folders,names in os.walk(path):
        here = Path(folder).relative_to(path).as_posix()
        if here == '.': folders.sort(key=lambda o: o == '.removed')
        for o in names: places[o].append(o if here == '.' else f'{here}/{o}')
    return places

def as_found(
    path:Path, # The folder of the data set
    rows # Of its manifest
) -> list: # A row for each of `rows`
    "`rows` with each file where it is now, and the status that this means: 'missing' where it is nowhere"
    places = _places(path)
    taken = {o['file'] for o in rows if o['file'] and o['file'] in places.get(o['file'].rpartition('/')[2], ())}
    def _row(o):
        if not o['file'] or o['file'] in taken: return o
        now = next((f for f in places.get(o['file'].rpartition('/')[2], ()) if f not in taken), None)
        taken.add(now)
        if now: return {**o, 'file': now, 'status': 'ok' if not now.startswith('.') else
                        'removed' if o['status'] == 'ok' else o['status']}
        gone = dict(status='missing', reason=f'its file {o["file"]} is no longer there')
        return {**o, 'file': None, **(gone if o['status'] in ('ok', 'conflict') else {})}
    return [_row(o) for o in rows]

def read_manifest(
    path:str|os.PathLike # The folder that `scrape` made
): # A `pandas.DataFrame` with a row for every address: label, file, status, reason, and the fields of `Photo`
    "The manifest of the data set in `path`, as its files are now; `CatdogError` where there is none"
    import pandas as pd
    file = Path(path)/'manifest.jsonl'
    if not file.exists(): raise CatdogError(f'{path} has no manifest.jsonl: give a folder that catdog-scrape made')
    rows = as_found(Path(path), list(_read_rows(file).values()))
    df = pd.DataFrame({k: [o[k] for o in rows] for k in _COLUMNS}, columns=_COLUMNS)   # a list of dicts takes longer
    return df.astype({k: 'Int64' for k in ('width', 'height', 'area')})

def count_outcomes(
    manifest # What `scrape` or `read_manifest` returns
): # A `pandas.DataFrame` with a row a status and a column a label
    "How many addresses of each label in `manifest` ended how"
    import pandas as pd
    return pd.crosstab(manifest.status, manifest.label, margins=True, margins_name='all')

def write_credits(
    path:str|os.PathLike # The folder that `scrape` made
) -> Path: # The file, `path/CREDITS.txt`
    "Write down who made each image that was kept in `path`, where it is from, and its licence"
    df = read_manifest(path)
    kept = df[df.status == 'ok'].fillna({k: '' for k in ('title', 'creator', 'license', 'page_url')})
    lines = [(f'{o.file}: {o.title or "untitled"}', f'by {o.creator or "somebody not named"}',
              o.license or 'licence not stated', f'{o.page_url or o.url}\n') for o in kept.itertuples()]
    return write_atomic(Path(path)/'CREDITS.txt', ''.join(map(', '.join, lines)).encode())
