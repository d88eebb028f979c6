"""The static page, the page of the server and the Voila app with the same model, all on localhost.

    python bench/site.py same      # 500 photographs through the page, beside the Classifier
    python bench/site.py speed     # starts, answers and bytes over the wire of all three
    python bench/site.py large     # 48 million pixels: seconds and memory
    python bench/site.py           # all of it, about 6 minutes

Needs a folder of photographs (CATDOG_SHARED, or ../shared beside the project) with photos/web, Chromium, and npm.
"""
import contextlib, os, random, shutil, socket, statistics, subprocess, sys, tempfile, threading, time
from pathlib import Path

import psutil
from PIL import Image
from playwright.sync_api import expect, sync_playwright

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))
from catdog.deploy.predictor import Classifier, shipped_model   # noqa: E402
from catdog.deploy.page import build_site                       # noqa: E402

shared = Path(os.environ.get('CATDOG_SHARED', root.parent/'shared'))
photos = sorted((shared/'photos'/'web').glob('*/*.jpg')) or sys.exit(f'no photographs at {shared}: set CATDOG_SHARED')
bin = Path(sys.executable).parent

def free_port():
    with socket.create_server(('127.0.0.1', 0)) as sock: return sock.getsockname()[1]

class Counter:
    "Forwards connections to the port `to`, and counts the bytes"
    def __init__(self, to):
        self.to,self.up,self.down,self.sock = to,0,0,socket.create_server(('127.0.0.1', 0))
        self.port = self.sock.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()
    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                visitor,_ = self.sock.accept()
                server = socket.create_connection(('127.0.0.1', self.to))
                for o in ((visitor, server, 'up'), (server, visitor, 'down')):
                    threading.Thread(target=self.pump, args=o, daemon=True).start()
    def pump(self, a, b, way):
        with contextlib.suppress(OSError):
            while data := a.recv(2**16):
                setattr(self, way, getattr(self, way) + len(data))
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)
    def taken(self):
        "Bytes (to the server, from it) since the last call"
        res,self.up,self.down = (self.up, self.down),0,0
        return res

@contextlib.contextmanager
def served(*command):
    "A `Counter` in front of the server that this command line starts; PORT is replaced"
    port = str(free_port())
    process = subprocess.Popen([o.replace('PORT', port) for o in map(str, command)], cwd=root,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env={**os.environ, 'CATDOG_MODEL': str(shipped_model())})
    while socket.socket().connect_ex(('127.0.0.1', int(port))): time.sleep(.1)
    counter = Counter(int(port))
    try: yield counter
    finally:
        counter.sock.close()
        process.terminate()
        process.wait(30)

@contextlib.contextmanager
def browser():
    "A browser with an empty profile of its own"
    chrome = next(filter(None, map(shutil.which, ('chromium', 'google-chrome'))), None)
    args = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update']
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        ours = {'executable_path': chrome} if chrome else {}
        context = p.chromium.launch_persistent_context(folder, args=args, **ours)
        try: yield context
        finally: context.close()

# Each kind of page: until an image can be chosen, and from the choice to the answer

# By the page's own clock, from the change event of the file input until the card is shown
WATCH = '''() => {
    document.addEventListener('change', () => window.chosen = performance.now(), true);
    const results = document.getElementById('results');
    new MutationObserver(() => { if (results.children.length) window.took = performance.now() - window.chosen; })
        .observe(results, {childList: true}); }'''

class Site:
    name = 'static page'
    def stands(self, page):
        expect(page.get_by_role('status')).to_have_text('Ready.', timeout=60_000)
        page.evaluate(WATCH)
    def answer(self, page, file):
        page.set_input_files('#file', file)
        page.locator(f'article img[alt="{file.name}"]').wait_for()
        return page.evaluate('window.took')/1000
    def kept(self, page):
        page.evaluate('async () => { await navigator.serviceWorker.ready; }')
        page.wait_for_timeout(500)

class Server:
    name = 'page of the server'
    def stands(self, page): page.get_by_role('button', name='Predict!').wait_for()
    def answer(self, page, file):
        page.set_input_files('#file', file)
        page.get_by_role('button', name='Predict!').click()
        page.locator(f'article img[alt="{file.name}"]').wait_for()
    def kept(self, page): pass

class Voila:
    name = 'Voila app'
    def stands(self, page): page.get_by_role('button', name='Choose images').wait_for(timeout=180_000)
    def answer(self, page, file):
        with page.expect_file_chooser() as chooser: page.get_by_role('button', name='Choose images').click()
        chooser.value.set_files(file)
        page.locator(f'.catdog-card img[alt="{file.name}"]').wait_for()
        page.get_by_role('button', name='Predict!').click()
        page.locator('.catdog-label').wait_for()
    def kept(self, page): pass

def timed(do, *args):
    "Measure the seconds of `do`, by its own clock if it has one; otherwise including about 50 ms of Playwright"
    start = time.perf_counter()
    return do(*args) or time.perf_counter() - start

def opened(kind, page, counter):
    def _open():
        page.goto(f'http://127.0.0.1:{counter.port}/')
        kind.stands(page)
    return timed(_open)

def measure(kind, counter, files, visits):
    "Print medians over `visits` visits, each in a new browser"
    rows = []
    for _ in range(visits):
        with browser() as context:
            if isinstance(kind, Voila): time.sleep(6)   # for the next kernel to get ready, as between visitors
            counter.taken()
            cold = opened(kind, context.pages[0], counter)
            kind.kept(context.pages[0])
            load = sum(counter.taken())
            first,*later = [timed(kind.answer, context.pages[0], o) for o in files]
            answers = sum(counter.taken())/len(files)
            context.pages[0].goto('about:blank')
            if isinstance(kind, Voila): time.sleep(6)
            counter.taken()
            again = opened(kind, context.pages[0], counter)
            kind.kept(context.pages[0])
            rows.append((cold, load, first, statistics.median(later), answers, again, sum(counter.taken())))
    cold,load,first,later,answers,again,reload = map(statistics.median, zip(*rows))
    print(f'{kind.name:22} first visit {cold:.2f} s, {load/1e6:.2f} MB | again {again:.2f} s, {reload/1e3:.1f} kB | '
          f'first answer {1000*first:.0f} ms, later {1000*later:.0f} ms | an image {answers/1e3:.1f} kB', flush=True)

def static(folder): return (sys.executable, '-m', 'http.server', 'PORT', '-b', '127.0.0.1', '-d', folder)

def speed(folder, visits=3):
    "Bytes to and from the server include those of service worker and web socket"
    files = random.Random(1).sample(photos, 21)
    with served(*static(folder)) as counter: measure(Site(), counter, files, visits)
    with served(bin/'catdog-serve', '--port', 'PORT') as counter: measure(Server(), counter, files, visits)
    with served(bin/'voila', 'nbs/07_app.ipynb', '--no-browser', '--port=PORT', '--Voila.log_level=ERROR') as counter:
        measure(Voila(), counter, files, visits)

SHOWN = '''all => all.map(o => [o.querySelector('h2').textContent,
                                ...[...o.querySelectorAll('dd span')].map(e => e.textContent)])'''

def fraction(text): return {'>99.9 %': 1, '<0.1 %': 0}.get(text) or float(text.strip('<> %'))/100

def same(folder, n=500):
    "All images are chosen together, and the answers read from the cards"
    classifier,files = Classifier(shipped_model()),random.Random(2).sample(photos, n)
    with served(*static(folder)) as counter, browser() as context:
        page = context.pages[0]
        opened(Site(), page, counter)
        def _ask():
            page.set_input_files('#file', files)
            expect(page.locator('article')).to_have_count(n, timeout=300_000)
        seconds = timed(_ask)
        rows = page.locator('article').evaluate_all(SHOWN)
    labels = sure = 0
    off = []
    for (words,*p),pred in zip(rows, classifier.predict_batch(files), strict=True):
        doubt = 'unlike' if not p else 'between' if words.startswith('Not sure') else ''
        sure += doubt == pred.doubt
        if doubt == 'unlike' or pred.doubt == 'unlike': continue   # without a label and a probability
        p = dict(zip(classifier.labels, map(fraction, p)))
        labels += max(p, key=p.get) == pred.label
        off.append(abs(p[pred.label] - pred.probability))
    print(f'{n} photographs in {seconds:.0f} s: the same label {labels/len(off):.1%} of the {len(off)} that get one, '
          f'the same doubt, or none, {sure/n:.1%}; '
          f'probability, as the page shows it, off by {statistics.median(off):.4f} in the median, '
          f'{max(off):.4f} at most')

def memory():
    "Memory of the largest page of the browser, in MB"
    with contextlib.suppress(psutil.Error):
        pages = [o for o in psutil.Process().children(recursive=True) if '--type=renderer' in ' '.join(o.cmdline())]
        return max(o.memory_info().rss for o in pages)/2**20
    return 0

def peak(do, *args):
    "Seconds that `do` takes, and peak memory of a page, in MB"
    over,most = threading.Event(),[memory()]
    def watch():
        while not over.wait(.02): most[0] = max(most[0], memory())
    thread = threading.Thread(target=watch)
    thread.start()
    try: return timed(do, *args),most[0]
    finally:
        over.set()
        thread.join()

def large(folder):
    "Photographs of phones: 12 and 48 million pixels"
    for size in ((4000, 3000), (8000, 6000)):
        image = folder/f'{size[0]}.jpg'
        Image.open(photos[0]).resize(size).save(image, quality=85)
        with served(*static(folder)) as counter, browser() as context:
            page = context.pages[0]
            opened(Site(), page, counter)
            before = memory()
            seconds,most = peak(Site().answer, page, image)
            print(f'{size[0]*size[1]//10**6} million pixels: {seconds:.2f} s to the answer; '
                  f'the page has {before:.0f} MB before, {most:.0f} MB at most')

if __name__ == '__main__':
    print('load average', *os.getloadavg())
    parts = {o.__name__: o for o in (same, speed, large)}
    with tempfile.TemporaryDirectory() as folder:
        folder = build_site(shipped_model(), Path(folder)/'site', local=True)
        for name in sys.argv[1:] or parts: parts[name](folder)
