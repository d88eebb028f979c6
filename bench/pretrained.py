"""Make the model that ships with the package, and measure it.

    python bench/pretrained.py make       # about 80 minutes on 2 cores with bfloat16; writes catdog/pretrained/
    python bench/pretrained.py            # error, calibration and rate on photos/test and photos/web
    python bench/pretrained.py card       # the same, written into catdog/pretrained/model_card.md

Needs a folder of photographs (CATDOG_SHARED, or ../shared beside the project) with photos/small to train on, and
photos/test and photos/web, neither of which it is trained on, to measure on; and SqueezeNet's ImageNet weights, which
torch downloads or finds below TORCH_HOME.
"""
import os, time
from pathlib import Path

import numpy as np
from fastcore.script import call_parse

root = Path(__file__).resolve().parent.parent
shared = Path(os.environ.get('CATDOG_SHARED', root.parent/'shared'))
if (shared/'torch_home').is_dir(): os.environ.setdefault('TORCH_HOME', str(shared/'torch_home'))

SIZE,VALID = 192,1/12   # pixels; 1,000 of 12,000 pictures are for validation

def make(path=root/'catdog'/'pretrained'):
    "Fine-tune SqueezeNet on photos/small twice, and export the average of both to `path`"
    from catdog.train import train
    # Trained on zoomed crops, it sees things at the size that it is used to when the test picture is a seventh larger
    first = train(shared/'photos'/'small', 'squeezenet1_0', epochs=13, size=168, valid_pct=VALID)
    export_larger(average(first.model.state_dict(), varied().model.state_dict()), path)
    card()

def varied():
    "Fine-tune SqueezeNet on pictures that are turned, lit and zoomed differently each time, first on small ones"
    from fastai.losses import LabelSmoothingCrossEntropyFlat
    from fastai.vision.augment import Resize, aug_transforms
    from catdog.data import decoded_dls, get_dls
    from catdog.learn.learner import last_layer
    from catdog.train import faster, fit_head, get_learner
    def dls(size):
        changes = aug_transforms(size=size, max_rotate=10, min_zoom=1., max_zoom=1.4, max_warp=.1, p_affine=.9)
        return decoded_dls(get_dls(shared/'photos'/'small', SIZE, valid_pct=VALID, item_tfms=Resize(SIZE, 'squish'),
                                   batch_tfms=changes), SIZE)
    learn = get_learner(dls(128), 'squeezenet1_0', lin_ftrs=[])
    last_layer(learn)
    fit_head(learn, augmented=0)
    learn.unfreeze()
    learn.loss_func = LabelSmoothingCrossEntropyFlat(.05)   # some of the labels are wrong
    for size,epochs,lr in ((128, 10, 1e-3), (168, 12, 7e-4)):
        if size > 128: learn.dls = dls(size)
        with faster(learn, size): learn.fit_one_cycle(epochs, slice(lr/50, lr), div=5., wd=.05)
    return learn

def average(*weights):
    "The mean of the `weights` of networks that started alike, a model soup (Wortsman et al. 2022, arXiv:2203.05482)"
    return {k: sum(o[k] for o in weights)/len(weights) for k in weights[0]}

def export_larger(weights, path):
    "Export the network with `weights` for whole pictures of `SIZE` to `path`"
    from fastai.vision.augment import Resize
    from catdog.data import get_dls
    from catdog.learn.learner import last_layer
    from catdog.train import calibrate, export, get_learner
    dls = get_dls(shared/'photos'/'small', SIZE, valid_pct=VALID, item_tfms=Resize(SIZE, 'squish'), batch_tfms=[])
    learn = get_learner(dls, 'squeezenet1_0', lin_ftrs=[])   # one linear layer as the head: under 4 MB
    last_layer(learn)
    learn.model.load_state_dict(weights)
    calibrate(learn)
    export(learn, path, int8=True)
    (path/'export.pkl').unlink()   # apps need only the ONNX file, and nobody should unpickle what they did not write

def measured():
    "A row for each folder of photographs that the model has not seen: how often it is wrong, and how sure"
    from catdog.predict import Classifier, shipped_model
    from catdog.train import calibration_error, error_interval
    classifier = Classifier(shipped_model())
    for folder in ('test', 'web'):
        files = sorted((shared/'photos'/folder).glob('*/*.jpg'))
        start = time.perf_counter()
        answers = classifier.predict_batch(files)
        rate = len(files)/(time.perf_counter() - start)
        truth = np.array([classifier.labels.index(file.parent.name) for file in files])
        probabilities = np.array([list(answer.probabilities.values()) for answer in answers])
        wrong = int((probabilities.argmax(1) != truth).sum())
        error,low,high = error_interval(wrong, len(files))
        ece,unsure = calibration_error(probabilities, truth),np.mean([not o.sure for o in answers])
        print(f'photos/{folder}: {wrong} of {len(files)} wrong, {error:.2%} (95% interval {low:.2%} to {high:.2%}); '
              f'expected calibration error {ece:.2%}; not sure of {unsure:.1%}; {rate:.0f} pictures a second',
              flush=True)
        yield f'{len(files):,}',f'{error:.2%} ({low:.2%} to {high:.2%})',f'{ece:.2%}',f'{unsure:.1%}'

HEADING = '## On photographs that it has not seen'

def card():
    "Measure, and put the result and the licence into the model card"
    from catdog.predict import shipped_model
    from catdog.learn.model_card import markdown_table
    file = shipped_model()/'model_card.md'
    names = 'the same kind, 180 x 180 pixels','the same kind, full size as on the web'
    table = markdown_table([(name, *row) for name,row in zip(names, measured())],
                           ['photographs', 'number', 'wrong (95% interval)', 'expected calibration error', 'not sure'])
    before = file.read_text(encoding='utf8').split(HEADING)[0].rstrip()
    file.write_text(f'''{before}

{HEADING}

{table}

Measured by `python bench/pretrained.py`, which can also make the model again.

## Licence

The model, like the package, is under the Apache licence 2.0. It was fine-tuned from SqueezeNet 1.0 (Iandola et al.,
2016, arXiv:1602.07360; BSD 2-clause), trained on ImageNet. The photographs are from the Asirra set (Elson et al., 2007;
Kaggle's "Dogs vs. Cats"), given by PetFinder.com for research; none of them is part of the package.
''', encoding='utf8')

@call_parse(pos=['what'])
def main(
    what:str='measure' # measure, card or make
):
    "Measure the model that ships, or make it"
    if what == 'measure': list(measured())
    else: dict(card=card, make=make)[what]()
