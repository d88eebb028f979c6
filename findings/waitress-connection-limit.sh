#!/usr/bin/env bash
# waitress with connection_limit=N holds N - 2 connections: two sockets of its own count, too.
#
# The server compares the limit with the size of its map of sockets. Besides the connections, this map has the socket
# that listens and the trigger that wakes the main loop. A limit of 2 would serve nobody. Seen with waitress 3.0.2, for
# 12 clients that keep their connections open:
#     connection_limit=3: 1 client is answered
#     connection_limit=6: 4 clients are answered
#     connection_limit=8: 6 clients are answered
# The exit status is not 0 if this is no longer so.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check waitress==3.0.2
"$dir/env/bin/python" - <<'PYTHON'
import logging, socket, threading
from importlib.metadata import version
from waitress import create_server
logging.getLogger('waitress').setLevel(logging.ERROR)   # it warns about the limit, again and again
def app(environ, start_response):
    start_response('200 OK', [('Content-Length', '2')])
    return [b'ok']
def answered(limit, clients=12):
    server = create_server(app, host='127.0.0.1', port=0, connection_limit=limit)
    threading.Thread(target=server.run, daemon=True).start()
    socks = [socket.create_connection(('127.0.0.1', server.effective_port), timeout=1) for _ in range(clients)]
    for o in socks: o.sendall(b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')
    n = 0
    for o in socks:
        try: n += b'200 OK' in o.recv(1000)
        except TimeoutError: pass
    return n
print('waitress', version('waitress'))
seen = {limit: answered(limit) for limit in (3, 6, 8)}
for limit,n in seen.items(): print(f'connection_limit={limit}: {n} answered')
assert seen == {3: 1, 6: 4, 8: 6}
PYTHON
