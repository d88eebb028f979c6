"Training that is shared out, stopped, killed and gone on with: real processes and real signals"
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest

from catdog.predict import Classifier

def script(name): return str(Path(sys.executable).with_name(name))
def environment(): return {**os.environ, 'OMP_NUM_THREADS': '1'}

@pytest.fixture(scope='module')
def drawings(tmp_path_factory):
    "60 drawings each of cats and dogs"
    from catdog.core.drawing import draw
    folder = tmp_path_factory.mktemp('drawings')
    for label in ('cat', 'dog'):
        (folder/label).mkdir()
        for i in range(60): draw(label, 500 + i, (160, 120)).save(folder/label/f'{i}.png')
    return folder

SHARED = '''import json, sys, torch
from fastai.distributed import DistributedDL
from fastai.torch_core import rank_distrib
from catdog import train as t
from catdog.learn import learner
orders,get_idxs = [],DistributedDL.get_idxs
def _remember(self):
    idxs = get_idxs(self)
    if self.dl.shuffle: orders.append(idxs)
    return idxs
DistributedDL.get_idxs = _remember
fitted,training_views = [],learner._training_views
def _views(learn, augmented):
    views = training_views(learn, augmented)
    fitted.extend(map(str, views[0].items))
    return views
learner._training_views = _views
learn = t.train(sys.argv[1], 'squeezenet1_0', epochs=2, size=64, bs=16)
t.export(learn, 'models/shared')
torch.save(learn.model.state_dict(), f'{rank_distrib()}.pth')
counts = t.confusion(learn).tolist()
result = dict(orders=orders, fitted=fitted, n=len(learn.dls.train_ds), counts=counts)
json.dump(result, open(f'{rank_distrib()}.json', 'w'))
'''

def test_two_processes_share_the_work_and_agree(drawings, tmp_path):
    import torch
    from catdog.train import error_interval, train
    (tmp_path/'shared.py').write_text(SHARED)
    launch = [script('accelerate'), 'launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1',
              '--mixed_precision', 'no', '--dynamo_backend', 'no', 'shared.py', str(drawings)]
    env = {**environment(), 'ACCELERATE_USE_CPU': 'true'}   # its own --cpu starts one process only
    done = subprocess.run(launch, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('validation pictures (95% interval') == 1   # one of them speaks
    first,second = (json.loads((tmp_path/f'{i}.json').read_text()) for i in (0, 1))
    assert len(first['orders']) == len(second['orders']) == 2   # epochs
    for a,b in zip(first['orders'], second['orders']):
        assert not set(a) & set(b) and set(a) | set(b) == set(range(first['n']))
    assert not set(first['fitted']) & set(second['fitted']) and len(first['fitted'] + second['fitted']) == first['n']
    a,b = (torch.load(tmp_path/f'{i}.pth', weights_only=True) for i in (0, 1))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert first['counts'] == second['counts']
    assert Classifier(tmp_path/'models'/'shared').labels == ['cat', 'dog']
    def wrong(counts): return counts[0][1] + counts[1][0]
    from catdog.train import confusion
    alone = confusion(train(drawings, 'squeezenet1_0', epochs=2, size=64, bs=16)).tolist()
    n = sum(map(sum, alone))
    _,low,high = error_interval(wrong(alone), n)
    assert low <= wrong(first['counts'])/n <= high

LONG = '''import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell that starts us in the background may ignore it
from catdog.train import export, train
learn = train(sys.argv[1], 'squeezenet1_0', epochs=200, size=64, bs=16)
print('stopped:', learn.stopped)
export(learn, 'models/stopped')
'''

def wait_for_checkpoint(folder, process):
    "Wait until a whole epoch is on the disk"
    while not list((folder/'models'/'.unfinished').glob('*.pth')):
        assert process.poll() is None, process.communicate()
        time.sleep(.05)

def test_ctrl_c_leaves_the_best_weights(drawings, tmp_path):
    process = subprocess.Popen([sys.executable, '-c', LONG, str(drawings)], cwd=tmp_path, env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(tmp_path, process)
    process.send_signal(signal.SIGINT)
    out,err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    assert 'Stopped. These are the best weights so far; resume=True goes on' in out and 'stopped: True' in out
    meta = Classifier(tmp_path/'models'/'stopped').meta
    assert meta['size'] == 64   # and not the smaller one of the epoch in which it was stopped
    assert meta['n_wrong'] <= .25*meta['n_valid']   # not the state in the middle of a step, nor the beginning

def test_a_killed_build_is_resumed(tmp_path):
    build = [script('catdog-build'), 'cat', 'dog', '--engine', 'sample', '--n', '30', '--arch', 'squeezenet1_0',
             '--size', '64', '--epochs', '12']
    first = subprocess.Popen(build, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True)
    wait_for_checkpoint(tmp_path, first)
    first.send_signal(signal.SIGKILL)
    out = first.communicate()[0]
    assert out.startswith('Loading torch and fastai\n')
    assert not (tmp_path/'models'/'animals').exists()
    kw = dict(cwd=tmp_path, env=environment(), capture_output=True, text=True)
    other = subprocess.run([*build[:-1], '13', '--resume'], **kw)
    assert other.returncode == 2 and 'no unfinished training of these pictures with these settings' in other.stderr
    second = subprocess.run([*build, '--resume'], **kw)
    assert second.returncode == 0, second.stderr[-3000:]
    went_on = int(second.stdout.split('Going on after epoch ')[1].split()[0])
    assert 1 <= went_on < 12
    assert Classifier(tmp_path/'models'/'animals').meta['trained_on'] == 'drawings'
    assert not list((tmp_path/'models'/'.unfinished').iterdir())   # done: nothing to go on with
