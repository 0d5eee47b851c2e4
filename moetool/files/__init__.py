"""One door to files that readers of weights open: whole, in parts, or with holes.

    joined    a file that was uploaded in parts, read as the one file that it is
    partial   a file of which only some bytes were fetched; the others are refused

Whoever wants to know what stands in a file opens it with `open_file`. Only who looks after the
pieces of a torrent wants a file as it lies on the disk (`open_raw`): there a hole is zeros.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from moetool.errors import ReadFailed
from moetool.extents import LocalFile
from moetool.files.joined import JoinedFile, parts_of
from moetool.files.partial import PartialFile, find_partial

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from moetool.extents import Extent

__all__ = ["File", "Holdings", "open_file", "open_raw"]

File = LocalFile | JoinedFile


def open_file(path: Path) -> File:
    """Open a file, or the parts that its name stands for; holes of either cannot be read.

    Raises:
        ReadFailed: there is neither, or the machine said no.
        Refused: no regular file; parts, and not all of them; a record of holes that is damaged.
    """
    return _open(path, _open_one)


def open_raw(path: Path) -> File:
    """Open a file, or the parts that its name stands for, as they lie on the disk, holes and all.

    Raises:
        ReadFailed, Refused: see `open_file`.
    """
    return _open(path, LocalFile)


def _open(path: Path, opener: Callable[[Path], LocalFile]) -> File:
    parts = parts_of(path)
    if not parts:
        return opener(path)
    with ExitStack() as opened:
        files = [opened.enter_context(opener(part)) for part in parts]
        opened.pop_all()
    return JoinedFile(path, files)


class Holdings:
    """Which bytes of files were never fetched: each file is opened once, and none is read."""

    def __init__(self) -> None:
        self._files: dict[Path, File | None] = {}

    def hold(self, extent: Extent) -> bool:
        """Whether bytes are here to be read; of a file that cannot be opened, reading will tell."""
        if extent.path not in self._files:
            self._files[extent.path] = None
            with suppress(ReadFailed), open_file(extent.path) as file:
                self._files[extent.path] = file
        known = self._files[extent.path]
        return known is None or known.holds(extent.offset, extent.nbytes)


def _open_one(path: Path) -> LocalFile:
    partial = find_partial(path)
    ranges = partial.ranges(path) if partial else None
    return PartialFile(path, partial, ranges) if partial and ranges is not None else LocalFile(path)
