"""How a session is set up: a profile that was measured, and what a user may choose.

uTP off at first   two libtorrents reach 5 MB/s with it and 420 MB/s without, on one machine
posix disk         the default says "piece finished" before the bytes can be read in the file
long queues        500 requests of 16 KiB cap one peer at 164 MB/s where it is 50 ms away
no incoming        nobody can connect to us unless a port is given; UPnP, NAT-PMP, LSD are off
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moetool import __version__
from moetool.release.torrent.watch import REJOIN_AFTER_S, Peer

_ROUTERS = (
    "dht.libtorrent.org:25401,router.bittorrent.com:6881,"
    "router.utorrent.com:6881,dht.transmissionbt.com:6881"
)

# Peers of the same network are unchoked whatever the slots: so each of their requests is refused.
_GIVE_NOTHING = {
    "unchoke_slots_limit": 0, "allowed_fast_set_size": 0, "max_allowed_in_request_queue": -1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SwarmOptions:
    """How to reach the swarm; times in seconds, ``max_down`` in bytes per second (0: no limit).

    ``port`` 0 means that nobody can connect to us; peers are then only those that we connect to.
    ``gives`` False means that nobody gets anything from us: for files that are holes in part.
    """

    peers: tuple[Peer, ...] = ()
    trackers: tuple[str, ...] = ()
    web_seeds: tuple[str, ...] = ()
    port: int = 0
    max_down: int = 0
    dht: bool = True
    gives: bool = True
    metadata_timeout_s: float = 120.0
    stall_timeout_s: float = 600.0
    rejoin_after_s: float = REJOIN_AFTER_S


def profile(options: SwarmOptions) -> dict[str, Any]:
    """The session's settings, by libtorrent's names (include/libtorrent/settings_pack.hpp)."""
    return {
        "user_agent": f"moetool/{__version__}",
        "listen_interfaces": f"0.0.0.0:{options.port},[::]:{options.port}",
        "enable_incoming_tcp": bool(options.port),
        "enable_incoming_utp": bool(options.port),
        "enable_outgoing_utp": False,
        "enable_dht": options.dht,
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
        "connections_limit": 500,
        "torrent_connect_boost": 80,
        "announce_to_all_trackers": True,
        "announce_to_all_tiers": True,
        "min_reconnect_time": 5,
        "stop_tracker_timeout": 1,
        "allow_multiple_connections_per_ip": any(_is_loopback(peer) for peer in options.peers),
        "alert_queue_size": 20_000,
        **({} if options.gives else _GIVE_NOTHING),
    }


def _is_loopback(peer: Peer) -> bool:
    return peer[0].startswith("127.") or peer[0] == "::1"
