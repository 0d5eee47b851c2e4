"""A conversion from lock to rename: what is held of an earlier run, what is new, what is kept.

The order is the protocol; see docs/explanation/durability.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moetool.convert.execute import manifest
from moetool.convert.execute.checked_source import CheckedSource
from moetool.convert.execute.folder import (
    OUR_FILES,
    Progress,
    check_written,
    kept_files,
    output_directory,
    sweep,
    what_holds,
    work_folder,
    write_plan,
)
from moetool.convert.execute.identity import files_of, refuse_changed, refuse_other
from moetool.convert.execute.journal import Journal, Mark, Past, ShardRecord, Work, read_journal
from moetool.convert.execute.lanes import Lanes
from moetool.convert.execute.shard import MARK_NBYTES, Desk, unfinished
from moetool.convert.stream import computing
from moetool.durable import write_durably
from moetool.errors import Interrupted
from moetool.formats import FileCheckpoint
from moetool.formats.output import refusals

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.convert.casts import CastAccount
    from moetool.convert.plan import Plan
    from moetool.release.publish.taken import TakenPieces
    from moetool.tensors import Checkpoint

AGAIN = "run the same command again to go on"


@dataclass(frozen=True, slots=True)
class Manner:
    """How a conversion is run, which changes nothing in what it writes.

    ``again`` is the command that goes on after an interruption. ``certify`` is called with the
    folder that holds the whole output, before it has its name; the files it gives are written
    beside, and what it raises keeps the output from being published. ``on_sealed`` is told what is
    on the disk and in the journal, from any thread; ``arrived`` is called when the tensors are
    written, and returns when their source is whole and settled. ``taken`` gets the digests of the
    pieces of each file that is written, for a torrent of the output.
    """

    force: bool = False
    restart: bool = False
    readback: bool = True
    mark_nbytes: int = MARK_NBYTES
    again: str = ""
    certify: Callable[[Path], Mapping[str, bytes]] | None = None
    on_sealed: Callable[[Mark | ShardRecord], None] = lambda _: None
    arrived: Callable[[], None] = lambda: None
    taken: TakenPieces | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be written: the plan, what each file carries in its header, the side files.

    ``measured`` goes into the manifest and decides nothing.
    """

    checkpoint: Checkpoint
    source_name: str
    plan: Plan
    headers: Sequence[Mapping[str, object]]
    side_files: Mapping[str, bytes]
    work: Work
    out: Path
    measured: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Written:
    """The files of a finished output by name, and the bytes that an earlier run had written."""

    files: Mapping[str, int]
    resumed_nbytes: int


def run(order: Order, manner: Manner, casts: CastAccount, progress: Progress) -> Written:
    """Write an output, or go on writing it.

    Raises:
        OutputExists, LockHeld, SourceChanged, PlanChanged: something is in the way.
        DigestMismatch: the source is damaged, or what was written does not read back.
        NoRoomOnDisk, SystemFault: the machine said no.
        Interrupted: with what is kept, and the command to go on.
    """
    with output_directory(order.out, resumable=True, force=manner.force) as work:
        try:
            return _run(order, manner, casts, progress, work)
        except KeyboardInterrupt as error:
            raise _interrupted(order, manner, "interrupted", Interrupted.exit_code) from error
        except Interrupted as error:
            raise _interrupted(order, manner, error.what, error.exit_code) from error


def _run(
    order: Order, manner: Manner, casts: CastAccount, progress: Progress, work: Path
) -> Written:
    held = _held(order, manner, work)
    journal = Journal(work, held, manner.on_sealed)
    sources = order.checkpoint.sources if isinstance(order.checkpoint, FileCheckpoint) else {}
    source = CheckedSource(order.checkpoint, sources)
    resumed = _nbytes(held)
    with closing(Lanes()) as lanes, computing(order.plan):
        desk = Desk(
            work, source, journal, casts, lanes, _counter(progress, resumed), manner.readback,
            manner.mark_nbytes, manner.taken,
        )  # fmt: skip
        records = write_plan(desk, order.plan, order.headers, held)
    manner.arrived()
    refuse_changed(order.work, files_of(order.checkpoint))
    folder = order.checkpoint.directory if isinstance(order.checkpoint, FileCheckpoint) else None
    origin = manifest.describe_source(order.source_name, folder, order.work.files)
    entries = {name: manifest.file_entry(content) for name, content in order.side_files.items()}
    described = manifest.build(order.work, order.plan, origin, records, entries, order.measured)
    for name, content in {**order.side_files, manifest.MANIFEST: described}.items():
        with refusals(work / name):
            write_durably(work / name, content)
    check_written(order.plan, work)
    for name, content in (manner.certify(work) if manner.certify else {}).items():
        with refusals(work / name):
            write_durably(work / name, content)
    files = {
        path.name: path.stat().st_size
        for path in sorted(work.iterdir())
        if path.name not in OUR_FILES
    }
    return Written(files, resumed)


def _held(order: Order, manner: Manner, work: Path) -> Past:
    """What of an earlier run holds; everything else in the folder is swept."""
    past = Past() if manner.restart else read_journal(work)
    if past.work is not None:
        refuse_other(past.work, order.work, work)
        past = what_holds(past, order.plan, work)
    else:
        past = Past()  # whose files these are, nothing says
    past.work = order.work
    sweep(work, kept_files(past))
    return past


def _nbytes(held: Past) -> int:
    finished = sum(shard.nbytes for shard in held.shards.values())
    return finished + sum(marks[-1].position for marks in held.marks.values())


def _counter(progress: Progress, done: int) -> Callable[[int, str], None]:
    """Add up the bytes that pass."""

    def add(nbytes: int, note: str) -> None:
        nonlocal done
        done += nbytes
        progress(done, note)

    return add


def _interrupted(order: Order, manner: Manner, what: str, code: int) -> Interrupted:
    """Cut the file in work back to its last mark, and say what is kept."""
    work = work_folder(order.out)
    again = f"to go on: {manner.again}" if manner.again else AGAIN
    past = read_journal(work)
    for shard in order.plan.shards:
        path, marks = unfinished(work, shard.file_name), past.marks.get(shard.file_name)
        if path.is_file() and marks:
            os.truncate(path, marks[-1].position)
        else:
            path.unlink(missing_ok=True)
            past.marks.pop(shard.file_name, None)
    kept = (
        f"{len(past.shards)} of {len(order.plan.shards)} files are finished, "
        f"{_nbytes(past):,} of {order.plan.nbytes:,} bytes are kept in {work}"
    )
    return Interrupted(f"{what}; {kept}", exit_code=code, hint=again)
