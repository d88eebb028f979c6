"""How soon do 5,000 pictures stand in the cleaner; and how many pictures with swapped labels does each ranking find?

    python bench/review.py [--photos ../shared/photos/web] [--cleanlab PYTHON]

The first question is answered with drawings. The second, which needs photographs, is left out without them: it copies
1,000 photographs, swaps the labels of 50, adds 30 drawings of neither, trains on all of it as a person would, and
ranks. PYTHON is the interpreter of an environment of its own in which cleanlab is installed (catdog does not depend
on it).
"""
import json, random, shutil, subprocess, tempfile, time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from fastai.vision.widgets import _get_iw_info
from fastcore.script import call_parse
from sklearn.metrics import average_precision_score

from catdog import review
from catdog.data import get_dls, image_files
from catdog.review import Cleaner, _look, _out_of_sample, suspects
from catdog.sample import draw
from catdog.train import get_learner, speed_ups

CLEANLAB = '''import json, sys
import numpy as np
from cleanlab.rank import get_label_quality_scores
o = json.load(sys.stdin)
json.dump(get_label_quality_scores(np.array(o['labels']), np.array(o['p'])).tolist(), sys.stdout)'''

def plant(photos, folder, swap=50, neither=30, seed=0):
    "Copy `photos` into `folder` with mistakes; file -> 'ok', 'swapped' or 'neither'"
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
    "A row of the result: higher `score`, worse picture"
    order = [truth[files[i]] for i in np.argsort(-np.asarray(score), kind='stable')]
    swapped = [truth[f] == 'swapped' for f in files]
    return dict(ranking=name, swapped_in_100=order[:100].count('swapped'), neither_in_100=order[:100].count('neither'),
                average_precision=round(average_precision_score(swapped, score), 3), seconds=round(took, 1))

def timed(f):
    start = time.perf_counter()
    return f(),time.perf_counter() - start

def open_many(n=5000):
    "Seconds and memory that the `Cleaner` takes for `n` pictures when their predictions are there"
    with tempfile.TemporaryDirectory() as d:
        for label in ('cat', 'dog'):
            (Path(d)/label).mkdir()
            drawn = [Path(d)/label/f'{i:05}.jpg' for i in range(50)]
            for i,o in enumerate(drawn): draw(label, i, (256, 256)).save(o)
            for i in range(50, n//2): shutil.copy(drawn[i%50], Path(d)/label/f'{i:05}.jpg')
        learn = get_learner(get_dls(d, 64), 'squeezenet1_0')
        with learn.no_bar(): look,took = timed(lambda: _look(learn))
        before = psutil.Process().memory_info().rss
        review._look = lambda learn: look   # they are there
        try: cleaner,opened = timed(lambda: Cleaner(learn))
        finally: review._look = _look
        _,turned = timed(lambda: [cleaner.iw.show(i) for i in range(10)])
        more = (psutil.Process().memory_info().rss - before)/2**20
        assert len(cleaner.table) == n and len(cleaner.iw.widget.children) == 24
        print(f'{n:,} pictures: predictions {took:.1f} s; then open in the cleaner after {opened:.2f} s, '
              f'{turned/10:.2f} s a page; {more:.0f} MiB more memory')

@call_parse
def main(
    photos:str='', # A folder of photographs with a sub-folder a label
    size:int=224, # Pixels
    epochs:int=4, # Epochs of fine-tuning, after one for the head
    seed:int=0, # Which ones are swapped
    cleanlab:str=None # An interpreter that has cleanlab
):
    "Print how long the cleaner takes, and a table of the rankings"
    open_many()
    if not photos: return
    with tempfile.TemporaryDirectory() as d:
        truth = plant(photos, Path(d), seed=seed)
        learn = get_learner(get_dls(d, size), 'squeezenet1_0')
        with learn.added_cbs(speed_ups(learn, size)): learn.fine_tune(epochs)
        rows = []
        df,took = timed(lambda: suspects(learn))
        files = list(map(Path, image_files(d)))
        score = dict(zip(df.file, df.score))
        rows.append(measured('catdog suspects', files, [score.get(f, 0) for f in files], truth, took))
        look,took = timed(lambda: _look(learn))
        t = look.table
        rows.append(measured('loss on plain pictures', list(t.file), t.loss, truth, took))
        info,took = timed(lambda: [o for i in (0, 1) for o in _get_iw_info(learn, i)])
        rows.append(measured("fastai's cleaner (random crops)", [Path(o[0]) for o in info],
                             [float(o[2]) for o in info], truth, took))
        if cleanlab:
            labels = t.label.astype(str).values
            names,unseen = np.unique(labels),_out_of_sample(look.features, labels)
            for name,p in (("cleanlab, catdog's out-of-sample probabilities", unseen),
                           ("cleanlab, the network's probabilities", look.probabilities)):
                given = json.dumps(dict(labels=np.searchsorted(names, t.label.astype(str)).tolist(), p=p.tolist()))
                out,took = timed(lambda: subprocess.run([cleanlab, '-c', CLEANLAB], input=given, capture_output=True,
                                                        text=True, check=True).stdout)
                rows.append(measured(name, list(t.file), -np.array(json.loads(out)), truth, took))
        print(pd.DataFrame(rows).to_string(index=False))
        neither = {f for f,o in truth.items() if o == 'neither'}
        kinds = df.groupby('kind').agg(rows=('file', 'size'), neither=('file', lambda o: o.isin(neither).sum()),
                                       swapped=('file', lambda o: sum(truth[f] == 'swapped' for f in o)))
        print(kinds.to_string())
        wrong = 1 - (t.label == t.predicted)[t.dataset == 'Valid'].mean()
        print('error of the network on its validation pictures:', round(wrong, 3))
