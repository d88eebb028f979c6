"""Make the model that ships with the package, and measure it.

    python bench/pretrained.py make       # about 30 minutes on 2 cores with bfloat16; writes catdog/pretrained/
    python bench/pretrained.py measure    # error, calibration and speed on photos/test and photos/web

Needs a folder of photographs (CATDOG_SHARED, or ../shared beside the project) with photos/small to train on, and
photos/test and photos/web, neither of which it is trained on, to measure on; and SqueezeNet's ImageNet weights, which
torch downloads or finds below TORCH_HOME.
"""
import os, sys, time
from pathlib import Path

import numpy as np

root = Path(__file__).resolve().parent.parent
shared = Path(os.environ.get('CATDOG_SHARED', root.parent/'shared'))
if (shared/'torch_home').is_dir(): os.environ.setdefault('TORCH_HOME', str(shared/'torch_home'))

SIZE,BACK = 192,1/12   # pixels; 1,000 of 12,000 pictures are kept back

def make(path=root/'catdog'/'pretrained'):
    "Fine-tune SqueezeNet on photos/small and export it to `path`"
    from catdog.train import train
    # Trained on zoomed crops, it sees things at the size that it is used to when the test picture is a seventh larger
    learn = train(shared/'photos'/'small', 'squeezenet1_0', epochs=13, size=168, valid_pct=BACK)
    export_larger(learn.model.state_dict(), path)

def export_larger(weights, path):
    "Export the network with `weights` for whole pictures of `SIZE` to `path`"
    from fastai.vision.augment import Resize
    from catdog.data import get_dls
    from catdog.train import _last_layer, calibrate, export, get_learner
    dls = get_dls(shared/'photos'/'small', valid_pct=BACK, item_tfms=Resize(SIZE, 'squish'), batch_tfms=[])
    learn = get_learner(dls, 'squeezenet1_0', lin_ftrs=[])   # one linear layer as the head: under 4 MB
    _last_layer(learn)
    learn.model.load_state_dict(weights)
    calibrate(learn)
    export(learn, path)
    (path/'export.pkl').unlink()   # apps need only the ONNX file, and nobody should unpickle what they did not write

def measure():
    "Error of the model that ships on photographs that it has not seen, and the rate of `predict_batch`"
    from catdog.predict import Classifier, shipped_model
    from catdog.train import calibration_error, error_interval
    classifier = Classifier(shipped_model())
    print(classifier.summary)
    for folder in ('test', 'web'):
        files = sorted((shared/'photos'/folder).glob('*/*.jpg'))
        start = time.perf_counter()
        answers = classifier.predict_batch(files)
        seconds = time.perf_counter() - start
        truth = np.array([classifier.labels.index(file.parent.name) for file in files])
        probabilities = np.array([list(answer.probabilities.values()) for answer in answers])
        wrong = int((probabilities.argmax(1) != truth).sum())
        error,low,high = error_interval(wrong, len(files))
        print(f'photos/{folder}: {wrong} of {len(files)} wrong, {error:.2%} (95% interval {low:.2%} to {high:.2%}); '
              f'expected calibration error {calibration_error(probabilities, truth):.2%}; '
              f'not sure of {np.mean([not o.sure for o in answers]):.1%}; {len(files)/seconds:.0f} pictures a second')

if __name__ == '__main__': make() if sys.argv[1:] == ['make'] else measure()
