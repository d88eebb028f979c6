"Training in several processes, stopped, killed and resumed; the recipe that chooses; wrong arguments; model cards"
import itertools, json, os, re, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_helpers import run_command
from image_files import write_drawings
from network_helpers import free_port

from catdog.core.errors import CatdogError
from catdog.deploy.predictor import Classifier
from catdog.sample.draw import draw

SMALL = '--size', '64'

def script(name): return str(Path(sys.executable).with_name(name))
def environment(): return {**os.environ, 'OMP_NUM_THREADS': '1'}

@pytest.fixture(scope='module')
def drawings(tmp_path_factory):
    "20 drawings each of cats and dogs"
    return write_drawings(tmp_path_factory.mktemp('drawings'), 20, 500, lambda i: (160, 120))

def build(*args, cwd, ok=True):
    "Run catdog-build on small images; what `subprocess.run` returns"
    done = run_command('catdog-build', *args, *SMALL, cwd=cwd, env=environment())
    assert done.returncode == (0 if ok else 2), done.stdout[-2000:] + done.stderr[-3000:]
    assert 'Traceback' not in done.stderr
    return done

def run_python(code, *args, cwd):
    "Run `code` in a process of its own"
    (cwd/'program.py').write_text(code)
    return run_command(cwd/'program.py', *args, cwd=cwd, env=environment())

def start(*command, cwd):
    return subprocess.Popen([*map(str, command)], cwd=cwd, env=environment(), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)

def wait_for_checkpoint(folder, process):
    "Wait until a whole epoch is on disk"
    while not list((folder/'models'/'.unfinished').glob('*.pth')):
        assert process.poll() is None, process.communicate()
        time.sleep(.05)

# Several processes

SHARED = '''import json, sys, torch
from fastai.distributed import DistributedDL
from fastai.torch_core import rank_distrib
from catdog import train as t
t._load()
from catdog.learn import head
orders,get_idxs = [],DistributedDL.get_idxs
def remember_order(self):
    idxs = get_idxs(self)
    if self.dl.shuffle: orders.append(idxs)
    return idxs
DistributedDL.get_idxs = remember_order
fitted,labelled_features = [],head.labelled_features
def remember_files(learn, dset=None, which=None, on_bad=None):
    fitted.extend(str(learn.dls.train_ds.items[i]) for i in which)
    return labelled_features(learn, dset, which, on_bad)
head.labelled_features = remember_files
learn = t.train(sys.argv[1], recipe='fast', epochs=2, size=64, bs=8)
t.export(learn, 'models/shared')
torch.save(learn.model.state_dict(), f'{rank_distrib()}.pth')
result = dict(orders=orders, fitted=fitted, n=len(learn.dls.train_ds), counts=t.confusion(learn).tolist())
json.dump(result, open(f'{rank_distrib()}.json', 'w'))
'''

def test_two_processes_share_the_work(drawings, tmp_path):
    import torch
    (tmp_path/'shared.py').write_text(SHARED)
    launch = [script('accelerate'), 'launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1',
              '--main_process_port', str(free_port()),   # its own is always the same
              '--mixed_precision', 'no', '--dynamo_backend', 'no', 'shared.py', str(drawings)]
    env = {**environment(), 'ACCELERATE_USE_CPU': 'true'}   # its own --cpu starts one process only
    done = subprocess.run(launch, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('validation images (95% interval') == 1   # one of them prints
    one,two = (json.loads((tmp_path/f'{i}.json').read_text()) for i in (0, 1))
    assert len(one['orders']) == len(two['orders']) == 2   # epochs
    for a,b in zip(one['orders'], two['orders']): assert not set(a) & set(b) and set(a) | set(b) == set(range(one['n']))
    assert not set(one['fitted']) & set(two['fitted']) and len(one['fitted'] + two['fitted']) == one['n']
    a,b = (torch.load(tmp_path/f'{i}.pth', weights_only=True) for i in (0, 1))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    (_,x),(y,_) = one['counts']
    assert one['counts'] == two['counts'] and x + y <= 2   # of 8
    assert Classifier(tmp_path/'models'/'shared').labels == ['cat', 'dog']

# Stopped, killed, resumed

LONG = '''import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell that starts us in the background may ignore it
from catdog.train import export, train
learn = train(sys.argv[1], epochs=200, size=64, bs=8)
print('stopped:', learn.stopped)
export(learn, 'models/stopped')
'''

def test_ctrl_c_keeps_the_best_weights(drawings, tmp_path):
    process = start(sys.executable, '-c', LONG, drawings, cwd=tmp_path)
    wait_for_checkpoint(tmp_path, process)
    process.send_signal(signal.SIGINT)
    out,err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    assert 'Stopped. These are the best weights so far; resume=True continues' in out and 'stopped: True' in out
    meta = Classifier(tmp_path/'models'/'stopped').meta
    assert meta['size'] == 64   # and not the smaller one of the epoch in which it was stopped
    assert meta['n_wrong'] <= .25*meta['n_valid']   # not the state in the middle of a step

def test_killed_build_is_resumed(tmp_path):
    args = 'cat', 'dog', '--engine', 'sample', '--n', 20, '--epochs', 12
    first = start(script('catdog-build'), *args, *SMALL, cwd=tmp_path)
    wait_for_checkpoint(tmp_path, first)
    first.send_signal(signal.SIGKILL)
    assert first.communicate()[0].startswith('[1/4] Images of cat, dog: from the web into data/cat-dog\n')
    assert not (tmp_path/'models'/'cat-dog').exists()
    other = build(*args[:-1], 13, '--resume', cwd=tmp_path, ok=False)
    assert 'no unfinished training of these images with these settings' in other.stderr
    out = build(*args, '--resume', cwd=tmp_path).stdout
    assert 1 <= int(out.split('Resuming after epoch ')[1].split()[0]) < 12
    assert Classifier(tmp_path/'models'/'cat-dog').meta['trained_on'] == 'drawings'
    assert not list((tmp_path/'models'/'.unfinished').iterdir())   # nothing to resume any more

KILLED = '''import os, signal
from catdog import train as t
t._load()
t.export = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
t.build(['cat', 'dog'], engine='sample', n=20, size=64)
'''

def test_failed_export_is_resumed_without_training(tmp_path):
    done = run_python(KILLED, cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL and '[4/4]' in done.stdout
    checkpoint, = (tmp_path/'models'/'.unfinished').iterdir()
    out = build('cat', 'dog', '--engine', 'sample', '--n', 20, '--resume', cwd=tmp_path).stdout
    assert 'It is trained already.' in out
    error = next(o for o in done.stdout.splitlines() if 'error on' in o)
    assert error in out.splitlines()   # it is the same network
    assert Classifier(tmp_path/'models'/'cat-dog').labels == ['cat', 'dog'] and not checkpoint.exists()

def test_the_same_build_has_finished_in_the_meantime(turned, tmp_path, monkeypatch):
    from catdog.learn import export as module
    from catdog.train import export, train
    monkeypatch.chdir(tmp_path)
    learn,write = train(turned, recipe='fast', size=64),module._write_pickle
    def finished(*args):
        write(*args)
        learn.checkpoint_file.unlink()
    monkeypatch.setattr(module, '_write_pickle', finished)
    assert Classifier(export(learn, 'model')).labels == ['sideways', 'upright', 'upside down']

def test_full_disk_is_reported_and_keeps_the_checkpoint(drawings, tmp_path):
    "The model goes to a disk of one megabyte"
    (tmp_path/'disk').mkdir()
    mount = ['unshare', '-m', 'sh', '-c', 'mount -t tmpfs -o size=1m tmpfs disk && exec "$@"', 'sh']
    if subprocess.run([*mount, 'true'], cwd=tmp_path, capture_output=True).returncode:
        pytest.skip('cannot mount a small disk here')
    args = 'cat', 'dog', '--photos', drawings, '--out', 'disk/model'
    done = subprocess.run([*mount, script('catdog-build'), *map(str, args), *SMALL], cwd=tmp_path, env=environment(),
                          capture_output=True, text=True)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert 'disk/model: no model can be written there (No space left on device); run the same command with --resume' in done.stderr
    assert len(list((tmp_path/'models'/'.unfinished').iterdir())) == 1
    out = build(*args, '--resume', cwd=tmp_path).stdout   # there is room now
    assert 'It is trained already.' in out and Classifier(tmp_path/'disk'/'model').labels == ['cat', 'dog']
    assert [o.name for o in (tmp_path/'disk').iterdir()] == ['model']

# The same seed gives the same network

SEEDED = '''import hashlib, random, sys, warnings
import numpy as np, torch
warnings.filterwarnings('error', '.*shadowing')
from catdog.train import train
def digest(seed, **kw):
    learn = train(sys.argv[1], size=64, bs=8, seed=seed, **{'recipe': 'fast', 'epochs': 1, **kw})
    losses = repr([list(o) for o in getattr(learn.recorder, 'values', [])])   # the best weights may be the first ones
    weights = b''.join(o.numpy().tobytes() for o in learn.model.state_dict().values())
    return hashlib.sha256(losses.encode() + weights).hexdigest()
def seed():
    for o in (random.seed, np.random.seed, torch.manual_seed): o(int(sys.argv[2]))
def drawn(): return random.random(),np.random.rand(),torch.rand(1).item()
seed()
expected = drawn()
seed()
print(digest(1), digest(1), digest(2), digest(1, recipe='classic', arch='efficientnet_lite0'),
      digest(1, recipe='auto', epochs=4))
assert drawn() == expected   # the user's random numbers are left alone
'''

def test_the_same_seed_gives_the_same_network(drawings, tmp_path):
    "Twice in one process and in another one: split, head, order, augmentation, fine-tuning, by all recipes"
    def run(k):
        done = run_python(SEEDED, drawings, k, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.splitlines()[-1].split()
    first,second = run(1),run(2)
    assert first == second and first[0] == first[1] and len({*first}) == 4   # the first two alone are equal

# The recipe that chooses

@pytest.fixture(scope='module')
def turned(tmp_path_factory):
    "100 drawings each that are upright, upside down, and on their side"
    folder = tmp_path_factory.mktemp('turned')
    for label,angle in (('upright', 0), ('upside down', 180), ('sideways', 90)):
        (folder/label).mkdir()
        for i in range(100):
            image = draw('cat' if i % 2 else 'dog', f'{label}{i}', (64, 64)).rotate(angle if i % 4 > 1 else -angle)
            image.save(folder/label/f'{i}.png')
    return folder

def test_auto_trains_the_last_stages_and_they_are_exported(turned, tmp_path, capsys):
    import numpy as np, torch
    from catdog.core import files as core_files
    from catdog.learn.features import labelled_features
    from catdog.train import export, get_learner, train
    learn = train(turned, size=64, epochs=8)
    assert re.search(r'last stages: [\d.]+% → [\d.]+% error, \d+ s', capsys.readouterr().out)
    assert learn.tuned == 'last stages'
    first,now = (o.model[0] for o in (get_learner(learn.dls), learn))
    for part,moved in (('0.0', False), ('0.6', False), ('1.stages.1', True), ('1.stages.2', True)):
        a,b = (next(o.get_submodule(part).parameters()) for o in (first, now))
        assert torch.equal(a, b) != moved, part
    a,b = (o[1].stages[2][1].running_mean for o in (first, now))
    assert torch.equal(a, b)
    kept = labelled_features(learn)[0]   # from the feature maps
    core_files._memory.clear()
    exact = labelled_features(learn)[0]
    assert np.abs(kept - exact).max() < .01*np.abs(exact).max()
    classifier = Classifier(export(learn, tmp_path/'model'))
    with learn.no_bar(): p = learn.get_preds()[0]
    answers = classifier.predict_batch(learn.dls.valid_ds.items)
    assert all(abs(o.probabilities[o.label] - row.max()) < .01 for o,row in zip(answers, p.numpy()))

def test_auto_leaves_to_the_head_what_the_head_knows(drawings, turned, tmp_path, capsys, monkeypatch):
    "Also where there are too few images, or where there is no time for more"
    from catdog.train import train
    monkeypatch.chdir(tmp_path)
    for kw in (dict(path=drawings), dict(path=turned), dict(path=turned, epochs=5, minutes=1e-6),
               dict(path=turned, epochs=0)): train(size=64, **kw)
    out = capsys.readouterr().out
    assert out.count(' error on ') == 4 and out.count('last stages: not trained') == 1
    assert out.count('head on views: not tried') == 1 and len(re.findall('head on 4 views: .* error', out)) == 1

def test_a_head_is_kept_only_if_it_lowers_the_loss(turned, tmp_path, monkeypatch, capsys):
    "The discriminant is better here, four views are worse; the last stages start from the regression, however"
    import torch
    from catdog.learn import finetune
    from catdog.learn.head import fit_head
    from catdog.train import train
    monkeypatch.chdir(tmp_path)
    measured,losses,heads = finetune._measured,iter((1., 1., .5, .5, .6)),[]
    def copy(learn): heads.append(learn.model[1][-1].weight.detach().clone())
    def measure(learn):
        copy(learn)
        return next(losses),.25,measured(learn)[2]
    monkeypatch.setattr(finetune, '_measured', measure)
    learn = train(turned, size=64)
    copy(learn)
    regression,_,discriminant,same,views,kept = (o/o.std() for o in heads)   # it was calibrated at the end
    assert torch.equal(discriminant, same) and torch.allclose(discriminant, kept) and not torch.equal(views, kept)
    assert '4 views: no better than 25.0% error, not kept' in capsys.readouterr().out
    losses = iter((1., 1., .5))
    monkeypatch.setattr(finetune, '_try_views', lambda *args: None)
    monkeypatch.setattr(finetune, '_tune_last_stages', lambda learn, *args: copy(learn))
    train(turned, size=64, epochs=1)
    assert torch.equal(heads[-1], heads[0]) and not torch.equal(heads[-1], heads[2])

def test_minutes_end_the_last_stages(turned, tmp_path, monkeypatch, capsys):
    from catdog.learn import finetune
    from catdog.train import train
    monkeypatch.chdir(tmp_path)
    clock = itertools.count(time.monotonic(), .1)   # seconds for each look at the clock, a few times in each batch
    monkeypatch.setattr(finetune, 'time', SimpleNamespace(monotonic=lambda: next(clock)))
    train(turned, size=64, epochs=10**4, minutes=.2)
    out = capsys.readouterr().out
    assert '\nlast stages: ' in out and 'not trained' not in out

@pytest.mark.parametrize('minutes,n', [(.001, 0), (1, 256)])
def test_no_larger_body_after_the_deadline(turned, tmp_path, monkeypatch, capsys, minutes, n):
    "Nor one whose features would take too long"
    from catdog.learn import finetune
    from catdog.train import train
    monkeypatch.chdir(tmp_path)
    fit,computed,clock = finetune._fit_best_head,[],itertools.count(time.monotonic() + 30, .001)
    monkeypatch.setattr(finetune, '_fit_best_head', lambda learn: (1., .25, fit(learn)[2]))
    monkeypatch.setattr(finetune, 'image_features', lambda learn, files: computed.extend(files))
    monkeypatch.setattr(finetune, 'time', SimpleNamespace(monotonic=lambda: next(clock) + len(computed)))
    train(turned, minutes=minutes)
    said = capsys.readouterr().out
    assert 'head: 25.0% error' in said and 'efficientnet_lite2: not tried' in said and len(computed) == n

def test_stopped_before_anything_could_be_resumed(turned, tmp_path, monkeypatch):
    from fastai.learner import Learner
    from catdog.train import build
    monkeypatch.chdir(tmp_path)
    def stopped(*args, **kw): raise KeyboardInterrupt
    monkeypatch.setattr(Learner, 'fit_one_cycle', stopped)
    with pytest.raises(CatdogError, match='^stopped$'): build([], photos=turned, recipe='fast', epochs=1, size=64)

def test_many_labels_are_not_printed_as_a_matrix(tmp_path, monkeypatch, capsys):
    from types import SimpleNamespace as S
    import numpy as np
    from catdog.learn import calibration
    for n in (3, 81):
        monkeypatch.setattr(calibration, 'confusion', lambda learn: np.eye(n, dtype=int))
        calibration.print_confusion(S(dls=S(vocab=range(n), path=tmp_path)))
    three,many = capsys.readouterr().out.split('The errors of each of the ')
    assert three.startswith('truth \\ answer') and many == '81 labels are in the model card.\n'

@pytest.mark.parametrize('losses,arch,size', [((1., .8), 'efficientnet_lite2', 80), ((1., .95), 'efficientnet_lite0', 64)])
def test_larger_body_is_kept_only_if_it_lowers_the_loss(losses, arch, size, turned, tmp_path, monkeypatch, capsys):
    import torch
    from catdog.learn import backbones, finetune
    from catdog.train import export, train
    monkeypatch.chdir(tmp_path)
    find,fit,left = finetune.find_arch,finetune._fit_best_head,[*losses]
    for o in (backbones, finetune):
        monkeypatch.setattr(o, 'find_arch', lambda name: find(name)._replace(size=80 if '2' in name else 64))
    monkeypatch.setattr(finetune, '_fit_best_head', lambda learn: (left.pop(0), .25, fit(learn)[2]))
    learn = train(turned)
    assert (learn.arch_name, left) == (arch, [])
    assert ('efficientnet_lite2: 25.0% → 25.0%' in (out := capsys.readouterr().out)) == (size == 80), out
    again = train(turned, resume=True)   # it is not trained again, or `_fit_best_head` would fail
    assert (again.arch_name, again.tuned) == (arch, learn.tuned)
    assert all(map(torch.equal, again.model.state_dict().values(), learn.model.state_dict().values()))
    classifier = Classifier(export(learn, 'model'))
    assert (classifier.meta['size'], classifier.meta['arch']) == (size, arch)
    with learn.no_bar(): p = learn.get_preds()[0]
    answers = classifier.predict_batch(learn.dls.valid_ds.items)
    assert all(abs(o.probabilities[o.label] - row.max()) < .01 for o,row in zip(answers, p))

# Wrong arguments are reported before anything is searched or written

@pytest.mark.parametrize('args,words', [
    (dict(out='a file'), 'a file is a file'), (dict(out='a file/model'), 'no model can be written there'),
    (dict(out='/proc/model'), 'no model can be written there'), (dict(labels=['cat']), 'two labels or more'),
    (dict(labels='cat'), 'two labels or more'), (dict(labels=['cat', 'cat']), 'given twice'),
    (dict(labels=['cat', 'cat'], photos='mine'), 'two labels or more'),
    *[(dict(size=o), '32 to 2048') for o in (8, -5, 0, 31, 10**6)], (dict(epochs=-1), '0 or more'),
    (dict(minutes=0), 'above 0'), (dict(minutes=-1), 'above 0'), (dict(recipe='best'), "'auto', 'fast', 'classic'"),
    (dict(arch='resnet19'), 'unknown architecture'),
    (dict(n=0), 'n is 0'), (dict(photos='nowhere'), 'no such folder'), (dict(photos='mine', path='data/x'), 'give either photos'),
    (dict(photos='mine', also='mine'), 'left unchanged'), (dict(also='nowhere'), 'no such folder'),
    (dict(photos='mine', labels=['cat', 'cow']), "no folder 'cow'"),
    (dict(labels=['cat', 'a/b']), 'cannot be the name'), (dict(engine='altavista'), 'no engine'),
    (dict(n=4), 'n is 4: a label needs 5'), (dict(photos='mine', n=1), 'n is 1: a label needs 5'),
    (dict(photos='mine', out='mine'), 'inside the folder of images'), (dict(photos='./mine/', out='mine/cat/m'),
        'inside the folder of images'),
    (dict(path='data/x', out='data/../data/x/m'), 'inside the folder of images')])
def test_wrong_arguments_of_a_build(args, words, tmp_path, monkeypatch):
    from catdog.train import build
    monkeypatch.chdir(tmp_path)
    (tmp_path/'a file').touch()
    for label in ('cat', 'dog'):
        (tmp_path/'mine'/label).mkdir(parents=True)
        (tmp_path/'mine'/label/'1.jpg').touch()
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(CatdogError, match=words): build(**{'labels': ['cat', 'dog'], 'engine': 'sample', **args})
    assert sorted(tmp_path.rglob('*')) == before

def test_images_of_another_data_set_are_trained_on_too(tmp_path, monkeypatch):
    "Those of the labels that were asked for, copied before the training"
    monkeypatch.chdir(tmp_path)
    for label in ('cat', 'bird'):
        (tmp_path/'kept'/label).mkdir(parents=True)
        draw('cat', label).save(tmp_path/'kept'/label/'1.jpg')
    def scraped(labels, path, *args, **kw):
        for o in labels:
            (path/o).mkdir(parents=True)
            for i in range(5): draw(o, i).save(path/o/f'new{i}.jpg')
    monkeypatch.setattr('catdog.scrape.scrape', scraped)
    class Trained(Exception): pass
    def trains(path, *args, **kw): raise Trained(*(o.relative_to(path).as_posix() for o in path.rglob('*.jpg')))
    monkeypatch.setattr('catdog.train.train', trains)
    from catdog.train import build
    with pytest.raises(Trained) as e: build(['cat', 'dog'], engine='sample', also='kept')
    assert sorted(o for o in e.value.args if 'new' not in o) == ['cat/1.jpg']

def test_vision_learner_arguments_are_used_or_refused(drawings, monkeypatch):
    from fastai.metrics import accuracy
    from torch import nn
    from catdog.learn import backbones
    from catdog.train import train
    learn = train(drawings, size=64, bs=8, metrics=[accuracy], concat_pool=False, ps=.2)
    assert [o.name for o in learn.metrics] == ['accuracy']
    assert isinstance(learn.model[1][0], nn.AdaptiveAvgPool2d) and learn.model[1][3].p == .2
    monkeypatch.setattr(backbones, '_pip_weights', lambda backbone: pytest.fail('asked for weights'))
    train(drawings, size=64, bs=8, pretrained=False)
    with pytest.raises(CatdogError, match='leave out lin_ftrs'): train(drawings, size=64, lin_ftrs=[64])
    kw = dict(metrics=[accuracy], ps=.2, lin_ftrs=[64], pretrained=False, arch='efficientnet_lite0', epochs=1)
    learn = train(drawings, size=64, bs=8, recipe='classic', **kw)
    assert [o.out_features for o in learn.model[1] if isinstance(o, nn.Linear)] == [64, 2]
    assert learn.recorder.metric_names[3] == 'accuracy' and learn.model[1][-2].p == .2

@pytest.mark.parametrize('damaged', [b'', b'<html>Not found</html>', b'PK\x03\x04' + bytes(5000)])
def test_damaged_weights_are_named(damaged, tmp_path, monkeypatch):
    from torchvision.models import SqueezeNet1_0_Weights
    from catdog.learn.backbones import _check_weights, find_arch
    file = tmp_path/'hub'/'checkpoints'/Path(SqueezeNet1_0_Weights.DEFAULT.url).name
    file.parent.mkdir(parents=True)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    file.write_bytes(damaged)
    with pytest.raises(CatdogError, match=f'{file.name}.*delete the file'): _check_weights(find_arch('squeezenet1_0'))

# Model cards

def test_uneven_labels_have_separate_errors(tmp_path):
    for label,n in (('cat', 120), ('dog', 6)):
        (tmp_path/'mine'/label).mkdir(parents=True)
        for i in range(n): draw('dog', f'{label}{i}', (90, 70)).save(tmp_path/'mine'/label/f'{i}.jpg')   # all are alike
    out = build('cat', 'dog', '--photos', 'mine', cwd=tmp_path).stdout
    card,meta = (tmp_path/'models'/'cat-dog'/'model_card.md').read_text(),Classifier(tmp_path/'models'/'cat-dog').meta
    assert [sum(o) for o in meta['confusion']] == [24, 1] and meta['n_train'] == 101
    (a,b),(c,d) = meta['confusion']
    balanced = (b/24 + c)/2
    assert meta['balanced_error'] == pytest.approx(balanced, abs=1e-4)
    assert meta['error'] == pytest.approx((b + c)/25, abs=1e-4)
    for text in (out, card):
        assert f'{balanced:.1%} balanced error' in text
    assert f'{c:.1%} error on 1 images (95% interval' in out and f'{b/24:.1%} error on 24 images (95%' in out
    assert f'{1 - b/24:.1%} (' in card and f'| {1 - c:.1%} (' in card   # recall
    assert 'the interval is wide' in card   # 25 images

def test_model_of_random_labels_is_never_sure(tmp_path):
    from catdog.train import export, train
    things = 'cat', 'dog', 'house', 'tree', 'fish'
    for i in range(250):
        folder = tmp_path/'mine'/f'label {i*7919 % 10}'
        folder.mkdir(parents=True, exist_ok=True)
        draw(things[i//10 % 5], i, (80, 80)).save(folder/f'{i}.jpg')
    classifier = Classifier(export(train(tmp_path/'mine', size=64), tmp_path/'model'))
    assert classifier.meta['error'] > .8
    answers = classifier.predict_batch([draw(things[i % 5], 1000 + i, (80, 80)) for i in range(50)])
    assert sum(o.sure for o in answers) <= 1
    card = (tmp_path/'model'/'model_card.md').read_text()
    assert 'sure of nothing' in classifier.summary and 'sure of nothing' in card

def test_sure_answers_are_80_percent_right(tmp_path):
    "Cats and dogs, a third of them in the wrong folder"
    from catdog.train import export, train
    mine = write_drawings(tmp_path/'mine', 45, 500, lambda i: (160, 120))
    for i in range(0, 45, 3):
        for a,b in (('cat', 'dog'), ('dog', 'cat')): (mine/a/f'{i}.png').rename(mine/b/f'wrong{i}.png')
    learn = train(mine, size=64, bs=16, valid_pct=.4)
    classifier = Classifier(export(learn, tmp_path/'model'))
    files = learn.dls.valid_ds.items
    sure = [o.label == f.parent.name for o,f in zip(classifier.predict_batch(files), files) if o.sure]
    assert sum(sure) >= .8*len(sure) and len(sure) < len(files) and classifier.meta['error'] > .1

def test_odd_labels_in_the_card(tmp_path):
    "As folders, into the metadata, the tables of the card as Markdown shows them, and the printed one"
    import mistune
    labels = ['a|b', '*c*', '_d_ e', '<b>f', '"g", h', '\U0001f408', '\u05db\u05dc\u05d1', '$x$ `y`', '[z](w)']
    for i,label in enumerate(labels):
        (tmp_path/'mine'/label).mkdir(parents=True)
        for k in range(5 if i else 9): draw('cat', 50*i + k, (70, 60)).save(tmp_path/'mine'/label/f'{k}.png')
    out = build(*labels, '--photos', 'mine', '--out', 'model', cwd=tmp_path).stdout
    assert all(o in out for o in labels) and Classifier(tmp_path/'model').labels == sorted(labels)
    def _below(o): return [o, *(x for c in o.get('children', []) for x in _below(c))]
    parse = mistune.create_markdown(renderer=None, plugins=['table', 'strikethrough', 'url'])
    nodes = [x for o in parse((tmp_path/'model'/'model_card.md').read_text()) for x in _below(o)]
    cells = [''.join(x.get('raw', '') for x in _below(o)) for o in nodes if o['type'] == 'table_cell']
    assert all(cells.count(o) == 2 for o in labels)   # a row and a column of the table
    kinds = {o['type'] for o in nodes if o.get('raw') and any(c in o['raw'] for c in '|*<>$[]`')}
    assert kinds <= {'text', 'codespan'}
    assert not {'emphasis', 'link', 'inline_html', 'block_html'} & {o['type'] for o in nodes}

@pytest.mark.skipif(sys.platform != 'linux', reason='GNU OpenMP shows its settings')
def test_threads_that_wait_do_not_spin():
    "Spinning makes training ten times slower where other processes keep the cores busy"
    env = {k: v for k,v in os.environ.items() if k != 'OMP_WAIT_POLICY'} | {'OMP_DISPLAY_ENV': 'verbose'}
    shown = subprocess.run([sys.executable, '-c', 'import catdog.train, torch'], env=env, capture_output=True, text=True)
    assert "GOMP_SPINCOUNT = '0'" in shown.stderr
