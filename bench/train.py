"""The recipe 'fast' beside fastai's `fine_tune`: training time and error

    python bench/train.py                  # 3 splits of photos/web by both recipes; error on photos/test (40 minutes)
    python bench/train.py --classic 1      # the same, one split for the classic recipe (12 minutes); 0: none
    python bench/train.py epochs           # photos/web: does fine-tuning after the head help? (10 minutes)
    python bench/train.py norms            # the classic recipe with frozen batch norms (8 minutes)
    python bench/train.py runtimes         # the body in ONNX Runtime and in PyTorch, images per second
    python bench/train.py neither          # answers of the shipped model about images of other things

The classic recipe is stock fastai: `DataBlock`, `RandomResizedCrop(224, min_scale=0.5)`, `aug_transforms()`, batches of
64, `fine_tune(4)`. The fast one is `train` with its defaults, which
fits the head, and no more where the head is right about 97% of the validation images. Both start from the same EfficientNet-Lite0 and validate
on the images that `split_files` chooses. Both times go from a folder of JPEG files to a trained `Learner`, including
decoding, and for the fast one also the check of every file before the split, and the calibration. The graph of the body
for ONNX Runtime is written before, as it is once per machine; its time is printed. The floor is a lower bound for
anything that reads each image once: decode all, and one forward pass at 224 pixels in the fastest runtime we know.
Further rows: the fast recipe with SqueezeNet, whose weights torch downloads or finds below TORCH_HOME, and with a
ResNet-18 from random weights, of which only the time means anything.

Needs a folder of photographs (CATDOG_SHARED, or ../shared beside the project) with photos/web and photos/test.
"""
import os, time
from pathlib import Path
from statistics import mean, median

root = Path(__file__).resolve().parent.parent
shared = Path(os.environ.get('CATDOG_SHARED', root.parent/'shared'))
if (shared/'torch_home').is_dir(): os.environ.setdefault('TORCH_HOME', str(shared/'torch_home'))

import numpy as np
import torch
from fastai.vision.all import (BnFreeze, CategoryBlock, DataBlock, FuncSplitter, ImageBlock, RandomResizedCrop,
                               aug_transforms, get_image_files, parent_label, set_seed)
from fastcore.script import call_parse

from catdog.core.errors import CatdogError
from catdog.core.files import map_ahead
from catdog.data import UprightImage, get_dls, image_files
from catdog.core import files as core_files
from catdog.learn.features import fast_forward
from catdog.learn.finetune import _unfreeze_except_batchnorm
from catdog.dataset.split import split_files
from catdog.train import get_learner, train

web,test,LITE = shared/'photos'/'web',shared/'photos'/'test','efficientnet_lite0'

def timed(do, *args, **kw):
    start = time.perf_counter()
    return do(*args, **kw),time.perf_counter() - start

def classic_dls(valid):
    block = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=lambda o: sorted(get_image_files(o)),
                      splitter=FuncSplitter({*valid}.__contains__), get_y=parent_label,
                      item_tfms=RandomResizedCrop(224, min_scale=0.5), batch_tfms=aug_transforms())
    return block.dataloaders(web, bs=64)

def classic(valid, epochs=4):
    learn = get_learner(classic_dls(valid), LITE)
    learn.fine_tune(epochs)
    return learn

def without_norms(valid):
    "The recipe `classic`, but batch norms keep their statistics of ImageNet"
    learn = get_learner(classic_dls(valid), LITE, train_bn=False)
    learn.fit_one_cycle(1, slice(2e-3), pct_start=.99, cbs=BnFreeze())
    _unfreeze_except_batchnorm(learn)
    learn.fit_one_cycle(4, slice(1e-5, 1e-3), pct_start=.3, div=5., cbs=BnFreeze())
    return learn

def error_on_test(learn):
    dl = learn.dls.test_dl(sorted(get_image_files(test)), with_labels=True)
    with learn.no_bar(): p,truth = learn.get_preds(dl=dl)
    return (p.argmax(1) != truth).float().mean().item()

def floor(compute):
    "Seconds to decode all images and to pass them through the body, `compute`, once"
    files = image_files(web)
    def decode(file): return np.asarray(UprightImage.create(file, 448).resize((224, 224)))
    pixels,opening = timed(lambda: np.stack(list(map_ahead(decode, files))))
    def forward():
        for i in range(0, len(files), 16):
            x = np.ascontiguousarray(pixels[i:i + 16].transpose(0, 3, 1, 2), dtype='float32')
            compute(torch.from_numpy((x - 127)/128))
    forward()
    return opening + min(timed(forward)[1] for _ in range(2))

core_files._load = lambda *_: {}   # each training computes its features

def in_onnx(learn):
    "The body of `learn` in ONNX Runtime, as for many images"
    return fast_forward(learn.model[0], torch.zeros(2, 3, 224, 224))

def one(name, seed, do, /, *args, **kw):
    "Run a recipe, and print its row"
    set_seed(seed)
    core_files._memory.clear()   # of earlier trainings
    learn,seconds = timed(do, *args, **kw)
    error = error_on_test(learn)
    print(f'{name}, seed {seed}: {seconds:.1f} s, {error:.2%} error on {test.name}', flush=True)
    return seconds,error

def recipes(seeds, n_classic):
    print(f'load average at the start: {os.getloadavg()[0]:.1f}')
    learn = get_learner(get_dls(web, 224), LITE)
    compute,seconds = timed(in_onnx, learn)
    print(f'the graph of the body, once on each machine: {seconds:.1f} s')
    slow,fast,least = [],[],[]
    for seed in range(seeds):
        valid = split_files(web, seed=seed).valid
        if seed < n_classic: slow.append(one('classic', seed, classic, valid))
        fast.append(one('fast', seed, train, web, seed=seed))
        least.append(floor(compute))
    fast_s,fast_e = zip(*fast)
    print(f'fast: {median(fast_s):.1f} s (median), {mean(fast_e):.2%} error (mean)')
    if slow:
        slow_s,slow_e = zip(*slow)
        print(f'classic: {median(slow_s):.1f} s, {mean(slow_e):.2%} error; fast is '
              f'{median(slow_s)/median(fast_s):.1f} times faster')
    print(f'the floor is {median(least):.1f} s: fast takes {median(fast_s)/median(least):.1f} times as long')
    try: one('fast, SqueezeNet', 0, train, web, 'squeezenet1_0', seed=0)
    except CatdogError as e: print(e)
    one('fast, ResNet-18 from random weights', 0, train, web, 'resnet18', seed=0, pretrained=False)

def epochs(seed=0):
    "Error after fitting the head, and after one and two epochs of fine-tuning"
    for n in (0, 1, 2): one(f'{n} epochs', seed, train, web, recipe='fast', epochs=n, seed=seed)

def norms(seed=0): one('classic, batch norms left alone', seed, without_norms, split_files(web, seed=seed).valid)

def runtimes(n=320):
    "Images a second through the body: ONNX Runtime, PyTorch in float32 and bfloat16, alternating"
    learn = get_learner(get_dls(web, 224), LITE)
    compute = in_onnx(learn)
    body = learn.model[0].eval().to(memory_format=torch.channels_last)
    x = torch.randn(16, 3, 224, 224)
    def by_torch(bf16):
        with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            body(x.to(memory_format=torch.channels_last))
    ways = {'ONNX Runtime': lambda: compute(x),
            'PyTorch, float32': lambda: by_torch(False), 'PyTorch, bfloat16': lambda: by_torch(True)}
    times = {name: [] for name in ways}
    for i in range(n//16 + 1):
        for name,do in ways.items(): times[name].append(timed(do)[1])
    for name,o in times.items(): print(f'{name}: {16/median(o[1:]):.0f} images a second')

def neither(n=100):
    "Measure how often the shipped model is not sure: images of its labels, of other things, and fastbook's bear"
    from fastbook import image_bear, image_cat
    from catdog.sample.draw import draw
    from catdog.predict import Classifier, shipped_model
    classifier = Classifier(shipped_model())
    def unsure(images):
        answers = classifier.predict_batch(images)
        return f'{sum(not o.sure for o in answers)} of {len(answers)}'
    print('photographs of cats and dogs that it has not seen:', unsure(image_files(test)))
    for thing in ('house', 'tree', 'car', 'flower', 'fish'):
        print(f'drawings of a {thing}:', unsure([draw(thing, i, (320, 320)) for i in range(n)]))
    print("fastbook's cat:", classifier.predict(image_cat()), " fastbook's bear:", classifier.predict(image_bear()))

@call_parse(pos=['what'])
def main(
    what:str='recipes', # recipes, epochs, norms, runtimes or neither
    seeds:int=3, # Splits
    classic:int=None # Splits for the classic recipe; default: all
):
    "Measure training"
    if what == 'recipes': recipes(seeds, seeds if classic is None else classic)
    else: dict(epochs=epochs, neither=neither, norms=norms, runtimes=runtimes)[what]()
