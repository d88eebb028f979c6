#!/usr/bin/env bash
# requests accepts a proxy without a scheme, 127.0.0.1:3128, but not if a host without a dot or a user name comes first.
#
# Proxies are often given as HOST:PORT. requests puts http:// before that, unless it takes what is before the first
# colon for a scheme: of proxy:3128 it makes proxy:///3128. Python's urllib.request, and curl, take all of them. Seen with
# requests 2.34.2, for a proxy on localhost that asks for no password:
#     127.0.0.1:PORT: requests 200, urllib 200
#     localhost:PORT: requests InvalidProxyURL, urllib 200
#     me:secret@127.0.0.1:PORT: requests InvalidProxyURL, urllib 200
#     http://localhost:PORT: requests 200, urllib 200
# The exit status is not 0 if this is no longer so.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check requests==2.34.2 urllib3==2.8.0
"$dir/env/bin/python" - <<'PYTHON'
import requests, threading, urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
print('requests', requests.__version__)
class Proxy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', '0')
        self.end_headers()
    def log_message(self, *args): pass
server = HTTPServer(('127.0.0.1', 0), Proxy)
threading.Thread(target=server.serve_forever, daemon=True).start()
def by_requests(proxy):
    with requests.Session() as session:
        session.trust_env = False
        try: return session.get('http://example.org/', proxies={'http': proxy}, timeout=10).status_code
        except requests.RequestException as e: return type(e).__name__
def by_urllib(proxy):
    return urllib.request.build_opener(urllib.request.ProxyHandler({'http': proxy})).open('http://example.org/', timeout=10).status
seen = []
for place in ('127.0.0.1', 'localhost', 'me:secret@127.0.0.1', 'http://localhost'):
    proxy = f'{place}:{server.server_port}'
    seen.append((by_requests(proxy), by_urllib(proxy)))
    print('{}:PORT: requests {}, urllib {}'.format(place, *seen[-1]))
server.shutdown()
assert seen == [(200, 200), ('InvalidProxyURL', 200), ('InvalidProxyURL', 200), (200, 200)]
PYTHON
