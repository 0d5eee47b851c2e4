"""A file behind https:// looked into before it is downloaded: bytes by range requests (RFC 9110).

A server is believed in nothing: only a 206 whose Content-Range is the range that was asked for is
taken, of the length it says, from one and the same file; redirects are few and judged; every
request is bounded in time and bytes. No cookies, no credentials, no proxies.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
from collections.abc import Collection, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

from moetool import __version__
from moetool.errors import NetworkFault, Refused, TruncatedFile, UsageFault
from moetool.release.peek.address import Gate, Place

MAX_NBYTES = 128 << 20
"""The most that looking may cost: no header is that long."""
BLOCK_NBYTES = 256 << 10
REQUEST_NBYTES = 4 << 20
MAX_REDIRECTS = 5
_MAX_FILE_NBYTES = 1 << 50
_CHUNK = 64 << 10
_ABSENT = frozenset({403, 404, 410})
_MOVED = frozenset({301, 302, 303, 307, 308})
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """``timeout_s`` is for a step of the network; a request may last twice as long."""

    timeout_s: float = 30.0
    allow_http: bool = False


@dataclass(frozen=True, slots=True)
class HttpOrigin:
    """Where a look came from and what it cost: bytes of bodies, and requests with redirects.

    ``nbytes`` is the size of all files that were looked into.
    """

    kind: str
    link: str
    name: str
    nbytes: int
    requests: int
    received_nbytes: int


@dataclass(frozen=True, slots=True)
class _Answer:
    """A part of a file, the size of the whole, and by what the server tells versions apart."""

    body: bytes
    total: int
    etag: str | None


@dataclass(slots=True)
class Requests:
    """Makes range requests, one connection for each, and counts what they cost."""

    options: HttpOptions = field(default_factory=HttpOptions)
    gate: Gate = field(init=False)
    made: int = 0
    received_nbytes: int = 0

    def __post_init__(self) -> None:
        self.gate = Gate(self.options.allow_http)

    def get(self, place: Place, start: int, stop: int, *, optional: bool = False) -> _Answer | None:
        """Get bytes ``start:stop`` of a file, fewer where it ends before.

        None where the server has no such file and it is ``optional``.

        Raises:
            NetworkFault: no connection, no answer in time, an error status, a body that ends early.
            Refused: no ranges, a wrong range, a redirect that is not followed.
            TruncatedFile: the file is empty.
        """
        for _ in range(MAX_REDIRECTS + 1):
            self.made += 1
            with closing(_Exchange(place, self.options.timeout_s)) as exchange:
                response = exchange.ask(start, stop)
                if response.status in _MOVED:
                    target = urljoin(place.url, response.getheader("Location") or "")
                    place = self.gate.beside(target)
                    continue
                if optional and response.status in _ABSENT:
                    return None
                _check_status(place, response)
                first, last, total = _content_range(place, response, start, stop)
                body = exchange.read(response, last + 1 - first)
                self.received_nbytes += len(body)
                return _Answer(body, total, response.getheader("ETag"))
        raise Refused(f"more than {MAX_REDIRECTS} redirects", where=place.shown)


class _Exchange:
    """One request and its answer, on a connection that is cut when its time is over."""

    def __init__(self, place: Place, timeout_s: float) -> None:
        self.place = place
        self._socket: socket.socket | None = None
        self._late = False
        self._lasts_s = 2 * timeout_s
        self._timer = threading.Timer(self._lasts_s, self._cut)
        self._timer.daemon = True
        try:
            self._connect(timeout_s)
        except (OSError, ValueError) as error:
            self.close()
            raise self._failed(f"cannot connect: {error}") from error

    def _connect(self, timeout_s: float) -> None:
        self._timer.start()
        last: OSError = OSError("no address")
        for address in self.place.addresses:
            try:
                self._socket = socket.create_connection((str(address), self.place.port), timeout_s)
                break
            except OSError as error:
                last = error
        if self._socket is None:
            raise last
        if self.place.scheme == "https":
            context = ssl.create_default_context()
            self._socket = context.wrap_socket(
                self._socket, server_hostname=self.place.host, do_handshake_on_connect=False
            )
            self._socket.do_handshake()

    def ask(self, start: int, stop: int) -> http.client.HTTPResponse:
        """Send the request, read the head of the answer."""
        connection = http.client.HTTPConnection(self.place.host, self.place.port)
        connection.sock = self._socket
        headers = {
            "Host": self.place.host_header,
            "Range": f"bytes={start}-{stop - 1}",
            "Accept-Encoding": "identity",
            "User-Agent": f"moetool/{__version__}",
            "Connection": "close",
        }
        try:
            connection.request("GET", self.place.target, headers=headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._failed(f"no answer: {type(error).__name__} {error}") from error

    def read(self, response: http.client.HTTPResponse, nbytes: int) -> bytes:
        """Read a body that must have exactly so many bytes."""
        parts, left = [], nbytes
        try:
            while left and (part := response.read(min(left, _CHUNK))):
                parts.append(part)
                left -= len(part)
            beyond = b"" if left else response.read(1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._failed(f"the answer broke off: {error}") from error
        if left:
            raise self._failed(f"the answer ends after {nbytes - left} of {nbytes} bytes")
        if beyond:
            raise Refused("the server sends more than it says", where=self.place.shown)
        return b"".join(parts)

    def close(self) -> None:
        """End the connection and its clock."""
        self._timer.cancel()
        if self._socket is not None:
            self._socket.close()

    def _cut(self) -> None:
        self._late = True
        if self._socket is not None:
            with suppress(OSError, ValueError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _failed(self, what: str) -> NetworkFault:
        late = f"no complete answer in {self._lasts_s:g} s"
        return NetworkFault(
            late if self._late else what,
            where=self.place.shown,
            hint="try again; --timeout gives a slow server more time",
        )


@dataclass(slots=True)
class HttpFile:
    """A `ByteSource` on a file behind a URL; what was read once is kept."""

    requests: Requests
    place: Place
    path: Path
    nbytes: int
    etag: str | None
    _blocks: dict[int, bytes] = field(default_factory=dict)

    def pread(self, offset: int, nbytes: int) -> bytes:
        """Read exactly ``nbytes`` at ``offset``; see `ByteSource.pread`, `Requests.get`."""
        if not 0 <= offset <= offset + nbytes <= self.nbytes:
            raise TruncatedFile(
                f"ends at byte {self.nbytes}, expected {nbytes} bytes at {offset}",
                where=str(self.path),
            )
        first, last = offset // BLOCK_NBYTES, -(-(offset + nbytes) // BLOCK_NBYTES)
        step = REQUEST_NBYTES // BLOCK_NBYTES
        missing = [index for index in range(first, last) if index not in self._blocks]
        for at in range(0, len(missing), step):
            self._fetch(missing[at], missing[min(at + step, len(missing)) - 1] + 1)
        data = b"".join(self._blocks[index] for index in range(first, last))
        start = offset - first * BLOCK_NBYTES
        return data[start : start + nbytes]

    def _fetch(self, first: int, last: int) -> None:
        """Get the blocks ``first:last``; those of them that are here come again."""
        start, stop = first * BLOCK_NBYTES, min(last * BLOCK_NBYTES, self.nbytes)
        if self.requests.received_nbytes + stop - start > MAX_NBYTES:
            raise Refused(
                f"its headers are longer than {MAX_NBYTES} bytes together", where=str(self.path)
            )
        answer = self.requests.get(self.place, start, stop)
        assert answer is not None  # it is not optional
        if (answer.total, answer.etag) != (self.nbytes, self.etag):
            raise Refused("changed while it was read", where=self.place.shown, hint="try again")
        self.keep(first, answer.body)

    def keep(self, first: int, body: bytes) -> None:
        """Keep what came, from block ``first`` on."""
        for at in range(0, len(body), BLOCK_NBYTES):
            self._blocks[first + at // BLOCK_NBYTES] = body[at : at + BLOCK_NBYTES]


class HttpFiles:
    """The file behind a URL, and those that may lie beside it: a server does not list them."""

    def __init__(self, url: str, beside: Iterable[str], options: HttpOptions) -> None:
        self.url = url
        self.name = name_in(url)
        self.requests = Requests(options)
        self.names: Collection[str] = {self.name, *beside}
        self._first = self.requests.gate.first(url)
        self._open: dict[str, HttpFile] = {}

    def open(self, name: str) -> HttpFile | None:
        """A file of that name; None where there is none, but the one that was asked for must be."""
        if name not in self._open:
            is_first = name == self.name
            place = self._first if is_first else self._beside(name)
            answer = self.requests.get(place, 0, BLOCK_NBYTES, optional=not is_first)
            if answer is None:
                return None
            file = HttpFile(self.requests, place, Path(name), answer.total, answer.etag)
            file.keep(0, answer.body)
            self._open[name] = file
        return self._open[name]

    def expect(self, ranges: Iterable[tuple[str, slice]]) -> None:
        """Nothing: blocks are larger than what is announced."""

    def origin(self) -> HttpOrigin:
        """Where it came from and what it cost so far."""
        return HttpOrigin(
            kind="https",
            link=self._first.shown,
            name=self.name,
            nbytes=sum(file.nbytes for file in self._open.values()),
            requests=self.requests.made,
            received_nbytes=self.requests.received_nbytes,
        )

    def _beside(self, name: str) -> Place:
        return self.requests.gate.beside(urljoin(self.url.partition("?")[0], quote(name)))


def name_in(url: str) -> str:
    """The name of the file that a URL leads to; empty for a folder.

    Raises:
        UsageFault: it is no plain name.
    """
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    if not name.isprintable() or set(name) & set("/\\") or name in {".", ".."}:
        raise UsageFault("the address ends in no plain file name", where=ascii(url[:200]))
    return name


def _check_status(place: Place, response: http.client.HTTPResponse) -> None:
    if response.status == http.HTTPStatus.OK:
        raise Refused(
            "the server gives whole files only, it does not serve ranges",
            where=place.shown,
            hint="download the file, then inspect it",
        )
    if response.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise TruncatedFile("the file is empty, or shorter than it was", where=place.shown)
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        raise NetworkFault(
            f"the server says {response.status} {ascii(response.reason)[1:-1][:80]}",
            where=place.shown,
            hint="open the address in a browser; files that want a login are not read",
        )


def _content_range(
    place: Place, response: http.client.HTTPResponse, start: int, stop: int
) -> tuple[int, int, int]:
    """First and last byte and size of the whole, if they are what was asked for.

    Raises:
        Refused: another range, an encoding, or lengths that contradict each other.
    """
    said = response.getheader("Content-Range") or "no range"
    found = _RANGE.fullmatch(said.strip())
    first, last, total = map(int, found.groups()) if found else (-1, -1, -1)
    length = response.getheader("Content-Length")
    encoded = (response.getheader("Content-Encoding") or "identity") != "identity"
    if first != start or last != min(stop, total) - 1 or total > _MAX_FILE_NBYTES:
        raise Refused(
            f"asked for bytes {start}-{stop - 1}, the server says {ascii(said)[:100]}",
            where=place.shown,
        )
    if encoded or (length is not None and length.strip() != str(last + 1 - first)):
        raise Refused("the server sends the range encoded, or of another length", where=place.shown)
    return first, last, total
