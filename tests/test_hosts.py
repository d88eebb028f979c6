"""How often a host is asked: at most so many at a time, a pause when it says so, left alone when it refuses again and
again. What fits in a cell is in nbs/web/hosts.ipynb."""
import threading, time
from collections import Counter

import pytest

from catdog.core.images import jpeg_bytes
from catdog.web import download
from catdog.web.download import download_images
from catdog.web.http import GIVE_UP, PER_HOST, TRIES, HostLimit
from web_helpers import image, resolving, serve

DATA = [jpeg_bytes(image(i, (80, 60))) for i in range(40)]

@pytest.fixture(autouse=True)
def private(monkeypatch): monkeypatch.setenv('CATDOG_ALLOW_PRIVATE', '1')

class Crowd:
    "Counts how many requests of each kind are being answered at once"
    def __init__(self): self.now,self.most,self.lock = Counter(),Counter(),threading.Lock()
    def answer(self, kind, seconds):
        with self.lock:
            self.now[kind] += 1
            self.most[kind] = max(self.most[kind], self.now[kind])
        time.sleep(seconds)
        with self.lock: self.now[kind] -= 1

def test_at_most_eight_at_one_host_and_none_while_it_asks_to_wait(monkeypatch, tmp_path):
    crowd,together = Crowd(),threading.Barrier(PER_HOST)
    def answer(path, params, headers):
        together.wait(20)   # eight must be here at once before any is answered
        crowd.answer('all', .05)   # time for a ninth to come, if it may
        return 200, {}, DATA[int(path[1:])]
    with serve(answer) as (url, asked):
        assert {o.status for o in download_images([f'{url}/{i}' for i in range(40)], tmp_path)} == {'ok'}
    assert crowd.most['all'] <= PER_HOST

    waited = []
    monkeypatch.setattr(HostLimit, 'pause', lambda self, host, seconds: waited.append((host, seconds)))
    def busy(path, params, headers): return (503, {'Retry-After': '7'}, b'') if len(asked) == 1 else (200, {}, DATA[1])
    with serve(busy) as (url, asked): assert download_images([url], tmp_path)[0].status == 'ok'
    assert waited == [('127.0.0.1', 7)]

def test_at_most_two_at_all_hosts_of_wikimedia_together(tmp_path):
    "https://wikitech.wikimedia.org/wiki/Robot_policy: 'a total concurrency of at most 2'; redirects lead there too"
    hosts = ('upload.wikimedia.org', 'commons.wikimedia.org', 'en.wikipedia.org', 'short.example', 'de.wikinews.org',
             'upload.wmfusercontent.org', 'commons.wmcloud.org', 'en.wikiversity.org')
    crowd = Crowd()
    def answer(path, params, headers):
        host,port = headers['Host'].split(':')
        if host == 'short.example': return 302, {'Location': f'http://upload.wikimedia.org:{port}{path}'}, b''
        crowd.answer('wikimedia', .03)
        return 200, {}, DATA[int(path[1:])]
    with serve(answer) as (url, asked), resolving(*hosts):
        urls = [url.replace('127.0.0.1', hosts[i%len(hosts)]) + f'/{i}' for i in range(40)]
        assert {o.status for o in download_images(urls, tmp_path)} == {'ok'}
    assert crowd.most == {'wikimedia': 2}

@pytest.mark.parametrize('retry_after', [None, '1', '3600'])
def test_a_host_that_refuses_again_and_again_is_left_alone(tmp_path, retry_after):
    "It costs seconds in all, not for each image, and what other hosts have is not lost"
    def answer(path, params, headers):
        if headers['Host'].startswith('busy.'): return 429, {'Retry-After': retry_after} if retry_after else {}, b''
        return 200, {}, DATA[int(path[1:])]
    start = time.monotonic()
    with serve(answer) as (url, asked), resolving('busy.example', 'good.example'):
        urls = [url.replace('127.0.0.1', ('busy.example', 'good.example')[i%2]) + f'/{i}' for i in range(40)]
        outcomes = download_images(urls, tmp_path)
    refused = [o for _,_,o in asked if o['Host'].startswith('busy.')]
    assert [o.status for o in outcomes] == ['http-429', 'ok']*20
    assert len(refused) <= PER_HOST + GIVE_UP and time.monotonic() - start < 12
    assert 'asks again and again to be left alone' in outcomes[-2].reason

def test_a_host_that_recovers_is_not_left_alone(tmp_path):
    "It allows five requests, then none until it has been left alone for a second"
    lock,allowed = threading.Lock(),[5, 0.]
    def answer(path, params, headers):
        with lock:
            if time.monotonic() > allowed[1]: allowed[:] = [5, float('inf')]
            if allowed[0]:
                allowed[0] -= 1
                return 200, {}, DATA[int(path[1:])]
            allowed[1] = time.monotonic() + .9
            return 429, {'Retry-After': '1'}, b''
    with serve(answer) as (url, asked):
        outcomes = download_images([f'{url}/{i}' for i in range(25)], tmp_path)
    assert Counter(o.status for o in outcomes) == {'ok': 25}

def test_a_host_that_never_answers_is_left_alone(tmp_path):
    gone = threading.Event()
    with serve(lambda *args: gone.wait(60) and None) as (url, asked):
        start = time.monotonic()
        outcomes = download_images([f'{url}/{i}' for i in range(40)], tmp_path, timeout=.3)
        gone.set()
    assert {o.status for o in outcomes} == {'timed-out'} and len(asked) <= 2*PER_HOST and time.monotonic() - start < 5
    assert 'its server took too long, as for the' in outcomes[-1].reason

def test_one_that_stumbles_now_and_then_is_asked_for_everything(tmp_path):
    "Every third image cannot be had: that is no reason to leave the others"
    def answer(path, params, headers):
        i = int(path[1:])
        return (500 if i%3 else 200), {'Retry-After': '0'}, DATA[i]
    with serve(answer) as (url, asked):
        outcomes = download_images([f'{url}/{i}' for i in range(12)], tmp_path)
    assert [o.status for o in outcomes] == ['ok', 'http-500', 'http-500']*4
    assert Counter(path for path,_,_ in asked) == {f'/{i}': TRIES if i%3 else 1 for i in range(12)}

def test_the_whole_of_a_download_ends(monkeypatch, tmp_path):
    "Every image takes long; what has not been begun in time has an outcome all the same"
    monkeypatch.setattr(download, 'SECONDS', .5)
    monkeypatch.setattr(download, 'SECONDS_EACH', 0)
    def slow(path, params, headers):
        time.sleep(.2)
        return 200, {}, DATA[int(path[1:])]
    with serve(slow) as (url, asked):
        outcomes = download_images([f'{url}/{i}' for i in range(40)], tmp_path)
    assert len(outcomes) == 40 and {o.status for o in outcomes} == {'ok', 'timed-out'}
    assert 8 <= len(asked) <= 32 and {o.reason for o in outcomes} == {'', 'there was no time left for it'}
