"""Write a plan: into OUT.partial beside OUT, and one rename at the end.

The existence of OUT is the only sign of "complete": whatever stops the work before (an error, a
signal, a power cut) leaves nothing under the final name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from moetool.convert.stream import stream
from moetool.durable import locked, publish
from moetool.errors import InconsistentCheckpoint, NoRoomOnDisk, OutputExists
from moetool.formats import create, open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.convert.plan import Plan
    from moetool.tensors import Buffer, Checkpoint

Progress = Callable[[int, str], None]

HEADROOM = 64 << 20  # bytes beyond the tensors: headers, side files, the file system's own


def require_room(out: Path, nbytes: int) -> None:
    """Refuse before the first byte what the disk cannot hold.

    Raises:
        NoRoomOnDisk: with what is needed and what is free.
    """
    needed = nbytes + nbytes // 100 + HEADROOM
    free = shutil.disk_usage(_existing_parent(out)).free
    if free < needed:
        raise NoRoomOnDisk(
            f"{needed:,} bytes are needed, {free:,} are free",
            where=str(out),
            hint=f"free {needed - free:,} bytes, or give another place with --out",
        )


@contextmanager
def output_directory(out: Path) -> Iterator[Path]:
    """Give a work folder that becomes ``out`` when the block ends without an error.

    Raises:
        OutputExists: ``out`` is there already.
        LockHeld: another process is writing it.
    """
    if out.exists() or out.is_symlink():
        raise OutputExists("is there already", where=str(out), hint="choose another --out")
    work = out.with_name(out.name + ".partial")
    with locked(work / "lock"):
        for left_over in work.iterdir():
            if left_over.name != "lock":
                _remove(left_over)
        yield work
        (work / "lock").unlink()
        publish(work, out)


def write_plan(
    checkpoint: Checkpoint,
    plan: Plan,
    work: Path,
    headers: Sequence[Mapping[str, object]],
    side_files: Mapping[str, bytes],
    progress: Progress = lambda _done, _note: None,
) -> None:
    """Write all shards (each with its header's metadata) and side files of a plan, synced."""
    meter = _Meter(progress)
    for shard, metadata in zip(plan.shards, headers, strict=True):
        infos = [step.target for step in shard.steps]
        sink = create(work / shard.file_name, infos, metadata)
        for step in shard.steps:
            sink.write(step.target.name, meter.count(stream(checkpoint, step), shard.file_name))
        sink.close()
    for name, content in side_files.items():
        _write_file(work / name, content)


def check_written(plan: Plan, work: Path) -> None:
    """Open what was written with the public reader: names, types and shapes as planned.

    Raises:
        InconsistentCheckpoint: what a reader sees is not what was planned.
        Refused: a reader refuses the file.
    """
    with open_checkpoint(work) as written:
        found = dict(written.catalog.tensors)
    planned = {step.target.name: step.target for step in plan.steps}
    if found != planned:
        wrong = sorted(name for name in {*found, *planned} if found.get(name) != planned.get(name))
        raise InconsistentCheckpoint(
            "the written checkpoint is not the planned one",
            where=str(work),
            findings=tuple(wrong),
            hint="this is a bug of moetool, please report it",
        )


class _Meter:
    """Counts the bytes that pass through to the files."""

    def __init__(self, progress: Progress) -> None:
        self.done, self.progress = 0, progress

    def count(self, chunks: Iterator[Buffer], note: str) -> Iterator[Buffer]:
        for chunk in chunks:
            yield chunk
            self.done += len(chunk)
            self.progress(self.done, note)


def _write_file(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())
