"""A file that is written and hashed at once: reading, SHA-256, XXH3 and writing overlap.

    source ─read, CRC-32─> append ─┬─> pwrite     ─each 64 MiB─> fdatasync
    (the caller's thread)          ├─> SHA-256
                                   └─> XXH3

Each arrow is a thread and a short queue: hashlib, xxhash and the system's calls let go of the
interpreter's lock. Writing is synced as it goes, so a disk is never idle, no mark has to wait for
gigabytes, and a signal is answered in less than what one piece of syncing takes.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import xxhash

from moetool.errors import MoetoolError
from moetool.formats.output import create_only, refusals, write_all

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.tensors import Buffer

PIECE_NBYTES = 1 << 20  # stays in a core's cache while the hashes pass over it
DEPTH = 8  # pieces ahead of a thread: 8 MiB for each of three
SYNC_NBYTES = 64 << 20  # 0.3 s of a slow disk; smaller ones cost a disk more commits than data
_KEEP_SIZE = 1  # linux: FALLOC_FL_KEEP_SIZE, so the file's size stays what was written
_NO_PREALLOCATION = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class Lane:
    """Calls made in order in a thread of its own, with at most ``depth`` of them waiting.

    What a call raises is raised by a later `put` or by `drain`.
    """

    def __init__(self, name: str, depth: int = DEPTH) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting: deque[Future[object]] = deque()
        self._depth = depth

    def put(self, call: Callable[..., object], *arguments: object) -> None:
        """Hand over a call; wait while too many are ahead of it."""
        if len(self._waiting) >= self._depth:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(call, *arguments))

    def drain(self) -> None:
        """Wait until everything is done."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Drop what has not begun."""
        self._pool.shutdown(cancel_futures=True)


class HashedFile:
    """An `OutputFile` whose digests are known when it is finished.

    ``kept`` bytes at the front are there from an earlier run, whose mark vouches for them. Until
    the position has passed them, bytes are hashed and not written. What lies behind is cut off.
    """

    def __init__(self, path: Path, nbytes: int, kept: int = 0) -> None:
        self.path, self.position, self._kept = path, 0, kept
        self._unsynced = 0
        self._sha256, self._xxh3 = hashlib.sha256(), xxhash.xxh3_128()
        with refusals(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC) if kept else create_only(path)
            os.ftruncate(self._fd, kept)
            preallocate(self._fd, nbytes)
        self._writing, self._hashing = Lane("write"), Lane("sha256")
        self._fingerprinting, self._syncing = Lane("xxh3"), Lane("sync", 1)

    def append(self, content: Buffer) -> None:
        """Take the next bytes, which nobody changes afterwards."""
        whole = memoryview(content).cast("B")
        for start in range(0, len(whole), PIECE_NBYTES):
            piece = whole[start : start + PIECE_NBYTES]
            if self.position >= self._kept:
                self._writing.put(self._write, piece, self.position)
            self._hashing.put(self._sha256.update, piece)
            self._fingerprinting.put(self._xxh3.update, piece)
            self.position += len(piece)

    def skip(self, nbytes: int) -> None:
        """Nothing that is hashed has holes."""
        raise MoetoolError(f"a hole of {nbytes} bytes", where=str(self.path))

    def feed(self, digest: xxhash.xxh3_128, content: Buffer) -> None:
        """Update a digest of the caller's, behind its back; `drain` before reading it."""
        self._fingerprinting.put(digest.update, content)

    def kept_bytes(self, nbytes: int) -> Iterator[Buffer]:
        """Read from the front that was kept, from the position on, what a tensor has there."""
        end = self.position + nbytes
        while self.position < end:
            with refusals(self.path):
                yield os.pread(self._fd, min(PIECE_NBYTES, end - self.position), self.position)

    def drain(self) -> None:
        """Wait until all that was appended is written and hashed."""
        for lane in (self._writing, self._hashing, self._fingerprinting, self._syncing):
            lane.drain()

    def sync(self) -> str:
        """Have everything on the disk; give the XXH3 of the file up to here."""
        self.drain()
        with refusals(self.path):
            os.fdatasync(self._fd)
        return self._xxh3.hexdigest()

    def finish(self) -> None:
        """Cut off what was allocated and not needed, and sync."""
        self.drain()
        with refusals(self.path):
            os.ftruncate(self._fd, self.position)
        self.sync()

    @property
    def sha256(self) -> str:
        """The digest of all bytes; `drain` before reading it."""
        return self._sha256.hexdigest()

    def forget_pages(self) -> None:
        """Drop the file from the system's cache, so that reading it asks the disk."""
        with refusals(self.path):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Stop the threads, whatever was left to do, and close; closing twice is harmless."""
        for lane in (self._writing, self._hashing, self._fingerprinting, self._syncing):
            lane.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, piece: memoryview, offset: int) -> None:
        with refusals(self.path):
            write_all(self._fd, piece, offset)
        self._unsynced += len(piece)
        if self._unsynced >= SYNC_NBYTES:
            self._unsynced = 0
            self._syncing.put(self._fdatasync)

    def _fdatasync(self) -> None:
        with refusals(self.path):
            os.fdatasync(self._fd)


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
