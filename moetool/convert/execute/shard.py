"""One file of the output, step by step of the protocol.

    NAME.tmp  made, its room taken
              copied: the source's CRC-32s checked, everything hashed
              marked in the journal at each `mark_nbytes`: synced up to here
              synced, read back from the disk and compared
    NAME      renamed, the folder synced, then the journal's line

Whatever fails before the rename leaves no file of that name; a write that failed is never retried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import xxhash

from moetool.convert.execute.hashed_file import HashedFile
from moetool.convert.execute.journal import Mark, ShardRecord, TensorRecord
from moetool.convert.execute.read_back import read_back
from moetool.convert.execute.row_blocks import RowBlocksHash
from moetool.convert.stream import stream
from moetool.durable import sync_folder
from moetool.errors import Mismatch, NoRoomOnDisk, SystemFault
from moetool.extents import Extent
from moetool.formats import create
from moetool.formats.output import refusals
from moetool.release.verify.hashing import Wanted, read_digests

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from moetool.convert.casts import CastAccount, TensorCast
    from moetool.convert.execute.checked_source import CheckedSource, SourceRange
    from moetool.convert.execute.journal import Journal
    from moetool.convert.execute.lanes import Lanes
    from moetool.convert.plan import Shard, Step
    from moetool.release.publish.taken import TakenPieces
    from moetool.tensors import Buffer, TensorInfo


MARK_NBYTES = 256 << 20  # a second of a slow disk: what an interruption costs at most


@dataclass(frozen=True, slots=True)
class Desk:
    """Where and with what the files of a conversion are written."""

    work: Path
    source: CheckedSource
    journal: Journal
    casts: CastAccount
    lanes: Lanes
    progress: Callable[[int, str], None]
    readback: bool = True
    mark_nbytes: int = MARK_NBYTES
    taken: TakenPieces | None = None


def write_shard(
    desk: Desk, shard: Shard, metadata: Mapping[str, object], marks: Sequence[Mark]
) -> ShardRecord:
    """Write a file of the output; ``marks``, if any, vouch for what an earlier run wrote of it.

    Raises:
        DigestMismatch: the source or what was read back is not what it should be.
        LossyCast: values that may not change would.
        NoRoomOnDisk, SystemFault: the machine said no.
    """
    temporary = unfinished(desk.work, shard.file_name)
    kept = marks[-1].position if marks else 0
    pieces = desk.taken.begin() if desk.taken else None
    try:
        with closing(HashedFile(temporary, shard.nbytes, desk.lanes, kept, pieces)) as file:
            draft = _Draft(desk, shard.file_name, file, marks)
            draft.fill(shard, metadata)
            record = draft.record()
        if desk.readback:
            read_back(temporary, record.nbytes, record.xxh3_128)
    except NoRoomOnDisk:
        raise  # what the marks vouch for was synced before the disk was full
    except (SystemFault, Mismatch):
        temporary.unlink(missing_ok=True)
        raise
    with refusals(temporary):
        finished = temporary.rename(desk.work / shard.file_name)
        sync_folder(desk.work)
    if desk.taken and pieces:
        desk.taken.keep(finished, pieces)
    desk.journal.add(record)
    return record


def unfinished(work: Path, file_name: str) -> Path:
    """The name of a file while it is in work."""
    return work / (file_name + ".tmp")


class _Draft:
    """A file in work: its tensors so far, and those that no mark speaks of yet.

    Marks are entered behind the back of the thread that reads, in their order.
    """

    def __init__(self, desk: Desk, file_name: str, file: HashedFile, marks: Sequence[Mark]) -> None:
        self._desk, self._file_name, self._file = desk, file_name, file
        self._entered = list(marks)
        self._begun_at = marks[-1].position if marks else 0  # where the mark that comes next begins
        self._fresh: list[_Fresh] = []
        self._fresh_ranges: list[SourceRange] = []

    def fill(self, shard: Shard, metadata: Mapping[str, object]) -> None:
        """Write all tensors in order; those that the marks vouch for are read, not made."""
        infos = [step.target for step in shard.steps]
        sink = create(self._desk.work / self._file_name, infos, metadata, self._file)
        n_kept = sum(len(mark.tensors) for mark in self._entered)
        for info in infos[:n_kept]:
            sink.write(info.name, self._file.kept_bytes(info.nbytes))
        for step in shard.steps[n_kept:]:
            fresh = _Fresh(step.target)
            self._desk.source.begin(fingerprint=not step.is_copy)
            sink.write(step.target.name, self._made(step, fresh))
            ranges, fresh.source_xxh3_128 = self._desk.source.end()
            fresh.cast = self._desk.casts.tensors.get(step.target.name)
            self._fresh.append(fresh)
            self._fresh_ranges += ranges
            if self._file.position - self._begun_at >= self._desk.mark_nbytes:
                self._file.sync(partial(self._mark, self._fresh, self._fresh_ranges))
                self._begun_at = self._file.position
                self._fresh, self._fresh_ranges = [], []
        sink.close()

    def record(self) -> ShardRecord:
        """What the journal says of the finished file."""
        tensors = [tensor for mark in self._entered for tensor in mark.tensors]
        ranges = [item for mark in self._entered for item in mark.ranges]
        return ShardRecord(
            self._file_name,
            self._file.position,
            self._file.sha256,
            self._file.xxh3_128,
            (*tensors, *(fresh.settled() for fresh in self._fresh)),
            (*ranges, *self._fresh_ranges),
        )

    def _made(self, step: Step, fresh: _Fresh) -> Iterator[Buffer]:
        for chunk in stream(self._desk.source, step, self._desk.casts):
            self._file.feed(fresh.update, chunk)
            yield chunk
            self._desk.progress(memoryview(chunk).nbytes, self._file_name)

    def _mark(
        self, fresh: Sequence[_Fresh], ranges: Sequence[SourceRange], position: int, digest: str
    ) -> None:
        last = self._entered[-1].xxh3_128 if self._entered else ""
        tensors = tuple(tensor.settled() for tensor in fresh)
        mark = Mark(self._file_name, last, position, digest, tensors, tuple(ranges))
        self._desk.journal.add(mark)
        self._entered.append(mark)


class _Fresh:
    """A tensor that is being written, and its digests as they grow."""

    def __init__(self, info: TensorInfo) -> None:
        self._name = info.name
        self._xxh3, self._blocks = xxhash.xxh3_128(), RowBlocksHash(info)
        self.source_xxh3_128 = ""
        self.cast: TensorCast | None = None

    def update(self, content: Buffer) -> None:
        """Hash the next bytes."""
        self._xxh3.update(content)
        self._blocks.update(content)

    def settled(self) -> TensorRecord:
        """What is known of the tensor, once all was hashed."""
        digest = self._xxh3.hexdigest()
        source = self.source_xxh3_128 or digest  # a copy is its source
        return TensorRecord(self._name, source, digest, self._blocks.finish(), self.cast)


def digest_of(path: Path, nbytes: int) -> str:
    """The XXH3-128 of the first ``nbytes`` of a file; empty where it cannot be read so far."""
    wanted = Wanted((Extent(path, 0, nbytes),), "xxh3_128")
    return read_digests([wanted])[wanted].hex
