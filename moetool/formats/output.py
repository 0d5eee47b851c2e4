"""One output file, written front to back: what the three writers share.

The file must not exist before. A writer that is interrupted leaves an unfinished file, which its
caller deletes; `Output.finish` is the only way to a synced one.
"""

from __future__ import annotations

import errno
import os
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from moetool.errors import MoetoolError, NoRoomOnDisk, OutputExists, SystemFault

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from moetool.tensors import Buffer, TensorInfo

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Output:
    """A new file and the position reached in it; ``waiting`` are the tensors still to come."""

    __slots__ = ("_fd", "path", "position", "waiting")

    def __init__(self, path: Path, infos: Sequence[TensorInfo]) -> None:
        self.path = path
        self.position = 0
        self.waiting = list(reversed(infos))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with self._system():
            self._fd = os.open(path, flags, 0o666)  # less the umask

    def append(self, content: Buffer) -> None:
        """Write all of ``content``; a single write may take only a part of it."""
        rest = memoryview(content).cast("B")
        while rest:
            with self._system():
                written = os.write(self._fd, rest)
            self.position += written
            rest = rest[written:]

    def skip(self, nbytes: int) -> None:
        """Leave a hole, which reads as zeros and takes no room on disk."""
        with self._system():
            os.lseek(self._fd, nbytes, os.SEEK_CUR)
        self.position += nbytes

    def next_tensor(self, name: str) -> TensorInfo:
        """The announced tensor whose turn it is, which must have that name."""
        if not self.waiting or self.waiting[-1].name != name:
            due = self.waiting[-1].name if self.waiting else "nothing"
            raise MoetoolError(f"{name} was written when {due} was due", where=str(self.path))
        return self.waiting.pop()

    def copy(self, info: TensorInfo, chunks: Iterable[Buffer]) -> int:
        """Write a tensor's bytes, exactly as many as it has; give their CRC-32."""
        crc, end = 0, self.position + info.nbytes
        for chunk in chunks:
            self.append(chunk)
            crc = zlib.crc32(chunk, crc)
        if self.position != end:
            raise MoetoolError(
                f"{info.name} got {info.nbytes + self.position - end} bytes, not {info.nbytes}",
                where=str(self.path),
            )
        return crc

    def finish(self) -> None:
        """Sync and close; every announced tensor must have been written."""
        if self._fd < 0:
            return
        if self.waiting:
            raise MoetoolError(f"{self.waiting[-1].name} was not written", where=str(self.path))
        with self._system():
            os.ftruncate(self._fd, self.position)  # a hole at the very end counts as well
            os.fsync(self._fd)
            os.close(self._fd)
        self._fd = -1

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)

    @contextmanager
    def _system(self) -> Iterator[None]:
        try:
            yield
        except FileExistsError as error:
            raise OutputExists("is there already", where=str(self.path)) from error
        except OSError as error:
            kind = NoRoomOnDisk if error.errno in _NO_ROOM else SystemFault
            raise kind(error.strerror or "cannot be written", where=str(self.path)) from error
