"""Some files of a torrent, as a link selects them (BEP 53, ``so=0,2-4``); the others are absent.

An absent file keeps its place in the torrent and never lies on disk. A v1 piece that reaches into
one cannot be hashed again afterwards, so nothing is claimed of it: libtorrent alone has hashed it,
when it came. Pieces of hybrid and v2 torrents end with their file, and are all claimed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from moetool.errors import UsageFault

if TYPE_CHECKING:
    from moetool.release.torrent.metainfo import Metainfo

Runs = tuple[tuple[int, int], ...]  # first and last number of files, both included


def chosen_paths(meta: Metainfo, runs: Runs) -> frozenset[str]:
    """The paths of the files whose numbers a link names; numbers of padding mean nothing.

    Raises:
        UsageFault: none of them is a file of the torrent.
    """
    found = frozenset(
        file.path
        for index, file in enumerate(meta.files)
        if not file.pad and any(first <= index <= last for first, last in runs)
    )
    if not found:
        raise UsageFault(
            f"the link selects none of the {len(meta.files)} files (so=)",
            hint="leave out so= for the whole release; the first file has the number 0",
        )
    return found


def select(meta: Metainfo, paths: Collection[str] | None) -> Metainfo:
    """The torrent with all files absent but those; None: with all files."""
    files = tuple(
        replace(file, absent=not file.pad and paths is not None and file.path not in paths)
        for file in meta.files
    )
    return replace(meta, files=files)


def selected(meta: Metainfo) -> tuple[str, ...] | None:
    """The paths of the files that are not absent; None where none is."""
    if not any(file.absent for file in meta.files):
        return None
    return tuple(file.path for file in meta.files if not file.pad and not file.absent)


def absent_pieces(meta: Metainfo) -> set[int]:
    """The pieces with bytes of files that are absent."""
    return _pieces_of(meta, absent=True)


def wanted_pieces(meta: Metainfo) -> set[int]:
    """The pieces with bytes of files that are not."""
    return _pieces_of(meta, absent=False)


def _pieces_of(meta: Metainfo, *, absent: bool) -> set[int]:
    found: set[int] = set()
    for first, last, is_absent in _spans(meta):
        if is_absent is absent:
            found.update(range(first, last + 1))
    return found


def _spans(meta: Metainfo) -> Iterable[tuple[int, int, bool]]:
    """The first and the last piece of each file with bytes, and whether it is absent."""
    at = 0
    for file in meta.files:
        # In v2 alone each file begins a piece.
        at = file.offset if meta.pieces else -(-at // meta.piece_length) * meta.piece_length
        if file.nbytes and not file.pad:
            last = (at + file.nbytes - 1) // meta.piece_length
            yield at // meta.piece_length, last, file.absent
        at += file.nbytes
