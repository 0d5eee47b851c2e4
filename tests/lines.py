"""A line to a peer: what goes over it is paced, and counted where it leaves for whoever asked."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time

from tests.proxies import pump

_HELD_NBYTES = 1 << 16  # in each of the machine's buffers on the way


class _Line(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, peer, bytes_s):
        super().__init__(("127.0.0.1", 0), _Relay)
        self.host, self.port = self.server_address
        self.nbytes = 0  # given so far
        self.peer, self._bytes_s = (peer.host, peer.port), bytes_s
        self._due_s, self._lock = 0.0, threading.Lock()

    def wait_for(self, nbytes):
        """Until it is the turn of these; everybody who came shares the line."""
        with self._lock:
            now_s = time.monotonic()
            self._due_s = max(self._due_s, now_s) + nbytes / self._bytes_s
            wait_s = self._due_s - now_s
        time.sleep(wait_s)

    def handle_error(self, *_):
        pass


class _Relay(socketserver.BaseRequestHandler):
    def handle(self):
        near = self.request
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _HELD_NBYTES)
        with socket.socket() as far:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _HELD_NBYTES)
            far.connect(self.server.peer)
            back = threading.Thread(target=pump, args=(near, far), daemon=True)
            back.start()
            with contextlib.suppress(OSError):
                while data := far.recv(_HELD_NBYTES):
                    self.server.wait_for(len(data))
                    near.sendall(data)
                    self.server.nbytes += len(data)
            with contextlib.suppress(OSError):
                near.shutdown(socket.SHUT_RDWR)
            back.join(10)


@contextlib.contextmanager
def line_to(peer, *, bytes_s):
    """A line to ``peer`` that gives ``bytes_s``, evenly; ``nbytes`` of it is what it gave."""
    with _Line(peer, bytes_s) as line:
        threading.Thread(target=line.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield line
        finally:
            line.shutdown()
