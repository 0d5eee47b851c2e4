"""Write a plan: into OUT.partial beside OUT, and one rename at the end.

    OUT.partial/lock            held while somebody works; it dies with its holder
    OUT.partial/journal.jsonl   what is done
    OUT.partial/NAME            finished files; NAME.tmp is the one in work

The existence of OUT is the only sign of "complete": whatever stops the work before (an error, a
signal, a power cut) leaves nothing under the final name, and the same command goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from moetool.arch.recognize import recognize
from moetool.convert.execute.journal import JOURNAL, Mark, Past, ShardRecord
from moetool.convert.execute.shard import Desk, digest_of, unfinished, write_shard
from moetool.durable import locked, publish, sync_folder
from moetool.errors import DigestMismatch, InconsistentCheckpoint, OutputExists
from moetool.formats import open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.convert.plan import Plan, Shard

Progress = Callable[[int, str], None]

LOCK = "lock"
OUR_FILES = frozenset({LOCK, JOURNAL})  # in the work folder, and never in an output


def work_folder(out: Path) -> Path:
    """Where an output is made: beside it, so that one rename can publish it."""
    return out.with_name(out.name + ".partial")


@contextmanager
def output_directory(out: Path, *, resumable: bool = False, force: bool = False) -> Iterator[Path]:
    """Give a work folder that becomes ``out`` when the block ends without an error.

    It is empty but for the lock, unless ``resumable``. With ``force`` an output that is there is
    moved to OUT.old-N, at the last moment: until then it can be used.

    Raises:
        OutputExists: ``out`` is there already.
        LockHeld: another process is writing it.
    """
    work = work_folder(out)
    _refuse_existing(out, force=force)
    with locked(work / LOCK):
        try:
            _refuse_existing(out, force=force)
        except OutputExists:  # another run published it between the look and the lock
            (work / LOCK).unlink()
            with suppress(OSError):
                work.rmdir()
            raise
        if not resumable:
            sweep(work, ())
        yield work
        sync_folder(work)
        if force and (out.exists() or out.is_symlink()):
            _move_aside(out)
        publish(work, out, without=(work / JOURNAL, work / LOCK))


def _refuse_existing(out: Path, *, force: bool) -> None:
    if not force and (out.exists() or out.is_symlink()):
        hint = "choose another --out; --force moves this one aside"
        raise OutputExists("is there already", where=str(out), hint=hint)


def sweep(work: Path, keep: Iterable[str]) -> None:
    """Remove all that is not kept: left-overs must not reach the output."""
    kept = {*OUR_FILES, *keep}
    for left_over in work.iterdir():
        if left_over.name in kept:
            continue
        if left_over.is_dir() and not left_over.is_symlink():
            shutil.rmtree(left_over)
        else:
            left_over.unlink()


def what_holds(past: Past, plan: Plan, work: Path) -> Past:
    """Of what a journal claims, that which hashing the files again confirms."""
    held = Past(past.work)
    for shard in plan.shards:
        names = [step.target.name for step in shard.steps]
        record, marks = past.shards.get(shard.file_name), past.marks.get(shard.file_name, [])
        if record and _is_whole(record, names, work):
            held.shards[shard.file_name] = record
        elif marks and _is_begun(marks, names, work):
            held.marks[shard.file_name] = marks
    return held


def _is_whole(record: ShardRecord, names: Sequence[str], work: Path) -> bool:
    path = work / record.file_name
    if [tensor.name for tensor in record.tensors] != names or not _is_file(path):
        return False
    same_size = path.stat().st_size == record.nbytes
    return same_size and digest_of(path, record.nbytes) == record.xxh3_128


def _is_begun(marks: Sequence[Mark], names: Sequence[str], work: Path) -> bool:
    path = unfinished(work, marks[-1].file_name)
    found = [tensor.name for mark in marks for tensor in mark.tensors]
    if found != names[: len(found)] or not _is_file(path):
        return False
    last = marks[-1]
    reaches = path.stat().st_size >= last.position
    return reaches and digest_of(path, last.position) == last.xxh3_128


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def kept_files(held: Past) -> set[str]:
    """The names in the work folder that hold something worth keeping."""
    return {*held.shards, *(f"{name}.tmp" for name in held.marks)}


def write_plan(
    desk: Desk, plan: Plan, headers: Sequence[Mapping[str, object]], held: Past
) -> list[ShardRecord]:
    """Write all files of a plan, each with its header's metadata, but those that are held.

    Raises:
        DigestMismatch: the source is damaged; the files that were made of it are removed.
    """
    records: list[ShardRecord] = []
    try:
        for shard, metadata in zip(plan.shards, headers, strict=True):
            records.append(_finished(desk, shard, metadata, held))
        desk.source.settle_rest()
    except DigestMismatch:
        for record in records:
            if any(item.tensor in desk.source.damaged for item in record.ranges):
                (desk.work / record.file_name).unlink()
        raise
    return records


def _finished(desk: Desk, shard: Shard, metadata: Mapping[str, object], held: Past) -> ShardRecord:
    record, marks = held.shards.get(shard.file_name), held.marks.get(shard.file_name, [])
    for entry in [record] if record else marks:
        desk.source.settle(entry.ranges)
        for tensor in entry.tensors:
            if tensor.cast:
                desk.casts.tensors[tensor.name] = tensor.cast
    return record or write_shard(desk, shard, metadata, marks)


def check_written(plan: Plan, work: Path) -> None:
    """Open what was written with the public reader: names, types and shapes as planned.

    It must be recognised as well: the strict rules for GGUF, which llama.cpp's loader lacks, are
    ours too.

    Raises:
        InconsistentCheckpoint: what a reader sees is not what was planned.
        Refused: a reader refuses the file.
    """
    with open_checkpoint(work) as written:
        found = dict(written.catalog.tensors)
        recognize(written.catalog, written.directory)
    planned = {step.target.name: step.target for step in plan.steps}
    if found != planned:
        wrong = sorted(name for name in {*found, *planned} if found.get(name) != planned.get(name))
        raise InconsistentCheckpoint(
            "the written checkpoint is not the planned one",
            where=str(work),
            findings=tuple(wrong),
            hint="this is a bug of moetool, please report it",
        )


def _move_aside(out: Path) -> None:
    number = 1
    while (aside := out.with_name(f"{out.name}.old-{number}")).exists() or aside.is_symlink():
        number += 1
    out.rename(aside)
