"""The engines against servers that imitate the services, including their errors."""
import os, random, socket, time
from collections import Counter
from contextlib import contextmanager
from functools import partial

import pytest

from catdog.core.errors import SearchError
from catdog.web import engines
from catdog.web.download import download_images
from catdog.web.http import TRIES
from catdog.web.engines import ENGINES, search_images, search_terms
from web_helpers import serve

# --- The documented parameters and values of each service

DOCUMENTED = {
    # https://learn.microsoft.com/en-us/bing/search-apis/bing-image-search/reference/query-parameters
    'bing': """aspect cc color count freshness height id imageContent imageType license maxFileSize maxHeight maxWidth
        minFileSize minHeight minWidth mkt offset q safeSearch setLang size width""",
    # https://api.openverse.org/v1/#tag/images/operation/images_search, and ImageSearchRequestSerializer in
    # https://github.com/WordPress/openverse/blob/main/api/api/serializers
    'openverse': """aspect_ratio category creator excluded_source extension filter_dead license license_type mature page
        page_size q size source tags title""",
    # https://commons.wikimedia.org/w/api.php?action=help&modules=main|json|query|query%2Bsearch|query%2Bimageinfo:
    # those of search have the prefix gsr when it generates pages, those of imageinfo ii
    'commons': """action format maxlag smaxage maxage assert assertuser requestid servedby curtimestamp responselanginfo
        origin uselang variant errorformat errorlang errorsuselocal callback utf8 ascii formatversion prop list meta
        indexpageids export exportnowrap iwurl continue rawcontinue titles pageids revids generator redirects
        converttitles gsrsearch gsrnamespace gsrlimit gsroffset gsrqiprofile gsrwhat gsrinfo gsrprop gsrinterwiki
        gsrenablerewrites gsrsort iiprop iilimit iistart iiend iiurlwidth iiurlheight iimetadataversion
        iiextmetadatalanguage iiextmetadatamultilang iiextmetadatafilter iiurlparam iibadfilecontexttitle iicontinue
        iilocalonly""",
    # not documented: what https://duckduckgo.com itself asks its i.js for; the package names them
    'ddg': 'o q l vqd p ct f s'}
DOCUMENTED = {k: frozenset(v.split()) for k,v in DOCUMENTED.items()}
NEEDED = dict(bing='q count offset minHeight minWidth', openverse='q page page_size', ddg='q o vqd',
              commons='action format formatversion generator gsrsearch gsrnamespace gsrlimit prop iiprop iiurlwidth')
IIPROP = frozenset("""timestamp user userid comment parsedcomment canonicaltitle url size dimensions sha1 mime thumbmime
    mediatype metadata commonmetadata extmetadata archivename bitdepth uploadwarning badfile""".split())
# https://www.mediawiki.org/wiki/Common_thumbnail_sizes: what Wikimedia has at hand
THUMBNAILS = {20, 40, 60, 120, 250, 330, 500, 960, 1280, 1920, 3840}

def wrong_names(name, params):
    "Return the `params` that the documentation of the service `name` lacks, and the required ones that are missing"
    return sorted(set(params) - DOCUMENTED[name]) + sorted(set(NEEDED[name].split()) - set(params))

def strict(name):
    "A decorator: refuse requests with undocumented parameters"
    def _strict(answer):
        def _answer(total, path, params, headers):
            wrong = set(params) - DOCUMENTED[name] if (name, path) != ('ddg', '/') else []   # where it gets its vqd
            if wrong: return 400, {}, {'error': {'message': f'wrong parameters: {" ".join(sorted(wrong))}'}}
            return answer(total, path, params, headers)
        return _answer
    return _strict

# --- Imitations of the services, with their documented answers and errors

def page_of(i): return f'https://images.example/{i}.jpg'

@strict('bing')
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

@strict('openverse')
def openverse(total, path, params, headers):
    page,size = int(params.get('page', 1)),int(params.get('page_size', 20))
    if size > 20: return 401, {}, {'detail': 'page_size must be between 1 & 20 for anonymous requests.'}
    pages = -(-total//20)
    if page > max(1, pages): return 404, {}, {'detail': 'Invalid page.'}
    return 200, {}, dict(result_count=total, page_count=pages, page_size=20, page=page, results=[
        dict(id=str(i), title=f'Cat {i}', foreign_landing_url=f'https://example/{i}', url=page_of(i), width=800,
             height=600, creator='somebody', license='by', license_version='4.0', provider='flickr')
        for i in range(20*(page - 1), min(20*page, total))])

@strict('commons')
def commons(total, path, params, headers):
    need = dict(action='query', format='json', formatversion='2', generator='search', gsrnamespace='6',
                prop='imageinfo')
    if wrong := {k for k in need if params.get(k) != need[k]}:
        return 200, {}, {'error': {'code': 'badvalue', 'info': f'Unrecognized value for {wrong}'}}
    if not {'url', 'size', 'extmetadata'} <= set(params['iiprop'].split('|')) <= IIPROP:
        return 200, {}, {'error': {'code': 'badvalue', 'info': 'Unrecognized value for iiprop'}}
    assert int(params['iiurlwidth']) in THUMBNAILS and int(params['gsrlimit']) <= 50   # it makes 50 thumbnails at most
    assert headers['User-Agent'].startswith('catdog/')
    start,limit = int(params.get('gsroffset', 0)),int(params['gsrlimit'])
    some = list(range(start, min(start + limit, total)))
    pages = [dict(pageid=i, ns=6, title=f'File:Cat {i}.jpg', index=i + 1, imageinfo=[dict(
        size=10, width=4000, height=3000, url=f'https://example/full/{i}.jpg', descriptionurl=f'https://example/{i}',
        thumburl=page_of(i), thumbwidth=960, thumbheight=720, extmetadata={
            'LicenseShortName': {'value': 'CC BY 4.0'}, 'Artist': {'value': '<b>somebody</b>'}})]) for i in some]
    answer = {'batchcomplete': True}
    if pages: answer['query'] = {'pages': random.Random(0).sample(pages, len(pages))}   # not in the order of rank
    if some and some[-1] + 1 < total: answer['continue'] = {'gsroffset': some[-1] + 1, 'continue': 'gsroffset||'}
    return 200, {}, answer

@strict('ddg')
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
    "A function that makes engine `name` use the server at `url`"
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
        else: monkeypatch.setattr(engines, '_' + name.upper(), url)
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

def test_every_parameter_is_documented(name, search):
    with search(partial(SERVICES[name], 170)) as (find, asked):
        assert len(find('cat', 130)) == 130
    requests = [params for path,params,_ in asked if (name, path) != ('ddg', '/')]
    assert len(requests) > 1 and not [o for o in requests if wrong_names(name, o)]

def test_bing_leaves_out_icons_by_the_names_of_the_protocol(engine_at):
    def answer(path, params, headers):
        sizes = [o for o in (16, 48, 96, 300, 800) if o >= int(params.get('minWidth', 0))]
        return 200, {}, {'value': [dict(contentUrl=page_of(o), width=o, height=o) for o in sizes]}
    with serve(answer) as (url, asked): assert [p.width for p in engine_at('bing', url)('cat', 10)] == [300, 800]

def test_nothing_found(name, search):
    with search(partial(SERVICES[name], 0)) as (find, asked):
        if name == 'ddg':   # the package cannot tell this from being sent away
            with pytest.raises(SearchError, match="found nothing for 'cat'"): find('cat', 10)
        else: assert find('cat', 10) == []
    assert len(asked) <= 2

def test_error_page(name, search):
    with search(lambda *args: (500, {'Retry-After': '0'}, b'<html>Something went wrong</html>')) as (find, asked):
        said = f'^{name}: .*' + ('' if name == 'ddg' else 'answered 500.*try')
        with pytest.raises(SearchError, match=said): find('cat', 10)
    assert name == 'ddg' or len(asked) == TRIES

def test_error_messages_of_services_are_passed_on(engine_at, monkeypatch):
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

FAILURES = {'429': (429, {'Retry-After': '3600'}, b''), '500': (500, {'Retry-After': '0'}, b''), '403': (403, {}, b''),
            'no JSON': (200, {}, b'<html>'), 'not a list': (200, {}, b'[]'), 'hangs up': None}

@pytest.mark.parametrize('failure', FAILURES)
def test_earlier_pages_are_kept_when_a_later_one_fails(name, search, failure, capsys):
    def answer(path, params, headers):
        first = int(params.get('s', params.get('offset', params.get('gsroffset', int(params.get('page', 1)) - 1)))) == 0
        if not first and not FAILURES[failure]: raise ConnectionAbortedError
        return SERVICES[name](170, path, params, headers) if first else FAILURES[failure]
    with search(answer) as (find, asked): found = find('cat', 150)
    assert [p.url for p in found] == [page_of(i) for i in range(len(found))]
    assert len(found) == dict(bing=50, openverse=20, commons=50, ddg=100)[name]
    assert f'The {len(found)} photos that it found before are kept' in capsys.readouterr().out

def test_rate_limit_of_openverse_is_waited_for(engine_at, capsys):
    "20 requests a minute without an account; here, 20 and then a pause of 1.2 s"
    left,until = [20],[0]
    def answer(path, params, headers):
        if not left[0]: left[0],until[0] = 20,time.monotonic() + 1.2
        if time.monotonic() < until[0]: return 429, {'Retry-After': '2'}, {'detail': 'Request was throttled.'}
        left[0] -= 1
        urls = [f'https://p.example/{params["q"]}/{params["page"]}/{i}' for i in range(20)]
        return 200, {}, dict(page_count=12, results=[dict(url=o) for o in urls])
    with serve(answer) as (url, asked):
        engine_at('openverse', url)
        for label,n in (('tabby cat', 500), ('cat', 150), ('dog', 150)):
            assert len(search_terms(label, n, 'openverse')) == n
    assert len(asked) == 26 + 8 + 8 + 2 and 'openverse asks to wait: 2 s' in capsys.readouterr().out

@pytest.mark.parametrize('name', ['bing', 'openverse', 'commons', 'ddg'])
def test_service_that_repeats_itself_is_not_asked_forever(name, search):
    def again(path, params, headers):
        first = {k: '0' if k in ('offset', 'gsroffset', 's') else v for k,v in params.items()}
        status,head,body = SERVICES[name](300, path, first, headers)
        if name == 'openverse' and path != '/': body['page_count'] = 10**6
        if name == 'openverse': body['results'] = openverse(300, path, {**params, 'page': '1'}, headers)[2]['results']
        if name == 'bing': body['nextOffset'] = int(params['offset']) + 50
        if name == 'commons': body['continue'] = {'gsroffset': int(params.get('gsroffset', 0)) + 50}
        return status, head, body
    with search(again) as (find, asked): assert 20 <= len(find('cat', 5000)) <= 100 and len(asked) < 12

# --- URLs and texts

PATHS = ['/my%20cat.jpg', '/a%2Fb.jpg', '/what%3F.jpg', '/no%231.jpg', '/100%25.jpg', '/p?u=https%3A%2F%2Fx%2Fa%3Fb',
         '/k%E4tz.jpg', '/a+b.jpg', '/a b.jpg', ' /outer.jpg ', '/x%C2%A0y.jpg',
          '/&amp;.jpg', '/%7e.jpg', '/ä.jpg', '/plain.jpg']

def test_urls_are_kept_as_the_engine_gave_them(name, search):
    "In its order, none of them decoded, changed or left out"
    urls = [f'http://h.example{o}' for o in PATHS] + ['//h.example/x.jpg', 'ftp://h/x', 'h.example/x.jpg', 'HTTP://h/x']
    def answer(path, params, headers):
        status,head,body = SERVICES[name](len(urls), path, params, headers)
        if isinstance(body, bytes): return status, head, body
        pages = sorted(body.get('query', {}).get('pages', []), key=lambda o: o['index'])
        items = body.get('value') or body.get('results') or pages
        for url,o in zip(urls, items):
            if 'imageinfo' in o: o['imageinfo'][0]['thumburl'] = url
            else: o[dict(bing='contentUrl', openverse='url', ddg='image')[name]] = url
        return status, head, body
    with search(answer) as (find, _): assert [p.url for p in find('plain', len(urls))] == urls

def test_hidden_markup_is_not_part_of_a_name(engine_at):
    artists = {'<div class="fn value">Ann<span style="display: none;">Ann</span></div>': 'Ann',
               '<style data-mw-deduplicate="x">.a{color:red}</style><span class="a">Ann</span>': 'Ann',
               '<a href="//commons.wikimedia.org/wiki/User:Ann" title="User:Ann">Ann</a><br>Berlin': 'Ann Berlin',
               '<table><tr><td hidden>x</td><td>Ann &amp; Bob</td></tr></table>': 'Ann & Bob',
               '<ul><li style="display:none">x<li>Ann</ul>': 'Ann', '<dl><dt hidden>x<dd>Ann</dl>': 'Ann',
               '<table><tr hidden><td>x<td>y<tr><td>Ann</table>': 'Ann', '<li hidden>x<ul><li>y</ul><li>Ann': 'Ann',
               '<table><tr><td>Ann<table><tr><td hidden>x<td>Bob</table>': 'Ann Bob',
               '<!-- a --><bdi><span lang="de">Ann</span></bdi><script>x()</script>': 'Ann'}
    def answer(path, params, headers):
        infos = [dict(url=page_of(i), extmetadata={'Artist': {'value': o}}) for i,o in enumerate(artists)]
        pages = [dict(title='File:x.jpg', index=i + 1, imageinfo=[o]) for i,o in enumerate(infos)]
        return 200, {}, {'query': {'pages': pages}}
    with serve(answer) as (url, _):
        assert [p.creator for p in engine_at('commons', url)('cat', 20)] == list(artists.values())

@pytest.mark.parametrize('body', [b'{"value": [', b'', b'null', b'[]', b'"text"', b'17', b'\xff\xfe',
                                  b'{"value": {}, "results": 3, "query": {"pages": "x"}}'])
def test_malformed_answer(name, search, body):
    with search(lambda path, *args: (200, {}, b'vqd="4-123"' if path == '/' else body)) as (find, _):
        with pytest.raises(SearchError, match=f'^{name}: '): find('cat', 10)

def test_missing_fields(name, search):
    "An item without a URL is left out; other missing fields are empty"
    def answer(path, params, headers):
        status,head,body = SERVICES[name](3, path, params, headers)
        if isinstance(body, bytes): return status, head, body
        items = body.get('value') or body.get('results') or sorted(body['query']['pages'], key=lambda o: o['index'])
        address = {'image'} if name == 'ddg' else {'url', 'contentUrl'}
        for i,o in enumerate(items):
            o = o['imageinfo'][0] if 'imageinfo' in o else o
            if 'thumburl' in o: o['url'] = o['thumburl']
            drop = set(o) - address if i == 0 else address | {'thumburl'} if i == 1 else set()
            for k in drop: o.pop(k, None)
        return status, head, body
    with search(answer) as (find, _): first,*rest = find('cat', 3)
    assert first.url == page_of(0) and (first.width, first.license) == (None, '')
    assert [p.url for p in rest] == [page_of(2)]

def test_unreachable_engine_is_reported(name, engine_at):
    with socket.socket() as closed:
        closed.bind(('127.0.0.1', 0))
        find = engine_at(name, f'http://127.0.0.1:{closed.getsockname()[1]}')
        with pytest.raises(SearchError, match=f'^{name}: ') as e: find('cat', 3)
    assert e.value.offline and len(str(e.value).splitlines()) == 1

# --- Safe search and contact

SAFE = dict(bing=[{'safeSearch': 'Strict'}, {'safeSearch': 'Moderate'}, {'safeSearch': 'Off'}],
            openverse=[{}, {}, {'mature': 'true'}], ddg=[{'p': '1'}, {'p': '1'}, {'p': '-1'}])

@pytest.mark.parametrize('name', SAFE)
def test_safe_search(name, search):
    with search(partial(SERVICES[name], 5)) as (find, asked):
        for safe in ('strict', 'moderate', 'off'): find('cat', 1, safe=safe)
    asked = [params for path,params,_ in asked if (name, path) != ('ddg', '/')]
    assert [{k: v for k,v in o.items() if k in ('safeSearch', 'mature', 'p')} for o in asked] == SAFE[name]

@pytest.mark.parametrize('name,who', [('openverse', 'Openverse'), ('commons', 'Wikimedia')])
def test_missing_contact_is_reported_once(name, who, search, monkeypatch, capsys):
    monkeypatch.delenv('CATDOG_CONTACT', raising=False)
    monkeypatch.setattr(engines, '_reported', set())
    with search(partial(SERVICES[name], 5)) as (find, asked):
        for _ in range(2): find('cat', 1)
        assert capsys.readouterr().out.count(f'{who} asks for a contact: set CATDOG_CONTACT') == 1
        monkeypatch.setattr(engines, '_reported', set())
        monkeypatch.setenv('CATDOG_CONTACT', 'ann@b.example')
        find('cat', 1)
        assert not capsys.readouterr().out and '(ann@b.example; ' in asked[-1][2]['User-Agent']
    with search(lambda *args: (403, {}, b'')) as (find, _):
        with pytest.raises(SearchError, match='403; set CATDOG_CONTACT'): find('cat', 1)

# --- The live services, only with pytest --live

@pytest.mark.live
@pytest.mark.parametrize('name', [o for o in ENGINES if o != 'sample'])
def test_live_engine(name, tmp_path):
    if name == 'bing' and not (os.environ.get('AZURE_SEARCH_KEY') and os.environ.get('CATDOG_BING_ENDPOINT')):
        pytest.skip('no key: set AZURE_SEARCH_KEY and CATDOG_BING_ENDPOINT')
    found = search_images('cat', 45, engine=name)
    assert len(found) == 45 and len({p.url for p in found}) == 45
    if name in ('openverse', 'commons'): assert sum(bool(p.license) for p in found) > 40
    assert Counter(o.status for o in download_images(found[:20], tmp_path))['ok'] >= 10
