"""A download: the loop that waits for pieces, and joins anew where a good peer was banned."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from moetool.release.pieces import count_pieces
from moetool.release.resume import fill_out
from moetool.release.torrent.alerts import Seen, progress_of, raise_disk_errors, stalled
from moetool.release.torrent.session import Swarm, load
from moetool.release.torrent.watch import Decision, Peer, Progress, Watchdog, why_nothing_comes

if TYPE_CHECKING:
    import libtorrent as lt

    from moetool.release.torrent.metainfo import Metainfo

URGENT = 7  # libtorrent's highest priority of a piece


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What a download took: payload bytes, the peers that gave bad pieces, failed pieces."""

    payload: int
    banned: tuple[Peer, ...]
    failed_pieces: int


def download(
    swarm: Swarm,
    meta: Metainfo,
    folder: Path,
    have: Sequence[bool],
    on_progress: Callable[[Progress], None],
) -> Downloaded:
    """Download into ``folder`` what ``have`` does not name (a bool a piece; empty: look).

    Raises:
        NoRoomOnDisk, SystemFault: a file could not grow, or the machine said no otherwise.
        Stalled: no piece came for the stall timeout; says why.
    """
    stay = Stay(swarm, meta, folder, on_progress)
    stay.join(have)
    stay.wait(lambda status: stay.seen.finished or status.is_seeding)
    swarm.session.remove_torrent(stay.handle)
    return stay.took()


def single_pieces(
    swarm: Swarm, meta: Metainfo, folder: Path, on_progress: Callable[[Progress], None]
) -> Stay:
    """A torrent to be asked for pieces one by one (see `Stay.get`), into an empty folder."""
    # Where nothing more is wanted for now, libtorrent would hang up on every seed.
    swarm.session.apply_settings({"close_redundant_connections": False})
    return Stay(swarm, meta, folder, on_progress, [0] * count_pieces(meta))


@dataclass(slots=True)
class Stay:
    """A torrent in a session; it is joined anew where libtorrent has banned a good peer.

    Web seeds are the first to go: an address that lies in a link, or in our own table, may hold
    another release, and each piece that it shares with a peer counts against that peer.

    ``priorities`` has a number for each piece, 0 where it is not asked for; None asks for all.
    """

    swarm: Swarm
    meta: Metainfo
    folder: Path
    on_progress: Callable[[Progress], None]
    priorities: list[int] | None = None
    seen: Seen = field(init=False)
    handle: Any = None
    _dog: Watchdog = field(init=False)
    _web_seeds: tuple[str, ...] = field(init=False)
    _spent: int = 0  # payload bytes before it was joined anew
    _came: int = 0

    def __post_init__(self) -> None:
        self.seen = Seen(met=set(self.swarm.met))
        self._web_seeds = self.swarm.options.web_seeds
        self._dog = Watchdog(self.swarm.options.stall_timeout_s, self.swarm.options.rejoin_after_s)

    def join(self, have: Sequence[bool]) -> None:
        """Add the torrent (anew): alone with the suspect, or with everybody but the guilty."""
        import libtorrent as lt

        options, dog, session = self.swarm.options, self._dog, self.swarm.session
        adding = load(self.meta, self.folder)
        adding.flags = lt.torrent_flags.update_subscribe
        adding.download_limit = options.max_down
        if any(have):
            adding.have_pieces = list(have)
            fill_out(self.meta, self.folder)
        if self.priorities is not None:
            adding.piece_priorities = self.priorities
        if dog.asked is not None:
            flags = lt.torrent_flags
            adding.flags |= flags.disable_dht | flags.disable_pex | flags.disable_lsd
            self.handle = session.add_torrent(adding)
            self.handle.connect_peer(dog.asked)
            return
        adding.trackers = list(options.trackers)
        adding.url_seeds = list(self._web_seeds)
        adding.banned_peers = sorted(dog.guilty)
        adding.peers = sorted(self.seen.met - dog.guilty)
        self.handle = self.swarm.add(adding, without=dog.guilty)

    def get(self, pieces: Collection[int]) -> None:
        """Wait until the pieces of these numbers are on disk, as libtorrent says.

        Raises:
            NoRoomOnDisk, SystemFault, Stalled: see `download`.
        """
        assert self.priorities is not None  # else all pieces come at once
        for index in pieces:
            self.priorities[index] = URGENT
        self.handle.prioritize_pieces(self.priorities) if self.handle else self.join(())
        self.wait(
            lambda status: all(status.pieces[index : index + 1] == [True] for index in pieces)
        )

    def wait(self, is_done: Callable[[lt.torrent_status], bool]) -> None:
        """Go on until the status of the torrent is as wanted.

        Raises:
            NoRoomOnDisk, SystemFault, Stalled: see `download`.
        """
        swarm, dog = self.swarm, self._dog
        while True:
            for alert in swarm.alerts(self.handle):
                raise_disk_errors(alert, self.folder, self.meta)
                self.seen.take(alert, dog)
            status = self.handle.status()
            sample = swarm.sample(self.handle, self.seen, banned=len(dog.banned))
            self._came = sample.payload
            if is_done(status):
                return
            self.on_progress(progress_of(status, self.meta, why_nothing_comes(sample)))
            swarm.try_harder(self.handle, sample, dog)
            if self._must_drop_web_seeds():
                self._rejoin(status)
                continue
            match dog.judge(sample):
                case Decision.GIVE_UP:
                    raise stalled(sample, swarm.options.stall_timeout_s)
                case Decision.QUESTION:
                    dog.next_suspect(sample.now_s)
                case Decision.REJOIN:
                    dog.rejoined(sample.now_s)
                case Decision.GO_ON:
                    continue
            self._rejoin(status)

    def _rejoin(self, status: lt.torrent_status) -> None:
        self._spent += self._came
        self.swarm.session.remove_torrent(self.handle)
        self.join(status.pieces)

    def _must_drop_web_seeds(self) -> bool:
        """Whether somebody was banned while web seeds gave pieces: then go on with peers alone.

        Where nobody else gives anything, libtorrent's own choice among them stands.
        """
        if not self._web_seeds or not self._dog.suspects:
            return False
        if self.seen.met.union(self.swarm.options.peers) <= _addresses(self._web_seeds):
            self._dog.convict()
            return False
        self._dog.forgive()
        self._web_seeds = ()
        return True

    def rested(self) -> None:
        """Begin to wait anew: for a while nothing was asked for, so nothing could come."""
        self._dog.rested()

    def took(self) -> Downloaded:
        """What it took so far."""
        banned = tuple(sorted(self._dog.banned))
        return Downloaded(self._spent + self._came, banned, self.seen.failed_pieces)


def _addresses(urls: Sequence[str]) -> set[Peer]:
    """What web seeds are called where they are spoken of as peers."""
    found: set[Peer] = set()
    for url in urls:
        with suppress(OSError, ValueError):  # a name that nobody knows gave nothing either
            parts = urlsplit(url)
            port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
            places = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
            found |= {(str(place[4][0]), port) for place in places}
    return found
