"""The record of a data set, `manifest.jsonl`: where each image came from and what became of it, a row for each URL"""

import json, os, re, time
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path
from ..core.errors import DataError
from ..core.files import walk_files, write_atomic

@dataclass
class Photo:
    "An image found by a search, not downloaded yet"
    url:str              # URL of the image itself
    title:str=''         # Title that the page or the service gives it
    page_url:str=''      # URL of the page that shows it
    width:int=None       # In pixels, as the service says; None: unknown
    height:int=None      # In pixels, as the service says; None: unknown
    license:str=''       # Such as 'CC BY-SA 4.0'; empty: unknown
    creator:str=''       # Author; empty: unknown
    engine:str=''        # Search engine that found it
    term:str=''          # Search term

@dataclass
class Outcome:
    "What became of a `Photo`"
    photo:Photo          # The photo
    status:str           # 'ok', or the kind of problem: 'duplicate', 'not-found', 'missing', 'not-an-image', ...
    reason:str=''        # Why it was not kept, as text for the user
    file:Path=None       # The file if it was kept, or set aside because of a conflict

_COLUMNS = ['label', 'file', 'status', 'reason', *(f.name for f in fields(Photo)), 'phash', 'area', 'copy_of']

def read_rows(
    path:str|os.PathLike # Folder of a data set
) -> dict: # (label, URL) -> row, a dict with a value for each column; empty if there is no manifest
    "Read the manifest of `path`: the last row of each label and URL; skip incomplete and invalid lines"
    file,rows = Path(path)/'manifest.jsonl',{}
    if not file.exists(): return rows
    for line in file.read_text(encoding='utf8', errors='replace').split('\n'):
        try: o = json.loads(line)
        except (ValueError, RecursionError): continue
        if isinstance(o, dict) and all(isinstance(o.get(k), str) for k in ('label', 'url', 'status')):
            rows[o['label'], o['url']] = {k: o.get(k) for k in _COLUMNS}
    return rows

def _lines(rows): return ''.join(json.dumps(o, ensure_ascii=False) + '\n' for o in rows)

def write_rows(
    path:str|os.PathLike, # Folder of a data set
    rows # Rows, as in `read_rows`
):
    "Replace the manifest of `path` with `rows`"
    write_atomic(Path(path)/'manifest.jsonl', _lines(rows).encode())

def _remove_unfinished(path):
    "Remove the temporary files of killed processes under `path`, but none that was written to within the last minute"
    for o in [o for pattern in ('.*.part', '*/.*.part', '.removed/*/.*.part') for o in path.glob(pattern)]:
        try:
            if re.search(r'\.[0-9a-f]{8}\.part$', o.name) and time.time() - o.stat().st_mtime > 60: o.unlink()
        except OSError: pass   # it has just been renamed, or is not ours

class Manifest:
    "The rows of `path/manifest.jsonl`, which grows while images are fetched: (label, URL) -> row"
    def __init__(self,
        path:Path # Folder of the data set; created if missing
    ):
        "Read the manifest; repair an incomplete one and remove temporary files of killed processes"
        self.path,self.file = path,path/'manifest.jsonl'
        path.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(path)
        self.rows = read_rows(path)
        text = self.file.read_bytes() if self.file.exists() else b''
        if text and not (text.endswith(b'\n') and text.count(b'\n') == len(self.rows)): self.rewrite()
    def rewrite(self):
        "Write all rows again, one line for each URL"
        write_rows(self.path, self.rows.values())
    def of(self,
        label:str, # The label
        *statuses:str # Such as 'ok'; default: all
    ) -> list: # In the order in which their URLs were added
        "Return the rows of `label`, or those with one of `statuses`"
        return [o for (l,_),o in self.rows.items() if l == label and (not statuses or o['status'] in statuses)]
    def add(self,
        *rows:dict # New rows, or new states of old ones
    ):
        "Append `rows` to the file"
        for o in rows: self.rows[o['label'], o['url']] = o
        with self.file.open('a', encoding='utf8') as f: f.write(_lines(rows))

def as_found(
    path:Path, # Folder of the data set
    rows # Rows of its manifest
) -> list: # A row for each of `rows`
    "Return `rows` with the present path of each file, and the status that follows: 'missing' if it is nowhere"
    places = defaultdict(list)   # name -> paths in the manifest's form; those in .removed come last
    for folder in (path, path/'.removed'):
        for o in walk_files(folder): places[o.name].append(o.relative_to(path).as_posix())
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
    path:str|os.PathLike # A folder that `scrape` made
): # `pandas.DataFrame` with a row for each URL: label, file, status, reason, and the fields of `Photo`
    "Return the manifest of the data set in `path`, updated to where its files are; raise `DataError` if there is none"
    import pandas as pd
    if not (Path(path)/'manifest.jsonl').exists():
        raise DataError(f'{path} has no manifest.jsonl: give a folder that catdog-scrape made')
    rows = as_found(Path(path), list(read_rows(path).values()))
    df = pd.DataFrame({k: [o[k] for o in rows] for k in _COLUMNS}, columns=_COLUMNS)   # faster than a list of dicts
    return df.astype({k: 'Int64' for k in ('width', 'height', 'area')})

def count_outcomes(
    manifest # From `scrape` or `read_manifest`
): # `pandas.DataFrame` with a row for each status and a column for each label
    "Count the statuses of the URLs of each label"
    import pandas as pd
    total = 'all' if 'all' not in {*manifest.label} else 'all labels'   # pandas refuses the name of a label
    return pd.crosstab(manifest.status, manifest.label, margins=True, margins_name=total)

def write_credits(
    path:str|os.PathLike # The folder that `scrape` made
) -> Path: # `path/CREDITS.txt`
    "Write the author, source and licence of each image in `path`"
    df = read_manifest(path)
    kept = df[df.status == 'ok'].fillna({k: '' for k in ('title', 'creator', 'license', 'page_url')})
    lines = [(f'{o.file}: {o.title or "untitled"}', f'by {o.creator or "an unknown author"}',
              o.license or 'licence not stated', f'{o.page_url or o.url}\n') for o in kept.itertuples()]
    return write_atomic(Path(path)/'CREDITS.txt', ''.join(map(', '.join, lines)).encode())
