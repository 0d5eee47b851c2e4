"""A torrent served on one address, for the demo and for tests: no DHT, no trackers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moetool.errors import SystemFault
from moetool.release.torrent.metainfo import read_torrent
from moetool.release.torrent.profile import SwarmOptions, profile
from moetool.release.torrent.session import TICK_MS, load, open_session


@dataclass(frozen=True, slots=True)
class Seed:
    """A torrent that is served, and where."""

    host: str
    port: int

    @property
    def peer(self) -> str:
        """As ``--peer`` takes it."""
        return f"{self.host}:{self.port}"


@contextlib.contextmanager
def seed(torrent_file: Path, folder: Path, host: str = "127.0.0.1") -> Iterator[Seed]:
    """Serve a torrent whose files lie directly in ``folder``, until the context is left.

    No DHT, no trackers, no other address than ``host``.

    Raises:
        SystemFault: the address cannot be listened on.
    """
    import libtorrent as lt

    settings = {
        **profile(SwarmOptions(dht=False)),
        "listen_interfaces": f"{host}:0",
        "enable_incoming_tcp": True,
        "unchoke_slots_limit": -1,
        "allow_multiple_connections_per_ip": True,
    }
    session = open_session(settings)
    adding = load(read_torrent(torrent_file.read_bytes()), folder)
    adding.flags = lt.torrent_flags.seed_mode | lt.torrent_flags.upload_mode
    adding.trackers = []
    session.add_torrent(adding)
    deadline = time.monotonic() + 10
    while not session.is_listening() and time.monotonic() < deadline:
        session.wait_for_alert(TICK_MS)
        session.pop_alerts()
    if not session.is_listening():
        raise SystemFault("cannot listen for peers", where=host)
    try:
        yield Seed(host, session.listen_port())
    finally:
        session.pause()
