"""How a session is set up: a profile that was measured, and what a user may choose.

uTP off at first   two libtorrents reach 5 MB/s with it and 420 MB/s without, on one machine
disk               posix writes before it says "piece finished"; pread is twice as fast and writes
                   after it, so it is for those who look at each piece until they see it
long queues        500 requests of 16 KiB cap one peer at 164 MB/s where it is 50 ms away
proxy              DHT and the port are off, uTP goes through SOCKS5 or not at all
no incoming        nobody can connect to us unless a port is given; UPnP, NAT-PMP, LSD are off
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from moetool import __version__
from moetool.release.torrent.watch import REJOIN_AFTER_S, Peer

WEB_REQUEST_NBYTES = 16 << 20
"""A web seed is asked for no more at once: smaller files come whole, also without ranges."""

# Threads of pread that write and that hash. On two cores our own hashes take the second one, and
# libtorrent is quicker and smaller without them (120 MB become 100).
_BESIDE = int((os.cpu_count() or 1) > 2)  # noqa: PLR2004

QUEUED_NBYTES = (1 << 20) if _BESIDE else (1 << 18)
"""Received and not yet written: what fits a core's own cache is quicker, and a kill costs less."""

_ROUTERS = (
    "dht.libtorrent.org:25401,router.bittorrent.com:6881,"
    "router.utorrent.com:6881,dht.transmissionbt.com:6881"
)

# Peers of the same network are unchoked whatever the slots: so each of their requests is refused.
_GIVE_NOTHING = {
    "unchoke_slots_limit": 0, "allowed_fast_set_size": 0, "max_allowed_in_request_queue": -1,
}  # fmt: skip


# libtorrent's proxy_type, with and without a name and a password.
_PROXIES = {
    ("socks5", False): 2, ("socks5", True): 3, ("http", False): 4, ("http", True): 5,
}  # fmt: skip

# Policies 0 forced, 1 enabled, 2 disabled; levels 2 the whole stream (RC4), 3 the handshake may do.
_ENCRYPTION = {
    word: {"in_enc_policy": policy, "out_enc_policy": policy, "allowed_enc_level": level}
    for word, policy, level in (("allow", 1, 3), ("require", 0, 2), ("off", 2, 3))
}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy through which everything goes: ``kind`` is socks5 or http."""

    kind: str
    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class SwarmOptions:
    """How to reach the swarm; times in seconds, rates in bytes per second (0: no limit).

    ``port`` 0 means that nobody can connect to us; peers are then only those that we connect to.
    ``gives`` False means that nobody gets anything from us: for files that are holes in part.
    ``encryption`` is allow, require or off; ``interface`` is a name or a numeric address.
    ``order`` is auto, sequential or rarest (see `order`), ``disk`` posix or pread: how libtorrent
    writes.
    """

    peers: tuple[Peer, ...] = ()
    trackers: tuple[str, ...] = ()
    web_seeds: tuple[str, ...] = ()
    port: int = 0
    max_down: int = 0
    max_up: int = 0
    proxy: Proxy | None = None
    encryption: str = "allow"
    ipv6: bool = True
    interface: str | None = None
    dht: bool = True
    gives: bool = True
    order: str = "auto"
    disk: str = "posix"
    metadata_timeout_s: float = 120.0
    stall_timeout_s: float = 600.0
    rejoin_after_s: float = REJOIN_AFTER_S


def profile(options: SwarmOptions) -> dict[str, Any]:
    """The session's settings, by libtorrent's names (include/libtorrent/settings_pack.hpp)."""
    return {
        "user_agent": f"moetool/{__version__}",
        "listen_interfaces": _interfaces(options),
        "outgoing_interfaces": options.interface or "",
        "max_retry_port_bind": 0,  # another port than the one asked for is none
        "listen_system_port_fallback": False,
        "enable_incoming_tcp": bool(options.port),
        "enable_incoming_utp": bool(options.port),
        "enable_outgoing_utp": False,
        "enable_dht": options.dht and options.proxy is None,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "ssrf_mitigation": True,
        "dht_bootstrap_nodes": _ROUTERS if options.dht else "",
        "webtorrent_stun_server": "",
        "mixed_mode_algorithm": 0,  # prefer TCP
        "max_out_request_queue": 2000,
        "request_queue_time": 10,
        "piece_extent_affinity": True,
        "aio_threads": _BESIDE,
        "hashing_threads": _BESIDE,
        "max_queued_disk_bytes": QUEUED_NBYTES,
        "connections_limit": 500,
        "torrent_connect_boost": 80,
        "announce_to_all_trackers": True,
        "announce_to_all_tiers": True,
        "min_reconnect_time": 5,
        "stop_tracker_timeout": 1,
        "allow_multiple_connections_per_ip": any(_is_loopback(peer) for peer in options.peers),
        "alert_queue_size": 20_000,
        "urlseed_max_request_bytes": WEB_REQUEST_NBYTES,
        **_ENCRYPTION[options.encryption],
        **({} if options.gives else _GIVE_NOTHING),
        **(_through(options.proxy) if options.proxy else {}),
    }


def _interfaces(options: SwarmOptions) -> str:
    """Where to listen, in libtorrent's spelling; also what goes out begins there."""
    if options.interface:
        hosts = [f"[{options.interface}]" if ":" in options.interface else options.interface]
    else:
        hosts = ["0.0.0.0", "[::]"] if options.ipv6 else ["0.0.0.0"]  # noqa: S104  # see `port`
    return ",".join(f"{host}:{options.port}" for host in hosts)


def _through(proxy: Proxy) -> dict[str, Any]:
    """Everything through a proxy, names too; what would go around it is off.

    libtorrent asks for the addresses of the DHT's first nodes by itself, so whoever answers for
    names would learn of it. Datagrams of trackers and of uTP go through SOCKS5 (UDP ASSOCIATE).
    """
    return {
        "proxy_type": _PROXIES[proxy.kind, bool(proxy.user)],
        "proxy_hostname": proxy.host,
        "proxy_port": proxy.port,
        "proxy_username": proxy.user,
        "proxy_password": proxy.password,
        "proxy_peer_connections": True,
        "proxy_tracker_connections": True,
        "proxy_hostnames": True,
        "enable_dht": False,
        "enable_incoming_tcp": False,
        "enable_incoming_utp": False,
    }


def _is_loopback(peer: Peer) -> bool:
    return peer[0].startswith("127.") or peer[0] == "::1"
