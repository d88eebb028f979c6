#!/usr/bin/env bash
# requests downloads the whole body of a redirect, although stream=True asks it not to, and even if it need not follow.
#
# With stream=True, requests.get returns after the headers, and the caller decides how much of the body to read, for
# instance nothing if Content-Length is too large. For a redirect it reads the body to the end, also with
# allow_redirects=False. Seen with requests 2.34.2, for a server that sends 50 MB with each answer:
#     ordinary: the server has sent 3 MB (what fits into the buffers on the way)
#     redirect-followed: the server has sent 50 MB
#     redirect-not-followed: the server has sent 50 MB
# The exit status is not 0 if this is no longer so.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check requests==2.34.2
"$dir/env/bin/python" - <<'PYTHON'
import http.server, requests, threading, time
MB,sent = 2**20,{}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        size = 0 if self.path == '/end' else 50*MB
        self.send_response(302 if 'redirect' in self.path else 200)
        self.send_header('Location', '/end')
        self.send_header('Content-Length', str(size))
        self.end_headers()
        try:
            for _ in range(size//MB): sent[self.path] = sent.get(self.path, 0) + self.wfile.write(bytes(MB))/MB
        except OSError: pass   # the client has closed the connection
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print('requests', requests.__version__)
for path,follow in {'/ordinary': True, '/redirect-followed': True, '/redirect-not-followed': False}.items():
    requests.get(f'http://127.0.0.1:{server.server_port}{path}', stream=True, allow_redirects=follow).close()
    time.sleep(.5)
    print(f'{path[1:]}: the server has sent {sent.get(path, 0):.0f} MB')
assert sent.get('/ordinary', 0) < 25 and sent['/redirect-followed'] == sent['/redirect-not-followed'] == 50
PYTHON
