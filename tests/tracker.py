"""A tracker for the swarms of tests, on the loopback address."""

from __future__ import annotations

import contextlib
import http.server
import socket
import struct
import threading

from moetool.release.torrent.bencode import encode


@contextlib.contextmanager
def serving_tracker(interval_s):
    """An HTTP tracker (BEP 3, BEP 23) that names ``peers``; ``asked`` has its requests."""
    peers: list[tuple[str, int]] = []
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            compact = b"".join(socket.inet_aton(h) + struct.pack(">H", p) for h, p in peers)
            body = encode({b"interval": interval_s, b"peers": compact})
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            with contextlib.suppress(OSError):  # who asked may have left
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    server.peers, server.asked = peers, asked
    server.url = f"http://127.0.0.1:{server.server_port}/announce"
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
