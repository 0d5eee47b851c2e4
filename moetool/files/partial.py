"""A release of which only a part was fetched: which bytes are here, and how to get the others.

DIR/.moetool/partial.json   schema, version, the selectors, and for each file the ranges of bytes
                            that were hashed; what is in none of them is a hole

A hole reads as zeros, and zeros are valid weights. So whoever opens a file of such a folder reads
it through `PartialFile`, which gives what was hashed and refuses all else. The record is written
before the first sparse file and goes when the release is whole.
"""

from __future__ import annotations

import json
import os
import shlex
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from moetool.durable import sync_folder, write_durably
from moetool.errors import BadHeader, NotFetched
from moetool.extents import Extent, LocalFile, Range, length, union

OUR_FOLDER = ".moetool"
RECORD = "partial.json"
SCHEMA = "moetool.partial"
VERSION = 1
_MAX_NBYTES = 64 << 20  # two ranges for each piece of the largest torrent would still fit
_UNFINISHED = ".partial"


@dataclass(frozen=True, slots=True)
class Partial:
    """What is here of a release.

    ``folder`` is absolute and free of links. ``here`` has for each file of the release, by its path
    below the folder, disjoint ranges of bytes in ascending order. ``nbytes`` is the size of the
    whole, ``only`` what was selected so far.
    """

    folder: Path
    link: str
    only: tuple[str, ...]
    nbytes: int
    here: Mapping[str, tuple[Range, ...]]

    @property
    def held_nbytes(self) -> int:
        """The bytes that were fetched and hashed."""
        return sum(map(length, self.here.values()))

    @property
    def is_whole(self) -> bool:
        """Whether there is no hole left."""
        return self.held_nbytes == self.nbytes

    def names(self, path: str) -> bool:
        """Whether a path below the folder is that of a file, or leads to one."""
        return path in self.here or any(name.startswith(f"{path}/") for name in self.here)

    def ranges(self, path: Path) -> tuple[Range, ...] | None:
        """What is here of a file; None where it is none of the release's."""
        real = Path(os.path.realpath(path))
        inside = real.is_relative_to(self.folder)
        return self.here.get(real.relative_to(self.folder).as_posix()) if inside else None

    def command(self, only: Sequence[str] = ()) -> str:
        """The command that fetches more of it: what ``only`` selects, or all the rest."""
        out = self.folder.with_name(self.folder.name.removesuffix(_UNFINISHED))
        words = ["moetool", "fetch", self.link, "--out", str(out)]
        return shlex.join([*words, *(word for text in only for word in ("--only", text))])


class PartialFile(LocalFile):
    """A file of a partial release: bytes that were fetched can be read, others are refused."""

    __slots__ = ("_partial", "_ranges")

    def __init__(self, path: Path, partial: Partial, ranges: tuple[Range, ...]) -> None:
        super().__init__(path)
        self._partial, self._ranges = partial, ranges

    def held(self, offset: int, nbytes: int) -> int:
        """How many bytes of a range were fetched."""
        end, found = min(offset + nbytes, self.nbytes), 0
        at = max(0, bisect_right(self._ranges, (offset, 1 << 62)) - 1)
        while at < len(self._ranges) and self._ranges[at][0] < end:
            start, stop = self._ranges[at]
            found += max(0, min(end, stop) - max(offset, start))
            at += 1
        return found

    def pread(self, offset: int, nbytes: int) -> bytes:
        """Read exactly ``nbytes`` at ``offset``; see `ByteSource.pread`.

        Raises:
            NotFetched: some of them are a hole.
        """
        self._require(offset, nbytes)
        return super().pread(offset, nbytes)

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """Read into ``buffer``; see `LocalFile.pread_into`.

        Raises:
            NotFetched: some of the bytes are a hole.
        """
        self._require(offset, len(buffer))
        return super().pread_into(buffer, offset)

    def _require(self, offset: int, nbytes: int) -> None:
        if not self.holds(offset, nbytes):
            raise NotFetched(
                f"some of bytes {offset}-{offset + nbytes - 1} were not fetched",
                where=str(self.path),
                hint=self._partial.command(),
            )


def find_partial(path: Path) -> Partial | None:
    """The record of the partial release that a file or folder is of; None where it is of none.

    Links are followed first: a link to a file with holes leads to holes. What lies below such a
    folder and is none of its files has nothing to do with it.

    Raises:
        BadHeader: there is a record that cannot be understood.
    """
    real = Path(os.path.realpath(path))
    for folder in (real, *real.parents):
        record = folder / OUR_FOLDER / RECORD
        try:
            status = record.stat()
        except OSError:  # there is none, or it is no folder
            continue
        partial = _read(folder, (status.st_ino, status.st_mtime_ns, status.st_size))
        if real == folder or partial.names(real.relative_to(folder).as_posix()):
            return partial
    return None


def is_partial(folder: Path) -> bool:
    """Whether a record says that files of this folder have holes, legible or not."""
    return (folder / OUR_FOLDER / RECORD).is_file()


def refuse_partial(path: Path, what_for: str) -> None:
    """Refuse a folder with holes where only a whole release will do.

    Raises:
        NotFetched: with the command that fetches the rest.
    """
    partial = find_partial(path)
    if partial is not None:
        raise NotFetched(
            f"only {partial.held_nbytes:,} of {partial.nbytes:,} bytes were fetched, and "
            f"{what_for} needs all",
            where=str(path),
            hint=partial.command(),
        )


def write_partial(
    folder: Path, link: str, only: Iterable[str], sizes: Mapping[Path, int], here: Iterable[Extent]
) -> Partial:
    """Record durably what is here.

    Args:
        folder: the release's.
        link: how the rest can be found.
        only: what was selected so far.
        sizes: every file of the release below ``folder``, with its size in bytes.
        here: the bytes that are on disk, synced, and were hashed.
    """
    ranges: dict[Path, list[Range]] = {path: [] for path in sizes}
    for extent in here:
        ranges[extent.path].append((extent.offset, extent.end))
    table = {
        "schema": SCHEMA,
        "version": VERSION,
        "link": link,
        "only": list(dict.fromkeys(only)),
        "nbytes": sum(sizes.values()),
        "here": {path.relative_to(folder).as_posix(): union(ranges[path]) for path in sizes},
    }
    write_durably(folder / OUR_FOLDER / RECORD, (json.dumps(table) + "\n").encode())
    found = find_partial(folder)
    assert found is not None  # it was written just now
    return found


def move_partial(old: Path, new: Path) -> None:
    """Have the record stand in another folder too, into which the files are about to be moved."""
    write_durably(new / OUR_FOLDER / RECORD, (old / OUR_FOLDER / RECORD).read_bytes())


def forget_partial(folder: Path) -> None:
    """Remove the record of a release that is whole now; harmless where there is none."""
    record = folder / OUR_FOLDER / RECORD
    if record.exists():
        record.unlink()
        sync_folder(record.parent)


@lru_cache(maxsize=8)
def _read(folder: Path, version: tuple[int, int, int]) -> Partial:
    """Read a record; one that cannot be understood is refused: the holes are there all the same.

    Raises:
        BadHeader: another version, or no record of ours.
    """
    record = folder / OUR_FOLDER / RECORD
    try:
        return _parse(folder, record.read_bytes() if version[2] <= _MAX_NBYTES else b"too large")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadHeader(
            f"the record of what was fetched cannot be understood ({error})",
            where=str(record),
            hint="run the fetch again: it looks at what is here and writes a new record",
        ) from error


def _parse(folder: Path, content: bytes) -> Partial:
    table = json.loads(content)
    if (table["schema"], table["version"]) != (SCHEMA, VERSION):
        raise ValueError("of another version")
    only, nbytes = tuple(map(str, table["only"])), int(table["nbytes"])
    here = {name: tuple(union(map(_range, spans))) for name, spans in table["here"].items()}
    return Partial(folder, str(table["link"]), only, nbytes, here)


def _range(span: object) -> Range:
    if not isinstance(span, list):
        raise TypeError("a range that is none")
    start, stop = span
    if not (isinstance(start, int) and isinstance(stop, int) and 0 <= start <= stop):
        raise ValueError("a range that is none")
    return start, stop
