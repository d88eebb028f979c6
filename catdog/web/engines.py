"""Search engines for images: one function each, from a term to a list of photos"""

import inspect, itertools, json, os, re, time
from contextlib import suppress
from urllib.parse import urlsplit
from bs4 import BeautifulSoup
from ..core.errors import CatdogError, FetchError, ImageError, SearchError
from ..core.files import check_new_file, write_atomic
from ..dataset.folder import parse_labels
from ..dataset.manifest import Photo
from .http import BUSY, TRIES, ask, clean_url, proxy_for, retry_delay

def _plain_text(o):
    "Return the HTML text `o` as one line of plain text, without what a browser hides; '' if it is not text"
    if not isinstance(o, str): return ''
    o = o.encode('utf8', 'replace').decode()   # JSON may hold half a character, a file may not
    if re.search(r'<[a-zA-Z/!]|&#?\w+;', o):
        soup = BeautifulSoup(o, 'lxml')   # html.parser does not end a paragraph where the next one starts
        hidden = '[style*="display: none"], [style*="display:none"], [hidden], head, style, script'
        for e in soup.select(hidden): e.extract()
        o = soup.get_text(' ')
    return ' '.join(o.split())

def _get(o, *keys):
    for k in keys: o = o.get(k) if isinstance(o, dict) else None
    return o

# Protocol -> the keys of the results in its answer, and its names for the fields of a `Photo` that are named otherwise
_PROTOCOLS = dict(bing=(['value'], dict(url='contentUrl', title='name', page_url='hostPageUrl')),
                  ddg=(['results'], dict(url='image', page_url='url')),
                  openverse=(['results'], dict(page_url='foreign_landing_url')),
                  commons=(['query', 'pages'], {}))

def _read_commons(o):
    info = next(iter(o.get('imageinfo') or [{}]), {}) if isinstance(o.get('imageinfo'), list) else {}
    small = 'thumb' if _get(info, 'thumburl') else ''
    return dict(url=_get(info, f'{small}url'), title=re.sub(r'^File:|\.\w{3,4}$', '', _plain_text(o.get('title'))),
                page_url=_get(info, 'descriptionurl'), width=_get(info, f'{small}width'),
                height=_get(info, f'{small}height'), license=_get(info, 'extmetadata', 'LicenseShortName', 'value'),
                creator=_get(info, 'extmetadata', 'Artist', 'value'))

def _read(protocol, o):
    "Return the fields of a `Photo` in the result `o`, by name"
    if protocol == 'commons': return _read_commons(o)
    names = _PROTOCOLS[protocol][1]
    res = {k: o.get(names.get(k, k)) for k in ('url', 'title', 'page_url', 'width', 'height', 'creator')}
    if protocol == 'openverse' and (name := _plain_text(o.get('license'))):
        license = {'cc0': 'CC0', 'pdm': 'Public Domain Mark'}.get(name.lower(), f'CC {name.upper()}')
        res['license'] = f'{license} {_plain_text(o.get("license_version"))}'
    return res

def _positive_int(o):
    "Return `o` as a number from 1 to 999,999,999, or None"
    try: return int(o) if 0 < int(o) < 10**9 else None
    except (TypeError, ValueError, OverflowError): return None

def _photo(url=None, title='', page_url='', width=None, height=None, license='', creator='', **kw):
    "Return a `Photo` of values of any type, or None without a `url`, which stays as it is"
    if not isinstance(url, str) or not url.strip(): return None
    if not isinstance(page_url, str) or not re.fullmatch(r'https?://[^\s\ud800-\udfff]+', page_url): page_url = ''
    return Photo(re.sub('[\ud800-\udfff]', '\ufffd', url), _plain_text(title), page_url, _positive_int(width),
                 _positive_int(height), _plain_text(license), _plain_text(creator), **kw)

def _parse_answer(protocol, answer, term='', engine=None):
    "Return the photos in `answer`, JSON of `protocol` (a key of `_PROTOCOLS`); raise `SearchError` if it has no list"
    engine,items = engine or protocol,_get(answer, *_PROTOCOLS[protocol][0])
    if protocol == 'commons' and isinstance(answer, dict):
        if error := _plain_text(_get(answer, 'error', 'info')):   # with status 200
            raise SearchError('commons', f'it answered "{error[:200]}"; try again later, or another engine')
        if items is None: items = []   # without results there is no 'query'
        if isinstance(items, list): items = sorted(items, key=lambda o: _positive_int(_get(o, 'index')) or 10**9)
    if not isinstance(items, list):
        raise SearchError(engine, 'its answer does not follow its documentation; try another engine')
    return [p for o in items if isinstance(o, dict) and (p := _photo(**_read(protocol, o), engine=engine, term=term))]

_ADVICE = {400: 'try another term', 401: 'check the key', 403: 'check the key, or try another engine',
           404: 'check the URL of the endpoint', 429: 'too many requests: wait a minute, or try another engine'}
_SEARCH_SECONDS = 300   # a search requests no further pages after this

def _complaint(body):
    try: o = json.loads(body)
    except (ValueError, RecursionError): return ''
    errors = _get(o, 'errors')
    if isinstance(errors, list) and errors: o = errors[0]
    places = ('error', 'message'),('error', 'info'),('message',),('detail',)
    return next((f' ({text[:200]})' for keys in places if (text := _plain_text(_get(o, *keys)))), '')

_MAX_SEARCH_WAIT = 65   # seconds; Openverse allows 20 requests a minute
_NEED_CONTACT = {'openverse': 'Openverse', 'commons': 'Wikimedia'}
_reported = set()   # engines whose missing contact has been reported
def _check_contact(engine):
    "Print what to set if no contact is set, once for each `engine`"
    if os.environ.get('CATDOG_CONTACT', '').strip() or engine in _reported: return
    _reported.add(engine)
    print(f'{_NEED_CONTACT[engine]} asks for a contact: set CATDOG_CONTACT to your e-mail address or web page.')

def _get_json(engine, url, params, headers=None):
    "Return the JSON that `engine` answers at `url`, retrying while it is busy; raise `SearchError` if it fails"
    try:
        for attempt in range(TRIES):
            status,body,asked = ask(url, params, headers)
            seconds = retry_delay(asked, attempt)
            if status not in BUSY or seconds > _MAX_SEARCH_WAIT or attempt == TRIES - 1: break
            if seconds > 1: print(f'{engine} asks to wait: {seconds:.0f} s', flush=True)
            time.sleep(seconds)
    except ImageError as e: raise SearchError(engine, f'its answer has {e}; try another engine') from None
    except FetchError as e:
        if e.reason == 'invalid': raise SearchError(engine, f'{url!r} is {e}; check the endpoint') from None
        text = f'{urlsplit(url).hostname} cannot be reached ({e}); check the connection'
        raise SearchError(engine, text, offline='pysocks' not in text) from None
    if status >= 300:
        advice = _ADVICE.get(status, 'try again later, or another engine')
        if status == 403 and engine in _NEED_CONTACT: advice = 'set CATDOG_CONTACT, or try another engine'
        raise SearchError(engine, f'it answered {status}{_complaint(body)}; {advice}', term=status == 400)
    if engine in _NEED_CONTACT: _check_contact(engine)
    try: return json.loads(body)
    except (ValueError, RecursionError):
        raise SearchError(engine, 'its answer is not JSON; check the endpoint, or try another engine') from None

def _all_pages(engine, n, pages):
    "Return up to `n` photos from as many `pages` as needed; raise `SearchError` if the first one fails"
    photos,barren,end = {},0,time.monotonic() + _SEARCH_SECONDS
    try:
        for found in pages:
            before = len(photos)
            for p in found: photos.setdefault(p.url, p)
            barren = barren + 1 if len(photos) == before else 0
            if barren == 3 or len(photos) >= n: break   # some services repeat themselves forever
            if time.monotonic() > end: raise SearchError(engine, f'the search took longer than {_SEARCH_SECONDS} s')
    except SearchError as e:
        if not photos: raise
        print(f'{e}. The {len(photos)} photos that it found before are kept.')
    return list(photos.values())[:n]

def _bing_pages(term, n, endpoint, key, engine, safe='moderate'):
    "Return up to `n` photos that the service at `endpoint`, which speaks the Bing v7 protocol, finds for `term`"
    params = dict(q=term, count=min(150, n), minHeight=128, minWidth=128, safeSearch=safe.title())
    def _pages():
        offset,following = -1,0
        while following > offset:
            offset = following
            answer = _get_json(engine, endpoint, {**params, 'offset': offset}, {'Ocp-Apim-Subscription-Key': key})
            yield _parse_answer('bing', answer, term, engine)
            following = _positive_int(_get(answer, 'nextOffset')) or 0
    return _all_pages(engine, n, _pages())

def _search_bing(term, n=150, safe='moderate'):
    "Search with the Bing v7 protocol at `CATDOG_BING_ENDPOINT`, with the key in `AZURE_SEARCH_KEY`"
    key,endpoint = os.environ.get('AZURE_SEARCH_KEY'),os.environ.get('CATDOG_BING_ENDPOINT')
    if not key: raise SearchError('bing', 'there is no key: set AZURE_SEARCH_KEY, or use another engine')
    if not endpoint: raise SearchError('bing', 'Microsoft closed its own endpoint on 2025-08-11: '
        'set CATDOG_BING_ENDPOINT to one that speaks the v7 protocol, or use another engine')
    return _bing_pages(term, n, endpoint, key, 'bing', safe)

def _ddg_error(text):
    offline = any(o in text for o in ('DNSError', 'ConnectError', 'TimeoutError', 'timed out', 'error sending request'))
    text = f'DuckDuckGo did not answer ({text.split("(")[0][:100]}); wait a minute, or try another engine'
    return SearchError('ddg', text, offline)

def _ddg_pages(term, safe):
    from ddgs.engines.duckduckgo_images import DuckduckgoImages
    class _Raw(DuckduckgoImages):
        def extract_results(self, html_text): return json.loads(html_text)
    engine = _Raw(proxy=os.environ.get('DDGS_PROXY') or proxy_for('https://duckduckgo.com'), timeout=10)
    for page in itertools.count(1):
        try: answer = engine.search(term, safesearch={'strict': 'on'}.get(safe, safe), page=page)
        # the package lets errors of its parsers through
        except Exception as e: raise _ddg_error(str(e) or type(e).__name__) from None
        if answer is None: raise _ddg_error('perhaps too many requests')
        if not (found := _parse_answer('ddg', answer, term)): return   # there is no mark on the last page
        yield found

def _search_ddg(term, n=150, safe='moderate'):
    if photos := _all_pages('ddg', n, _ddg_pages(term, safe)): return photos
    raise SearchError('ddg', f'DuckDuckGo found nothing for {term!r}, or had too many requests; '
                             'wait a minute, or try another engine', term=True)

_OPENVERSE = 'https://api.openverse.org/v1/images/'
def _search_openverse(term, n=150, safe='moderate'):
    mature = {'mature': 'true'} if safe == 'off' else {}
    def _pages():
        for page in itertools.count(1):
            answer = _get_json('openverse', _OPENVERSE, dict(q=term, page=page, page_size=20, **mature))
            yield _parse_answer('openverse', answer, term)
            if page >= (_positive_int(_get(answer, 'page_count')) or 0): return
    return _all_pages('openverse', n, _pages())

_COMMONS = 'https://commons.wikimedia.org/w/api.php'
def _search_commons(term, n=150):
    "Search Wikimedia Commons, which has no safe search"
    params = dict(action='query', format='json', formatversion=2, generator='search', gsrnamespace=6, gsrlimit=50,
                  gsrsearch=f'{term} filetype:bitmap', prop='imageinfo', iiprop='url|size|extmetadata', iiurlwidth=960,
                  iiextmetadatafilter='LicenseShortName|Artist')
    def _pages():
        following = {}
        while isinstance(following, dict):
            answer = _get_json('commons', _COMMONS, {**params, **following})
            yield _parse_answer('commons', answer, term)
            following = _get(answer, 'continue') or None
    return _all_pages('commons', n, _pages())

def _search_sample(term, n=150, safe='moderate'):
    "Search the sample web of this process; start one if there is none"
    from ..sample.server import sample_web
    return _bing_pages(term, n, sample_web().endpoint, 'sample', 'sample', safe)

# Engine -> a function of a term, a number and, if it has safe search, `safe`; it returns `Photo`s, best first
ENGINES = dict(bing=_search_bing, ddg=_search_ddg, openverse=_search_openverse, commons=_search_commons,
               sample=_search_sample)
_AUTO = 'bing','ddg','openverse','commons'   # engines that `auto` asks, in this order
_SAFE = 'strict', 'moderate', 'off'
_unreachable = {}   # engine -> when it could not be reached

def _live_engines(safe):
    "Return the engines of `_AUTO` that are configured, without those that could not be reached within five minutes"
    has_bing = os.environ.get('AZURE_SEARCH_KEY') and os.environ.get('CATDOG_BING_ENDPOINT')
    return [o for o in _AUTO if (o != 'bing' or has_bing) and (safe != 'strict' or _has_safe_search(o))
            and time.monotonic() > _unreachable.get(o, -1e9) + 300]

def _has_safe_search(engine): return 'safe' in inspect.signature(ENGINES[engine]).parameters

def _search(engine, term, n, safe):
    "Return photos from `engine`; raise `SearchError` if it lacks the safe search that is asked for"
    if _has_safe_search(engine): return ENGINES[engine](term, n, safe=safe)
    if safe == 'strict':
        raise SearchError(engine, 'it has no safe search: use another engine, or safe search "moderate"')
    return ENGINES[engine](term, n)

def _search_auto(term, n, safe):
    "Return photos from the live engines in turn, or from the sample web if none of them can be reached"
    photos,errors,answered,end = {},[],False,time.monotonic() + _SEARCH_SECONDS
    for name in _live_engines(safe):
        if time.monotonic() > end: break
        try: found = _search(name, term, n, safe)
        except SearchError as e:
            errors.append(e)
            if e.offline: _unreachable[name] = time.monotonic()
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
        print('No search engine on the web can be reached: using the sample web, which draws images.')
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
    if safe not in _SAFE: raise CatdogError(f'there is no safe search {safe!r}: use one of {", ".join(_SAFE)}')
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
    lists,urls,error,end = [],set(),None,time.monotonic() + _SEARCH_SECONDS
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
    rows,photos = (itertools.zip_longest(*lists) if queries else lists),{}
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
    "Search for `labels` and write the URLs to `file`, each with its label as caption, also if a later search fails"
    import pandas as pd
    file,rows = check_new_file(file),[]
    if file.suffix != '.parquet': raise CatdogError(f'{file} is not a .parquet file: give a name such as urls.parquet')
    try:
        for label in parse_labels(labels):
            for p in search_terms(label, n, engine, queries, safe):
                with suppress(FetchError): rows.append((clean_url(p.url), label))   # or it cannot be requested
    finally:   # also when a later search is refused
        df = pd.DataFrame(rows, columns=['url', 'caption'], dtype='str')
        if rows: write_atomic(file, df.to_parquet(index=False))
    return df
