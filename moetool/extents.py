"""Ranges of bytes, where they are read from, and what is claimed of them.

Readers of formats take a `ByteSource` and never open a path themselves: so a header can be read
from a file, from a torrent of which a few pieces are here, or over HTTP. A `Claim` says that
certain bytes have a certain digest; torrent pieces, RELEASE md5s and zip CRCs are all claims.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from moetool.errors import ReadFailed, Refused, TruncatedFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from types import TracebackType


Range = tuple[int, int]
"""Offsets of the first byte and of the one behind the last."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of bytes of one file; ``offset`` counts from the start of the file."""

    path: Path
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        """The offset of the first byte behind the range."""
        return self.offset + self.nbytes


@dataclass(frozen=True, slots=True)
class Digest:
    """A checksum: algorithm (md5, sha1, sha256, crc32, xxh3_128, …) and lower-case hex."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True)
class Claim:
    """These bytes, one extent after another, have this digest, says the reference.

    A torrent piece may span several files, so a claim may hold several extents. ``reference`` is
    who says so and, behind a ``#``, which of its claims this is: ``zip CRC-32#data/17``.
    """

    extents: tuple[Extent, ...]
    digest: Digest
    reference: str


class ByteSource(Protocol):
    """Bytes that can be read at any offset."""

    @property
    def path(self) -> Path:
        """The name under which extents refer to this source."""
        ...

    @property
    def nbytes(self) -> int:
        """The size of the whole."""
        ...

    def pread(self, offset: int, nbytes: int) -> bytes:
        """Read exactly ``nbytes`` at ``offset``.

        Raises:
            TruncatedFile: the source ends before ``offset + nbytes``.
            ReadFailed: the machine could not read.
        """
        ...


class Closing:
    """Something that holds files open until it is closed, or until its ``with`` ends."""

    __slots__ = ()

    def close(self) -> None:
        """Close the files; closing twice is harmless."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class LocalFile(Closing):
    """A `ByteSource` on a file, read by pread.

    Not by mmap: an I/O error or a truncation under a map kills the process with SIGBUS, while
    pread says what happened and where.
    """

    __slots__ = ("_fd", "nbytes", "path")

    def __init__(self, path: Path) -> None:
        try:
            # A FIFO or a device in place of a checkpoint must be refused, not waited for.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ReadFailed(error.strerror or "cannot be opened", where=str(path)) from error
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._fd)
            raise Refused("not a regular file", where=str(path))
        self.path = path
        self.nbytes = status.st_size

    def held(self, offset: int, nbytes: int) -> int:
        """How many bytes of a range are here to be read; those behind the end are not."""
        return max(0, min(offset + nbytes, self.nbytes) - offset)

    def holds(self, offset: int, nbytes: int) -> bool:
        """Whether no byte of a range is a hole; what lies behind the end is none."""
        return self.held(offset, nbytes) == LocalFile.held(self, offset, nbytes)

    def places(self, offset: int, nbytes: int) -> Iterator[Extent]:
        """Where bytes lie: in this file, or in several that it stands for."""
        yield Extent(self.path, offset, nbytes)

    def pread(self, offset: int, nbytes: int) -> bytes:
        """Read exactly ``nbytes`` at ``offset``; see `ByteSource.pread`."""
        first = self._read_once(offset, nbytes)
        if len(first) == nbytes:
            return first
        parts, got = [first], len(first)
        while got < nbytes:  # one pread gives at most 2 GiB on Linux
            part = self._read_once(offset + got, nbytes - got)
            if not part:
                raise TruncatedFile(
                    f"ends at byte {offset + got}, expected {nbytes} bytes at {offset}",
                    where=str(self.path),
                    hint="fetch or copy the file again",
                )
            parts.append(part)
            got += len(part)
        return b"".join(parts)

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """Read into ``buffer`` what one system call gives; 0 at the end of the file."""
        try:
            return os.preadv(self._fd, [buffer], offset)
        except OSError as error:
            raise self._failed(error, offset) from error

    def _read_once(self, offset: int, nbytes: int) -> bytes:
        try:
            return os.pread(self._fd, nbytes, offset)
        except OSError as error:
            raise self._failed(error, offset) from error

    def _failed(self, error: OSError, offset: int) -> ReadFailed:
        name = errno.errorcode.get(error.errno or 0, "EIO")
        return ReadFailed(f"{name} while reading at byte {offset}", where=str(self.path))

    def close(self) -> None:
        """Give the file descriptor back; closing twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def union(ranges: Iterable[Range]) -> list[Range]:
    """Merge ranges into disjoint ones, in order."""
    merged: list[Range] = []
    for start, stop in sorted(ranges):
        if start >= stop:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged


def subtract(ranges: Iterable[Range], holes: Iterable[Range]) -> list[Range]:
    """What of ``ranges`` lies in no hole."""
    left: list[Range] = []
    cuts = union(holes)
    at = 0
    for low, high in union(ranges):
        start = low
        while at < len(cuts) and cuts[at][1] <= start:
            at += 1
        step = at
        while step < len(cuts) and cuts[step][0] < high:
            left.append((start, cuts[step][0]))
            start = cuts[step][1]
            step += 1
        left.append((start, high))
    return [(start, stop) for start, stop in left if start < stop]


def length(ranges: Iterable[Range]) -> int:
    """The number of bytes in disjoint ranges."""
    return sum(stop - start for start, stop in ranges)


def drop_from_cache(extent: Extent) -> None:
    """Ask the system to keep no copy of a range in memory; where it cannot, nothing is lost."""
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    with suppress(OSError), extent.path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), extent.offset, extent.nbytes, os.POSIX_FADV_DONTNEED)
