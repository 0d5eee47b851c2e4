"""What libtorrent's alerts and status mean: told by their names, without importing it.

A full disk is one ``file_error_alert`` and then silence: the torrent keeps its state, shows no
error and is not paused. So whoever drops an alert waits for ever.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moetool.errors import NoRoomOnDisk, Stalled, SystemFault
from moetool.release.torrent.watch import Peer, Progress, Sample, Watchdog, why_nothing_comes

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.release.torrent.metainfo import Metainfo

Alert = Any  # libtorrent has a class for each kind, without a common protocol
Status = Any  # its torrent_status

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SECTOR_NBYTES = 512  # the unit of st_blocks, whatever the file system's own is


@dataclass(slots=True)
class Seen:
    """What the alerts of one torrent have told so far."""

    metadata: bool = False
    finished: bool = False
    failed_pieces: int = 0
    answered: set[str] = field(default_factory=set)
    met: set[Peer] = field(default_factory=set)

    def take(self, alert: Alert, dog: Watchdog | None = None) -> None:
        """Take note of an alert; bans and bad pieces concern the watchdog too."""
        match type(alert).__name__:
            case "metadata_received_alert":
                self.metadata = True
            case "torrent_finished_alert":
                self.finished = True
            case "tracker_reply_alert":
                self.answered.add(alert.tracker_url())
            case "peer_connect_alert":
                self.met.add(alert.endpoint)
            case "hash_failed_alert":
                self.failed_pieces += 1
                if dog:
                    dog.hash_failed()
            case "peer_ban_alert" if dog:
                dog.ban(alert.endpoint)


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
    raise SystemFault(f"{alert.error.message()} ({alert.message()})", where=where)


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


def progress_of(status: Status, meta: Metainfo, reason: str) -> Progress:
    """The progress that a status shows; the reason is told only while nothing comes."""
    rate = status.download_payload_rate
    left = status.total_wanted - status.total_wanted_done
    return Progress(
        stage="download",
        bytes_done=status.total_wanted_done,
        bytes_total=meta.nbytes,
        pieces_done=status.num_pieces,
        pieces_total=len(status.pieces),
        rate_bytes_s=rate,
        peers=status.num_peers,
        eta_s=left / rate if rate else None,
        note="" if rate else reason,
    )


def stalled(sample: Sample, timeout_s: float) -> Stalled:
    """The error for a download without a new piece."""
    return Stalled(
        f"no piece came in {timeout_s:.0f} s: {why_nothing_comes(sample)}",
        hint="run the same command again: what is here is kept; --tracker, --peer or --port help",
    )
