"""Serving, compared with plain fastai. Alternating runs, ratio of medians.

    python bench/serve.py single    # JPEG file to label, beside load_learner(...).predict
    python bench/serve.py int8      # the network alone, in 8-bit integers and in 32-bit numbers
    python bench/serve.py batch     # 512 photographs, beside learn.get_preds(dl=learn.dls.test_dl(files))
    python bench/serve.py http      # 8 clients at once, beside Flask with the learner loaded for each request, and held
    python bench/serve.py voila     # from navigation to a usable upload button, and memory, beside a plain fastai app
    python bench/serve.py           # all of it, about 5 minutes

The first line says how busy the machine was. Needs a folder of photographs (CATDOG_SHARED, or ../shared beside the
project) with photos/web and photos/test. Model and Learner that are compared are one network, of the architecture that
ships: trained on photos/web at the start, and exported to a temporary folder. The model is in 8 bits.
"""
import os, random, statistics, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

root = Path(__file__).resolve().parent.parent
shared = Path(os.environ.get('CATDOG_SHARED', root.parent/'shared'))
web,test = (sorted((shared/'photos'/o).glob('*/*.jpg')) for o in ('web', 'test'))
sample = random.Random(1).sample(web, 200) if web else sys.exit(f'no photographs at {shared}: set CATDOG_SHARED')

def make_model(folder):
    "Train on photos/web with the shipped architecture; export 8 bits to `folder` and 32 bits to `folder`/exact"
    from catdog.predict import Classifier, shipped_model
    from catdog.train import export, train
    learn = train(shared/'photos'/'web', Classifier(shipped_model()).meta['arch'])
    export(learn, folder, int8=True)
    export(learn, folder/'exact')

def timed(do, *args):
    "Return wall-clock seconds, processor seconds, and the result of `do`"
    clock,cpu = time.perf_counter(),time.process_time()
    res = do(*args)
    return time.perf_counter() - clock,time.process_time() - cpu,res

def beside(what, ours, plain, unit, scale=1, faster='faster'):
    "Print the medians of `ours` and `plain`, lists of (clock, cpu) seconds, and their ratios"
    a,b = ([statistics.median(o[i] for o in runs) for i in (0, 1)] for runs in (ours, plain))
    print(f'{what}: ours {scale*a[0]:.2f} {unit}, plain {scale*b[0]:.2f} {unit}: {b[0]/a[0]:.1f} times {faster} '
          f'(by processor time {b[1]/a[1]:.1f} times)', flush=True)

def single(folder):
    from fastai.learner import load_learner
    from catdog.predict import Classifier
    learn,classifier = load_learner(folder/'export.pkl'),Classifier(folder)
    def plain(file):
        with learn.no_bar(), learn.no_logging(): return learn.predict(file)[0]
    for file in sample: plain(file)   # warm up, and have the files in memory for both
    times,labels = ([], []),([], [])
    # in turns of twenty, as the threads of one library keep spinning for a while and slow down the other
    for i in range(0, len(sample), 20):
        for do,t,said in zip((lambda file: classifier.predict(file).label, plain), times, labels):
            for file in sample[i:i+20]:
                *seconds,label = timed(do, file)
                t.append(seconds); said.append(label)
    same = sum(map(str.__eq__, *labels))
    beside('one image', *times, 'ms', 1000)
    print(f'same label on {same} of {len(sample)}')
    wrong = sum(o.label != f.parent.name for o,f in zip(classifier.predict_batch(test), test))
    dl = learn.dls.test_dl(test)
    with learn.no_bar(): indices = learn.get_preds(dl=dl)[0].argmax(1)
    wrong_plain = sum(learn.dls.vocab[o] != f.parent.name for o,f in zip(indices, test))
    print(f'photos/test: ours {wrong} of {len(test)} wrong ({wrong/len(test):.2%}), '
          f'plain {wrong_plain} ({wrong_plain/len(test):.2%})')

def in_turns(classifiers):
    "Measure (clock, cpu) seconds of each of `classifiers` for the photographs, in turns of twenty"
    times = [[] for _ in classifiers]
    pixels = [[o.pixels(file) for file in sample] for o in classifiers]
    for i in range(0, len(sample), 20):
        for classifier,some,t in zip(classifiers, pixels, times):
            for o in some[i:i+20]: t.append(timed(classifier.answers, [o])[:2])
    return times

def int8(folder):
    from catdog.predict import Classifier
    both = [Classifier(o) for o in (folder, folder/'exact')]
    beside('the network alone, 8 bits beside 32', *in_turns(both), 'ms', 1000)

def batch(folder, n=512, times=3):
    from fastai.learner import load_learner
    from catdog.predict import Classifier
    learn,classifier,files = load_learner(folder/'export.pkl'),Classifier(folder),random.Random(2).sample(web, n)
    def plain():
        with learn.no_bar(): return learn.get_preds(dl=learn.dls.test_dl(files, bs=64))
    runs = [(timed(classifier.predict_batch, files)[:2], timed(plain)[:2]) for _ in range(times)]
    beside(f'{n} images', *zip(*runs), 's')
    print(f'ours {n/statistics.median(o[0][0] for o in runs):.0f} images a second')

PLAIN = '''
import sys
from fastai.vision.all import load_learner
from catdog.data import UprightImage   # the type that its DataBlock has
from flask import Flask, request
from werkzeug.serving import make_server
app,held = Flask('plain'),load_learner(sys.argv[1]) if sys.argv[2] == 'held' else None
@app.post('/predict')
def predict():
    learn = held or load_learner(sys.argv[1])
    with learn.no_bar(), learn.no_logging():
        label,_,p = learn.predict(UprightImage.create(request.files['file'].read()))
    return dict(label=label, probabilities=dict(zip(learn.dls.vocab, p.tolist())))
# a Learner cannot predict in two threads at once
server = make_server('127.0.0.1', 0, app, threaded=sys.argv[2] != 'held')
print(f'http://127.0.0.1:{server.port}/ is open', flush=True)
server.serve_forever()
'''

def http(folder, seconds=15):
    "8 clients, each with an image of its own, for `seconds` against each server"
    import urllib3
    from catdog.predict import Classifier
    pkl,classifier,files = folder/'export.pkl',Classifier(folder),sample[:8]
    expected = [o.probabilities['cat'] for o in map(classifier.predict, files)]
    # prepared beforehand, as the clients run on the same cores as the server
    bodies = [urllib3.encode_multipart_formdata({'file': ('a.jpg', o.read_bytes(), 'image/jpeg')}) for o in files]
    servers = {'learner loaded per request': [sys.executable, '-c', PLAIN, str(pkl), 'per request'],
               'learner held': [sys.executable, '-c', PLAIN, str(pkl), 'held'],
               'ours': [str(Path(sys.executable).with_name('catdog-serve')), '--port', '0']}
    rates = {}
    for name,command in servers.items():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                   env={**os.environ, 'CATDOG_MODEL': str(folder)})
        url = process.stdout.readline().split()[0]
        times,wrong,failed,end = [],[],[],time.perf_counter() + seconds
        def client(i):
            body,kind = bodies[i]
            with urllib3.connection_from_url(url, timeout=120, retries=False) as pool:
                while time.perf_counter() < end:
                    start = time.perf_counter()
                    res = pool.request('POST', '/predict', body=body, headers={'Content-Type': kind})
                    if res.status != 200: failed.append(res.status); continue
                    times.append(time.perf_counter() - start)
                    if abs(res.json()['probabilities']['cat'] - expected[i]) > .05: wrong.append(i)
        start = time.perf_counter()
        with ThreadPoolExecutor(8) as pool: list(pool.map(client, range(8)))
        rates[name] = len(times)/(time.perf_counter() - start)
        p = statistics.quantiles(times, n=100) if len(times) > 1 else [float('nan')]*99
        print(f'{name}: {rates[name]:.1f} requests a second, median {1000*p[49]:.0f} ms, p99 {1000*p[98]:.0f} ms, '
              f'{len(wrong)} answers about another image, {len(failed)} refused', flush=True)
        process.terminate(); process.wait(30)
    for name in list(rates)[:2]: print(f'ours answers {rates["ours"]/rates[name]:.1f} times as many as: {name}')

PLAIN_APP = '''from fastai.vision.all import *
import ipywidgets as widgets
learn = load_learner({!r})
upload,out,label = widgets.FileUpload(description='Choose images'),widgets.Output(),widgets.Label()
def clicked(_): label.value = str(learn.predict(PILImage.create(upload.data[-1]))[0])
button = widgets.Button(description='Predict!')
button.on_click(clicked)
widgets.VBox([upload, button, out, label])'''

def voila(folder, visits=5):
    "Measure median seconds from navigation to a usable button, and the memory of a visitor's kernel"
    import shutil, socket, psutil
    from nbformat import v4, write
    from playwright.sync_api import sync_playwright
    spec = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    write(v4.new_notebook(cells=[v4.new_code_cell(PLAIN_APP.format(str(folder/'export.pkl')))], metadata=spec),
          folder/'plain.ipynb')
    os.chdir(root)
    ours = ['nbs/07_app.ipynb']
    options = {'ours, preheated': ours, 'ours': [*ours, '--VoilaConfiguration.preheat_kernel=False'],
               'plain fastai app': [str(folder/'plain.ipynb'), '--VoilaConfiguration.preheat_kernel=False',
                                    '--RegexRemovePreprocessor.patterns=[]']}
    medians = {}
    with sync_playwright() as p:
        chrome = next(filter(None, map(shutil.which, ('chromium', 'google-chrome'))), None)
        browser = p.chromium.launch(args=['--no-sandbox', '--disable-gpu'],
                                    **({'executable_path': chrome} if chrome else {}))
        for name,args in options.items():
            with socket.create_server(('127.0.0.1', 0)) as sock: port = sock.getsockname()[1]
            command = [str(Path(sys.executable).with_name('voila')), *args]
            process = subprocess.Popen([*command, '--no-browser', f'--port={port}', '--Voila.log_level=ERROR'],
                                       env={**os.environ, 'CATDOG_MODEL': str(folder)},
                                       stderr=subprocess.DEVNULL)
            while socket.socket().connect_ex(('127.0.0.1', port)): time.sleep(.2)
            times,memory = [],[]
            for _ in range(visits if name != 'plain fastai app' else 2):
                time.sleep(6 if 'preheated' in name else 1)   # for the next kernel to get ready, as between visitors
                page = browser.new_page()
                start = time.perf_counter()
                page.goto(f'http://127.0.0.1:{port}/', timeout=180_000)
                page.get_by_role('button', name='Choose images').wait_for(timeout=180_000)
                times.append(time.perf_counter() - start)
                kernels = [o for o in psutil.Process(process.pid).children(recursive=True)
                           if 'ipykernel_launcher' in ' '.join(o.cmdline())]
                memory += [o.memory_full_info().pss/2**20 for o in kernels[:1]]
                page.goto('about:blank'); page.close()
            medians[name] = statistics.median(times)
            print(f'{name}: {medians[name]:.2f} s to the upload button (median of {len(times)}), '
                  f'{statistics.median(memory):.0f} MB a visitor', flush=True)
            process.terminate(); process.wait(30)
    plain = medians['plain fastai app']
    print(f'ours is {plain/medians["ours"]:.1f} times faster, preheated {plain/medians["ours, preheated"]:.1f} times')

if __name__ == '__main__':
    # other load takes a share of the cores, and then a Learner's threads wait for each other
    print('load average {:.2f}, {:.2f}, {:.2f} (1, 5, 15 minutes)'.format(*os.getloadavg()),
          f'on {os.cpu_count()} cores')
    parts = {o.__name__: o for o in (single, int8, batch, http, voila)}
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        for name in sys.argv[1:] or parts: parts[name](Path(folder))
