"""Every notebook runs and prints its saved outputs, up to times, URLs and the last digits of numbers.

`python .ci/notebooks.py NOTEBOOK` saves the output again.
"""
import json, re, sys
from html import unescape
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT/'.ci'))   # forked processes import it by name
import notebooks

# Patterns of cells whose numbers differ between runs or machines: rates, races between threads, epochs
VARIES = {
    '03_train': ['ways =', 'results ='],
    '05_predict': ['cost('],
    '06_serve': ['two_visitors('],
    'clean/labeller': ['labeller.learned', 'labeller.undo'],   # features differ a little from CPU to CPU
}

FOREIGN = [(r'data:image/[^"\')\s]+', 'IMAGE'), (r'<(style|script)\b.*?</\1>', ''), (r'<[^>]*>', ' '),
           (r'https?://(127\.0\.0\.1|localhost):\d+', 'ADDRESS'), (r'/tmp/[\w./-]+|tmp\w{8}', 'PATH'),
           (r' at 0x\w+', ''), (r'\b\d+\.\d+\.\d+[\w.+]*', 'VERSION'),
           (r'(?<!\d\.)\b(\d{19}|(?=\d*[a-f])(?=[a-f]*\d)[0-9a-f]{8})\b', 'ID'),
           (r'\d{4}-\d\d-\d\d( \d\d:\d\d(:\d\d)?)?', 'DATE'),
           (r'- most confused: [^\n]*', ''),   # not said of every training
           (r'epoch\s+train_loss[a-z_\s]*time[\d\s:.]+', 'EPOCHS '), (r'[\d.,]+ ?(ms|s|seconds?|minutes?)\b', 'TIME'),
           (r'the ImageNet weights of .*? Using \w+ instead\.', '')]   # said where there is no internet
NUMBER = re.compile(r'\d+(?:[.,]\d+)*(?:e[-+]?\d+)?')

def said(output):
    "Return the words of `output`: printed text, or the text of a page, Markdown or a table"
    if output.get('name') == 'stderr': return ''
    if 'text' in output: return ''.join(output['text'])
    kinds = [''.join(output.get('data', {}).get(f'text/{o}', '')) for o in ('plain', 'markdown', 'html')]
    if kinds[0].startswith('<IPython.core.display'): kinds = kinds[1:]
    return next(filter(None, kinds), '')

def words(outputs):
    "Return the words of `outputs`, without parts that differ from run to run"
    text = '\n'.join(map(said, outputs))
    for pattern,name in FOREIGN: text = re.sub(pattern, name, text, flags=re.S)
    return ' '.join(unescape(text).split())

def is_close(a, b):
    "Whether the numbers `a` and `b`, given as text, are equal up to their last digits"
    if a == b: return True
    if not re.search('[.e]', a + b): return False
    x,y = (float(o.replace(',', '')) for o in (a, b))
    return abs(x - y) <= .02 + .05*abs(x)

def same(saved, now, numbers=True):
    "Whether both texts agree"
    if NUMBER.sub('#', saved) != NUMBER.sub('#', now): return False
    return not numbers or all(map(is_close, NUMBER.findall(saved), NUMBER.findall(now)))

@pytest.mark.parametrize('a, b', [
    ('3 of 20 in 4.1 s', '3 of 20 in 12 s'), ('at http://127.0.0.1:8742/a', 'at http://127.0.0.1:50000/a'),
    ('loss 0.4231', 'loss 0.4239'), ('.a.csv.12ab34cd', '.a.csv.98fe76dc'), ('torch 2.14.1+cpu', 'torch 2.9.0'),
    ('cat   1\ndog  20', 'cat 1\ndog 20')])
def test_equal_outputs(a, b): assert same(*(words([{'text': o}]) for o in (a, b)))

@pytest.mark.parametrize('a, b', [
    ('3 of 20', '4 of 20'), ('a cat', 'a dog'), ('loss 0.42', 'loss 0.62'),
    ('0.1012022644281387329', '0.2012022644281387329'), ('cat, 98 %', 'cat, 68 %'), ('done', '')])
def test_different_outputs(a, b): assert not same(*(words([{'text': o}]) for o in (a, b)))

@pytest.mark.parametrize('name', [o.relative_to(ROOT/'nbs').with_suffix('').as_posix() for o in notebooks.NOTEBOOKS])
def test_saved_outputs_are_current(name):
    path,wrong = ROOT/'nbs'/f'{name}.ipynb',[]
    saved = json.loads(path.read_text(encoding='utf8'))
    for old,new in zip(saved['cells'], notebooks.run(path).cells):
        if old['cell_type'] != 'code': continue
        source,before,now = ''.join(old['source']),words(old['outputs']),words(new['outputs'])
        numbers = not any(o in source for o in VARIES.get(name, ()))
        if not same(before, now, numbers): wrong.append(f'{source}\nsaved: {before}\nnow:   {now}')
    assert not wrong, '\n\n'.join(wrong)
