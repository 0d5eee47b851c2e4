"""The room that an output needs on its disk, and the room there is."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.convert.execute.folder import work_folder
from moetool.errors import NoRoomOnDisk

if TYPE_CHECKING:
    from pathlib import Path

HEADROOM = 64 << 20  # bytes beyond the tensors: headers, side files, the file system's own


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes needed and bytes free; what an earlier run has written of the output counts as free."""

    needed_nbytes: int
    free_nbytes: int

    @property
    def short_nbytes(self) -> int:
        """The bytes that are missing; 0 where there is room."""
        return max(0, self.needed_nbytes - self.free_nbytes)


def room_for(out: Path, nbytes: int) -> Room:
    """The room that an output of ``nbytes`` bytes of tensors needs, and that there is."""
    work = work_folder(out)
    here = sum(path.lstat().st_blocks * 512 for path in work.iterdir()) if work.is_dir() else 0
    free = shutil.disk_usage(existing_parent(out)).free + here
    return Room(nbytes + nbytes // 100 + HEADROOM, free)


def require_room(out: Path, nbytes: int) -> None:
    """Refuse before the first byte what the disk cannot hold.

    Raises:
        NoRoomOnDisk: with what is needed and what is free.
    """
    room = room_for(out, nbytes)
    if room.short_nbytes:
        raise NoRoomOnDisk(
            f"{room.needed_nbytes:,} bytes are needed, {room.free_nbytes:,} are free",
            where=str(out),
            hint=f"free {room.short_nbytes:,} bytes, or give another place with --out",
        )


def existing_parent(path: Path) -> Path:
    """The innermost folder on the way to ``path`` that is there."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())
