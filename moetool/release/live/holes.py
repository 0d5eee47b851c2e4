"""Bytes given back to the disk while their file keeps its size: fallocate(2), Linux only."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import tempfile
from typing import TYPE_CHECKING

from moetool.errors import SystemFault

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from moetool.extents import Extent

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux: falloc.h
_PROBE_NBYTES = 1 << 20
_SECTOR_NBYTES = 512  # the unit of st_blocks


def refuse_without_holes(folder: Path) -> None:
    """Try it on a small file in ``folder``, which is removed again.

    Raises:
        SystemFault: this system or this file system gives no bytes back.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix="hole-") as file:
        file.write(b"\1" * _PROBE_NBYTES)
        file.flush()
        os.fsync(file.fileno())
        before = os.fstat(file.fileno()).st_blocks
        fault = _punch(file.fileno(), 0, _PROBE_NBYTES)
        freed = (before - os.fstat(file.fileno()).st_blocks) * _SECTOR_NBYTES
    if fault or freed < _PROBE_NBYTES // 2:
        raise SystemFault(
            f"the file system cannot give back parts of a file "
            f"({os.strerror(fault) if fault else 'the room stays taken'})",
            where=str(folder),
            hint="leave out --no-keep, or give a place on ext4, xfs, btrfs or tmpfs with --out",
        )


def punch(extents: Iterable[Extent]) -> None:
    """Give back the whole blocks within ranges; what shares a block with others stays.

    Raises:
        SystemFault: the machine said no.
    """
    for extent in extents:
        handle = os.open(extent.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            block = max(os.fstat(handle).st_blksize, 4096)
            start, stop = -(-extent.offset // block) * block, extent.end // block * block
            fault = _punch(handle, start, stop - start) if start < stop else 0
        finally:
            os.close(handle)
        if fault:
            raise SystemFault(os.strerror(fault), where=str(extent.path))


def _punch(handle: int, offset: int, nbytes: int) -> int:
    """The error number; 0 where it was done."""
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if sys.platform != "linux" or fallocate is None:
        return errno.ENOSYS
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while fallocate(handle, _PUNCH_HOLE | _KEEP_SIZE, offset, nbytes):
        if (number := ctypes.get_errno()) != errno.EINTR:
            return number
    return 0
