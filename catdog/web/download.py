"""Download many images at once, and decide which of them a data set keeps"""

import os, threading, time
from collections import Counter, deque, namedtuple
from concurrent.futures import Future, wait
from dataclasses import asdict, fields
from pathlib import Path
from posixpath import basename
from queue import SimpleQueue
from tqdm.auto import tqdm
from ..core.duplicates import DuplicateIndex, colour_signature, perceptual_hash
from ..core.errors import CatdogError, DataError, FetchError, ImageError, SearchError
from ..core.files import check_writable, content_id, folder_lock, write_atomic
from ..core.images import jpeg_bytes, open_image
from ..dataset.folder import parse_labels
from ..dataset.manifest import Manifest, Outcome, Photo, as_found
from .http import Fetcher
from .engines import search_terms

_MIN_SIDE = 32   # pixels; smaller images are icons
_WORKERS,_TIMEOUT = 64,10   # images fetched at once, and seconds to wait for the next bytes of one
_DECODERS = threading.BoundedSemaphore(min(4, os.cpu_count() or 1))   # bounds the memory of 50-megapixel images

# A downloaded image: file name, JPEG bytes, number of pixels, and the signatures that find copies (None if not needed)
Download = namedtuple('Download', 'name data area phash colours')
def _download(fetcher, url, end, max_side, signature):
    "Return the image at `url` as a `Download`, if the request can start before `end`"
    with fetcher.fetch(url, end) as f, _DECODERS: img = open_image(f, max_side)
    if min(img.size) < _MIN_SIDE: raise ImageError(f'{img.width} x {img.height} pixels: an icon', 'too-small')
    data,signature = jpeg_bytes(img),(perceptual_hash(img), colour_signature(img)) if signature else (None, None)
    return Download(f'{content_id(data)}.jpg', data, img.width*img.height, *signature)

def _status(e): return e.status if isinstance(e, ImageError) else e.reason

_SECONDS,_SECONDS_EACH = 60,5   # no request starts after 60 seconds, and 5 more for each photo
class _Downloads:
    "A pool of threads that downloads images, for several labels in turn"
    def __init__(self, fetcher, n, max_side=512, signature=False):   # n: photos in all, for the progress bar
        self.fetcher,self.settings,self.jobs,self.pending = fetcher,(max_side, signature),SimpleQueue(),deque()
        self.bar = tqdm(total=n, desc='download', unit=' images', delay=1)
        self.counts,self.end = Counter(),time.monotonic() + _SECONDS
        for _ in range(fetcher.workers): threading.Thread(target=self._work, daemon=True).start()
    def __enter__(self): return self
    def __exit__(self, *args):
        self.fetcher.close()   # requests that have not started fail at once
        for _ in range(self.fetcher.workers): self.jobs.put(None)
        self.bar.close()
    def _work(self):
        while job := self.jobs.get():
            url,future = job
            try: future.set_result(_download(self.fetcher, url, self.end, *self.settings))
            except (FetchError, ImageError) as e: future.set_result(e)
            except BaseException as e: future.set_exception(e)
    def add(self, photos, label=''):
        "Start to download `photos`; `label` is returned with their results"
        self.end += _SECONDS_EACH*len(photos)
        for p in photos:
            self.pending.append((label, p, Future()))
            self.jobs.put((p.url, self.pending[-1][2]))
    def results(self, block=True):
        "Yield (label, photo, `Download` or error) in the order in which the photos were added; `block`: wait for all"
        while self.pending:
            label,photo,future = self.pending[0]
            late = self.end + 4*self.fetcher.timeout   # a server may send headers without end
            while not wait([future], .2 if block else 0).done and time.monotonic() < late:
                self.bar.update(max(0, self.counts.total() + sum(f.done() for _,_,f in self.pending) - self.bar.n))
                if not block: return
            self.pending.popleft()
            yield label,photo,future.result() if future.done() else FetchError('its server took too long', 'timeout')
    def count(self, status):
        "Count the outcome of a photo in the progress bar"
        self.counts['kept' if status == 'ok' else 'duplicate' if 'duplicate' in status else 'broken'] += 1
        self.bar.set_postfix_str(', '.join(f'{self.counts[o]} {o}' for o in ('kept', 'duplicate', 'broken')), False)
        self.bar.update(max(0, self.counts.total() - self.bar.n))

def download_images(
    photos:list, # `Photo`s, or just their URLs
    dest:str|os.PathLike, # Folder for the images; created if missing
    workers:int=_WORKERS, # Images to fetch at once
    timeout:float=_TIMEOUT, # Seconds to wait for the next bytes of an image; all of it may take three times as long
    max_side:int=512, # Shrink images so that neither side is longer, in pixels; None: keep their size
    ignore_robots:list=None # Opt-outs to ignore where you have permission, such as 'noai'
) -> list[Outcome]: # One for each of `photos`, in their order
    "Download `photos` into `dest` as upright RGB JPEGs named after their content"
    dest,files,res = Path(dest),set(),[]
    dest.mkdir(parents=True, exist_ok=True)
    photos = [Photo(p) if isinstance(p, str) else p for p in photos]
    with _Downloads(Fetcher(workers, timeout, ignore_robots), len(photos), max_side) as downloads:
        downloads.add(photos)
        for _,photo,o in downloads.results():
            if isinstance(o, CatdogError): res.append(Outcome(photo, _status(o), str(o)))
            elif o.name in files: res.append(Outcome(photo, 'duplicate', f'the same image as {o.name}'))
            else: res.append(Outcome(photo, 'ok', file=write_atomic(dest/o.name, o.data)))
            if res[-1].file: files.add(o.name)
            downloads.count(res[-1].status)
    return res

class _Collector:
    "Decides which downloaded images to keep, and records each in `manifest`, whose images it knows"
    def __init__(self, manifest):
        self.manifest,self.path,self.index = manifest,manifest.path,DuplicateIndex(self._colours)
        rows = [o for o in manifest.rows.values() if o['file'] and o['phash']]
        self.keys = {basename(o['file']): (o['label'], o['url']) for o in rows}   # file name -> key of its row
        for o in rows:
            if self._current(o): self._add(o)
    def _current(self, row):
        "Return the row of the image that replaced that of `row`, `row` itself if none did, None if it is gone"
        visited = set()
        while row['status'] == 'near-duplicate':
            key = self.keys.get(basename(row['copy_of'] or ''))
            if not key or key in visited: return
            visited.add(key)
            row = self.manifest.rows[key]
        return row
    def _colours(self, key):
        "Return the colour signature of the image of row `key`, wherever the user has moved it, or None"
        path,file = self.path,self.manifest.rows[key]['file']
        for place in (path/file, path/'.removed'/file, *path.glob(f'*/{basename(file)}')):
            try: return colour_signature(open_image(place, 512))
            except ImageError: pass   # it is not there
    def _add(self, row, colours=None):
        key = self.keys[basename(row['file'])] = row['label'],row['url']
        self.index.add(key, row['phash'], colours)
    def decide(self, label, photo, image):
        "Keep `image`, a `Download` or an error, unless it is a copy or in conflict with another label; return its row"
        if isinstance(image, CatdogError): return self._record(label, photo, _status(image), str(image))
        key = self.index.find(image.phash, image.colours)
        known = key and self._current(self.manifest.rows[key])
        if not known: return self._record(label, photo, 'ok', file=self.path/label/image.name, image=image)
        conflict = known['status'] == 'conflict' or known['label'] != label
        same = basename(known['file']) == image.name
        larger = not same and image.area > (known['area'] or 0)
        file = self.path/('.removed' if conflict else '')/label/image.name
        # an image that is no longer in its place was moved by the user, and stays where it is, or by a killed run
        if (conflict or larger) and ((self.path/known['file']).exists() or file.exists()):
            return self._replace(label, photo, image, file, known, conflict)
        reason = f'the same image as {known["file"]}'
        return self._record(label, photo, 'duplicate' if same else 'near-duplicate', reason, copy_of=known['file'])
    def _replace(self, label, photo, image, file, known, conflict):
        "Keep `image` as `file` and remove `known`, its smaller copy; in a conflict, remove both"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, image.data)
        if known['status'] != 'conflict':
            old,to = self.path/known['file'],self.path/'.removed'/known['file']
            to.parent.mkdir(parents=True, exist_ok=True)
            if old.exists(): os.replace(old, to)   # both are named after the same content
            other = file.relative_to(self.path).as_posix()
            why = 'the same image is in conflict: ' if conflict else 'a smaller copy of '
            known = {**known, 'file': to.relative_to(self.path).as_posix(), 'reason': why + other, 'copy_of': other,
                     'status': 'conflict' if conflict else 'near-duplicate'}
        if not conflict: return self._record(label, photo, 'ok', file=file, image=image, old=known)
        reason = f'the same image is in conflict: {known["file"]}'
        return self._record(label, photo, 'conflict', reason, file, image, known['file'], known)
    def _record(self, label, photo, status, reason='', file=None, image=None, copy_of=None, old=None):
        "Write `image` to `file`, a row of the manifest, and the new state `old` of another row; return the row"
        if file and not file.exists(): write_atomic(file, image.data)
        row = dict(label=label, file=file and file.relative_to(self.path).as_posix(), status=status, reason=reason,
                   **asdict(photo), phash=image and image.phash, area=image and image.area, copy_of=copy_of)
        self.manifest.add(row, *([old] if old else []))
        if image: self._add(row, image.colours)
        return row

def _kind(engine): return 'drawings of the sample web' if engine == 'sample' else 'photographs'

_FINAL = 'ok','duplicate','near-duplicate','conflict','removed'   # removed: by the user, in review
def _photos_to_fetch(manifest, label, n, engine, queries=None, retry=False, safe='moderate', pending=()):
    "Return the photos that `label` lacks of `n`; raise `CatdogError` if none are found, or drawings beside photographs"
    rows = manifest.of(label)
    old = [o for o in rows if o['status'] == 'missing' or retry and o['status'] not in _FINAL]
    again = [Photo(**{f.name: o[f.name] for f in fields(Photo)}) for o in old]
    if len(rows) >= n: return again
    try: found = search_terms(label, n, engine, queries, safe)
    except SearchError as e:
        if not again: raise
        print(f'{e}. The {len(again)} photos that were found earlier are tried again.')
        return again
    if not rows + found: raise CatdogError(f'nothing was found for {label!r}: try another word, or another engine')
    kept = [o['engine'] for o in manifest.rows.values() if o['status'] == 'ok']
    have,new = {_kind(o) for o in kept + [p.engine for p in pending]},{_kind(p.engine) for p in found}
    if have and new - have:
        raise DataError(f'{manifest.path} holds {" and ".join(have)}, and this search found {" and ".join(new)}: '
                          'give another folder, or another engine')
    return again + [p for p in found if (label, p.url) not in manifest.rows][:n - len(rows)]

def _forget_deleted(manifest, labels, retry):
    "Give deleted images that are to be fetched again the status 'missing', and report the others"
    rows = list(manifest.rows.values())
    gone = [a for a,b in zip(rows, as_found(manifest.path, rows)) if (a['status'], b['status']) == ('ok', 'missing')]
    for label in labels:
        mine = [o for o in gone if o['label'] == label]
        if not mine: continue
        again = retry or len(mine) == len(manifest.of(label, 'ok'))
        print(f'{len(mine)} images of {label} are no longer in {manifest.path}: '
              + ('they are fetched again.' if again else 'they are not fetched again without --retry.'))
        reset = dict(status='missing', reason='its file was deleted', file=None, phash=None, area=None)
        if again: manifest.add(*({**o, **reset} for o in mine))

def _check_kept(manifest, label):
    rows = as_found(manifest.path, manifest.of(label))   # the user may have moved them
    counts = Counter(o['status'] for o in rows)
    if counts['ok'] or counts['conflict']: return
    words = ', '.join(f'{k} {status}' for status,k in counts.most_common())
    (reason,_), = Counter(o['reason'] for o in rows).most_common(1)
    raise DataError(f'no image was kept for {label!r} ({words}; most often: {reason}): '
                      f'see {manifest.file}, and try another word or engine')

def _collect(labels, manifest, downloads, n, engine, queries, retry, safe):
    labels = parse_labels(labels, manifest.path, {label for label,_ in manifest.rows})
    _forget_deleted(manifest, labels, retry)
    collector = _Collector(manifest)
    def _decide(block):
        for label,photo,o in downloads.results(block): downloads.count(collector.decide(label, photo, o)['status'])
    for label in labels:
        pending = [photo for _,photo,_ in downloads.pending]
        try: photos = _photos_to_fetch(manifest, label, n, engine, queries, retry, safe, pending)
        except CatdogError: _decide(True); raise   # images of earlier labels are kept
        (manifest.path/label).mkdir(exist_ok=True)
        if engine == 'auto' and photos and photos[0].engine == 'sample': engine = 'sample'
        downloads.bar.total += len(photos) - n
        downloads.add(photos, label)
        _decide(False)
    _decide(True)
    manifest.rewrite()   # one line per URL, where some have changed their state
    for label in labels: _check_kept(manifest, label)

def collect(
    labels:list, # What to search for; each becomes a folder
    path:Path, # Folder for the images
    n:int, # Photos of each
    engine:str='auto', # As for `search_images`
    queries:list=None, # As for `search_terms`
    retry:bool=False, # Whether to try again what failed in an earlier run, and images that were deleted
    ignore_robots:list=None, # Opt-outs to ignore, if you may, such as 'noai'
    safe:str='moderate' # As for `search_images`
):
    "Search for each of `labels`, and download the photos that `path` lacks of `n`"
    check_writable(path)
    with _Downloads(Fetcher(_WORKERS, _TIMEOUT, ignore_robots), n*len(labels), signature=True) as downloads:
        try:
            path.mkdir(parents=True, exist_ok=True)
            with folder_lock(path): _collect(labels, Manifest(path), downloads, n, engine, queries, retry, safe)
        except OSError as e:
            raise CatdogError(f'{e.filename or path}: {e.strerror or e}. What was downloaded is kept: fix that, '
                              'then run the same command again') from e
