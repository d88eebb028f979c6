"""Execute notebooks and save their outputs: python .ci/notebooks.py [NOTEBOOK ...]; default: all of them.

Each runs in an empty folder and in its own kernel, forked from a process that has already imported torch and fastai.
tests/test_outputs.py executes them in the same way and fails where outputs differ from the saved ones.
"""
import base64, io, multiprocessing, os, re, subprocess, sys, time
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(o for o in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)

def is_noise(output):
    "Whether `output` is a progress bar or what clears one, or a warning of a library about itself"
    text = output.get('text', '') + output.get('data', {}).get('text/plain', '')
    return bool(re.search(r'\d%\|', text) or
                output.get('name') == 'stderr' and ('/site-packages/' in text or not text.strip()))

def joined(outputs):
    "Return `outputs` without noise, with consecutive printed outputs joined"
    res = []
    for o in outputs:
        if is_noise(o): continue
        if res and o.output_type == 'stream' == res[-1].output_type and o.name == res[-1].name: res[-1].text += o.text
        else: res.append(o)
    return res

def smaller(outputs, source):
    "Return `outputs` of the cell `source` for saving: figures in 256 colours, and no photographs of unknown licence"
    for o in outputs:
        data = o.get('data', {})
        if re.search('fastbook|image_cat|image_bear', source):
            for kind in ('image/png', 'image/jpeg'): data.pop(kind, None)
        if 'image/png' in data:
            img = Image.open(io.BytesIO(base64.b64decode(data['image/png']))).convert('RGB').quantize(256)
            img.save(f := io.BytesIO(), 'PNG', optimize=True)
            data['image/png'] = base64.b64encode(f.getvalue()).decode()
    return outputs

def image_widget(im, *args, **kwargs):
    "Return an image as a widget; fastai's `widget` shows it in an Output, for which nbclient may wait forever"
    from ipywidgets import Image
    im.convert('RGB').save(f := io.BytesIO(), 'JPEG')
    return Image(value=f.getvalue(), format='jpeg')

SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['fastai.vision.all', 'timm', 'sklearn.linear_model', 'ipykernel.kernelapp', 'ipywidgets'])

def _kernel(argv, cwd, env):
    "Start an IPython kernel in this process, as `python -m ipykernel_launcher` does"
    from ipykernel.kernelapp import launch_new_instance
    import fastai.callback.progress, fastai.learner, fastai.vision.widgets, matplotlib, pandas as pd
    from fastprogress import fastprogress
    # they have been imported outside of a kernel: say what they would have found out in one
    for o in (fastai.callback.progress, fastai.learner):
        o.master_bar,o.progress_bar = fastprogress.NBMasterBar,fastprogress.NBProgressBar
    fastai.vision.widgets.widget = image_widget
    pd.set_option('display.max_columns', 20)
    matplotlib.rcParams['backend'] = 'module://matplotlib_inline.backend_inline'
    os.setsid()   # a process group of its own, which is killed with the kernel
    multiprocessing.current_process()._config['daemon'] = False   # or data loaders could not start worker processes
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:] = [o for o in sys.path if o != str(ROOT/'.ci')]
    sys.argv = ['ipykernel_launcher', *argv]
    with open(os.devnull, 'w') as sys.__stdout__: launch_new_instance(argv)   # it prints how to stop it

class ForkedKernel:
    "A `Popen` as `jupyter_client.launch_kernel` returns it, for a forked kernel"
    stdin = stdout = stderr = None
    def __init__(self, cmd, cwd=None, env=None, **kwargs):
        self.process = SERVER.Process(target=_kernel, args=(cmd[cmd.index('ipykernel_launcher') + 1:], cwd, env), daemon=True)
        self.process.start()
        while self.process.is_alive() and os.getpgid(self.process.pid) != self.process.pid: time.sleep(.01)
        self.pid,self.kill,self.terminate = self.process.pid,self.process.kill,self.process.terminate
    def poll(self): return self.process.exitcode
    def wait(self): return self.process.join() or self.process.exitcode
    def send_signal(self, signum): os.kill(self.pid, signum)

def run(path):
    "Execute the notebook at `path` and return it; raise the error of a cell"
    nb = nbformat.read(path, as_version=4)
    env = {**os.environ, 'IN_TEST': '1', 'CATDOG_ENGINE': 'sample'}
    with (TemporaryDirectory(ignore_cleanup_errors=True) as folder,
          patch('jupyter_client.provisioning.local_provisioner.launch_kernel', ForkedKernel)):
        NotebookClient(nb, timeout=600, iopub_timeout=120, kernel_name='python3', store_widget_state=False,
                       extra_arguments=['--IPKernelApp.log_level=ERROR'],
                       resources={'metadata': {'path': folder}}).execute(env=env)
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.outputs = joined(cell.outputs)
    return nb

def save(path):
    "Execute the notebook at `path`, and save its outputs in it as `nbdev-clean` leaves them"
    nb = run(path)
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.outputs = smaller(cell.outputs, cell.source)
    nbformat.write(nb, path)
    subprocess.run([Path(sys.executable).with_name('nbdev-clean'), '--fname', path], cwd=ROOT, check=True)

if __name__ == '__main__':
    for path in map(Path, sys.argv[1:] or NOTEBOOKS):
        print(path, flush=True)
        save(path.resolve())
