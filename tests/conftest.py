"Fixtures for several test files: a browser, photographs."
import os, shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect

WAIT = 120_000   # milliseconds; a busy machine takes ten times as long as a quiet one
expect.set_options(timeout=WAIT)

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

@pytest.fixture(scope='session', autouse=True)
def jupyter_files(tmp_path_factory):
    "Jupyter's files for the tests of this process alone: kernels lock a shared history, and JupyterLab reopens notebooks"
    folder = tmp_path_factory.mktemp('jupyter')
    (folder/'profile_default').mkdir()
    (folder/'profile_default'/'ipython_config.py').write_text('c.HistoryManager.enabled = False\n')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('IPYTHONDIR', str(folder))
        m.setenv('JUPYTERLAB_WORKSPACES_DIR', str(folder/'workspaces'))
        yield

@pytest.fixture(scope='session')
def browser(browser):
    browser.on('context', lambda o: o.set_default_timeout(WAIT))
    return browser

@pytest.fixture(scope='session')
def browser_type_launch_args(browser_type_launch_args):
    "The system's Chromium if there is one, else Playwright's"
    names = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'
    found = next(filter(None, map(shutil.which, names)), None)
    flags = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
             '--disable-component-update', '--disable-sync']
    return {**browser_type_launch_args, 'args': flags, **({'executable_path': found} if found else {})}
