"""The metadata of a model, and the model card made from it

`model_metadata` collects what is known about a trained `Learner` and what was measured on its exported network. The
result is plain JSON, stored in `model.onnx`. `model_card` renders it by the template `catdog/templates/model_card.md`.
To report another measurement, add a key to the metadata and a line to its section there."""

import re
from collections import Counter
from datetime import date
from importlib.metadata import version
import jinja2, numpy as np
from fastai.vision.all import Learner
from scipy.special import softmax
from ..core.model_file import NOTHING_SURE
from .calibration import balanced_error, calibration_error, confusion_counts, error_interval, error_lines, ood_limits
from .insights import insight_sentences
from .loaders import preprocessing, provenance

def _errors(logits, truth):
    counts = confusion_counts(logits, truth)
    n,wrong = len(truth),int(len(truth) - np.trace(counts))
    error,low,high = error_interval(wrong, n)
    uneven = {} if (balanced := balanced_error(counts)) is None else dict(balanced_error=round(balanced, 4))
    return dict(n=n, n_wrong=wrong, error=round(error, 4), error_interval=[round(low, 4), round(high, 4)],
                confusion=counts.tolist(), **uneven)

def _validation(learn, logits, truth, distances):
    if not len(truth): return dict(n_valid=0)
    probabilities,right = softmax(logits, 1),logits.argmax(1) == truth
    limits = ood_limits(probabilities.max(1), np.zeros(len(truth)) if distances is None else distances, right)
    if distances is None and limits != NOTHING_SURE: del limits['distance']
    calibration = dict(getattr(learn, 'calibration', {}))
    if calibration: calibration['after'] = calibration_error(probabilities, truth)   # of the exported network
    errors = _errors(logits, truth)
    return dict(n_valid=errors.pop('n'), **errors, neither=limits,
                calibration={k: round(v, 4) for k,v in calibration.items()})

def _training_data(dls, n_valid):
    out,n = list(getattr(dls, 'left_out', [])),len(dls.train_ds)
    if not n: return dict(engines=['unknown'], trained_on='images')
    if out: n -= len({f for f,_ in out} & {*dls.train_ds.items})
    res = dict(provenance(dls.path), n_images=n + n_valid, n_train=n)
    if not (split := vars(dls).get('split')): return res
    folder = split.folder
    reasons = Counter({'that cannot be opened': len(out)}) + Counter(f'as {reason}' for _,reason in folder.ignored)
    return dict(res, n_files=len(folder) + len(folder.ignored), left_out=dict(reasons),
                **(dict(split=split.note) if split.note else {}))

def model_metadata(
    learn:Learner, # Trained; its images, if it has any, are below `learn.dls.path`
    logits:np.ndarray, # Of the validation images, shape (n,labels), from the exported network
    truth:np.ndarray, # Indices of their labels, shape (n,)
    distances:np.ndarray=None, # Of their features from those of the training images, shape (n,); default: not measured
    n_missing:int=0, # Validation images that could not be opened
    test:tuple=None, # Logits and labels of the test images, if there are any
    int8:bool=False # Whether the exported network computes with 8-bit integers
) -> dict: # JSON types only
    "Return the labels, preprocessing, training data, architecture and measurements of `learn`"
    arch = getattr(learn, 'arch_name', None) or getattr(learn, 'arch', 'unknown')
    extra = dict(n_missing=n_missing) if n_missing else {}
    if test: extra['test'] = _errors(*test)
    if int8: extra['int8'] = True
    return dict(format=1, labels=list(map(str, learn.dls.vocab)), **preprocessing(learn),
                arch=getattr(arch, '__name__', str(arch)), **_training_data(learn.dls, len(truth)),
                **_validation(learn, logits, truth, distances), **extra, insights=getattr(learn, 'insights', {}),
                date=date.today().isoformat(),
                versions={o: version(o) for o in ('catdog', 'fastai', 'torch', 'torchvision')})

def _escape(text): return re.sub(r'([\\`*_\[\]{}<>|#~$&!])', r'\\\1', ' '.join(str(text).split()))
def _recall(right, n): return '{:.1%} ({:.1%} to {:.1%})'.format(*error_interval(right, n)) if n else 'unknown'

_templates = jinja2.Environment(loader=jinja2.PackageLoader('catdog'), trim_blocks=True, keep_trailing_newline=True)
_templates.filters.update(md=_escape, percent='{:.1%}'.format, thousands='{:,}'.format)

def model_card(
    meta:dict # From `model_metadata`
) -> str: # Markdown
    "Render `meta` as a model card"
    labels = list(map(_escape, meta['labels']))
    return _templates.get_template('model_card.md').render(
        m=meta, labels=labels, help=insight_sentences(meta.get('insights', {})), NOTHING_SURE=NOTHING_SURE,
        zip=zip, error_lines=lambda counts, of: error_lines(counts, labels, of, most=0), recall=_recall)
