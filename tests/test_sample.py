"The sample web: drawings, the search protocol, faults, connections, threads, processes"
import http.client, itertools, os, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest, requests

from catdog.core.errors import CatdogError, ImageError
from catdog.core.images import open_image
from catdog.sample.server import FAULTS, SampleWeb

@pytest.fixture(scope='module')
def web():
    "A web with every fault, and a third of its results without"
    with SampleWeb(faults=dict.fromkeys(FAULTS, .06)) as web: yield web

def ask(web, q='cat', key='any', **params):
    return requests.get(web.endpoint, dict(q=q, **params), headers={'Ocp-Apim-Subscription-Key': key}, timeout=20)

def search(web, q='cat', **params):
    res = ask(web, q, **params)
    res.raise_for_status()
    return res.json()

def urls(web, q='cat', **params): return [o['contentUrl'] for o in search(web, q, **params)['value']]
def first_of(web, kind): return next(o for o in web.results('cat') if o.kind == kind)
def connect(web): return http.client.HTTPConnection('127.0.0.1', int(web.url.rpartition(':')[2]), timeout=20)
def python(code, **env):
    env = os.environ | env
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120, env=env)

# --- Drawings

def test_same_images_in_every_thread_and_process():
    code = """
import zlib
from concurrent.futures import ThreadPoolExecutor
from catdog.sample.draw import draw
def pixels(i): return b''.join(draw(o, i, (80, 60)).tobytes() for o in ('cat', 'dog', 'apple', 'fish'))
with ThreadPoolExecutor(4) as pool: assert list(pool.map(pixels, range(8))) == [pixels(i) for i in range(8)]
print(zlib.crc32(pixels(0)))"""
    one,two = python(code, PYTHONHASHSEED='1'),python(code, PYTHONHASHSEED='2')
    assert one.stdout == two.stdout != '', one.stderr

# --- The search protocol

@pytest.mark.parametrize('params', [dict(q=''), dict(count='many'), dict(offset='-1'), dict(minWidth='1.5')])
def test_wrong_parameters_are_refused(web, params):
    res = ask(web, **params)
    assert res.status_code == 400 and 'invalid value' in res.json()['errors'][0]['message']

@pytest.mark.parametrize('key', ['', 'wrong'])
def test_wrong_keys_are_refused(web, key): assert ask(web, key=key).status_code == 401

def test_pages_of_results(web):
    assert sum([urls(web, count=40, offset=o) for o in (0, 40, 80)], []) == urls(web, count=120)
    assert search(web, count=40, offset=40)['nextOffset'] == 80
    assert len(set(urls(web, count=1000))) == 150
    ours = dict(minWidth=500, minHeight=300, count=50, safeSearch='Strict', mkt='en-US', imageType='Photo')
    large = search(web, **ours)['value']
    assert len(large) == 50 and all(o['width'] >= 500 and o['height'] >= 300 for o in large)
    end = search(web, offset=10_000)
    assert (end['value'], end['nextOffset'], end['totalEstimatedMatches']) == ([], 10_000, 10_000)

@pytest.mark.parametrize('label', ['Ärger & Söhne', '猫', '../../etc', 'a/b?c#d', '100%', "l'été"])
def test_strange_words(web, label):
    found = search(web, label, count=3)['value']
    assert len(found) == 3
    for o in found: assert requests.get(o['hostPageUrl']).ok
    assert web.truths[found[0]['contentUrl']]['drawn']

@pytest.mark.parametrize('query, label', [
    ('cat photo', 'cat'), ('a tabby cat outdoors', 'tabby cat'), ('photo', 'photo'), ('Dogs', 'dogs')])
def test_filler_words_are_ignored(web, query, label):
    found, = urls(web, query, count=1)
    assert web.truths[found]['label'] == label

@pytest.mark.parametrize('path', [
    '/', '/images/cat/99999.jpg', '/images/cat/00003.tiff', '/images/cat/x.jpg', '/other/cat/3'])
def test_no_such_page(web, path):
    assert requests.get(web.url + path).status_code == 404

# --- What each kind of URL returns

def fetch(url, patience=60, limit=2**20):
    "Return the status, and what a client sees that waits `patience` seconds for a byte and reads at most `limit` bytes"
    data = b''
    with requests.get(url, stream=True, timeout=patience) as answer:
        try:
            for chunk in answer.iter_content(2**16):
                data += chunk
                if len(data) > limit: break
            return answer.status_code, open_image(data).size if answer.ok else None
        except requests.exceptions.ConnectionError: return answer.status_code, 'silence'
        except ImageError as e: return answer.status_code, e.status

BAD = {'html': 'not-an-image', 'truncated': 'truncated', 'tiny': (16, 16), 'stall': 'silence', 'not-found': None}

@pytest.mark.parametrize('kind', [o for o in ('ok', *FAULTS) if o not in BAD])
def test_good_url_returns_the_image(web, kind):
    o = first_of(web, kind)
    assert fetch(o.url) == (200, o.size) and o.truth['valid']

def test_formats_of_the_web(web):
    kinds = {(o.format, o.type): o for o in itertools.islice(web.results('cat'), 200) if o.kind == 'ok'}
    assert {o for o,_ in kinds} == {'jpeg', 'png', 'webp', 'gif', 'cmyk', 'rotated'}
    for (_,kind),o in kinds.items():
        answer = requests.get(o.url)
        assert answer.headers['Content-Type'] == kind and open_image(answer.content).size == o.size

@pytest.mark.parametrize('kind, seen', BAD.items())
def test_bad_url_has_its_fault(web, kind, seen):
    o = first_of(web, kind)
    assert fetch(o.url, 2 if kind == 'stall' else 60) == (404 if kind == 'not-found' else 200, seen)
    assert not o.truth['valid']

def test_copies_match_their_original(web):
    copy,near = first_of(web, 'duplicate').truth,first_of(web, 'near-duplicate')
    assert requests.get(first_of(web, 'duplicate').url).content == requests.get(copy['original']).content
    one,two = (requests.get(o).content for o in (near.url, near.truth['original']))
    a,b = (np.asarray(open_image(o).resize((32, 32))).astype(int) for o in (one, two))
    assert one != two and abs(a - b).mean() < 6

def test_wrong_label_shows_another_animal(web): assert first_of(web, 'wrong-label').truth['drawn'] == 'dog'

# --- Faults

@pytest.mark.parametrize('options, message', [
    (dict(faults=dict(fog=.1)), 'no such fault: fog'), (dict(faults=dict(html=.7, tiny=.6)), 'together at most 1'),
    (dict(faults=-.5), 'between 0 and 1')])
def test_wrong_options_are_refused(options, message):
    with pytest.raises(CatdogError, match=message): SampleWeb(**options)

@pytest.mark.parametrize('faults, shares', [
    (.2, {'ok': .8, 'html': .025, 'duplicate': .025, 'wrong-label': .025}), (None, {'ok': 1}),
    (dict(html=.5), {'ok': .5, 'html': .5})])
def test_shares_of_faults(faults, shares):
    kinds = [o.kind for o in itertools.islice(SampleWeb(faults=faults).results('cat'), 4000)]
    for kind,share in shares.items(): assert abs(kinds.count(kind)/4000 - share) < .025*share**.5, kind

def test_same_seed_same_results(web):
    def _results(**kw): return [(o.kind, o.source) for o in itertools.islice(SampleWeb(**kw).results('dog'), 100)]
    assert _results() == _results() != _results(seed=1)
    web_again = SampleWeb(faults=web.faults)
    pause = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)   # many thread switches
    try:
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: urls(web, 'dog', count=150, offset=2000), range(12)))
    finally: sys.setswitchinterval(pause)
    there = [web.url + o.path for o in itertools.islice(web_again.results('dog'), 2000, 2150)]
    assert all(o == there for o in answers)

# --- Connections, threads and processes

def test_connection_stays_open_for_many_requests(web):
    host = connect(web)
    host.connect()
    mine = host.sock.getsockname()
    for o in itertools.islice((o for o in web.results('cat') if o.kind != 'stall'), 30):
        host.request('GET', o.path)
        answer = host.getresponse()
        assert len(answer.read()) == int(answer.headers['Content-Length'])
        assert host.sock and host.sock.getsockname() == mine   # http.client drops the socket when told to close
    host.close()

def test_other_methods(web):
    host = connect(web)
    host.request('POST', '/v7.0/images/search', body=b'GET / HTTP/1.1\r\n\r\n')   # not taken for a second request
    answer = host.getresponse()
    assert answer.status == 501 and answer.headers['Connection'] == 'close'

def test_concurrent_clients_get_the_same_results(web):
    some = [o.url for o in itertools.islice(web.results('dog'), 40) if o.kind in ('ok', 'duplicate', 'truncated')]
    def _get(url): return requests.get(url, timeout=60).content
    with ThreadPoolExecutor(24) as pool: assert list(pool.map(_get, some)) == [_get(o) for o in some]

def test_stop_closes_connections_and_start_works_again():
    web = SampleWeb(faults=dict(stall=1)).start()
    url = urls(web, count=1)[0]
    body,idle = requests.get(url, stream=True, timeout=60).iter_content(1000),connect(web)
    idle.request('GET', '/nothing')
    idle.getresponse().read()
    next(body)
    web.stop()
    with pytest.raises(requests.exceptions.RequestException): list(body)   # half of the image, then the end
    assert idle.sock.recv(10) == b''
    with pytest.raises(requests.ConnectionError): requests.get(url, timeout=5)
    web.stop()   # once more does no harm
    with web: assert urls(web, count=1)[0].startswith(web.url)

def test_latency_and_a_port_in_use(web):
    with SampleWeb(faults=None, latency=(.2, .3), port=int(web.url.rpartition(':')[2])) as slow:
        assert slow.url != web.url
        url,start = urls(slow, count=1)[0],time.perf_counter()
        requests.get(url)
        assert time.perf_counter() - start >= .2

@pytest.mark.parametrize('before', ['None', 'as it was'])
def test_the_environment_is_restored(before):
    res = python(f"""
import os
from catdog.sample.server import SampleWeb, sample_web
def now(): return os.environ.get('CATDOG_ALLOW_PRIVATE')
os.environ.pop('CATDOG_ALLOW_PRIVATE', None)   # the tests' own
if {before!r} != 'None': os.environ['CATDOG_ALLOW_PRIVATE'] = {before!r}
with SampleWeb() as outer:
    with SampleWeb() as inner: assert sample_web() is inner
    assert now() == '1' and sample_web() is outer
assert str(now()) == {before!r}""")
    assert res.returncode == 0, res.stderr

def test_process_prints_nothing_and_ends():
    res = python("""
import sys
from catdog.sample.server import sample_web
web = sample_web()
print([o for o in ('torch', 'fastai', 'requests', 'pandas', 'matplotlib') if o in sys.modules])
import requests
found = requests.get(web.endpoint, dict(q='cat', count=10), headers={'Ocp-Apim-Subscription-Key': 'any'})
for o in found.json()['value']: requests.get(o['contentUrl'])
print(requests.get(web.url + '/nothing/here').status_code)""")
    assert (res.returncode, res.stdout, res.stderr) == (0, '[]\n404\n', '')
