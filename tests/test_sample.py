"""The sample web as a server: connections, threads, other processes. What fits in a cell is in
nbs/web/sample.ipynb, sample_http.ipynb and faults.ipynb."""
import http.client, os, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest, requests

from catdog.core.errors import ImageError
from catdog.core.images import open_image
from catdog.sample.server import ANSWERS, SERVED_FORMATS
from catdog.sample.server import SampleWeb

KEY = {'Ocp-Apim-Subscription-Key': 'any'}

def search(web, q='cat', **params):
    res = requests.get(web.endpoint, params=dict(q=q, **params), headers=KEY, timeout=20)
    res.raise_for_status()
    return res.json()

def addresses(web, q='cat', **params): return [o['contentUrl'] for o in search(web, q, **params)['value']]

def run(code, **env):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120,
                          env=os.environ | env)

def test_connection_stays_open_for_many_requests():
    with SampleWeb() as web:
        host = http.client.HTTPConnection('127.0.0.1', int(web.url.rpartition(':')[2]), timeout=20)
        host.connect()
        mine = host.sock.getsockname()
        for url in addresses(web, count=40):
            host.request('GET', url.removeprefix(web.url))
            answer = host.getresponse()
            assert len(answer.read()) == int(answer.headers['Content-Length'])
            assert host.sock and host.sock.getsockname() == mine   # http.client drops the socket when told to close
        host.close()

def test_head_has_no_body():
    with SampleWeb(faults=None) as web:
        url = addresses(web, count=1)[0]
        with requests.Session() as s:
            assert s.head(url).content == b'' and int(s.head(url).headers['Content-Length']) == len(s.get(url).content)

def test_request_with_a_body_ends_its_connection():
    with SampleWeb() as web:
        host = http.client.HTTPConnection('127.0.0.1', int(web.url.rpartition(':')[2]), timeout=20)
        host.request('POST', '/v7.0/images/search', body=b'GET / HTTP/1.1\r\n\r\n')
        answer = host.getresponse()
        assert answer.status == 405 and answer.headers['Connection'] == 'close'

def test_many_visitors_at_once_get_what_one_gets():
    with SampleWeb(seed=3) as web:
        urls = addresses(web, count=60)
        with ThreadPoolExecutor(24) as pool: first = list(pool.map(lambda u: requests.get(u, timeout=60).content, urls))
        assert first == [requests.get(u, timeout=60).content for u in urls]

def test_searches_at_once_agree():
    pause = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)   # let the threads get into each other's way
    try:
        with SampleWeb(seed=4) as web, ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: addresses(web, 'dog', count=150, offset=2000), range(12)))
    finally: sys.setswitchinterval(pause)
    assert all(o == answers[0] for o in answers) and len(set(answers[0])) == 150
    with SampleWeb(seed=4, port=int(web.url.rpartition(':')[2])) as again:
        assert [o.replace(again.url, web.url) for o in addresses(again, 'dog', count=150, offset=2000)] == answers[0]

def test_stop_closes_open_connections_and_ends_a_stall():
    web = SampleWeb(faults=dict(stall=1)).start()
    url = addresses(web, count=1)[0]
    stalled = requests.get(url, stream=True, timeout=60)
    idle = http.client.HTTPConnection('127.0.0.1', int(web.url.rpartition(':')[2]), timeout=60)
    idle.request('GET', '/nothing')
    idle.getresponse().read()
    body = stalled.iter_content(1000)
    next(body)
    web.stop()
    with pytest.raises(requests.exceptions.RequestException): list(body)   # the half, then the end
    assert idle.sock.recv(10) == b''
    with pytest.raises(requests.ConnectionError): requests.get(url, timeout=5)

def test_starts_again_after_a_stop():
    web = SampleWeb()
    for _ in range(2):
        with web: assert len(addresses(web, count=5)) == 5

def test_latency_is_kept():
    with SampleWeb(faults=None, latency=(.2, .3)) as web:
        url = addresses(web, count=1)[0]
        start = time.perf_counter()
        requests.get(url)
        assert time.perf_counter()-start >= .2

def test_taken_port_falls_back_to_a_free_one():
    with SampleWeb() as one, SampleWeb(port=int(one.url.rpartition(':')[2])) as two: assert one.url != two.url

def test_same_images_in_every_process():
    code = """
import hashlib
from catdog.sample.draw import draw
pixels = b''.join(draw(o, i, (80, 60)).tobytes() for o in ('cat', 'dog', 'apple', 'fish') for i in range(5))
print(hashlib.sha256(pixels).hexdigest())"""
    one,two = run(code, PYTHONHASHSEED='1'),run(code, PYTHONHASHSEED='2')
    assert one.returncode == 0, one.stderr
    assert one.stdout == two.stdout

def test_process_ends_although_the_web_still_runs():
    res = run('from catdog.sample.server import sample_web; print(sample_web().url)')
    assert res.returncode == 0 and res.stdout.startswith('http://127.0.0.1:') and res.stderr == ''

def test_log_is_quiet():
    res = run("""
import requests
from catdog.sample.server import SampleWeb
with SampleWeb(faults=dict.fromkeys(['not-found', 'server-error-once'], .5)) as web:
    found = requests.get(web.endpoint, params=dict(q='cat', count=10), headers={'Ocp-Apim-Subscription-Key': 'any'})
    for o in found.json()['value']: requests.get(o['contentUrl'])
    print(requests.get(web.url + '/nothing/here').status_code)""")
    assert (res.stdout, res.stderr) == ('404\n', '')

def test_module_is_light():
    heavy = ('torch', 'fastai', 'requests', 'pandas', 'matplotlib')
    res = run(f'import catdog.sample.server, sys; print([o for o in {heavy} if o in sys.modules])')
    assert res.stdout.strip() == '[]', res.stdout + res.stderr

@pytest.mark.parametrize('label', ['Ärger & Söhne', '猫', '../../etc', 'a/b?c#d', '100%', "l'été"])
def test_strange_words(label):
    with SampleWeb(faults=None) as web:
        found = search(web, label, count=3)['value']
        assert len(found) == 3
        for o in found:
            for kind in ('contentUrl', 'hostPageUrl', 'thumbnailUrl'): assert requests.get(o[kind]).ok
            assert web.truth(o['contentUrl'])['valid']

@pytest.mark.parametrize('name', ['min_width', 'min_height', 'minwidth', 'page', 'key', 'safe_search'])
def test_a_parameter_that_the_protocol_does_not_know_is_refused(name):
    with SampleWeb() as web:
        res = requests.get(web.endpoint, params={'q': 'cat', name: 128}, headers=KEY)
        assert res.status_code == 400 and res.json()['errors'][0]['parameter'] == name
        ours = dict(q='cat', minWidth=128, minHeight=128, safeSearch='Strict', mkt='en-US', imageType='Photo')
        assert requests.get(web.endpoint, params=ours, headers=KEY).ok

# --- What each kind of address answers

@pytest.fixture(scope='module')
def hard():
    "A web of which every result is a fault, as many of each kind"
    with SampleWeb(faults={o: 1/len(ANSWERS) for o in ANSWERS if o != 'ok'}) as web: yield web

def first_of(web, kind): return next(o for o in web.results('cat') if o.kind == kind)

def ask(url, patience=60, limit=2**20):
    "Status, and what a client sees that waits `patience` seconds for the next byte and takes at most `limit` bytes"
    data = b''
    with requests.get(url, stream=True, timeout=patience) as answer:
        try:
            for chunk in answer.iter_content(2**16):
                data += chunk
                if len(data) > limit: break
            return answer.status_code, open_image(data).size if answer.ok else None
        except requests.exceptions.ConnectionError: return answer.status_code, 'silence'
        except ImageError as e: return answer.status_code, e.status

SOUND = ('ok', 'duplicate', 'near-duplicate', 'huge', 'wrong-label', 'redirect', 'server-error-once', 'rate-limit')
FAULTY = {'html': 'not-an-image', 'truncated': 'truncated', 'tiny': (16, 16), 'stall': 'silence', 'bomb': 'too-large',
          'large-body': 'not-an-image', 'not-found': None}
ONCE = {'server-error-once': 500, 'rate-limit': 429}

@pytest.mark.parametrize('kind', (*SOUND, *SERVED_FORMATS))
def test_sound_address_gives_the_image(hard, kind):
    o = first_of(hard, kind)
    if kind in ONCE: assert ask(o.url) == (ONCE[kind], None)
    assert ask(o.url) == (200, o.size) and hard.truth(o.url)['valid']

@pytest.mark.parametrize('kind,seen', FAULTY.items())
def test_faulty_address_gives_its_fault(hard, kind, seen):
    o = first_of(hard, kind)
    assert ask(o.url, 3 if kind == 'stall' else 60) == (404 if kind == 'not-found' else 200, seen)
    assert not hard.truth(o.url)['valid']

def test_copies_are_of_their_original(hard):
    copy,near = first_of(hard, 'duplicate'),first_of(hard, 'near-duplicate')
    assert copy.url != copy.truth['original']
    assert requests.get(copy.url).content == requests.get(copy.truth['original']).content
    one,two = (requests.get(o).content for o in (near.url, near.truth['original']))
    a,b = (np.asarray(open_image(o).resize((32, 32))).astype(int) for o in (one, two))
    assert one != two and abs(a - b).mean() < 6

def test_what_else_an_address_says(hard):
    assert first_of(hard, 'wrong-label').truth['drawn'] == 'dog'
    assert requests.get(first_of(hard, 'no-ai').url).headers['X-Robots-Tag'] == 'noai, noimageai'
    o = first_of(hard, 'redirect')
    assert requests.get(o.url).url == o.url.replace('images', 'moved')
