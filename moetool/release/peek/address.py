"""Where an HTTP request may go: the addresses of a host, judged before anything is sent to one.

A person may name any https server, that of the own network included. A server that answers with
a redirect may not: it could send this machine to a service that only this machine can reach
(server-side request forgery). So the address that was judged is also the one connected to.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from moetool.errors import NetworkFault, Refused, UsageFault

PORTS = {"http": 80, "https": 443}
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Place:
    """A URL that was judged, and the addresses of its host that may be connected to."""

    url: str
    scheme: str
    host: str
    port: int
    target: str  # path and query, as they go on the request line
    addresses: tuple[Address, ...]

    @property
    def shown(self) -> str:
        """The URL without what may be secret in it."""
        return shown(self.url)

    @property
    def host_header(self) -> str:
        """The value of the Host field (RFC 9110, 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(slots=True)
class Gate:
    """Judges URLs; ``home`` are the addresses behind the URL that a person gave.

    ``allow_http`` lets plain http go to other machines than this one.
    """

    allow_http: bool = False
    home: set[Address] = field(default_factory=set)

    def first(self, url: str) -> Place:
        """Judge the URL that a person gave.

        Raises:
            UsageFault: no such URL can be meant.
            NetworkFault: the host has no address.
        """
        try:
            place = self._place(url)
        except Refused as error:
            raise UsageFault(error.what, where=error.where, hint=error.hint) from error
        self.home.update(place.addresses)
        return place

    def beside(self, url: str) -> Place:
        """Judge a URL that follows from the first one, or to which a server redirects.

        Raises:
            Refused: a private address, plain http, credentials.
            NetworkFault: the host has no address.
        """
        place = self._place(url)
        allowed = tuple(a for a in place.addresses if a in self.home or is_public(a))
        if not allowed:
            found = ", ".join(map(str, place.addresses[:4]))
            raise Refused(
                f"the server leads to an address of a private network ({found})",
                where=place.shown,
                hint="give the final address yourself if it is the one you mean",
            )
        return Place(place.url, place.scheme, place.host, place.port, place.target, allowed)

    def _place(self, url: str) -> Place:
        parts = _split(url)
        port = parts.port or PORTS[parts.scheme]
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        assert parts.hostname is not None  # `_split` saw to it
        addresses = _resolve(parts.hostname, port)
        if parts.scheme == "http" and not self.allow_http:
            addresses = tuple(a for a in addresses if a.is_loopback)
            if not addresses:
                raise Refused(
                    "plain http can be read and changed on its way",
                    where=shown(url),
                    hint="use https://, or say --allow-http",
                )
        return Place(url, parts.scheme, parts.hostname, port, target, addresses)


def shown(url: str) -> str:
    """A URL as it may be printed: without credentials, without a query, which may be signed."""
    plain = url.partition("?")[0]
    scheme, _, rest = plain.partition("://")
    host, slash, path = rest.partition("/")
    return ascii(f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"[:200])[1:-1]


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet, also behind its IPv6 forms."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None or address in _NAT64:
            return False
    return address.is_global and not address.is_multicast


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _split(url: str) -> SplitResult:
    """Take a URL apart.

    Raises:
        Refused: another scheme, no host, credentials, or characters that belong in no URL.
    """
    fault, parts = "", None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Refused(f"no address: {error}", where=shown(url)) from error
    if not url.isascii() or not url.isprintable() or " " in url or len(url) > 8192:  # noqa: PLR2004
        fault = "characters that belong in no address, or too many"
    elif parts.scheme not in PORTS:
        fault = f"not an https address ({parts.scheme!a})"
    elif not parts.hostname or port == 0:
        fault = "an address without a host"
    elif "@" in parts.netloc:
        fault = "a user name or password in an address"
    if fault:
        raise Refused(fault, where=shown(url))
    return parts


def _resolve(host: str, port: int) -> tuple[Address, ...]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NetworkFault(f"no address for the host: {error}", where=host) from error
    texts = dict.fromkeys(str(info[4][0]).partition("%")[0] for info in found)
    return tuple(ipaddress.ip_address(text) for text in texts)
