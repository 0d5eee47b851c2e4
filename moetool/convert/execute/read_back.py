"""Read back what was written, from the disk and not from memory.

With O_DIRECT where the file system knows it: nothing comes out of the system's cache, and nothing
is copied. Elsewhere the cache is told to forget the bytes first. Only a finished file is read:
beside a writer, O_DIRECT waits for the file's lock and the writer waits for O_DIRECT, which was
measured to halve the speed of both.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING

import xxhash

from moetool.errors import DigestMismatch
from moetool.formats.output import refusals

if TYPE_CHECKING:
    from pathlib import Path

_BUFFER_NBYTES = 8 << 20  # asked for at once: a disk of several queues answers in parallel
_BLOCK = 4096  # O_DIRECT reads whole blocks, into memory that begins at one (a mapping does)


def read_back(path: Path, nbytes: int, expected: str) -> None:
    """Compare what the disk gives for a synced file with the XXH3-128 of what was written.

    Raises:
        DigestMismatch: it gives something else, or less.
        SystemFault: it cannot be read.
    """
    with refusals(path):
        try:
            found = _digest(path, nbytes, os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            found = _digest(path, nbytes, 0)
    if found != expected:
        raise DigestMismatch(
            f"was written with XXH3 {expected}, and reads back with {found}",
            where=str(path.with_suffix("")),
            hint="the disk or the memory is not sound; run the same command again, or write "
            "elsewhere",
        )


def _digest(path: Path, nbytes: int, flags: int) -> str:
    digest, position = xxhash.xxh3_128(), 0
    # Not closed by hand: what an error or a signal interrupts still holds a view of it.
    buffer = memoryview(mmap.mmap(-1, _BUFFER_NBYTES))
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        while position < nbytes:
            wanted = min(_BUFFER_NBYTES, nbytes - position)
            if not flags:
                os.posix_fadvise(handle, position, wanted, os.POSIX_FADV_DONTNEED)
            blocks = -(-wanted // _BLOCK) * _BLOCK
            got = min(os.preadv(handle, [buffer[:blocks]], position), wanted)
            if not got:
                break  # cut off: the digest says so
            digest.update(buffer[:got])
            position += got
    finally:
        os.close(handle)
    return digest.hexdigest()
