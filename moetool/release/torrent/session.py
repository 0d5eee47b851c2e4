"""A session with the peers of one torrent, and how libtorrent is opened and given a torrent.

A magnet goes through two stages: metadata alone, with nothing on disk, so that the file list can
be judged; then the download, with the pieces that are there already and were hashed by us.
Resume data are neither written nor read: libtorrent 2.1.1 believes them even of an empty file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from moetool.errors import HostileTorrent, MetadataTimeout
from moetool.heap import limit_heap
from moetool.release.magnet import Magnet, format_magnet
from moetool.release.torrent.alerts import Seen, raise_listen_errors
from moetool.release.torrent.doctor import Doctor, Remedy, diagnose, findings
from moetool.release.torrent.metainfo import MAX_INFO_NBYTES, Metainfo
from moetool.release.torrent.profile import SwarmOptions, profile
from moetool.release.torrent.watch import Peer, Progress, Sample, Watchdog

if TYPE_CHECKING:
    import libtorrent as lt

    from moetool.release.torrent.doctor import Diagnosis

TICK_MS = 200  # libtorrent's wait does not return on a signal
CALL_AGAIN_S = 3.0
FLUSH_S = 60.0  # a disk that takes longer for a MiB has another trouble, and it is told
_USUAL = 4  # libtorrent's default priority
_NOT_SENT = os.strerror(errno.EACCES)  # what libtorrent says of a datagram that it kept back
_CHOKES, _WANTED = 8, 1  # peer_info: remote_choked, interesting


class Swarm:
    """A session with the peers of one torrent; a context manager."""

    def __init__(self, options: SwarmOptions) -> None:
        self.options = options
        self._called_s = time.monotonic()
        self._received: dict[lt.torrent_handle, int] = {}
        self._payload = -1
        self.met: set[Peer] = set()  # those that gave metadata are called for pieces at once
        self.doctor = Doctor(options.rejoin_after_s)
        # Through a proxy or not at all: libtorrent keeps a datagram back until SOCKS5 takes it (and
        # does not tell where the proxy refuses to). HTTP carries none.
        self._may_send_udp = options.proxy is None or options.proxy.kind == "socks5"

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
        session = open_session(profile(self.options), self.options.disk)
        if not self.options.ipv6:
            session.set_ip_filter(_no_ipv6())
        return session

    def metadata(self, magnet: Magnet, on_progress: Callable[[Progress], None]) -> bytes:
        """Get the raw info dict that belongs to the info-hash; nothing is written beside it.

        Raises:
            MetadataTimeout: no peer gave it in time; says why.
            HostileTorrent: what came is not what the info-hash stands for.
        """
        import libtorrent as lt

        adding = lt.parse_magnet_uri(format_magnet(replace(magnet, web_seeds=(), peers=())))
        adding.trackers = list(self.options.trackers)
        flags = lt.torrent_flags
        adding.flags = flags.upload_mode | flags.default_dont_download | flags.apply_ip_filter
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
        self._listen_to_handshakes(wanted=True)
        while not seen.metadata:
            for alert in self.alerts(handle):
                seen.take(alert)
            sample = replace(self.sample(handle, handle.status(), seen), wants_metadata=True)
            waited_s = sample.now_s - began
            why = diagnose(sample)
            if waited_s > self.options.metadata_timeout_s:
                raise MetadataTimeout(
                    f"no peer gave the metadata in {self.options.metadata_timeout_s:.0f} s: "
                    f"{why.words}",
                    hint=why.advice,
                    findings=findings(sample, self.doctor),
                )
            self.call_again(sample, handle)
            now = Progress("metadata", peers=sample.peers, note=why.words, cause=why.cause)
            for told in self.treat(why, waited_s):
                on_progress(replace(now, told=told))
            on_progress(now)
        self._listen_to_handshakes(wanted=False)
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

    def sample(
        self, handle: lt.torrent_handle, status: lt.torrent_status, seen: Seen, banned: int = 0
    ) -> Sample:
        """What can be seen of the swarm with this status; closer while nothing comes."""
        self._received[handle] = status.total_download
        sample = Sample(
            now_s=time.monotonic(),
            pieces=status.num_pieces,
            done=status.total_wanted_done,
            payload=status.total_payload_download,
            peers=status.num_peers,
            seeds=status.num_seeds,
            availability=status.distributed_copies,
            trackers=len(self.options.trackers),
            dht_nodes=self.session.status().dht_nodes if self.options.dht else None,
            banned=banned,
            known=status.list_peers,
            proxied=self.options.proxy is not None,
        )
        if sample.payload == self._payload:  # the rate falls to zero only seconds later
            sample = look_closer(sample, handle, status)
        self._payload = sample.payload
        return seen.add_to(sample, status.pieces)

    def flush(self, handle: lt.torrent_handle) -> None:
        """Wait until all that was received is written, or has surely failed to be."""
        until_s = time.monotonic() + FLUSH_S
        handle.flush_cache()
        while time.monotonic() < until_s:
            if any(type(alert).__name__ == "cache_flushed_alert" for alert in self.alerts(handle)):
                return

    def treat(self, why: Diagnosis, quiet_s: float) -> Iterator[str]:
        """Let the doctor speak, and allow uTP where that may help; the lines to be told."""
        if told := self.doctor.speak(why, quiet_s):
            yield told
        if self._may_send_udp and self.doctor.wants_utp(why, quiet_s):
            self.session.apply_settings({"enable_outgoing_utp": True})
            yield self.doctor.use(Remedy.UTP)

    def call_again(
        self, sample: Sample, handle: lt.torrent_handle, dog: Watchdog | None = None
    ) -> None:
        """Without peers: try the named peers again, for libtorrent forgets them.

        So are trackers that speak UDP and were asked before the proxy was ready for datagrams.
        """
        if sample.peers or (dog and dog.asked) or sample.now_s - self._called_s < CALL_AGAIN_S:
            return
        self._called_s = sample.now_s
        for peer in self.options.peers:
            if dog is None or peer not in dog.guilty:
                handle.connect_peer(peer)
        if sample.proxied and self._may_send_udp:
            too_early = {url for url, why in sample.tracker_errors if why == _NOT_SENT}
            for index, tracker in enumerate(handle.trackers()):
                if tracker["url"] in too_early:
                    handle.force_reannounce(0, index)

    def _listen_to_handshakes(self, *, wanted: bool) -> None:
        """Have alerts of what peers say of themselves: nothing else tells why none has it."""
        import libtorrent as lt

        mask = _alert_mask() | (lt.alert_category.peer_log if wanted else 0)
        self.session.apply_settings({"alert_mask": mask})


def look_closer(sample: Sample, handle: lt.torrent_handle, status: Any) -> Sample:  # noqa: ANN401  # as in `alerts`
    """The sample with what is worth asking only while nothing comes."""
    flags = [peer.flags for peer in handle.get_peer_info()] if sample.peers else []
    choking = sum(bool(flag & _CHOKES) and bool(flag & _WANTED) for flag in flags)
    lacking: tuple[int, ...] = ()
    have = status.pieces  # made anew each time it is asked for
    if 0 <= sample.availability < 1 and not sample.seeds and have:
        wanted = handle.get_piece_priorities()
        copies = enumerate(handle.piece_availability())
        lacking = tuple(i for i, n in copies if not n and wanted[i] and not have[i])
    return replace(sample, choking=choking, lacking=lacking)


def _alert_mask() -> int:
    import libtorrent as lt

    of = lt.alert_category
    return of.error | of.status | of.storage | of.tracker | of.connect | of.peer


def _no_ipv6() -> lt.ip_filter:
    """A filter that lets nobody through who has an IPv6 address."""
    import libtorrent as lt

    closed = lt.ip_filter()
    closed.add_rule("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 1)
    return closed


def open_session(settings: dict[str, Any], disk: str = "posix") -> lt.session:
    """A session with these settings, its files written and read without a map of memory."""
    import libtorrent as lt

    params = lt.session_params()
    settings["alert_mask"] = _alert_mask()
    params.settings = settings  # type: ignore[assignment]  # the stub wants a TypedDict
    params.disk_io_constructor = f"{disk}_disk_io_constructor"
    # libtorrent's blocks of 16 KiB come and go by the thousand: the limits that glibc begins with.
    limit_heap(kept_nbytes=128 << 10, mapped_nbytes=128 << 10)
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
    absent = {file.path: file.absent for file in meta.files if not file.pad}
    below = [layout.file_path(index).removeprefix(f"{meta.name}/") for index in indices]
    if sorted(below) != sorted(absent):
        odd = sorted(set(below) ^ set(absent))
        raise HostileTorrent(
            "the names would be changed on the way to the disk",
            findings=tuple(ascii(name) for name in odd),
        )
    adding.renamed_files = dict(zip(indices, below, strict=True))
    if any(absent.values()):  # what pieces hold of them goes into a hidden file beside
        priorities = [_USUAL] * layout.num_files()
        for index, path in zip(indices, below, strict=True):
            priorities[index] = 0 if absent[path] else _USUAL
        adding.file_priorities = priorities
    adding.save_path = str(folder)
    adding.storage_mode = lt.storage_mode_t.storage_mode_sparse
    return adding
