"What holds for every notebook and module: two shelves, short, documented, importing in one direction."
import ast, importlib, inspect, json, re
from pathlib import Path

import pytest
from fastcore.docments import docments

root = Path(__file__).resolve().parent.parent
notebooks = sorted(o for o in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)
chapters,rooms = ([o for o in notebooks if (o.parent.name == 'nbs') is here] for here in (True, False))
lessons = [o for o in chapters if re.match(r'\d\d_', o.name)]
SHELF = {o: i for i,o in enumerate(('core', 'web', 'learn', 'clean'))}   # each may import those before it
WITHOUT_TORCH = ('core', 'web', 'deploy')

def ids(paths): return [o.relative_to(root/'nbs').with_suffix('').as_posix() for o in paths]
def cells(path): return json.loads(path.read_text(encoding='utf8'))['cells']
def source(cell): return ''.join(cell['source'])
def is_export(cell): return bool(re.match(r'#\| *export', source(cell)))
def exported(path): return [o for o in cells(path) if is_export(o)]
def n_lines(cell): return len([o for o in source(cell).splitlines() if o.strip() and not o.startswith('#|')])

def module_name(path):
    return next((m[1] for o in cells(path) if (m := re.match(r'#\| *default_exp (\S+)', source(o)))), None)

modules = {name: root/'catdog'/f'{name.replace(".", "/")}.py' for o in notebooks if (name := module_name(o))}
numbers = {module_name(o): int(o.name[:2]) for o in lessons if module_name(o)}

def imports(name):
    "(module of catdog or top of another package, names) that the module `name` imports, at the top or in functions"
    package = ('catdog.' + name).split('.')[:-1]
    for node in ast.walk(ast.parse(modules[name].read_text(encoding='utf8'))):
        if isinstance(node, ast.Import): yield from ((o.name, []) for o in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            yield '.'.join([*base, *filter(None, [node.module])]), [o.name for o in node.names]

def imported(name):
    "The modules of catdog that the module `name` imports"
    for module,names in imports(name):
        if module == 'catdog': yield from (o for o in names if o in modules)
        elif module.startswith('catdog.'): yield module.removeprefix('catdog.')

def may_import(a, b):
    "The law: core <- web <- learn <- clean, core <- deploy; chapters import rooms and earlier chapters"
    if '.' not in a: return '.' in b or numbers[b] < numbers[a]
    if '.' not in b: return False
    a,b = a.split('.')[0],b.split('.')[0]
    return b in ('core', a) or (a in SHELF and b in SHELF and SHELF[b] < SHELF[a])

def test_the_law_forbids_what_it_should():
    assert may_import('web.http', 'core.images') and may_import('deploy.server', 'core.images')
    assert may_import('clean.moves', 'web.manifest') and may_import('train', 'data') and may_import('train', 'web.http')
    for a,b in (('core.images', 'web.http'), ('web.http', 'learn.ood'), ('deploy.server', 'web.http'),
                ('learn.ood', 'deploy.batch'), ('web.http', 'scrape'), ('data', 'train')): assert not may_import(a, b)

@pytest.mark.parametrize('name', modules)
def test_imports_run_in_one_direction(name):
    assert not [o for o in imported(name) if not may_import(name, o)]

def test_imports_make_no_circle():
    left = {o: set(imported(o)) for o in modules}
    while free := [o for o in left if not left[o] & set(left) - {o}]:
        for o in free: del left[o]
    assert not left, f'these import each other: {sorted(left)}'

@pytest.mark.parametrize('name', modules)
def test_no_private_name_crosses_a_room(name):
    crossing = [(module, o) for module,names in imports(name) if module.startswith('catdog') for o in names]
    assert not [o for o in crossing if re.match('_[^_]', o[1])]

@pytest.mark.parametrize('name', [o for o in modules if o.split('.')[0] in WITHOUT_TORCH or numbers.get(o, 0) >= 5])
def test_serving_needs_no_torch(name):
    assert not {o.split('.')[0] for o,_ in imports(name)} & {'torch', 'torchvision', 'fastai', 'fastbook', 'timm'}

@pytest.mark.parametrize('path', notebooks, ids=ids(notebooks))
def test_a_line_of_code_has_at_most_120_characters(path):
    assert not [o for c in cells(path) if c['cell_type'] == 'code' for o in source(c).splitlines() if len(o) > 120]

@pytest.mark.parametrize('folder', ['tests', 'bench', '.ci'])
def test_a_line_of_a_script_has_at_most_120_characters(folder):
    assert not [(path.name, o) for path in (root/folder).glob('*.py')
                for o in path.read_text(encoding='utf8').splitlines() if len(o) > 120]

def test_every_module_has_its_notebook():
    generated = {o for o in (root/'catdog').rglob('*.py') if not o.name.startswith('_')}
    assert generated == set(modules.values())
    for path in rooms:
        assert module_name(path) == '.'.join(path.relative_to(root/'nbs').with_suffix('').parts)

@pytest.mark.parametrize('path', rooms, ids=ids(rooms))
def test_a_room_is_short_and_says_its_job(path):
    assert re.match(r'# \S.*\n\n> \S', source(cells(path)[0]))
    assert len(modules[module_name(path)].read_text(encoding='utf8').splitlines()) <= 300
    assert max(map(n_lines, exported(path))) <= 60
    assert max((n_lines(o) for o in cells(path) if '#| hide' in source(o)), default=0) <= 10

@pytest.mark.parametrize('path', rooms, ids=ids(rooms))
def test_a_large_class_grows_by_patch(path):
    for cell in exported(path):
        for node in ast.parse(source(cell)).body:
            if isinstance(node, ast.ClassDef): assert node.end_lineno - node.lineno < 40, node.name

def is_output(o):
    "Is this output of a cell something to look at, rather than a progress bar?"
    text = ''.join(o.get('text', [])) + ''.join(map(''.join, o.get('data', {}).values()))
    return bool(text.strip()) and not re.search(r'FloatProgress|<progress|\d+%\|', text)

@pytest.mark.parametrize('path', lessons, ids=ids(lessons))
def test_a_chapter_is_a_lesson(path):
    all_cells,sizes = cells(path),list(map(n_lines, exported(path)))
    assert len(all_cells) <= 35
    assert sum(sizes) <= 80 and max(sizes, default=0) <= 25
    assert max((n_lines(o) for o in all_cells if '#| hide' in source(o)), default=0) <= 10
    code = [o for o in all_cells if o['cell_type'] == 'code']
    assert any(is_output(out) for o in code[:5] for out in o['outputs']), 'nothing to look at in the first five cells'
    first = next(i for i,o in enumerate(all_cells) if o['cell_type'] == 'markdown' and len(source(o).split()) > 8)
    before = '\n'.join(source(o) for o in all_cells[:first] if o['cell_type'] == 'code')
    assert len(re.findall(r'^(?:import|from) ', before, re.M)) <= 8

def test_the_way_to_a_trained_model_is_short():
    "From the first cell of 00_start to the model: 60 lines of code, 500 words"
    code,words = 0,0
    for cell in cells(root/'nbs'/'00_start.ipynb'):
        if cell['cell_type'] == 'markdown': words += len(source(cell).split())
        else: code += n_lines(cell)
        if re.search(r'\bbuild\(', source(cell)) and cell['cell_type'] == 'code': break
    else: assert False, 'no cell calls build()'
    assert code <= 60 and words <= 500

def public(name):
    "The public functions and classes of a module with their names"
    mod = importlib.import_module(f'catdog.{name}')
    for k in mod.__all__:
        o = getattr(mod, k)
        if (inspect.isfunction(o) or inspect.isclass(o)) and o.__module__ == mod.__name__: yield k,o

@pytest.mark.parametrize('name', modules)
def test_what_is_public_is_documented(name):
    for k,o in public(name):
        assert inspect.getdoc(o), f'{k} has no docstring'
        if inspect.isclass(o) and '__init__' not in vars(o): continue
        missing = [p for p,v in docments(o, full=True, returns=False).items()   # it reads no comment on **kw
                   if not v.docment and p != 'self' and v.kind is not inspect.Parameter.VAR_KEYWORD]
        assert not missing, f'{k} does not say what {missing} are'

def methods(o):
    "The public methods of the class `o` that are written in it or patched into it, with their names"
    for k,f in vars(o).items():
        f = getattr(f, '__func__', f)
        if not k.startswith('_') and inspect.isfunction(f) and f.__module__ == o.__module__: yield k,f

@pytest.mark.parametrize('name', modules)
def test_what_is_public_in_a_class_is_documented(name):
    "Also what a library that we build on calls"
    for cls,o in public(name):
        if not inspect.isclass(o): continue
        for k,f in methods(o):
            assert inspect.getdoc(f) or f.__name__ == '<lambda>', f'{cls}.{k} has no docstring'
            missing = [p for p,v in docments(f, full=True, returns=False).items()
                       if not v.docment and p not in ('self', 'cls') and v.kind is not inspect.Parameter.VAR_KEYWORD]
            assert not missing, f'{cls}.{k} does not say what {missing} are'

def gives_something(o):
    "Does the function `o` return or yield a value itself? (A context manager that yields nothing does not)"
    def own(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.ClassDef, ast.Lambda)): continue
            yield child
            yield from own(child)
    return any(isinstance(node, (ast.Return, ast.Yield, ast.YieldFrom)) and node.value is not None
               for node in own(ast.parse(inspect.getsource(o)).body[0]))

@pytest.mark.parametrize('name', modules)
def test_what_a_function_returns_is_said(name):
    "By a comment behind the brackets, or where a name says all, by the type"
    for k,o in public(name):
        if not inspect.isfunction(o) or not gives_something(o): continue
        # docments reads it only where there is a type, too
        said = re.search(r'^\).*: *# *\S', inspect.getsource(o), re.M)
        assert said or 'return' in inspect.get_annotations(o), f'{k} does not say what it returns'

@pytest.mark.parametrize('path', notebooks, ids=ids(notebooks))
def test_saved_outputs_are_about_the_project_alone(path):
    "No path of the machine that ran it and no error"
    for cell in cells(path):
        for output in cell.get('outputs', []):
            assert output['output_type'] != 'error', output
            text = json.dumps({k: v for k,v in output.get('data', output).items() if not k.startswith('image/')})
            assert not re.search(r'site-packages|/home/|/root/|/tmp/|/work/|\\\\Users\\\\', text), text[:500]

@pytest.mark.parametrize('path', notebooks, ids=ids(notebooks))
def test_every_exported_cell_is_introduced_and_shown(path):
    "No two exported cells follow each other with neither a sentence nor a cell that shows what the first one does"
    flags = [is_export(o) for o in cells(path) if source(o).strip()]
    assert not any(a and b for a,b in zip(flags, flags[1:]))

def test_the_side_bar_has_the_chapters_first_and_every_folder():
    import yaml
    index,book,*folders = yaml.safe_load((root/'nbs'/'sidebar.yml').read_text())['website']['sidebar']['contents']
    assert index == 'index.ipynb' and book['contents'] == [o.name for o in lessons]
    assert sorted(o['contents'] for o in folders) == sorted({f'{o.parent.name}/*.ipynb' for o in rooms})
