"""What survives a power cut: locks that die with their holder, names that were synced, one rename.

The existence of a final name is the only sign of "complete". So work is done in a folder beside
it, under a lock, and one rename publishes it; a rename that is not followed by an fsync of the
folder may be gone after a power cut, and so may a file whose folder was never synced.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moetool.errors import LockHeld, OutputExists


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, which is made if it is not there; there are no stale locks.

    Raises:
        LockHeld: another process holds it; the message names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read(32).strip() or "unknown"
            raise LockHeld(
                f"another moetool works on it (process {owner})",
                where=str(path.parent),
                hint="wait for it, or give another --out",
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file so that after a power cut either the old or the new one is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def publish(work: Path, out: Path) -> None:
    """Give a finished folder its final name, once everything in it is synced.

    Raises:
        OutputExists: somebody made the name meanwhile; it is not replaced.
    """
    sync_folder(work)
    if out.exists() or out.is_symlink():
        raise OutputExists("appeared while it was being written", where=str(out))
    work.rename(out)
    sync_folder(out.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
