"""A file that is written, hashed and synced at once; who does what: lanes.py.

Writing is synced as it goes, so a disk is never idle, no mark has to wait for gigabytes, and a
signal is answered in less than what one piece of syncing takes.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from typing import TYPE_CHECKING

import xxhash

from moetool.errors import MoetoolError
from moetool.formats.output import create_only, refusals, write_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from moetool.convert.execute.lanes import Lane, Lanes
    from moetool.release.publish.taken import FilePieces
    from moetool.tensors import Buffer

PIECE_NBYTES = 1 << 20  # stays in a core's cache while the hashes pass over it
# A larger write takes larger folios of the page cache; on a virtual machine those come from memory
# that the host has to find first, which was measured to cost 0.6 s/GB.
WRITE_NBYTES = 256 << 10
SYNC_NBYTES = 64 << 20  # 0.3 s of a slow disk; smaller ones cost a disk more commits than data
_KEEP_SIZE = 1  # linux: FALLOC_FL_KEEP_SIZE, so the file's size stays what was written
_NO_PREALLOCATION = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class HashedFile:
    """An `OutputFile` whose digests are known when it is finished.

    ``kept`` bytes at the front are there from an earlier run, whose mark vouches for them. Until
    the position has passed them, bytes are hashed and not written. What lies behind is cut off.
    ``pieces`` gets all bytes too, those that are kept included.
    """

    def __init__(
        self,
        path: Path,
        nbytes: int,
        lanes: Lanes,
        kept: int = 0,
        pieces: FilePieces | None = None,
    ) -> None:
        self.path, self.position, self._kept, self._lanes = path, 0, kept, lanes
        self._synced_at = kept
        self._sha256, self._xxh3 = hashlib.sha256(), xxhash.xxh3_128()
        self._hashes: list[tuple[Lane, Callable[[memoryview], None]]] = [
            (lanes.sha256, self._sha256.update), (lanes.xxh3, self._xxh3.update),
        ]  # fmt: skip
        if pieces is not None:
            self._hashes += (lanes.sha1, pieces.sha1.update), (lanes.merkle, pieces.merkle.update)
        with refusals(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC) if kept else create_only(path)
            os.ftruncate(self._fd, kept)
            preallocate(self._fd, nbytes)

    def append(self, content: Buffer) -> None:
        """Take the next bytes, which nobody changes afterwards."""
        whole = memoryview(content).cast("B")
        for start in range(0, len(whole), PIECE_NBYTES):
            piece = whole[start : start + PIECE_NBYTES]
            for lane, update in self._hashes:
                lane.put(update, piece)
            if self.position >= self._kept:
                self._lanes.write.put(self._write, piece, self.position)
            self.position += len(piece)
        if self.position - self._synced_at >= SYNC_NBYTES:
            self.sync()

    def skip(self, nbytes: int) -> None:
        """Nothing that is hashed has holes."""
        raise MoetoolError(f"a hole of {nbytes} bytes", where=str(self.path))

    def feed(self, update: Callable[[Buffer], None], content: Buffer) -> None:
        """Have the caller's own digests take bytes, behind its back."""
        self._lanes.xxh3.put(update, content)

    def kept_bytes(self, nbytes: int) -> Iterator[Buffer]:
        """Read from the front that was kept, from the position on, what a tensor has there."""
        end = self.position + nbytes
        while self.position < end:
            with refusals(self.path):
                yield os.pread(self._fd, min(PIECE_NBYTES, end - self.position), self.position)

    def sync(self, then: Callable[[int, str], None] | None = None) -> None:
        """Have everything up to here on the disk, behind the caller's back.

        ``then`` is called with the position and the XXH3 of the file up to it, when it is there
        and all that was fed before is hashed.
        """
        digest = self._lanes.xxh3.put(self._xxh3.hexdigest) if then else None
        self._lanes.write.put(self._hand_to_sync, self.position, digest, then)
        self._synced_at = self.position

    def finish(self) -> None:
        """Cut off what was allocated and not needed, and sync."""
        self._lanes.drain()
        with refusals(self.path):
            os.ftruncate(self._fd, self.position)
            os.fdatasync(self._fd)

    @property
    def sha256(self) -> str:
        """The SHA-256 of all bytes; `finish` first."""
        return self._sha256.hexdigest()

    @property
    def xxh3_128(self) -> str:
        """The XXH3-128 of all bytes; `finish` first."""
        return self._xxh3.hexdigest()

    def close(self) -> None:
        """Wait for what is being done, and close; closing twice is harmless."""
        self._lanes.settle()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, piece: memoryview, offset: int) -> None:
        with refusals(self.path):
            for at in range(0, len(piece), WRITE_NBYTES):
                write_all(self._fd, piece[at : at + WRITE_NBYTES], offset + at)

    def _hand_to_sync(
        self, position: int, digest: Future[str] | None, then: Callable[[int, str], None] | None
    ) -> None:
        self._lanes.sync.put(self._sync_now, position, digest, then)

    def _sync_now(
        self, position: int, digest: Future[str] | None, then: Callable[[int, str], None] | None
    ) -> None:
        with refusals(self.path):
            os.fdatasync(self._fd)
        if digest is not None and then is not None:
            then(position, digest.result())


def preallocate(fd: int, nbytes: int) -> None:
    """Take the room now, so that a full disk says so before hours of work and not after.

    By the system call: where a file system cannot, glibc's posix_fallocate would write zeros, and
    where it cannot nothing is lost but the early word.

    Raises:
        OSError: no room.
    """
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if fallocate is None or not nbytes:
        return
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while fallocate(fd, _KEEP_SIZE, 0, nbytes):
        number = ctypes.get_errno()
        if number == errno.EINTR:
            continue
        if number in _NO_PREALLOCATION:
            return
        raise OSError(number, os.strerror(number))
