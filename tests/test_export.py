"""What people have is exported and answers as their Learner does, or is refused in words: transforms, bodies, heads,
blocks, learners without their images. The learners are plain fastai, the answers those of a `Classifier` that reads
the files."""
import json, os, shutil, warnings
from pathlib import Path

import numpy as np
import pytest
from image_files import write_drawings
from PIL import Image

from catdog.sample.draw import draw
from catdog.core.errors import CatdogError
from catdog.deploy.predictor import Classifier

warnings.filterwarnings('ignore')   # of torch and fastai, about themselves

@pytest.fixture(scope='module')
def drawings(tmp_path_factory):
    "20 drawings each of cats and dogs, of many shapes"
    return write_drawings(tmp_path_factory.mktemp('drawings'), 20, 300, lambda i: (100 + 9*i, 120))

def odd(images, folder):
    "`images` as files of odd shapes: very wide or high, turned by EXIF in all ways, transparent, palette, grey, large"
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
        elif kind == 3: img.convert('RGBA').rotate(20, expand=True).save(file, exif=exif)   # its corners are clear
        else: img.convert('P').save(file, transparency=3)
        files.append(file)
    return files

def spread(learn):
    "Let `learn` give probabilities of all kinds, though it has learned nothing: a wrong pixel then moves them"
    import torch
    from catdog.learn.calibration import validation_logits
    last = [o for o in learn.model[1].modules() if list(o.parameters(recurse=False))][-1]   # linear, or a batch norm
    with torch.no_grad():
        norms = [o for o in learn.model.train().modules() if isinstance(o, torch.nn.modules.batchnorm._BatchNorm)]
        for o in norms: o.momentum = None
        for _ in range(2):   # batch norms learn what they see, in the mean
            for o in norms: o.reset_running_stats()
            for x,_ in learn.dls.train: learn.model(x)
        if last.bias is None: last.bias = torch.nn.Parameter(last.weight.new_zeros(len(last.weight)))
        last.weight.mul_(2/validation_logits(learn)[0].diff(dim=1).std())
        last.bias.sub_(validation_logits(learn)[0].mean(0))
    return learn

def learner(folder, arch, item_tfms, size=64, **kw):
    "By plain fastai code"
    import torchvision.models
    from fastai.vision.all import ImageDataLoaders, set_seed, vision_learner
    set_seed(3)
    dls = ImageDataLoaders.from_folder(folder, valid_pct=.25, seed=42, item_tfms=item_tfms, bs=8, num_workers=0,
                                       batch_tfms=kw.pop('batch_tfms', None))
    return spread(vision_learner(dls, getattr(torchvision.models, arch, arch), pretrained=False, **kw))

def assert_agree(learn, model, files):
    "The labels are the same, and the probabilities within 1e-4; and there are probabilities of all kinds"
    with learn.no_bar(): expected = learn.get_preds(dl=learn.dls.test_dl(files, num_workers=0))[0].numpy()
    answers = Classifier(model).predict_batch(files)
    given = np.array([list(o.probabilities.values()) for o in answers])
    assert np.ptp(expected[:, 0]) > .2
    assert np.abs(given - expected).max() < 1e-4
    assert [o.label for o in answers] == [str(learn.dls.vocab[o]) for o in expected.argmax(1)]

def ways():
    from fastai.vision.all import RandomResizedCrop, Resize, aug_transforms
    return dict(crop=(Resize(64), None), squish=(Resize(64, 'squish'), None), zeros=(Resize(64, 'pad', 'zeros'), None),
                border=(Resize(64, 'pad', 'border'), aug_transforms()),
                reflection=(Resize(64, 'pad', 'reflection'), None),
                random=(RandomResizedCrop(64, min_scale=.5), aug_transforms()),
                presized=(Resize(96), aug_transforms(size=64, min_scale=.75)))

@pytest.mark.parametrize('way', ['crop', 'squish', 'zeros', 'border', 'reflection', 'random', 'presized'])
def test_all_ways_to_a_square_answer_as_the_learner(drawings, tmp_path, way):
    from catdog.learn.export import export
    item_tfms,batch_tfms = ways()[way]
    learn = learner(drawings, 'squeezenet1_1', item_tfms, batch_tfms=batch_tfms)
    assert_agree(learn, export(learn, tmp_path/'model'), odd([draw('cat', i, (150, 110)) for i in range(40)], tmp_path))

BODIES = [('resnet18', 64, 'resnet18'), ('convnext_atto', 64, 'convnext_atto'), ('mobilenetv4_conv_small', 64, None),
          ('vit_tiny_patch16_224', 224, None), ('efficientnet_b0', 64, None)]

@pytest.mark.parametrize('arch,size,name', BODIES)
def test_bodies_of_torchvision_and_timm(drawings, tmp_path, arch, size, name):
    from fastai.vision.all import Resize
    from catdog.learn.export import export
    learn = learner(drawings, arch, Resize(size))
    model = export(learn, tmp_path/'model')
    assert_agree(learn, model, odd([draw('dog', i, (150, 110)) for i in range(10)], tmp_path))
    classifier = Classifier(model)
    assert classifier.meta['arch'] == (name or arch) and arch in (model/'model_card.md').read_text().replace('\\', '')
    if arch.startswith('vit'):
        with pytest.raises(CatdogError, match='cannot say why'): classifier.explain(draw('cat', 1))
    else: assert classifier.explain(draw('cat', 1)).max() == 1

@pytest.mark.parametrize('head', [dict(concat_pool=False), dict(lin_ftrs=[]), dict(lin_ftrs=[64, 32], ps=.2),
                                  dict(bn_final=True), dict(lin_first=True), dict(first_bn=False)])
def test_heads_that_vision_learner_makes(drawings, tmp_path, head):
    from fastai.vision.all import Resize
    from catdog.learn.export import export
    learn = learner(drawings, 'squeezenet1_1', Resize(64), **head)
    assert_agree(learn, export(learn, tmp_path/'model'), odd([draw('dog', i, (150, 110)) for i in range(10)], tmp_path))

@pytest.mark.parametrize('arch', ['efficientnet_lite0', 'squeezenet1_0', 'convnext_atto'])
@pytest.mark.parametrize('way', ['crop', 'reflection', 'squish'])
def test_on_100_photographs(photos, drawings, tmp_path, arch, way):
    from catdog.learn.export import export
    learn = learner(drawings, arch, ways()[way][0])
    sources = [o for label in ('cat', 'dog') for o in sorted((photos/'photos'/'web'/label).iterdir())[:50]]
    files = odd([Image.open(o).convert('RGB') for o in sources], tmp_path)
    assert len(files) == 100
    assert_agree(learn, export(learn, tmp_path/'model'), files)

def test_rows_of_a_table_and_labels_that_are_no_words(drawings, tmp_path):
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

def meta_of(model): return Classifier(model).meta

def test_a_loaded_learner_knows_no_figures(drawings, tmp_path):
    from fastai.vision.all import Resize, load_learner
    from catdog.learn.export import export
    learn = learner(drawings, 'squeezenet1_1', Resize(64, 'pad'))
    learn.export(tmp_path/'plain.pkl')   # fastai's own
    model = export(load_learner(tmp_path/'plain.pkl'), tmp_path/'model')
    assert_agree(learn, model, odd([draw('cat', i, (150, 110)) for i in range(10)], tmp_path))
    card,classifier = (model/'model_card.md').read_text(),Classifier(model)
    assert 'Not measured' in card and 'is not known' in card and 'not measured' in classifier.summary
    assert not {'error', 'neither', 'n_images', 'calibration'} & {*classifier.meta}
    assert classifier.predict(draw('cat', 1)).sure   # there is no limit
    assert not (model/'images.json').exists()
    with pytest.warns(UserWarning, match='stays in 32 bits'):
        export(load_learner(tmp_path/'plain.pkl'), model, int8=True)

def test_images_that_moved_are_counted(drawings, tmp_path):
    from fastai.vision.all import Resize
    from catdog.learn.export import export
    shutil.copytree(drawings, tmp_path/'mine')
    learn = learner(tmp_path/'mine', 'squeezenet1_1', Resize(64))
    whole = meta_of(export(learn, tmp_path/'model'))
    assert (whole['n_train'], whole['n_valid']) == (30, 10) and 'n_missing' not in whole
    gone = [*learn.dls.valid_ds.items[:3], *learn.dls.train_ds.items[:4]]
    for o in gone: o.rename(o.with_suffix('.elsewhere'))
    some = meta_of(export(learn, tmp_path/'model'))
    assert (some['n_valid'], some['n_missing']) == (7, 3)
    assert '3 other validation images could not be opened' in (tmp_path/'model'/'model_card.md').read_text()
    ids = json.loads((tmp_path/'model'/'images.json').read_text())
    assert [len(ids[o]) for o in ('training', 'validation', 'test')] == [26, 7, 0]
    (tmp_path/'mine').rename(tmp_path/'elsewhere')
    none = meta_of(export(learn, tmp_path/'model'))
    assert none['n_valid'] == 0 and 'error' not in none and none['n_train'] == 30

REFUSED = dict(
    RatioResize='an app cannot repeat RatioResize', RandomCrop='an app cannot repeat RandomCrop',
    rectangle='to a square', darker='an app cannot repeat Darker', several='several', number='not with numbers',
    grey='in colours', custom='vision_learner makes', whole='vision_learner makes', sigmoid='cross entropy',
    opened='gives others')

@pytest.mark.parametrize('case', REFUSED)
def test_what_an_app_could_not_repeat_is_refused_in_words(drawings, tmp_path, case):
    import torch
    from fastai.vision import all as f
    from torchvision.models import squeezenet1_1
    from catdog.learn.export import check_exportable, export
    class Darker(f.Transform):
        def encodes(self, x:f.PILImage): return f.PILImage.create(x.point(lambda o: o//2))
    resize = dict(RatioResize=f.RatioResize(64), RandomCrop=f.RandomCrop(64), rectangle=f.Resize((64, 48)),
                  darker=[Darker(), f.Resize(64)]).get(case, f.Resize(64))
    def turned(o): return f.PILImage(f.PILImage.create(o).rotate(3))
    image = dict(grey=f.ImageBlock(f.PILImageBW), opened=f.TransformBlock(turned, batch_tfms=f.IntToFloatTensor))
    label = dict(several=f.MultiCategoryBlock, number=f.RegressionBlock)
    get_y = dict(several=lambda o: [o.parent.name], number=lambda o: float(len(o.name))).get(case, f.parent_label)
    blocks = image.get(case, f.ImageBlock),label.get(case, f.CategoryBlock)
    block = f.DataBlock(blocks, get_items=f.get_image_files, get_y=get_y, splitter=f.RandomSplitter(seed=1),
                        item_tfms=resize)
    dls = block.dataloaders(drawings, num_workers=0)
    head = torch.nn.Sequential(f.AdaptiveConcatPool2d(), f.Flatten(), torch.nn.GELU(), torch.nn.Linear(1024, 2))
    if case == 'whole': learn = f.Learner(dls, squeezenet1_1())
    else: learn = f.vision_learner(dls, squeezenet1_1, pretrained=False, n_in=1 if case == 'grey' else 3,
                                   custom_head=head if case == 'custom' else None,
                                   loss_func=f.BCEWithLogitsLossFlat() if case == 'sigmoid' else None)
    for o in (check_exportable, lambda o: export(o, tmp_path/'model')):
        with pytest.raises(CatdogError, match=REFUSED[case]): o(learn)
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('arch', ['mobilenet_v2', 'vit_b_16', 'googlenet'])
def test_bodies_that_cannot_be_cut_are_refused_by_name(drawings, arch):
    from catdog.train import train
    with pytest.raises(CatdogError, match=arch): train(drawings, arch, size=64, pretrained=False)

def test_training_is_not_begun_for_a_learner_that_cannot_be_exported(drawings, monkeypatch):
    import torch
    chapter = train
    monkeypatch.setattr(chapter, 'run_recipe', lambda *args, **kw: pytest.fail('was trained'))
    def head(): return torch.nn.Sequential(torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten(), torch.nn.Linear(512, 2))
    kw = dict(size=64, recipe='classic', pretrained=False)
    for args,more,words in (('squeezenet1_1', dict(custom_head=head()), 'vision_learner makes'),
                            ('squeezenet1_1', dict(n_out=3), 'each of its 2 labels'),
                            ('alexnet', dict(size=32), 'cannot take images of 32 x 32')):
        with pytest.raises(CatdogError, match=words): chapter.train(drawings, args, **{**kw, **more})

def test_one_image_has_one_answer(tmp_path):
    "As a path, bytes, a file, an image and an array; small, and so large that it is reduced"
    import io
    from catdog.deploy.predictor import shipped_model
    classifier = Classifier(shipped_model())
    for i,size in enumerate([(90, 60), (500, 400), (1600, 1200), (4000, 3000)]):
        file,pixels = tmp_path/f'{i}.jpg',draw('cat', i, size)
        pixels.save(file)
        data = file.read_bytes()
        with Image.open(file) as img: forms = [file, str(file), data, io.BytesIO(data), img.copy(), np.asarray(img)]
        with open(file, 'rb') as f: answers = [classifier.predict(o) for o in [*forms, f]]
        assert len({o.probability for o in answers}) == 1, answers

def test_a_full_disk_leaves_the_learner_whole(drawings, tmp_path):
    "fastai's own `export` takes the data and the optimiser off a learner, and forgets to put them back"
    from fastai.vision.all import Resize
    from catdog.learn import export as exporter
    learn = learner(drawings, 'squeezenet1_1', Resize(64))
    learn.create_opt()
    dls,opt = learn.dls,learn.opt
    if not os.path.exists('/dev/full'): pytest.skip('this system has no /dev/full')
    with pytest.raises(OSError): exporter._write_pickle(learn, Path('/dev/full'))
    assert learn.dls is dls and learn.opt is opt
