"""How many labels it takes: the order in which `Labeller` asks, beside random order

    python bench/label.py POOL TEST [POOL TEST ...] [--seeds 5] [--most 4000]

POOL and TEST are folders with a sub-folder per label, such as ../shared/photos/small ../shared/photos/test. A simulated
person who knows the labels answers page after page; the head is fitted to the answers as `train` does, and judged on
TEST. Each seed draws `most` images of POOL, nine tenths of it at most. "And the rest": the head is also fitted to the
labels that the network gives the images it is sure of (95% or more); wrong: the share of these that are wrong.
The features of frozen EfficientNet-Lite0 are computed once.
"""
import os, time
from pathlib import Path

import numpy as np
import pandas as pd
from fastcore.script import Param, call_parse
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from catdog.clean.cleaner import reduced
from catdog.clean.labeller import propose
from catdog.data import get_dls, image_files
from catdog.learn.features import image_features
from catdog.train import get_learner

PAGE = 24
AT = 50, 100, 200, 350, 500, 1000

def read(*folders):
    "Return (features, index of the label) of the images of each of `folders`, and the number of labels"
    files = [list(image_files(o)) for o in folders]
    learn = get_learner(get_dls(folders[0], 224, n=20))
    learn.dls.train_ds.items = files[0]   # so many that a graph of the body is worth it
    found,labels = image_features(learn, sum(files, []), on_bad=lambda f,e: None),list(learn.dls.vocab)
    sets = [[f for f in o if f in found] for o in files]
    return [(np.stack([found[f] for f in o]), np.array([labels.index(f.relative_to(d).parts[0]) for f in o]))
            for o,d in zip(sets, folders)],len(labels)

def error(x, y, test):
    "Return the error on `test`, in percent, of a head fitted to the features `x` and labels `y` as `train` fits it"
    half = x.shape[1]//2   # the maxima come first, which that head does not use
    scaler = StandardScaler().fit(x[:, half:])
    head = LogisticRegression(C=.003, max_iter=1000).fit(scaler.transform(x[:, half:]), y)
    return 100*(head.predict(scaler.transform(test[0][:, half:])) != test[1]).mean()

def ask(x, y, k, test, order, seed, at):
    "Answer pages in `order` ('labeller' or 'random'); yield a row for each number of labels in `at`"
    z,known,r,took = reduced(x),np.full(len(y), -1),np.random.default_rng(seed),[]
    shuffled,given = r.permutation(len(y)),[]
    for n in (o for o in at if o <= len(y)):
        while len(given) < n:
            if order == 'random': new = shuffled[len(given):n]
            else:
                start = time.perf_counter()
                new = propose(z, known, min(PAGE, n - len(given)), k)[1]
                took.append(time.perf_counter() - start)
            given += list(new)
            known[new] = y[new]
        p,_ = propose(z, known, 0, k)
        sure = np.flatnonzero((known == -1) & (p.max(1) >= .95))
        some = given + sure.tolist()
        yield dict(order=order, labels=n, seed=seed, error=error(x[given], y[given], test), sure=len(sure),
                   wrong=100*(p[sure].argmax(1) != y[sure]).mean() if len(sure) else 0,
                   and_the_rest=error(x[some], np.concatenate([y[given], p[sure].argmax(1)]), test),
                   seconds=np.median(took) if took else 0)

@call_parse
def main(
    folders:Param('Pairs of folders: to label, and to judge on', nargs='+'),
    seeds:int=5, # Number of trials
    most:int=4000 # Maximum number of images to label
):
    "Print the error against the number of labels"
    for pool,test in zip(folders[::2], folders[1::2]):
        (full,judge),k = read(pool, test)
        rows = []
        for seed in range(seeds):
            some = np.random.default_rng(seed).permutation(len(full[1]))[:min(most, len(full[1])*9//10)]
            for order in ('random', 'labeller'): rows += ask(full[0][some], full[1][some], k, judge, order, seed, AT)
        df = pd.DataFrame(rows).drop(columns='seed').groupby(['labels', 'order'], sort=False)
        print(f'{pool}, {len(some)} of {len(full[1])} images, judged on {len(judge[1])}; mean of {seeds}:')
        print(df.mean().round(2).to_string(), flush=True)
