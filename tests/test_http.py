"""Requests to unknown servers: URLs, private addresses, what we send about ourselves, opt-outs, limits per host,
servers that misbehave."""
import re, socket, threading, time
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec
from urllib.parse import unquote

import pytest
from urllib3 import HTTPHeaderDict

from catdog.core.errors import CatdogError, FetchError, SearchError
from catdog.core.images import jpeg_bytes
from catdog.web import download, http
from catdog.web.download import download_images
from catdog.web.engines import _bing_pages
from catdog.web.http import _GIVE_UP, _PER_HOST, TRIES, _check_host, clean_url, _opt_out, _user_agent
from web_helpers import Server, image, resolving

DATA = [jpeg_bytes(image(i, (80, 60))) for i in range(40)]
JPEG = DATA[0]
ALL = 200,{},JPEG

@pytest.fixture(scope='module')
def one_server():
    server = Server()
    yield server
    server.close()

@pytest.fixture
def server(one_server):
    "A server that answers every request with an image, unless a test sets `answer`"
    one_server.asked.clear()
    one_server.answer = lambda *args: ALL
    return one_server

@pytest.fixture
def other():
    "Another server"
    server = Server()
    yield server
    server.close()

@pytest.fixture(autouse=True)
def environment(monkeypatch):
    "No proxies; requests to this machine are allowed"
    for o in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'):
        for k in (o, o.upper()): monkeypatch.delenv(k, raising=False)
    monkeypatch.setenv('CATDOG_ALLOW_PRIVATE', '1')

@pytest.fixture
def fetch(tmp_path): return lambda url, **kw: download_images([url], tmp_path/'got', **kw)[0]

def numbered(path, *_): return 200,{},DATA[int(path[1:])]

# --- URLs

H = 'http://a.example'
URLS = {
    # encoded characters stay so; a % that encodes nothing is escaped
    **{H + o: H + o for o in (
        '/my%20cat.jpg', '/a%2Fb.jpg', '/k%E4tz.jpg', '/~bob.jpg', "/a;b=1,c'd(e)", '/a+b%2Bc.jpg',
        '//two//slashes', '/a:b@c', '/p?u=https%3A%2F%2Fx%2Fa%3Fb', '/p?a=b+c&e=f')},
    H + '/50%.jpg': H + '/50%25.jpg', H + '/50%zz%20': H + '/50%25zz%20', H + '/p?a=%': H + '/p?a=%25',
    H + '/my cat.jpg': H + '/my%20cat.jpg', H + '/ä.jpg': H + '/%C3%A4.jpg', H + '/a"b<c>': H + '/a%22b%3Cc%3E',
    H + '/{猫}': H + '/%7B%E7%8C%AB%7D', H + '/p?q=ä b': H + '/p?q=%C3%A4%20b', H + '/x\u00a0y ': H + '/x%C2%A0y',
    H + '/a\tb\n.jpg': H + '/ab.jpg', H + '/a\\b.jpg': H + '/a/b.jpg', H + '/a.jpg#top': H + '/a.jpg',
    H: H + '/', H + '?q=1': H + '/?q=1', H + '/p?a=b?c': H + '/p?a=b?c', H + ':81/x': H + ':81/x',
    # schemes, user names and hosts
    '  HTTP://A.Example/1\n': H + '/1', 'HtTp:\\\\a.example\\1': H + '/1', H + '/a%2fb.jpg': H + '/a%2Fb.jpg',
    H + '/a|b[c]': H + '/a%7Cb%5Bc%5D', '\u0000http://a.example/1\x1f': H + '/1', '//a.example/1': 'https://a.example/1',
    'http://ann:secret@a.example/1': H + '/1', 'http://x@y@a.example/1': H + '/1',
    'http://bücher.example/': 'http://xn--bcher-kva.example/',
    'http://faß.example/': 'http://xn--fa-hia.example/', 'http://my_host.example/': 'http://my_host.example/',
    'http://[2001:DB8::1]:80/x': 'http://[2001:db8::1]:80/x'}

@pytest.mark.parametrize('url,clean', URLS.items())
def test_url_is_what_is_requested(url, clean): assert clean_url(url) == clean_url(clean) == clean

@pytest.mark.parametrize('url', ['', 'cat.jpg', 'ftp://a.example/1.jpg', 'data:image/png;base64,AA',
                                 'javascript:alert(1)', 'file:///etc/passwd', 'http://', 'http://a b.example/',
                                 'http://[::1/', 'http://[x]/', 'http://a.example:99999/', 'http://a.example:x/',
                                 'x'*5000, '\ud800'])
def test_other_text_is_not_a_url(url):
    with pytest.raises(FetchError, match='is not an http') as e: clean_url(url)
    assert e.value.reason == 'invalid'

@pytest.mark.parametrize('location,url', {
    '/b%2Fc d.jpg': H + '/b%2Fc%20d.jpg', 'b.jpg': H + '/x/b.jpg', '../b.jpg#y': H + '/b.jpg', '?b=1': H + '/x/y?b=1',
    '//b.example/1': 'http://b.example/1', 'HTTPS:\\\\b.example/1': 'https://b.example/1', '': H + '/x/y?q=1'}.items())
def test_redirect_is_relative_to_its_url(location, url): assert clean_url(location, H + '/x/y?q=1') == url

def test_urls_reach_the_host(server, fetch):
    paths = {'/my cat.jpg': '/my cat.jpg', '/a%2fb.jpg': '/a/b.jpg', '/50%.jpg': '/50%.jpg', '/ä|b.jpg': '/ä|b.jpg',
             '/a/../b.jpg': '/b.jpg', '/p?u=https%3A%2F%2Fx%2Fa%3Fb%3D1&c=2': '/p'}
    for o in paths: assert fetch(server.url + o).photo.url == server.url + o   # as it was given
    assert [unquote(path) for path,_,_ in server.asked] == [*paths.values()]
    assert server.asked[-1][1] == {'u': 'https://x/a?b=1', 'c': '2'}

def test_host_with_accents_is_requested_by_its_ascii_name(server, fetch):
    with resolving('xn--bcher-kva.example'):
        assert fetch(server.url.replace('127.0.0.1', 'ann:secret@bücher.example')).status == 'ok'
    assert 'Authorization' not in server.asked[0][2]

# --- Private addresses

@pytest.mark.parametrize('host,private', {
    **dict.fromkeys(['127.0.0.1', '10.1.2.3', '192.168.0.1', '169.254.169.254', '0.0.0.0', '224.0.0.1', '100.64.0.1',
                     'localhost', 'a.localhost.', '[::1]', '[fe80::1]', '[fc00::1]', '[::ffff:127.0.0.1]',
                     '[64:ff9b::7f00:1]', '[2002:7f00:1::]'], True),
    **dict.fromkeys(['8.8.8.8', 'example.org', '[2606:4700::1]', '[64:ff9b::808:808]'], False)}.items())
def test_private_addresses_are_refused(monkeypatch, host, private):
    assert _check_host(f'http://{host}/') == host.strip('[]')
    monkeypatch.delenv('CATDOG_ALLOW_PRIVATE')
    if private:
        with pytest.raises(FetchError, match='CATDOG_ALLOW_PRIVATE=1') as e: _check_host(f'http://{host}/')
        assert e.value.reason == 'refused'
    else: assert _check_host(f'http://{host}/')

def test_name_that_resolves_to_this_machine_is_refused(monkeypatch, server, fetch):
    "DNS rebinding: the IP address of the connection is checked"
    monkeypatch.delenv('CATDOG_ALLOW_PRIVATE')
    with resolving('images.example'):
        o = fetch(server.url.replace('127.0.0.1', 'images.example'))
        assert (o.status, server.asked) == ('refused', []) and 'CATDOG_ALLOW_PRIVATE' in o.reason
        monkeypatch.setenv('CATDOG_ALLOW_PRIVATE', '1')
        assert fetch(server.url.replace('127.0.0.1', 'images.example')).status == 'ok'

def test_redirect_into_the_private_network_is_refused(monkeypatch, server, fetch):
    monkeypatch.delenv('CATDOG_ALLOW_PRIVATE')
    private = http._is_private   # as if 127.0.0.1 were on the internet
    monkeypatch.setattr(http, '_is_private', lambda o: o != '127.0.0.1' and private(o))
    server.answer = lambda *args: (302, {'Location': target}, b'')
    for target in (server.url.replace('127.0.0.1', '127.0.0.2'), 'http://169.254.169.254/latest',
                   'HTTP:\\\\127.0.0.2/x', '//[::1]/x'):
        assert fetch(server.url).status == 'refused'
    target = 'file:///etc/passwd'
    assert fetch(server.url).status == 'invalid' and len(server.asked) == 5

# --- What we send

@pytest.mark.parametrize('how,text', {'NETRC': 'default login me password secret\n',
                                      'HOME': 'machine 127.0.0.1 login me password secret\n'}.items())
def test_no_password_is_sent(tmp_path, monkeypatch, server, fetch, how, text):
    file = tmp_path/'.netrc'
    file.write_text(text)
    file.chmod(0o600)
    monkeypatch.delenv('NETRC', raising=False)
    monkeypatch.setenv(how, str(tmp_path if how == 'HOME' else file))
    def answer(path, params, headers):
        if path == '/there': return 302,{'Location': '/here'},b''
        return ALL if path == '/here' else (200, {}, {'value': []})
    server.answer = answer
    assert fetch(f'{server.url}/there').status == 'ok'
    assert _bing_pages('cat', 3, f'{server.url}/search', 'key', 'mine') == []
    monkeypatch.setenv('http_proxy', server.url)   # nor to a proxy
    assert fetch('http://images.example/here').status == 'ok'
    assert len(server.asked) == 4 and 'authorization' not in str(server.asked).lower()

def test_key_does_not_follow_a_redirect(server, other):
    server.answer = lambda *args: (302, {'Location': other.url}, b'')
    with pytest.raises(SearchError, match='answered 302'): _bing_pages('cat', 1, server.url, 'secret', 'mine')
    assert len(server.asked) == 1 and not other.asked

def test_cookies_are_not_sent_back(server, tmp_path):
    server.answer = lambda *args: (200, {'Set-Cookie': 'a=b; Path=/'}, JPEG)
    download_images([f'{server.url}/{i}' for i in range(3)], tmp_path, workers=1)
    assert len(server.asked) == 3 and 'a=b' not in str(server.asked)

@pytest.mark.parametrize('contact,words', [
    ('', ''), ('https://cats.example/me', 'https://cats.example/me; '), ('ann@b.example', 'ann@b.example; '),
    (' Ann\r\nX-Evil: 1 <a@b.example>\n', 'Ann X-Evil: 1 <a@b.example>; '),
    ('Köln, c@d.example', 'K?ln, c@d.example; ')])
def test_user_agent_has_the_contact(monkeypatch, contact, words):
    "name/version (contact), as foundation.wikimedia.org/wiki/Policy:Wikimedia_Foundation_User-Agent_Policy asks"
    monkeypatch.setenv('CATDOG_CONTACT', contact)
    assert re.fullmatch(rf'catdog/[\d.]+ \({re.escape(words)}collects images for an image classifier\) '
                        r'python-requests/[\d.]+', _user_agent())

def test_user_agent_is_sent(monkeypatch, server, fetch):
    monkeypatch.setenv('CATDOG_CONTACT', 'ann@b.example')
    server.answer = lambda path, *_: ALL if path == '/a' else (200, {}, {'value': []})
    fetch(f'{server.url}/a')
    _bing_pages('cat', 3, server.url, 'key', 'mine')
    assert [o['User-Agent'] for _,_,o in server.asked] == [_user_agent()]*2

# --- Proxies

@pytest.mark.parametrize('variable', ['http_proxy', 'HTTP_PROXY', 'ALL_PROXY'])
def test_proxies_of_the_environment_are_used(monkeypatch, server, fetch, variable):
    server.answer = lambda path, params, headers: ALL if 'images' in headers['Host'] else (200, {}, {'value': []})
    monkeypatch.setenv(variable, server.url)
    assert fetch('http://images.example/a b.jpg').status == 'ok'
    _bing_pages('cat', 3, 'http://search.example/v7', 'key', 'mine')
    assert [o['Host'] for _,_,o in server.asked] == ['images.example', 'search.example']
    monkeypatch.setenv('NO_PROXY', 'images.example')
    with resolving(): assert fetch('http://images.example/a.jpg').status == 'unreachable'
    assert len(server.asked) == 2

@pytest.mark.parametrize('proxy,no_proxy,used', [
    ('http://proxy:3128', '', 'http://proxy:3128'), ('proxy:3128', '', 'http://proxy:3128'),
    ('http://proxy:3128', '*', None), ('http://proxy:3128', ' .example', None),
    ('http://proxy:3128', 'IMAGES.example', None),
    ('SOCKS5://proxy:1080', 'a.org', 'SOCKS5://proxy:1080'), ('', '', None)])
def test_proxies_as_people_write_them(monkeypatch, proxy, no_proxy, used):
    for variable in ('ALL_PROXY', 'all_proxy', 'https_proxy', 'HTTPS_PROXY'):
        with monkeypatch.context() as m:
            m.setenv(variable, proxy)
            m.setenv('NO_PROXY', no_proxy)
            assert http.proxy_for('https://images.example/1.jpg') == used
            assert http.proxy_for('http://127.0.0.1:8742/1.jpg') is None

def test_a_proxy_of_another_kind_is_reported(monkeypatch, fetch):
    monkeypatch.setenv('ALL_PROXY', 'ftp://127.0.0.1:1')
    assert 'Proxy URL had unsupported scheme' in fetch('http://images.example/a.jpg').reason

def test_a_proxy_without_a_scheme_is_used(monkeypatch, server, fetch):
    "requests alone would take the name of a host without a dot for a path"
    monkeypatch.setenv('http_proxy', f'localhost:{server.url.split(":")[2].strip("/")}')
    assert fetch('http://images.example/a.jpg').status == 'ok'

def test_a_socks_proxy_needs_pysocks(monkeypatch, server, fetch):
    if find_spec('socks'): pytest.skip('PySocks is installed')
    monkeypatch.setenv('ALL_PROXY', 'socks5h://127.0.0.1:1080')
    assert fetch(server.url).status == 'ok'   # this machine is asked directly
    o = fetch('http://images.example/a.jpg')
    assert o.status == 'unreachable' and 'pip install pysocks' in o.reason
    with pytest.raises(SearchError, match='pip install pysocks') as e:
        _bing_pages('cat', 3, 'http://search.example/', 'key', 'mine')
    assert not e.value.offline

# --- Opt-outs

ROBOTS = {   # headers -> the rule that counts
    ('noai',): 'noai', ('noindex, nofollow',): 'noindex', ('otherbot: noindex',): None,
    ('catdog: noimageai',): 'noimageai', ('max-image-preview:large, noai, noimageai',): 'noai',
    ('max-snippet:-1, noindex',): 'noindex', ('noml',): 'noml',
    ('max-video-preview: -1, noimageindex',): 'noimageindex', ('otherbot: noai',): None, ('none',): 'none',
    ('unavailable_after: Friday, 25-Jun-60 15:00:00 GMT, NoML',): 'noml', ('max-snippet:50', 'noai'): 'noai',
    ('otherbot: noindex', 'noml'): 'noml', ('otherbot: noai, max-snippet: 3',): None,
    ('unavailable_after: 25 Jun 2010',): None, ('NOAI; noimageai',): 'noai', ('otherbot: noai', '*: noml'): 'noml',
    ('googlebot: noindex, catdog: noai',): 'noai', ('googlebot: max-snippet:5, noai',): None,
    ('all', 'max-image-preview:standard'): None, ('index, follow',): None}

@pytest.mark.parametrize('tags,rule', ROBOTS.items())
def test_robots_tag(tags, rule):
    headers = HTTPHeaderDict([('X-Robots-Tag', o) for o in tags])
    assert _opt_out(headers) == rule and _opt_out(headers, http._OPT_OUTS) is None

def test_opt_outs_are_respected_unless_named(server, fetch):
    headers = {'/tdm': {'TDM-Reservation': '1'}, '/': {'X-Robots-Tag': 'noindex, noai'}}
    server.answer = lambda path, *_: (200, headers[path], JPEG)
    o = fetch(server.url)
    assert o.status == 'refused' and '(noindex)' in o.reason
    assert '(noai)' in fetch(server.url, ignore_robots=['NoIndex']).reason
    assert fetch(server.url, ignore_robots=['noindex', 'noai']).status == 'ok'
    assert '(tdm-reservation)' in fetch(f'{server.url}/tdm', ignore_robots='noai').reason
    with pytest.raises(CatdogError, match="'all' is not an opt-out"): fetch(server.url, ignore_robots=['all'])
    assert len(server.asked) == 4

# --- Limits per host

class Crowd:
    "Counts concurrent requests"
    def __init__(self): self.now,self.most,self.lock = 0,0,threading.Lock()
    def answer(self, seconds):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(seconds)
        with self.lock: self.now -= 1

def test_at_most_eight_connections_to_one_host(server, tmp_path):
    crowd,together = Crowd(),threading.Barrier(_PER_HOST)
    def answer(path, *_):
        together.wait(60)   # eight must be here at once before any is answered
        crowd.answer(.05)   # time for a ninth to come, if it may
        return numbered(path)
    server.answer = answer
    assert {o.status for o in download_images([f'{server.url}/{i}' for i in range(40)], tmp_path, timeout=60)} == {'ok'}
    assert crowd.most == _PER_HOST

def test_at_most_two_connections_to_wikimedia(server, tmp_path):
    "https://wikitech.wikimedia.org/wiki/Robot_policy; redirects lead there too"
    hosts = 'upload.wikimedia.org','commons.wikimedia.org','short.example'
    crowd = Crowd()
    def answer(path, params, headers):
        host,port = headers['Host'].split(':')
        if host == 'short.example': return 302,{'Location': f'http://upload.wikimedia.org:{port}{path}'},b''
        crowd.answer(.03)
        return numbered(path)
    server.answer = answer
    with resolving(*hosts):
        urls = [server.url.replace('127.0.0.1', hosts[i%len(hosts)]) + f'/{i}' for i in range(40)]
        assert {o.status for o in download_images(urls, tmp_path)} == {'ok'}
    assert crowd.most == 2

@pytest.mark.parametrize('retry_after', [None, '1', '3600'])
def test_refusing_host_is_given_up(server, tmp_path, retry_after):
    "After few requests in all, not for each image, and images of other hosts are still fetched"
    def answer(path, params, headers):
        if headers['Host'].startswith('busy.'): return 429,{'Retry-After': retry_after} if retry_after else {},b''
        return numbered(path)
    server.answer = answer
    with resolving('busy.example', 'good.example'):
        urls = [server.url.replace('127.0.0.1', ('busy.example', 'good.example')[i%2]) + f'/{i}' for i in range(40)]
        outcomes = download_images(urls, tmp_path)
    refused = [o for _,_,o in server.asked if o['Host'].startswith('busy.')]
    assert [o.status for o in outcomes] == ['busy', 'ok']*20
    assert len(refused) <= _PER_HOST + _GIVE_UP
    assert 'busy.example keeps refusing requests' in outcomes[-2].reason

def test_recovering_host_is_not_given_up(server, tmp_path):
    "It allows five requests, then none until there was a pause of a second"
    lock,allowed = threading.Lock(),[5, 0.]
    def answer(path, *_):
        with lock:
            if time.monotonic() > allowed[1]: allowed[:] = [5, float('inf')]
            if allowed[0]:
                allowed[0] -= 1
                return numbered(path)
            allowed[1] = time.monotonic() + .9
            return 429,{'Retry-After': '1'},b''
    server.answer = answer
    outcomes = download_images([f'{server.url}/{i}' for i in range(25)], tmp_path)
    assert Counter(o.status for o in outcomes) == {'ok': 25}

def test_silent_host_is_given_up(server, tmp_path):
    gone = threading.Event()
    server.answer = lambda *args: gone.wait(60) and None
    outcomes = download_images([f'{server.url}/{i}' for i in range(40)], tmp_path, timeout=.3)
    gone.set()
    assert {o.status for o in outcomes} == {'timeout'} and len(server.asked) <= 2*_PER_HOST
    assert sum('its server took too long, like the' in o.reason for o in outcomes) > 20

def test_occasional_failures_do_not_give_up_a_host(server, tmp_path):
    server.answer = lambda path, *_: (500 if int(path[1:])%3 else 200, {'Retry-After': '0'}, DATA[int(path[1:])])
    outcomes = download_images([f'{server.url}/{i}' for i in range(12)], tmp_path)
    assert [o.status for o in outcomes] == ['ok', 'busy', 'busy']*4
    assert Counter(path for path,_,_ in server.asked) == {f'/{i}': TRIES if i%3 else 1 for i in range(12)}

def test_download_has_a_time_limit(monkeypatch, server, tmp_path):
    "Requests that have not started in time have an outcome, too"
    monkeypatch.setattr(download, '_SECONDS', 1.5)
    monkeypatch.setattr(download, '_SECONDS_EACH', 0)
    begun = time.monotonic()
    def slow(path, *_):
        time.sleep(max(0, begun + 3 - time.monotonic()))   # there is no time for more after the first of these
        return numbered(path)
    server.answer = slow
    outcomes = download_images([f'{server.url}/{i}' for i in range(40)], tmp_path)
    assert len(outcomes) == 40 and {o.status for o in outcomes} == {'ok', 'timeout'}
    assert len(server.asked) <= _PER_HOST and {o.reason for o in outcomes} == {'', 'there was no time left for it'}

# --- Servers that misbehave

def without_end(chunk, pause=0):
    "Far more than a client may take"
    for _ in range(600):
        time.sleep(pause)
        yield chunk

ODD = {   # status, headers, body -> status of the outcome
    'circle': (302, {'Location': '/circle'}, b'', 'refused'),
    'long redirect': (302, {'Location': '/circle'}, without_end(bytes(2**20)), 'refused'),
    'gone': (404, {}, b'', 'not-found'), 'forbidden': (403, {}, b'', 'refused'),
    'large': (200, {'Content-Length': '200000000'}, b'x', 'too-large'),
    'endless': (200, {}, without_end(bytes(2**20)), 'too-large'),
    'drip': (200, {'Content-Length': '100000'}, without_end(b'.', .05), 'timeout'),
    'chunked drip': (200, {'Transfer-Encoding': 'chunked'}, without_end(b'1\r\n.\r\n', .05), 'timeout'),
    'broken off': (200, {'Content-Length': '100000', 'Connection': 'close'}, iter([b'x']), 'unreachable'),
    'page': (200, {}, b'<!doctype html>', 'not-an-image')}

@pytest.mark.parametrize('status,headers,body,outcome', ODD.values(), ids=ODD)
def test_odd_responses_have_a_status(server, fetch, status, headers, body, outcome):
    circle = 302,{'Location': '/circle'},b''
    server.answer = lambda path, *_: circle if path == '/circle' else (status, headers, body)
    assert fetch(server.url, timeout=.3 if outcome == 'timeout' else 60).status == outcome

@pytest.mark.parametrize('status,retry_after,outcome,asked', [
    (503, '1', 'ok', 2), (500, None, 'busy', TRIES), (429, '3600', 'busy', 1), (503, 'soon', 'busy', TRIES),
    (503, 'Fri, 31 Dec 10000 00:00:00 GMT', 'busy', TRIES)])
def test_busy_server_is_retried(server, fetch, status, retry_after, outcome, asked):
    def answer(*args):
        if outcome == 'ok' and len(server.asked) > 1: return ALL
        return status,{'Retry-After': retry_after} if retry_after else {},b''
    server.answer = answer
    assert (fetch(server.url).status, len(server.asked)) == (outcome, asked)

def test_slow_headers_do_not_stop_a_download(monkeypatch, fetch):
    monkeypatch.setattr(download, '_SECONDS', .3)
    monkeypatch.setattr(download, '_SECONDS_EACH', 0)
    with socket.create_server(('127.0.0.1', 0)) as server:
        sent = []
        def drip():
            with suppress(OSError), server.accept()[0] as conn:
                for o in b'HTTP/1.1 200 OK\r\nX: ' + b'x'*1000:
                    sent.append(conn.send(bytes([o])))
                    time.sleep(.05)
        threading.Thread(target=drip, daemon=True).start()
        o = fetch(f'http://127.0.0.1:{server.getsockname()[1]}/a.jpg', timeout=.5)
        assert o.status == 'timeout' and len(sent) < 900

def test_slow_and_endless_services_are_cut_off(monkeypatch, server):
    monkeypatch.setattr('catdog.web.http._ANSWER_SECONDS', .3)
    monkeypatch.setattr('catdog.web.http._ANSWER_BYTES', 100_000)
    server.answer = lambda *args: (200, {}, without_end(b' ', .05))
    with pytest.raises(SearchError, match='took too long'): _bing_pages('cat', 3, server.url, 'key', 'mine')
    server.answer = lambda *args: (200, {}, b' '*200_000)
    with pytest.raises(SearchError, match='more than 100,000 bytes'): _bing_pages('cat', 3, server.url, 'key', 'mine')
