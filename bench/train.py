"""Training, the fast recipe beside the classic one: how long, and how often wrong?

    python bench/train.py              # 3 splits of photos/web, each by both recipes; error on photos/test (25 minutes)
    python bench/train.py epochs       # photos/web: does fine-tuning after the head help? (4 minutes)
    python bench/train.py stages       # ResNet-18 from random numbers, one epoch of each stage: time only
    python bench/train.py neither      # how many pictures of other things does the model that ships call "not sure"?

The classic recipe is stock fastai, in its own words: `DataBlock`, `RandomResizedCrop(224, min_scale=0.5)`,
`aug_transforms()`, batches of 64, `fine_tune(4)`. The fast one is `train` with its defaults. Both start from the same
SqueezeNet and have the same validation pictures, those of `split_files`; both times go from the folder of JPEG files to
a trained `Learner`, decoding included, and for the fast one also the look at every file before the split. The floor is what nobody can go below who looks at each
picture once: decode all, and one pass forward at 224 pixels, in the fastest layout that we know.

Needs a folder of photographs (CATDOG_SHARED, or ../shared beside the project) with photos/web and photos/test, and
SqueezeNet's ImageNet weights, which torch downloads or finds below TORCH_HOME.
"""
import os, time
from pathlib import Path
from statistics import mean, median

root = Path(__file__).resolve().parent.parent
shared = Path(os.environ.get('CATDOG_SHARED', root.parent/'shared'))
if (shared/'torch_home').is_dir(): os.environ.setdefault('TORCH_HOME', str(shared/'torch_home'))

import torch
from fastai.vision.all import (CategoryBlock, DataBlock, FuncSplitter, ImageBlock, RandomResizedCrop, aug_transforms,
                               error_rate, get_image_files, parent_label, resnet18, set_seed, squeezenet1_0,
                               vision_learner)
from fastcore.script import call_parse

from catdog.data import Decoded, get_dls, image_files
from catdog.learn.recipes import fast_recipe
from catdog.learn.split import split_files
from catdog.train import Checkpoint, train

web,test = shared/'photos'/'web',shared/'photos'/'test'

def timed(do, *args, **kw):
    start = time.perf_counter()
    return do(*args, **kw),time.perf_counter() - start

def classic_dls(valid):
    block = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=lambda o: sorted(get_image_files(o)),
                      splitter=FuncSplitter({*valid}.__contains__), get_y=parent_label,
                      item_tfms=RandomResizedCrop(224, min_scale=0.5), batch_tfms=aug_transforms())
    return block.dataloaders(web, bs=64)

def classic(valid, epochs=4):
    learn = vision_learner(classic_dls(valid), squeezenet1_0, metrics=error_rate)
    learn.fine_tune(epochs)
    return learn

def error_on_test(learn):
    dl = learn.dls.test_dl(sorted(get_image_files(test)), with_labels=True)
    with learn.no_bar(): p,truth = learn.get_preds(dl=dl)
    return (p.argmax(1) != truth).float().mean().item()

def floor():
    "Seconds to decode all pictures and to pass them through the body once"
    files = image_files(web)
    decoded,opening = timed(Decoded, files, 224)
    body = squeezenet1_0().features.eval().to(memory_format=torch.channels_last)
    def forward():
        with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
            for i in range(0, len(files), 64):
                x = torch.from_numpy(decoded.pixels[i:i + 64]).permute(0, 3, 1, 2).float()/255
                body(x.to(memory_format=torch.channels_last))
    forward()
    return opening + min(timed(forward)[1] for _ in range(2))

def recipes(seeds):
    rows = []
    for seed in range(seeds):
        ends = []
        valid = split_files(web, seed=seed).valid
        for name,do in (('classic', lambda: classic(valid)), ('fast', lambda: train(web, 'squeezenet1_0', seed=seed))):
            set_seed(seed)
            learn,seconds = timed(do)
            assert {*learn.dls.valid_ds.items} == {*valid}
            ends.append((seconds, error_on_test(learn)))
            print(f'seed {seed}, {name}: {seconds:.1f} s, {ends[-1][1]:.2%} error on {test.name}', flush=True)
        rows.append(ends)
    least = floor()
    times,errors = ([[o[k][i] for o in rows] for k in (0, 1)] for i in (0, 1))
    print(f'classic {median(times[0]):.1f} s, fast {median(times[1]):.1f} s (medians): '
          f'{median(times[0])/median(times[1]):.1f} times faster')
    print(f'mean error: classic {mean(errors[0]):.2%}, fast {mean(errors[1]):.2%}: '
          f'{1 - mean(errors[1])/mean(errors[0]):.0%} lower')
    print(f'the floor is {least:.1f} s: fast takes {median(times[1])/least:.1f} times as long')

def epochs(seed=0):
    "Error after fitting the head, and after one and two epochs of fine-tuning"
    for n in (0, 1, 2):
        set_seed(seed)
        learn,seconds = timed(train, web, 'squeezenet1_0', epochs=n, seed=seed)
        print(f'{n} epochs: {seconds:.1f} s, {error_on_test(learn):.2%} error on {test.name}', flush=True)

def stages():
    "ResNet-18 from random numbers: time for one frozen and one unfrozen epoch, beside fitting the head and one epoch"
    learn = vision_learner(classic_dls(split_files(web, seed=0).valid), resnet18, metrics=error_rate, pretrained=False)
    learn.freeze()
    plain = timed(learn.fit_one_cycle, 1)[1],(learn.unfreeze(), timed(learn.fit_one_cycle, 1)[1])[1]
    def ours(epochs):
        dls = get_dls(web, 192, seed=0, item_tfms=[RandomResizedCrop(192, min_scale=0.5)], batch_tfms=[])
        learn = vision_learner(dls, resnet18, metrics=error_rate, pretrained=False, lin_ftrs=[])
        fast_recipe(learn, epochs, 192, Checkpoint('models/.unfinished/bench.pth'))
    head,both = (timed(ours, o)[1] for o in (0, 1))
    print(f'ResNet-18: classic {plain[0]:.1f} s frozen and {plain[1]:.1f} s unfrozen; '
          f'fast {head:.1f} s for the head and {both - head:.1f} s unfrozen')

def neither(n=100):
    "What the model that ships calls not sure: pictures of the labels, of other things, and fastbook's bear"
    from fastbook import image_bear, image_cat
    from catdog.core.drawing import draw
    from catdog.predict import Classifier, shipped_model
    classifier = Classifier(shipped_model())
    def unsure(pictures):
        answers = classifier.predict_batch(pictures)
        return f'{sum(not o.sure for o in answers)} of {len(answers)}'
    print('photographs of cats and dogs that it has not seen:', unsure(image_files(test)))
    for thing in ('house', 'tree', 'car', 'flower', 'fish'):
        print(f'drawings of a {thing}:', unsure([draw(thing, i, (320, 320)) for i in range(n)]))
    print("fastbook's cat:", classifier.predict(image_cat()), " fastbook's bear:", classifier.predict(image_bear()))

@call_parse(pos=['what'])
def main(
    what:str='recipes', # recipes, epochs, stages or neither
    seeds:int=3 # Splits
):
    "Measure training"
    if what == 'recipes': recipes(seeds)
    else: dict(epochs=epochs, stages=stages, neither=neither)[what]()
