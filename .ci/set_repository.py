"""Set the project's repository on GitHub: python .ci/set_repository.py OWNER/NAME

Writes it to settings.ini, puts a badge that opens it in Colab at the top of each chapter and of the index, and gives each
chapter a first cell that installs the library from there, in Colab alone. A second run changes the repository.
"""
import json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLAB = 'https://colab.research.google.com'

def badge(repository, name):
    return f'[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{repository}/blob/main/nbs/{name})'

def install_cell(repository):
    line = f'%pip install -q "catdog[train] @ git+https://github.com/{repository}"'
    return dict(cell_type='code', execution_count=None, id='c01ab001', metadata={}, outputs=[],
                source=["if 'google.colab' in str(get_ipython()):\n", f'    {line}'])

def edit(path, repository, name=None):
    "Give the notebook at `path` a badge that opens the notebook `name`, by default itself, which installs the library"
    nb = json.loads(path.read_text(encoding='utf8'))
    title = nb['cells'][0]
    text = re.sub(r'\n\n\[!\[Open in Colab\].*', '', ''.join(title['source']))
    title['source'] = f'{text}\n\n{badge(repository, name or path.name)}'.splitlines(keepends=True)
    if not name:
        nb['cells'] = [o for o in nb['cells'] if o['id'] != 'c01ab001']
        nb['cells'].insert(1, install_cell(repository))
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n', encoding='utf8')

def set_repository(repository, root=ROOT):
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', repository): sys.exit(f'{repository!r} is no OWNER/NAME')
    file = root/'settings.ini'
    text = file.read_text(encoding='utf8')
    file.write_text(re.sub(r'^repository =.*', f'repository = {repository}', text, flags=re.M), encoding='utf8')
    edit(root/'nbs'/'index.ipynb', repository, '00_start.ipynb')
    for path in sorted((root/'nbs').glob('0*.ipynb')): edit(path, repository)

if __name__ == '__main__': set_repository(*sys.argv[1:] or [''])
