"""Set the project's repository on GitHub: python .ci/set_repository.py OWNER/NAME

Writes it to settings.ini, puts a badge that opens it in Colab at the top of each chapter and of the index, and lets the
first hidden cell of a chapter install the library from there, in Colab alone. A second run changes the repository.
"""
import json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLAB = 'https://colab.research.google.com'

def badge(repository, name):
    return f'[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{repository}/blob/main/nbs/{name})'

def install(repository):
    return ("if os.path.isdir('/content'):   # in Colab\n"
            f'    %pip install -q "catdog[train] @ git+https://github.com/{repository}"')

def edit(path, change):
    "Apply `change` to the cell sources of the notebook at `path`"
    nb = json.loads(path.read_text(encoding='utf8'))
    for cell,source in zip(nb['cells'], change([''.join(o['source']) for o in nb['cells']])):
        cell['source'] = source.splitlines(keepends=True)
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n', encoding='utf8')

def with_badge(source, repository, name):
    return re.sub(r'\n\n\[!\[Open in Colab\].*', '', source) + f'\n\n{badge(repository, name)}'

def with_install(source, repository):
    "Insert the install after the first imports, before any import of catdog"
    source = re.sub(r"\nif os\.path\.isdir\('/content'\):.*\n.*", '', source)
    return re.sub(r'^import .*\bos\b.*', lambda o: f'{o[0]}\n{install(repository)}', source, count=1, flags=re.M)

def set_repository(repository, root=ROOT):
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', repository): sys.exit(f'{repository!r} is no OWNER/NAME')
    file = root/'settings.ini'
    text = file.read_text(encoding='utf8')
    file.write_text(re.sub(r'^repository =.*', f'repository = {repository}', text, flags=re.M), encoding='utf8')
    edit(root/'nbs'/'index.ipynb', lambda o: [with_badge(o[0], repository, '00_start.ipynb'), *o[1:]])
    for path in sorted((root/'nbs').glob('0*.ipynb')):
        def change(sources):
            i = next(i for i,o in enumerate(sources) if '#| hide\n' in o)
            return [with_badge(o, repository, path.name) if k == 0 else with_install(o, repository) if k == i else o
                    for k,o in enumerate(sources)]
        edit(path, change)

if __name__ == '__main__': set_repository(*sys.argv[1:] or [''])
