"""Voilà's server for the widget app: its settings, the culling of unused kernels, and the command's process

Importing it imports Jupyter's server, so `catdog.app` does it only when it serves: each visitor's kernel imports that.
`voila.json` in the project's folder is a copy of its settings, for starting `voila nbs/07_app.ipynb` by hand."""

import json, os, re, shutil, signal, threading, time, webbrowser
from contextlib import suppress
from datetime import datetime, timezone
from importlib.resources import files as package_files
from pathlib import Path
import psutil, voila.app
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.web import HTTPError, RedirectHandler
from traitlets import Integer
from traitlets.config import Config
from voila.tornado.handler import TornadoVoilaHandler
from .server import listen

class VisitorKernels(AsyncMappingKernelManager):
    """Jupyter's kernels; those that no browser connects to are ended, too

    Each page that Voilà serves has a kernel, a process of 130 MB, to which a visitor's browser connects. Crawlers and
    monitors fetch the page and never connect. The page asks for its kernel every few seconds (`static/app.js`), so a
    kernel that has not been asked for in `unvisited_timeout` seconds is ended even before its first connection. The one
    that is kept ready for the next visitor is exempt."""
    unvisited_timeout = Integer(60, config=True, help='Seconds until a kernel that no browser connects to is ended')
    async def start_kernel(self, **kwargs):
        "Start a kernel that does not warn about its TCP connections, which are local"
        return await super().start_kernel(extra_arguments=['--IPKernelApp.log_level=ERROR'], **kwargs)
    def kernel_model(self,
        kernel_id:str # ID of the kernel
    ) -> dict: # As in Jupyter's REST API
        "Return the answer to `GET api/kernels/<id>`, and record that the page asked"
        self._kernels[kernel_id].asked = time.monotonic()
        return super().kernel_model(kernel_id)
    def notify_connect(self,
        kernel_id:str # ID of the kernel
    ):
        "Record that a browser has connected; the kernel's idle time begins now, however long it was kept ready"
        kernel = self._kernels[kernel_id]
        kernel.visited,kernel.last_activity = True,datetime.now(timezone.utc)
        super().notify_connect(kernel_id)
    @property
    def ready(self):
        "The kernels that Voilà keeps ready for the next visitors"
        tasks = [o for pool in getattr(self, '_pools', {}).values() for o in pool]
        return {o.result()['kernel_id'] for o in tasks if o.done() and not o.cancelled() and not o.exception()}
    async def cull_kernel_if_idle(self,
        kernel_id:str # ID of the kernel
    ):
        "End the kernel if it is unused; Jupyter calls this for each, every `cull_interval` seconds"
        kernel,now = self._kernels[kernel_id],time.monotonic()
        alive = kernel.execution_state != 'dead'
        if alive and kernel_id in self.ready: return
        if not alive or getattr(kernel, 'visited', False): return await super().cull_kernel_if_idle(kernel_id)
        kernel.asked = getattr(kernel, 'asked', now)
        if now - kernel.asked > self.unvisited_timeout: await self.shutdown_kernel(kernel_id)

class _PageHandler(TornadoVoilaHandler):
    "Voilà's page, which answers HEAD too, and 404 for other paths"
    async def head(self, path=''):
        "Answer without starting a kernel: 503 if there is none, not even the one for the next visitor"
        if path: raise HTTPError(404)
        if not self.kernel_manager.list_kernel_ids(): raise HTTPError(503)
        self.set_header('Content-Type', 'text/html; charset=UTF-8')
    async def get(self, path=''):
        "Serve the page, with a kernel for it"
        if path: raise HTTPError(404)
        await super().get(path)

class Voila(voila.app.Voila):   # its options are called after the class
    "Voilà with `_PageHandler`, also below the path `prefix`, on `sockets`; it calls `on_open` when it can be reached"
    prefix,sockets,on_open = '/',(),staticmethod(lambda: None)
    def init_handlers(self):
        "Return tornado's handlers"
        path = self.prefix.strip('/')
        self.server_url = f'(?:/{re.escape(path)})?' if path else '/'
        # relative URLs in the page need the slash
        slash = [(f'/{re.escape(path)}', RedirectHandler, dict(url=f'/{path}/', permanent=False))] if path else []
        return slash + [(pattern, _PageHandler if handler is TornadoVoilaHandler else handler, *more)
                        for pattern,handler,*more in super().init_handlers()]
    def listen(self):
        "Serve on `sockets` until a signal comes"
        for o in self.sockets: o.setblocking(False)
        HTTPServer(self.app).add_sockets(self.sockets)
        self.ioloop = IOLoop.current()
        self.ioloop.add_callback(lambda: self.on_open())
        with suppress(KeyboardInterrupt): self.ioloop.start()
    def _handle_signal_stop(self, *args):
        if hasattr(self, 'ioloop'): super()._handle_signal_stop(*args)
        else: raise SystemExit(0)
    def stop(self):
        "End the kernels; Voilà would interrupt those that are just starting, which print a traceback, or miss them"
        starting = [],(me := psutil.Process()).cmdline()   # of a process that is about to become a kernel
        for o in me.children():
            with suppress(psutil.Error):
                if 'ipykernel_launcher' in (line := o.cmdline()) or line in starting: o.kill()
        shutil.rmtree(self.connection_dir, ignore_errors=True)

# Only the cell with the app is run; a kernel that ends is not restarted, as a new one would not have the app. Without
# a login the token against cross-site requests protects nothing, and Voilà's page forgets it when it ends its kernel
# (voila#1458). `ws_ping_timeout` is what tornado makes of Jupyter's own, with a warning.
_VOILA_CONFIG = json.loads((package_files('catdog')/'templates/voila.json').read_text(encoding='utf8'))
_cell = '''# The app: Voilà runs and shows this cell alone
import os; os.chdir({!r})   # where the models are
from catdog.app import App
App()'''
def _app_notebook(folder):
    "Return the chapter with the app if this is the project's folder, else write catdog.ipynb, of one cell, to `folder`"
    here,file = Path('nbs/07_app.ipynb'),Path(folder)/'catdog.ipynb'
    if here.exists(): return here.resolve()
    from nbformat import v4, write
    meta = dict(title='catdog', kernelspec=dict(name='python3', display_name='python3', language='python'))
    write(v4.new_notebook(cells=[v4.new_code_cell(_cell.format(os.getcwd()))], metadata=meta), file)
    return file

def run_voila(
    folder:str|os.PathLike, # Temporary folder for the notebook and the files of Jupyter
    host:str, # The address to listen on
    port:int, # The port to listen on
    browser:bool=False, # Whether to open the app in a browser
    prefix:str='/' # A path that a proxy leaves in each request, such as /catdog/
):
    "Serve the app until a signal comes; raise `CatdogError` if that fails"
    app = Voila(config=Config(_VOILA_CONFIG))
    if threading.current_thread() is threading.main_thread(): signal.signal(signal.SIGTERM, app._handle_signal_stop)
    sockets,url = listen(host, port)
    os.environ['JUPYTER_RUNTIME_DIR'] = str(Path(folder)/'runtime')
    def opened():
        print(f'{url} is open: Ctrl+C closes it.', flush=True)
        if browser: webbrowser.open(url)
    app.prefix,app.sockets,app.on_open = prefix,sockets,opened
    try:
        app.initialize([str(_app_notebook(folder)), '--Voila.base_url=./', '--Voila.log_level=ERROR', '--no-browser'])
        # a Space of Hugging Face is shown in a frame of theirs
        if 'SPACE_ID' in os.environ:
            app.tornado_settings['headers']['Content-Security-Policy'] += ' https://huggingface.co'
        app.start()
    finally: app.stop()
