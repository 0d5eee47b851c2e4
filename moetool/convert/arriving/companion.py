"""The conversion in a thread beside the download: each is told at once when the other fails.

The thread of the command downloads, for signals arrive there. The reader waits inside of `pread`;
whoever ends first with an error puts it into the `Arrivals`, where the other one meets it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from moetool.convert.arriving.reads import Behind, StepReads, piece_order, reads_of
from moetool.convert.execute.folder import Progress as Steps
from moetool.convert.execute.folder import work_folder
from moetool.convert.execute.journal import JOURNAL, Mark, ShardRecord
from moetool.convert.execute.room import existing_parent, room_for
from moetool.convert.execute.run import Manner
from moetool.convert.execute.shard import MARK_NBYTES
from moetool.convert.job import ConvertReport, Job, Source, open_source
from moetool.errors import DigestMismatch, Interrupted, MoetoolError, NoRoomOnDisk
from moetool.files import open_raw
from moetool.formats import open_checkpoint
from moetool.formats.arriving import check_assumed, open_arriving
from moetool.formats.directory import is_weight_file
from moetool.release.live.headers import sources_in
from moetool.release.torrent.alerts import bytes_free, bytes_missing
from moetool.release.torrent.watch import Progress

if TYPE_CHECKING:
    from moetool.formats import FileCheckpoint
    from moetool.release.live.arrivals import Arrivals
    from moetool.release.live.streams import Streams
    from moetool.release.publish.taken import TakenPieces

AHEAD_NBYTES = 1 << 30
"""Downloaded at most beyond what is being read, where the raw files do not stay."""

_TICK_S = 0.2
_MARKS = 3  # one that is written, one that is being synced, one between
_ROOM = 1.02  # as a fetch asks for each byte still to come


@dataclass(frozen=True, slots=True)
class Wish:
    """What to do with a release while it comes.

    ``prepared`` makes the job from a source and the folder to make: ``out``, or beside the raw
    files a folder that is named by the ``layout``. ``keep`` leaves the raw files; else a piece goes
    once all that was made of it is sealed, and at most ``ahead_nbytes`` are downloaded ahead.
    ``certifier`` compares the raw files, which must stay for it, with what was made of them.
    ``take`` begins the digests of pieces that a torrent of the output needs; it is told how many
    bytes that will have.
    """

    prepared: Callable[[Source, Path], Job]
    layout: str
    out: Path | None = None
    keep: bool = True
    readback: bool = True
    again: str = ""
    ahead_nbytes: int = AHEAD_NBYTES
    mark_nbytes: int = MARK_NBYTES
    certifier: Callable[[Source, FileCheckpoint, Steps], Certifier] | None = None
    take: Callable[[int], TakenPieces] | None = None

    def folder(self, raw: Path) -> Path:
        """The folder to make of raw files in ``raw``, as `moetool convert` would name it."""
        return (self.out or raw.with_name(f"{raw.name}-{self.layout}")).absolute()

    def certifies(self, job: Job) -> bool:
        """Whether the output will be compared with its source: quantised blocks may not be."""
        return self.certifier is not None and not job.plan.unreadable

    def passing_nbytes(self, job: Job) -> int:
        """The bytes that the progress of `run` ends with."""
        return job.plan.nbytes + job.plan.certified_nbytes * self.certifies(job)

    def run(
        self,
        job: Job,
        raw: Callable[[], Path],
        progress: Steps,
        on_sealed: Callable[[Mark | ShardRecord], None] = lambda _: None,
        arrived: Callable[[], None] = lambda: None,
    ) -> ConvertReport:
        """Run the job in the manner wished for; ``raw`` tells where the raw files lie in the end.

        Raises:
            MoetoolError: see `Job.run`.
        """
        certificate: object = None

        def certify(work: Path) -> Mapping[str, bytes]:
            nonlocal certificate
            assert self.certifier is not None  # else it is not called
            with open_checkpoint(raw()) as checkpoint:
                certifier = self.certifier(open_source(checkpoint), checkpoint, progress)
                beside = certifier(work)
            certificate = certifier.certificate
            return beside

        manner = Manner(
            readback=self.readback,
            mark_nbytes=self.mark_nbytes,
            again=self.again,
            on_sealed=on_sealed,
            arrived=arrived,
            certify=certify if self.certifies(job) else None,
            taken=self.take(job.plan.nbytes) if self.take else None,
        )
        return replace(job.run(progress, manner), certificate=certificate)


class Certifier(Protocol):
    """Compares an output that has not got its name yet with its source; see `Manner.certify`."""

    @property
    def certificate(self) -> object:
        """What was found."""

    def __call__(self, work: Path) -> Mapping[str, bytes]:
        """The files to write beside the output in ``work``."""
        ...


class Companion:
    """One conversion beside one download; begun when pieces begin to come."""

    def __init__(self, wish: Wish, raw: Path) -> None:
        self.wish, self.out, self._raw = wish, wish.folder(raw), raw
        self.arrivals: Arrivals | None = None
        self.weights: frozenset[Path] = frozenset()
        self._streams: Streams | None = None
        self._thread = threading.Thread(target=self._work, name="convert", daemon=True)
        self._whole = threading.Event()
        self._folder = Path()  # of the raw files, once they are settled
        self._behind: Behind | None = None
        self._done = self._total = 0
        self._report: ConvertReport | None = None
        self._error: BaseException | None = None

    def begin(self, arrivals: Arrivals, streams: Streams | None = None) -> None:
        """Start; with ``streams`` the raw bytes go behind the conversion."""
        self.arrivals, self._streams = arrivals, streams
        self._thread.start()

    def note(self) -> str:
        """How far it is, in a few words."""
        return f"{self._done / self._total:.0%} converted" if self._total else "reading headers"

    def spoil(self) -> None:
        """End it: bytes that it has read turned out to be others now; it must begin anew."""
        assert self.arrivals is not None  # it has begun
        self.arrivals.fail(
            DigestMismatch(
                "the bytes on the disk are not those that were hashed when they came",
                where=str(self._raw),
                hint="the disk or the memory is not sound; run moetool convert when it is",
            )
        )
        self._thread.join()
        (work_folder(self.out) / JOURNAL).unlink(missing_ok=True)

    def finish(
        self, folder: Path, on_progress: Callable[[Progress], None] = lambda _: None
    ) -> ConvertReport:
        """Say that the raw files are whole, settled, and lie in ``folder``; wait for the end.

        Raises:
            MoetoolError: what ended the conversion.
        """
        self._folder = folder
        self._whole.set()
        while self._thread.is_alive():
            self._thread.join(_TICK_S)
            on_progress(Progress("convert", self._done, self._total))
        if self._error is not None:
            raise self._error
        assert self._report is not None  # it ended without an error
        return self._report

    def stop(self, error: BaseException) -> None:
        """End it because of an error elsewhere, and wait until it has put its things in order."""
        if self.arrivals is None or not self._thread.is_alive():
            return
        known = isinstance(error, MoetoolError)
        self.arrivals.fail(error if known else Interrupted("the download was ended"))
        self._thread.join()

    def _work(self) -> None:
        assert self.arrivals is not None  # `begin` saw to it
        try:
            with self._open(self.arrivals) as checkpoint:
                self._report = self._convert(self.arrivals, checkpoint)
        except BaseException as error:  # noqa: BLE001  # it is raised again in the other thread
            self._error = error
            self.arrivals.fail(error)

    def _open(self, arrivals: Arrivals) -> FileCheckpoint:
        """Have all small files, and open the checkpoint by its headers."""
        sources = sources_in(arrivals, arrivals.folder, is_weight_file)
        return open_arriving(self._raw, arrivals.folder, sources)

    def _convert(self, arrivals: Arrivals, checkpoint: FileCheckpoint) -> ConvertReport:
        headers = arrivals.wanted
        job = self.wish.prepared(open_source(checkpoint), self.out)
        self._total = self.wish.passing_nbytes(job)
        steps = reads_of(job.plan, checkpoint, arrivals)
        past = job.past()
        sealed = {tensor.name for record in past.records for tensor in record.tensors}
        order = piece_order([step.pieces for step in steps if step.name not in sealed])
        if self._streams is not None:
            self._behind = Behind(steps, arrivals, (), lambda _: None)
            self._behind.sealed(sealed)
            rest = self._behind.unread()
            self._behind = Behind(steps, arrivals, headers, self._streams.give_back)
        else:
            rest = list(arrivals.pieces)
        self._require_room(arrivals, job, steps, order.lag)
        arrivals.plan(tuple(dict.fromkeys([*order.pieces, *rest])))
        return self.wish.run(
            job,
            lambda: self._folder,
            self._progress,
            self._on_sealed,
            lambda: self._arrived(arrivals, checkpoint),
        )

    def _progress(self, done: int, _note: str) -> None:
        assert self.arrivals is not None  # it has begun
        self._done = done
        self.arrivals.go_on()

    def _on_sealed(self, entry: Mark | ShardRecord) -> None:
        if self._behind is not None:
            self._behind.sealed([tensor.name for tensor in entry.tensors])

    def _arrived(self, arrivals: Arrivals, checkpoint: FileCheckpoint) -> None:
        """Wait until the source is whole and settled, and look at the headers not yet read."""
        arrivals.read_all()
        while not self._whole.wait(_TICK_S):
            arrivals.go_on()
        checkpoint.directory = self._folder
        if self._streams is None:
            check_assumed(checkpoint, checkpoint.sources)
            return
        # Of pieces that an earlier run has used, the bytes between the tensors are still there.
        opened = {path: open_raw(path) for path in checkpoint.sources}
        try:
            check_assumed(checkpoint, opened)
        finally:
            for file in opened.values():
                file.close()

    def _require_room(
        self, arrivals: Arrivals, job: Job, steps: tuple[StepReads, ...], lag: int
    ) -> None:
        """Refuse what the disks cannot hold, raw files and output together where they share one.

        Raises:
            NoRoomOnDisk: with what is needed and what is free.
        """
        raw = int(bytes_missing(arrivals.folder, arrivals.meta) * _ROOM)
        if not self.wish.keep:
            raw = min(raw, self._reserve(arrivals, job, steps, lag))
        out = room_for(job.out, job.plan.nbytes)
        parent = existing_parent(job.out)
        if parent.stat().st_dev == arrivals.folder.stat().st_dev:
            _require(job.out, raw + out.needed_nbytes, out.free_nbytes)
        else:
            _require(job.out, out.needed_nbytes, out.free_nbytes)
            _require(arrivals.folder, raw, bytes_free(arrivals.folder))

    def _reserve(self, arrivals: Arrivals, job: Job, steps: tuple[StepReads, ...], lag: int) -> int:
        """The most raw bytes that are on the disk at a time where they do not stay."""
        a_piece = arrivals.meta.piece_length
        a_step = max((len(step.pieces) for step in steps), default=0) * a_piece
        widened = max(1.0, job.plan.read_nbytes / job.plan.nbytes)
        unsealed = int(_MARKS * self.wish.mark_nbytes * widened)
        read = {index for step in steps for index in step.pieces}
        staying = len(arrivals.wanted | set(arrivals.pieces).difference(read)) * a_piece
        return self.wish.ahead_nbytes + lag * a_piece + unsealed + _MARKS * a_step + staying


def _require(where: Path, needed: int, free: int) -> None:
    if needed > free:
        raise NoRoomOnDisk(
            f"{needed:,} bytes are needed for the download and the conversion, {free:,} are free",
            where=str(where),
            hint=f"free {needed - free:,} bytes; --no-keep needs less, and --out and "
            "--convert-out may be on two disks",
        )
