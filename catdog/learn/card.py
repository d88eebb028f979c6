"""The metadata of a model, and the model card made from it

`model_metadata` collects what is known about a trained `Learner` and what was measured on its exported network. The
result is plain JSON, stored in `model.onnx`. `model_card` renders it as Markdown, section by section. To report
another measurement, add a key to the metadata and a line to its section.
"""

import re
from collections import Counter
from datetime import date
from importlib.metadata import version

import numpy as np
from fastai.learner import Learner
from scipy.special import softmax

from ..core.model_file import NOTHING_SURE
from .calibration import (are_uneven, balanced_error, calibration_error, confusion_counts, error_interval, error_lines,
    ood_limits)
from .insights import insight_sentences
from .loaders import preprocessing, provenance

def _errors(logits, truth):
    "Return the errors of `logits`, with the balanced error if the labels differ much in size"
    counts = confusion_counts(logits, truth)
    n,wrong = len(truth),int(len(truth) - np.trace(counts))
    error,low,high = error_interval(wrong, n)
    uneven = dict(balanced_error=round(balanced_error(counts), 4)) if are_uneven(counts) else {}
    return dict(n=n, n_wrong=wrong, error=round(error, 4), error_interval=[round(low, 4), round(high, 4)],
                confusion=counts.tolist(), **uneven)

def _validation(learn, logits, truth, distances):
    "Return errors, limits of a sure answer and calibration, measured on the validation images"
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
    "Return the source and number of the images of `dls`, and how many were left out for which reason"
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

def markdown_table(
    rows, # Lists of cells
    head:list # Names of the columns
) -> str: # Markdown
    "Return a table of `rows` under `head`, with all Markdown in its cells escaped"
    lines = [map(_escape, head), ['---']*len(head), *(map(_escape, row) for row in rows)]
    return '\n'.join('| ' + ' | '.join(o) + ' |' for o in lines)

def _data_section(meta):
    if 'n_train' not in meta: return 'Exported without its images: its training data is unknown.'
    test = f', {meta["test"]["n"]:,} for testing' if 'test' in meta else ''
    text = (f'{meta["n_train"]:,} {meta["trained_on"]} for training, {meta["n_valid"]:,} for validation{test}\n'
            f'(source: {_escape(", ".join(meta["engines"]))}).')
    if note := meta.get('split'): text += f'\n{_escape(note)}'
    if not (out := meta.get('left_out')): return text
    reasons = ', '.join(f'{k:,} {_escape(reason)}' for reason,k in out.items())
    used = f'{meta["n_files"] - sum(out.values())} of {meta["n_files"]} images'
    return f'{text}\nOf the folder, it used {used}; left out {reasons}.'

def _errors_of(labels, errors, of):
    "Describe `errors`, from `_errors`, on images `of` some kind"
    counts = np.array(errors['confusion'])
    lines = error_lines(counts, [_escape(o) for o in labels], of, most=0)
    if counts.sum() < 100: lines.append('- With so few images the interval is wide.')
    def _recall(right, n): return '{:.1%} ({:.1%} to {:.1%})'.format(*error_interval(right, n)) if n else 'unknown'
    rows = [[o, *row, _recall(int(row[i]), int(row.sum()))] for i,(o,row) in enumerate(zip(labels, counts))]
    table = markdown_table(rows, ['truth \\ answer', *labels, 'recall (95% interval)'])
    return '\n'.join([lines[0] + '.', '', *lines[1:], *[''][:len(lines) - 1], table])

def _errors_section(meta):
    if not meta['n_valid']: return 'Not measured: there were no images to measure with.'
    parts = [_errors_of(meta['labels'], meta, 'validation images')]
    if n := meta.get('n_missing'): parts.append(f'{n:,} other validation images could not be opened.')
    if 'test' in meta: parts.append(_errors_of(meta['labels'], meta['test'], 'test images, used for nothing else'))
    return '\n\n'.join(parts)

def _confidence_section(meta):
    if not meta['n_valid']: return 'Not measured. The model never answers "not sure".'
    c,limits,text = meta['calibration'],meta['neither'],'Not calibrated: its probabilities are probably too high.'
    if c:
        text = (f'Calibrated on the validation images: temperature {c["temperature"]:.2f}, expected calibration\n'
                f'error {c["before"]:.1%} before and {c["after"]:.1%} after.'
                + '\nWith so few images these figures are rough.'*(meta['n_valid'] < 100))
    if limits == NOTHING_SURE:
        return f'{text}\n\n**It is sure of nothing: even its most confident validation answers were too often wrong.**'
    far = (',\nor if the image is unlike the training images: its features are further than '
           f'{limits["distance"]:.2f} (0 to 1) from theirs') if 'distance' in limits else ''
    return (f'{text}\n\nIt answers "not sure" if the probability is below {limits["probability"]:.2f}{far}.\n'
            'At least eight in ten of its other answers about the validation images were right.')

def _input_section(meta):
    size,larger,resize = meta['size'],meta['resize_to'],meta.get('resize', {})
    how = dict(squish='stretched', crop='cropped to its central square and scaled',
               pad=f'padded to a square ({resize.get("pad_mode")}) and scaled')[resize.get('method', 'squish')]
    opened = 'as stored, ignoring its EXIF orientation' if 'opened' in meta else 'upright'
    cut = ', then cropped to its center' if larger > size else ''
    return (f'`pixels`: uint8, N x {size} x {size} x 3, RGB. The image ({opened}) is {how}\n'
            f'to {larger} x {larger} (bilinear){cut}.')

def model_card(
    meta:dict # From `model_metadata`
) -> str: # Markdown
    "Render `meta` as a model card"
    labels = [_escape(o) for o in meta['labels']]
    int8 = '\nIts body computes with 8-bit integers.'*meta.get('int8', False)
    intro = [f'# {" or ".join(labels)}?', f'Classifies images as {" or ".join(labels)}. {_escape(meta["arch"])}, '
             f'trained with catdog on {meta["date"]}.{int8}']
    if meta['trained_on'] == 'drawings':
        intro.insert(1, '**Trained on drawings: its answers about photographs mean nothing.**')
    sections = {
        'Data': _data_section(meta), 'Errors': _errors_section(meta),
        'What would help': '\n'.join(map(_escape, insight_sentences(meta.get('insights', {})))) or 'Not measured.',
        'Confidence': _confidence_section(meta),
        'Limitations': 'It always answers with one of its labels, and does not notice all images of other things.\n'
                       'Training and validation images come from the same source: expect more errors on other images.',
        'Input': _input_section(meta), 'Versions': ', '.join(f'{k} {v}' for k,v in meta['versions'].items())}
    return '\n\n'.join([*intro, *(f'## {title}\n\n{text}' for title,text in sections.items())]) + '\n'
