"""From an image to the pixels that a network wants, the same in training, checking and answering; Opens and checks a model file that may come from anybody"""

import json, os
from pathlib import Path

import numpy as np
from PIL import Image

os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')   # before the import: it would report its use, and write to HOME
import onnxruntime

from .errors import ModelError
from .images import open_image

OPENED = 'upright', 'as stored'

def open_as(
    src, # What `open_image` takes: a path, bytes, a binary file, an array or an image
    meta:dict, # opened: one of `OPENED`, the first by default; min_side: as for `open_image`, or None
    max_side:int=None # As for `open_image`
) -> Image.Image: # RGB
    "`src`, opened as `meta` says; `ImageError` when it is no image"
    return open_image(src, max_side, min_side=meta.get('min_side'), as_stored=meta.get('opened') == 'as stored')

METHODS = 'squish', 'crop', 'pad'
PAD_MODES = dict(zeros='constant', border='edge', reflection='reflect')   # fastai's name -> numpy's

def square_box(
    w:int, # Width of an image, in pixels
    h:int, # Its height
    size:int, # Side of the square that it becomes
    method:str # 'crop' or 'pad'
) -> tuple: # (left, top, side), in pixels of the image; of 'pad' it begins outside
    "The square in, or around, an image of `w` by `h` that becomes one of `size`"
    scale = (min if method == 'crop' else max)(w/size, h/size)
    side = int(scale*size)   # rounded as fastai does, or an image in a thousand would be a pixel off
    return int(.5*(w - side)),int(.5*(h - side)),side

def to_square(
    img:Image.Image, # RGB
    size:int, # Side of the result, in pixels
    method:str='squish', # One of `METHODS`
    pad_mode:str='reflection' # One of `PAD_MODES`
) -> Image.Image: # Of `size` by `size`
    "`img` as a square of `size`"
    if method != 'squish':
        (w,h),(x,y,side) = img.size,square_box(*img.size, size, method)
        img = img.crop((max(x, 0), max(y, 0), min(x + side, w), min(y + side, h)))
        edges = (max(-y, 0), max(side - h + y, 0)),(max(-x, 0), max(side - w + x, 0)),(0, 0)
        if max(map(max, edges)): img = Image.fromarray(np.pad(np.asarray(img), edges, PAD_MODES[pad_mode]))
    return img.resize((size, size), Image.Resampling.BILINEAR)

def pixels_of(
    src, # As for `open_as`
    meta:dict # size, resize_to: sides in pixels; resize: method and pad_mode, perhaps; and as for `open_as`
) -> np.ndarray: # uint8, shape (size,size,3)
    "`src` as the network of `meta` wants it; `ImageError` when it is no image"
    size,larger = meta['size'],meta['resize_to']
    img,start = to_square(open_as(src, meta), larger, **meta.get('resize', {})),(larger - size)//2
    return np.ascontiguousarray(np.asarray(img)[start:start+size, start:start+size])

def seen_box(
    w:int, # Width of an image, in pixels
    h:int, # Its height
    meta:dict # As for `pixels_of`
) -> tuple: # (left, top, right, bottom), in pixels; of a padded image it reaches beyond its edges
    "The part of an image of `w` by `h` that the network of `meta` is given"
    method,share = meta.get('resize', {}).get('method', 'squish'),meta['size']/meta['resize_to']
    x,y,side = (0, 0, None) if method == 'squish' else square_box(w, h, meta['resize_to'], method)
    wide,high = (w, h) if side is None else (side, side)
    left,top = round(x + wide*(1 - share)/2),round(y + high*(1 - share)/2)
    return left,top,left + max(1, round(wide*share)),top + max(1, round(high*share))

def overlay_heatmap(
    img:Image.Image, # RGB, upright
    heat:np.ndarray, # A map of the part that the network is given, shape (h,w), 0 to 1
    meta:dict # As for `pixels_of`
) -> Image.Image: # Of the size of `img`
    "`img` as it is where `heat` is 1, grey and dark where it is 0 and where the network does not look"
    left,top,right,bottom = seen_box(*img.size, meta)
    heat = Image.fromarray((255*heat).astype('uint8')).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    mask = Image.new('L', img.size)
    mask.paste(heat, (left, top))
    return Image.composite(img, img.convert('L').point(lambda o: o*2//5).convert('RGB'), mask)

_MAX_BYTES = 1_000_000_000

def model_file(
    path:str|os.PathLike # A model folder, or its `model.onnx`
) -> Path: # The ONNX file; `ModelError` when there is none
    "The ONNX file that `path`, a model folder or the file itself, stands for"
    path = Path(path)
    file = path/'model.onnx' if path.is_dir() else path
    if not path.exists(): raise ModelError(f'{path}: there is no such model folder; make one with catdog-build')
    if not file.is_file():
        raise ModelError(f'{path}: is no model folder, there is no model.onnx in it; make one with catdog-build')
    if file.suffix != '.onnx': raise ModelError(f'{path}: is no model; give the folder that catdog-build made')
    if file.stat().st_size > _MAX_BYTES: raise ModelError(f'{file}: is larger than {_MAX_BYTES/1e9:.0f} GB')
    return file

def open_session(
    file:Path, # What messages are about
    data:bytes, # The content of an ONNX file
    threads:int=None # Cores that work on one answer; None: all
) -> onnxruntime.InferenceSession: # `ModelError` when ONNX Runtime cannot open it
    "ONNX Runtime's session with `threads` for the bytes `data` of `file`, which may not refer to other files"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4   # what it has to say arrives as an exception
    options.add_session_config_entry('session.model_external_initializers_file_folder_path', os.devnull)
    # Its threads would wait for each other in a busy loop, which takes the cores from whatever else runs here
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    try: return onnxruntime.InferenceSession(data, options, providers=['CPUExecutionProvider'])
    except Exception as e:   # its exceptions have no common class but this
        raise ModelError(f'{file}: ONNX Runtime cannot open it ({str(e).splitlines()[0][:150]})') from None

NOTHING_SURE = dict(probability=1.0, distance=0.0)   # limits that no answer keeps: the model is sure of nothing

def answer_limits(
    meta:dict # What the model says about itself
) -> dict|None: # probability: the least, 0 to 1; distance: the largest, perhaps infinite. None if it makes no sense
    "The least probability and the largest distance of an answer to rely on, by `meta`"
    o = meta.get('neither', {})
    if not isinstance(o, dict): o = dict(probability=o)   # what older models have
    limits = dict(dict(probability=0, distance=np.inf), **o)
    def good(x, high): return isinstance(x, (int, float)) and 0 <= x <= high
    return limits if good(limits['probability'], 1) and good(limits['distance'], np.inf) else None

def can_prepare(
    meta:dict # What the model says about itself
) -> bool: # Do we know how to prepare images for it?
    "Are `size`, `resize_to`, `min_side`, `opened` and `resize` of `meta` what `pixels_of` understands?"
    def is_side(o, low, high): return type(o) is int and low <= o <= high
    size,resize = meta.get('size'),meta.get('resize', {})
    if not is_side(size, 8, 4096) or not is_side(meta.get('resize_to'), size, 4096): return False
    return ((meta.get('min_side') is None or is_side(meta['min_side'], 1, 65500))
            and meta.get('opened', OPENED[0]) in OPENED
            and isinstance(resize, dict) and set(resize) <= {'method', 'pad_mode'}
            and resize.get('method', METHODS[0]) in METHODS and resize.get('pad_mode', 'zeros') in [*PAD_MODES])

def read_meta(
    session:onnxruntime.InferenceSession, # From `open_session`
    file:Path # What messages are about
) -> dict: # labels, size, ..., as `catdog.learn.model_card.describe` wrote them; else `ModelError`
    "What the model says about itself, checked against its inputs and outputs"
    try: meta = json.loads(session.get_modelmeta().custom_metadata_map['catdog'])
    except (KeyError, ValueError):
        raise ModelError(f'{file}: was not exported by catdog, it does not say which labels it knows') from None
    def check(ok, what):
        if not ok: raise ModelError(f'{file}: does not say {what}')
    def is_number(key, default, low, high):
        return isinstance(o := meta.get(key, default), (int, float)) and low <= o <= high
    if not isinstance(meta, dict): meta = {}
    labels = meta.get('labels')
    check(isinstance(labels, list) and len(labels) > 1 and all(isinstance(o, str) and o for o in labels)
          and len(set(labels)) == len(labels),
          'which labels it knows')
    check(can_prepare(meta), 'which size its images have, and how they are prepared')
    check(is_number('temperature', 1, 1e-3, 1e3), 'how to read its scores')
    check(answer_limits(meta) is not None, 'when it is not sure')
    check(is_number('error', 0, 0, 1) and is_number('n_train', 0, 0, 1e12), 'how good it is')
    inputs = {o.name: (o.type, o.shape[1:]) for o in session.get_inputs()}
    outputs = {o.name: o.shape[1:] for o in session.get_outputs()}
    if answer_limits(meta)['distance'] < np.inf and outputs.get('distance') != []:
        raise ModelError(f'{file}: has a limit for the distance, but does not give it')
    if inputs != {'pixels': ('tensor(uint8)', [meta['size']]*2 + [3])} or outputs.get('logits') != [len(labels)]:
        raise ModelError(f'{file}: its inputs {inputs} and outputs {outputs} do not fit its {len(labels)} labels')
    return meta

def check_answers(
    session:onnxruntime.InferenceSession, # From `open_session`
    meta:dict, # From `read_meta`
    file:Path # What messages are about
):
    "`ModelError` about `file` unless `session` gives finite scores, one for each label of `meta`, for a black image"
    try: logits, = session.run(['logits'], {'pixels': np.zeros((1, meta['size'], meta['size'], 3), 'uint8')})
    except Exception as e:
        raise ModelError(f'{file}: fails at the first image ({str(e).splitlines()[0][:150]})') from None
    if logits.shape != (1, len(meta['labels'])) or not np.isfinite(logits).all():
        raise ModelError(f'{file}: its scores for a black image are no numbers; it is damaged')
