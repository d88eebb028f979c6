"""The list of engines, `auto`, which asks several in turn, and searches with several terms"""

import os, socket, threading, time
from itertools import zip_longest
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from ..core.errors import ImageError, CatdogError, SearchError
from ..core.files import write_atomic
from ..dataset.folder import parse_labels
from ..dataset.manifest import Photo
from .engines import SEARCH_SECONDS, search_bing, search_commons, search_ddg, search_openverse, search_sample
from .http import mend_url

ENGINES = dict(bing=search_bing, ddg=search_ddg, openverse=search_openverse, commons=search_commons,
               sample=search_sample)

# The host of each engine that `auto` asks, in this order; that of Bing is in `CATDOG_BING_ENDPOINT`
_AUTO_HOSTS = dict(bing=None, ddg='duckduckgo.com', openverse='api.openverse.org', commons='commons.wikimedia.org')

def _endpoint(engine):
    "Host and port of `engine`, or None when it lacks its settings"
    if engine != 'bing': return _AUTO_HOSTS[engine],443
    o = urlsplit(os.environ.get('CATDOG_BING_ENDPOINT', ''))
    port = o.port or (443 if o.scheme == 'https' else 80)
    if os.environ.get('AZURE_SEARCH_KEY') and o.hostname: return o.hostname,port

_PROBED = {}   # (host, port) -> (when, whether it could be reached)

def _probe(host, port):
    "Note in `_PROBED` that `host` can be reached, if it can"
    try: socket.create_connection((host, port), timeout=3).close()
    except (OSError, UnicodeError): return
    _PROBED[host, port] = time.monotonic(),True

def _reachable():
    "Names of the engines on the web that can be reached and have what they need"
    endpoints = {name: _endpoint(name) for name in _AUTO_HOSTS}
    if getproxies().get('https'): return [name for name in endpoints if endpoints[name]]
    old = [o for o in set(endpoints.values()) if o and time.monotonic() - _PROBED.get(o, (-1e9,))[0] > 300]
    for o in old: _PROBED[o] = time.monotonic(),False
    threads = [threading.Thread(target=_probe, args=o, daemon=True) for o in old]
    for o in threads: o.start()
    end = time.monotonic() + 3.5   # a resolver without a network can take far longer than the connection's own time-out
    for o in threads: o.join(max(0, end - time.monotonic()))
    return [name for name,o in endpoints.items() if o and _PROBED[o][1]]

def _sample_photos():
    from ..sample.server import sample_web
    return sample_web().photos

def _search_auto(term, n):
    "Photos of the engines on the web in turn; of the sample web when none of them can be reached"
    photos,errors,end = {},[],time.monotonic() + SEARCH_SECONDS
    for name in _reachable():
        if time.monotonic() > end: break
        try: found = ENGINES[name](term, n)
        except SearchError as e:
            errors.append(e)
            if e.offline: _PROBED[_endpoint(name)] = time.monotonic(),False
            continue
        for p in found: photos.setdefault(p.url, p)
        if len(photos) >= n: break
    if photos:
        for e in errors: print(f'{e}. What other engines found is kept.')
        return list(photos.values())[:n]
    answered = [e for e in errors if not e.offline]
    if answered:
        text = 'no engine gave anything. ' + '. '.join(map(str, answered))
        raise SearchError('auto', text, term=all(e.term for e in answered))
    if _reachable(): return []
    instead = 'the folder that the sample web serves' if _sample_photos() else 'the sample web, which draws images'
    print(f'No search engine on the web can be reached: using {instead}.')
    return search_sample(term, n)

def check_engine(
    engine:str # One of `ENGINES`, or 'auto'
) -> str: # The same, but for 'auto' what `CATDOG_ENGINE` says, if it says anything
    "The `engine` that is meant; `CatdogError` when there is none of that name"
    if engine == 'auto': engine = os.environ.get('CATDOG_ENGINE') or 'auto'
    if engine in ('auto', *ENGINES): return engine
    raise CatdogError(f'there is no engine {engine!r}: use auto or one of {", ".join(ENGINES)}')

def search_images(
    term:str, # What to search for, as you would type it
    n:int=150, # How many at most
    engine:str='auto' # One of `ENGINES`, or 'auto': several in turn (`CATDOG_ENGINE` overrides it)
) -> list[Photo]: # Without duplicates, best first
    "Up to `n` photos that `engine` finds for `term`"
    engine = check_engine(engine)
    return (_search_auto if engine == 'auto' else ENGINES[engine])(term, n)

VARIANTS = ('{}', '{} photo', '{} outdoors', '{} indoors', '{} close up')

def _alternate(lists):
    "The first of each of `lists`, then the second of each, and so on"
    return [o for row in zip_longest(*lists) for o in row if o is not None]

def search_terms(
    label:str, # What the images shall show
    n:int=150, # How many at most
    engine:str='auto', # As for `search_images`
    queries:list=None # Terms with {} where the label goes, such as '{} outdoors'; None tops up with `VARIANTS`
) -> list[Photo]: # Without duplicates
    "Up to `n` photos for `label`, found with several terms"
    lists,photos,error,end = [],{},None,time.monotonic() + SEARCH_SECONDS
    for q in queries or VARIANTS:
        few = n if queries else min(n, 2*(n - len(photos)))   # of what a variant finds, much is there already
        try: lists.append(search_images(q.replace('{}', label), few, engine))
        except SearchError as e:
            error = e
            if not e.term: break
            continue
        photos.update((p.url, None) for p in lists[-1])
        if time.monotonic() > end or not queries and len(photos) >= n: break
    if error:
        if not photos: raise error
        print(f'{error}. The {len(photos)} photos that other terms found are kept.')
    # the terms that were asked for take turns, the variants follow each other
    photos = {}
    for p in _alternate(lists) if queries else (p for o in lists for p in o): photos.setdefault(p.url, p)
    return list(photos.values())[:n]

def check_search(
    labels:list, # What to look for, or one word
    n:int, # How many photos of each
    queries:list=None, # Terms with {} where the label goes, or None
    engine:str='auto' # As for `search_images`
) -> list: # The labels as words that can be folders
    "`labels`; `CatdogError` where they, `n`, `queries` or `engine` cannot be searched for"
    labels = parse_labels(labels)
    check_engine(engine)
    if n < 1: raise CatdogError(f'n is {n}: give a number of images, such as 150')
    if queries and not all('{}' in q for q in queries):
        raise CatdogError('a query has no {} in it, which is where the label goes: write such as "{} outdoors"')
    return labels

def _mended(photos):
    "The addresses of `photos` as browsers would ask for them, without those that nobody could"
    for p in photos:
        try: yield mend_url(p.url)
        except ImageError: pass

def save_urls(
    labels:list, # What to look for
    file:str|os.PathLike, # The Parquet file to write
    n:int=150, # How many addresses for each label
    engine:str='auto', # As for `search_images`
    queries:list=None # As for `search_terms`
): # A `pandas.DataFrame` with the columns url and caption
    "Search for `labels` and write the addresses to `file`, each with its label as its caption; fetch nothing"
    import pandas as pd
    file = Path(file)
    if file.suffix != '.parquet': raise CatdogError(f'{file} is no .parquet file: give a name such as urls.parquet')
    if not file.parent.is_dir(): raise CatdogError(f'there is no folder {file.parent}: make it first')
    rows,error = [],None
    for label in parse_labels(labels):
        try: rows += [(o, label) for o in _mended(search_terms(label, n, engine, queries))]
        except SearchError as e:
            error = e
            break
    if error and not rows: raise error
    df = pd.DataFrame(rows, columns=['url', 'caption'], dtype='str')
    write_atomic(file, df.to_parquet(index=False))
    if error: raise SearchError(error.engine, f'{error.text}. {file} has what was found before')
    return df
