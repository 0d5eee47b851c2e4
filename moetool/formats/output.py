"""One output file, written front to back: what the three writers share.

A writer says which bytes come next, an `OutputFile` is where they go. The usual one is a `NewFile`:
it must not exist before, and `Output.finish` is the only way to a synced one. A conversion brings
its own, which hashes what passes and goes on where an interrupted run was.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from moetool.errors import MoetoolError, NoRoomOnDisk, OutputExists, SystemFault

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from moetool.tensors import Buffer, TensorInfo

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class OutputFile(Protocol):
    """Where the bytes of a file go, in order."""

    def append(self, content: Buffer) -> None:
        """Take the next bytes, which nobody changes afterwards."""
        ...

    def skip(self, nbytes: int) -> None:
        """Leave a hole, which reads as zeros and takes no room on disk."""
        ...

    def finish(self) -> None:
        """Sync and close; closing twice is harmless."""
        ...


class Output:
    """The position reached in a file; ``waiting`` are the tensors still to come."""

    __slots__ = ("_file", "path", "position", "waiting")

    def __init__(
        self, path: Path, infos: Sequence[TensorInfo], into: OutputFile | None = None
    ) -> None:
        self.path = path
        self.position = 0
        self.waiting = list(reversed(infos))
        self._file = into or NewFile(path)

    def append(self, content: Buffer) -> None:
        """Write all of ``content``."""
        self._file.append(content)
        self.position += memoryview(content).nbytes

    def skip(self, nbytes: int) -> None:
        """Leave a hole, which reads as zeros and takes no room on disk."""
        self._file.skip(nbytes)
        self.position += nbytes

    def next_tensor(self, name: str) -> TensorInfo:
        """The announced tensor whose turn it is, which must have that name."""
        if not self.waiting or self.waiting[-1].name != name:
            due = self.waiting[-1].name if self.waiting else "nothing"
            raise MoetoolError(f"{name} was written when {due} was due", where=str(self.path))
        return self.waiting.pop()

    def copy(self, info: TensorInfo, chunks: Iterable[Buffer]) -> None:
        """Write a tensor's bytes, exactly as many as it has."""
        end = self.position + info.nbytes
        for chunk in chunks:
            self.append(chunk)
        if self.position != end:
            raise MoetoolError(
                f"{info.name} got {info.nbytes + self.position - end} bytes, not {info.nbytes}",
                where=str(self.path),
            )

    def finish(self) -> None:
        """Sync and close; every announced tensor must have been written."""
        if self.waiting:
            raise MoetoolError(f"{self.waiting[-1].name} was not written", where=str(self.path))
        self._file.finish()


class NewFile:
    """A file that was not there before; whoever is interrupted leaves it to be deleted."""

    __slots__ = ("_fd", "_path", "_position")

    def __init__(self, path: Path) -> None:
        self._path, self._position, self._fd = path, 0, -1
        with refusals(path):
            self._fd = create_only(path)

    def append(self, content: Buffer) -> None:
        """Write at the end."""
        with refusals(self._path):
            write_all(self._fd, content, self._position)
        self._position += memoryview(content).nbytes

    def skip(self, nbytes: int) -> None:
        """Leave a hole."""
        self._position += nbytes

    def finish(self) -> None:
        """Sync and close."""
        if self._fd < 0:
            return
        with refusals(self._path):
            os.ftruncate(self._fd, self._position)  # a hole at the very end counts as well
            os.fsync(self._fd)
            os.close(self._fd)
        self._fd = -1

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def create_only(path: Path) -> int:
    """Open a new file for reading and writing; its mode follows the umask, it is not private."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def write_all(fd: int, content: Buffer, offset: int) -> None:
    """Write at an offset; a single write may take only a part."""
    rest = memoryview(content).cast("B")
    while rest:
        written = os.pwrite(fd, rest, offset)
        offset += written
        rest = rest[written:]


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn what the system refuses into our errors: a full disk, a file that is there, the rest."""
    try:
        yield
    except FileExistsError as error:
        raise OutputExists("is there already", where=str(path)) from error
    except OSError as error:
        kind = NoRoomOnDisk if error.errno in _NO_ROOM else SystemFault
        raise kind(error.strerror or "cannot be written", where=str(path)) from error
