"""Web seeds (BEP 19) examined by ourselves: libtorrent says nothing of one that ignores ranges.

Each is asked for one byte of the largest file, in a thread of its own, while the download goes on
already. What is asked is what libtorrent asks of the same server; redirects go to the open
internet only.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from moetool.errors import MoetoolError, Refused
from moetool.release.peek.address import shown
from moetool.release.peek.https import HttpOptions, Requests
from moetool.release.torrent.profile import WEB_REQUEST_NBYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from moetool.release.torrent.metainfo import Metainfo, TorrentFile
    from moetool.release.torrent.watch import Peer

TIMEOUT_S = 10.0


@dataclass(slots=True)
class WebSeedCheck:
    """What was found out of web seeds so far: by URL why one gives nothing.

    ``useless`` are those that never will; others may only be busy.
    """

    faults: dict[str, str] = field(default_factory=dict)
    useless: set[str] = field(default_factory=set)

    def begin(self, urls: Iterable[str], meta: Metainfo) -> None:
        """Ask each server, and do not wait for the answers."""
        largest = max((file for file in meta.files if not file.pad), key=lambda file: file.nbytes)
        for url in urls:
            threading.Thread(target=self._ask, args=(url, meta, largest), daemon=True).start()

    def _ask(self, url: str, meta: Metainfo, file: TorrentFile) -> None:
        requests = Requests(HttpOptions(TIMEOUT_S, allow_http=True))
        try:
            answer = requests.get(requests.gate.first(address_of(url, meta, file)), 0, 1)
        except MoetoolError as error:
            if isinstance(error, Refused) and file.nbytes <= WEB_REQUEST_NBYTES:
                return
            self.faults[url] = str(error)
            if isinstance(error, Refused):
                self.useless.add(url)
            return
        if answer is not None and answer.total != file.nbytes:
            wrong = f"{answer.total} bytes, the torrent says {file.nbytes}"
            self.faults[url] = f"{shown(url)}: {file.path} has {wrong}"
            self.useless.add(url)


def address_of(url: str, meta: Metainfo, file: TorrentFile) -> str:
    """Where a web seed has a file, by the rules of BEP 19."""
    if len(meta.files) == 1 and file.parts == (meta.name,):
        return f"{url}{quote(meta.name)}" if url.endswith("/") else url
    return f"{url.removesuffix('/')}/{quote(f'{meta.name}/{file.path}')}"


def addresses_of(urls: Sequence[str]) -> set[Peer]:
    """What web seeds are called where they are spoken of as peers."""
    found: set[Peer] = set()
    for url in urls:
        with suppress(OSError, ValueError):  # a name that nobody knows gave nothing either
            parts = urlsplit(url)
            port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
            places = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
            found |= {(str(place[4][0]), port) for place in places}
    return found
