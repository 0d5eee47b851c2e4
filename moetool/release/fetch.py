"""From a source to a folder whose every byte was hashed: the order of the steps, and what stays.

metadata   nothing on disk; the file list is judged
lock       OUT.partial/ beside OUT, held by flock
look       what an earlier run left is hashed; only what matches is kept
download   the rest; each piece is hashed where it lies, and digests of files follow
settle     every claim, reading what was not read behind the download; bad pieces are fetched again
rename     OUT.partial/ becomes OUT, once: the existence of OUT is the sign of "complete"
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from moetool.durable import publish, sync_folder
from moetool.errors import DigestMismatch, Interrupted, OutputExists, Refused
from moetool.files.joined import Joins
from moetool.files.partial import OUR_FOLDER, forget_partial, is_partial, move_partial
from moetool.release.live.arrivals import Arrivals
from moetool.release.live.taking import take
from moetool.release.magnet import Repairs, format_magnet
from moetool.release.provenance import (
    Origin,
    locked,
    read_origin,
    record_digests,
    remember_last,
    write_origin,
)
from moetool.release.resume import (
    held_pieces,
    prepare,
    with_known_metadata,
    with_selection,
)
from moetool.release.source import Source, judge_metadata, reaching
from moetool.release.torrent.alerts import bytes_free, bytes_missing, no_room
from moetool.release.torrent.download import Downloaded, download
from moetool.release.torrent.metainfo import Metainfo, read_info
from moetool.release.torrent.profile import SwarmOptions
from moetool.release.torrent.selection import selected, wanted_pieces
from moetool.release.torrent.session import Swarm
from moetool.release.torrent.watch import Peer, Progress
from moetool.release.verify.references import references, trust_lines
from moetool.release.verify.settle import VerifyReport, settle

if TYPE_CHECKING:
    from moetool.extents import Claim
    from moetool.release.verify.hashing import Computed, Wanted

ROUNDS = 3  # a piece that three downloads did not mend will not be mended by a fourth
ROOM = 1.02  # folders, records and what others write meanwhile
"""Free space that must be there for each byte still to come."""


@dataclass(frozen=True, slots=True)
class FetchReport:
    """The outcome of a fetch; ``payload`` counts the bytes that came over the network.

    ``selected`` are the paths of the files that the link asked for; None: all of them.
    """

    schema: ClassVar[str] = "moetool.fetch"
    version: ClassVar[int] = 1

    path: Path
    name: str
    info_hashes: tuple[str, ...]
    magnet: str
    repairs: Repairs
    pieces: int
    pieces_kept: int
    payload: int
    banned: tuple[Peer, ...]
    already_complete: bool
    verification: VerifyReport
    selected: tuple[str, ...] | None = None

    @property
    def ok(self) -> bool:
        """True when every byte is as promised."""
        return self.verification.ok


def fetch(
    source: Source,
    out: Path | None = None,
    options: SwarmOptions | None = None,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    kind: Callable[[Source, Metainfo, Path, Callable[[Progress], None]], FetchJob] | None = None,
) -> FetchReport:
    """Fetch a release into ``out``, by default a folder of the torrent's name.

    ``kind`` is how it is done where more is to be done than fetching.

    Raises:
        HostileTorrent: refused before any file exists.
        OutputExists, LockHeld: something is in the way.
        NoRoomOnDisk, SystemFault: the machine said no.
        MetadataTimeout, Stalled: the swarm does not give it.
        DigestMismatch: the bytes are those of the torrent and not those of another reference.
        Interrupted: with what is here kept for the next run.
    """
    # Each piece is looked at until it is seen on the disk: so the faster way of writing will do.
    options = replace(reaching(source.magnet, options or SwarmOptions()), disk="pread")
    try:
        return _fetch(source, out, options, on_progress, kind or FetchJob)
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted; what is here is kept", hint=_AGAIN) from error
    except Interrupted as error:
        raise Interrupted(error.what, exit_code=error.exit_code, hint=_AGAIN) from error


_AGAIN = "run the same command again to go on"
_BORDERS = (
    "note     v1 pieces that reach into files not selected were hashed when they came, and cannot "
    "be hashed again"
)


def _fetch(
    source: Source,
    out: Path | None,
    options: SwarmOptions,
    on_progress: Callable[[Progress], None],
    kind: Callable[[Source, Metainfo, Path, Callable[[Progress], None]], FetchJob],
) -> FetchReport:
    source = with_known_metadata(source, out)
    with Swarm(options) as swarm:
        if source.meta is None:
            info = swarm.metadata(source.magnet, on_progress)
            source = judge_metadata(source, read_info(info))
        assert source.meta is not None  # judged just now, or before
        where = (out or Path(source.meta.name)).absolute()
        meta = with_selection(source.meta, source.magnet, where, on_progress)
        return kind(source, meta, where, on_progress).run(swarm)


@dataclass(slots=True)
class FetchJob:
    """One fetch whose metadata is known and judged."""

    source: Source
    meta: Metainfo
    out: Path
    on_progress: Callable[[Progress], None]
    payload: int = 0
    banned: tuple[Peer, ...] = ()
    taken: dict[Wanted, Computed] = field(default_factory=dict)  # digests of what is in `partial`

    @property
    def partial(self) -> Path:
        """The folder in which the files gather."""
        return self.out.with_name(self.out.name + ".partial")

    @property
    def result(self) -> Path:
        """The folder that remains."""
        return self.out

    def run(self, swarm: Swarm) -> FetchReport:
        """Do it, from the lock to the rename; see `fetch`."""
        self._refuse_foreign()
        with locked(self.partial):
            self._refuse_foreign()
            return self._work(swarm)

    def _work(self, swarm: Swarm) -> FetchReport:
        """What is done under the lock."""
        if self.out.exists() and not is_partial(self.out):
            report = self._settle(self.out)
            if not self._is_mendable(report):
                self._drop_empty_partial()
                return self._finish(checked(report), kept=self._n_pieces(), already=True)
        write_origin(self.partial, self.meta, self._origin(fetched_at=None))
        self._take_back()
        have = prepare(self.meta, self.partial, self.on_progress)
        report = self._complete(swarm, have)
        write_origin(self.partial, self.meta, self._origin(fetched_at=now()))
        record_digests(self.partial, report)
        self._publish()
        return self._finish(moved(report, self.partial, self.out), kept=sum(have))

    def _refuse_foreign(self) -> None:
        """Only a folder that a fetch of the same torrent made may be touched."""
        for folder in (self.out, self.partial):
            if not folder.exists():
                continue
            origin = read_origin(folder) if folder.is_dir() else None
            fresh = folder == self.partial and folder.is_dir() and holds_only_ours(folder)
            if not fresh and (origin is None or origin.info_hashes != self.meta.hashes):
                of = f" (it is {origin.name!a})" if origin else ""
                raise OutputExists(
                    f"exists and is not from this torrent{of}",
                    where=str(folder),
                    hint="give another --out, or move it away",
                )

    def _complete(self, swarm: Swarm, have: list[bool]) -> VerifyReport:
        for _ in range(ROUNDS):
            self.taken = {}
            if not have or not all(have[index] for index in wanted_pieces(self.meta)):
                self._preflight()
                outcome = self._download(swarm, have)
                self.payload += outcome.payload
                self.banned += outcome.banned
            forget_partial(self.partial)  # what was fetched with --only has no holes any more
            report = self._settle(self.partial)
            if not self._is_mendable(report):
                break
            have = held_pieces(self.meta, self.partial, self.on_progress)
        return checked(report)

    def _download(self, swarm: Swarm, have: list[bool]) -> Downloaded:
        try:
            arrivals = Arrivals(self.meta, self.partial)
        except Refused:  # the link of a v2 torrent does not tell the digests of single pieces
            return download(swarm, self.meta, self.partial, have, self.on_progress)
        found = take(swarm, arrivals, have, lambda: self._claims(self.partial), self.on_progress)
        self.taken = found.digests
        return found.downloaded

    def _is_mendable(self, report: VerifyReport) -> bool:
        """Whether fetching again can help: it cannot where the torrent itself is kept to."""
        names = {self.meta.reference, f"{self.meta.reference} v2", "size"}
        return any(item.reference.partition("#")[0] in names for item in report.unsettled)

    def _preflight(self) -> None:
        if bytes_free(self.partial) < bytes_missing(self.partial, self.meta) * ROOM:
            raise no_room(self.partial, self.meta, where=str(self.partial))

    def _claims(self, folder: Path) -> Iterator[Claim]:
        return references(
            folder, self.meta, release=self.source.release, release_md5=self.source.release_md5
        )

    def _settle(self, folder: Path) -> VerifyReport:
        files: dict[Path, int | None] = dict(self.meta.file_sizes(folder))
        report = settle(
            self._claims(folder),
            Joins(files).files(files),
            record=(),
            known=self.taken,
            on_progress=lambda done, total: self.on_progress(Progress("verify", done, total)),
        )
        trust = trust_lines(report, self.meta, self.source.release)
        if self.meta.pieces and selected(self.meta) is not None:
            trust = (*trust, _BORDERS)
        return replace(report, trust=trust)

    def _take_back(self) -> None:
        """Undo the publication of a folder that has bad bytes, so that they can be replaced.

        The files move one by one: the lock, which is held, stays where it is.
        """
        if not self.out.exists():
            return
        if is_partial(self.out):
            move_partial(self.out, self.partial)
        for path in self.out.iterdir():
            if path.name != OUR_FOLDER:
                path.rename(self.partial / path.name)
        remove_ours(self.out)
        sync_folder(self.out.parent)

    def _drop_empty_partial(self) -> None:
        """Remove the folder that was only made to hold the lock."""
        if holds_only_ours(self.partial):
            remove_ours(self.partial)

    def _publish(self) -> None:
        for path in self.meta.file_sizes(self.partial):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if selected(self.meta) is not None:
            for path in self.partial.glob(".*.parts"):  # libtorrent's, of files not selected
                path.unlink()
        sync_folder(self.partial)
        publish(self.partial, self.out)
        (self.out / OUR_FOLDER / "lock").unlink()

    def _finish(self, report: VerifyReport, *, kept: int, already: bool = False) -> FetchReport:
        remember_last(self.result)
        return FetchReport(
            path=self.result,
            name=self.meta.name,
            info_hashes=self.meta.hashes,
            magnet=format_magnet(self.source.magnet),
            repairs=self.source.repairs,
            pieces=self._n_pieces(),
            pieces_kept=kept,
            payload=self.payload,
            banned=tuple(dict.fromkeys(self.banned)),
            already_complete=already,
            verification=report,
            selected=selected(self.meta),
        )

    def _n_pieces(self) -> int:
        if selected(self.meta) is not None:
            return len(wanted_pieces(self.meta))
        total = self.meta.files[-1].offset + self.meta.files[-1].nbytes
        return -(-total // self.meta.piece_length)

    def _origin(self, fetched_at: str | None) -> Origin:
        return Origin(
            name=self.meta.name,
            info_hashes=self.meta.hashes,
            magnet=format_magnet(self.source.magnet),
            release_md5=self.source.release_md5,
            fetched_at=fetched_at,
            selected=selected(self.meta),
        )


def checked(report: VerifyReport) -> VerifyReport:
    """The report, if nothing in it is wrong.

    Raises:
        DigestMismatch: something is; the files stay where they are.
    """
    if report.ok:
        return report
    folder = report.files[0].path.parent
    wrong = (
        f"{item.reference}: {item.algorithm} is {item.found}, expected {item.expected}"
        for item in report.unsettled
    )
    raise DigestMismatch(
        "the bytes are not what every reference promises",
        where=str(folder),
        hint=f"moetool verify {folder}",
        findings=tuple(wrong),
    )


def remove_ours(folder: Path) -> None:
    """Remove a folder that holds nothing but our records; another process may be quicker."""
    with contextlib.suppress(OSError):
        for path in (folder / OUR_FOLDER).iterdir():
            path.unlink()
        (folder / OUR_FOLDER).rmdir()
        folder.rmdir()


def holds_only_ours(folder: Path) -> bool:
    """Whether a folder has nothing in it but our records."""
    return all(path.name == OUR_FOLDER for path in folder.iterdir())


def moved(report: VerifyReport, old: Path, new: Path) -> VerifyReport:
    """The report on files whose folder was renamed."""
    files = tuple(replace(file, path=new / file.path.relative_to(old)) for file in report.files)
    return replace(report, files=files)


def now() -> str:
    """UTC in ISO 8601."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
