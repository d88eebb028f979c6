"""Downloading and copies, measured: python bench/scrape.py [speed|copies|growth|fuzz|all] [--photos FOLDER]

speed: 1,000 URLs of the sample web with 50 to 300 ms latency and faults in 30% of them, fetched by fastai's
  download_images and verify_images, and by ours, each in a process of its own. The URLs are spread over 50 host
  names, as search results are; the last line is ours with all of them at one host, which it asks for 8 at a time.
copies: 500 photographs and 200 planted copies (half and 1.5 times the size, JPEG quality 50, 4% of each side cut off,
  brightened).
growth: what one more image costs beside 1,000, 10,000 and 100,000: its signatures, and to find its copies among the
  others and add it (random hashes, so nearly no copies); all pairs of 10,000; opening a manifest of 100,000 lines.
fuzz: 10,000 hostile inputs for each parser of an answer, for URLs and for `open_image`.
`--photos` is a folder with sub-folders cat and dog; without it the sample web draws, which is slow."""
import json, os, random, re, subprocess, sys, tempfile, time, timeit
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
from fastcore.script import call_parse

ROOT = Path(__file__).parent.parent
FAULTS = {'not-found': .08, 'html': .06, 'truncated': .08, 'stall': .02, 'tiny': .06}
WORKERS = 64  # the default of our `download_images`
TIMEOUT = 4   # seconds; fastai's default, and the same for ours

def _spread():
    "Resolve the names *.images.test to this machine"
    import socket
    real = socket.getaddrinfo
    def ours(host): return '127.0.0.1' if str(host).endswith('.images.test') else host
    socket.getaddrinfo = lambda host, *args, **kwargs: real(ours(host), *args, **kwargs)

def _fetch_fastai(urls, dest, workers):
    from fastai.vision.utils import download_images, get_image_files, verify_images
    start = time.perf_counter()
    for label,some in urls.items():
        download_images(dest/label, urls=some, max_pics=10**6, n_workers=workers, timeout=TIMEOUT,
                        preserve_filename=True)
    for o in verify_images(get_image_files(dest)): o.unlink()   # copies in a temporary folder
    seconds = time.perf_counter() - start
    return seconds, [f'{o.parent.name}/{o.stem}' for o in get_image_files(dest)]

def _fetch_ours(urls, dest, workers):
    "As `scrape` does: one pool for all labels"
    from catdog.core.errors import CatdogError
    from catdog.core.files import write_atomic
    from catdog.scrape import Photo
    from catdog.web.download import Fetcher, _Downloads, _status
    start,counts,kept = time.perf_counter(),Counter(),[]
    with _Downloads(Fetcher(workers, TIMEOUT), sum(map(len, urls.values()))) as downloads:
        for label,some in urls.items():
            (dest/label).mkdir()
            downloads.add([Photo(o) for o in some], label)
        for label,photo,o in downloads.results():
            failed = isinstance(o, CatdogError)
            counts[label, _status(o) if failed else 'ok'] += 1
            if failed: continue
            write_atomic(dest/label/o.name, o.data)
            kept.append(f'{label}/{Path(photo.url).stem}')
    seconds = time.perf_counter() - start
    print(dict(counts), file=sys.stderr)
    return seconds, kept

def _contender(who, workers, urls):
    "Run `who` in a process of its own; return seconds, the number of images kept, and peak memory in MB"
    with tempfile.TemporaryDirectory() as d:
        (Path(d)/'urls.json').write_text(json.dumps(urls))
        command = [sys.executable, __file__, who, '--workers', str(workers), '--folder', d]
        r = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(r.stdout.splitlines()[-1])

def _run_contender(who, workers, folder):
    _spread()
    dest = folder/'images'
    dest.mkdir()
    urls = json.loads((folder/'urls.json').read_text())
    seconds,kept = dict(fastai=_fetch_fastai, ours=_fetch_ours)[who](urls, dest, workers)
    peak = int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1])/1024   # ru_maxrss counts the parent's
    print(json.dumps([seconds, kept, peak]))

def _serve_photographs(folder):
    "Let the sample web serve photographs in `folder` instead of drawings, which take longer than a download"
    from catdog.core.images import open_image
    from catdog.sample import server
    photos = {o: [open_image(k, 640) for k in sorted((folder/o).iterdir())[:100]] for o in ('cat', 'dog')}
    server.draw = lambda label, seed, size: random.Random(seed).choice(photos[label]).resize(size)

def _measure(name, who, workers, photos, n, hosts):
    from catdog.scrape import SampleWeb
    from catdog.web.engines import _bing_pages
    if photos: _serve_photographs(photos)
    with SampleWeb(faults=FAULTS, latency=(.05, .3)) as web:
        found = {o: [p.url for p in _bing_pages(o, n//2, web.endpoint, 'XXX', 'sample')] for o in ('cat', 'dog')}
        truth = {f'{label}/{Path(u).stem}': web.truths[u] for label,us in found.items() for u in us}
        port = web.url.rpartition(':')[2]
        def _host(i): return f'http://h{i%50}.images.test:{port}' if hosts else web.url
        spread = {label: [u.replace(web.url, _host(i)) for i,u in enumerate(us)] for label,us in found.items()}
        seconds,kept,memory = _contender(who, workers, spread)
    valid = {o for o,t in truth.items() if t['valid']}
    good = len(valid & set(kept))
    print(f'{name:34} {seconds:6.1f} s  {good/seconds:6.1f} valid/s  kept {good:4}  '
          f'valid lost {len(valid - set(kept)):3}  invalid kept {len(set(kept) - valid):3}  '
          f'peak memory {memory:5.0f} MB', flush=True)
    return good/seconds

def speed(photos, n=1000):
    print(f'{n} URLs, {sum(FAULTS.values()):.0%} with faults, 50 to 300 ms latency')
    stock = _measure('fastai, 8 workers (its default)', 'fastai', 8, photos, n, True)
    raised = _measure(f'fastai, {WORKERS} workers', 'fastai', WORKERS, photos, n, True)
    ours = _measure(f'ours, {WORKERS} workers (its default)', 'ours', WORKERS, photos, n, True)
    _measure('ours, all at one host', 'ours', WORKERS, photos, n, False)
    print(f'ours against fastai: {ours/stock:.1f} times its default, {ours/raised:.1f} times with as many workers')

def copies(photos, n=500, planted=200):
    from PIL import ImageEnhance
    from catdog.sample.draw import draw
    from catdog.core.images import jpeg_bytes, open_image
    from catdog.scrape import ENGINES, Photo, scrape
    def scaled(o, by): return o.resize((round(o.width*by), round(o.height*by)))
    def cropped(o, by): return o.crop([round(k) for k in (o.width*by, o.height*by, o.width*(1-by), o.height*(1-by))])
    kinds = {'half size': lambda o: scaled(o, .5), '1.5 times the size': lambda o: scaled(o, 1.5),
             'quality 50': lambda o: open_image(jpeg_bytes(o, 50)), 'cropped by 4%': lambda o: cropped(o, .04),
             'brightened': lambda o: ImageEnhance.Brightness(o).enhance(1.15)}
    files = [o for label in ('cat', 'dog') for o in sorted((photos/label).iterdir())] if photos else []
    random.Random(42).shuffle(files)
    originals = [open_image(o) for o in files[:n]] or [draw('cat', i, (480, 360)) for i in range(n)]
    chosen = [(i, list(kinds)[k%len(kinds)]) for k,i in enumerate(random.Random(1).sample(range(n), planted))]
    with tempfile.TemporaryDirectory() as d:
        web,data = Path(d)/'web',Path(d)/'data'
        web.mkdir()
        order = [('original', i, None) for i in range(n)] + [('copy', i, kind) for i,kind in chosen]
        random.Random(2).shuffle(order)
        for k,(_,i,kind) in enumerate(order):
            (web/f'{k}.jpg').write_bytes(jpeg_bytes(kinds[kind](originals[i]) if kind else originals[i]))
        os.environ['CATDOG_ALLOW_PRIVATE'] = '1'
        command = [sys.executable, '-u', '-m', 'http.server', '0', '--bind', '127.0.0.1', '-d', web]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            port = server.stdout.readline().split('port ')[1].split()[0]
            found = [Photo(f'http://127.0.0.1:{port}/{k}.jpg', engine='bench') for k in range(len(order))]
            ENGINES['bench'] = lambda term, n: found
            df = scrape('animal', str(data), n=len(order), engine='bench')
        finally: server.terminate()
        by_name = {o.rpartition('/')[2]: k for k,o in enumerate(df.file) if isinstance(o, str)}
        def _of(k):   # which original the image is judged to be the same as
            visited = set()
            while df.status[k] != 'ok' and k not in visited:
                visited.add(k)
                k = by_name[df.copy_of[k].rpartition('/')[2]]
            return k
    together = Counter()
    group = {k: _of(k) for k in range(len(order))}
    for k,(what,i,kind) in enumerate(order):
        if what == 'copy': together[kind] += group[k] == group[order.index(('original', i, None))]
    wrong = [k for k,(what,i,_) in enumerate(order) if what == 'original' and order[group[k]][1] != i]
    found = sum(together.values())
    what = 'photographs' if photos else 'drawings'
    print(f'{n} {what}, {planted} planted copies: {found} found ({found/planted:.1%})')
    for kind in kinds: print(f'    {kind:20} {together[kind]} of {sum(o == kind for _,o in chosen)}')
    print(f'originals wrongly dropped: {len(wrong)}')

def _least(f, repeat=5): return min(timeit.repeat(f, number=1, repeat=repeat))

def _index_costs(sizes, n=500):
    "Measure ms to find and to add one of `n` more images in an index of each of `sizes`"
    from catdog.core.duplicates import DuplicateIndex
    r,colours,costs = np.random.default_rng(0),np.full((8, 8, 3), 192**-.5, 'float32'),{}
    def _hashes(n): return [r.bytes(18).hex() for _ in range(n)]
    index = DuplicateIndex({}.get)
    for size in sizes:
        for o in _hashes(size - len(index)): index.add(o, o, colours)
        new = _hashes(n)
        def _find():
            for o in new: index.find(o, colours)
        find,add = _least(_find),_least(lambda: [index.add(o, o, colours) for o in new], 1)
        costs[size] = (find + add)/n*1e3
    return costs

def _open_manifest(n):
    "Measure seconds to open a data set whose manifest has `n` lines, and to read it as a table"
    from catdog.web.download import _Collector
    from catdog.dataset.manifest import Manifest, Photo, read_manifest
    r = random.Random(0)
    with tempfile.TemporaryDirectory() as d:
        with (Path(d)/'manifest.jsonl').open('w') as f:
            for i in range(n):
                photo = Photo(f'https://images.example/{i}.jpg', 'A cat on a wall', f'https://images.example/{i}',
                              640, 480, 'CC BY 4.0', 'somebody', 'openverse', 'cat')
                f.write(json.dumps(dict(label='cat', file=f'cat/{i:016x}.jpg', status='ok', reason='', **asdict(photo),
                                        phash=r.randbytes(18).hex(), area=640*480, copy_of=None)) + '\n')
        return _least(lambda: _Collector(Manifest(Path(d))), 3),_least(lambda: read_manifest(d), 3)

def growth(photos):
    from catdog.sample.draw import draw
    from catdog.core.duplicates import colour_signature, near_copies, perceptual_hash
    from catdog.core.images import open_image
    files = [o for label in ('cat', 'dog') for o in sorted((photos/label).iterdir())[:100]] if photos else []
    images = [open_image(o, 512) for o in files] or [draw('cat', i, (480, 360)) for i in range(50)]
    signatures = _least(lambda: [(perceptual_hash(o), colour_signature(o)) for o in images])/len(images)*1e3
    costs = _index_costs((1000, 10_000, 100_000))
    print(f'signatures of an image: {signatures:.2f} ms')
    for size,ms in costs.items():
        print(f'beside {size:>7,} images: {ms:.3f} ms in the index, {signatures + ms:.2f} ms in all')
    last,first = costs[100_000],costs[1000]
    print(f'100,000 against 1,000: {(signatures + last)/(signatures + first):.2f} times in all; the index alone '
          f'{last/first:.1f} times, {(last - first)*1e3/99:.1f} ns for each image that is there')
    bits = np.random.default_rng(1).random((10_000, 144)) < .5
    print(f'all pairs of 10,000: {_least(lambda: list(near_copies(bits, np.ones((len(bits), 1)))), 3):.2f} s')
    print('a manifest of 100,000: opened in {:.1f} s, read as a table in {:.1f} s'.format(*_open_manifest(100_000)))

def fuzz():
    command = [sys.executable, '-m', 'pytest', '-q', 'tests/test_fuzz.py']
    subprocess.run(command, cwd=ROOT, env={**os.environ, 'CATDOG_FUZZ': '10000'})

@call_parse(pos=['what'])
def main(
    what:str='all', # speed, copies, growth, fuzz or all
    photos:str='', # A folder with sub-folders cat and dog; else photos/web in the shared folder, if there is one
    workers:int=32, # (for the processes that this starts)
    folder:str='' # (for the processes that this starts)
):
    "Measure the scraper"
    if what in ('fastai', 'ours'): return _run_contender(what, workers, Path(folder))
    shared = Path(os.environ.get('CATDOG_SHARED', ROOT.parent/'shared'))/'photos'/'web'
    photos = Path(photos) if photos else shared if shared.is_dir() else None
    if what in ('speed', 'all'): speed(photos)
    if what in ('copies', 'all'): copies(photos)
    if what in ('growth', 'all'): growth(photos)
    if what in ('fuzz', 'all'): fuzz()
