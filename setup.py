"Everything that setuptools asks for is written once, in settings.ini."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='], interpolation=None)
config.read(here/'settings.ini', encoding='utf8')
cfg = config['DEFAULT']
statuses = {'3': 'Development Status :: 3 - Alpha', '4': 'Development Status :: 4 - Beta'}
def lines(key): return [o.strip() for o in cfg[key].split('\n') if o.strip()]

setup(
    name=cfg['lib_name'], version=cfg['version'], license=cfg['license'], author=cfg['author'],
    description=cfg['description'], keywords=cfg['keywords'].split(), python_requires='>=' + cfg['min_python'],
    long_description=(here/'README.md').read_text(encoding='utf8'), long_description_content_type='text/markdown',
    classifiers=[statuses[cfg['status']], 'Intended Audience :: Developers', 'Programming Language :: Python :: 3'],
    packages=find_packages(include=['catdog', 'catdog.*']), include_package_data=False,
    package_dir={'': '.'},   # an editable install is then a .pth file; otherwise setuptools warns, and pip shows it
    package_data={'catdog': ['pretrained/*', 'templates/*', 'static/*', 'static/site/*', 'sample/*.json', 'sample/photos/*']},
    install_requires=lines('requirements'),
    extras_require={'train': lines('train_requirements'),
                    'cluster': lines('cluster_requirements'),
                    'dev': [o for k in ('train', 'cluster', 'dev') for o in lines(f'{k}_requirements')]},
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': ['catdog=catdog._modidx:d']},
)
