"""How many labels it takes: the order in which `Labeller` asks, beside random order

    python bench/label.py ../shared/photos/small ../shared/photos/test [--seeds 5] [--most 4000]
    python bench/label.py ../shared/sets/clothing/train ../shared/sets/clothing/test

Both are folders with a sub-folder per label: one to label, one to judge on. A simulated person who knows the labels
answers page after page; the head is fitted to the answers as `train` does. Each seed draws nine tenths of at most `most`
images of the first folder. "And the rest": the head is also fitted to the labels that the network gives the
images that it is sure of (90% or more); wrong: the share of these that are wrong.
The features of frozen EfficientNet-Lite0 are computed once.
"""
import random, time

import numpy as np
import pandas as pd
from fastcore.script import call_parse
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from catdog.clean.cleaner import reduced
from catdog.clean.labeller import propose
from catdog.data import get_dls, image_files
from catdog.learn.features import image_features
from catdog.train import get_learner

PAGE = 24
AT = 50, 100, 200, 350, 500, 1000

def read(pool, test, most):
    "Return (features, index of the label) of at most `most` images of `pool`, and of `test`; and the number of labels"
    learn = get_learner(get_dls(pool, 224, n=200))
    labels,sets = list(learn.dls.vocab),[random.Random(0).sample(files := list(image_files(pool)), min(most, len(files))),
                                         list(image_files(test))]
    found = image_features(learn, sum(sets, []))
    return [(np.stack([found[f] for f in o]), np.array([labels.index(f.parent.name) for f in o])) for o in sets],len(labels)

def error(x, y, test):
    "Return the error on `test`, in percent, of a head fitted to the features `x` and labels `y` as `train` fits it"
    half = x.shape[1]//2   # the maxima come first, which that head does not use
    scaler = StandardScaler().fit(x[:, half:])
    head = LogisticRegression(C=.003, max_iter=1000, class_weight='balanced').fit(scaler.transform(x[:, half:]), y)
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
        sure = np.flatnonzero((known == -1) & (p.max(1) >= .9))
        some = given + sure.tolist()
        yield dict(order=order, labels=n, seed=seed, error=error(x[given], y[given], test), sure=len(sure),
                   wrong=100*(p[sure].argmax(1) != y[sure]).mean() if len(sure) else 0,
                   and_the_rest=error(x[some], np.concatenate([y[given], p[sure].argmax(1)]), test),
                   seconds=np.median(took) if took else 0)

@call_parse
def main(
    pool:str, # Folder to label
    test:str, # Folder to judge on
    seeds:int=5, # Number of trials
    most:int=4000 # Maximum number of images to read
):
    "Print the error against the number of labels"
    (full,judge),k = read(pool, test, most)
    rows = []
    for seed in range(seeds):
        some = np.random.default_rng(seed).permutation(len(full[1]))[:len(full[1])*9//10]
        for order in ('random', 'labeller'): rows += ask(full[0][some], full[1][some], k, judge, order, seed, AT)
    df = pd.DataFrame(rows).drop(columns='seed').groupby(['labels', 'order'], sort=False)
    print(f'{pool}, {len(some)} of {len(full[1])} images, judged on {len(judge[1])}; mean of {seeds}:')
    print(df.mean().round(2).to_string())
