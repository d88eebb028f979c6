"""Model files: open one from an untrusted source, check its metadata, prepare images as it expects them, write one

Training, validation, `Classifier` and the page in the browser prepare images alike, by a model's metadata: `size`
and `resize_to` (sides in pixels), `min_side` and `opened` (see `open_as`), `resize` (`method`, `pad_mode`)."""

import ctypes, gc, json, os, tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
import numpy as np
import onnxruntime
from PIL import Image

# A session that is deleted in a forked process waits forever for threads that only the parent has (ONNX Runtime 1.32).
# So garbage of the parent, such as a session in a reference cycle, is never collected in a child.
if hasattr(os, 'register_at_fork'): os.register_at_fork(after_in_child=gc.freeze)

from .errors import CatdogError, ModelError
from .images import open_image

# --- Preparing images
OPENED = 'upright', 'as stored'   # how images may be opened; 'as stored' is fastai's `PILImage.create`
_METHODS = 'squish', 'crop', 'pad'
_PAD_MODES = dict(zeros='constant', border='edge', reflection='reflect')   # fastai's name: numpy's

def open_as(
    src, # Anything that `open_image` takes
    meta:dict, # Metadata of a model, of which `opened` and `min_side` are used
    max_side:int=None # As for `open_image`
) -> Image.Image: # RGB
    "Open `src` as the model of `meta` expects it; raise `ImageError` if it is not an image"
    return open_image(src, max_side, min_side=meta.get('min_side'), as_stored=meta.get('opened') == 'as stored')

def _square_box(w, h, size, method):
    "Return left, top, width and height of the square to resize to `size`; for padding it extends beyond the image"
    scale = (min if method == 'crop' else max)(w/size, h/size)
    side = int(scale*size)   # rounded as fastai does, or one image in a thousand would be a pixel off
    return int(.5*(w - side)),int(.5*(h - side)),side,side

def _to_square(img, size, method='squish', pad_mode='reflection'):
    "`img` as a square of `size` pixels, as fastai's `Resize` does in validation"
    if method != 'squish':
        (w,h),(x,y,side,_) = img.size,_square_box(*img.size, size, method)
        img = img.crop((max(x, 0), max(y, 0), min(x + side, w), min(y + side, h)))
        edges = (max(-y, 0), max(side - h + y, 0)),(max(-x, 0), max(side - w + x, 0)),(0, 0)
        if max(map(max, edges)): img = Image.fromarray(np.pad(np.asarray(img), edges, _PAD_MODES[pad_mode]))
    return img.resize((size, size), Image.Resampling.BILINEAR)

def pixels_of(
    src, # Anything that `open_image` takes
    meta:dict # Metadata of a model
) -> np.ndarray: # uint8, shape (size,size,3)
    "Prepare `src` as input of the model of `meta`; raise `ImageError` if it is not an image"
    size,larger = meta['size'],meta['resize_to']
    img,start = _to_square(open_as(src, meta), larger, **meta.get('resize', {})),(larger - size)//2
    return np.ascontiguousarray(np.asarray(img)[start:start+size, start:start+size])

def overlay_heatmap(
    img:Image.Image, # RGB, upright
    heat:np.ndarray, # Shape (h,w), values in [0, 1]: a map of what the network sees of `img`
    meta:dict # Metadata of a model
) -> Image.Image: # Of the size of `img`
    "Darken `img` and turn it grey where `heat` is low, and outside of what the network sees"
    (w,h),method,share = img.size,meta.get('resize', {}).get('method', 'squish'),meta['size']/meta['resize_to']
    x,y,wide,high = (0, 0, w, h) if method == 'squish' else _square_box(w, h, meta['resize_to'], method)
    size = max(1, round(wide*share)),max(1, round(high*share))
    mask,heat = Image.new('L', (w, h)),Image.fromarray((255*heat).astype('uint8'))
    left,top = round(x + wide*(1 - share)/2),round(y + high*(1 - share)/2)
    mask.paste(heat.resize(size, Image.Resampling.BICUBIC), (left, top))
    return Image.composite(img, img.convert('L').point(lambda o: o*2//5).convert('RGB'), mask)

# --- Opening a model
_MAX_BYTES = 1_000_000_000
def model_file(
    path:str|os.PathLike # A model folder, or its `model.onnx`
) -> Path:
    "Return the ONNX file of the model at `path`; raise `ModelError` if there is none"
    path = Path(path)
    file = path/'model.onnx' if path.is_dir() else path
    if not path.exists(): raise ModelError(f'{path}: there is no such model folder; make one with catdog-build')
    if not file.is_file():
        raise ModelError(f'{path}: not a model folder, as it has no model.onnx; make one with catdog-build')
    if file.suffix != '.onnx': raise ModelError(f'{path}: not a model; give a folder that catdog-build made')
    if file.stat().st_size > _MAX_BYTES: raise ModelError(f'{file}: larger than {_MAX_BYTES/1e9:.0f} GB')
    return file

def open_session(
    file:Path, # For messages
    data:bytes, # Content of an ONNX file
    threads:int=None # Threads for one answer; default: one per core
) -> onnxruntime.InferenceSession:
    "Open `data`, which may not refer to other files, with ONNX Runtime; raise `ModelError` if that fails"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4   # errors arrive as exceptions
    options.add_session_config_entry('session.model_external_initializers_file_folder_path', os.devnull)
    # By default its threads wait in a busy loop, which takes the cores from everything else
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    try: session = onnxruntime.InferenceSession(data, options, providers=['CPUExecutionProvider'])
    except Exception as e:   # its exceptions have no other common class
        raise ModelError(f'{file}: ONNX Runtime cannot open it ({str(e).splitlines()[0][:150]})') from None
    session._model_bytes = None   # only `set_providers` reads this copy of the file
    with suppress(Exception): ctypes.CDLL(None).malloc_trim(0)   # of glibc, which keeps memory that is free now
    return session

NOTHING_SURE = dict(probability=1.0, distance=0.0)   # thresholds that no answer passes

def answer_limits(
    meta:dict # Metadata of a model
) -> dict: # `probability`: the lowest, 0 to 1; `distance`: the largest, or infinity
    "Return the thresholds beyond which an answer of the model of `meta` is 'not sure'"
    return dict(probability=0, distance=np.inf) | meta.get('neither', {})

def _is_between(o, low, high): return isinstance(o, (int, float)) and low <= o <= high
def _is_side(o, low, high): return type(o) is int and low <= o <= high

def _can_prepare(meta):
    size,resize = meta.get('size'),meta.get('resize', {})
    return (_is_side(size, 8, 4096) and _is_side(meta.get('resize_to'), size, 4096)
            and (meta.get('min_side') is None or _is_side(meta['min_side'], 1, 65500))
            and meta.get('opened', OPENED[0]) in OPENED
            and isinstance(resize, dict) and set(resize) <= {'method', 'pad_mode'}
            and resize.get('method', 'squish') in _METHODS and resize.get('pad_mode', 'zeros') in [*_PAD_MODES])

def read_meta(
    session:onnxruntime.InferenceSession, # From `open_session`
    file:Path # For messages
) -> dict: # `labels`, `size` and more, as `catdog.learn.card` writes them
    "Read the metadata of a model and check it against its inputs and outputs; raise `ModelError` if it is wrong"
    try: meta = json.loads(session.get_modelmeta().custom_metadata_map['catdog'])
    except (KeyError, ValueError):
        raise ModelError(f'{file}: was not exported by catdog, it does not say which labels it knows') from None
    if not isinstance(meta, dict): meta = {}
    def check(ok, what):
        if not ok: raise ModelError(f'{file}: does not say {what}')
    labels = meta.get('labels')
    check(isinstance(labels, list) and len(labels) > 1 and all(isinstance(o, str) and o for o in labels)
          and len(set(labels)) == len(labels), 'which labels it knows')
    check(_can_prepare(meta), 'which size its images have, and how they are prepared')
    check(_is_between(meta.get('temperature', 1), 1e-3, 1e3), 'how to read its scores')
    limits = answer_limits(meta) if isinstance(meta.get('neither', {}), dict) else {}
    check(limits and _is_between(limits['probability'], 0, 1) and _is_between(limits['distance'], 0, np.inf),
          'when it is not sure')
    check(_is_between(meta.get('error', 0), 0, 1) and _is_between(meta.get('n_train', 0), 0, 1e12), 'how good it is')
    inputs = {o.name: (o.type, o.shape[1:]) for o in session.get_inputs()}
    outputs = {o.name: o.shape[1:] for o in session.get_outputs()}
    if limits['distance'] < np.inf and outputs.get('distance') != []:
        raise ModelError(f'{file}: has a limit for the distance, but no such output')
    if inputs != {'pixels': ('tensor(uint8)', [meta['size']]*2 + [3])} or outputs.get('logits') != [len(labels)]:
        raise ModelError(f'{file}: its inputs {inputs} and outputs {outputs} do not fit its {len(labels)} labels')
    return meta

def check_answers(
    session:onnxruntime.InferenceSession, # From `open_session`
    meta:dict, # From `read_meta`
    file:Path # For messages
):
    "Raise `ModelError` unless `session` returns finite scores, one for each label of `meta`, for a black image"
    try: logits, = session.run(['logits'], {'pixels': np.zeros((1, meta['size'], meta['size'], 3), 'uint8')})
    except Exception as e:
        raise ModelError(f'{file}: fails at the first image ({str(e).splitlines()[0][:150]})') from None
    if logits.shape != (1, len(meta['labels'])) or not np.isfinite(logits).all():
        raise ModelError(f'{file}: its scores for a black image are not finite; it is damaged')

# --- Writing a model
@contextmanager
def staged_folder(
    path:Path, # Folder for a model
    advice:str='give another folder' # For the error if it cannot be written
): # A context manager
    "Yield a temporary folder in `path` whose files then replace those of `path`, `model.onnx` last"
    missing = [o for o in (path, *path.parents) if not os.path.exists(o)]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.export-', dir=path) as folder:
            yield Path(folder).absolute()
            for o in sorted(Path(folder).iterdir(), key=lambda o: o.name == 'model.onnx'): os.replace(o, path/o.name)
    except OSError as e:
        if os.path.isfile(path): raise CatdogError(f'{path} is a file: give a folder for the model') from None
        raise CatdogError(f'{path}: no model can be written there ({e.strerror}); {advice}') from None
    finally:
        for o in missing:
            with suppress(OSError): o.rmdir()   # if nothing was written

def check_model_folder(
    path:str|os.PathLike # Folder for a model
):
    "Raise `CatdogError` if no model can be written to `path`; leave nothing behind"
    with staged_folder(Path(path)): pass
