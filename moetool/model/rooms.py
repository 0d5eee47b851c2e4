"""Memory for tensors that come and go: what one leaves, the next of its size takes.

The kernel fills a new page with zeros before a byte is read into it, which takes nearly as long as
reading: 3.0 GB/s from the page cache into new pages, 5.1 into used ones. A heap gives blocks of
such a size back at once.
"""

from __future__ import annotations

import mmap
import sys
from threading import Lock

import torch

UNUSED = 2  # references to a room that no tensor lies in: a variable's, and the one that counts


class Rooms:
    """Rooms of ``most`` bytes together; beyond that there are none but those in use."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rooms: list[mmap.mmap] = []
        self._choosing = Lock()

    @property
    def nbytes(self) -> int:
        """What all rooms take, used or not."""
        return sum(map(len, self._rooms))

    def take(self, nbytes: int) -> torch.Tensor:
        """Memory of that size, uint8; the room is free again when the last view of it is gone."""
        with self._choosing:
            room = self._unused(nbytes) or _pages(nbytes)
            self._rooms.append(room)
            return torch.frombuffer(room, dtype=torch.uint8)

    def _unused(self, nbytes: int) -> mmap.mmap | None:
        """A room of that size; if there is none, those of other sizes make way for one."""
        for at in reversed(range(len(self._rooms))):
            room = self._rooms.pop(at)
            is_used = sys.getrefcount(room) > UNUSED
            if not is_used and len(room) == nbytes:
                return room
            if is_used or self.nbytes + len(room) + nbytes <= self._most:
                self._rooms.insert(at, room)
        return None


def _pages(nbytes: int) -> mmap.mmap:
    room = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        room.madvise(mmap.MADV_HUGEPAGE)
    return room
