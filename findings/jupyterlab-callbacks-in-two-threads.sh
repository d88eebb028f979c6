#!/usr/bin/env bash
# JupyterLab runs the callbacks of one notebook's widgets in two threads at once.
#
# One would expect callbacks to wait for each other, as they always did. With ipykernel 7, JupyterLab sends messages of
# widgets to a subshell, a thread of its own; but the widgets that a notebook makes first, before the subshell has
# started, keep the main thread. So a button that a callback has added is answered while the callback of an older
# button is still running: out of order, and with both at work on the same objects.
# Seen with JupyterLab 4.6.6, ipykernel 7.4.0, ipywidgets 8.1.9: two old buttons, "slow" (2 seconds) and "fast", and a
# button "new" that the callback of "add" has made, each pressed right after "slow":
#     slow (main thread), fast (main thread): fast begins after slow has ended
#     slow (main thread), new (other thread): new begins before slow has ended
# The exit status is not 0 if this is no longer so. Needs Chromium; CHROMIUM is its path, if it has another.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check jupyterlab==4.6.6 ipykernel==7.4.0 ipywidgets==8.1.9 playwright==1.61.0
cd "$dir"
export HOME="$dir" CHROMIUM="${CHROMIUM:-$(command -v chromium || command -v google-chrome)}"
env/bin/python - <<'PYTHON'
import importlib.metadata, json, os, socket, subprocess, sys, time, urllib.request
from pathlib import Path
from playwright.sync_api import sync_playwright
print(*(f'{o} {importlib.metadata.version(o)}' for o in ('jupyterlab', 'ipykernel', 'ipywidgets')), sep=', ')
CODE = '''import threading, time, ipywidgets as widgets
log = open('log.txt', 'a', buffering=1)
def button(name, seconds=0, more=lambda: None):
    def pressed(_):
        is_main = threading.current_thread() is threading.main_thread()
        log.write(f'{name} begins in {"main" if is_main else "other"}\\n')
        time.sleep(seconds)
        more()
        log.write(f'{name} ends\\n')
    res = widgets.Button(description=name)
    res.on_click(pressed)
    return res
box = widgets.HBox()
def add(): box.children = [*box.children, button('new')]
box.children = [button('add', more=add), button('slow', 2), button('fast')]
box'''
cell = dict(cell_type='code', id='a', metadata={}, outputs=[], execution_count=None, source=CODE)
kernel = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))
Path('n.ipynb').write_text(json.dumps(dict(cells=[cell], metadata=kernel, nbformat=4, nbformat_minor=5)))
with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
url,log = f'http://127.0.0.1:{port}',Path('log.txt')
env = {**os.environ, 'PATH': f'{sys.prefix}/bin:{os.environ["PATH"]}'}
server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', f'--port={port}', '--allow-root',
                           '--IdentityProvider.token='], env=env, stderr=subprocess.DEVNULL)
def until(found):
    for _ in range(600):
        try:
            if found(): return
        except OSError: pass
        time.sleep(.1)
    sys.exit('no answer from JupyterLab')
try:
    until(lambda: urllib.request.urlopen(f'{url}/api'))
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=os.environ['CHROMIUM'], args=['--no-sandbox'])
        page = browser.new_page()
        page.goto(f'{url}/lab/tree/n.ipynb')
        page.locator('.jp-CodeCell').first.wait_for(timeout=60_000)
        add = page.get_by_role('button', name='add', exact=True)
        def ran():   # keys that come too early are lost
            page.locator('.jp-CodeCell .cm-content').first.click()
            page.keyboard.press('Shift+Enter')
            page.wait_for_timeout(5000)
            return add.count()
        until(ran)
        def press(name): page.get_by_role('button', name=name, exact=True).click(timeout=60_000)
        press('add')
        time.sleep(3)   # until the subshell has started
        press('add')
        page.get_by_role('button', name='new', exact=True).last.wait_for(timeout=60_000)
        seen = []
        for name in ('fast', 'new'):
            log.write_text('')
            press('slow')
            page.get_by_role('button', name=name, exact=True).last.click()
            until(lambda: log.read_text().count('ends') == 2)
            lines = log.read_text().split('\n')
            seen.append((lines.index('slow ends') < next(i for i,o in enumerate(lines) if o.startswith(f'{name} begins')),
                         *(next(o for o in lines if o.startswith(f'{k} begins')).split()[-1] for k in ('slow', name))))
            order = 'after' if seen[-1][0] else 'before'
            print(f'slow ({seen[-1][1]} thread), {name} ({seen[-1][2]} thread): {name} begins {order} slow has ended')
        browser.close()
finally: server.terminate()
assert seen == [(True, 'main', 'main'), (False, 'main', 'other')]
PYTHON
