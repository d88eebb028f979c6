"""`auto`: which engines are asked, and what happens when they cannot be reached or find nothing; safe search; terms."""
import os, time

import pytest

from catdog.core.errors import CatdogError, SearchError
from catdog.dataset.manifest import Photo
from catdog.sample.server import SampleWeb
from catdog.web import engines as search
from catdog.web.engines import ENGINES, search_images

@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    "No keys, proxies or earlier searches"
    for o in ('AZURE_SEARCH_KEY', 'CATDOG_BING_ENDPOINT', 'CATDOG_ENGINE'): monkeypatch.delenv(o, raising=False)
    for o in [o for o in os.environ if o.lower().endswith('_proxy')]: monkeypatch.delenv(o)
    monkeypatch.setattr(search, '_unreachable', {})

@pytest.fixture
def engines(monkeypatch):
    "A function that replaces engines"
    def _use(**kw):
        for k,v in kw.items(): monkeypatch.setitem(ENGINES, k, v)
    return _use

def broken(term, n): raise SearchError('ddg', 'it answered 429')
def unreachable(term, n): raise SearchError('ddg', 'it cannot be reached', offline=True)
def finds(engine, *numbers):
    return lambda term, n: [Photo(f'https://example.org/{i}.jpg', engine=engine) for i in numbers]

def test_without_internet_each_engine_is_asked_once_in_five_minutes(engines, monkeypatch, capsys):
    asked = []
    def gone(name):
        def _find(term, n):
            asked.append(name)
            raise SearchError(name, 'it cannot be reached', offline=True)
        return _find
    engines(**{o: gone(o) for o in ('ddg', 'openverse', 'commons')})
    with SampleWeb(): found = [p for o in ('cat', 'dog') for p in search_images(o, 3)]
    assert {p.engine for p in found} == {'sample'} and len(found) == 6
    assert asked == ['ddg', 'openverse', 'commons']
    assert capsys.readouterr().out.count('No search engine on the web can be reached: using the sample web') == 2
    search._unreachable['openverse'] -= 301
    with SampleWeb(): search_images('cat', 3)
    assert asked[3:] == ['openverse']

def test_bing_comes_first_when_it_has_a_key_and_an_endpoint(monkeypatch):
    monkeypatch.setenv('AZURE_SEARCH_KEY', 'XXX')
    assert 'bing' not in search._live_engines('moderate')
    monkeypatch.setenv('CATDOG_BING_ENDPOINT', 'https://bing.example/v7.0/images/search')
    assert search._live_engines('moderate')[0] == 'bing'

# --- Safe search

def test_safe_search_goes_to_every_engine_that_has_it(engines):
    asked = []
    def safe(term, n, safe): return asked.append(safe) or [Photo(f'https://example.org/{len(asked)}.jpg')]
    def none(term, n): return asked.append('none') or [Photo('https://example.org/0.jpg')]
    engines(ddg=safe, openverse=safe, commons=none)
    for o in search._SAFE: search_images('cat', 9, safe=o)
    # strict leaves out the last one
    assert asked == ['strict', 'strict', 'moderate', 'moderate', 'none', 'off', 'off', 'none']
    search.search_terms('cat', 1, 'ddg', safe='off')
    assert asked[-1] == 'off' and search_images('cat', 1, 'commons')
    with pytest.raises(SearchError, match='commons: it has no safe search'):
        search_images('cat', 1, 'commons', 'strict')
    with pytest.raises(CatdogError, match="no safe search 'on': use one of strict, moderate, off"):
        search_images('cat', 1, 'ddg', 'on')

# --- What `auto` does

def test_next_engine_adds_photos_without_duplicates(engines):
    engines(ddg=broken, openverse=finds('openverse', 0, 1), commons=finds('commons', *range(1, 9)))
    assert [(p.engine, p.url[-5:]) for p in search_images('cat', 4)] == [
        ('openverse', '0.jpg'), ('openverse', '1.jpg'), ('commons', '2.jpg'), ('commons', '3.jpg')]

def test_errors_of_all_engines_are_passed_on(engines):
    engines(ddg=broken, openverse=broken, commons=broken)
    with pytest.raises(SearchError, match='429'): search_images('cat', 4)

def test_no_drawings_when_nothing_is_found(engines):
    engines(ddg=finds('ddg'), openverse=unreachable, commons=unreachable)
    assert search_images('cat', 4) == []

def test_lost_engine_is_not_asked_again(engines):
    asked = []
    def gone(term, n):
        asked.append(term)
        return unreachable(term, n)
    engines(ddg=gone, openverse=finds('openverse', 0), commons=finds('commons', 1))
    for o in ('cat', 'dog'): search_images(o, 2)
    assert asked == ['cat']

def test_environment_replaces_only_auto(engines, monkeypatch):
    engines(ddg=finds('ddg', 0))
    monkeypatch.setenv('CATDOG_ENGINE', 'sample')
    with SampleWeb():
        assert search_images('cat', 1)[0].engine == 'sample'
        assert search_images('cat', 1, engine='ddg')[0].engine == 'ddg'

# --- What was found is kept when a later term or engine refuses

def refuses_after(k, engine='ddg', **kw):
    "An engine that finds three photos for each of the first `k` terms, then refuses"
    asked = []
    def _find(term, n):
        asked.append(term)
        if len(asked) > k: raise SearchError(engine, 'it answered 429; wait a minute', **kw)
        return [Photo(f'https://example.org/{term}/{i}.jpg', engine=engine, term=term) for i in range(3)]
    return _find,asked

@pytest.mark.parametrize('queries', [None, ['{}', 'a {}', '{} b', 'c {}']])
def test_photos_of_earlier_terms_are_kept_when_a_later_one_is_refused(monkeypatch, capsys, queries):
    find,asked = refuses_after(2)
    monkeypatch.setitem(ENGINES, 'test', find)
    found = search.search_terms('cat', 100, 'test', queries)
    assert len(found) == 6 and len(asked) == 3   # one that refuses is not asked for the rest
    assert 'it answered 429; wait a minute. The 6 photos that other terms found are kept.' in capsys.readouterr().out

def test_search_continues_after_a_term_without_results(monkeypatch, capsys):
    def find(term, n):
        if term != 'cat b': raise SearchError('ddg', f'it gave nothing for {term!r}', term=True)
        return [Photo('https://example.org/1.jpg')]
    monkeypatch.setitem(ENGINES, 'test', find)
    assert len(search.search_terms('cat', 100, 'test', ['{}', 'a {}', '{} b', 'c {}'])) == 1
    assert 'The 1 photos that other terms found are kept' in capsys.readouterr().out

def test_refusal_of_all_terms_is_an_error(monkeypatch):
    monkeypatch.setitem(ENGINES, 'test', refuses_after(0)[0])
    with pytest.raises(SearchError, match='429'): search.search_terms('cat', 100, 'test')

def test_auto_reports_refusals_and_keeps_other_results(engines, capsys):
    engines(ddg=finds('ddg', 0), openverse=refuses_after(0, 'openverse')[0], commons=unreachable)
    assert len(search_images('cat', 4)) == 1
    said = capsys.readouterr().out
    assert 'openverse: it answered 429; wait a minute. What other engines found is kept.' in said
    assert 'it cannot be reached. What other' in said

def test_urls_of_earlier_labels_are_written_when_a_later_one_is_refused(monkeypatch, tmp_path):
    import pyarrow.parquet as pq
    monkeypatch.setitem(ENGINES, 'test', refuses_after(2)[0])
    with pytest.raises(SearchError, match='ddg: it answered 429'):
        search.save_urls(['cat', 'dog', 'bird'], tmp_path/'urls.parquet', n=3, engine='test')
    assert pq.read_table(tmp_path/'urls.parquet')['caption'].to_pylist() == ['cat']*3 + ['dog']*3

def test_urls_are_written_in_their_requested_form(monkeypatch, tmp_path):
    urls = [' HTTP://example.org/my cat.jpg', '//example.org/a%2Fb.jpg', 'data:image/png;base64,AAAA',
            'http://ä.example/1']
    monkeypatch.setitem(ENGINES, 'test', lambda term, n: [Photo(o) for o in urls])
    assert search.save_urls('cat', tmp_path/'urls.parquet', n=4, engine='test').url.tolist() == [
        'http://example.org/my%20cat.jpg', 'https://example.org/a%2Fb.jpg', 'http://xn--4ca.example/1']

def test_search_has_a_time_limit(monkeypatch, engines, capsys):
    "However slow terms and engines are, photos found until then are kept"
    monkeypatch.setattr(search, '_SEARCH_SECONDS', .5)
    def slow(term, n):
        time.sleep(.6)
        return [Photo(f'https://example.org/{term}.jpg')]
    monkeypatch.setitem(ENGINES, 'test', slow)
    assert len(search.search_terms('cat', 100, 'test')) == 1
    engines(ddg=slow, openverse=slow, commons=slow)
    assert len(search_images('cat', 100)) == 1
