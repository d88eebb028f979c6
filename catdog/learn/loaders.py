"""Data loaders from a folder of images, and how a `Learner` prepares an image for validation"""

import os, tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
import numpy as np, torch
from PIL import Image
from fastai.vision.all import (AffineCoordTfm, Categorize, DataBlock, DataLoaders, Datasets, IntToFloatTensor, L,
    Learner, Normalize, PILImage, RandomResizedCrop, RandomResizedCropGPU, Resize, ResizeMethod, TensorImage, TfmdDL,
    ToTensor, Transform, chunked, nn, no_random, rank_distrib, to_np)
from ..core.errors import CatdogError, ImageError
from ..core.files import is_image_name, walk_files
from ..core.images import open_image
from ..core.model_file import OPENED, open_as
from ..dataset.folder import label_name
from ..dataset.manifest import read_rows
from ..dataset.split import Split, used_sentence

def image_files(
    path:str|os.PathLike # A folder
) -> L: # Paths; empty if the folder is missing
    "List the images below `path`, sorted, without those in hidden folders such as `.removed`"
    return L(filter(is_image_name, walk_files(path)))

def provenance(
    path:str|os.PathLike # A folder with a sub-folder per label
) -> dict: # engines: names, the most frequent first; trained_on: 'photographs' or 'drawings'
    "Return which search engines the images below `path` came from, and whether they are photographs or drawings"
    engines = Counter(o['engine'] for o in read_rows(path).values() if o['status'] == 'ok')
    drawn = engines['sample'] > engines.total()/2
    return dict(engines=[o for o,_ in engines.most_common()] or ['a folder'],
                trained_on='drawings' if drawn else 'photographs')

class UprightImage(PILImage):
    "fastai's `PILImage`, opened by `open_image`"
    @classmethod
    def create(cls,
        fn, # A path, bytes, an array, a tensor or an image
        min_side:int|None=None # Reduce large images, but no side below this, in pixels; default: full size
    ):
        "Open `fn` as an upright RGB image; raise `ImageError`, which names the file, if it is not an image"
        if isinstance(fn, torch.Tensor): fn = to_np(fn.permute(1, 2, 0) if fn.shape[0] == 3 else fn)
        try: return cls(open_image(fn, min_side=min_side))
        except ImageError as e:
            if not isinstance(fn, (str, os.PathLike)) or str(fn) in e.reason: raise
            raise ImageError(f'{fn}: {e.reason}', e.status) from None

class OpenUpright(Transform):
    "Open an image as `UprightImage`, reduced to no more than `min_side` needs"
    input_types = Path, str, bytes, torch.Tensor, np.ndarray, Image.Image   # all that `Learner.predict` takes
    def __init__(self,
        min_side:int # Shortest side that an image is reduced to, in pixels
    ): self.min_side = min_side
    def encodes(self, fn): return UprightImage.create(fn, self.min_side)

class _FolderLabel(Transform):
    "The label of a file: the name of its folder"
    input_types = Path, str
    def __init__(self, folder): self.folder = folder.without_files()   # `export.pkl` must not contain names of files
    def encodes(self, file):
        try: return self.folder.label(file)
        except CatdogError: return label_name(Path(file).parent)

class _SkippingDL(TfmdDL):
    "A `TfmdDL` that skips images that cannot be opened, if it has a list `left_out` to note them in"
    left_out = None   # None: a bad image is an error, as in `Learner.predict`
    def do_item(self, s):
        try: return super().do_item(s)
        except ImageError as e:
            if self.left_out is None: raise
            self.left_out.add(self.dataset.items[s or 0], str(e))
    def chunkify(self, b):
        "The only batch of a training set may be short, or skipping an image would leave none"
        if not self.drop_last: return super().chunkify(b)
        only = self.n//self.bs == 1 and not self.offs   # offs: the number of this worker process
        return (o for i,o in enumerate(chunked(b, self.bs)) if len(o) == self.bs or only and not i)
    def new(self, dataset=None, cls=None, **kwargs):
        "Only loaders of the same data set skip bad images, and not those of `get_preds`"
        res = super().new(dataset, cls, **kwargs)
        if dataset is None and 'get_idxs' not in kwargs: res.left_out = self.left_out
        return res

def split_dls(
    split:Split, # From `split_files`
    blocks, # As for `DataBlock`: how to open an image, and its category
    item_tfms, # As for `DataBlock`
    batch_tfms, # As for `DataBlock`
    seed:int, # Seed of the order of the images
    **kw # Passed on to `DataBlock.dataloaders`
) -> DataLoaders: # With `split`, and its `left_out`, `content_ids`, `test_files` and `unvalidated`
    "Make data loaders of `split`; print what is left out"
    n,path = len(split.train),split.folder.path
    block = DataBlock(blocks, _SkippingDL, get_items=lambda _: split.train + split.valid,
                      splitter=lambda files: (range(n), range(n, len(files))), get_y=_FolderLabel(split.folder),
                      item_tfms=item_tfms, batch_tfms=batch_tfms)
    with no_random(seed, reproducible=False): dls = block.dataloaders(path, path=path, **kw)
    sentence = used_sentence(split)
    if ';' in sentence and not rank_distrib(): print(f'{path}: {sentence}')
    dls.split,dls.left_out,dls.content_ids = split,split.left_out,split.content_ids
    dls.test_files,dls.unvalidated = split.test,split.unvalidated
    for dl in dls: dl.left_out = split.left_out
    return dls

def print_used(
    dls:DataLoaders # From `split_dls`
):
    "Print how many images of the folder are used, unless `split_dls` did, which labels are not, and how it was split"
    folder,sentence = dls.split.folder,used_sentence(dls.split)
    if rank_distrib(): return
    if ';' not in sentence: print(f'{folder.path}: {sentence}')
    if others := ', '.join(folder.others): print(f'{folder.path} also has images of {others}, which are not used')
    if dls.split.note: print(dls.split.note)

# How a `Learner` prepares a validation image, so that an app can do the same without fastai

def _check_labels(dls):
    "Raise `CatdogError` unless `dls` give one image and one label of several"
    dset = getattr(dls, 'valid_ds', None)
    if isinstance(dset, Datasets) and len(dset.tls) == 2 and dset.n_inp == 1:
        if any(type(o) is Categorize for o in dset.tls[1].tfms.fs): return
    raise CatdogError('the model can be exported when its data come from a DataBlock, or from ImageDataLoaders, with '
                      'an image and one label (CategoryBlock): not with several labels, and not with numbers')

def _how_opened(opener):
    "Return `opened` and `min_side` for `open_as` to open images as `opener` does, found by trying it on two files"
    img = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), 'uint8')).resize((1200, 900))
    exif = Image.Exif()
    exif[0x112] = 6   # orientation: rotate by 90 degrees
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder)/o for o in ('sideways.jpg', 'transparent.png')]
        img.save(files[0], exif=exif)
        img.resize((120, 90)).convert('RGBA').rotate(30).save(files[1])
        for how in (dict(opened=o, min_side=getattr(opener, 'min_side', None)) for o in OPENED):
            with suppress(Exception):   # the user's function may not take a path
                if all(np.array_equal(np.asarray(opener(o)), np.asarray(open_as(o, how))) for o in files): return how
    raise CatdogError('the model can be exported when its images are opened, in colours, by PILImage.create or by '
                      f'get_dls; {opener.name} gives others')

def _active(pipeline, harmless): return [o for o in pipeline.fs if type(o) not in harmless and o.split_idx != 0]
def _unsupported(tfm):
    return CatdogError('the model can be exported when its images pass RandomResizedCrop, or Resize by squish, crop '
                       f'or pad, to a square; an app cannot repeat {tfm.name}')

def _squared(dls):
    "Return how `dls` make a validation image square: size, resize_to and, unless the image is squeezed, resize"
    active = _active(dls.valid.after_item, (ToTensor,))
    if not active: raise CatdogError('the model can be exported when its images pass RandomResizedCrop, or Resize')
    odd = [o for o in active if type(o) not in (RandomResizedCrop, Resize)] or active[1:]
    if odd: raise _unsupported(odd[0])
    size,high = active[0].size
    if size != high or active[0].mode != Image.Resampling.BILINEAR: raise _unsupported(active[0])
    extra = int(np.ceil(size*active[0].val_xtra/8)*8) if type(active[0]) is RandomResizedCrop else 0
    method = getattr(active[0], 'method', ResizeMethod.Squish)
    resize = {} if method == ResizeMethod.Squish else dict(resize=dict(method=method, pad_mode=active[0].pad_mode))
    return dict(size=size, resize_to=size + extra, **resize)

class _BatchResize(nn.Module):
    "Resize images (n,3,h,h) to (n,3,size,size) by a matrix of weights (size,h), as `tfms` do"
    def __init__(self, tfms, h):
        super().__init__()
        rows = []   # what becomes of images that are white in one row
        for x in torch.eye(h)[:, None, :, None].expand(-1, 3, -1, h).split(32):
            x = TensorImage(x.clone())
            for o in tfms: x = o(x, split_idx=1)
            rows.append(x[:, 0, :, x.shape[-1]//2].as_subclass(torch.Tensor))
        self.register_buffer('weights', torch.cat(rows).T.contiguous())
    def forward(self, x): return self.weights @ x @ self.weights.T

def batch_resize(
    dls:DataLoaders # From a `DataBlock`
) -> nn.Module: # From images (n,3,h,w) to images; `Identity` in most cases
    "Return the resizing that `dls` do to validation batches; raise `CatdogError`, which names any other transform"
    active = _active(dls.valid.after_batch, (IntToFloatTensor, Normalize))
    if odd := [o for o in active if type(o) is not RandomResizedCropGPU and not isinstance(o, AffineCoordTfm)]:
        raise _unsupported(odd[0])
    if all(getattr(o, 'size', None) is None for o in active): return nn.Identity()
    return _BatchResize(active, _squared(dls)['size'])

def preprocessing(
    learn:Learner # With images or without
) -> dict: # size, resize_to; opened, min_side and resize where needed: for `core.model_file.pixels_of`
    "Return how `learn` prepares an image for validation; raise `CatdogError`, which names what an app cannot repeat"
    dls = learn.dls
    _check_labels(dls)
    if odd := [o for o in dls.valid.before_batch.fs if o.name != 'noop']: raise _unsupported(odd[0])
    batch_resize(dls)
    opened = _how_opened(dls.valid_ds.tls[0].tfms.fs[-1])
    return dict(_squared(dls), **{k: v for k,v in opened.items() if k == 'min_side' or v != OPENED[0]})
