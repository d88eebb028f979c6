"""Exports of plain fastai learners: the same answers, or an error that says what to change.

Each kind of learner is exported once here, and in all combinations with `--nightly`.
"""
import io, json, os, shutil, warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from image_files import write_drawings
from PIL import Image

from catdog.core.errors import CatdogError
from catdog.core.model_file import pixels_of
from catdog.deploy.predictor import Classifier, shipped_model
from catdog.sample.draw import draw

warnings.filterwarnings('ignore')   # fastai and torch, about themselves

@pytest.fixture(scope='module')
def drawings(tmp_path_factory):
    "20 drawings each of cats and dogs, of many shapes"
    return write_drawings(tmp_path_factory.mktemp('drawings'), 20, 300, lambda i: (100 + 9*i, 120))

def odd(images, folder):
    "Write `images` as odd files: very wide or high, with all EXIF orientations, transparent, palette, grey, large"
    files = []
    for i,img in enumerate(images):
        w,h = img.size
        img = img.crop([(0, 0, w, h), (0, h//3, w, h//2), (w//3, 0, w//2, h), (1, 1, w - 2, h)][i % 4])
        exif = Image.Exif()
        exif[0x112] = i % 8 + 1
        kind = i % 5
        file = folder/f'{i:03}{".jpg" if kind < 3 else ".png"}'
        if kind == 0: img.save(file, exif=exif, quality=95)
        elif kind == 1: img.resize((img.width*3, img.height*3)).save(file, exif=exif)
        elif kind == 2: img.convert('L').save(file)
        elif kind == 3: img.convert('RGBA').rotate(20, expand=True).save(file, exif=exif)   # with transparent corners
        else: img.convert('P').save(file, transparency=3)
        files.append(file)
    return files

@pytest.fixture(scope='module')
def files(tmp_path_factory): return odd([draw('cat', i, (150, 110)) for i in range(40)], tmp_path_factory.mktemp('odd'))

def spread(learn):
    "Make the untrained `learn` give varied probabilities, so that a wrong pixel changes them"
    import torch
    from catdog.learn.calibration import validation_logits
    last = [o for o in learn.model[1].modules() if list(o.parameters(recurse=False))][-1]   # linear, or a batch norm
    with torch.no_grad():
        norms = [o for o in learn.model.train().modules() if isinstance(o, torch.nn.modules.batchnorm._BatchNorm)]
        for o in norms: o.momentum = None
        for _ in range(2):   # batch norms learn the mean of what they see
            for o in norms: o.reset_running_stats()
            for x,_ in learn.dls.train: learn.model(x)
        if last.bias is None: last.bias = torch.nn.Parameter(last.weight.new_zeros(len(last.weight)))
        last.weight.mul_(2/validation_logits(learn)[0].diff(dim=1).std())
        last.bias.sub_(validation_logits(learn)[0].mean(0))
    return learn

def loaders(folder, item_tfms, batch_tfms=None):
    from fastai.vision.all import ImageDataLoaders
    return ImageDataLoaders.from_folder(folder, valid_pct=.25, seed=42, item_tfms=item_tfms, batch_tfms=batch_tfms,
                                        bs=8, num_workers=0)

def learner(folder, arch, item_tfms, batch_tfms=None, **kw):
    "A learner made by plain fastai code"
    import torchvision.models
    from fastai.vision.all import set_seed, vision_learner
    set_seed(3)
    return spread(vision_learner(loaders(folder, item_tfms, batch_tfms), getattr(torchvision.models, arch, arch),
                                 pretrained=False, **kw))

def ways():
    from fastai.vision.all import RandomResizedCrop, Resize, aug_transforms
    return dict(crop=(Resize(64), None), squish=(Resize(64, 'squish'), None), zeros=(Resize(64, 'pad', 'zeros'), None),
                border=(Resize(64, 'pad', 'border'), aug_transforms()),
                reflection=(Resize(64, 'pad', 'reflection'), None),
                random=(RandomResizedCrop(64, min_scale=.5), aug_transforms()),
                presized=(Resize(96), aug_transforms(size=64, min_scale=.75)))
WAYS = 'crop', 'squish', 'zeros', 'border', 'reflection', 'random', 'presized'

def assert_agree(learn, model, files):
    "Assert that labels are the same and probabilities within 1e-4, and that the probabilities vary"
    with learn.no_bar(): expected = learn.get_preds(dl=learn.dls.test_dl(files, num_workers=0))[0].numpy()
    answers = Classifier(model).predict_batch(files)
    given = np.array([list(o.probabilities.values()) for o in answers])
    assert np.ptp(expected[:, 0]) > .2
    assert np.abs(given - expected).max() < 1e-4
    assert [o.label for o in answers] == [str(learn.dls.vocab[o]) for o in expected.argmax(1)]

# The same pixels

@pytest.mark.parametrize('way', WAYS)
def test_app_and_learner_prepare_images_alike(drawings, files, way):
    import torch
    from catdog.learn.loaders import batch_resize, preprocessing
    dls = loaders(drawings, *ways()[way])
    expected = torch.cat([x for x, in dls.test_dl(files, num_workers=0)])   # 0 to 1, not normalized
    prepared = preprocessing(SimpleNamespace(dls=dls))
    pixels = torch.from_numpy(np.stack([pixels_of(o, prepared) for o in files])/255).float().permute(0, 3, 1, 2)
    assert (batch_resize(dls)(pixels) - expected).abs().max() < 1e-4

# The same answers

@pytest.fixture(scope='module')
def padded(drawings, tmp_path_factory):
    "A learner with a head of two layers whose images are padded and augmented, and the model folder it was exported to"
    from catdog.learn.export import export
    learn = learner(drawings, 'squeezenet1_1', *ways()['border'])
    return learn,export(learn, tmp_path_factory.mktemp('models')/'padded')

def test_plain_learner(padded, files): assert_agree(*padded, files)

def test_batch_resizing(drawings, files, tmp_path):
    from catdog.learn.export import export
    learn = learner(drawings, 'squeezenet1_1', *ways()['presized'], concat_pool=False, bn_final=True)
    assert_agree(learn, export(learn, tmp_path/'model'), files)

def test_vision_transformer_answers_but_cannot_explain(drawings, files, tmp_path):
    from fastai.vision.all import Resize
    from catdog.learn.export import export
    learn = learner(drawings, 'vit_tiny_patch16_224', Resize(64), img_size=64)
    model = export(learn, tmp_path/'model')
    assert_agree(learn, model, files[:10])
    assert Classifier(model).meta['arch'] == 'vit_tiny_patch16_224'
    assert 'vit_tiny_patch16_224' in (model/'model_card.md').read_text().replace('\\', '')
    with pytest.raises(CatdogError, match='cannot explain its answers'): Classifier(model).explain(files[0])

def test_rows_of_a_table_and_labels_that_are_numbers(drawings, tmp_path):
    import pandas as pd, torchvision.models
    from fastai.vision.all import ImageDataLoaders, Resize, vision_learner
    from catdog.learn.export import export
    names = [(f'{label}/{i}.png', i % 2) for label in ('cat', 'dog') for i in range(20)]
    rows = pd.DataFrame(names, columns=['name', 'odd'])
    dls = ImageDataLoaders.from_df(rows, drawings, item_tfms=Resize(64), num_workers=0, seed=42)
    learn = spread(vision_learner(dls, torchvision.models.squeezenet1_1, pretrained=False))
    model = export(learn, tmp_path/'model')
    with learn.no_bar(): expected = learn.get_preds()[0].numpy()
    files = [str(drawings/o) for o in dls.valid_ds.items.name]
    given = np.array([list(o.probabilities.values()) for o in Classifier(model).predict_batch(files)])
    assert Classifier(model).labels == ['0', '1'] and np.abs(given - expected).max() < 1e-4

def test_the_graph_of_an_architecture_is_written_once(drawings, files, tmp_path, monkeypatch):
    "Other weights are put into it; one that is damaged, or computes something else, is written again"
    import onnx, torch
    from catdog.learn import features
    from catdog.learn.export import export
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(features, '_graphs', {})
    written,write = [],torch.onnx.export
    monkeypatch.setattr(torch.onnx, 'export', lambda *args, **kw: written.append(1) or write(*args, **kw))
    for k in range(2):
        learn = learner(drawings, 'squeezenet1_1', *ways()['squish'])
        with torch.no_grad():
            for o in learn.model[0].parameters(): o.mul_(1 + k*.3*torch.rand_like(o))
        spread(learn)
        assert_agree(learn, export(learn, tmp_path/str(k)), files)
    assert len(written) == 1   # which the features, their distance and both exports share
    cached, = (tmp_path/'hub'/'catdog').iterdir()
    good = cached.read_bytes()
    graph = onnx.load_from_string(good)
    next(o for o in graph.graph.node if o.op_type == 'Relu').op_type = 'Sigmoid'
    for bad in (good[:len(good)//2], graph.SerializeToString()):
        features._graphs.clear()
        cached.write_bytes(bad)
        assert_agree(learn, export(learn, tmp_path/'again'), files)
    assert len(written) == 3

BODIES = 'resnet18', 'convnext_atto', 'mobilenetv4_conv_small', 'efficientnet_b0'
HEADS = (dict(concat_pool=False), dict(lin_ftrs=[]), dict(lin_ftrs=[64, 32], ps=.2), dict(bn_final=True),
         dict(lin_first=True), dict(first_bn=False))
KINDS = [*((o, 'crop', {}) for o in BODIES), *(('squeezenet1_1', 'squish', o) for o in HEADS),
         *(('squeezenet1_1', o, {}) for o in WAYS)]

@pytest.mark.nightly
@pytest.mark.parametrize('arch, way, head', KINDS)
def test_bodies_heads_and_resize_methods(drawings, files, tmp_path, arch, way, head):
    from catdog.learn.export import export
    learn = learner(drawings, arch, *ways()[way], **head)
    model = export(learn, tmp_path/'model')
    assert_agree(learn, model, files)
    assert Classifier(model).explain(files[0]).max() == 1

@pytest.mark.nightly
@pytest.mark.parametrize('arch', ['efficientnet_lite0', 'squeezenet1_0', 'convnext_atto'])
@pytest.mark.parametrize('way', ['crop', 'reflection', 'squish'])
def test_on_100_photographs(photos, drawings, tmp_path, arch, way):
    from catdog.learn.export import export
    learn = learner(drawings, arch, ways()[way][0])
    sources = [o for label in ('cat', 'dog') for o in sorted((photos/'photos'/'web'/label).iterdir())[:50]]
    files = odd([Image.open(o).convert('RGB') for o in sources], tmp_path)
    assert_agree(learn, export(learn, tmp_path/'model'), files)

# Metadata

def test_unpickled_learner_has_no_measurements(padded, files, tmp_path):
    from fastai.vision.all import load_learner
    from catdog.learn.export import export
    learn = load_learner(padded[1]/'export.pkl')
    with pytest.warns(UserWarning, match='stays in 32 bits'): model = export(learn, tmp_path/'model', int8=True)
    assert_agree(learn, model, files[:10])
    card,classifier = (model/'model_card.md').read_text(),Classifier(model)
    assert 'Not measured' in card and 'data is unknown' in card and 'not measured' in classifier.summary
    assert not {'error', 'neither', 'n_images', 'calibration', 'int8'} & {*classifier.meta}
    assert classifier.predict(files[0]).sure   # there is no limit
    assert not (model/'images.json').exists()

def test_moved_images_are_counted(drawings, tmp_path):
    from fastai.vision.all import Resize
    from catdog.learn.export import export
    shutil.copytree(drawings, tmp_path/'mine')
    learn = learner(tmp_path/'mine', 'squeezenet1_1', Resize(64))
    for o in (*learn.dls.valid_ds.items[:3], *learn.dls.train_ds.items[:4]): o.rename(o.with_suffix('.elsewhere'))
    model = export(learn, tmp_path/'model')
    meta = Classifier(model).meta
    assert (meta['n_train'], meta['n_valid'], meta['n_missing']) == (30, 7, 3)
    assert '3 other validation images could not be opened' in (model/'model_card.md').read_text()
    ids = json.loads((model/'images.json').read_text())
    assert [len(ids[o]) for o in ('training', 'validation', 'test')] == [26, 7, 0]
    (tmp_path/'mine').rename(tmp_path/'elsewhere')
    meta = Classifier(export(learn, model)).meta
    assert (meta['n_train'], meta['n_valid']) == (30, 0) and 'error' not in meta
    assert not (model/'images.json').exists()   # it was about the model that was replaced

# Refusals

REFUSED = dict(
    RatioResize='an app cannot repeat RatioResize', RandomCrop='an app cannot repeat RandomCrop',
    rectangle='to a square', darker='an app cannot repeat Darker', several='several', number='not with numbers',
    grey='in colours', custom='vision_learner makes', whole='vision_learner makes', sigmoid='cross entropy',
    opened='gives others', outputs='each of its 2 labels', tiny='cannot take RGB images of 32 x 32')

@pytest.mark.parametrize('case', REFUSED)
def test_unsupported_transforms_are_refused(drawings, tmp_path, case):
    import torch
    from fastai.vision import all as f
    from torchvision.models import alexnet, squeezenet1_1
    from catdog.learn.export import check_exportable, export
    class Darker(f.Transform):
        def encodes(self, x:f.PILImage): return f.PILImage.create(x.point(lambda o: o//2))
    resize = dict(RatioResize=f.RatioResize(64), RandomCrop=f.RandomCrop(64), rectangle=f.Resize((64, 48)),
                  darker=[Darker(), f.Resize(64)], tiny=f.Resize(32)).get(case, f.Resize(64))
    def turned(o): return f.PILImage(f.PILImage.create(o).rotate(3))
    image = dict(grey=f.ImageBlock(f.PILImageBW), opened=f.TransformBlock(turned, batch_tfms=f.IntToFloatTensor))
    label = dict(several=f.MultiCategoryBlock, number=f.RegressionBlock)
    get_y = dict(several=lambda o: [o.parent.name], number=lambda o: float(len(o.name))).get(case, f.parent_label)
    blocks = image.get(case, f.ImageBlock),label.get(case, f.CategoryBlock)
    block = f.DataBlock(blocks, get_items=f.get_image_files, get_y=get_y, splitter=f.RandomSplitter(seed=1),
                        item_tfms=resize)
    dls = block.dataloaders(drawings, num_workers=0)
    head = torch.nn.Sequential(f.AdaptiveConcatPool2d(), f.Flatten(), torch.nn.GELU(), torch.nn.Linear(1024, 2))
    kw = dict(grey=dict(n_in=1), custom=dict(custom_head=head), sigmoid=dict(loss_func=f.BCEWithLogitsLossFlat()),
              outputs=dict(n_out=3)).get(case, {})
    if case == 'whole': learn = f.Learner(dls, squeezenet1_1())
    else: learn = f.vision_learner(dls, alexnet if case == 'tiny' else squeezenet1_1, pretrained=False, **kw)
    for o in (check_exportable, lambda o: export(o, tmp_path/'model')):
        with pytest.raises(CatdogError, match=REFUSED[case]): o(learn)
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('arch', ['mobilenet_v2', 'vit_b_16', 'googlenet'])
def test_unsupported_bodies_are_refused(drawings, arch):
    from catdog.train import train
    with pytest.raises(CatdogError, match=arch): train(drawings, arch, size=64, pretrained=False)

def test_training_does_not_start_if_the_model_cannot_be_exported(drawings, monkeypatch):
    import torch
    from catdog import train as chapter
    monkeypatch.setattr(chapter, 'run_recipe', lambda *args, **kw: pytest.fail('was trained'))
    head = torch.nn.Sequential(torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten(), torch.nn.Linear(512, 2))
    with pytest.raises(CatdogError, match='vision_learner makes'):
        chapter.train(drawings, 'squeezenet1_1', size=64, recipe='classic', pretrained=False, custom_head=head)

# Atomic writes

def test_differing_model_is_not_written(padded, monkeypatch):
    import onnx
    from catdog.learn import export as exporter
    learn,model = padded
    before = {o.name: o.read_bytes() for o in model.iterdir()}
    answers = exporter._learner_logits
    monkeypatch.setattr(exporter, '_onnx_model', lambda *args: onnx.load(model/'model.onnx'))   # what it would be
    for change,words in ((lambda o: -o, 'differs from the Learner'), (lambda o: o*np.nan, 'diverged')):
        monkeypatch.setattr(exporter, '_learner_logits', lambda *args: change(answers(*args)))
        with pytest.raises(CatdogError, match=words): exporter.export(learn, model)
    assert {o.name: o.read_bytes() for o in model.iterdir()} == before

def test_full_disk_leaves_the_learner_intact(padded):
    "fastai's own `export` removes the data and the optimizer of a learner, and does not restore them on an error"
    from catdog.learn import export as exporter
    if not os.path.exists('/dev/full'): pytest.skip('this system has no /dev/full')
    learn,_ = padded
    learn.create_opt()
    dls,opt = learn.dls,learn.opt
    with pytest.raises(OSError): exporter._write_pickle(learn, Path('/dev/full'))
    assert learn.dls is dls and learn.opt is opt

def test_every_form_of_an_image_gives_one_answer(tmp_path):
    "As a path, bytes, a file, an image and an array; small, and large enough to be reduced"
    classifier = Classifier(shipped_model())
    for i,size in enumerate([(90, 60), (500, 400), (1600, 1200), (4000, 3000)]):
        file = tmp_path/f'{i}.jpg'
        draw('cat', i, size).save(file)
        data = file.read_bytes()
        with Image.open(file) as img: forms = [file, str(file), data, io.BytesIO(data), img.copy(), np.asarray(img)]
        with open(file, 'rb') as f: answers = [classifier.predict(o) for o in [*forms, f]]
        assert len({o.probability for o in answers}) == 1, answers

def test_the_head_is_measured_as_the_model_answers(drawings):
    "Without running the model, on features that training has left"
    from catdog.data import get_dls
    from catdog.learn import export
    from catdog.learn.calibration import fit_distance
    from catdog.learn.head import fit_head
    from catdog.train import get_learner
    dls = get_dls(drawings, 64)
    learn = fit_head(get_learner(dls, lin_ftrs=[]))
    distance,prepared = fit_distance(learn),export.check_exportable(learn)
    truth = [int(dls.valid_ds.tls[1][i]) for i in range(len(dls.valid_ds))]
    slow = export._measure(export._onnx_model(learn, prepared['size'], distance), dls.valid_ds.items, truth, prepared)
    for a,b in zip(export._measure_head(learn, distance), slow): np.testing.assert_allclose(a, b, atol=1e-4)
    assert np.ptp(slow[2]) > .01

def test_validation_images_that_are_gone_are_no_error(drawings, tmp_path):
    "The model is written, and its card does not say how good it is"
    from catdog.data import get_dls
    from catdog.learn.head import fit_head
    from catdog.train import export, get_learner
    learn = fit_head(get_learner(get_dls(shutil.copytree(drawings, tmp_path/'data'), 64), lin_ftrs=[]))
    for o in learn.dls.valid_ds.items: o.rename(o.with_suffix('.bak'))
    assert Classifier(export(learn, tmp_path/'model')).meta['n_valid'] == 0
