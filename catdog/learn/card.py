"""What a model says about itself: labels, preprocessing, data, and what was measured on which images; What a model says about itself, for people to read"""

import re
from collections import Counter
from datetime import date
from importlib.metadata import version

import torch
import numpy as np
from fastai.learner import Learner
from torch import nn
from torch.nn import functional as F

from ..core.model_file import NOTHING_SURE
from ..core.stats import are_uneven, balanced_error, calibration_error, confusion_counts, error_interval, label_errors
from .calibration import (calibration_sentence, error_sentence, fit_distance, logits_on_test, ood_limits,
    validation_distances)
from .loaders import preprocessing, provenance

def measured_errors(
    logits:np.ndarray, # Scores, shape (n,labels)
    truth:np.ndarray # The true labels, shape (n,)
) -> dict: # n, n_wrong, error, error_interval, confusion; balanced_error where the labels are uneven
    "How often `logits` are wrong about `truth`, for json"
    counts = confusion_counts(logits, truth)
    n,wrong = len(truth),int(len(truth) - np.trace(counts))
    error,low,high = error_interval(wrong, n)
    uneven = dict(balanced_error=round(balanced_error(counts), 4)) if are_uneven(counts) else {}
    return dict(n=n, n_wrong=wrong, error=round(error, 4), error_interval=[round(low, 4), round(high, 4)],
                confusion=counts.tolist(), **uneven)

def _validated(learn, logits, truth, distances):
    "What `logits` and `distances` say about validation images with the labels `truth`; nothing, if there are none"
    if not len(truth): return dict(n_valid=0)
    probabilities = F.softmax(torch.from_numpy(logits), 1).numpy()
    errors,right = measured_errors(logits, truth),logits.argmax(1) == truth
    limits = ood_limits(probabilities.max(1), np.zeros(len(truth)) if distances is None else distances, right)
    if distances is None: limits = {k: v for k,v in limits.items() if k != 'distance' or limits == NOTHING_SURE}
    calibration = dict(getattr(learn, 'calibration', {}))
    if calibration: calibration['after'] = calibration_error(probabilities, truth)
    return dict(n_valid=errors.pop('n'), **errors, neither=limits,
                calibration={k: round(v, 4) for k,v in calibration.items()})

def _training_data(dls, n_valid):
    "Where the images of `dls` came from, how many there are, and how many were left out for which reason"
    out,n = list(getattr(dls, 'left_out', [])),len(dls.train_ds)
    if not n: return dict(engines=['unknown'], trained_on='images')
    if out: n -= len({f for f,_ in out} & {*dls.train_ds.items})
    res = dict(provenance(dls.path), n_images=n + n_valid, n_train=n)
    if 'split' not in vars(dls): return res
    folder = dls.split.folder
    reasons = Counter({'that cannot be opened': len(out)}) + Counter(f'as {reason}' for _,reason in folder.ignored)
    return dict(res, n_files=len(folder) + len(folder.ignored), left_out=dict(reasons))

def model_metadata(
    learn:Learner, # Trained; its images, if it has any, lie below `learn.dls.path`
    logits:np.ndarray, # Scores of the validation images, shape (n,labels), as the exported network gives them
    truth:np.ndarray, # Their true labels, shape (n,)
    distances:np.ndarray=None, # How far they lie from what was trained on, shape (n,); None: not measured
    test:tuple=None, # (logits, truth) of the test images
    missing:int=0 # Validation images that could not be opened any more
) -> dict: # What goes into the model file; json can write it
    "What `learn` is: its labels, preprocessing, data, size, and what `logits`, `truth` and `distances` say about it"
    arch = getattr(learn, 'arch_name', None) or getattr(learn, 'arch', 'unknown')
    extra = dict(n_missing=missing) if missing else {}
    if test: extra['test'] = measured_errors(*test)
    return dict(format=1, labels=list(map(str, learn.dls.vocab)), **preprocessing(learn), temperature=1.0,
                arch=getattr(arch, '__name__', str(arch)), **_training_data(learn.dls, len(truth)),
                **_validated(learn, logits, truth, distances), **extra, date=date.today().isoformat(),
                versions={o: version(o) for o in ('catdog', 'fastai', 'torch', 'torchvision')})

def describe(
    learn:Learner, # Trained on images below `learn.dls.path`
    distance:nn.Module=None # From feature maps to distances; None: `fit_distance`
) -> dict: # What goes into the model file; json can write it
    "What `learn` is: its labels, preprocessing, data, size, measured error, and when it is not sure"
    test = logits_on_test(learn)
    return model_metadata(learn, *validation_distances(learn, distance or fit_distance(learn)),
                          test and tuple(o.numpy() for o in test))

def _as_is(text): return re.sub(r'([\\`*_\[\]{}<>|#~$&!])', r'\\\1', ' '.join(str(text).split()))

def markdown_table(
    rows, # Lists of what is in the cells
    head:list # Of the columns
) -> str: # Markdown
    "`rows` as a table under `head`; no character in them means anything to Markdown"
    lines = [map(_as_is, head), ['---']*len(head), *(map(_as_is, row) for row in rows)]
    return '\n'.join('| ' + ' | '.join(o) + ' |' for o in lines)

def _data_text(meta):
    if 'n_train' not in meta:
        return 'Exported without its images: what it was trained on, and how many there were, is not known.'
    test = f', {meta["test"]["n"]:,} for testing' if 'test' in meta else ''
    text = (f'{meta["n_train"]:,} {meta["trained_on"]} for training, {meta["n_valid"]:,} for validation{test}\n'
            f'(from: {_as_is(", ".join(meta["engines"]))}).')
    n,out = meta.get('n_files', 0),meta.get('left_out', {})
    if not out: return text
    reasons = ', '.join(f'{k:,} {_as_is(reason)}' for reason,k in out.items())
    return f'{text}\nOf the folder, it used {n - sum(out.values())} of {n} images; left out {reasons}.'

def _errors_text(labels, errors, of):
    "What `errors`, from `measured_errors`, say about `labels`, on images `of` some kind"
    counts = np.array(errors['confusion'])
    n,each = int(counts.sum()),list(zip(labels, label_errors(counts)))
    few = '\nWith so few images the interval is wide, and the figure a rough one.' if n < 100 else ''
    parts = [f'{error_sentence(errors["n_wrong"], n, of)}, by Wilson.{few}']
    if missing := ', '.join(_as_is(label) for label,(_,n) in each if not n):
        parts.append(f'**{missing} could not be validated:** there was no image left to do it with.')
    parts.append(markdown_table([[o, *row] for o,row in zip(labels, counts)], ['truth \\ answer', *labels]))
    if 'balanced_error' in errors:
        rows = [[label, error_sentence(*o, 'images') if o[1] else 'not measured'] for label,o in each]
        balanced = f'{errors["balanced_error"]:.1%} balanced error'
        parts += [f'{balanced}: each label counts once, however many images it has.',
                  markdown_table(rows, ['label', 'error'])]
    return '\n\n'.join(parts)

def _calibration_text(meta):
    "How sure the model of `meta` is"
    c = meta['calibration']
    if not c: return 'Not calibrated: it is probably surer than it is right.'
    few = '\nWith so few images neither number says much.' if meta['n_valid'] < 100 else ''
    return f'Calibrated, and measured, on the validation images: {calibration_sentence(**c)}.{few}'

def _limits_text(limits):
    "When the model is not sure"
    if limits == NOTHING_SURE:
        return '**It is sure of nothing: among the validation answers it was too often wrong where it was surest.**'
    far = ''
    if 'distance' in limits:
        far = (f',\nor where what it sees lies further than {limits["distance"]:.2f} (cosine distance) '
               'from what it was trained on')
    return (f'It says that it is not sure where the answer is less probable than {limits["probability"]:.2f}{far}.\n'
            'Of the validation answers that were sure, nine in ten or more were right.')

def _measured_text(meta):
    "The sections about what was measured"
    if not meta['n_valid']:
        return ('## How often it is wrong\n\nNot measured: there were no images to measure with. So it is not known '
                'either how sure it may be,\nand it never says that it is not sure.')
    parts = ['## How often it is wrong', _errors_text(meta['labels'], meta, 'validation images')]
    if n := meta.get('n_missing'): parts.append(f'{n:,} other validation images could not be opened any more.')
    if 'test' in meta: parts.append(_errors_text(meta['labels'], meta['test'], 'test images, which decided nothing'))
    return '\n\n'.join([*parts, '## How sure it is', _calibration_text(meta), _limits_text(meta['neither'])])

def _input_text(meta):
    size,larger,resize = meta['size'],meta['resize_to'],meta.get('resize', {})
    how = dict(squish='squeezed', crop='cut to the largest square in its middle and scaled',
               pad=f'padded to a square ({resize.get("pad_mode")}) and scaled')[resize.get('method', 'squish')]
    opened = 'as it is stored, not turned' if 'opened' in meta else 'upright'
    cut = ', and the middle cut out' if larger > size else ''
    return (f'`pixels`: uint8, N x {size} x {size} x 3, RGB. The image ({opened}) is {how}\n'
            f'to {larger} x {larger} (bilinear){cut}.')

def model_card(
    meta:dict # From `describe`
) -> str: # Markdown
    "The model card that `meta` gives"
    labels = [_as_is(o) for o in meta['labels']]
    drawn = '\n**Trained on drawings: what it says about photographs means nothing.**\n'
    int8 = '\nIts body computes with 8-bit integers.' if meta.get('int8') else ''
    return f'''# {" or ".join(labels)}?
{drawn if meta["trained_on"] == "drawings" else ""}
Tells images of {", ".join(labels)} apart. {_as_is(meta["arch"])}, trained with catdog on {meta["date"]}.{int8}

## Data

{_data_text(meta)}

{_measured_text(meta)}

## Limits

Whatever it is shown, its answer is one of its labels; much that is none of them escapes it.
The images that it was measured with come from the same source as those that it was trained on;
expect more errors on others.

## Input

{_input_text(meta)}

## Versions

{", ".join(f"{k} {v}" for k,v in meta["versions"].items())}
'''
