"""The engines against servers that speak their protocols, and complain as they do.
What fits in a cell is in nbs/web/engines.ipynb and nbs/web/json_api.ipynb."""
import os, random, socket
from collections import Counter
from contextlib import contextmanager
from functools import partial

import pytest

from catdog.web import engines
from catdog.web.download import download_images
from catdog.web.http import TRIES
from catdog.web.json_api import SearchError
from catdog.web.search import ENGINES, search_images
from web_helpers import serve

# --- Each of these answers as its service documents, and complains as it does.

def page_of(i): return f'https://pictures.example/{i}.jpg'

def bing(total, path, params, headers):
    if not headers.get('Ocp-Apim-Subscription-Key'):
        return 401, {}, {'error': {'code': '401', 'message': 'Access denied due to invalid subscription key.'}}
    count,offset = int(params.get('count', 35)),int(params.get('offset', 0))
    if not params.get('q') or not 0 < count <= 150:
        errors = [{'code': 'InvalidRequest', 'message': 'Parameter has invalid value.'}]
        return 400, {}, {'_type': 'ErrorResponse', 'errors': errors}
    count = min(count, 50)   # it may give fewer than it is asked for, and the last of a page again
    some = range(offset, min(offset + count, total))
    return 200, {}, {'_type': 'Images', 'totalEstimatedMatches': total, 'nextOffset': offset + len(some), 'value': [
        dict(name=f'Cat {i}', contentUrl=page_of(i), hostPageUrl=f'https://example/{i}', width=800, height=600)
        for i in ([offset - 1] if offset else []) + list(some)]}

def openverse(total, path, params, headers):
    page,size = int(params.get('page', 1)),int(params.get('page_size', 20))
    if size > 20: return 401, {}, {'detail': 'page_size must be between 1 & 20 for anonymous requests.'}
    pages = -(-total//20)
    if page > max(1, pages): return 404, {}, {'detail': 'Invalid page.'}
    return 200, {}, dict(result_count=total, page_count=pages, page_size=20, page=page, results=[
        dict(id=str(i), title=f'Cat {i}', foreign_landing_url=f'https://example/{i}', url=page_of(i), width=800,
             height=600, creator='somebody', license='by', license_version='4.0', provider='flickr')
        for i in range(20*(page - 1), min(20*page, total))])

def commons(total, path, params, headers):
    need = dict(action='query', format='json', formatversion='2', generator='search', gsrnamespace='6',
                prop='imageinfo')
    if wrong := {k for k in need if params.get(k) != need[k]}:
        return 200, {}, {'error': {'code': 'badvalue', 'info': f'Unrecognized value for {wrong}'}}
    assert {'url', 'size', 'extmetadata'} <= set(params['iiprop'].split('|'))
    assert headers['User-Agent'].startswith('catdog/')
    start,limit = int(params.get('gsroffset', 0)),int(params.get('gsrlimit', 10))
    some = list(range(start, min(start + limit, total)))
    pages = [dict(pageid=i, ns=6, title=f'File:Cat {i}.jpg', index=i + 1, imageinfo=[dict(
        size=10, width=4000, height=3000, url=f'https://example/full/{i}.jpg', descriptionurl=f'https://example/{i}',
        thumburl=page_of(i), thumbwidth=960, thumbheight=720, extmetadata={
            'LicenseShortName': {'value': 'CC BY 4.0'}, 'Artist': {'value': '<b>somebody</b>'}})]) for i in some]
    answer = {'batchcomplete': True}
    if pages: answer['query'] = {'pages': random.Random(0).sample(pages, len(pages))}   # not in the order of rank
    if some and some[-1] + 1 < total: answer['continue'] = {'gsroffset': some[-1] + 1, 'continue': 'gsroffset||'}
    return 200, {}, answer

def ddg(total, path, params, headers):
    if path == '/': return 200, {}, b'<html><script>vqd="4-123";</script></html>'
    if params.get('vqd') != '4-123': return 403, {}, b'If this error persists, please let us know'
    start = int(params.get('s', 0))
    return 200, {}, {'results': [
        dict(title=f'Cat {i}', image=page_of(i), thumbnail='https://example/t', url=f'https://example/{i}', width=800,
             height=600, source='Bing') for i in range(start, min(start + 100, total))]}

SERVICES = dict(bing=bing, openverse=openverse, commons=commons, ddg=ddg)

@pytest.fixture
def engine_at(monkeypatch):
    "A function that sends engine `name` to the server at `url`"
    def _at(name, url):
        if name == 'bing':
            monkeypatch.setenv('AZURE_SEARCH_KEY', 'XXX')
            monkeypatch.setenv('CATDOG_BING_ENDPOINT', f'{url}/v7.0/images/search')
        elif name == 'ddg':
            from ddgs.engines.duckduckgo_images import DuckduckgoImages
            from ddgs.utils import _extract_vqd
            monkeypatch.setattr(DuckduckgoImages, 'search_url', f'{url}/i.js')
            def _vqd(self, q): return _extract_vqd(self.http_client.get(f'{url}/', params={'q': q}).content, q)
            monkeypatch.setattr(DuckduckgoImages, '_get_vqd', _vqd)
        else: monkeypatch.setattr(engines, name.upper(), url)
        return partial(search_images, engine=name)
    return _at

@pytest.fixture(params=SERVICES)
def name(request): return request.param

@pytest.fixture
def search(name, engine_at):
    "A function that makes the engine called `name` search against a server that answers with `answer`"
    @contextmanager
    def _search(answer):
        with serve(answer) as (url, asked): yield engine_at(name, url), asked
    return _search

def test_paging(name, search):
    with search(partial(SERVICES[name], 170)) as (find, asked):
        assert [p.url for p in find('cat', 130)] == [page_of(i) for i in range(130)]
        assert [p.url for p in find('cat', 999)] == [page_of(i) for i in range(170)]   # there are no more
        assert len(asked) < 30   # and it does not ask for ever
        p = find('cat', 1)[0]
    assert (p.title, p.page_url, p.engine, p.term) == ('Cat 0', 'https://example/0', name, 'cat')
    assert (p.width, p.height) == ((960, 720) if name == 'commons' else (800, 600))
    assert (p.license, p.creator) == (('CC BY 4.0', 'somebody') if name in ('openverse', 'commons') else ('', ''))

def test_nothing_found(name, search):
    with search(partial(SERVICES[name], 0)) as (find, asked):
        if name == 'ddg':   # the package cannot tell this from being sent away
            with pytest.raises(SearchError, match="gave nothing for 'cat'"): find('cat', 10)
        else: assert find('cat', 10) == []
    assert len(asked) <= 2

def test_error_page(name, search):
    with search(lambda *args: (500, {'Retry-After': '0'}, b'<html>Something went wrong</html>')) as (find, asked):
        said = f'^{name}: .*' + ('' if name == 'ddg' else 'answered 500.*try')
        with pytest.raises(SearchError, match=said): find('cat', 10)
    assert name == 'ddg' or len(asked) == TRIES

def test_what_the_service_says_is_passed_on(engine_at, monkeypatch):
    with serve(partial(bing, 10)) as (url, asked):
        find = engine_at('bing', url)
        monkeypatch.setenv('AZURE_SEARCH_KEY', '')
        with pytest.raises(SearchError, match='set AZURE_SEARCH_KEY'): find('cat')
        assert not asked
        monkeypatch.setenv('AZURE_SEARCH_KEY', 'XXX')
        with pytest.raises(SearchError, match=r'bing: it answered 400 \(Parameter has invalid value.\)'): find('')
    with serve(lambda *args: (401, {}, {'error': {'message': 'Access denied'}})) as (url, asked):
        with pytest.raises(SearchError, match=r'401 \(Access denied\); check the key'): engine_at('bing', url)('cat')
        assert len(asked) == 1   # a wrong key does not get better
    with serve(lambda *args: (200, {}, {'error': {'code': 'maxlag', 'info': 'Waiting for a server'}})) as (url, asked):
        find = engine_at('commons', url)
        with pytest.raises(SearchError, match='commons: it answered "Waiting for a server"'): find('cat')

@pytest.mark.parametrize('name', ['bing', 'openverse', 'commons'])
def test_rate_limit(name, search):
    def once(path, params, headers):
        if len(asked) == 1: return 429, {'Retry-After': '0'}, {'detail': 'throttled'}
        return SERVICES[name](5, path, params, headers)
    with search(once) as (find, asked): assert len(find('cat', 5)) == 5 and len(asked) == 2
    for wait,tries in (('0', TRIES), ('3600', 1)):   # for ever; and longer than we wait
        with search(lambda *args: (429, {'Retry-After': wait}, b'')) as (find, asked):
            with pytest.raises(SearchError, match=f'{name}: it answered 429.*wait a minute, or'): find('cat', 5)
        assert len(asked) == tries

def test_rate_limit_in_the_middle_keeps_what_was_found(engine_at):
    def answer(path, params, headers):
        return openverse(100, path, params, headers) if int(params['page']) < 3 else (429, {'Retry-After': '3600'}, b'')
    with serve(answer) as (url, asked): assert len(engine_at('openverse', url)('cat', 100)) == 40

@pytest.mark.parametrize('body', [b'{"value": [', b'', b'null', b'[]', b'"text"', b'17', b'\xff\xfe',
                                  b'{"value": {}, "results": 3, "query": {"pages": "x"}}'])
def test_malformed_answer(name, search, body):
    with search(lambda path, *args: (200, {}, b'vqd="4-123"' if path == '/' else body)) as (find, _):
        with pytest.raises(SearchError, match=f'^{name}: '): find('cat', 10)

def test_missing_fields(name, search):
    "An item without an address is left out; whatever else is missing is simply not known"
    def answer(path, params, headers):
        status,head,body = SERVICES[name](3, path, params, headers)
        if isinstance(body, bytes): return status, head, body
        items = body.get('value') or body.get('results') or sorted(body['query']['pages'], key=lambda o: o['index'])
        address = {'image'} if name == 'ddg' else {'url', 'contentUrl'}
        keep = address | ({'title', 'url'} if name == 'ddg' else set())   # without these its package raises
        for i,o in enumerate(items):
            o = o['imageinfo'][0] if 'imageinfo' in o else o
            if 'thumburl' in o: o['url'] = o['thumburl']
            drop = set(o) - keep if i == 0 else address | {'thumburl'} if i == 1 else set()
            for k in drop: o.pop(k, None)
        return status, head, body
    with search(answer) as (find, _): first,*rest = find('cat', 3)
    assert first.url == page_of(0) and (first.width, first.license) == (None, '')
    assert [p.url for p in rest] == [page_of(2)]

def test_unreachable_engine_is_a_sentence(name, engine_at):
    with socket.socket() as closed:
        closed.bind(('127.0.0.1', 0))
        find = engine_at(name, f'http://127.0.0.1:{closed.getsockname()[1]}')
        with pytest.raises(SearchError, match=f'^{name}: ') as e: find('cat', 3)
    assert e.value.offline and len(str(e.value).splitlines()) == 1

# --- The real thing, only when asked: pytest --live

@pytest.mark.live
@pytest.mark.parametrize('name', [o for o in ENGINES if o != 'sample'])
def test_live_engine(name, tmp_path):
    if name == 'bing' and not (os.environ.get('AZURE_SEARCH_KEY') and os.environ.get('CATDOG_BING_ENDPOINT')):
        pytest.skip('no key: set AZURE_SEARCH_KEY and CATDOG_BING_ENDPOINT')
    found = search_images('cat', 45, engine=name)
    assert len(found) == 45 and len({p.url for p in found}) == 45
    if name in ('openverse', 'commons'): assert sum(bool(p.license) for p in found) > 40
    assert Counter(o.status for o in download_images(found[:20], tmp_path))['ok'] >= 10
