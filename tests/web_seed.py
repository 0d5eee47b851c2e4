"""A web seed (BEP 19) of test swarms, on the loopback address."""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
from urllib.parse import urlsplit


@contextlib.contextmanager
def serving_web_seed(folder, *, ranges=True):
    """Serve the files below ``folder``; without ``ranges`` always whole.

    ``asked`` has the requests, ``clients`` the addresses of those that made them.
    """
    asked: list[tuple[str, str | None]] = []
    clients: set[str] = set()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked.append((self.path, self.headers.get("Range")))
            clients.add(self.client_address[0])
            # A proxy that does not read on hands over whole addresses.
            path = folder / urlsplit(self.path).path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            body = path.read_bytes()
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            if ranges and found:
                first, last = int(found[1]), min(int(found[2]), len(body) - 1)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
                body = body[first : last + 1]
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    server.asked, server.clients = asked, clients
    server.url = f"http://127.0.0.1:{server.server_port}/"
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
