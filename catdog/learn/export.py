"""From a trained `Learner` to a model folder that apps open without torch, and back"""

import errno, hashlib, json, os, re, tempfile, warnings
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
import numpy as np, onnx, torch
from PIL import Image
from fastai.vision.all import (AdaptiveConcatPool2d, CategoryBlock, CrossEntropyLossFlat, Flatten, IntToFloatTensor,
    L, Learner, Normalize, PILImage, RandomResizedCrop, Resize, TransformBlock, compose, error_rate, first,
    nn, rank_distrib, risinstance)
from onnxruntime.quantization import QuantType, quantize_static
from scipy.special import softmax
from ..core.errors import CatdogError, ImageError, ModelError
from ..core.files import batches_ahead, content_id, map_ahead
from ..core.model_file import model_file, open_session, pixels_of, read_meta, staged_folder
from ..dataset.split import saved_folders, saved_split
from .calibration import fit_distance, subspace_distances
from .card import model_card, model_metadata
from .features import are_files, labelled_features, network_graph
from .head import has_plain_head, head_parts, head_scores
from .loaders import OpenUpright, batch_resize, preprocessing, split_dls

def _name(learn): return getattr(learn, 'arch_name', 'the network')
def _is_there(source): return not isinstance(source, (str, os.PathLike)) or os.path.exists(source)
def _pixels(source, prepared):
    try: return pixels_of(source, prepared)
    except ImageError: return None

def check_exportable(
    learn:Learner # Trained, or not yet
) -> dict: # From `preprocessing`: how an app has to prepare its images
    "Return the preprocessing of `learn`; raise `CatdogError` if it cannot be exported"
    prepared,model,n = preprocessing(learn),learn.model,len(learn.dls.vocab)
    def _need(what): return CatdogError(f'a model can be exported if it has {what}')
    if not has_plain_head(learn): raise _need('a head as vision_learner makes it by default')
    activation,z = getattr(learn.loss_func, 'activation', None),torch.linspace(-2, 2, 6).reshape(2, 3)
    if activation is not None and not torch.allclose(torch.as_tensor(activation(z)), z.softmax(1)):
        raise _need(f'the cross entropy as its loss, for one label among several, not {type(learn.loss_func).__name__}')
    x = batch_resize(learn.dls)(torch.zeros(2, 3, *[prepared['size']]*2)).to('meta')   # shapes alone
    try: shape = tuple(deepcopy(model).to('meta').eval()(x).shape)
    except Exception as e:   # each network fails in its own way
        raise CatdogError(f'{_name(learn)} cannot take RGB images of {prepared["size"]} x {prepared["size"]} '
                          f'({str(e).splitlines()[0][:100]}); use another size or architecture') from None
    if shape != (2, n): raise _need(f'a score for each of its {n} labels; its output has the shape {shape}')
    return prepared

_FLOAT = onnx.TensorProto.FLOAT

class _Operations(list):
    "Nodes of an ONNX graph, and the arrays among their inputs"
    def __init__(self): self.arrays = {}
    def keep(self, name, array):
        array = np.asarray(array)
        self.arrays[name] = array.astype('float32') if array.dtype == 'float64' else array
        return name
    def __call__(self, kind, *inputs, out=None, **attributes):
        "Append a node of `kind`; return the name of its output"
        out = out or f'{kind}.{len(self)}'
        names = [o if isinstance(o, str) else self.keep(f'{out}.{i}', o) for i,o in enumerate(inputs)]
        self.append(onnx.helper.make_node(kind, names, [out], **attributes))
        return out

def _prepare(op, dls, size):
    "Append to `op` the way from `pixels`, uint8 (n,size,size,3), to the `images` of the body; return their size"
    x = op('Cast', op('Transpose', 'pixels', perm=[0, 3, 1, 2]), to=_FLOAT)
    for o in batch_resize(dls).buffers(): x,size = op('MatMul', op('MatMul', o, x), o.T),len(o)
    norm = first(dls.valid.after_batch.fs, risinstance(Normalize))
    mean,std = (norm.mean.cpu(), norm.std.cpu()) if norm else (torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1))
    # one number is faster than one for each channel
    scale,shift = (o.flatten()[0] if (o == o.flatten()[0]).all() else o for o in (1/(255*std), mean/std))
    op('Sub', op('Mul', x, scale), shift, out='images')
    return size

def _answer(op, head, shape, distance):
    "Append to `op` what follows from `features` of `shape` (channels,h,w); return the shapes of the outputs"
    (concat,layers),(channels,h,w) = head_parts(head),shape
    mean = op('ReduceMean', 'features', [2, 3], keepdims=0)
    x,back = op('Concat', op('ReduceMax', 'features', [2, 3], keepdims=0), mean, axis=1) if concat else mean,[]
    for i,layer in enumerate(layers):   # back: how to get the gradient of what a layer takes from that of what it gives
        p = {k: op.keep(f'head.{i}.{k}', v) for k,v in layer.state_dict().items() if v.ndim}
        if isinstance(layer, nn.Linear):
            x,n = op('Gemm', x, *p.values(), transB=1),layer.out_features
            back.append(('MatMul', p['weight']))
        elif isinstance(layer, nn.BatchNorm1d):
            x = op('BatchNormalization', x, *p.values(), epsilon=layer.eps)
            back.append(('Mul', layer.weight.detach()/(layer.running_var + layer.eps).sqrt()))
        elif isinstance(layer, nn.ReLU):
            back.append(('Mul', op('Unsqueeze', op('Cast', op('Greater', x, 0.), to=_FLOAT), [1])))
            x = op('Relu', x)
    op('Identity', x, out='logits')
    shapes = dict(logits=[n])
    if distance is not None:
        z = op('Sub', mean, distance.centre)
        z = op('Div', z, op('Max', op('ReduceL2', z, [1]), 1e-9))
        rows = op('Transpose', op('Mul', op('Cast', distance.rows, to=_FLOAT), distance.step), perm=[1, 0])
        inside = op('ReduceSumSquare', op('MatMul', z, rows), [1], keepdims=0)
        op('Sqrt', op('Max', op('Sub', 1., inside), 0.), out='distance')
        shapes['distance'] = []
    if len(layers) == len(head): return shapes   # the body pools by itself, so there are no places
    slopes = torch.eye(n)[None]
    for kind,o in reversed(back): slopes = op(kind, slopes, o)
    places = op('Reshape', 'features', [0, channels, h*w])
    part = op('Slice', slopes, [-channels], [2*channels], [2])
    res = op('MatMul', part, op('Div', places, float(h*w)))   # of the mean
    if concat:
        top = op('Cast', op('Equal', places, op('ReduceMax', places, [2])), to=_FLOAT)
        share = op('Div', op('Mul', places, top), op('ReduceSum', top, [2]))
        res = op('Add', res, op('MatMul', op('Slice', slopes, [0], [channels], [2]), share))   # of the maximum
    op('Reshape', res, [0, n, h, w], out='activation')
    return shapes | dict(activation=[n, h, w])

def _onnx_model(learn, size, distance=None):
    "Return the network of `learn` for any number of images of `size` as an ONNX model"
    op = _Operations()
    try: body = network_graph(deepcopy(learn.model[0]).cpu(), _prepare(op, learn.dls, size))
    except torch.onnx.errors.OnnxExporterError as e:
        raise CatdogError(f'{_name(learn)}: torch cannot export it to ONNX ({str(e).splitlines()[0][:150]}); '
                          'use another architecture') from None
    shape = [o.dim_value for o in body.graph.output[0].type.tensor_type.shape.dim[1:]]
    op += body.graph.node
    if len(shape) == 1:   # it pools by itself
        for node in op: node.output[:] = ['pooled' if o == 'features' else o for o in node.output]
        op('Unsqueeze', 'pooled', [2, 3], out='features')
        shape += 1,1
    shapes = dict(features=shape) | _answer(op, deepcopy(learn.model[1]).cpu(), shape, distance)
    for node in op: node.name = node.output[0]
    def _info(name, kind, *shape): return onnx.helper.make_tensor_value_info(name, kind, ['batch', *shape])
    arrays = [onnx.numpy_helper.from_array(v, k) for k,v in op.arrays.items()]
    graph = onnx.helper.make_graph(op, 'catdog', [_info('pixels', onnx.TensorProto.UINT8, size, size, 3)],
                                   [_info(k, _FLOAT, *v) for k,v in shapes.items()], [*body.graph.initializer, *arrays])
    return onnx.helper.make_model(graph, opset_imports=body.opset_import, ir_version=body.ir_version)

def _bytes(model, **meta):   # of a model file: `model`, with `meta` as its only metadata
    onnx.helper.set_model_props(model, {'catdog': json.dumps(meta)})
    return model.SerializeToString()

def _quantize(model, pixels):
    "Return the ONNX `model` with its body in 8-bit integers, in the ranges that occur with `pixels`, a list of images"
    model,outputs = deepcopy(model),[list(o.output) for o in model.graph.node]
    body = model.graph.node[:outputs.index(['features']) + 1]
    if body[-1].op_type == 'Concat': body = body[:-1]   # its inputs need ranges of their own
    nodes = [o.name for o in body if o.op_type in ('Conv', 'Relu', 'Clip', 'MaxPool', 'Concat', 'Add')]
    # It would recommend shape inference first, but torch has written the shapes into the graph
    onnx.helper.set_model_props(model, {'onnx.quant.pre_process': 'onnxruntime.quant'})
    images = ({'pixels': o[None]} for o in pixels)
    reader = SimpleNamespace(get_next=lambda: next(images, None))   # a `CalibrationDataReader`
    with tempfile.TemporaryDirectory() as folder:
        quantize_static(model, f'{folder}/8bit.onnx', reader, nodes_to_quantize=nodes, per_channel=True,
                        reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
        return onnx.load(f'{folder}/8bit.onnx')

def _rounding_fault(exact, rounded):
    "Return why the logits `rounded` differ too much from `exact`, or ''"
    n,answers = len(exact),exact.argmax(1)
    if not n: return 'there are no images to compare the answers on'
    changed = int((rounded.argmax(1) != answers).sum())
    moved = np.mean([abs(a[i] - b[i]) for i,a,b in zip(answers, softmax(exact, 1), softmax(rounded, 1))])
    if changed > n//100: return f'{changed} of {n} validation answers change'
    return f'probabilities move by {moved:.2f} on average' if moved > .05 else ''

def _measure(model, sources, truth, prepared, bs=4):
    "Return logits, truth and distances (or None) of an ONNX `model` for those of `sources` that can be opened"
    session,size = open_session('the model', _bytes(model)),prepared['size']
    names = [o.name for o in session.get_outputs() if o.name in ('logits', 'distance')]
    def _ask(pixels): return session.run(names, dict(pixels=np.stack(pixels)))
    rows,good = [_ask([np.zeros((size, size, 3), 'uint8')])],[]   # one row at least, left out in the end
    for batch in batches_ahead(lambda o: _pixels(o, prepared), sources, bs):   # four images fit into the CPU cache
        good += [o is not None for o in batch]
        if opened := [o for o in batch if o is not None]: rows.append(_ask(opened))
    logits,*distances = (np.concatenate(o)[1:] for o in zip(*rows))
    return logits,np.array(truth, int)[np.array(good, bool)],distances[0] if distances else None

def _measure_head(learn, distance):
    "Return what `_measure` does for the validation images, from cached features; None if no image can be opened now"
    x,truth,_ = labelled_features(learn, learn.dls.valid_ds, on_bad=lambda file,error: None)
    if len(truth): return head_scores(learn, x).numpy(),truth,subspace_distances(x[:, x.shape[1]//2:], distance)

def _odd_images(folder):
    "Write noise in odd shapes into `folder`; return the files"
    rng,sideways,files = np.random.default_rng(0),Image.Exif(),[]
    sideways[0x112] = 6
    for i,size in enumerate(((60, 400), (400, 60), (41, 37), (1600, 1201), (300, 200), (200, 200))):
        img = Image.fromarray(rng.integers(0, 256, (9, 9, 4), 'uint8')).resize(size, Image.Resampling.BICUBIC)
        files.append(folder/f'{i}.{"png" if i == 5 else "jpg"}')
        img.convert('RGBA' if i == 5 else 'RGB').save(files[-1], exif=sideways if i > 2 else Image.Exif())
    return files

def _learner_logits(learn, sources):
    "Return the logits of `learn` for `sources`, on the CPU, by its own transforms"
    dl,model = learn.dls.valid,deepcopy(learn.model).cpu().eval()
    for o in (dl.after_item, dl.after_batch): o.split_idx = 1
    opener = dl.dataset.tls[0].tfms.fs[-1]
    x = torch.stack([dl.after_item((opener(o),))[0] for o in sources]).to(learn.dls.device)
    with torch.no_grad(): return model(dl.after_batch((x,))[0].as_subclass(torch.Tensor).cpu()).numpy()

def _check_answers(learn, model, sources, prepared, n=4):
    "Raise `CatdogError` unless the ONNX `model` and `learn` agree about `n` of `sources` and some odd images"
    with tempfile.TemporaryDirectory() as folder:
        files = [o for o in sources[:n] if _pixels(o, prepared) is not None] + _odd_images(Path(folder))
        logits,expected = _measure(model, files, [0]*len(files), prepared)[0],_learner_logits(learn, files)
    if not np.isfinite(expected).all():
        raise CatdogError('the Learner gives no finite numbers: its training diverged; train again, with a lower rate')
    off = np.abs(logits - expected).max()/max(1, np.abs(expected).max())
    # Rounding gives less than 1e-4, a wrong transform far more than 1e-3
    if not off < 1e-3: raise CatdogError(f'the ONNX model differs from the Learner by {off:.2g}; it was not written')

def _write_pickle(learn, file):
    "Write fastai's export of `learn` to `file`; keep the data and optimizer of `learn`, which fastai drops on an error"
    kept,checkpoint = (learn.dls, learn.opt),vars(learn).pop('checkpoint_file', None)   # a path of this machine
    try: learn.export(file)
    except RuntimeError as e: raise OSError(errno.EIO, str(e).splitlines()[0][:100]) from None   # from torch: disk full
    finally:
        learn.dls,learn.opt = kept
        if checkpoint: learn.checkpoint_file = checkpoint

def _in_8_bits(model, answers, ask, images, prepared, n=200):
    "Quantize `model` with the ranges of `n` of `images`; return it and its answers, or both unchanged, with a warning"
    fault,some = 'there are no images to measure ranges on',images[::max(1, -(-len(images)//n))]
    if pixels := [o for o in map_ahead(lambda o: _pixels(o, prepared), some) if o is not None]:
        rounded = ask(quantized := _quantize(model, pixels))
        if not (fault := _rounding_fault(answers[0], rounded[0])): return quantized,rounded
    warnings.warn(f'In 8-bit integers {fault}: the model stays in 32 bits.')
    return model,answers

def _write_model(learn, prepared, folder, int8):
    dls,test = learn.dls,getattr(learn.dls, 'test_files', [])
    def _sources(dset):   # what its images are opened from: paths, in most cases
        read,items = compose(*dset.tls[0].tfms.fs[:-1]),L(dset.items, use_list=None)
        return [read(items[i]) for i in range(len(items))]
    train,valid = map(_sources, (dls.train_ds, dls.valid_ds))
    label_of,there = dls.valid_ds.tls[1],[i for i,o in enumerate(train) if _is_there(o)]
    truth = [int(label_of[i]) for i in range(len(valid))]
    def _ask(model): return _measure(model, valid, truth, prepared)
    distance = fit_distance(learn, which=there) if there else None
    exact = _onnx_model(learn, prepared['size'], distance)
    _check_answers(learn, exact, valid, prepared)
    quick = distance and valid and are_files(valid) and not getattr(learn, 'tuned', None)
    model,answers = exact,quick and _measure_head(learn, distance) or _ask(exact)
    if int8: model,answers = _in_8_bits(exact, answers, _ask, [train[i] for i in there], prepared)
    tested = _measure(model, test, [int(label_of.tfms(f)) for f in test], prepared)[:2] if test else None
    meta = model_metadata(learn, *answers, len(valid) - len(answers[1]), tested, model is not exact)
    (folder/'model.onnx').write_bytes(_bytes(model, **meta))
    (folder/'model_card.md').write_text(model_card(meta), encoding='utf8')
    ids,known = {},getattr(dls, 'content_ids', {})
    for part,files in dict(training=train, validation=valid, test=test).items():
        files = [f for f in files if isinstance(f, (str, os.PathLike)) and _is_there(f)]
        ids[part] = sorted(known.get(f) or content_id(f) for f in files)
    if any(ids.values()): (folder/'images.json').write_text(json.dumps(ids, indent=1))

def export(
    learn:Learner, # Trained
    path:str|os.PathLike=None, # Folder for the model; default: in models, named as the folder of the images
    int8:bool=False # Whether to quantize `model.onnx` to 8-bit integers, if its answers stay nearly the same
) -> Path: # `path`
    "Write `learn` to `path`: `model.onnx`, checked against it, `export.pkl`, `model_card.md` and `images.json`"
    path = Path(path or Path('models')/Path(learn.dls.path).absolute().name)
    if rank_distrib(): return path   # in distributed training, the first process writes
    prepared,checkpoint = check_exportable(learn),getattr(learn, 'checkpoint_file', None)
    kept = checkpoint and checkpoint.exists()
    with staged_folder(path, 'run the same command with --resume' if kept else 'give another folder') as folder:
        _write_model(learn, prepared, folder, int8)
        _write_pickle(learn, folder/'export.pkl')
        if not (folder/'images.json').exists(): (path/'images.json').unlink(missing_ok=True)   # of another model
    if kept: checkpoint.unlink(missing_ok=True)   # the same build at the same time may have finished
    return path

def _as_pixels(x): return np.ascontiguousarray((x*255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())

class _SessionBody(nn.Module):
    "From images, shape (n,3,h,w), 0 to 1, to feature maps, computed by ONNX Runtime"
    def __init__(self, session, data):
        super().__init__()
        self.session = session   # without parameters: `body_digest` tells it from others by the hash of its file
        self.register_buffer('digest', torch.tensor(list(hashlib.sha256(data).digest()), dtype=torch.uint8))
    def forward(self, x): return torch.from_numpy(self.session.run(['features'], {'pixels': _as_pixels(x)})[0])

def _read_head(data, channels):
    "Return the head of the ONNX model `data`: its layers with weights, and the `ReLU`s that fastai puts between them"
    weights,layers = {},[]
    for o in onnx.load_from_string(data).graph.initializer:
        if (found := re.match(r'head\.\D*(\d+)\.(\w+)$', o.name)) and not o.external_data:
            weights.setdefault(int(found[1]), {})[found[2]] = torch.from_numpy(onnx.numpy_helper.to_array(o).copy())
    for _,w in sorted(weights.items()):
        n,linear = w['weight'].shape[-1],w['weight'].ndim == 2
        layer = nn.Linear(n, len(w['weight']), 'bias' in w) if linear else nn.BatchNorm1d(n)
        layer.load_state_dict(w, strict=False)   # a batch norm's counter is missing
        layers += [layer, nn.ReLU()] if linear else [layer]
    del layers[max(i for i,o in enumerate(layers) if isinstance(o, nn.ReLU))]   # the last `Linear` gives logits
    concat = layers[0].weight.shape[-1] == 2*channels
    return nn.Sequential(AdaptiveConcatPool2d() if concat else nn.AdaptiveAvgPool2d(1), Flatten(), *layers).eval()

def _read_network(model):
    "Return the network of a model folder, from images, shape (n,3,h,w), 0 to 1, to logits, and its metadata"
    file = model_file(model)
    try: data = file.read_bytes()
    except OSError as e: raise ModelError(f'{file}: {e.strerror}; give a folder that catdog-build made') from None
    session = open_session(file, data)
    meta = read_meta(session, file)
    try:
        body,x = _SessionBody(session, data),torch.rand(4, 3, meta['size'], meta['size'])
        network = nn.Sequential(body, _read_head(data, body(x[:1]).shape[1]))
        logits, = session.run(['logits'], {'pixels': _as_pixels(x)})
        with torch.no_grad(): off = (network(x) - torch.from_numpy(logits)).abs().max().item()
    except Exception as e:   # an untrusted file can raise nearly anything
        why = str(e).splitlines()[0][:150] if str(e) else type(e).__name__
        raise ModelError(f'{file}: not a model that catdog-build made ({why})') from None
    if not off < 1e-2: raise ModelError(f'{file}: its head is not one that catdog-build makes')
    with torch.no_grad():   # apps divide logits by this, if a model has it
        for o in network[1][-1].parameters(): o.div_(meta.get('temperature', 1))
    return network,meta

def _saved_dls(split, meta):
    "Return the images of `split`, prepared as `meta` says but not normalized, which the body does"
    size,more = meta['size'],meta['resize_to'] - meta['size']
    if more: square = RandomResizedCrop(size, min_scale=.5, val_xtra=(more - .5)/size)   # rounds up to a multiple of 8
    else: square = Resize(size, **dict(dict(method='squish'), **meta.get('resize', {})))
    opened = PILImage.create if meta.get('opened') == 'as stored' else OpenUpright(meta.get('min_side'))
    blocks = TransformBlock(type_tfms=opened, batch_tfms=IntToFloatTensor),CategoryBlock(meta['labels'], sort=False)
    some = split.train or split.valid or list(split.content_ids)   # fastai cannot begin with an empty training set
    if not some: raise CatdogError(f'{split.folder.path}: none of its images can be opened')
    dls = split_dls(replace(split, train=some), blocks, square, [], 42, bs=min(64, len(some)),
                    device=torch.device('cpu'))
    if not split.train: dls.loaders[0] = dls.train.new(dls.train_ds.new_empty())
    dls.split = split
    return dls

def saved_learner(
    path:str|os.PathLike=None, # Folder with a sub-folder for each label; default: the one in data named as `model`
    model:str|os.PathLike=None # Model folder; default: the newest in models
) -> Learner: # For `predictions`, `suspects`, `Cleaner` and `report`; it cannot be trained
    "Return a `Learner` with the network of `model` and the images in `path`, without opening a pickle"
    path,model = saved_folders(path, model)
    network,meta = _read_network(model)
    split = saved_split(path, model, meta['labels'])
    learn = Learner(_saved_dls(split, meta), network, loss_func=CrossEntropyLossFlat(), metrics=error_rate)
    learn.arch_name,learn.note,learn.insights = meta.get('arch', 'a network'),split.note,meta.get('insights', {})
    return learn
