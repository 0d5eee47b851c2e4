"""A hub and its storage on the loopback address: the three routes that a fetch uses, with Range.

GET  /api/models/OWNER/NAME/revision/REV   commit and files        (blobs=True)
HEAD /OWNER/NAME/resolve/COMMIT/PATH       redirect to the storage, or the file itself
GET  the same, and /storage/PATH           the bytes
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class FakeHub:
    """What the hub has, how it misbehaves, and what it was asked."""

    files: dict[str, bytes]
    repository: str = "somebody/small-moe"
    commit: str = COMMIT
    lfs: tuple[str, ...] = (".pth", ".safetensors", ".model", "split")
    status: int = 200
    error_code: str | None = None
    breaks_after: int | None = None  # bytes of a body, then the connection ends
    breaks: int = 1 << 30  # how often
    gives_at_most: int | None = None  # bytes in one answer, which says so
    ignores_ranges: bool = False
    at_most: int | None = None  # bytes that may be asked for at once; more is a 400
    no_large_files: bool = False  # a 400 for larger ones, also for ranges of them
    flipped: str | None = None  # served with another byte than the listing promises
    silent: str | None = None  # of this file's bytes none comes
    holds_after: int | None = None  # bytes of a body, then nothing until `held` is set
    held: threading.Event = field(default_factory=threading.Event)
    listing: object = None  # instead of the true one
    storage: str = ""  # where files are redirected to; by default the hub serves them itself
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    tokens: list[tuple[str, str | None]] = field(default_factory=list)
    agents: set[str | None] = field(default_factory=set)
    url: str = ""

    @property
    def ranges(self) -> list[str | None]:
        return [found for method, _, found in self.asked if method == "GET" and found]

    def is_lfs(self, path: str) -> bool:
        return path.endswith(self.lfs) or "split" in path

    def info(self):
        if self.listing is not None:
            return self.listing
        siblings = []
        for path, data in self.files.items():
            entry = {"rfilename": path, "size": len(data), "blobId": git_blob(data)}
            if self.is_lfs(path):
                sha256 = hashlib.sha256(data).hexdigest()
                stored = {"sha256": sha256, "size": len(data), "pointerSize": 130}
                entry |= {"blobId": "0" * 40, "lfs": stored}
            siblings.append(entry)
        return {"id": self.repository, "sha": self.commit, "siblings": siblings, "private": False,
                "tags": [], "downloads": 0, "likes": 0}  # fmt: skip

    def content(self, path: str) -> bytes:
        data = self.files[path]
        if path == self.flipped:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        return data


def _handler(hub: FakeHub):  # noqa: C901  # a server is its routes
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_HEAD(self):
            self._serve(head=True)

        def do_GET(self):
            self._serve(head=False)

        def _serve(self, *, head):
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, self.headers.get("Range")))
            hub.agents.add(self.headers.get("User-Agent"))
            host = self.headers["Host"]
            hub.tokens.append((f"{host}{path}", self.headers.get("Authorization")))
            if hub.status != 200:
                return self._say(hub.status, b"{}", {"X-Error-Code": hub.error_code or ""})
            if path.startswith("/api/models/"):
                rest = path.removeprefix(f"/api/models/{hub.repository}")
                if rest == path:
                    return self._say(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                if rest not in ("/revision/main", f"/revision/{hub.commit}"):
                    return self._say(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                return self._say(200, json.dumps(hub.info()).encode(),
                                 {"Content-Type": "application/json"})  # fmt: skip
            found = re.fullmatch(rf"(?:/{hub.repository}/resolve/{hub.commit}|/storage)/(.*)", path)
            if not found or found[1] not in hub.files:
                return self._say(404, b"", {"X-Error-Code": "EntryNotFound"})
            return self._file(found[1], head=head, stored=path.startswith("/storage"))

        def _file(self, name, *, head, stored):
            data = hub.content(name)
            etag = (
                hashlib.sha256(hub.files[name]).hexdigest() if hub.is_lfs(name) else git_blob(data)
            )
            headers = {"X-Repo-Commit": hub.commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes",
                       "X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{etag}"'}  # fmt: skip
            if hub.storage and not stored:
                return self._say(302, b"", {**headers, "Location": f"{hub.storage}/storage/{name}"})
            if head:
                return self._say(200, b"", headers, length=len(data))
            if name == hub.silent:
                self.close_connection = True
                return None
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            start, stop = 0, len(data)
            if asked and not hub.ignores_ranges:
                start, stop = int(asked[1]), int(asked[2] or len(data) - 1) + 1
            if hub.at_most is not None and (
                stop - start > hub.at_most or (hub.no_large_files and len(data) > hub.at_most)
            ):
                return self._say(400, b"", {})
            if asked and not hub.ignores_ranges:
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
                return self._say(206, data[start:stop][: hub.gives_at_most], headers)
            return self._say(200, data[: hub.gives_at_most], headers)

        def _say(self, status, body, headers, length=None):
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.breaks_after is not None and hub.breaks > 0 and len(body) > hub.breaks_after:
                hub.breaks -= 1
                self.wfile.write(body[: hub.breaks_after])
                self.wfile.flush()
                self.close_connection = True
                return
            if hub.holds_after is not None and len(body) > hub.holds_after:
                self.wfile.write(body[: hub.holds_after])
                hub.held.wait(30)
                body = body[hub.holds_after :]
            with contextlib.suppress(OSError):  # the other side has left
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Handler


@contextlib.contextmanager
def serving(hub: FakeHub):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
