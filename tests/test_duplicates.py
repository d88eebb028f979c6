"core.duplicates with many images."
import numpy as np
import pytest
from PIL import Image

from catdog.core.duplicates import (_ALIKE, CLOSE, DuplicateIndex, colour_signature, find_copies, near_copies,
    perceptual_hash, phash_bits)
from catdog.core.images import jpeg_bytes, open_image
from catdog.sample.draw import draw

GREY = np.full((8, 8, 3), 192**-.5, 'float32')

def hashes(n, seed=0):
    return [o.tobytes().hex() for o in np.random.default_rng(seed).integers(0, 256, (n, 18), 'uint8')]

def differing(phash, k, seed=0):
    "Return `phash` with `k` of its bits flipped"
    bits = phash_bits(phash)
    bits[np.random.default_rng(seed).permutation(144)[:k]] ^= True
    return np.packbits(bits).tobytes().hex()

@pytest.fixture(scope='module')
def large():
    "An index of 100,000 images"
    index = DuplicateIndex({}.get)
    for o in hashes(100_000): index.add(o, o, GREY)
    return index

def test_index_agrees_with_brute_force():
    known,index = hashes(3000),DuplicateIndex({}.get)
    bits = np.array([phash_bits(o) for o in known])
    for i,o in enumerate(known):
        index.add(i, o, GREY)
        if i not in (0, 7, 1022, 1023, 1024, 2047, 2048, 2999): continue   # also where the table has just grown
        for k in (0, 1, 20, CLOSE, CLOSE + 1, 90):
            for which in {0, i//2, i}:
                new = differing(known[which], k, seed=k)
                far = (bits[:i + 1] != phash_bits(new)).sum(1)
                want = int(far.argmin()) if far.min() <= CLOSE else None
                assert index.find(new, GREY) == want, (i, k, which)

def test_nearest_copy_is_found():
    one, = hashes(1)
    index = DuplicateIndex({'unknown': None}.get)
    for key,k,colours in (('far', 30, GREY), ('other colours', 2, -GREY), ('near', 20, GREY), ('also near', 20, GREY)):
        index.add(key, differing(one, k, 1), colours)
    assert index.find(one, GREY) == 'near'
    assert index.find(one, -GREY) == 'other colours'
    index.add('unknown', differing(one, CLOSE//3, 2))
    assert index.find(one, -GREY) == 'other colours' and index.find(one, GREY) == 'unknown'
    assert _ALIKE < (GREY*GREY).sum() < 1.01

def test_pairs_agree_with_brute_force():
    known = hashes(700, 1)
    known += [differing(known[i], k, i) for i,k in ((3, 0), (3, CLOSE), (5, CLOSE), (9, CLOSE + 1), (699, 12))]
    bits = np.array([phash_bits(o) for o in known])
    want = [(i, int(j), int((bits[i] != bits[j]).sum())) for i in range(len(bits)) for j in range(i + 1, len(bits))
            if (bits[i] != bits[j]).sum() <= CLOSE]
    def pairs(bits, colours): return [(i, *map(int, o)) for i,*near in near_copies(bits, colours) for o in zip(*near)]
    colours = np.repeat(GREY[None], len(bits), 0)
    assert pairs(bits, colours) == pairs(list(bits), list(colours)) == want and (3, 700, 0) in want and len(want) >= 4
    colours[700] *= -1
    assert pairs(bits, colours) == [o for o in want if 700 not in o]
    assert pairs([], []) == pairs(bits[:1], colours[:1]) == []

def signatures(images): return [phash_bits(perceptual_hash(o)) for o in images],[colour_signature(o) for o in images]

def test_drawings_and_their_copies_are_grouped():
    images = [draw('cat', i, (120, 90)) for i in range(6)]
    groups,_ = find_copies(*signatures(images + [o.resize((60, 45)) for o in images[:3]]), ['cat']*9)
    assert groups[6:].tolist() == groups[:3].tolist() and len(set(groups[:6])) == 6
    assert find_copies([], [], [])[0].shape == (0,)

def camera(n, light):
    "Shots of one scene with a door that is open or closed, where people pass; `light`: by how much it differs, 0 to 1"
    scene,rng,shots = np.asarray(draw('house', 1, (160, 120)), float),np.random.default_rng(0),[]
    for i in range(n):
        a = scene.copy()
        a[40:100, 60:110] = 30 if i%2 else 220
        if light: a[70:110, (x := rng.integers(0, 140)):x + 20] = rng.integers(0, 255, 3)
        sun = np.linspace(*rng.uniform(1 - light, 1, 2), 160)[None, :, None]
        shots.append(Image.fromarray((a*sun + rng.normal(0, 4, a.shape)).clip(0, 255).astype('uint8')))
    return shots

def test_shots_of_a_fixed_camera_are_no_copies():
    images = camera(40, .6)
    images += [images[5].resize((120, 90)), open_image(jpeg_bytes(images[6], 60))]   # copies after all
    bits,colours = signatures(images)
    labels = ['closed', 'open']*21
    labels[40:] = ['open', 'closed']
    assert sum(len(near) for _,near,_ in near_copies(bits, colours)) > 150
    groups,limits = find_copies(bits, colours, labels)
    assert limits[0] < CLOSE and len(set(groups)) > 30 and groups[40] == groups[5] and groups[41] == groups[6]
    same = camera(50, 0)   # nothing moves
    assert find_copies(*signatures(same), ['closed', 'open']*25)[0].tolist() == list(range(50))

def test_copies_in_an_ordinary_set_stay_copies():
    "Cropped copies, bursts and a few conflicts do not make a set one of a fixed camera"
    images = [draw(o, i, (160, 120)) for i in range(30) for o in ('cat', 'dog')]
    labels = ['cat', 'dog']*30
    images += [o.crop((6, 5, 154, 116)) for o in images[:12]] + images[20:22]
    labels += labels[:12] + ['dog', 'cat']   # the last two are conflicts
    groups,limits = find_copies(*signatures(images), labels)
    assert limits == (CLOSE, _ALIKE) and groups[60:].tolist() == groups[[*range(12), 20, 21]].tolist()

def test_clothes_on_a_bed_are_no_copies():
    "Some of many images are a little alike, also of two labels; true copies would differ in fewer bits"
    some,labels = hashes(400),['shirt', 'dress']*200 + ['dress', 'shirt']*10
    for k,limit in ((38, 4), (12, CLOSE)):
        bits = list(map(phash_bits, some + [differing(o, k) for o in some[:20]]))
        groups,limits = find_copies(bits, np.repeat(GREY[None], 420, 0), labels)
        assert limits[0] == limit and len(set(groups)) == (420 if k == 38 else 400)

def test_colours_are_computed_once_and_only_for_close_hashes():
    asked,(one,) = [],hashes(1)
    index = DuplicateIndex(lambda key: asked.append(key) or {'known': GREY}.get(key))
    assert index.find(one, GREY) is None
    for key,k in (('far', CLOSE + 1), ('known', CLOSE), ('gone', CLOSE//3 + 1)): index.add(key, differing(one, k))
    assert (index.find(one, GREY), asked) == ('known', ['gone', 'known'])   # nearer, but without colours not enough
    assert index.find(one, GREY) == 'known' and asked.count('known') == 1

def test_a_copy_is_found_among_100_000_images(large):
    new, = hashes(1, 3)
    large.add(new, new, GREY)
    assert large.find(differing(hashes(100_000)[99_999], 30), GREY) == hashes(100_000)[99_999]
