"""The one door to the network: the sessions with libtorrent, and what is done in them.

A magnet goes through two stages: metadata alone, with nothing on disk, so that the file list can
be judged; then the download, with the pieces that are there already and were hashed by us.
Resume data are neither written nor read: libtorrent 2.1.1 believes them even of an empty file.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from moetool.errors import HostileTorrent, MetadataTimeout, SystemFault
from moetool.release.magnet import Magnet, format_magnet
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Dropping the last reference ends the session; a dead tracker delays that by 1 s at most.
        self.__dict__.pop("_session", None)

    @cached_property
    def _session(self) -> lt.session:
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
            handle = self._add(adding)
            info = self._wait_for_metadata(handle, on_progress)
            self._session.remove_torrent(handle)
        v1, v2 = hashlib.sha1(info, usedforsecurity=False), hashlib.sha256(info)
        wanted = {magnet.info_hash or v1.hexdigest(), magnet.info_hash_v2 or v2.hexdigest()}
        if not wanted <= {v1.hexdigest(), v2.hexdigest()}:
            raise HostileTorrent("the metadata does not have the info-hash of the link")
        return info

    def _wait_for_metadata(
        self, handle: lt.torrent_handle, on_progress: Callable[[Progress], None]
    ) -> bytes:
        began, seen = time.monotonic(), Seen()
        while not seen.metadata:
            for alert in self._alerts(handle):
                seen.take(alert)
            sample = self._sample(handle, seen)
            if sample.now_s - began > self.options.metadata_timeout_s:
                raise MetadataTimeout(
                    f"no peer gave the metadata in {self.options.metadata_timeout_s:.0f} s: "
                    f"{why_nothing_comes(sample)}",
                    hint="add --tracker or --peer, give a .torrent file, or try again later",
                )
            self._try_harder(handle, sample)
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
        dog = Watchdog(self.options.stall_timeout_s, self.options.rejoin_after_s)
        seen, spent = Seen(), 0
        handle = self._join(meta, folder, have, dog, seen)
        while True:
            for alert in self._alerts(handle):
                raise_disk_errors(alert, folder, meta)
                seen.take(alert, dog)
            status = handle.status()
            if seen.finished or status.is_seeding:
                self._session.remove_torrent(handle)
                came = spent + status.total_payload_download
                return Downloaded(came, tuple(sorted(dog.banned)), seen.failed_pieces)
            sample = self._sample(handle, seen, banned=len(dog.banned))
            on_progress(progress_of(status, meta, why_nothing_comes(sample)))
            self._try_harder(handle, sample, dog)
            match dog.judge(sample):
                case Decision.GIVE_UP:
                    raise stalled(sample, self.options.stall_timeout_s)
                case Decision.QUESTION:
                    dog.next_suspect(sample.now_s)
                case Decision.REJOIN:
                    dog.rejoined(sample.now_s)
                case Decision.GO_ON:
                    continue
            spent += status.total_payload_download
            self._session.remove_torrent(handle)
            handle = self._join(meta, folder, status.pieces, dog, seen)

    def _join(
        self,
        meta: Metainfo,
        folder: Path,
        have: Sequence[bool],
        dog: Watchdog,
        seen: Seen,
    ) -> lt.torrent_handle:
        """Add the torrent anew: alone with the suspect, or with everybody but the guilty."""
        import libtorrent as lt

        adding = _load(meta, folder)
        adding.flags = lt.torrent_flags.update_subscribe
        adding.download_limit = self.options.max_down
        if any(have):
            adding.have_pieces = list(have)
        if dog.asked is not None:
            flags = lt.torrent_flags
            adding.flags |= flags.disable_dht | flags.disable_pex | flags.disable_lsd
            handle = self._session.add_torrent(adding)
            handle.connect_peer(dog.asked)
            return handle
        adding.trackers = list(self.options.trackers)
        adding.url_seeds = list(self.options.web_seeds)
        adding.banned_peers = sorted(dog.guilty)
        adding.peers = sorted(seen.met - dog.guilty)
        return self._add(adding, without=dog.guilty)

    def _add(
        self, adding: lt.add_torrent_params, without: set[Peer] | frozenset[Peer] = frozenset()
    ) -> lt.torrent_handle:
        handle = self._session.add_torrent(adding)
        for peer in self.options.peers:
            if peer not in without:
                handle.connect_peer(peer)
        return handle

    def _alerts(self, handle: lt.torrent_handle) -> Iterator[Any]:
        """Wait a tick; the alerts of this torrent and those of no torrent."""
        self._session.wait_for_alert(TICK_MS)
        for alert in self._session.pop_alerts():
            if getattr(alert, "handle", handle) == handle:
                raise_listen_errors(alert, self.options.port)
                yield alert

    def _sample(self, handle: lt.torrent_handle, seen: Seen, banned: int = 0) -> Sample:
        status = handle.status()
        dht = self._session.status().dht_nodes if self.options.dht else None
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

    def _try_harder(
        self, handle: lt.torrent_handle, sample: Sample, dog: Watchdog | None = None
    ) -> None:
        """Without peers: allow uTP, and try the named peers again, for libtorrent forgets them."""
        if sample.peers or (dog and dog.asked) or sample.now_s - self._called_s < CALL_AGAIN_S:
            return
        if sample.now_s - self._started_s > UTP_AFTER_S:
            self._session.apply_settings({"enable_outgoing_utp": True})
        self._called_s = sample.now_s
        for peer in self.options.peers:
            if dog is None or peer not in dog.guilty:
                handle.connect_peer(peer)


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
