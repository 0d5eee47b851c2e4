"""How to reach a swarm: the options that fetch, repair, inspect and seed share, and their meaning.

A command names the options it takes in its signature and hands them on as `SwarmWords`; what
cannot be meant, and what contradicts each other, is refused here for all of them.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

import typer

from moetool.errors import UsageFault

if TYPE_CHECKING:
    from moetool.release.source import Source
    from moetool.release.torrent.profile import Proxy, SwarmOptions
    from moetool.release.torrent.watch import Peer

TrackerOption = Annotated[list[str] | None, typer.Option(help="Also ask this tracker")]
PeerOption = Annotated[list[str] | None, typer.Option(help="Also ask this peer, as ADDRESS:PORT")]
WebSeedsOption = Annotated[
    bool | None,
    typer.Option(
        "--web-seeds/--no-web-seeds",
        help="Use the web seeds that the link names, or none; left out: those of a known release",
        show_default=False,
    ),
]
PortOption = Annotated[
    int, typer.Option(min=0, max=65535, help="Accept peers on this port; 0: accept none")
]
MaxDownOption = Annotated[
    float, typer.Option(min=0, help="Take at most this many MB per second; 0: no limit")
]
MaxUpOption = Annotated[
    float, typer.Option(min=0, help="Give at most this many MB per second; 0: no limit")
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        help="Seconds to wait for metadata (else 120) and for the next piece (else 600)",
        show_default=False,
    ),
]
NoDhtOption = Annotated[bool, typer.Option("--no-dht", help="Do not use the DHT")]
ProxyOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Reach peers and trackers through socks5://[USER:PASSWORD@]HOST:PORT or http://…; "
        "without DHT and a port then; SOCKS5 carries UDP too, and the proxy resolves names",
        show_default=False,
    ),
]
EncryptionOption = Annotated[
    str, typer.Option(metavar="allow|require|off", help="Encrypted connections to peers")
]
Ipv6Option = Annotated[bool, typer.Option("--ipv6/--no-ipv6", help="Reach peers over IPv6 too")]
InterfaceOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|ADDRESS", help="Use this network interface only", show_default=False
    ),
]

_SCHEMES = {"socks5": 1080, "socks5h": 1080, "http": 8080}  # and the port that is usual
_ENCRYPTION = ("allow", "require", "off")
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,15}")  # IFNAMSIZ - 1


@dataclass(frozen=True, slots=True)
class SwarmWords:
    """What the command line says of the swarm; rates in MB per second, times in seconds."""

    tracker: list[str] | None = None
    peer: list[str] | None = None
    port: int = 0
    max_down: float = 0
    max_up: float = 0
    timeout: float | None = None
    no_dht: bool = False
    proxy: str | None = None
    encryption: str = "allow"
    ipv6: bool = True
    interface: str | None = None

    def given(self) -> dict[str, bool]:
        """The options that were given, by their names; without the time to wait."""
        usual = SwarmWords(timeout=self.timeout)
        names = {"ipv6": "no_ipv6"}
        return {
            names.get(field.name, field.name): True
            for field in fields(self)
            if getattr(self, field.name) != getattr(usual, field.name)
        }

    def options(self, web_seeds: tuple[str, ...] = ()) -> SwarmOptions:
        """How to reach the swarm.

        Raises:
            UsageFault: a word that cannot be meant, or two that contradict each other.
        """
        from moetool.release.torrent.profile import SwarmOptions

        proxy = proxy_of(self.proxy)
        if proxy and self.port:
            raise UsageFault(
                "--port opens a door past the proxy", hint="leave out --port, or --proxy"
            )
        return SwarmOptions(
            peers=tuple(_peer(text) for text in self.peer or ()),
            trackers=tuple(tracker_url(url) for url in self.tracker or ()),
            web_seeds=web_seeds,
            port=self.port,
            max_down=int(self.max_down * 1e6),
            max_up=int(self.max_up * 1e6),
            proxy=proxy,
            encryption=encryption_of(self.encryption),
            ipv6=self.ipv6,
            interface=_interface(self.interface),
            dht=not self.no_dht and proxy is None,
            metadata_timeout_s=self.timeout or 120.0,
            stall_timeout_s=self.timeout or 600.0,
        )


def seeds_of(source: Source, *, wanted: bool | None) -> tuple[str, ...]:
    """The web seeds to use: a pasted link's only where it is said, a known release's unless not."""
    known = source.release.web_seeds if source.release else ()
    match wanted:
        case None:
            return known
        case True:
            return tuple(dict.fromkeys(known + source.magnet.web_seeds))
    return ()


def tracker_url(url: str) -> str:
    """A tracker's address.

    Raises:
        UsageFault: it is none.
    """
    from moetool.release.magnet import is_tracker

    if not is_tracker(url):
        raise UsageFault(
            f"--tracker wants udp://HOST:PORT/… or http(s)://HOST/…, not {url!a}",
            hint="credentials and other schemes are not taken",
        )
    return url


def proxy_of(url: str | None) -> Proxy | None:
    """A proxy as it is typed; socks5h is what other programs call names resolved by the proxy.

    Raises:
        UsageFault: it is none; what is told does not repeat a password.
    """
    from moetool.release.torrent.profile import Proxy

    if url is None:
        return None
    hint = "write socks5://HOST:PORT or http://HOST:PORT; a name and a password may stand before @"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageFault("--proxy is no address", hint=hint) from error
    rest = (parts.path.strip("/"), parts.query, parts.fragment)
    if parts.scheme not in _SCHEMES or not parts.hostname or port == 0 or any(rest):
        raise UsageFault("--proxy is no address of a proxy", hint=hint)
    return Proxy(
        "http" if parts.scheme == "http" else "socks5",
        parts.hostname,
        port or _SCHEMES[parts.scheme],
        unquote(parts.username or ""),
        unquote(parts.password or ""),
    )


def encryption_of(word: str) -> str:
    """A way to treat encryption.

    Raises:
        UsageFault: there is no such.
    """
    if word not in _ENCRYPTION:
        raise UsageFault(
            f"--encryption {word!a} is none of {', '.join(_ENCRYPTION)}",
            hint="allow takes both; require refuses peers that do not encrypt",
        )
    return word


def _interface(text: str | None) -> str | None:
    """The name of an interface, or a numeric address of one."""
    if text is None:
        return None
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        pass
    if not _NAME.fullmatch(text):
        raise UsageFault(
            f"--interface wants a name or a numeric address, not {text!a}", hint="see: ip address"
        )
    return text


def _peer(text: str) -> Peer:
    from moetool.release.magnet import is_peer

    if not is_peer(text):
        raise UsageFault(
            f"--peer wants ADDRESS:PORT, not {text!a}",
            hint="a numeric address, as 192.0.2.1:6881 or [2001:db8::1]:6881",
        )
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
