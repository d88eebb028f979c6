"""Whom we fetch from and what we ask for, what we give away about ourselves, and who may say no.
What fits in a cell is in nbs/web/http.ipynb, addresses.ipynb, robots.ipynb and deadlines.ipynb; how often a host is
asked is in test_hosts.py, servers that misbehave are in test_download.py."""
import re, socket, threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from catdog.core.errors import CatdogError
from catdog.core.images import jpeg_bytes
from catdog.web import http as addresses
from catdog.web.download import download_images
from catdog.web.engines import bing_pages
from catdog.core.errors import SearchError
from web_helpers import image, resolving, serve

JPEG = jpeg_bytes(image())

def fetch(url, tmp_path, **kw): return download_images([url], tmp_path, **kw)[0]

@contextmanager
def serve_anything(answer=lambda target: (200, {}, JPEG)):
    "A server that answers `answer(target)`: status, headers, body; gives its port and the targets as they came"
    asked = []
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args): pass
        def do_GET(self):
            target = self.raw_requestline.decode('latin1').split(' ', 1)[1].rsplit(' ', 1)[0]
            asked.append((target, dict(self.headers)))
            status,headers,body = answer(target)
            self.send_response(status)
            headers = headers if isinstance(headers, list) else [*headers.items()]
            for k,v in [('Content-Length', str(len(body))), *headers]: self.send_header(k, v)
            self.end_headers()
            self.wfile.write(body)
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
    try: yield server.server_port, asked
    finally:
        server.shutdown()
        server.server_close()

@pytest.fixture(autouse=True)
def environment(monkeypatch):
    "No proxies; this machine may be asked"
    for o in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'):
        for k in (o, o.upper()): monkeypatch.delenv(k, raising=False)
    monkeypatch.setenv('CATDOG_ALLOW_PRIVATE', '1')

# --- Addresses

AS_THEY_ARE = ['/my%20cat.jpg', '/a%2Fb.jpg', '/a%2fb.jpg', '/what%3F.jpg', '/no%231.jpg', '/100%25.jpg', '/k%E4tz.jpg',
               '/k%e4tz.jpg', '/%7Eann/~bob.jpg', '/50%.jpg', '/50%zz%20.jpg', "/a|b;c=1,d'e(f)[g].jpg", '/a+b%2Bc.jpg',
               '//two//slashes.jpg', '/a:b@c.jpg', '/p?u=https%3A%2F%2Fx%2Fa%3Fb%3D1%26c%3D2', '/p?a=b+c%20d&e=f|g',
               '/p?', '/p?a=%', '/x%C2%A0y.jpg', '/!$&*.jpg', '/p?x={1}', '/%41.jpg', '/p?q=a/../b']
MENDED = {'/my cat.jpg': '/my%20cat.jpg', '/ä.jpg': '/%C3%A4.jpg', '/a"b<c>.jpg': '/a%22b%3Cc%3E.jpg',
          '/a\\b.jpg': '/a/b.jpg', '/a.jpg#top': '/a.jpg', '/a/./b/../c.jpg': '/a/c.jpg',
          '/p?q=ä b"c': '/p?q=%C3%A4%20b%22c', '?q=1': '/?q=1',
          '/a\tb\n.jpg': '/ab.jpg', '/{猫}.jpg': '/%7B%E7%8C%AB%7D.jpg', '/x\u00a0y.jpg ': '/x%C2%A0y.jpg', '': '/'}

@pytest.mark.parametrize('path', [*AS_THEY_ARE, *MENDED])
def test_addresses_reach_the_host_as_browsers_send_them(tmp_path, path):
    with serve_anything() as (port, asked):
        o = fetch(f'http://127.0.0.1:{port}{path}', tmp_path)
        assert ([k for k,_ in asked], o.status) == ([MENDED.get(path, path)], 'ok')
        assert o.photo.url == f'http://127.0.0.1:{port}{path}'   # as it was given

@pytest.mark.parametrize('form,host', {
    '  HTTP://{}/a.jpg\n': 'a.example', 'HtTp:\\\\{}\\a.jpg': 'a.example', 'http:{}/a.jpg': 'a.example',
    'http:///{}/a.jpg': 'a.example', 'http://ann:secret@{}/a.jpg': 'a.example', 'http://{}/a.jpg': 'A.Example',
    '\u0000http://{}/a.jpg\x1f': 'a.example', 'http://{}./a.jpg'.replace('./', '/'): 'bücher.example',
    'http://{}/a.jpg#': '猫。example', 'http://{}/./a.jpg': 'faß.example', 'http://{}/x/../a.jpg': 'i❤.example',
    'http://{}/a.jpg ': 'b%C3%BCcher.example', '\thttp://{}/a.jpg': 'my_host.example'}.items())
def test_hosts_are_found_as_browsers_find_them(tmp_path, form, host):
    names = [f'{o}.example' for o in ('a', 'xn--bcher-kva', 'xn--z7x', 'xn--fa-hia', 'xn--i-7iq', 'my_host')]
    with serve_anything() as (port, asked), resolving(*names):
        assert fetch(form.format(f'{host}:{port}'), tmp_path).status == 'ok'
    assert asked[0][0] == '/a.jpg' and 'Authorization' not in asked[0][1]

def test_two_slashes_are_https(tmp_path):
    with serve_anything() as (port, asked):
        o = fetch(f'//127.0.0.1:{port}/a.jpg', tmp_path)
    assert (o.status, o.reason) == ('unreachable', 'its server cannot be reached (SSLError)')   # it spoke https with it

@pytest.mark.parametrize('location', ['/b%2fc d%.jpg', 'b%2fc d%.jpg', './b%2fc d%.jpg#x',
                                      '//127.0.0.1:{}/b%2fc d%.jpg'])
def test_redirects_reach_the_host_as_they_are_too(tmp_path, location):
    def answer(target):
        return (302, {'Location': location.format(port)}, b'') if target == '/a.jpg' else (200, {}, JPEG)
    with serve_anything(answer) as (port, asked):
        assert fetch(f'http://127.0.0.1:{port}/a.jpg', tmp_path).status == 'ok'
    assert asked[1][0] == '/b%2fc%20d%.jpg'

@pytest.mark.parametrize('url', ['ftp://a.example/1.jpg', 'data:image/png;base64,AAAA', 'javascript:alert(1)',
                                 'cat.jpg', 'http://', 'http://a b.example/', 'http://[::1/',
                                 'http://a.example:99999/', 'x'*5000,
                                 'http://.example/1.jpg', 'http://' + 'a'*300 + '.example/', '\ud800', 'http://%00/'])
def test_hopeless_addresses_have_an_outcome(tmp_path, url):
    with resolving(): o = fetch(url, tmp_path)
    assert o.photo.url == url and o.status in ('refused', 'unreachable') and o.reason

# --- Private networks

def test_name_that_resolves_to_this_machine_is_refused(monkeypatch, tmp_path):
    "DNS rebinding: whatever the name said before, the address of the connection counts"
    monkeypatch.delenv('CATDOG_ALLOW_PRIVATE')
    with serve(lambda *args: (200, {}, JPEG)) as (url, asked), resolving('images.example'):
        o = fetch(url.replace('127.0.0.1', 'images.example'), tmp_path)
        assert (o.status, asked) == ('refused', []) and 'CATDOG_ALLOW_PRIVATE' in o.reason
        monkeypatch.setenv('CATDOG_ALLOW_PRIVATE', '1')
        assert fetch(url.replace('127.0.0.1', 'images.example'), tmp_path).status == 'ok'

def test_redirect_into_the_private_network_is_refused(monkeypatch, tmp_path):
    monkeypatch.delenv('CATDOG_ALLOW_PRIVATE')
    private = addresses._is_private
    # as if 127.0.0.1 were on the internet
    monkeypatch.setattr(addresses, '_is_private', lambda o: o != '127.0.0.1' and private(o))
    with serve(lambda path, *args: (302, {'Location': target}, b'')) as (url, asked):
        for target in (url.replace('127.0.0.1', '127.0.0.2'), 'http://169.254.169.254/latest', 'file:///etc/passwd',
                       'HTTP:\\\\127.0.0.2/x', '//[::1]/x', 'http://１２７.0.0.2/'.encode().decode('latin1')):
            assert fetch(url, tmp_path).status == 'refused'
    assert len(asked) == 6

# --- What leaves this machine

NETRC = {'default': 'default login me password secret\n', 'machine': 'machine 127.0.0.1 login me password secret\n'}

@pytest.mark.parametrize('kind', NETRC)
@pytest.mark.parametrize('how', ['NETRC', 'HOME'])
def test_no_password_is_sent(tmp_path, monkeypatch, kind, how):
    file = tmp_path/('.netrc' if how == 'HOME' else 'passwords')
    file.write_text(NETRC[kind])
    file.chmod(0o600)
    monkeypatch.delenv('NETRC', raising=False)
    monkeypatch.setenv(how, str(tmp_path if how == 'HOME' else file))
    def answer(path, params, headers):
        if path == '/there': return 302, {'Location': '/here'}, b''
        return (200, {}, JPEG) if path == '/here' else (200, {}, {'value': []})
    with serve(answer) as (url, asked):
        assert fetch(f'{url}/there', tmp_path/'got').status == 'ok'
        assert bing_pages('cat', 3, f'{url}/search', 'key', 'mine') == []
    assert len(asked) == 3 and not [o for _,_,headers in asked for o in headers if o.lower() == 'authorization']

def test_the_key_of_a_service_does_not_follow_a_redirect_to_another(tmp_path):
    def other(path, params, headers): return 200, {}, {'value': [{'contentUrl': 'https://a/1.jpg'}]}
    with serve(other) as (there, got), serve(lambda *args: (302, {'Location': target}, b'')) as (url, asked):
        for target in (there.replace('127.0.0.1', 'localhost'), there):   # another host, another port
            assert len(bing_pages('cat', 1, url, 'secret', 'mine')) == 1
    assert all('secret' in str(o) for o in asked) and len(got) == 2 and 'secret' not in str(got)

def test_no_cookie_comes_back(tmp_path):
    with serve(lambda *args: (200, {'Set-Cookie': 'a=b; Path=/'}, JPEG)) as (url, asked):
        download_images([f'{url}/{i}' for i in range(3)], tmp_path, workers=1)
    assert len(asked) == 3 and 'a=b' not in str(asked)

@pytest.mark.parametrize('contact,words', [
    (None, r'https?://'), ('https://cats.example/me', 'https://cats.example/me;'), ('ann@b.example', 'ann@b.example;'),
    (' Ann\r\nX-Evil: 1 <a@b.example>\n', r'Ann X-Evil: 1 <a@b\.example>;'),
    ('Köln, c@d.example', r'K\?ln, c@d\.example;')])
def test_we_say_who_we_are_and_where_to_complain(tmp_path, monkeypatch, contact, words):
    "name/version (contact), as foundation.wikimedia.org/wiki/Policy:Wikimedia_Foundation_User-Agent_Policy asks"
    if contact: monkeypatch.setenv('CATDOG_CONTACT', contact)
    with serve(lambda *args: (200, {}, JPEG if args[0] == '/a' else {'value': []})) as (url, asked):
        fetch(f'{url}/a', tmp_path)
        bing_pages('cat', 3, url, 'key', 'mine')
    for _,_,headers in asked:
        assert re.match(rf'catdog/[\d.]+ \({words}[^)]*\) python-requests/', headers['User-Agent'])
        assert 'X-Evil' not in headers
    assert len(asked) == 2

@pytest.mark.parametrize('netrc', [False, True])
def test_proxies_of_the_environment_are_used(tmp_path, monkeypatch, netrc):
    "And asked for the address as it is"
    if netrc:
        (tmp_path/'netrc').write_text(NETRC['default'])
        (tmp_path/'netrc').chmod(0o600)
        monkeypatch.setenv('NETRC', str(tmp_path/'netrc'))
    def proxy(target): return 200, {}, JPEG if target.startswith('http://images') else b'{"value": []}'
    with serve_anything(proxy) as (port, asked):
        monkeypatch.setenv('http_proxy', f'http://127.0.0.1:{port}')
        assert fetch('http://images.example/a%2fb c%.jpg', tmp_path/'got').status == 'ok'
        bing_pages('cat', 3, 'http://search.example/v7', 'key', 'mine')
    assert asked[0][0] == 'http://images.example/a%2fb%20c%.jpg'
    assert asked[1][0].startswith('http://search.example/v7?q=cat')
    assert 'Authorization' not in asked[0][1] | asked[1][1]

def test_a_proxy_that_dribbles_is_cut_off(tmp_path, monkeypatch):
    with socket.create_server(('127.0.0.1', 0)) as proxy:   # it takes the connection and says nothing
        monkeypatch.setenv('http_proxy', f'http://127.0.0.1:{proxy.getsockname()[1]}')
        class Slow(threading.Thread):
            def run(self):
                conn = proxy.accept()[0]
                try:
                    for o in b'HTTP/1.1 200 OK\r\nX: ' + b'x'*1000:
                        conn.send(bytes([o]))
                        threading.Event().wait(.05)
                except OSError: pass   # cut off
        thread = Slow(daemon=True)
        thread.start()
        assert fetch('http://images.example/a.jpg', tmp_path, timeout=.3).status == 'timed-out'
        thread.join(5)
        assert not thread.is_alive()

# --- Opt-outs

ROBOTS = {   # headers -> the word that counts
    ('noai',): 'noai', ('noindex, nofollow',): 'noindex', ('otherbot: noindex',): None,
    ('catdog: noimageai',): 'noimageai', ('max-image-preview:large, noai, noimageai',): 'noai',
    ('max-snippet:-1, noindex',): 'noindex', ('noml',): 'noml',
    ('max-video-preview: -1, noimageindex',): 'noimageindex', ('otherbot: noai',): None, ('none',): 'none',
    ('unavailable_after: 25 Jun 2999 15:00:00 PST, noai',): 'noai',
    ('unavailable_after: 25 Jun 2010 15:00:00 PST',): 'unavailable_after',
    ('unavailable_after: Friday, 25-Jun-60 15:00:00 GMT, NoML',): 'noml', ('max-snippet:50', 'noai'): 'noai',
    ('otherbot: noindex', 'noml'): 'noml', ('otherbot: noai, max-snippet: 3',): None,
    ('unavailable_after: 25 Jun 2010',): 'unavailable_after',
    ('unavailable_after: 25 Jun 10, all',): 'unavailable_after',
    ('unavailable_after: Fri, 25 Jun 2010',): 'unavailable_after', ('unavailable_after: 25 Jun 2999',): None,
    ('unavailable_after: 2010-06-25T15:00:00Z',): 'unavailable_after', ('NOAI; noimageai',): 'noai',
    ('otherbot: unavailable_after: 25 Jun 2010', '*: noml'): 'noml',
    ('googlebot: noindex, catdog: noai',): 'noai',
    ('googlebot: max-snippet:5, noai',): None, ('all', 'max-image-preview:standard'): None, ('index, follow',): None}

@pytest.mark.parametrize('tags,word', ROBOTS.items())
def test_robots_tag_for_us_is_respected(tmp_path, tags, word):
    with serve_anything(lambda target: (200, [('X-Robots-Tag', o) for o in tags], JPEG)) as (port, _):
        o = fetch(f'http://127.0.0.1:{port}/', tmp_path)
        assert o.status == ('refused' if word else 'ok') and (not word or f'(X-Robots-Tag: {word})' in o.reason)
        if word: assert fetch(f'http://127.0.0.1:{port}/', tmp_path, ignore_robots=[word, 'noimageai']).status == 'ok'

def test_what_is_ignored_has_to_be_named(tmp_path):
    with serve_anything(lambda target: (200, {'X-Robots-Tag': 'noindex, noai'}, JPEG)) as (port, asked):
        url = f'http://127.0.0.1:{port}/'
        assert '(X-Robots-Tag: noai)' in fetch(url, tmp_path, ignore_robots=['NoIndex']).reason
        with pytest.raises(CatdogError, match="'all' is no rule"): fetch(url, tmp_path, ignore_robots=['all'])
        assert len(asked) == 1

# --- Services that do not behave

def test_a_service_that_dribbles_is_cut_off(monkeypatch):
    monkeypatch.setattr('catdog.web.engines.ANSWER_SECONDS', .3)
    done = threading.Event()
    class Drip(BaseHTTPRequestHandler):
        def log_message(self, *args): pass
        def do_GET(self):
            try:
                self.send_response(200)
                self.end_headers()
                while not done.wait(.05):
                    self.wfile.write(b' ')
                    self.wfile.flush()
            except OSError: done.set()   # the client has left
    server = ThreadingHTTPServer(('127.0.0.1', 0), Drip)
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
    try:
        with pytest.raises(SearchError, match='cannot be reached'):
            bing_pages('cat', 3, f'http://127.0.0.1:{server.server_port}/', 'key', 'mine')
        assert done.wait(5)
    finally:
        done.set()
        server.shutdown()
        server.server_close()

def test_a_service_that_sends_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr('catdog.web.engines.ANSWER_BYTES', 100_000)
    with serve(lambda *args: (200, {}, b' '*200_000)) as (url, _):
        with pytest.raises(SearchError, match='more than 100,000 bytes'): bing_pages('cat', 3, url, 'key', 'mine')
