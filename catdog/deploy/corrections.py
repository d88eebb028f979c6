"""Images that visitors of the app or the page correct, kept as a data set if the owner wants that"""

import json, os, sys
from pathlib import Path

from ..core.errors import CatdogError
from ..core.files import check_writable, content_id, folder_lock, walk_files, write_atomic
from ..core.images import jpeg_bytes, open_image

MAX_KEPT = 1000   # images
NOTICE = (f'Images that you correct are kept by the owner of this page, {MAX_KEPT:,} at most, to train with; '
          'all others are forgotten.')

def make_kept(
    folder:str|os.PathLike # For the images; created if missing
) -> str: # Its absolute path
    "Raise `CatdogError` unless images can be kept in `folder`"
    check_writable(folder)
    try: Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as e: raise CatdogError(f'{folder}: is no folder, and cannot be made one ({e.strerror})') from None
    return os.path.abspath(folder)

def keep_image(
    folder:str|os.PathLike, # A data set, from `make_kept`
    data:bytes, # The content of a file that `open_image` opens
    label:str, # What the visitor says that it shows
    where:str, # 'app' or 'page'
    answer # What the model said
) -> str: # For the visitor
    "Keep an image without its metadata, once, with a row in the manifest; raise `CatdogError` if that fails"
    if label.startswith('.') or {'/', '\\'} & {*label}:
        raise CatdogError('It cannot be kept: its label is no name of a folder.')
    data,folder = jpeg_bytes(open_image(data, max_side=1024)),Path(folder)
    id = content_id(data)
    row = dict(label=label, file=f'{label}/{id}.jpg', status='ok', reason=f'the {where} said {answer}',
               url=f'{where}:{id}', engine=where)
    try:
        with folder_lock(folder, 10):
            kept = [o.stem for o in walk_files(folder) if o.suffix == '.jpg']
            if id in kept: return 'It has been kept already.'
            if room := len(kept) < MAX_KEPT:
                (folder/label).mkdir(exist_ok=True)
                write_atomic(folder/label/f'{id}.jpg', data)
                with (folder/'manifest.jsonl').open('a', encoding='utf8') as f: print(json.dumps(row), file=f)
    except (OSError, CatdogError) as e:
        print(f'{folder}: an image cannot be kept: {e}', file=sys.stderr, flush=True)   # not for visitors
        raise CatdogError('It cannot be kept.') from None
    if not room: raise CatdogError(f'It is not kept: {MAX_KEPT:,} images are there already.')
    return f'Thank you: kept as {label}.'
