"""OUT.partial/journal.jsonl: what is done, so that the same command goes on where it stopped.

    {"plan": {...}}    which work this is: plan id, source files, options
    {"mark": {...}}    NAME.tmp is on the disk up to a position, with these tensors
    {"shard": {...}}   NAME is finished, with these digests and tensors

A line is JSON, a tab and the XXH3-64 of the JSON, and is synced before the work goes on. Nothing
is believed: a line whose digest is wrong (a torn last one, a flipped byte) is as if never written,
and what the others claim of a file counts once its bytes were hashed again. Each mark names the
digest of the mark before it, so a mark whose predecessor is lost counts for nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import xxhash

from moetool.convert.casts import BlockError, CastCount, TensorCast
from moetool.convert.execute.checked_source import SourceRange
from moetool.convert.execute.row_blocks import RowBlocks
from moetool.durable import write_durably
from moetool.formats.output import refusals

if TYPE_CHECKING:
    from pathlib import Path

JOURNAL = "journal.jsonl"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the source as it was found; the time is in nanoseconds."""

    name: str
    nbytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Work:
    """Which work a journal is of; ``options`` are there to be read by people."""

    plan_id: str
    files: tuple[SourceFile, ...]
    options: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A written tensor: XXH3-128 of the source bytes it was made of, and of its own.

    ``blocks`` are digests of its rows, so that damage can be placed in it.
    """

    name: str
    source_xxh3_128: str
    xxh3_128: str
    blocks: RowBlocks
    cast: TensorCast | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """A file in work that is synced up to ``position``, with what was added since ``after``.

    ``xxh3_128`` is of the whole file up to the position, ``after`` that of the mark before.
    """

    file_name: str
    after: str
    position: int
    xxh3_128: str
    tensors: tuple[TensorRecord, ...]
    ranges: tuple[SourceRange, ...]


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """A finished file: its digests, its tensors, and what was read of the source for it."""

    file_name: str
    nbytes: int
    sha256: str
    xxh3_128: str
    tensors: tuple[TensorRecord, ...]
    ranges: tuple[SourceRange, ...]


@dataclass(slots=True)
class Past:
    """What the readable lines of a journal claim; ``work`` is None when nothing says whose."""

    work: Work | None = None
    shards: dict[str, ShardRecord] = field(default_factory=dict)
    marks: dict[str, list[Mark]] = field(default_factory=dict)

    def enter(self, line: Mapping[str, Any]) -> None:
        """Take one line into account.

        Raises:
            KeyError, TypeError, ValueError: a line of another version of this program.
        """
        match line:
            case {"plan": fields}:
                files = tuple(SourceFile(**file) for file in fields["files"])
                self.work = Work(fields["plan_id"], files, fields["options"])
            case {"shard": fields}:
                shard = ShardRecord(**{**fields, **_nested(fields)})
                self.shards[shard.file_name] = shard
            case {"mark": fields}:
                self._mark(Mark(**{**fields, **_nested(fields)}))

    def _mark(self, mark: Mark) -> None:
        before = self.marks.get(mark.file_name, [])
        if not mark.after:
            self.marks[mark.file_name] = [mark]
        elif before and before[-1].xxh3_128 == mark.after:
            before.append(mark)

    @property
    def records(self) -> list[Mark | ShardRecord]:
        """Everything that speaks of written tensors."""
        return [*self.shards.values(), *(mark for held in self.marks.values() for mark in held)]

    def lines(self) -> Iterable[Mapping[str, Any]]:
        """The lines that claim the same."""
        if self.work is not None:
            yield {"plan": asdict(self.work)}
        for shard in self.shards.values():
            yield {"shard": asdict(shard)}
        for marks in self.marks.values():
            yield from ({"mark": asdict(mark)} for mark in marks)


class Journal:
    """The journal of work that goes on: begun anew with what holds of the past.

    ``then`` is told of each line that is on the disk.
    """

    def __init__(
        self,
        folder: Path,
        past: Past,
        then: Callable[[Mark | ShardRecord], None] = lambda _: None,
    ) -> None:
        self._path, self._then = folder / JOURNAL, then
        with refusals(self._path):
            write_durably(self._path, b"".join(map(_encode, past.lines())))

    def add(self, entry: Mark | ShardRecord) -> None:
        """Add a line, and have it on the disk; the file it speaks of must be there already."""
        kind = "mark" if isinstance(entry, Mark) else "shard"
        with refusals(self._path), self._path.open("ab") as file:
            file.write(_encode({kind: asdict(entry)}))
            file.flush()
            os.fsync(file.fileno())
        self._then(entry)


def read_journal(folder: Path) -> Past:
    """Read what an earlier run left; nothing where there is no journal."""
    past = Past()
    path = folder / JOURNAL
    if not path.is_file():
        return past
    with refusals(path):
        raw = path.read_bytes()
    for line in raw.split(b"\n"):
        text, _, digest = line.rpartition(b"\t")
        if not text or digest != _digest(text):
            continue
        try:
            past.enter(json.loads(text))
        except (KeyError, TypeError, ValueError):
            continue
    return past


def _encode(line: Mapping[str, Any]) -> bytes:
    text = json.dumps(line, separators=(",", ":")).encode()
    return text + b"\t" + _digest(text) + b"\n"


def _digest(text: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(text).encode()


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "tensors": tuple(_tensor(tensor) for tensor in fields["tensors"]),
        "ranges": tuple(SourceRange(**item) for item in fields["ranges"]),
    }


def _tensor(fields: Mapping[str, Any]) -> TensorRecord:
    made = _cast(fields["cast"]) if fields["cast"] else None
    blocks = RowBlocks(fields["blocks"]["rows"], tuple(fields["blocks"]["xxh3_64"]))
    return TensorRecord(**{**fields, "blocks": blocks, "cast": made})


def _cast(fields: Mapping[str, Any]) -> TensorCast:
    error = BlockError(**fields["error"]) if fields["error"] else None
    return TensorCast(**{**fields, "count": CastCount(**fields["count"]), "error": error})
