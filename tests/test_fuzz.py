"Fuzzing: hostile answers, URLs and images. CATDOG_FUZZ: the number of each."
import io, json, os
from dataclasses import asdict

import pillow_heif, pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from catdog.sample.draw import draw
from catdog.core.errors import FetchError, ImageError, SearchError
from catdog.core.files import IMAGE_FORMATS
from catdog.core.images import open_image
from catdog.web.engines import _parse_answer
from catdog.web.http import _check_host, clean_url
from catdog.dataset.manifest import Photo

EXAMPLES = int(os.environ.get('CATDOG_FUZZ', 200))   # of each test; the bench asks for 10,000

words = st.text(max_size=8) | st.sampled_from(
    ['https://a/b.jpg', '<a href="x">y</a>', '\ud800', 'by-sa', 'File:x.jpg', '&amp;', 'http://[', '9'*5000])
leaf = st.none() | st.booleans() | st.integers() | st.floats() | words
names = st.sampled_from('''value contentUrl hostPageUrl name width height results url title creator license
    license_version foreign_landing_url query pages imageinfo thumburl thumbwidth descriptionurl extmetadata Artist
    LicenseShortName index image error info continue nextOffset page_count'''.split())
answers = st.recursive(leaf, lambda o: st.lists(o, max_size=4) | st.dictionaries(names, o, max_size=6), max_leaves=25)
addresses = st.just('https://a/b.jpg') | leaf
item = st.fixed_dictionaries({k: addresses for k in ('contentUrl', 'url', 'image')}, optional={k: leaf for k in (
    'name', 'hostPageUrl', 'width', 'height', 'title', 'creator', 'license', 'license_version', 'foreign_landing_url',
    'descriptionurl', 'index', 'thumburl')})
def as_page(o, info, meta): return {**o, 'imageinfo': [{**info, 'extmetadata': {'Artist': {'value': meta}}}]}
page = st.builds(as_page, item, item, leaf)
items = st.lists(item | page | answers, max_size=4)
shaped = items | st.builds(lambda o: {'value': o, 'results': o, 'query': {'pages': o}}, items)
fuzz = settings(max_examples=EXAMPLES, deadline=None, derandomize='CATDOG_FUZZ' not in os.environ,
                suppress_health_check=list(HealthCheck))

@pytest.mark.parametrize('protocol', ['bing', 'ddg', 'openverse', 'commons'])
@fuzz
@given(answer=answers | shaped)
def test_parsers_accept_any_answer(protocol, answer):
    try: photos = _parse_answer(protocol, answer, 'cat')
    except SearchError: return
    for p in photos:
        assert isinstance(p, Photo) and p.url.strip()
        assert not p.page_url or p.page_url.startswith(('http://', 'https://'))
        assert all(isinstance(getattr(p, k), str) for k in ('title', 'page_url', 'license', 'creator'))
        assert all(getattr(p, k) is None or 0 < getattr(p, k) < 10**9 for k in ('width', 'height'))
        assert json.loads(json.dumps(asdict(p), ensure_ascii=False).encode()) == asdict(p)   # it fits into a manifest

@fuzz
@given(url=st.text() | st.builds(lambda a, b: f'http://{a}/{b}', st.text(), st.text()))
@example(url='http://[')
def test_any_url_has_a_host_or_is_refused(url):
    try:
        clean = clean_url(url)
        assert clean.isascii() and clean_url(clean) == clean and _check_host(clean)
    except FetchError as e: assert e.reason in ('invalid', 'refused')

IMAGES = []
pillow_heif.register_heif_opener()   # to write HEIC
for kind in IMAGE_FORMATS:
    f = io.BytesIO()
    draw('cat', 3, (48, 40)).save(f, kind)
    IMAGES.append(f.getvalue())

@st.composite
def damaged(draw_):
    "An image with some of its bytes changed, and perhaps its end missing"
    data = bytearray(draw_(st.sampled_from(IMAGES)))
    changes = st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255))
    for at,byte in draw_(st.lists(changes, max_size=12)): data[at] = byte
    return bytes(data[:draw_(st.integers(0, len(data)))] if draw_(st.booleans()) else data)

@fuzz
@given(data=damaged() | st.binary(max_size=300))
def test_open_image_accepts_any_bytes(data):
    try: img = open_image(data, max_side=32)
    except ImageError: return
    assert img.mode == 'RGB' and 0 < max(img.size) <= 32
