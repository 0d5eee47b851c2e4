"""What an earlier run left in a folder: the metadata, and by our own hashes which pieces are here.

libtorrent's resume data are not used: 2.1.1 believes them of a truncated and even of an empty file,
and never notices a flipped bit. A pass of our own over the pieces is as fast as the disk.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.errors import Refused
from moetool.extents import Extent, union
from moetool.release.pieces import count_pieces, find_bad, pieces_of
from moetool.release.provenance import read_origin, read_recorded_torrent
from moetool.release.source import Source, judge_metadata
from moetool.release.torrent.metainfo import LEAF_NBYTES
from moetool.release.torrent.selection import absent_pieces, chosen_paths, select
from moetool.release.torrent.watch import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from moetool.extents import Range
    from moetool.release.magnet import Magnet
    from moetool.release.torrent.metainfo import Metainfo

_NOWHERE = 1 << 62


def with_known_metadata(source: Source, out: Path | None) -> Source:
    """Take the metadata from an earlier run of the same fetch: then no peer need have it."""
    if source.meta is not None:
        return source
    wanted = {source.magnet.info_hash, source.magnet.info_hash_v2} - {None}
    folders = [out, out.with_name(out.name + ".partial")] if out else Path().glob("*")
    for folder in folders:
        origin = read_origin(folder) if folder.is_dir() else None
        if origin and wanted & set(origin.info_hashes):
            meta = read_recorded_torrent(folder)
            if meta and wanted <= set(meta.hashes):
                return judge_metadata(source, select(meta, None))
    return source


def with_selection(
    meta: Metainfo, magnet: Magnet, out: Path, on_progress: Callable[[Progress], None]
) -> Metainfo:
    """The torrent without the files that are not asked for, now or by an earlier run there.

    Raises:
        UsageFault: the link selects no file of it.
    """
    if not magnet.selected:
        return meta
    paths = chosen_paths(meta, magnet.selected)
    for folder in (out, out.with_name(out.name + ".partial")):
        origin = read_origin(folder) if folder.is_dir() else None
        if origin is not None and origin.info_hashes == meta.hashes:
            if origin.selected is None:
                return meta
            paths |= set(origin.selected)
    named = ", ".join(sorted(paths)[:5]) + (", …" if len(paths) > 5 else "")  # noqa: PLR2004  # as cut
    count = sum(not file.pad for file in meta.files)
    on_progress(Progress("metadata", told=f"{len(paths)} of {count} files are selected: {named}"))
    return select(meta, paths)


def prepare(meta: Metainfo, folder: Path, on_progress: Callable[[Progress], None]) -> list[bool]:
    """Find the pieces that are here, and make the files fit for going on with them.

    Returns one bool for each piece; empty where nothing is here (see `held_pieces`).
    """
    present = any(path.is_file() for path in meta.file_sizes(folder))
    have = held_pieces(meta, folder, on_progress) if present else []
    if have:
        fill_out(meta, folder)
    return have


def fill_out(meta: Metainfo, folder: Path) -> None:
    """Give every file its full size, what lacks as a hole.

    libtorrent takes our word for pieces only of such files; others it hashes itself.
    """
    for path, nbytes in meta.file_sizes(folder).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(nbytes)


def held_pieces(
    meta: Metainfo, folder: Path, on_progress: Callable[[Progress], None]
) -> list[bool]:
    """Hash the pieces in ``folder``; one bool for each, False where nothing is claimed of it.

    Empty for a v2 torrent without the digests of its pieces: libtorrent asks its peers for those,
    and looks itself.
    """
    holes = _Holes()
    try:
        pieces = pieces_of(meta, folder)
    except Refused:
        return []
    present = [piece for piece in pieces if holes.hold_data(piece.extents)]
    total, done = sum(piece.nbytes for piece in present), 0

    def tell(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        on_progress(Progress("look", min(done, total), total))

    absent = {piece.index for piece in pieces} - {piece.index for piece in present}
    absent |= {piece.index for piece in find_bad(present, tell)} | absent_pieces(meta)
    return [index not in absent for index in range(count_pieces(meta))]


def begun_blocks(meta: Metainfo, folder: Path, have: Sequence[bool]) -> dict[int, list[bool]]:
    """By piece which of its blocks were written, for pieces that are begun and not whole.

    A killed fetch leaves these: files have holes where nothing came yet. Whether the blocks are
    right is told by the digest of their piece, once all of it is here. A piece without a hole that
    is not right has none: it must come anew. Blocks of padding alone never come.

    Raises:
        Refused: a v2 torrent without the digests of its pieces.
    """
    holes, found = _Holes(), {}
    for piece in pieces_of(meta, folder):
        if have[piece.index]:
            continue
        written, padding, at = [], [], 0
        for part in piece.parts:
            if isinstance(part, Extent):
                written += [(at + start, at + stop) for start, stop in holes.written(part)]
                at += part.nbytes
            else:
                padding.append((at, at + part))
                at += part
        if not written:
            continue
        runs = union([*written, *padding])
        cuts = [(start, min(start + LEAF_NBYTES, at)) for start in range(0, at, LEAF_NBYTES)]
        coming = [not _lies_in(cut, padding) for cut in cuts]
        blocks = [comes and _lies_in(cut, runs) for comes, cut in zip(coming, cuts, strict=True)]
        if any(blocks) and blocks != coming:
            found[piece.index] = blocks
    return found


def _lies_in(cut: Range, runs: Sequence[Range]) -> bool:
    return any(start <= cut[0] and cut[1] <= stop for start, stop in runs)


class _Holes:
    """Knows where sparse files hold nothing: at the start of a download that is nearly all.

    A piece of zeros may lie in a hole and is fetched once more; that is cheaper than hashing
    gigabytes of nothing at every start.
    """

    def __init__(self) -> None:
        self._runs: dict[Path, Range] = {}  # asked, and where data begin then

    def hold_data(self, extents: tuple[Extent, ...]) -> bool:
        """Whether every extent has at least one byte that was written."""
        return all(self._next(extent.path, extent.offset) < extent.end for extent in extents)

    def written(self, extent: Extent) -> Iterator[Range]:
        """What of an extent was written; offsets count from its start."""
        at = extent.offset
        while (start := self._next(extent.path, at)) < extent.end:
            at = _seek(extent.path, start, os.SEEK_HOLE)
            yield start - extent.offset, min(at, extent.end) - extent.offset

    def _next(self, path: Path, offset: int) -> int:
        """The first byte with data at or behind an offset."""
        asked, answer = self._runs.get(path, (0, -1))
        if not asked <= offset <= answer:
            answer = _seek(path, offset, os.SEEK_DATA)
            self._runs[path] = offset, answer
        return answer


def _seek(path: Path, offset: int, what: int) -> int:
    """The first byte of this kind at or behind an offset; beyond all files where none is."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return _NOWHERE
    try:
        return os.lseek(handle, offset, what)
    except OSError:  # ENXIO: nothing but a hole up to the end of the file
        return _NOWHERE
    finally:
        os.close(handle)
