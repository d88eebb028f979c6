"""Other things than cats and dogs: error, loss and time of the recipes on a part that no training has seen

    python bench/sets.py                                 # clothing and sign by 'fast' (the head alone) and 'auto'
    python bench/sets.py --sets sign --seeds 3           # one set, three splits and seeds
    python bench/sets.py --recipes fast,auto,fine_tune   # beside plain fastai, `fine_tune(4)` of the same body: slow
    python bench/sets.py --minutes 2                     # with a limit for each training
    python bench/sets.py --neither                       # the exported model, also asked about other things

A set is a folder with train, test and perhaps valid above the labels, in sets/ of the shared folder (CATDOG_SHARED, or
../shared beside the project). The recipes alternate. Times go from the folder to a calibrated `Learner`; on a machine's
first run they include writing the graphs for ONNX Runtime.
"""
import os, tempfile, time
from pathlib import Path
from statistics import mean

root = Path(__file__).resolve().parent.parent
shared = Path(os.environ.get('CATDOG_SHARED', root.parent/'shared'))

from fastcore.script import call_parse
from torch.nn import functional as F

from catdog.core import files as core_files
from catdog.learn.calibration import error_interval, validation_logits
from catdog.data import get_dls
from catdog.train import export, get_learner, train

core_files._load = lambda *_: {}   # each training computes its features

def ask_about_others(learn):
    "Export `learn`; print how the model answers about validation and test images, and about photos/neither"
    from catdog.predict import Classifier
    with tempfile.TemporaryDirectory() as folder:
        classifier = Classifier(export(learn, Path(folder)/'model'))
        sets = dict(validation=learn.dls.valid_ds.items, test=learn.dls.test_files,
                    neither=sorted((shared/'photos'/'neither').glob('*')))
        for name,files in sets.items():
            given = classifier.predict_batch(files)
            print(f'  {name}: {sum(o.doubt == "unlike" for o in given)/len(given):.1%} unlike, '
                  f'{sum(o.sure for o in given)/len(given):.1%} answered, of {len(given)}', flush=True)
        logits,_ = validation_logits(learn, learn.dls.test_dl(sets['test'], with_labels=True))
        same = [o.label == learn.dls.vocab[i] for o,i in zip(classifier.predict_batch(sets['test']), logits.argmax(1))]
        print(f'  the same answer as the learner about {sum(same)} of {len(same)} test images', flush=True)

def measure(name, recipe, seed, minutes, neither=False):
    "Train on the set `name`; print and return the test error, the loss and the minutes it took"
    core_files._memory.clear()   # of earlier trainings
    start,path = time.perf_counter(),shared/'sets'/name
    if recipe == 'fine_tune':
        learn = get_learner(get_dls(path, 224, seed=seed), 'efficientnet_lite0')
        learn.fine_tune(4)
    else: learn = train(path, seed=seed, minutes=minutes, recipe=recipe)
    took = (time.perf_counter() - start)/60
    logits,truth = validation_logits(learn, learn.dls.test_dl(learn.dls.test_files, with_labels=True))
    wrong,loss = int((logits.argmax(1) != truth).sum()),F.cross_entropy(logits.float(), truth).item()
    error,low,high = error_interval(wrong, len(truth))
    print(f'{name}, {recipe} ({learn.arch_name}, tuned: {getattr(learn, "tuned", "all layers")}), seed {seed}: '
          f'{error:.2%} ({low:.1%} to {high:.1%}) of {len(truth)} test images wrong, loss {loss:.3f}, '
          f'{took:.1f} minutes', flush=True)
    if neither and recipe != 'fine_tune': ask_about_others(learn)
    return error,loss,took

@call_parse
def main(
    sets:str='clothing,sign', # Names of the sets, separated by commas
    recipes:str='fast,auto', # 'fast', 'auto' and 'fine_tune', separated by commas
    seeds:int=1, # Number of seeds
    minutes:float=None, # Limit for each training
    neither:bool=False # Also export, and ask the model about photos/neither?
):
    "Compare recipes"
    print(f'load average at the start: {os.getloadavg()[0]:.1f}')
    rows = {}
    for seed in range(seeds):
        for name in sets.split(','):
            for recipe in recipes.split(','):
                rows.setdefault((name, recipe), []).append(measure(name, recipe, seed, minutes, neither))
    for (name,recipe),o in rows.items():
        error,loss,took = map(mean, zip(*o))
        print(f'{name:12} {recipe:10} {error:6.2%} error, loss {loss:.3f}, {took:5.1f} minutes (mean of {len(o)})')
    print(f'load average at the end: {os.getloadavg()[0]:.1f}')
