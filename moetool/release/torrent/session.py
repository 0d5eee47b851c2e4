"""A session with the peers of one torrent, and how libtorrent is opened and given a torrent.

A magnet goes through two stages: metadata alone, with nothing on disk, so that the file list can
be judged; then the download, with the pieces that are there already and were hashed by us.
Resume data are neither written nor read: libtorrent 2.1.1 believes them even of an empty file.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from moetool.errors import HostileTorrent, MetadataTimeout
from moetool.release.magnet import Magnet, format_magnet
from moetool.release.torrent.alerts import Seen, raise_listen_errors
from moetool.release.torrent.metainfo import MAX_INFO_NBYTES, Metainfo
from moetool.release.torrent.profile import SwarmOptions, profile
from moetool.release.torrent.watch import Peer, Progress, Sample, Watchdog, why_nothing_comes

if TYPE_CHECKING:
    import libtorrent as lt

TICK_MS = 200  # libtorrent's wait does not return on a signal
UTP_AFTER_S = 20.0
CALL_AGAIN_S = 3.0


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
        return open_session(profile(self.options))

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


def open_session(settings: dict[str, Any]) -> lt.session:
    """A session with these settings, its files written and read without a map of memory."""
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


def load(meta: Metainfo, folder: Path) -> lt.add_torrent_params:
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
