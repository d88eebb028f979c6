"""Search with one engine or with `auto`, which asks several in turn, and with several terms

The engines themselves, and the list `ENGINES`, are in `engines`."""

import inspect, os, socket, threading, time
from itertools import zip_longest
from urllib.parse import urlsplit

from ..core.errors import CatdogError, FetchError, SearchError
from ..core.files import check_new_file, write_atomic
from ..dataset.folder import parse_labels
from ..dataset.manifest import Photo
from .engines import AUTO, ENGINES, SEARCH_SECONDS
from .http import clean_url, proxy_for

SAFE = 'strict', 'moderate', 'off'

_PROBED = {}   # (host, port) -> (when it was probed, whether it could be reached)

def _endpoint(engine):
    "Return the URL of `engine`, and its host and port; None if its settings are missing"
    url = AUTO[engine]
    if engine == 'bing': url = os.environ.get('AZURE_SEARCH_KEY') and os.environ.get('CATDOG_BING_ENDPOINT')
    o = urlsplit(url or '')
    return o.hostname and (url, (o.hostname, o.port or (80 if o.scheme == 'http' else 443)))

def _probe(host, port):
    "Record in `_PROBED` if `host` can be reached"
    try: socket.create_connection((host, port), timeout=3).close()
    except (OSError, UnicodeError): return
    _PROBED[host, port] = time.monotonic(),True

def _reachable(safe='moderate'):
    "Return the names of the live engines that are configured and can be reached"
    found = {o: _endpoint(o) for o in AUTO if (safe != 'strict' or _has_safe_search(o)) and _endpoint(o)}
    direct = {address for url,address in found.values() if not proxy_for(url)}   # a proxy can reach any
    old = [o for o in direct if time.monotonic() - _PROBED.get(o, (-1e9,))[0] > 300]
    _PROBED.update((o, (time.monotonic(), False)) for o in old)
    threads = [threading.Thread(target=_probe, args=o, daemon=True) for o in old]
    for o in threads: o.start()
    end = time.monotonic() + 3.5   # without a network, resolving a name can take longer than the connection may
    for o in threads: o.join(max(0, end - time.monotonic()))
    return [name for name,(_,address) in found.items() if address not in direct or _PROBED[address][1]]

def _has_safe_search(engine): return 'safe' in inspect.signature(ENGINES[engine]).parameters

def _search(engine, term, n, safe):
    "Return photos from `engine`; raise `SearchError` if it lacks the safe search that is asked for"
    if _has_safe_search(engine): return ENGINES[engine](term, n, safe=safe)
    if safe == 'strict':
        raise SearchError(engine, 'it has no safe search: use another engine, or safe search "moderate"')
    return ENGINES[engine](term, n)

def _search_auto(term, n, safe):
    "Return photos from the live engines in turn, or from the sample web if none of them can be reached"
    photos,errors,answered,end = {},[],False,time.monotonic() + SEARCH_SECONDS
    for name in _reachable(safe):
        if time.monotonic() > end: break
        try: found = _search(name, term, n, safe)
        except SearchError as e:
            errors.append(e)
            if e.offline: _PROBED[_endpoint(name)[1]] = time.monotonic(),False
            continue
        answered = True
        for p in found: photos.setdefault(p.url, p)
        if len(photos) >= n: break
    if photos:
        for e in errors: print(f'{e}. What other engines found is kept.')
    elif said := [e for e in errors if not e.offline]:
        text = 'no engine gave anything. ' + '. '.join(map(str, said))
        raise SearchError('auto', text, term=all(e.term for e in said))
    elif not answered:
        photos = {p.url: p for p in ENGINES['sample'](term, n)}
        drawn = any(p.engine == 'sample' for p in photos.values())
        print('No search engine on the web can be reached: using '
              + ('the sample web, which draws images.' if drawn else 'the folder that the sample web serves.'))
    return list(photos.values())[:n]

def check_search(
    labels:list, # What to search for, or one word
    n:int, # Photos of each
    queries:list=None, # Terms with {} in place of the label
    engine:str='auto', # As for `search_images`
    safe:str='moderate' # As for `search_images`
) -> list: # The labels, as valid folder names
    "Validate the arguments of a search; raise `CatdogError` on any that cannot work"
    labels = parse_labels(labels)
    _check_engine(engine, safe)
    if n < 1: raise CatdogError(f'n is {n}: give a number of images, such as 150')
    if queries and not all('{}' in q for q in queries):
        raise CatdogError('a query has no {}, which stands for the label: write, for example, "{} outdoors"')
    return labels

def _check_engine(engine, safe):
    "Return `engine`, with 'auto' replaced by `CATDOG_ENGINE` if that is set"
    if safe not in SAFE: raise CatdogError(f'there is no safe search {safe!r}: use one of {", ".join(SAFE)}')
    if engine == 'auto': engine = os.environ.get('CATDOG_ENGINE') or 'auto'
    if engine in ('auto', *ENGINES): return engine
    raise CatdogError(f'there is no engine {engine!r}: use auto or one of {", ".join(ENGINES)}')

def search_images(
    term:str, # What to search for, as you would type it
    n:int=150, # Photos at most
    engine:str='auto', # One of `ENGINES`, or 'auto': several in turn (`CATDOG_ENGINE` overrides it)
    safe:str='moderate' # Safe search, for engines that have it: 'strict', 'moderate' or 'off'
) -> list[Photo]: # Without duplicates, best first
    "Return up to `n` photos that `engine` finds for `term`"
    engine = _check_engine(engine, safe)
    return _search_auto(term, n, safe) if engine == 'auto' else _search(engine, term, n, safe)

_VARIANTS = ('{}', '{} photo', '{} outdoors', '{} indoors', '{} close up')

def search_terms(
    label:str, # What the images should show
    n:int=150, # Photos at most
    engine:str='auto', # As for `search_images`
    queries:list=None, # Terms with {} in place of the label, such as '{} outdoors'; default: variants of `label`
    safe:str='moderate' # As for `search_images`
) -> list[Photo]: # Without duplicates
    "Return up to `n` photos for `label`, found with several terms"
    lists,urls,error,end = [],set(),None,time.monotonic() + SEARCH_SECONDS
    for q in queries or _VARIANTS:
        few = n if queries else min(n, 2*(n - len(urls)))   # variants find many of the same photos
        try: lists.append(search_images(q.replace('{}', label), few, engine, safe))
        except SearchError as e:
            error = e
            if not e.term: break
            continue
        urls.update(p.url for p in lists[-1])
        if time.monotonic() > end or not queries and len(urls) >= n: break
    if error:
        if not urls: raise error
        print(f'{error}. The {len(urls)} photos that other terms found are kept.')
    # given terms take turns, variants follow each other
    rows,photos = (zip_longest(*lists) if queries else lists),{}
    for p in (p for row in rows for p in row if p): photos.setdefault(p.url, p)
    return list(photos.values())[:n]

def save_urls(
    labels:list, # What to search for
    file:str|os.PathLike, # The Parquet file to write
    n:int=150, # URLs of each label
    engine:str='auto', # As for `search_images`
    queries:list=None, # As for `search_terms`
    safe:str='moderate' # As for `search_images`
): # A `pandas.DataFrame` with the columns url and caption
    "Search for `labels` and write the URLs to `file`, each with its label as caption; download nothing"
    import pandas as pd
    file,rows,error = check_new_file(file),[],None
    if file.suffix != '.parquet': raise CatdogError(f'{file} is not a .parquet file: give a name such as urls.parquet')
    for label in parse_labels(labels):
        try: found = search_terms(label, n, engine, queries, safe)
        except SearchError as e:
            error = e
            break
        for p in found:
            try: rows.append((clean_url(p.url), label))
            except FetchError: pass   # it cannot be requested
    if error and not rows: raise error
    df = pd.DataFrame(rows, columns=['url', 'caption'], dtype='str')
    write_atomic(file, df.to_parquet(index=False))
    if error: raise SearchError(error.engine, f'{error.text}. {file} has what was found before')
    return df
