"What holds for every notebook and module: documented, importing in one direction, with nothing of this machine in it."
import ast, importlib, inspect, json, re
from pathlib import Path

import pytest
from fastcore.docments import docments

root = Path(__file__).resolve().parent.parent
notebooks = sorted((root/'nbs').glob('*.ipynb'))
# What each room may import of the others and of the heavy libraries; the design's one direction
ROOMS = dict(images='', sample='images', scrape='images sample', data='images scrape fastai torch',
             train='images data scrape sample fastai torch', review='images data scrape train fastai torch',
             predict='images', serve='images predict', app='images predict sample')

def imported(module):
    "Names of the rooms of catdog, and whether torch and fastai, that `module` imports, at the top or within functions"
    for node in ast.walk(ast.parse((root/'catdog'/f'{module}.py').read_text(encoding='utf8'))):
        if isinstance(node, ast.ImportFrom) and node.level == 1: yield (node.module or node.names[0].name).split('.')[0]
        elif isinstance(node, ast.ImportFrom): yield node.module.removeprefix('catdog.').split('.')[0]
        elif isinstance(node, ast.Import): yield from (o.name.removeprefix('catdog.').split('.')[0] for o in node.names)

@pytest.mark.parametrize('module', ROOMS)
def test_imports_run_in_one_direction(module):
    seen = set(imported(module)) & {*ROOMS, 'torch', 'fastai', 'torchvision'} - {module}
    assert seen <= set(ROOMS[module].split())

def public(module):
    "The public functions and classes of a module with their names"
    mod = importlib.import_module(f'catdog.{module}')
    for name in mod.__all__:
        o = getattr(mod, name)
        if (inspect.isfunction(o) or inspect.isclass(o)) and o.__module__ == mod.__name__: yield name,o

@pytest.mark.parametrize('module', ROOMS)
def test_what_is_public_is_documented(module):
    for name,o in public(module):
        assert inspect.getdoc(o), f'{name} has no docstring'
        if inspect.isclass(o) and '__init__' not in vars(o): continue
        missing = [k for k,v in docments(o, full=True, returns=False).items()   # it reads no comment on **kw
                   if not v.docment and k != 'self' and v.kind is not inspect.Parameter.VAR_KEYWORD]
        assert not missing, f'{name} does not say what {missing} are'

@pytest.mark.parametrize('path', notebooks, ids=[o.stem for o in notebooks])
def test_saved_outputs_are_about_the_project_alone(path):
    "No path of the machine that ran it and no error"
    for cell in json.loads(path.read_text(encoding='utf8'))['cells']:
        for output in cell.get('outputs', []):
            assert output['output_type'] != 'error', output
            text = json.dumps({k: v for k,v in output.get('data', output).items() if not k.startswith('image/')})
            assert not re.search(r'site-packages|/home/|/root/|/tmp/|/work/|\\\\Users\\\\', text), text[:500]

@pytest.mark.parametrize('path', notebooks, ids=[o.stem for o in notebooks])
def test_every_exported_cell_is_introduced_and_shown(path):
    "No two exported cells follow each other with neither a sentence nor a cell that shows what the first one does"
    cells = [o for o in json.loads(path.read_text(encoding='utf8'))['cells'] if ''.join(o['source']).strip()]
    exported = [''.join(o['source']).startswith('#| export') for o in cells]
    assert not any(a and b for a,b in zip(exported, exported[1:]))
