"""The gunicorn worker that our server runs: connections are watched from their first byte, and end in their own thread"""

import socket, time
from contextlib import suppress

from gunicorn.workers.gthread import ThreadWorker

from .server import ARRIVALS

def read_on(
    sock:socket.socket, # A connection on which the answer has been sent
    seconds:float=2, # For so long at most
    most:int=64*2**20 # And so many bytes
):
    "Read what still comes on `sock`, so that the answer is not lost; after that nobody needs to wait for it"
    end = time.monotonic() + seconds
    with suppress(OSError):   # gone, or silent
        sock.shutdown(socket.SHUT_WR)
        while most > 0 and (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            if not (data := sock.recv(2**16)): break
            most -= len(data)
    with suppress(OSError): sock.shutdown(socket.SHUT_RD)

class Worker(ThreadWorker):
    "gunicorn's worker with threads, in which whoever stalls gives way"
    def handle(self,
        conn # gunicorn's, with the request that has arrived
    ): # As gunicorn's own: (whether the connection stays open, `conn`)
        "Answer a request on the connection `conn`"
        with ARRIVALS.watch(conn.sock):
            stays = super().handle(conn)
            if not (stays[0] if isinstance(stays, tuple) else stays): read_on(conn.sock)
        return stays
