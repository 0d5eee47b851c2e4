"""What survives a power cut: locks that die with their holder, names that were synced, one rename.

The existence of a final name is the only sign of "complete". So work is done in a folder beside
it, under a lock, and one rename publishes it; a rename that is not followed by an fsync of the
folder may be gone after a power cut, and so may a file whose folder was never synced.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from moetool.errors import LockHeld, OutputExists

_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # linux: fcntl.h, fs.h
_NO_FLAGS = frozenset({errno.EINVAL, errno.ENOSYS})  # an old kernel, NFS, some FUSE


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, which is made if it is not there; there are no stale locks.

    Raises:
        LockHeld: another process holds it; the message names it.
    """
    with _taken(path) as file:
        while file.tell() or os.fstat(file.fileno()).st_size:
            try:
                file.seek(0)
                file.truncate()
            except InterruptedError:  # python makes most calls again, this one not
                continue
        file.write(str(os.getpid()))
        file.flush()
        yield


def _taken(path: Path) -> IO[str]:
    """Open the lock file and lock it.

    Its holder may end between the two, and the folder be an output by now: then a lock on the old
    file is worth nothing, and it is tried anew.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a+")
        except FileNotFoundError:
            continue  # the folder was renamed since
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass  # so was the file
        except BlockingIOError as error:
            with file:
                file.seek(0)
                owner = file.read(32).strip() or "unknown"
            raise LockHeld(
                f"another moetool works on it (process {owner})",
                where=str(path.parent),
                hint="wait for it, or give another --out",
            ) from error
        file.close()


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
    """Give a finished folder, in which everything is synced, its final name.

    Raises:
        OutputExists: somebody made the name meanwhile; it is not replaced.
    """
    try:
        _rename_only(work, out)
    except FileExistsError as error:
        raise OutputExists("appeared while it was being written", where=str(out)) from error
    sync_folder(out)  # names that went just before, a lock's
    sync_folder(out.parent)


def _rename_only(old: Path, new: Path) -> None:
    """Rename, and replace nothing: not even the empty folder that rename(2) would replace.

    Where the file system knows no RENAME_NOREPLACE, one look before has to do.

    Raises:
        FileExistsError: the new name is there.
    """
    import ctypes  # 5 ms that commands which write nothing need not pay

    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        here, names = _AT_FDCWD, (os.fsencode(old), os.fsencode(new))
        if renameat2(here, names[0], here, names[1], ctypes.c_uint(_RENAME_NOREPLACE)) == 0:
            return
        number = ctypes.get_errno()
        if number not in _NO_FLAGS:
            raise OSError(number, os.strerror(number), str(old), None, str(new))
    if new.exists() or new.is_symlink():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
    old.rename(new)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
