"""What a `Learner` does to a validation image, in words that an app can follow; From a folder of images to data sets: files, labels, decoding, batches without what cannot be opened"""

import os, shutil, sys, tempfile
from pathlib import Path

import torch
import numpy as np
from PIL import Image
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders, Datasets, TfmdDL, TfmdLists
from fastai.data.transforms import Categorize, IntToFloatTensor, MultiCategorize, Normalize, ToTensor
from fastai.learner import Learner
from fastai.torch_basics import Pipeline, Transform
from fastai.torch_core import no_random, rank_distrib, to_np
from fastai.vision.augment import AffineCoordTfm, RandomResizedCrop, RandomResizedCropGPU, Resize, ResizeMethod
from fastai.vision.core import PILImage, TensorImage
from fastcore.basics import chunked, compose
from fastcore.foundation import L
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..core.errors import ImageError, CatdogError
from ..core.files import find_images, map_ahead
from ..core.images import open_image
from ..core.model_file import OPENED, open_as
from ..dataset.folder import ImageFolder, label_name
from ..dataset.manifest import read_manifest
from ..dataset.split import Split, check_left_out, used_sentence

def image_source(
    dset:Datasets, # Such as `dls.valid_ds`
    i:int # Which of its items
): # A path as a rule; else what the pipeline opens: bytes, an array, an image
    "What item `i` of `dset` is opened from"
    items = dset.items.iloc if hasattr(dset.items, 'iloc') else dset.items
    return compose(*dset.tls[0].tfms.fs[:-1])(items[i])

def pick_items(
    dset:Datasets, # Such as `dls.train_ds`
    which # Indices
): # Of the kind that `dset` has: a list, or a table
    "The items `which` of `dset`, for `test_dl`"
    return dset.items.iloc[list(which)] if hasattr(dset.items, 'iloc') else [dset.items[i] for i in which]

def _telling_images(folder):
    "Files in `folder` that show how somebody opens images"
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), 'uint8')).resize((1200, 900))
    exif = Image.Exif()
    exif[0x112] = 6   # the camera was held sideways
    colours.save(folder/'sideways.jpg', exif=exif)
    colours.resize((120, 90)).convert('RGBA').rotate(30).save(folder/'clear.png')
    return [folder/'sideways.jpg', folder/'clear.png']

def _opens_like(opener, how, files):
    try: return all(np.array_equal(np.asarray(opener(o)), np.asarray(open_as(o, how))) for o in files)
    except Exception: return False   # somebody's own function, which wants something else than a path

def _how_opened(opener):
    "What `open_as` needs to open images as `opener` does: opened, min_side"
    ways = [dict(opened=o, min_side=getattr(opener, 'min_side', None)) for o in OPENED]
    with tempfile.TemporaryDirectory() as folder:
        files = _telling_images(Path(folder))
        for how in ways:
            if _opens_like(opener, how, files): return how
    raise CatdogError('the model can be exported when its images are opened, in colours, by PILImage.create or by '
                      f'get_dls; {opener.name} gives others')

def check_labels(
    dls:DataLoaders # Whatever a `Learner` has
):
    "`CatdogError` unless `dls` give one image and one label of several"
    dset = getattr(dls, 'valid_ds', None)
    if not isinstance(dset, Datasets) or len(dset.tls) != 2 or dset.n_inp != 1:
        raise CatdogError('the model can be exported when its data come from a DataBlock, or from ImageDataLoaders, '
                          'with an image and a category')
    kinds = dset.tls[1].tfms.fs
    if any(isinstance(o, MultiCategorize) for o in kinds):
        raise CatdogError('the model can be exported when each image has one label; these have several '
                          '(MultiCategoryBlock)')
    if not any(type(o) is Categorize for o in kinds):
        raise CatdogError('the model can be exported when it answers with a label (CategoryBlock), not with numbers')

def _acting(pipeline, harmless): return [o for o in pipeline.fs if type(o) not in harmless and o.split_idx != 0]

def _cannot(tfm):
    return CatdogError('the model can be exported when its images pass RandomResizedCrop, or Resize by squish, crop '
                       f'or pad, to a square; an app cannot repeat {tfm.name}')

def _squared(dls):
    "size, resize_to and, unless the whole image is squeezed, resize: what `dls` do to a validation image"
    acting = _acting(dls.valid.after_item, (ToTensor,))
    if not acting: raise CatdogError('the model can be exported when its images pass RandomResizedCrop, or Resize')
    odd = [o for o in acting if type(o) not in (RandomResizedCrop, Resize)] or acting[1:]
    if odd: raise _cannot(odd[0])
    first, = acting
    size,high = first.size
    if size != high or first.mode != Image.Resampling.BILINEAR: raise _cannot(first)
    extra = int(np.ceil(size*first.val_xtra/8)*8) if type(first) is RandomResizedCrop else 0
    method = getattr(first, 'method', ResizeMethod.Squish)
    words = {} if method == ResizeMethod.Squish else dict(resize=dict(method=method, pad_mode=first.pad_mode))
    return dict(size=size, resize_to=size + extra, **words)

def _resizes(o): return type(o) is RandomResizedCropGPU or isinstance(o, AffineCoordTfm)

def _weights(tfms, size):
    "How much each of `size` rows counts in each row that `tfms` make of them, shape (rows, size)"
    white = torch.eye(size)[:, None, :, None].expand(-1, 3, -1, size)
    batches = []
    for x in white.split(32):
        x = TensorImage(x.clone())
        for o in tfms: x = o(x, split_idx=1)
        batches.append(x[:, 0, :, x.shape[-1]//2].as_subclass(torch.Tensor))
    return torch.cat(batches).T.contiguous()

class BatchResize(nn.Module):
    "Images (n,3,h,w) of another size, as `weights` of their rows and columns say"
    def __init__(self,
        weights:torch.Tensor # Shape (new side, side)
    ):
        super().__init__()
        self.register_buffer('weights', weights)
    def forward(self,
        x:torch.Tensor # (n,3,h,h)
    ) -> torch.Tensor: # (n,3,size,size)
        "`x` squeezed as Pillow does"
        return self.weights @ x @ self.weights.T

def batch_resize(
    dls:DataLoaders # From a `DataBlock`
) -> nn.Module: # From images (n,3,h,w) to others; `Identity` as a rule
    "How the validation batches of `dls` are resized; `CatdogError` names what else is done to them"
    acting = _acting(dls.valid.after_batch, (IntToFloatTensor, Normalize))
    if odd := [o for o in acting if not _resizes(o)]: raise _cannot(odd[0])
    if all(getattr(o, 'size', None) is None for o in acting): return nn.Identity()
    weights = _weights(acting, _squared(dls)['size'])
    return BatchResize(weights) if len(weights) else nn.Identity()

def preprocessing(
    learn:Learner # With images or without
) -> dict: # size, resize_to, opened and min_side, perhaps resize: for `core.preprocess.pixels_of`
    "How `learn` prepares an image for validation; `CatdogError` names what an app could not do"
    dls = learn.dls
    check_labels(dls)
    if odd := [o for o in dls.valid.before_batch.fs if o.name != 'noop']: raise _cannot(odd[0])
    batch_resize(dls)
    opened = _how_opened(dls.valid_ds.tls[0].tfms.fs[-1])
    return dict(_squared(dls), **{k: v for k,v in opened.items() if k == 'min_side' or v != OPENED[0]})

# The imports below take many seconds; whoever waits in front of a terminal should know what for
if Path(sys.argv[0]).stem in ('catdog-build', 'catdog-review') and not {'-h', '--help'} & {*sys.argv}:
    print('Loading torch and fastai', flush=True)

def image_files(
    path:str|os.PathLike # A folder
) -> L: # Paths
    "The images below `path`, sorted, without those in hidden folders such as `.removed`"
    return L(find_images([path] if os.path.isdir(path) else []))

class FolderLabel(Transform):
    "The label of a file, by the folder that it lies in"
    input_types = (Path, str)
    def __init__(self,
        folder:ImageFolder # Where the labels are
    ):
        "Keep where the labels of `folder` are, but not its files: a saved learner has none"
        self.folder = folder.without_files()
    def encodes(self, file):
        try: return self.folder.label(file)
        except CatdogError: return label_name(Path(file).parent)

def provenance(
    path:str|os.PathLike # A folder with a sub-folder a label
) -> dict: # engines: names, the most frequent first; trained_on: 'photographs' or 'drawings'
    "Which search engines the images below `path` came from, and whether they are photographs or drawings"
    if not (Path(path)/'manifest.jsonl').exists(): return dict(engines=['a folder'], trained_on='photographs')
    manifest = read_manifest(path)
    engines = manifest[manifest.status == 'ok'].engine.value_counts()
    drawn = engines.get('sample', 0) > engines.sum()/2
    return dict(engines=list(engines.index), trained_on='drawings' if drawn else 'photographs')

class UprightImage(PILImage):
    "fastai's `PILImage`, opened by `open_image`"
    @classmethod
    def create(cls,
        fn, # A path, bytes, an array, a tensor or an image
        min_side:int|None=None # As for `open_image`: larger images are averaged down, but no side below this
    ):
        "Open `fn` as an upright RGB image, reduced towards `min_side`; `ImageError` names the file that is none"
        if isinstance(fn, Tensor): fn = to_np(fn.permute(1, 2, 0) if fn.shape[0] == 3 else fn)
        try: return cls(open_image(fn, min_side=min_side))
        except ImageError as e:
            if not isinstance(fn, (str, os.PathLike)) or str(fn) in e.reason: raise
            raise ImageError(f'{fn}: {e.reason}', e.status) from None

class OpenUpright(Transform):
    "Opens an image as `UprightImage`, reduced to no more than `min_side` needs"
    input_types = (Path, str, bytes, Tensor, np.ndarray, Image.Image)   # all that `Learner.predict` takes
    def __init__(self,
        min_side:int # No side gets shorter than this, in pixels
    ): self.min_side = min_side
    def encodes(self, fn): return UprightImage.create(fn, self.min_side)

class Decoded(Transform):
    "Opens a path as `OpenUpright` does, but squeezed to a square, and unpacked only once"
    input_types = OpenUpright.input_types
    def __init__(self,
        files, # Paths of images
        side:int, # Of the squares, in pixels
        min_side:int=None # As for `OpenUpright`; None: unpack all of each image
    ):
        "Open `files` with `min_side`, several at a time, and keep each as a square of `side`; note `faults`"
        self.rows,self.side,self.min_side,self.faults = {f: i for i,f in enumerate(files)},side,min_side,{}
        shape = len(files),side,side,3
        if shutil.disk_usage(tempfile.gettempdir()).free < 2*np.prod(shape, dtype=float):   # a full disk would end us
            raise CatdogError(f'{tempfile.gettempdir()}: has no room for {len(files):,} images; set TMPDIR to a '
                              'folder on a larger disk')
        self._file = tempfile.TemporaryFile()
        self.pixels = np.memmap(self._file, 'uint8', 'w+', shape=shape)
        for _ in tqdm(map_ahead(self._put, files), 'decoding', len(files), leave=False, delay=2): pass

    def _open(self, o): return UprightImage.create(o, self.min_side).resize((self.side,)*2, Image.Resampling.BILINEAR)
    def _put(self, file):
        try: self.pixels[self.rows[file]] = self._open(file)
        except ImageError as e: self.faults[file] = e
    def encodes(self, o):
        if not isinstance(o, Path) or o not in self.rows: return UprightImage(self._open(o))
        if o in self.faults: raise self.faults[o]
        return UprightImage(Image.fromarray(self.pixels[self.rows[o]]))

def find_transform(
    pipeline:Pipeline, # Such as `dls.valid.after_item`
    kinds # A type, or a tuple of types
): # A transform of `pipeline`, or None
    "The first transform in `pipeline` of one of `kinds`; None if there is none"
    return next((o for o in pipeline.fs if isinstance(o, kinds)), None)

class SkippingDL(TfmdDL):
    "A `TfmdDL` that goes on without the images that cannot be opened, when it has a list of those `left_out`"
    left_out = None   # None: a bad image is an error, as in `Learner.predict`

    def do_item(self,
        s:int # Which image of the data set; None: the next
    ): # The image, with its label; None for one that cannot be opened
        "As fastai's; an image that has gone bad is left out and noted"
        try: return super().do_item(s)
        except ImageError as e:
            if self.left_out is None: raise
            self.left_out.add(self.dataset.items[s or 0], str(e))

    def chunkify(self,
        b # Items
    ): # Lists of `bs` items
        "Batches of `b`; where there is only one for training, it may be short"
        if not self.drop_last: return super().chunkify(b)
        only = self.n//self.bs == 1 and not self.offs   # offs: of the processes that make batches, the first
        return (o for i,o in enumerate(chunked(b, self.bs)) if len(o) == self.bs or only and not i)

    def new(self,
        dataset=None, # Other images; None: the same
        cls=None, # Another class of `DataLoader`; None: this one
        **kwargs
    ): # A `DataLoader`
        "As before; only other batches of the same images go on without bad ones, and not those for `get_preds`"
        res = super().new(dataset, cls, **kwargs)
        if dataset is None and 'get_idxs' not in kwargs: res.left_out = self.left_out
        return res

def _with_split(dls, split):
    "`dls` with what is known about its images"
    dls.split,dls.left_out,dls.content_ids = split,split.left_out,split.content_ids
    dls.test_files,dls.unvalidated = split.test,split.unvalidated
    for dl in dls: dl.left_out = split.left_out
    return dls

def split_dls(
    split:Split, # From `split_files`
    blocks, # As for `DataBlock`: how to open an image, and its category
    item_tfms, # As for `DataBlock`
    batch_tfms, # As for `DataBlock`
    seed:int, # What is drawn at random
    **kw # Passed on to `DataBlock.dataloaders`
) -> DataLoaders: # With `split`, and of it `left_out`, `content_ids`, `test_files` and `unvalidated`
    "The batches of `split`; says what is left out"
    n,path = len(split.train),split.folder.path
    block = DataBlock(blocks, SkippingDL, get_items=lambda _: split.train + split.valid,
                      splitter=lambda files: (range(n), range(n, len(files))), get_y=FolderLabel(split.folder),
                      item_tfms=item_tfms, batch_tfms=batch_tfms)
    with no_random(seed, reproducible=False): dls = block.dataloaders(path, path=path, **kw)
    sentence = used_sentence(split)
    if ';' in sentence and not rank_distrib(): print(f'{path}: {sentence}')
    return _with_split(dls, split)

def labelled_dl(
    dls:DataLoaders, # From `split_dls`, or others
    items # Such as paths of images
) -> TfmdDL: # Batches of images and labels
    "`items` prepared as for validation; goes on without those that cannot be opened, if `dls` do"
    dl = dls.test_dl(items, with_labels=True)
    dl.left_out = getattr(dls, 'left_out', None)
    return dl

def _decoded_dl(dl, dset, **kw):
    "`dl` with the data set `dset`, drawing at random what `dl` would"
    new = dl.new(dset, bs=min(dl.bs, len(dset)), **kw)   # of too few for a whole batch, none would be made
    new.rng.setstate(dl.rng.getstate())
    return new

def decoded_dls(
    dls:DataLoaders, # From `split_dls`
    side:int # Of the squares that are kept, in pixels: what the validation images are squeezed to
) -> DataLoaders: # With the transforms of `dls`
    "`dls` for whose images `Decoded` keeps squares of `side`"
    opened,labels = find_transform(dls.train_ds.tls[0].tfms, OpenUpright),dls.train_ds.tls[1]
    decoded = Decoded(dls.train_ds.items + dls.valid_ds.items, side, opened and opened.min_side)
    check_left_out([(f, e.reason) for f,e in decoded.faults.items()], len(decoded.rows))
    for f,e in decoded.faults.items():
        if getattr(dls.train, 'left_out', None) is None: raise e
        dls.left_out.add(f, e.reason)
    train,valid = ([f for f in ds.items if f not in decoded.faults] for ds in (dls.train_ds, dls.valid_ds))
    kw = dict(splits=[range(len(train)), range(len(train), len(train) + len(valid))])
    dsets = Datasets(tls=[TfmdLists(train + valid, [decoded], **kw),
                          TfmdLists(train + valid, labels.tfms, types=labels.types, **kw)])
    # what is left to do for an image is less work than starting a process for it; a GPU needs them all the same
    kw = {} if dls.device.type == 'cuda' else dict(num_workers=0)
    new = DataLoaders(*[_decoded_dl(dl, ds, **kw) for dl,ds in zip(dls, (dsets.train, dsets.valid))],
                      path=dls.path, device=dls.device)
    return _with_split(new, dls.split) if 'split' in vars(dls) else new
