"""What libtorrent's alerts and status mean: told by their names, without importing it.

A full disk is one ``file_error_alert`` and then silence: the torrent keeps its state, shows no
error and is not paused. So whoever drops an alert waits for ever.
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from moetool.errors import NoRoomOnDisk, Stalled, SystemFault
from moetool.release.torrent.doctor import Diagnosis, Doctor, diagnose, findings
from moetool.release.torrent.watch import Peer, Progress, Sample, Watchdog

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from moetool.release.torrent.metainfo import Metainfo

Alert = Any  # libtorrent has a class for each kind, without a common protocol
Status = Any  # its torrent_status

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SHUT = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_SECTOR_NBYTES = 512  # the unit of st_blocks, whatever the file system's own is


# What a peer says in its extended handshake, as libtorrent's log shows it (keys in order).
_SAYS_SIZE = re.compile(r"'metadata_size': (\d{1,15})")
# Neither has anything for the other (error_code.hpp: uninteresting_upload_peer, …_have_all).
_NOTHING_MORE = frozenset({"uninteresting upload-only peer", "upload to upload connection"})
# socks5_stream.hpp: what a proxy says of us, and what one says that carries TCP alone.
_OF_PROXY = frozenset({"SOCKS authentication error", "SOCKS username required"})
_NO_UDP = frozenset({"SOCKS command not supported"})
_MAX_TEXT = 100  # of what strangers say


@dataclass(slots=True)
class Seen:
    """What the alerts of one torrent have told so far.

    ``metadata_sizes`` is what each peer says of the metadata's size, 0 where it has none.
    """

    metadata: bool = False
    finished: bool = False
    failed_pieces: int = 0
    answered: set[str] = field(default_factory=set)
    met: set[Peer] = field(default_factory=set)
    fails: Counter[int] = field(default_factory=Counter)
    refused: str = ""
    poor: set[Peer] = field(default_factory=set)
    proxy_error: str = ""
    tracker_errors: dict[str, str] = field(default_factory=dict)
    metadata_sizes: dict[Peer, int] = field(default_factory=dict)

    def take(self, alert: Alert, dog: Watchdog | None = None) -> None:
        """Take note of an alert; bans and bad pieces concern the watchdog too."""
        match type(alert).__name__:
            case "metadata_received_alert":
                self.metadata = True
            case "torrent_finished_alert":
                self.finished = True
            case "tracker_reply_alert":
                self.answered.add(alert.tracker_url())
                self.tracker_errors.pop(alert.tracker_url(), None)
            case "peer_connect_alert":
                self.met.add(alert.endpoint)
            case "hash_failed_alert":
                self.failed_pieces += 1
                self.fails[alert.piece_index] += 1
                if dog:
                    dog.hash_failed(self.fails[alert.piece_index])
            case "peer_ban_alert" if dog:
                dog.ban(alert.endpoint)
            case _:
                self._take_refusal(alert)

    def _take_refusal(self, alert: Alert) -> None:
        """Take note of why somebody gives nothing, in words of others."""
        match type(alert).__name__:
            case "tracker_error_alert":
                said = alert.failure_reason() or alert.error.message()
                self.tracker_errors[alert.tracker_url()] = _short(said)
            case "peer_disconnected_alert" if alert.error.message() in _NOTHING_MORE:
                self.poor.add(alert.endpoint)
            case "peer_disconnected_alert":
                self.refused = _short(alert.error.message())
                if self.refused in _OF_PROXY:
                    self.proxy_error = self.refused
            case "peer_log_alert" if "<== EXTENDED_HANDSHAKE" in alert.message():
                size = _SAYS_SIZE.search(alert.log_message())
                self.metadata_sizes[alert.endpoint] = int(size[1]) if size else 0
            case "socks5_alert" if alert.error.message() not in _NO_UDP:
                self.proxy_error = _short(alert.error.message())

    def add_to(self, sample: Sample, pieces: Sequence[bool]) -> Sample:
        """The sample with what was told; ``pieces`` says which are here."""
        left = [(n, i) for i, n in self.fails.items() if not any(pieces[i : i + 1])]
        fails, failing = max(left, default=(0, -1))
        return replace(
            sample,
            answered=len(self.answered),
            refused=self.refused,
            poor=len(self.poor),
            proxy_error=self.proxy_error,
            tracker_errors=tuple(self.tracker_errors.items()),
            fails=fails,
            failing=failing,
            # One liar must not hide that others have it in a size that is taken.
            metadata_nbytes=min(filter(None, self.metadata_sizes.values()), default=0),
            without_metadata=sum(not size for size in self.metadata_sizes.values()),
        )


def raise_disk_errors(alert: Alert, folder: Path, meta: Metainfo) -> None:
    """Raise what an alert says of the disk.

    Raises:
        NoRoomOnDisk: the file system, a quota or a limit is full.
        SystemFault: another error of a file.
    """
    if type(alert).__name__ not in {"file_error_alert", "torrent_error_alert"}:
        return
    where = alert.filename() if hasattr(alert, "filename") else str(folder)
    if alert.error.value() in _FULL:
        raise no_room(folder, meta, where=where)
    shut = alert.error.value() in _SHUT
    raise SystemFault(
        f"{alert.error.message()} ({alert.message()})",
        where=where,
        hint="make it writable, or give another --out" if shut else "look at the disk (dmesg)",
    )


def raise_listen_errors(alert: Alert, port: int) -> None:
    """Raise if the port that was asked for cannot be had."""
    if port and type(alert).__name__ == "listen_failed_alert":
        raise SystemFault(
            f"cannot listen on port {port}: {alert.error.message()}", hint="give another --port"
        )


def bytes_missing(folder: Path, meta: Metainfo) -> int:
    """The bytes that the release still has to take on disk; sparse files take what they hold."""
    files = (path for path in meta.file_sizes(folder) if path.is_file())
    return max(0, meta.nbytes - sum(path.stat().st_blocks * _SECTOR_NBYTES for path in files))


def bytes_free(folder: Path) -> int:
    """What an ordinary user may still write to the file system of ``folder``."""
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize


def no_room(folder: Path, meta: Metainfo, *, where: str) -> NoRoomOnDisk:
    """The error for a file system that cannot hold the release, with the bytes that lack."""
    missing, free = bytes_missing(folder, meta), bytes_free(folder)
    lack = f"{missing - free} too few" if missing > free else "a quota or limit forbids more"
    return NoRoomOnDisk(
        f"no room: {missing} bytes are still to come, {free} are free ({lack})",
        where=where,
        hint="free some room and run the same command again; what is here is kept",
    )


def progress_of(status: Status, meta: Metainfo, why: Diagnosis | None) -> Progress:
    """The progress that a status shows, and why nothing comes, where that is so."""
    rate = status.download_payload_rate
    left = status.total_wanted - status.total_wanted_done
    have = status.pieces  # made anew each time it is asked for
    return Progress(
        stage="download",
        bytes_done=status.total_wanted_done,
        bytes_total=meta.nbytes,
        pieces_done=status.num_pieces,
        pieces_total=len(have),
        rate_bytes_s=rate,
        peers=status.num_peers,
        eta_s=left / rate if rate else None,
        note=why.words if why else "",
        cause=why.cause if why else "",
        have=have,
    )


def stalled(sample: Sample, timeout_s: float, doctor: Doctor) -> Stalled:
    """The error for a download without a new piece."""
    why = diagnose(sample)
    return Stalled(
        f"no piece came in {timeout_s:.0f} s: {why.words}",
        hint=f"{why.advice}; the same command goes on with what is here",
        findings=findings(sample, doctor),
    )


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"
