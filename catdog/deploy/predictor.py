"""The `Classifier`: from an image to a label with its probability, without torch, and its answer in words."""

import json, os, re, sys, warnings
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
import numpy as np
from PIL import Image
from ..core.errors import CatdogError, ImageError, ModelError
from ..core.files import batches_ahead, check_writable, content_id, folder_lock, walk_files, write_atomic
from ..core.images import jpeg_bytes, open_image
from ..core.model_file import (NOTHING_SURE, answer_limits, check_answers, model_file, open_as, open_session,
                               overlay_heatmap, pixels_of, read_meta)

def percent(
    p:float # A probability, 0 to 1
) -> str: # With one decimal; '>99.9 %' and '<0.1 %' beyond
    "Format `p` as a percentage"
    if p > .999: return '>99.9 %'
    if p < .001: return '<0.1 %'
    return f'{int(1000*p + .5)/10:.1f} %'   # halves go up, as in the page's script

_an = re.compile(r'(?!uni[^nm]|eu|ewe|one\b|us[aeiou])[aeiou]|hour|hono|heir|honest', re.I)
_MANY = 4   # more labels than these are not listed

def one_of(
    labels:list # At least two
) -> str: # Such as 'a cat, a dog or an owl'; the number of labels if there are many
    "List `labels` in words"
    if len(labels) > _MANY: return f'any of the {len(labels)} things that this model knows'
    *others,last = (f'{"an" if _an.match(o) else "a"} {o}' for o in labels)
    return f'{", ".join(others)} or {last}'

def question(
    labels:list # Of a model
) -> str: # Such as 'Is it a cat or a dog?'
    "Return the question that a model with these `labels` answers, the title of app and page"
    return 'What is in the image?' if len(labels) > _MANY else f'Is it {one_of(labels)}?'

@dataclass(frozen=True)
class Prediction:
    "The answer of a `Classifier` about one image; `str` gives it in words, without a full stop"
    label:str # The most probable label
    probability:float # Its probability, 0 to 1
    probabilities:dict = field(repr=False) # Label -> probability, in the order of the labels; they sum to 1
    doubt:str = '' # Why it is not sure: 'between' the labels, or 'unlike' the training images; '' if it is sure
    @property
    def sure(self) -> bool: return not self.doubt   # False: do not rely on it, this may well be something else
    def __str__(self):
        if self.doubt == 'unlike': return f'This does not look like {one_of(list(self.probabilities))}'
        best = percent(self.probability)
        if self.sure: return f'{self.label}, {best}'
        rival = max((o for o in self.probabilities if o != self.label), key=self.probabilities.get)
        return f'Not sure, between {self.label} and {rival} ({self.label} {best})'

def shown_probabilities(
    pred:Prediction # Or any object with its attributes
) -> list: # (label, probability) pairs: all, or the five largest of more than six; none if they are meaningless
    "Return the probabilities to show with `pred`"
    if pred.doubt == 'unlike': return []
    pairs = list(pred.probabilities.items())
    return pairs if len(pairs) <= 6 else sorted(pairs, key=lambda o: -o[1])[:5]

def forced_choice(
    pred:Prediction # Or any object with its attributes
) -> str: # '' if there are probabilities
    "Return the sentence to show instead of meaningless probabilities"
    return f'If it had to be one of them: {pred.label}.' if pred.doubt == 'unlike' else ''

def tally(
    pred:Prediction # Or any object with its attributes
) -> str: # Its label, 'not sure' or 'like none of them'
    "Return the category of `pred` when answers are counted"
    return pred.label if pred.sure else 'like none of them' if pred.doubt == 'unlike' else 'not sure'

def shipped_model() -> Path: # Its folder
    "Return the model of cats and dogs that comes with the package"
    return Path(str(package_files('catdog')/'pretrained'))

class Classifier:
    "Tells images apart with an exported model; safe to call from several threads"
    def __init__(self,
        path:str|os.PathLike=None, # Model folder, or its `model.onnx`; None: the first of `find_models`
        threads:int=None # Cores per answer; None: all. With many visitors 1 is faster
    ):
        "Open and check the model at `path`; raise `ModelError`"
        file = model_file(next(iter(find_models().values())) if path is None else path)
        self._open(file, file.read_bytes(), threads)
    def _open(self, file, data, threads=None):
        self.path,self.file,self.session = file.parent,file,open_session(file, data, threads)
        self.meta = read_meta(self.session, file)
        check_answers(self.session, self.meta, file)
        self.labels,self.limits = self.meta['labels'],answer_limits(self.meta)
    def __getstate__(self): return self.file,self.file.read_bytes()
    def __setstate__(self, state): self._open(*state)
    def __repr__(self): return f'Classifier({self.summary})'
    @property
    def summary(self) -> str:
        "One line about the model: its labels, what it was trained on, its measured error"
        m = self.meta
        n = f'{m["n_train"]:,} ' if m.get('n_train') else ''
        error = f'{m["error"]:.1%} validation error' if 'error' in m else 'its error was not measured'
        notes = ['; knows nothing about photographs']*(m.get('trained_on') == 'drawings')
        notes += ['; sure of nothing']*(self.limits == NOTHING_SURE)
        return f'{" / ".join(self.labels)}: trained on {n}{m.get("trained_on", "images")}, {error}{"".join(notes)}'
    def pixels(self,
        img # What `predict` takes
    ) -> np.ndarray: # uint8, shape (size,size,3)
        "Prepare `img` for the network; raise `ImageError`"
        return pixels_of(img, self.meta)
    def answers(self,
        pixels:list # Arrays from `pixels`
    ) -> list: # A `Prediction` each
        "Predict prepared images"
        names = ['logits', 'distance'][:1 + (self.limits['distance'] < np.inf)]
        # Four at a time, so that activations fit into the processor's cache
        runs = [self.session.run(names, {'pixels': np.stack(pixels[i:i+4])}) for i in range(0, len(pixels), 4)]
        if not runs: return []
        logits,*distances = (np.concatenate(o) for o in zip(*runs))
        if not np.isfinite(logits).all(): raise ModelError(f'{self.file}: its scores are not finite; it is damaged')
        scores = logits.astype('float64')/self.meta.get('temperature', 1.0)
        e = np.exp(scores - scores.max(1, keepdims=True))
        rows = e/e.sum(1, keepdims=True)
        return [self._prediction(*o) for o in zip(rows, distances[0] if distances else np.zeros(len(rows)))]
    def _prediction(self, row, distance):
        best,far = float(row.max()),not distance <= self.limits['distance']
        if far and self.limits != NOTHING_SURE: doubt = 'unlike'
        else: doubt = 'between'*bool(far or not best >= self.limits['probability'])
        return Prediction(self.labels[row.argmax()], best, dict(zip(self.labels, row.tolist())), doubt)
    def predict(self,
        img # A path, bytes, a binary file, an array (h,w,3) or an image
    ) -> Prediction:
        "Predict `img`; raise `ImageError`"
        return self.answers([self.pixels(img)])[0]
    def predict_batch(self,
        imgs, # Iterable of what `predict` takes
        bs:int=32 # Number of images opened ahead
    ) -> list: # A `Prediction` each
        "Predict each of `imgs`, while threads open the next; raise `ImageError`, which names the image or its index"
        def _opened(o):
            i,img = o
            try: return self.pixels(img)
            except ImageError as e:
                name = str(img) if isinstance(img, (str, os.PathLike)) else f'imgs[{i}]'
                raise ImageError(e.reason if name in e.reason else f'{name}: {e.reason}', e.status) from None
        return [o for opened in batches_ahead(_opened, enumerate(imgs), bs) for o in self.answers(opened)]
    def explain(self,
        img, # What `predict` takes
        label:str=None # The label to explain; None: the most probable
    ) -> np.ndarray: # float32, shape (h,w) of the network's last feature map, 0 to 1
        "Return how much each position of `img` speaks for `label` and against the strongest other label"
        if 'activation' not in [o.name for o in self.session.get_outputs()]:
            raise ModelError(f'{self.file}: cannot explain its answers, as its network has no feature maps')
        if label not in (None, *self.labels): raise CatdogError(f'{label!r} is none of {", ".join(self.labels)}')
        logits,places = (o[0] for o in self.session.run(['logits', 'activation'], {'pixels': self.pixels(img)[None]}))
        i = self.labels.index(label) if label else logits.argmax()
        rival = np.where(np.arange(len(logits)) == i, -np.inf, logits).argmax()
        heat = (places[i] - places[rival]).clip(0)
        return (heat/max(heat.max(), 1e-9)).astype('float32')
    def why(self,
        img, # What `predict` takes
        label:str=None, # The label to explain; None: the most probable
        max_side:int=480 # Longer side of the result, in pixels
    ) -> Image.Image: # Bright where the image speaks for `label`, dark and grey elsewhere
        "Show what `explain` returns on `img`"
        img = open_as(img, {**self.meta, 'min_side': None}, max_side=4*self.meta['resize_to'])   # a file is read once
        # the square root, as in image files: a quarter of the light looks half as bright
        return overlay_heatmap(open_image(img, max_side=max_side), np.sqrt(self.explain(img, label)), self.meta)

def _open_or_warn(path):
    try: return Classifier(path)
    except ModelError as e: warnings.warn(f'left out: {e}')

def find_models() -> dict: # Name -> folder, the one to start with first
    "Find `$CATDOG_MODEL`, models below `models/`, newest first, and the one that ships; models of drawings come last"
    here,shipped = (Path(), Path('..')),shipped_model()   # notebooks look from the folder `nbs`
    model = os.path.expanduser(os.environ.get('CATDOG_MODEL', '').strip(' "\''))   # files of variables have quotes
    chosen = [(p/model).resolve() for p in here if (p/model).exists()][:1] or [Path(model).resolve()]
    found = {o.resolve().parent for p in here for o in p.glob('models/*/model.onnx')}
    newest = sorted(found, key=lambda o: (o/'model.onnx').stat().st_mtime, reverse=True)
    opened = {o: c for o in newest if (c := _open_or_warn(o))}
    photographs = [o for o,c in opened.items() if c.meta.get('trained_on') == 'photographs']
    return {'catdog (ships with the package)' if o == shipped else os.path.relpath(o): o
            for o in dict.fromkeys([*(chosen if model else []), *photographs, shipped, *opened])}

MAX_KEPT = 1000   # images
NOTICE = (f'Images that you correct are kept by the owner of this page, {MAX_KEPT:,} at most, to train with; '
          'all others are forgotten.')

def make_kept(
    folder:str|os.PathLike # For the images; created if missing
) -> str: # Its absolute path
    "Raise `CatdogError` unless images can be kept in `folder`"
    check_writable(folder)
    try: Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as e: raise CatdogError(f'{folder}: is no folder, and cannot be made one ({e.strerror})') from None
    return os.path.abspath(folder)

def keep_image(
    folder:str|os.PathLike, # A data set, from `make_kept`
    data:bytes, # The content of a file that `open_image` opens
    label:str, # What the visitor says that it shows
    where:str, # 'app' or 'page'
    answer # What the model said
) -> str: # For the visitor
    "Keep an image without its metadata, once, with a row in the manifest; raise `CatdogError` if that fails"
    if label.startswith('.') or {'/', '\\'} & {*label}:
        raise CatdogError('It cannot be kept: its label is no name of a folder.')
    data,folder = jpeg_bytes(open_image(data, max_side=1024)),Path(folder)
    id = content_id(data)
    row = dict(label=label, file=f'{label}/{id}.jpg', status='ok', reason=f'the {where} said {answer}',
               url=f'{where}:{id}', engine=where)
    try:
        with folder_lock(folder, 10):
            kept = [o.stem for o in walk_files(folder) if o.suffix == '.jpg']
            if id in kept: return 'It has been kept already.'
            if room := len(kept) < MAX_KEPT:
                (folder/label).mkdir(exist_ok=True)
                write_atomic(folder/label/f'{id}.jpg', data)
                with (folder/'manifest.jsonl').open('a', encoding='utf8') as f: print(json.dumps(row), file=f)
    except (OSError, CatdogError) as e:
        print(f'{folder}: an image cannot be kept: {e}', file=sys.stderr, flush=True)   # not for visitors
        raise CatdogError('It cannot be kept.') from None
    if not room: raise CatdogError(f'It is not kept: {MAX_KEPT:,} images are there already.')
    return f'Thank you: kept as {label}.'
