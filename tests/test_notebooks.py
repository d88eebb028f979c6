"Rules for every module and notebook: the direction of imports, documentation, house style, a documentation that builds."
import ast, importlib, inspect, json, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest
from fastcore.docments import docments

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(o for o in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)
MODULES = {'.'.join(o.relative_to(ROOT/'catdog').with_suffix('').parts): o
           for o in (ROOT/'catdog').rglob('*.py') if not o.name.startswith('_')}
CHAPTERS = 'scrape', 'data', 'train', 'review', 'predict', 'serve', 'app'
# Which folders the modules of a folder may import, besides their own
MAY_IMPORT = {
    'core': (), 'sample': ('core',), 'dataset': ('core',), 'web': ('core', 'dataset', 'sample'),
    'learn': ('core', 'dataset'), 'clean': ('core', 'dataset', 'learn'), 'deploy': ('core', 'sample')}
WITHOUT_TORCH = 'core', 'dataset', 'web', 'sample', 'deploy', 'predict', 'serve', 'app'

def imports(name):
    "Yield modules that `name` imports, at the top or inside functions"
    package = ('catdog.' + name).split('.')[:-1]
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding='utf8'))):
        if isinstance(node, ast.Import): yield from (o.name for o in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            module = '.'.join([*base, *filter(None, [node.module])])
            yield from (f'{module}.{o.name}' if f'{module}.{o.name}'.removeprefix('catdog.') in MODULES else module
                        for o in node.names)

def own_imports(name):
    "Modules of catdog that `name` imports"
    return {o.removeprefix('catdog.') for o in imports(name) if o.startswith('catdog.')}

def may_import(a, b):
    "Whether the module `a` may import the module `b`"
    if '.' not in a: return '.' in b or CHAPTERS.index(b) < CHAPTERS.index(a)
    if '.' not in b: return False
    a,b = a.split('.')[0],b.split('.')[0]
    return b == a or b in MAY_IMPORT[a]

@pytest.mark.parametrize('a, b', [
    ('core.images', 'web.http'), ('web.http', 'learn.head'), ('deploy.server', 'web.http'), ('learn.head', 'clean.report'),
    ('learn.export', 'sample.draw'), ('web.http', 'scrape'), ('data', 'train')])
def test_import_rule(a, b): assert not may_import(a, b) and may_import(a, 'core.files')

@pytest.mark.parametrize('name', MODULES)
def test_imports_run_in_one_direction(name): assert not [o for o in own_imports(name) if not may_import(name, o)]

def test_no_circular_imports():
    todo = {o: own_imports(o) for o in MODULES}
    while free := [o for o in todo if not todo[o] & set(todo) - {o}]:
        for o in free: del todo[o]
    assert not todo

@pytest.mark.parametrize('name', [o for o in MODULES if o.split('.')[0] in WITHOUT_TORCH])
def test_serving_does_not_import_torch(name):
    assert not {o.split('.')[0] for o in imports(name)} & {'torch', 'torchvision', 'fastai', 'fastbook', 'timm'}

def public(name):
    "Public functions and classes defined in the module `name`"
    mod = importlib.import_module(f'catdog.{name}')
    for k,o in vars(mod).items():
        if not k.startswith('_') and (inspect.isfunction(o) or inspect.isclass(o)) and o.__module__ == mod.__name__: yield k,o

def undocumented(f):
    "Parameters of `f` without a comment"
    return [p for p,v in docments(f, full=True, returns=False).items()
            if not v.docment and p not in ('self', 'cls') and not p.startswith('_')
            and v.kind is not inspect.Parameter.VAR_KEYWORD]

def returns_a_value(f):
    "Whether the function `f` itself returns or yields a value"
    def own(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.ClassDef, ast.Lambda)): continue
            yield child
            yield from own(child)
    return any(isinstance(o, (ast.Return, ast.Yield, ast.YieldFrom)) and o.value is not None
               for o in own(ast.parse(inspect.getsource(f)).body[0]))

@pytest.mark.parametrize('name', MODULES)
def test_public_names_are_documented(name):
    for k,o in public(name):
        assert inspect.getdoc(o), f'{k} has no docstring'
        if inspect.isfunction(o):
            assert not undocumented(o), f'{k} does not document {undocumented(o)}'
            if returns_a_value(o):
                said = re.search(r'^\).*: *# *\S', inspect.getsource(o), re.M)
                assert said or 'return' in inspect.get_annotations(o), f'{k} does not say what it returns'
            continue
        for m,f in vars(o).items():
            f = getattr(f, '__func__', f)
            if not inspect.isfunction(f) or f.__module__ != o.__module__ or m.startswith('_') and m != '__init__': continue
            if m == '__init__' and hasattr(o, '__dataclass_fields__'): continue
            assert m == '__init__' or inspect.getdoc(f) or f.__name__ == '<lambda>', f'{k}.{m} has no docstring'
            assert not undocumented(f), f'{k}.{m} does not document {undocumented(f)}'

each_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda o: o.relative_to(ROOT/'nbs').with_suffix('').as_posix())

def cells(path, kind):
    "Yield the sources of the cells of `kind` in the notebook at `path`"
    for cell in json.loads(path.read_text(encoding='utf8'))['cells']:
        if cell['cell_type'] == kind: yield ''.join(cell['source'])

def is_import(node): return isinstance(node, (ast.Import, ast.ImportFrom))

def faults(source):
    "Return what the house style has against a code cell"
    lines = ['' if re.match(r'#\||%%', o) else re.sub(r'^(\s*)[!%].*', r'\1pass', o) for o in source.splitlines()]
    body = ast.parse('\n'.join(lines)).body
    if '#| export' in source:   # the names of a chapter are listed with their imports
        body = [o for o in body if not (isinstance(o, ast.Assign) and ast.unparse(o.targets[0]) == '_all_')]
    res = []
    if len({*map(is_import, body)}) > 1: res.append('imports need a cell of their own')
    if '#| export' not in source and any(isinstance(o, ast.Try) for o in body): res.append('use expect_fail instead of try')
    if body and isinstance(body[-1], (ast.Expr, ast.For)) and re.search(r'^\s*print\(', ast.unparse(body[-1]), re.M):
        res.append('end in the value instead of print')
    return res

@pytest.mark.parametrize('source, n', [
    ('import a\nfrom b import c', 0), ('import a\na.b()', 1), ('#| export\nfrom a import b\n_all_ = ["b"]', 0),
    ('if x:\n    %pip install y\nz', 0), ('!ls\nimport a', 1), ('x = 1\nprint(x)', 1), ('for o in x: print(o)', 1),
    ('def f(): print(1)\nf()', 0), ('try: f()\nexcept A: pass', 1)])
def test_house_style(source, n): assert len(faults(source)) == n

@each_notebook
def test_cells_keep_to_the_house_style(path):
    assert not {o: f for o in cells(path, 'code') if (f := faults(o))}
    for o in cells(path, 'markdown'):
        if re.search('^#+ ', re.sub('^```.*?^```', '', o, flags=re.S | re.M), re.M):
            assert re.fullmatch(r'#+ .*|# .*\n+> .*(\n+\[!\[Open in Colab.*)?', o), f'a heading needs a cell of its own: {o}'

each_chapter = pytest.mark.parametrize('path', [o for o in NOTEBOOKS if o.name[0] == '0'], ids=lambda o: o.stem)

@each_chapter
def test_no_cell_is_there_twice(path):
    "Git merges notebooks line by line, and may keep both versions of a cell"
    defined = re.findall(r'^(?:def|class) (\w+)', '\n'.join(cells(path, 'code')), re.M)
    sources = [*cells(path, 'code'), *cells(path, 'markdown'), *defined]
    assert not {o for o in sources if sources.count(o) > 1}

@each_notebook
def test_catdog_is_imported_before_fastai(path):
    "It silences a warning that the import of fastai would show in red"
    first = re.search('^(?:from|import) (catdog|fastai)', '\n'.join(cells(path, 'code')), re.M)
    assert not first or first[1] == 'catdog'

def test_documentation_can_be_built(tmp_path):
    "What `nbdev-docs` does before it calls Quarto: it runs the cells with imports and exports, and no others"
    for o in ('nbs', 'catdog'): shutil.copytree(ROOT/o, tmp_path/o, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for o in ('pyproject.toml', 'settings.ini'): shutil.copy(ROOT/o, tmp_path)
    code = 'from nbdev.quarto import refresh_quarto_yml, proc_nbs; refresh_quarto_yml(); proc_nbs(n_workers=0)'
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path,
                          env={**os.environ, 'PYTHONPATH': str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    built = {o.relative_to(tmp_path/'_proc') for o in (tmp_path/'_proc').rglob('*.ipynb')}
    assert built == {o.relative_to(ROOT/'nbs') for o in NOTEBOOKS}
    made = {o.name for o in (tmp_path).iterdir()} | {o.name for o in (tmp_path/'nbs').iterdir()}
    assert not made & {'data', 'models', 'site', 'answers.csv'}   # nothing was searched for or trained

@each_notebook
def test_saved_outputs_name_no_path_and_no_error(path):
    for cell in json.loads(path.read_text(encoding='utf8'))['cells']:
        for output in cell.get('outputs', []):
            assert output['output_type'] != 'error', output
            text = json.dumps({k: v for k,v in output.get('data', output).items() if not k.startswith('image/')})
            assert not re.search(r'site-packages|/home/|/root/|/tmp/|/work/|\\\\Users\\\\', text), text[:500]
