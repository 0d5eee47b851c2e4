"""The one door to the swarm: the sessions with libtorrent, and what is done in them.

A magnet goes through two stages: metadata alone, with nothing on disk, so that the file list can
be judged; then the download, with the pieces that are there already and were hashed by us.
Resume data are neither written nor read: libtorrent 2.1.1 believes them even of an empty file.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from moetool.errors import HostileTorrent, MetadataTimeout, SystemFault
from moetool.release.magnet import Magnet, format_magnet
from moetool.release.pieces import count_pieces
from moetool.release.resume import fill_out
from moetool.release.torrent.alerts import (
    Seen,
    progress_of,
    raise_disk_errors,
    raise_listen_errors,
    stalled,
)
from moetool.release.torrent.metainfo import MAX_INFO_NBYTES, Metainfo, read_torrent
from moetool.release.torrent.profile import SwarmOptions, profile
from moetool.release.torrent.watch import (
    Decision,
    Peer,
    Progress,
    Sample,
    Watchdog,
    why_nothing_comes,
)

if TYPE_CHECKING:
    import libtorrent as lt

TICK_MS = 200  # libtorrent's wait does not return on a signal
UTP_AFTER_S = 20.0
CALL_AGAIN_S = 3.0
URGENT = 7  # libtorrent's highest priority of a piece


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What a download took: payload bytes, the peers that gave bad pieces, failed pieces."""

    payload: int
    banned: tuple[Peer, ...]
    failed_pieces: int


@dataclass(frozen=True, slots=True)
class Seed:
    """A torrent that is served, and where."""

    host: str
    port: int

    @property
    def peer(self) -> str:
        """As ``--peer`` takes it."""
        return f"{self.host}:{self.port}"


class Swarm:
    """A session with the peers of one torrent; a context manager."""

    def __init__(self, options: SwarmOptions) -> None:
        self.options = options
        self._started_s = self._called_s = time.monotonic()
        self._received: dict[lt.torrent_handle, int] = {}
        self.met: set[Peer] = set()  # those that gave metadata are called for pieces at once

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Dropping the last reference ends the session; a dead tracker delays that by 1 s at most.
        self.__dict__.pop("session", None)

    @property
    def received(self) -> int:
        """All bytes that came from peers so far: pieces, metadata, and their other words."""
        return sum(self._received.values())

    @cached_property
    def session(self) -> lt.session:
        """Opened when it is first needed: a release that is here already needs no network."""
        return _session(profile(self.options))

    def metadata(self, magnet: Magnet, on_progress: Callable[[Progress], None]) -> bytes:
        """Get the raw info dict that belongs to the info-hash; nothing is written beside it.

        Raises:
            MetadataTimeout: no peer gave it in time; says why.
            HostileTorrent: what came is not what the info-hash stands for.
        """
        import libtorrent as lt

        adding = lt.parse_magnet_uri(format_magnet(replace(magnet, web_seeds=(), peers=())))
        adding.trackers = list(self.options.trackers)
        adding.flags = lt.torrent_flags.upload_mode | lt.torrent_flags.default_dont_download
        # libtorrent makes symbolic links of a torrent as soon as it knows of them.
        with tempfile.TemporaryDirectory(prefix="moetool-") as folder:
            adding.save_path = folder
            handle = self.add(adding)
            info = self._wait_for_metadata(handle, on_progress)
            self.session.remove_torrent(handle)
        v1, v2 = hashlib.sha1(info, usedforsecurity=False), hashlib.sha256(info)
        wanted = {magnet.info_hash or v1.hexdigest(), magnet.info_hash_v2 or v2.hexdigest()}
        if not wanted <= {v1.hexdigest(), v2.hexdigest()}:
            raise HostileTorrent("the metadata does not have the info-hash of the link")
        return info

    def _wait_for_metadata(
        self, handle: lt.torrent_handle, on_progress: Callable[[Progress], None]
    ) -> bytes:
        began, seen = time.monotonic(), Seen(met=self.met)
        while not seen.metadata:
            for alert in self.alerts(handle):
                seen.take(alert)
            sample = self.sample(handle, seen)
            if sample.now_s - began > self.options.metadata_timeout_s:
                raise MetadataTimeout(
                    f"no peer gave the metadata in {self.options.metadata_timeout_s:.0f} s: "
                    f"{why_nothing_comes(sample)}",
                    hint="add --tracker or --peer, give a .torrent file, or try again later",
                )
            self.try_harder(handle, sample)
            on_progress(Progress("metadata", peers=sample.peers, note=why_nothing_comes(sample)))
        info = handle.torrent_file()
        assert info is not None  # the alert said so
        return bytes(info.info_section())

    def download(
        self,
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
        stay = Stay(self, meta, folder, on_progress)
        stay.join(have)
        stay.wait(lambda status: stay.seen.finished or status.is_seeding)
        self.session.remove_torrent(stay.handle)
        return stay.took()

    def single_pieces(
        self, meta: Metainfo, folder: Path, on_progress: Callable[[Progress], None]
    ) -> Stay:
        """A torrent to be asked for pieces one by one (see `Stay.get`), into an empty folder."""
        # Where nothing more is wanted for now, libtorrent would hang up on every seed.
        self.session.apply_settings({"close_redundant_connections": False})
        return Stay(self, meta, folder, on_progress, [0] * count_pieces(meta))

    def add(
        self, adding: lt.add_torrent_params, without: set[Peer] | frozenset[Peer] = frozenset()
    ) -> lt.torrent_handle:
        """Add a torrent and call the named peers."""
        handle = self.session.add_torrent(adding)
        for peer in self.options.peers:
            if peer not in without:
                handle.connect_peer(peer)
        return handle

    def alerts(self, handle: lt.torrent_handle) -> Iterator[Any]:
        """Wait a tick; the alerts of this torrent and those of no torrent."""
        self.session.wait_for_alert(TICK_MS)
        for alert in self.session.pop_alerts():
            if getattr(alert, "handle", handle) == handle:
                raise_listen_errors(alert, self.options.port)
                yield alert

    def sample(self, handle: lt.torrent_handle, seen: Seen, banned: int = 0) -> Sample:
        """What can be seen of the swarm now."""
        status = handle.status()
        self._received[handle] = status.total_download
        dht = self.session.status().dht_nodes if self.options.dht else None
        return Sample(
            now_s=time.monotonic(),
            done=status.total_wanted_done,
            payload=status.total_payload_download,
            peers=status.num_peers,
            seeds=status.num_seeds,
            availability=status.distributed_copies,
            trackers=len(self.options.trackers),
            answered=len(seen.answered),
            dht_nodes=dht,
            banned=banned,
        )

    def try_harder(
        self, handle: lt.torrent_handle, sample: Sample, dog: Watchdog | None = None
    ) -> None:
        """Without peers: allow uTP, and try the named peers again, for libtorrent forgets them."""
        if sample.peers or (dog and dog.asked) or sample.now_s - self._called_s < CALL_AGAIN_S:
            return
        if sample.now_s - self._started_s > UTP_AFTER_S:
            self.session.apply_settings({"enable_outgoing_utp": True})
        self._called_s = sample.now_s
        for peer in self.options.peers:
            if dog is None or peer not in dog.guilty:
                handle.connect_peer(peer)


@dataclass(slots=True)
class Stay:
    """A torrent in a session; it is joined anew where libtorrent has banned a good peer.

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
    _spent: int = 0  # payload bytes before it was joined anew
    _came: int = 0

    def __post_init__(self) -> None:
        self.seen = Seen(met=set(self.swarm.met))
        self._dog = Watchdog(self.swarm.options.stall_timeout_s, self.swarm.options.rejoin_after_s)

    def join(self, have: Sequence[bool]) -> None:
        """Add the torrent (anew): alone with the suspect, or with everybody but the guilty."""
        import libtorrent as lt

        options, dog, session = self.swarm.options, self._dog, self.swarm.session
        adding = _load(self.meta, self.folder)
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
        adding.url_seeds = list(options.web_seeds)
        adding.banned_peers = sorted(dog.guilty)
        adding.peers = sorted(self.seen.met - dog.guilty)
        self.handle = self.swarm.add(adding, without=dog.guilty)

    def get(self, pieces: Collection[int]) -> None:
        """Wait until the pieces of these numbers are on disk, as libtorrent says.

        Raises:
            NoRoomOnDisk, SystemFault, Stalled: see `Swarm.download`.
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
            NoRoomOnDisk, SystemFault, Stalled: see `Swarm.download`.
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
            match dog.judge(sample):
                case Decision.GIVE_UP:
                    raise stalled(sample, swarm.options.stall_timeout_s)
                case Decision.QUESTION:
                    dog.next_suspect(sample.now_s)
                case Decision.REJOIN:
                    dog.rejoined(sample.now_s)
                case Decision.GO_ON:
                    continue
            self._spent += self._came
            swarm.session.remove_torrent(self.handle)
            self.join(status.pieces)

    def took(self) -> Downloaded:
        """What it took so far."""
        banned = tuple(sorted(self._dog.banned))
        return Downloaded(self._spent + self._came, banned, self.seen.failed_pieces)


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
    session = _session(settings)
    adding = _load(read_torrent(torrent_file.read_bytes()), folder)
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


def _session(settings: dict[str, Any]) -> lt.session:
    import libtorrent as lt

    params = lt.session_params()
    category = lt.alert_category
    settings["alert_mask"] = (
        category.error
        | category.status
        | category.storage
        | category.tracker
        | category.connect
        | category.peer
    )
    params.settings = settings  # type: ignore[assignment]  # the stub wants a TypedDict
    params.disk_io_constructor = "posix_disk_io_constructor"
    return lt.session(params)


def _load(meta: Metainfo, folder: Path) -> lt.add_torrent_params:
    """What libtorrent makes of the torrent, with the files directly in ``folder``.

    Raises:
        HostileTorrent: it would write other paths than those that were judged.
    """
    import libtorrent as lt

    adding: lt.add_torrent_params
    limits = {"max_buffer_size": 2 * MAX_INFO_NBYTES}
    try:
        adding = lt.load_torrent_buffer(meta.to_torrent(), limits)  # type: ignore[call-overload]
    except RuntimeError as error:
        raise HostileTorrent(f"libtorrent refuses the torrent: {error}") from error
    assert adding.ti is not None  # it was loaded from metadata
    layout = adding.ti.layout()
    pad = lt.file_flags_t.flag_pad_file
    indices = [i for i in range(layout.num_files()) if not layout.file_flags(i) & pad]
    judged = [file.path for file in meta.files if not file.pad]
    below = [layout.file_path(index).removeprefix(f"{meta.name}/") for index in indices]
    if sorted(below) != sorted(judged):
        odd = sorted(set(below) ^ set(judged))
        raise HostileTorrent(
            "the names would be changed on the way to the disk",
            findings=tuple(ascii(name) for name in odd),
        )
    adding.renamed_files = dict(zip(indices, below, strict=True))
    adding.save_path = str(folder)
    adding.storage_mode = lt.storage_mode_t.storage_mode_sparse
    return adding
