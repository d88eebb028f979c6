"""Run notebooks and save what they print: python .ci/notebooks.py [NOTEBOOK ...], by default all of them.

Each runs in a fresh kernel as `nbdev-test` runs it: its images are drawn, its files lie in a temporary folder.
tests/test_outputs.py runs them in the same way, and fails where they say something else than what is saved.
"""
import os, re, subprocess, sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(o for o in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)

def is_noise(output):
    "Is `output` a progress bar, or a warning from a library about itself?"
    text = output.get('text', '') + output.get('data', {}).get('text/plain', '')
    return bool(re.search(r'\d%\|', text) or output.get('name') == 'stderr' and '/site-packages/' in text)

def joined(outputs):
    "`outputs` without noise, and with what is printed piece by piece in one piece"
    res = []
    for o in outputs:
        if is_noise(o): continue
        if res and o.output_type == 'stream' == res[-1].output_type and o.name == res[-1].name: res[-1].text += o.text
        else: res.append(o)
    return res

def run(path):
    "The notebook at `path`, executed; an error in a cell is raised"
    nb = nbformat.read(path, as_version=4)
    env = {**os.environ, 'IN_TEST': '1', 'CATDOG_ENGINE': 'sample'}
    client = NotebookClient(nb, timeout=600, kernel_name='python3', store_widget_state=False,
                            extra_arguments=['--IPKernelApp.log_level=ERROR'],
                            resources={'metadata': {'path': str(path.parent)}})
    client.execute(env=env)
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.outputs = joined(cell.outputs)
    return nb

def save(path):
    "Execute the notebook at `path`, and save its outputs in it as `nbdev-clean` leaves them"
    nbformat.write(run(path), path)
    subprocess.run([Path(sys.executable).with_name('nbdev-clean'), '--fname', path], cwd=ROOT, check=True)

if __name__ == '__main__':
    for path in map(Path, sys.argv[1:] or NOTEBOOKS):
        print(path, flush=True)
        save(path.resolve())
