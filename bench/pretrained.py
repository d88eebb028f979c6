"""Make the model that ships with the package, and measure it.

    python bench/pretrained.py make       # about 15 minutes on 2 cores with bfloat16; writes catdog/pretrained/
    python bench/pretrained.py measure    # error and speed on photos/test

Needs a folder of photographs (CATDOG_SHARED, or ../shared beside the project) with photos/small to train on and
photos/test to measure on, and SqueezeNet's ImageNet weights, which torch downloads or finds below TORCH_HOME.
"""
import os, sys, time
from pathlib import Path

import numpy as np

root = Path(__file__).resolve().parent.parent
shared = Path(os.environ.get('CATDOG_SHARED', root.parent/'shared'))
if (shared/'torch_home').is_dir(): os.environ.setdefault('TORCH_HOME', str(shared/'torch_home'))

def make(path=root/'catdog'/'pretrained'):
    "Fine-tune SqueezeNet on photos/small and export it to `path`"
    from fastai.vision.augment import RandomResizedCrop, Resize
    from catdog.data import get_dls
    from catdog.train import calibrate, export, faster, get_learner
    def learner(item_tfms):   # 1,000 of 12,000 pictures kept back; one linear layer as the head: under 4 MB
        dls = get_dls(shared/'photos'/'small', valid_pct=1/12, item_tfms=item_tfms)
        return get_learner(dls, 'squeezenet1_0', lin_ftrs=[])
    learn = learner(RandomResizedCrop(160, min_scale=0.5))
    with faster(learn, 160): learn.fine_tune(5)
    # Trained on zoomed crops, it sees things at the size that it is used to when the test picture is larger
    larger = learner(Resize(SIZE, 'squish'))
    larger.model.load_state_dict(learn.model.state_dict())
    calibrate(larger)
    export(larger, path)
    (path/'export.pkl').unlink()   # apps need only the ONNX file, and nobody should unpickle what they did not write

SIZE = 192

def measure():
    "Error of the model that ships on photos/test, and the rate of `predict_batch`"
    from catdog.predict import Classifier, shipped_model
    classifier = Classifier(shipped_model())
    files = sorted((shared/'photos'/'test').glob('*/*.jpg'))
    start = time.perf_counter()
    answers = classifier.predict_batch(files)
    seconds = time.perf_counter() - start
    from catdog.train import calibration_error
    truth = np.array([classifier.labels.index(file.parent.name) for file in files])
    probabilities = np.array([list(answer.probabilities.values()) for answer in answers])
    wrong = (probabilities.argmax(1) != truth).sum()
    print(f'{classifier.summary}\n{wrong} of {len(files)} wrong: {wrong/len(files):.2%}; expected calibration error '
          f'{calibration_error(probabilities, truth):.2%}; {len(files)/seconds:.0f} pictures a second')

if __name__ == '__main__': make() if sys.argv[1:] == ['make'] else measure()
