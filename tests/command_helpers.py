"""Run a command in a process of its own, which has the imports done already.

Python starts and imports torch and fastai once for all of them; each command then runs in a fork of that process.
"""
import multiprocessing, os, runpy, subprocess, sys, tempfile
from pathlib import Path

SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['catdog.data', 'catdog.learn.export', 'catdog.learn.finetune', 'catdog.review'])

def _run(script, args, cwd, env, out, err):
    multiprocessing.set_start_method('fork', force=True)   # for the workers of data loaders, as in a process of its own
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for stream,fd,file in (('stdout', 1, out), ('stderr', 2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), fd)
        setattr(sys, stream, open(fd, 'w', closefd=False))
    sys.argv = [script, *args]
    runpy.run_path(script, run_name='__main__')

def run_command(name, *args, cwd, env=os.environ, timeout=500):
    "Return what `subprocess.run` would for the command `name`, or for the Python file at that path"
    script,args = str(name if Path(name).is_absolute() else Path(sys.executable).with_name(name)),list(map(str, args))
    with tempfile.NamedTemporaryFile('r+') as out, tempfile.NamedTemporaryFile('r+') as err:
        process = SERVER.Process(target=_run, args=(script, args, str(cwd), dict(env), out.name, err.name))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired([script, *args], timeout)
        return subprocess.CompletedProcess([script, *args], process.exitcode, out.read(), err.read())
