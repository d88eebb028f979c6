"Fixtures for several test files: a browser, photographs."
import os, shutil
from pathlib import Path

import pytest

OPTIONAL = dict(live='talk to services on the internet', nightly='take long')

def pytest_addoption(parser):
    for name,what in OPTIONAL.items(): parser.addoption(f'--{name}', action='store_true', help=f'also run the tests that {what}')

def pytest_collection_modifyitems(config, items):
    for name in OPTIONAL:
        if config.getoption(f'--{name}'): continue
        for item in items:
            if name in item.keywords: item.add_marker(pytest.mark.skip(reason=f'runs only with --{name}'))

@pytest.fixture(scope='session')
def photos():
    "A folder of real photographs that is not part of the project; tests that need it are skipped without it"
    folder = Path(os.environ.get('CATDOG_SHARED', Path(__file__).parent.parent.parent/'shared'))
    if not (folder/'photos').is_dir():
        pytest.skip(f'no photographs at {folder}: set CATDOG_SHARED to a folder that has photos/')
    return folder

@pytest.fixture
def page(page):
    "pytest-playwright's, which catches file dialogs from the beginning, not only while a test waits for one"
    page.on('filechooser', lambda _: None)
    return page

@pytest.fixture(scope='session')
def browser_type_launch_args(browser_type_launch_args):
    "The system's Chromium if there is one, else Playwright's"
    names = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'
    found = next(filter(None, map(shutil.which, names)), None)
    flags = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
             '--disable-component-update', '--disable-sync']
    return {**browser_type_launch_args, 'args': flags, **({'executable_path': found} if found else {})}
