"""How fast the cleaner opens 5,000 images, and how many wrong images each ranking and program finds

    python bench/review.py [--photos ../shared/photos/web] [--seeds 3] [--cleanlab PYTHON] [--cleanvision PYTHON]
    python bench/review.py --loop ../shared/photos/web [--seeds 3] [--cleanlab PYTHON]
    python bench/review.py --loop ../shared/photos/small --n 12000 --pages 3

The first question is answered with drawings, the others only if photographs are given. For the labels it copies 1,000
photographs, swaps the labels of 50, adds 30 drawings of neither, trains on all of them, and ranks. For the quality it
copies 300 and adds copies, blurred, dark, blank and tiny images. PYTHON is the interpreter of an environment in which
cleanlab, or cleanvision, is installed (catdog depends on neither).

With --loop only the following. A tenth of 1,000 labels is swapped, and a simulated person answers the first page of the
cleaner 20 times. How many of the 100 wrong labels has it seen, with refitting and without? How many are among as many
images at the top of cleanlab's order? And how long does it take from a click to the new list?
"""
import ctypes, gc, json, os, random, re, shutil, subprocess, tempfile, time
from pathlib import Path

shared = Path(os.environ.get('CATDOG_SHARED', Path(__file__).resolve().parent.parent.parent/'shared'))
if (shared/'torch_home').is_dir(): os.environ.setdefault('TORCH_HOME', str(shared/'torch_home'))

import numpy as np
import pandas as pd
from fastai.vision.widgets import _get_iw_info
from fastcore.script import call_parse
from PIL import Image, ImageFilter
from sklearn.metrics import average_precision_score

from catdog.clean.interpret import _out_of_sample, prediction_table
from catdog.sample.draw import draw
from catdog.core.images import open_image
from catdog.data import get_dls, image_files
from catdog.review import Cleaner, predictions, suspects
from catdog.train import get_learner, train

CLEANLAB = '''import json, sys
import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
o = json.load(sys.stdin)
given = np.array(o['labels']),np.array(o['p'])
json.dump(dict(scores=get_label_quality_scores(*given).tolist(), issues=find_label_issues(
    *given, return_indices_ranked_by='self_confidence', n_jobs=1).tolist()), sys.stdout)'''

def ask_cleanlab(python, labels, p):
    "Return the 'scores' of all images, low if the label is wrong, and the indices of the 'issues', worst first"
    given = json.dumps(dict(labels=labels.tolist(), p=p.tolist()))
    return json.loads(subprocess.run([python, '-c', CLEANLAB], input=given, capture_output=True, text=True, check=True).stdout)

CLEANVISION = '''import contextlib, json, sys, time
from cleanvision import Imagelab
start = time.perf_counter()
with contextlib.redirect_stdout(sys.stderr):
    lab = Imagelab(data_path=sys.argv[1])
    lab.find_issues(verbose=False)
kinds = dict(odd_size='tiny', blurry='blurred', dark='dark', low_information='blank', light='light',
             exact_duplicates='copies', near_duplicates='copies')
found = [(str(f), v) for k,v in kinds.items() for f in lab.issues.index[lab.issues[f'is_{k}_issue']]]
json.dump(dict(found=found, seconds=time.perf_counter() - start), sys.stdout)'''

def plant(photos, folder, swap=50, neither=30, seed=0):
    "Copy `photos` into `folder` with mistakes; return file -> 'ok', 'swapped' or 'neither'"
    r,files,truth = random.Random(seed),sorted(Path(photos).rglob('*.jpg')),{}
    labels = sorted({o.parent.name for o in files})
    swapped = set(r.sample(files, swap))
    for f in files:
        label = r.choice([o for o in labels if o != f.parent.name]) if f in swapped else f.parent.name
        to = folder/label/f'{f.parent.name[0]}{f.name}'
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, to)
        truth[to] = 'swapped' if f in swapped else 'ok'
    things = 'house', 'tree', 'car', 'flower', 'fish'
    for i in range(neither):
        to = folder/r.choice(labels)/f'neither{i}.jpg'
        draw(things[i%len(things)], seed + i).save(to)
        truth[to] = 'neither'
    return truth

def measured(name, files, score, truth, took):
    "A row of the result: higher `score`, worse image"
    def _is(*kinds): return [truth[f] in kinds for f in files]
    first = [truth[files[i]] for i in np.argsort(-np.asarray(score), kind='stable')[:100]]
    return dict(ranking=name, swapped_in_100=first.count('swapped'), neither_in_100=first.count('neither'),
                ap_swapped=average_precision_score(_is('swapped'), score),
                ap_both=average_precision_score(_is('swapped', 'neither'), score), seconds=took)

def timed(f):
    start = time.perf_counter()
    return f(),time.perf_counter() - start

def peak_from_here():
    "Return a function that returns by how many MiB this process has grown at its peak since now (Linux)"
    def _kb(name): return int(re.search(rf'{name}:\s+(\d+)', Path('/proc/self/status').read_text())[1])
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)   # memory freed earlier would hide what is allocated now
    Path('/proc/self/clear_refs').write_text('5')
    before = _kb('VmRSS')
    return lambda: (_kb('VmHWM') - before)/2**10

def open_many(n=5000):
    "Measure seconds and memory of the `Cleaner` for `n` images whose predictions are cached"
    with tempfile.TemporaryDirectory() as d:
        for label in ('cat', 'dog'):
            (Path(d)/label).mkdir()
            drawn = [Path(d)/label/f'{i:05}.jpg' for i in range(50)]
            for i,o in enumerate(drawn): draw(label, i, (256, 256)).save(o)
            for i in range(50, n//2): shutil.copy(drawn[i%50], Path(d)/label/f'{i:05}.jpg')
        learn = get_learner(get_dls(d, 64), 'squeezenet1_0')
        _,took = timed(lambda: predictions(learn))
        more = peak_from_here()
        cleaner,opened = timed(lambda: Cleaner(learn))
        assert len(cleaner.table) == n and len(cleaner.iw.widget.children) == 24
        _,turned = timed(lambda: [cleaner.iw.show(i) for i in range(1, 11)])
        print(f'{n:,} images: predictions {took:.1f} s; then open in the cleaner after {opened:.2f} s, '
              f'{turned/10:.2f} s a page; {more():.0f} MiB more memory at the peak')

def rank(photos, seed, size, recipe, epochs, cleanlab):
    "Plant wrong labels among `photos` by `seed`, train, and measure each ranking and kind of suspect"
    with tempfile.TemporaryDirectory() as d:
        truth = plant(photos, Path(d), seed=seed)
        learn,took = timed(lambda: train(d, 'squeezenet1_0', size=size, recipe=recipe, epochs=epochs))
        print(f'trained in {took:.0f} s')
        rows,files = [],list(map(Path, image_files(d)))
        df,took = timed(lambda: suspects(learn))
        for name,some in (('catdog suspects, all kinds', df), ('catdog suspects, labels', df[df.kind == 'label'])):
            score = dict(zip(some.file, some.score))
            rows.append(measured(name, files, [score.get(f, 0) for f in files], truth, took))
        _,again = timed(lambda: Cleaner(learn, suspects=df))
        print(f'suspects in {took:.1f} s, then the Cleaner in {again:.1f} s')
        predicted = prediction_table(learn)
        t = predicted.table
        rows.append(measured('loss on plain images', list(t.file), t.loss, truth, took))
        info,took = timed(lambda: [o for i in (0, 1) for o in _get_iw_info(learn, i)])
        rows.append(measured("fastai's cleaner (random crops)", [Path(o[0]) for o in info],
                             [float(o[2]) for o in info], truth, took))
        if cleanlab:
            labels = t.label.astype(str).values
            names,unseen = np.unique(labels),_out_of_sample(predicted.features, labels)
            for name,p in (("cleanlab, catdog's out-of-sample probabilities", unseen),
                           ("cleanlab, the network's probabilities", predicted.probabilities)):
                out,took = timed(lambda: ask_cleanlab(cleanlab, np.searchsorted(names, labels), p))
                rows.append(measured(name, list(t.file), -np.array(out['scores']), truth, took))
        kinds = df.groupby('kind').agg(rows=('file', 'size'),
                                       neither=('file', lambda o: sum(truth[f] == 'neither' for f in o)),
                                       swapped=('file', lambda o: sum(truth[f] == 'swapped' for f in o)))
    return pd.DataFrame(rows),kinds

def spoil(photos, folder, n=300, each=10, seed=0):
    "Copy `n` of `photos` into `folder`, add `each` of six faults; return file, or pair of copies -> kind"
    r,truth = random.Random(seed),{}
    files = r.sample(sorted(Path(photos).rglob('*.jpg')), n + 5*each)
    for f in files[:n]:
        to = folder/f.parent.name/f'{f.stem}.jpg'
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, to)
    def _put(f, kind, img, quality=90):
        to = folder/f.parent.name/f'{kind}-{f.stem}.jpg'
        img.save(to, quality=quality)
        return to
    rest = iter(files[n:])
    faults = dict(
        blurred=lambda img: img.filter(ImageFilter.GaussianBlur(max(img.size)/60)),
        dark=lambda img: img.point(lambda o: o//6),
        blank=lambda img: Image.new('RGB', img.size, img.resize((1, 1)).getpixel((0, 0))),
        tiny=lambda img: img.resize((40, 30)))
    for kind,spoiled in faults.items():
        for f in (next(rest) for _ in range(each)): truth[_put(f, kind, spoiled(open_image(f)))] = kind
    for i,f in enumerate(files[:2*each]):
        first = folder/f.parent.name/f'{f.stem}.jpg'
        if i < each: second = Path(shutil.copy(f, first.with_name(f'exact-{f.stem}.jpg')))
        else:
            img = open_image(f)
            second = _put(f, 'near', img.resize([o*2//3 for o in img.size]).point(lambda o: min(255, o + 12)), 60)
        truth[first, second] = 'exact copies' if i < each else 'near copies'
    return truth

def counted(name, found, truth, took):
    "Return a row of the result: the number of each kind in `found`, pairs of file and kind, and of others"
    row,files = dict(program=name),{(str(f),k) for f,k in found}
    planted = set()
    for o,kind in truth.items():
        both,what = (o, 'copies') if isinstance(o, tuple) else ((o,), kind)
        row[kind] = row.get(kind, 0) + any((str(f), what) in files for f in both)
        planted |= set(map(str, both))
    return {**row, 'others': len({f for f,_ in files} - planted), 'seconds': took}

def quality(photos, size, cleanvision):
    "Measure what `suspects` and cleanvision find among `photos` with planted faults"
    with tempfile.TemporaryDirectory() as d:
        truth = spoil(photos, Path(d))
        learn = get_learner(get_dls(d, size), 'squeezenet1_0')   # copies and quality need no training
        df,took = timed(lambda: suspects(learn))
        words = 'tiny', 'blurred', 'dark', 'blank'
        found = [(o.file, 'copies' if o.kind in ('duplicate', 'conflict') else
                  next(w for w in words if o.reason.startswith(w)))
                 for o in df.itertuples() if o.kind in ('duplicate', 'conflict', 'quality')]
        rows = [counted('catdog suspects', found, truth, took)]
        if cleanvision:
            done = subprocess.run([cleanvision, '-c', CLEANVISION, d], capture_output=True, text=True)
            if done.returncode: raise RuntimeError(done.stderr[-2000:])
            out = json.loads(done.stdout)
            rows.append(counted('cleanvision', out['found'], truth, out['seconds']))
    return pd.DataFrame(rows)

def answer_pages(photos, seed, n, pages, cleanlab):
    "Swap a tenth of `n` labels, train, and answer `pages` pages of the cleaner; print what it has seen"
    with tempfile.TemporaryDirectory() as d:
        files = random.Random(seed).sample(sorted(Path(photos).rglob('*.jpg')), n)
        labels,truth = sorted({o.parent.name for o in files}),{}
        for i,f in enumerate(files):
            label = f.parent.name if i >= n//10 else random.Random(i).choice([o for o in labels if o != f.parent.name])
            to = Path(d)/label/f'{f.parent.name}-{f.name}'
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(f, to)
            truth[to] = f.parent.name
        wrong = {f for f,label in truth.items() if label != f.parent.name}
        learn = train(d, recipe='fast')   # its features are known then
        worst = suspects(learn)
        rows,cleaner = [],Cleaner(learn, suspects=worst)
        seen,took = set(),[]
        for _ in range(pages):
            if {*cleaner.iw.shown} <= seen: break   # there are no more suspects
            for f in cleaner.iw.shown: cleaner.iw.choose(f, truth[f])
            seen |= {*cleaner.iw.shown}
            start = time.perf_counter()
            cleaner.bt_next.click()
            if cleaner.iw.working: cleaner.iw.working.join()
            took.append(time.perf_counter() - start)
        print(cleaner.learned.value)
        rows.append(dict(order='the cleaner, which learns', answered=len(seen), wrong_seen=len(wrong & seen), of=len(wrong),
                         first_click=took[0], click=float(np.median(took))))
        def _first(name, order): rows.append(dict(order=name, answered=len(order[:len(seen)]), of=len(wrong),
                                                  wrong_seen=len(wrong & {*order[:len(seen)]})))
        _first('the same list, without refitting', list(worst.file))
        predicted = prediction_table(learn)
        t,names = predicted.table,np.array(labels)
        p = _out_of_sample(predicted.features, t.label.astype(str).values)
        given = np.searchsorted(names, t.label.astype(str).values)
        _first('all images, least probable label first', t.file[np.argsort(p[np.arange(len(p)), given])].tolist())
        if cleanlab:
            out = ask_cleanlab(cleanlab, given, p)
            for name,which in (("all images, in cleanlab's order", np.argsort(out['scores'])), ("cleanlab's list", out['issues'])):
                _first(name, t.file.iloc[which].tolist())
    return pd.DataFrame(rows)

@call_parse
def main(
    photos:str='', # Folder of photographs with a sub-folder for each label
    size:int=224, # Pixels
    recipe:str='fast', # How to train: 'fast' or 'classic'
    epochs:int=None, # Epochs of fine-tuning; the recipe's own unless given
    seeds:int=1, # Number of trials with different wrong labels
    cleanlab:str=None, # An interpreter that has cleanlab
    cleanvision:str=None, # An interpreter that has cleanvision
    loop:str='', # Folder of photographs: answer pages of the cleaner, and nothing else
    n:int=1000, # Number of images for --loop
    pages:int=20 # Number of pages for --loop
):
    "Print how long the cleaner takes, what each ranking finds, and what is found of poor images and copies"
    if loop:
        for seed in range(seeds): print(answer_pages(loop, seed, n, pages, cleanlab).round(2).to_string(index=False), flush=True)
        return
    open_many()
    if not photos: return
    print(quality(photos, size, cleanvision).round(1).to_string(index=False), flush=True)
    for seed in range(seeds):
        rows,kinds = rank(photos, seed, size, recipe, epochs, cleanlab)
        print(f'seed {seed}:', rows.round(3).to_string(index=False), kinds.to_string(), sep='\n', flush=True)
