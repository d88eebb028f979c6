"""Whom we fetch from, how many at a time, and who may say no.
What fits in a cell is in nbs/web/http.ipynb, addresses.ipynb and deadlines.ipynb; servers that misbehave are in
test_download.py."""
import socket, threading, time
from collections import Counter

from catdog.core.images import jpeg_bytes
from catdog.web import addresses
from catdog.web.download import download_images
from catdog.web.http import PER_HOST, HostLimit
from web_helpers import picture, serve

def fetch(url, tmp_path): return download_images([url], tmp_path)[0]

def test_name_that_resolves_to_this_machine_is_refused(monkeypatch, tmp_path):
    "DNS rebinding: whatever the name said before, the address of the connection counts"
    monkeypatch.delenv('CATDOG_ALLOW_PRIVATE', raising=False)
    real = socket.getaddrinfo
    def lying(host, *args, **kwargs): return real('127.0.0.1' if host == 'pictures.example' else host, *args, **kwargs)
    monkeypatch.setattr(socket, 'getaddrinfo', lying)
    with serve(lambda *args: (200, {}, jpeg_bytes(picture()))) as (url, asked):
        o = fetch(url.replace('127.0.0.1', 'pictures.example'), tmp_path)
        assert (o.status, asked) == ('refused', []) and 'CATDOG_ALLOW_PRIVATE' in o.reason
        monkeypatch.setenv('CATDOG_ALLOW_PRIVATE', '1')
        assert fetch(url.replace('127.0.0.1', 'pictures.example'), tmp_path).status == 'ok'

def test_redirect_into_the_private_network_is_refused(monkeypatch, tmp_path):
    monkeypatch.delenv('CATDOG_ALLOW_PRIVATE', raising=False)
    private = addresses._is_private
    # as if 127.0.0.1 were on the internet
    monkeypatch.setattr(addresses, '_is_private', lambda o: o != '127.0.0.1' and private(o))
    with serve(lambda path, *args: (302, {'Location': target}, b'')) as (url, asked):
        for target in (url.replace('127.0.0.1', '127.0.0.2'), 'http://169.254.169.254/latest', 'file:///etc/passwd'):
            assert fetch(url, tmp_path).status == 'refused'
    assert len(asked) == 3

def test_at_most_eight_at_one_host_and_none_while_it_asks_to_wait(monkeypatch, tmp_path):
    monkeypatch.setenv('CATDOG_ALLOW_PRIVATE', '1')
    here,most,lock,together = Counter(),Counter(),threading.Lock(),threading.Barrier(PER_HOST)
    def answer(path, params, headers):
        with lock:
            here['now'] += 1
            most['now'] = max(most['now'], here['now'])
        time.sleep(.05)   # time for a ninth to come, if it may
        together.wait(20)   # eight must be here at once before any is answered
        with lock: here['now'] -= 1
        return 200, {}, data[path]
    data = {f'/{i}.jpg': jpeg_bytes(picture(i)) for i in range(40)}
    with serve(answer) as (url, asked):
        assert {o.status for o in download_images([url + o for o in data], tmp_path)} == {'ok'}
    assert most['now'] == PER_HOST

    waited = []
    monkeypatch.setattr(HostLimit, 'pause', lambda self, host, seconds: waited.append((host, seconds)))
    def busy(path, params, headers):
        return (503, {'Retry-After': '7'}, b'') if len(asked) == 1 else (200, {}, data['/1.jpg'])
    with serve(busy) as (url, asked): assert fetch(url, tmp_path).status == 'ok'
    assert waited == [('127.0.0.1', 7)]

def test_robots_tag_for_us_is_respected(monkeypatch, tmp_path):
    monkeypatch.setenv('CATDOG_ALLOW_PRIVATE', '1')
    for tag,status in {'noai': 'refused', 'noindex, nofollow': 'refused', 'otherbot: noindex': 'ok',
                       'catdog: noimageai': 'refused'}.items():
        with serve(lambda *args: (200, {'X-Robots-Tag': tag}, jpeg_bytes(picture()))) as (url, _):
            assert fetch(url, tmp_path).status == status, tag
