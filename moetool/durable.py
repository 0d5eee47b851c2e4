"""What survives a power cut: locks that die with their holder, names that were synced, one rename.

The existence of a final name is the only sign of "complete". So work is done in a folder beside
it, under a lock, and one rename publishes it; a rename that is not followed by an fsync of the
folder may be gone after a power cut, and so may a file whose folder was never synced.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
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


def publish(work: Path, out: Path, without: Iterable[Path] = ()) -> None:
    """Give a finished folder, in which everything is synced, its final name.

    ``without`` are files of it that the output must not have. They go just before the rename and
    come back if it is refused; nothing is synced in between, so a power cut leaves them or ``out``.

    Raises:
        OutputExists: somebody made the name meanwhile; it is not replaced.
    """
    rename = _renamer()  # takes 5 ms: not where a kill would cost what the removed files know
    removed = {path: path.read_bytes() for path in without if path.exists()}
    try:
        for path in removed:
            path.unlink()
        rename(work, out)
    except BaseException as error:
        for path, content in removed.items() if work.is_dir() else ():
            write_durably(path, content)
        if isinstance(error, FileExistsError):
            what = "appeared while it was being written"
            raise OutputExists(what, where=str(out)) from error
        raise
    sync_folder(out)  # names that went just before, a lock's
    sync_folder(out.parent)


def _renamer() -> Callable[[Path, Path], None]:
    """Give a rename that replaces nothing, not even the empty folder that rename(2) would replace.

    Where the file system knows no RENAME_NOREPLACE, one look before has to do. What it gives raises
    FileExistsError where the new name is there.
    """
    import ctypes  # 5 ms that commands which write nothing need not pay

    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)

    def rename(old: Path, new: Path) -> None:
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

    return rename


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
