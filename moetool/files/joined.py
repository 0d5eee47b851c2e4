"""A file that was uploaded in parts, read as the one file that it is, without a second copy.

    consolidated.00.pth-split0  consolidated.00.pth-split1 ... consolidated.00.pth-split10
    consolidated.safetensors.0  consolidated.safetensors.1 ... consolidated.safetensors.52

The parts follow each other by number, where a listing sorts -split10 before -split2. The name of
the whole stands for them wherever no file of that name is there: its offsets run through all parts,
so headers, digests and damage are spoken of as if nobody had cut it. Hub mirrors have these forms:
someone13574/mixtral-8x7b-32kseqlen (open-compass/MixtralKit: README.md) and
mistral-community/Mixtral-8x22B-v0.1-original (its listing).
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.errors import BadHeader, TruncatedFile
from moetool.extents import Claim, Closing, Extent

if TYPE_CHECKING:
    from moetool.extents import ByteSource, LocalFile

_PART = re.compile(r"(?P<whole>.*\.(?:pth|pt|safetensors|gguf))(?P<mark>-split|\.)(?P<number>\d+)")
MAX_PARTS = 10_000
_SECTOR_NBYTES = 512  # the unit of st_blocks, whatever the file system's own is


def whole_name(name: str) -> str | None:
    """The name of the file that a part was cut from; None where it is no part's name."""
    match = _PART.fullmatch(name)
    return match["whole"] if match else None


def part_names(whole: str, names: Iterable[str]) -> tuple[str, ...]:
    """The parts of a file among the names of its folder, by number; empty where there are none.

    Raises:
        BadHeader: a part is missing between others, or the numbers are written in two ways.
    """
    numbered: dict[int, str] = {}
    wrong = []
    mark = ""
    for name in sorted(names):
        match = _PART.fullmatch(name)
        if match is None or match["whole"] != whole:
            continue
        number = int(match["number"]) if len(match["number"]) < len(str(MAX_PARTS)) else -1
        mark = mark or match["mark"]
        if str(number) != match["number"] or match["mark"] != mark:
            wrong.append(f"not numbered 0, 1, 2 … like the others: {name!a}")
        numbered[number] = name
    count = max(numbered, default=-1) + 1
    wrong += [f"missing: {whole}{mark}{n}" for n in range(count) if n not in numbered][:100]
    if wrong:
        raise BadHeader(
            "the parts of the upload are not complete",
            where=whole,
            hint="fetch what is missing, and keep nothing else under such names beside them",
            findings=tuple(wrong),
        )
    return tuple(numbered[number] for number in range(count))


def parts_of(path: Path) -> tuple[Path, ...]:
    """The parts that a path stands for, in order; empty where a file is there or no part is.

    Raises:
        BadHeader: the parts are not complete (see `part_names`), or one is empty.
    """
    # The folder is listed for names of weight files only: nothing else is ever cut so.
    if whole_name(f"{path.name}-split0") is None or os.path.lexists(path):
        return ()
    try:
        names = os.listdir(path.parent)  # noqa: PTH208  # 100,000 names need no Path each
    except OSError:
        return ()
    parts = tuple(path.parent / name for name in part_names(path.name, names))
    empty = [part.name for part in parts if part.is_file() and part.stat().st_size == 0]
    if empty:
        raise BadHeader(
            "a part of the upload holds nothing",
            where=str(path),
            hint="fetch it again",
            findings=tuple(f"0 bytes: {name}" for name in empty),
        )
    return parts


@dataclass(frozen=True, slots=True)
class Status:
    """Size in bytes, and what changes when a file does; of parts all together.

    ``held_nbytes`` lie on the disk: less than the size where there are holes.
    """

    nbytes: int
    held_nbytes: int
    mtime_ns: int
    inode: int


def status_of(path: Path) -> Status | None:
    """Look at a file, or at the parts that its name stands for; None where there is neither.

    Raises:
        BadHeader: parts, and not all of them.
        OSError: the machine said no.
    """
    try:
        found = [part.stat() for part in parts_of(path) or (path,)]
    except FileNotFoundError:
        return None
    return Status(
        sum(item.st_size for item in found),
        sum(item.st_blocks for item in found) * _SECTOR_NBYTES,
        max(item.st_mtime_ns for item in found),
        sum(item.st_ino for item in found),
    )


class JoinedSource:
    """A `ByteSource` on parts that follow each other, under the name of the whole."""

    __slots__ = ("_ends", "_parts", "nbytes", "path")

    def __init__(self, path: Path, parts: Sequence[ByteSource]) -> None:
        self.path = path
        self._parts = parts
        self._ends = list(accumulate(part.nbytes for part in parts))
        self.nbytes = self._ends[-1]

    def pread(self, offset: int, nbytes: int) -> bytes:
        """Read exactly ``nbytes`` at ``offset``; see `ByteSource.pread`."""
        found = []
        while nbytes:
            number, start = self._place(offset)
            if number == len(self._parts):
                raise TruncatedFile(
                    f"ends at byte {self.nbytes}, expected {nbytes} bytes at {offset}",
                    where=str(self.path),
                    hint="the last part may be missing: fetch the upload again",
                )
            content = self._parts[number].pread(
                offset - start, min(nbytes, self._ends[number] - offset)
            )
            found.append(content)
            offset, nbytes = offset + len(content), nbytes - len(content)
        return found[0] if len(found) == 1 else b"".join(found)

    def _place(self, offset: int) -> tuple[int, int]:
        """Which part holds an offset, and where in the whole that part begins."""
        number = bisect_right(self._ends, offset)
        return number, self._ends[number - 1] if number else 0


class JoinedFile(JoinedSource, Closing):
    """Parts on this machine, open until `close`."""

    __slots__ = ("_files",)

    def __init__(self, path: Path, parts: Iterable[LocalFile]) -> None:
        self._files = list(parts)
        super().__init__(path, self._files)

    def held(self, offset: int, nbytes: int) -> int:
        """How many bytes of a range are here to be read; see `LocalFile.held`."""
        return sum(
            self._files[number].held(start, length)
            for number, start, length in self._spread(offset, nbytes)
        )

    def holds(self, offset: int, nbytes: int) -> bool:
        """Whether no byte of a range is a hole; see `LocalFile.holds`."""
        return self.held(offset, nbytes) == max(0, min(offset + nbytes, self.nbytes) - offset)

    def places(self, offset: int, nbytes: int) -> Iterator[Extent]:
        """Where bytes lie: in one part after another."""
        for number, start, length in self._spread(offset, nbytes):
            yield from self._files[number].places(start, length)

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """Read into ``buffer`` what one part gives; 0 at the end of the last."""
        number, start = self._place(offset)
        if number == len(self._files) or not len(buffer):
            return 0
        room = self._ends[number] - offset
        got = self._files[number].pread_into(buffer[:room], offset - start)
        if not got:
            self._files[number].pread(offset - start, 1)  # a part has shrunk: says which
        return got

    def close(self) -> None:
        """Close the parts; closing twice is harmless."""
        for file in self._files:
            file.close()

    def _spread(self, offset: int, nbytes: int) -> Iterator[tuple[int, int, int]]:
        """Parts with the ranges of them that a range of the whole runs through."""
        end = min(offset + nbytes, self.nbytes)
        while offset < end:
            number, start = self._place(offset)
            length = min(end, self._ends[number]) - offset
            yield number, offset - start, length
            offset += length


def on_disk(extent: Extent) -> Iterator[Extent]:
    """Where the bytes of an extent lie: in the file itself, or in one part after another."""
    start = 0
    parts = parts_of(extent.path)
    if not parts:
        yield extent
    for part in parts:
        size = part.stat().st_size
        low, high = max(extent.offset, start), min(extent.end, start + size)
        if low < high:
            yield Extent(part, low - start, high - low)
        start += size


class Joins:
    """The parts among a set of files, to speak of the wholes in their place.

    Parts are left as they are where one is missing or has another size than was promised: then
    nobody knows where the bytes behind it belong.
    """

    def __init__(self, files: Mapping[Path, int | None]) -> None:
        self._places: dict[Path, Extent] = {}  # part -> where it lies in the whole
        self.wholes: dict[Path, int] = {}
        cut: dict[Path, list[Path]] = {}
        for path in files:
            name = whole_name(path.name)
            if name and not os.path.lexists(path.with_name(name)):
                cut.setdefault(path.with_name(name), []).append(path)
        for whole, parts in cut.items():
            if not any(files[part] is not None and _size(part) != files[part] for part in parts):
                self._join(whole)

    def _join(self, whole: Path) -> None:
        offset = 0
        for part in parts_of(whole):
            self._places[part] = Extent(whole, offset, part.stat().st_size)
            offset += self._places[part].nbytes
        if offset:
            self.wholes[whole] = offset

    def files(self, files: Mapping[Path, int | None]) -> dict[Path, int | None]:
        """The files with their promised sizes, each whole in place of its parts.

        What was promised of the whole itself counts more than the sum of what was found.
        """
        joined: dict[Path, int | None] = {}
        for path, promised in files.items():
            place = self._places.get(path)
            if place is None:
                joined[path] = promised
            else:
                joined.setdefault(place.path, self.wholes[place.path])
        return joined

    def claim(self, claim: Claim) -> Claim:
        """The same claim, on the bytes of the whole."""
        if not any(extent.path in self._places for extent in claim.extents):
            return claim
        moved: list[Extent] = []
        for extent in map(self.extent, claim.extents):
            last = moved[-1] if moved else None
            if last and last.path == extent.path and last.end == extent.offset:
                moved[-1] = Extent(last.path, last.offset, last.nbytes + extent.nbytes)
            else:
                moved.append(extent)
        return Claim(tuple(moved), claim.digest, claim.reference)

    def extent(self, extent: Extent) -> Extent:
        """The same bytes, as those of the whole."""
        place = self._places.get(extent.path)
        if place is None:
            return extent
        return Extent(place.path, place.offset + extent.offset, extent.nbytes)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
