"""From the prompt to the model folder, with another release beside this one, alternating.

    git worktree add ../old v0.1.0
    python bench/build.py ../old                 # all of it, three times each: about 12 minutes
    python bench/build.py ../old photos help -n 1

    photos   1,000 photographs: with an empty cache, when the graph of the network is cached, and the same again
    few      80 photographs, the same
    help     catdog-build --help
    output   until catdog-build prints something
    load     features of 100 photographs while two other programs keep both cores busy

Needs a folder of photographs (CATDOG_SHARED, or ../shared beside the project) with photos/web/{cat,dog}.
"""
import os, resource, shutil, statistics, subprocess, sys, tempfile, time
from argparse import ArgumentParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = Path(os.environ.get('CATDOG_SHARED', ROOT.parent/'shared'))/'photos'/'web'
BUILD = Path(sys.executable).with_name('catdog-build')
FEATURES = '''import sys, time
from catdog.data import get_dls
from catdog.train import get_learner
from catdog.learn import features
learn = get_learner(get_dls(sys.argv[1], 224))
files = [*learn.dls.train_ds.items, *learn.dls.valid_ds.items]
start = time.monotonic()
(getattr(features, 'image_features', None) or features.picture_features)(learn, files)   # an older name
print('seconds', time.monotonic() - start)'''

def some(folder, n):
    "Copy `n` photographs of each label into `folder`"
    for label in ('cat', 'dog'):
        (folder/label).mkdir(parents=True)
        for f in sorted((PHOTOS/label).iterdir())[:n]: shutil.copy(f, folder/label)
    return folder

def start(root, cache, *args, cwd):
    "Start a program with the catdog in `root`"
    env = {**os.environ, 'PYTHONPATH': str(root), 'TORCH_HOME': str(cache), 'PYTHONUNBUFFERED': '1'}
    return subprocess.Popen([*map(str, args)], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

def seconds(case, root, cache, folder):
    "Seconds that `case` takes with the catdog in `root`"
    with tempfile.TemporaryDirectory() as cwd:
        if case == 'load':
            busy = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(2)]
            try: out = start(root, cache, sys.executable, '-W', 'ignore', '-c', FEATURES, folder/'100', cwd=cwd).communicate()[0]
            finally:
                for o in busy: o.kill()
            return float(out.split()[-1])
        photos = folder/'80' if case in ('few', 'output') else PHOTOS
        args = ['--help'] if case == 'help' else ['cat', 'dog', '--photos', photos, '--out', 'model']
        began = time.monotonic()
        process = start(root, cache, BUILD, *args, cwd=cwd)
        if case == 'output':
            process.stdout.read(1)
            took = time.monotonic() - began
            process.kill()
        process.communicate()
        if case == 'output': return took
        assert not process.returncode and (case == 'help' or (Path(cwd)/'model'/'model.onnx').exists()), case
        return time.monotonic() - began

def used():
    "Processor time of the programs that have ended, in seconds"
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])

def show(what, *rows):
    (old,old_cpu),(new,new_cpu) = ([statistics.median(k) for k in zip(*o)] for o in rows)
    print(f'{what:19} {old:6.2f} s, now {new:6.2f} s: {new/old:.2f} of it '
          f'(of the processors {old_cpu:.1f} s, now {new_cpu:.1f} s)', flush=True)

def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('old', type=Path)
    parser.add_argument('cases', nargs='*', default=['photos', 'few', 'help', 'output', 'load'])
    parser.add_argument('-n', type=int, default=3)
    args = parser.parse_args()
    print('load average', *os.getloadavg())
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        some(folder/'80', 40), some(folder/'100', 50)
        roots = dict(old=args.old.resolve(), new=ROOT)
        for case in args.cases:
            def measure(name):
                before = used()
                return seconds(case, roots[name], folder/name/case, folder),used() - before
            if case in ('photos', 'few', 'load'):   # the first of these fills the caches
                first = [[measure(k)] for k in roots]
                if case != 'load': show(f'{case}, empty cache', *first)
            took = []   # of the old, of the new, of the new about images that it knows: (seconds, of the processors)
            for _ in range(args.n):
                took.append([measure('old')])
                for o in (folder/'new'/case).glob('hub/catdog/results.*'): o.unlink()
                took[-1].append(measure('new'))
                if case in ('photos', 'few'): took[-1].append(measure('new'))
            old,new,*again = zip(*took)
            show(case, old, new)
            if again: show(f'{case}, again', old, *again)

if __name__ == '__main__': main()
