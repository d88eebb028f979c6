"""Predictions for many images: rows for Python, lines for a terminal, a resumable CSV or Parquet file, a bucket on Dask

A million images take hours, and the run may be stopped. So each batch of predictions is committed to a small SQLite
database beside the file, and the next run of the same command continues from there. A prediction counts as long as the
model, and the size and modification time of the image, are the same. SQLite's lock refuses a second run.

A bucket with a hundred million images is work for many machines: Dask distributes it, and fsspec reads and writes
folders, `s3://`, `gs://` and many others. In a clone, `pip install '.[cluster]'` installs both."""

import csv, itertools, json, os, re, sqlite3, sys
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from fastcore.basics import chunked
from ..core.errors import CatdogError, DataError, ImageError
from ..core.files import batches_ahead, check_new_file, content_id, is_image_name, walk_files
from .predictor import Classifier

def _row(path, answer):
    "Return `answer`, a `Prediction` or an `ImageError`, about the image at `path` as a flat dict"
    if isinstance(answer, ImageError):   # the reason may contain the file name
        return dict(file=str(path), error=answer.reason.removeprefix(f'{path}: ').replace(f': {str(path)!r}', ''))
    probabilities = {f'p_{label}': round(p, 6) for label,p in answer.probabilities.items()}
    return dict(file=str(path), label=answer.label, probability=round(answer.probability, 6), sure=answer.sure,
                doubt=answer.doubt or None, text=str(answer), **probabilities)

def answer_rows(
    classifier:Classifier, # What predicts
    paths, # Any iterable of paths, or of what `read` takes
    read=lambda path: path # Returns what `Classifier.predict` takes for each of `paths`; may raise `ImageError`
): # Yields dicts, in order: file, label, probability, sure, doubt, text, p_ and each label; or file and error
    "Predict each of `paths`, while threads open the next ones"
    def opened(path):
        try: return path,classifier.pixels(read(path))
        except ImageError as e: return path,e
    for batch in batches_ahead(opened, paths, 32):
        answers = iter(classifier.answers([o for _,o in batch if not isinstance(o, ImageError)]))
        yield from (_row(path, o if isinstance(o, ImageError) else next(answers)) for path,o in batch)

def found_files(
    paths # Images, and folders of images
): # Yields paths: images in a stable order, and folders that cannot be read
    "Yield the images among `paths` and in the folders among them"
    for path in map(Path, paths):
        unread = []
        if os.path.isdir(path): yield from filter(is_image_name, walk_files(path, unread.append))
        else: yield path
        yield from (Path(o.filename) for o in unread)

def check_paths(
    paths # Images, and folders of images
):
    "Raise `CatdogError` if one of `paths` is a URL, or if there are no images"
    for o in map(str, paths):
        if re.match('[a-z][a-z0-9+.-]+:/', o, re.I) and not os.path.exists(o):
            raise CatdogError(f'{o}: is a URL, but only files can be read: download it first, then give the file')
    if not any(True for _ in found_files(paths)):
        raise DataError('no images: give some files, or a folder with images in it')

def print_rows(
    rows # From `answer_rows`
) -> int: # Rows with an error
    "Print `rows`, one a line; those with an error go to stderr"
    bad = 0
    for row in rows:
        bad += 'error' in row
        print(f'{row["file"]}: {row.get("error") or row["text"]}', file=sys.stderr if 'error' in row else sys.stdout)
    return bad

def check_out_file(
    out:str|os.PathLike # A name that ends in .csv or .parquet, in a folder that exists
) -> Path: # `out`
    "Raise `CatdogError` if no predictions can be written to `out`"
    out = Path(out)
    if out.suffix not in ('.csv', '.parquet'): raise CatdogError(f'{out}: give a name that ends in .csv or .parquet')
    if out.suffix == '.parquet' and not find_spec('pyarrow'):
        raise CatdogError(f'{out}: for Parquet, pip install pyarrow; or give a name that ends in .csv')
    return check_new_file(out)

def _utf8(path):
    "Return `path` as text that Parquet can hold: bytes that are not UTF-8 become backslash escapes"
    return os.fsencode(path).decode(errors='backslashreplace')

_TYPES = dict(file='string', label='string', probability='float64', sure='boolean', doubt='string', text='string')
def _columns(labels): return {**_TYPES, **{f'p_{o}': 'float64' for o in labels}, 'error': 'string'}

def _write_csv(file, columns, rows):
    with open(file, 'w', newline='', encoding='utf8', errors='surrogateescape') as f:
        csv.writer(f).writerows(itertools.chain([columns], rows))

def _write_parquet(file, columns, rows):
    "Write `rows`, lists of values, under `columns` as Parquet, in row groups of 20,000"
    import pyarrow as pa
    from pyarrow import parquet
    types = dict(string=pa.string(), boolean=pa.bool_(), float64=pa.float64())
    schema = pa.schema([(name, types[kind]) for name,kind in columns.items()])
    with parquet.ParquetWriter(file, schema) as writer:
        for some in chunked(([_utf8(o[0]), *o[1:]] for o in rows), 20_000):
            writer.write_table(pa.table([pa.array(o, t) for o,t in zip(zip(*some), schema.types)], schema=schema))

def _write(out, columns, rows):
    "Write `rows` to a temporary file, then rename it to `out`"
    new = out.with_name(f'.{out.name}.new')
    try:
        (_write_parquet if out.suffix == '.parquet' else _write_csv)(new, columns, rows)
        os.replace(new, out)
    finally: new.unlink(missing_ok=True)

def _stamp(path, model):
    "Return text that tells whether the image at `path` or the `model` (an ID) has changed since"
    try: return f'{model} {os.stat(path).st_size} {os.stat(path).st_mtime_ns}'
    except (OSError, ValueError): return f'{model} '

def _open_db(part):
    "Open the database `part`, locked for other processes until it is closed"
    db = sqlite3.connect(part, timeout=0)
    try:
        db.execute('PRAGMA locking_mode = EXCLUSIVE')
        db.execute('BEGIN EXCLUSIVE')
        db.execute('CREATE TABLE IF NOT EXISTS answers (file BLOB PRIMARY KEY, stamp TEXT, row TEXT)')
        db.commit()
    except sqlite3.Error as e:
        db.close()
        if isinstance(e, sqlite3.OperationalError): raise
        part.unlink()   # it is not a database
        return _open_db(part)
    return db

@contextmanager
def _answers_db(out):
    "Yield the database of predictions for `out`; remove it unless there is an error, raised as `CatdogError`"
    part = out.with_name(f'.{out.name}.part')
    try:
        with closing(_open_db(part)) as db: yield db
        part.unlink()
    except (OSError, sqlite3.Error) as e:
        if 'locked' in str(e):
            raise CatdogError(f'another process is writing {out}: try again when it has finished') from e
        raise CatdogError(f'{out}: cannot be written ({getattr(e, "strerror", None) or e}): fix that, then run the '
                          'same command again; it continues from the predictions so far') from e

def write_file(
    classifier:Classifier, # What predicts
    paths, # Images, and folders of images
    out:Path, # From `check_out_file`
    print_errors:bool=False # Whether to print why an image has no prediction
) -> int: # Rows with an error
    "Write predictions for `paths` to `out`, with a progress bar; resume an interrupted run"
    from tqdm.auto import tqdm
    columns,model,n,bad = _columns(classifier.labels),content_id(classifier.file),0,0
    todo = {}   # path -> stamp from before it is opened, so that the next run predicts one that changes meanwhile
    with _answers_db(out) as db:
        def all_rows():
            nonlocal bad
            for path in found_files(paths):
                for row, in db.execute('SELECT row FROM answers WHERE file = ?', (os.fsencode(path),)):
                    values = [str(path), *json.loads(row)]
                    bad += values[-1] is not None
                    yield values
        for n,path in enumerate(found_files(paths), 1):
            file,stamp = os.fsencode(path),_stamp(path, model)
            if not db.execute('SELECT 1 FROM answers WHERE file = ? AND stamp = ?', (file, stamp)).fetchone():
                todo[str(path)] = stamp
        known = n - len(todo)
        if known: print(f'{known:,} of {n:,} images are predicted already: continuing from there.', file=sys.stderr)
        with tqdm(total=n, desc='Predicting', unit=' images', delay=1) as bar:
            bar.update(known)
            for rows in chunked(answer_rows(classifier, todo), 32):
                new = [(os.fsencode(o['file']), todo[o['file']], json.dumps([o.get(k) for k in [*columns][1:]]))
                       for o in rows]
                with db: db.executemany('INSERT OR REPLACE INTO answers VALUES (?, ?, ?)', new)
                if print_errors: print_rows(o for o in rows if 'error' in o)
                bar.update(len(rows))
        _write(out, columns, all_rows())
    return bad

def _read_url(url):
    import fsspec
    try:
        with fsspec.open(url) as f: return f.read()
    except OSError as e: raise ImageError(f'cannot be read ({e})', 'missing') from None

def _urls(folder):
    "Return the URLs of the images in `folder`, a path or URL that fsspec knows, without hidden files and folders"
    import fsspec
    fs,root = fsspec.url_to_fs(str(folder))
    return [fs.unstrip_protocol(o) for o in sorted(fs.find(root))
            if is_image_name(name := o.removeprefix(root)) and '/.' not in f'/{name}']

def _frame(classifier, urls):
    import pandas as pd
    columns = _columns(classifier.labels)
    rows = [dict(o, file=_utf8(o['file'])) for o in answer_rows(classifier, urls, read=_read_url)]
    return pd.DataFrame(rows, columns=[*columns]).astype(columns)

_TASK_SIZE = 500   # images that a worker gets at a time
def predict_bucket(
    folder:str, # Folder or bucket of images, as fsspec writes it: 'images', 's3://bucket/images'
    out:str, # Folder or bucket for the Parquet files, in the same form
    model:str=None # Model folder on this machine; default: that of `Classifier()`
) -> str: # `out`
    "Predict each image in `folder` with the workers of Dask, and write Parquet files to `out`"
    if not find_spec('dask'): raise CatdogError("Dask is not installed: in a clone, pip install '.[cluster]'")
    import dask, fsspec
    from dask import dataframe
    if any(o.endswith('.parquet') for o in fsspec.url_to_fs(str(out))[0].find(str(out))):   # Dask would keep some
        raise DataError(f'{out}: has Parquet files already; give another folder')
    classifier,urls = Classifier(model),_urls(folder)
    if not urls: raise DataError(f'{folder}: there are no images in it')
    sent = dask.delayed(classifier)   # once to each worker, not once with each task
    parts = [dask.delayed(_frame)(sent, urls[i:i+_TASK_SIZE]) for i in range(0, len(urls), _TASK_SIZE)]
    dataframe.from_delayed(parts, meta=_frame(classifier, [])).to_parquet(str(out), write_index=False)
    return out
