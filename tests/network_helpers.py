"Helpers for tests with servers: free ports, kernels, nginx in front of a server, and axe on a page."
import importlib.util, itertools, os, re, shutil, socket, subprocess, time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil, pytest

PORTS = itertools.count(20_000 + 100*os.getpid()%12_000)

def free_port():
    "A port that nothing else takes until it is used: below those that the system hands out, and only once"
    for port in PORTS:
        with suppress(OSError), socket.create_server(('127.0.0.1', port)): return port

def until(condition, seconds=120):
    "Wait until `condition()` is true; return what it returned"
    end = time.monotonic() + seconds
    while not (res := condition()):
        assert time.monotonic() < end, 'it does not come true'
        time.sleep(.05)
    return res

def kernels(process=None):
    "Kernels among the processes below `process`, by default this one: their id -> `psutil.Process`"
    res = {}
    for o in psutil.Process(process and process.pid).children(recursive=True):
        with suppress(psutil.Error):   # it has just ended
            if found := re.search(r'ipykernel_launcher.*kernel-(.*?)\.json', ' '.join(o.cmdline())): res[found[1]] = o
    return res

NGINX = '''
worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; daemon off;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
  server {{ listen 127.0.0.1:{port}; {server} }}
}}'''

@contextmanager
def nginx(folder, server):
    "Yield the URL, without a slash, of an nginx whose `server` block has these lines; its files are in `folder`"
    found = shutil.which('nginx', path=f'{os.environ["PATH"]}:/usr/sbin:/usr/local/sbin')
    if not found: pytest.skip('no nginx: tests/get_nginx installs one')
    port,folder = free_port(),Path(folder)
    (folder/'nginx.conf').write_text(NGINX.format(folder=folder, port=port, server=server))
    log = folder/'error.log'
    process = subprocess.Popen([found, '-e', str(log), '-c', str(folder/'nginx.conf')], stderr=subprocess.DEVNULL)
    try:
        while socket.socket().connect_ex(('127.0.0.1', port)):
            assert process.poll() is None, log.read_text()
            time.sleep(.05)
        yield f'http://127.0.0.1:{port}'
    finally:
        process.terminate()
        process.wait(60)

def violations(page, impacts=('critical', 'serious'), within='html'):
    "Return what axe finds on `page`, in the elements that `within` selects, of these impacts: (impact, rule, elements)"
    folder = Path(importlib.util.find_spec('axe_playwright_python').origin).parent
    page.evaluate((folder/'axe.min.js').read_text())   # also where the page's policy forbids foreign scripts
    found = page.evaluate('within => axe.run(within)', within)['violations']
    return [(o['impact'], o['id'], [n['html'][:120] for n in o['nodes']]) for o in found if o['impact'] in impacts]
