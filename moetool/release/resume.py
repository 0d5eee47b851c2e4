"""What an earlier run left in a folder: our own hashes say which pieces are here.

libtorrent's resume data are not used: 2.1.1 believes them of a truncated and even of an empty file,
and never notices a flipped bit. A pass of our own over the pieces is as fast as the disk.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from moetool.release.torrent.metainfo import Metainfo, piece_claims
from moetool.release.torrent.watch import Progress
from moetool.release.verify.hashing import Wanted, read_digests

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from moetool.extents import Extent


def prepare(meta: Metainfo, folder: Path, on_progress: Callable[[Progress], None]) -> list[bool]:
    """Find the pieces that are here, and make the files fit for going on with them.

    Returns one bool for each piece; empty where nothing is here, and for v2 torrents (see
    `held_pieces`). Files without a single good piece around them are removed.
    """
    sizes = meta.file_sizes(folder)
    present = [path for path in sizes if path.is_file()]
    have = held_pieces(meta, folder, on_progress) if present else []
    if not have:
        return []
    if not any(have):
        for path in present:
            path.unlink()
        return []
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
    """Hash the pieces in ``folder``; one bool for each.

    Empty for torrents with v2 hashes: these do not say of the last piece of a file by itself
    whether it is here, so libtorrent looks at such files, which it does well without resume data.
    """
    if meta.info_hash_v2 is not None:
        return []
    claims = list(piece_claims(meta, folder))
    wanted = [Wanted(claim.extents, claim.digest.algorithm) for claim in claims]
    holes = _Holes()
    present = [want for want in wanted if holes.hold_data(want.extents)]
    total, done = sum(extent.nbytes for want in present for extent in want.extents), 0

    def tell(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        on_progress(Progress("look", min(done, total), total))

    found = read_digests(present, on_bytes=tell)
    return [
        want in found and found[want].hex == claim.digest.hex
        for want, claim in zip(wanted, claims, strict=True)
    ]


class _Holes:
    """Knows where sparse files hold nothing: at the start of a download that is nearly all.

    A piece of zeros may lie in a hole and is fetched once more; that is cheaper than hashing
    gigabytes of nothing at every start.
    """

    def __init__(self) -> None:
        self._ends: dict[Path, tuple[int, int]] = {}

    def hold_data(self, extents: tuple[Extent, ...]) -> bool:
        """Whether every extent has at least one byte that was written."""
        return all(self._first_data(extent) < extent.end for extent in extents)

    def _first_data(self, extent: Extent) -> int:
        """The first byte with data at or behind the start of an extent."""
        asked, answer = self._ends.get(extent.path, (0, -1))
        if asked <= extent.offset <= answer:
            return answer
        try:
            handle = os.open(extent.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return extent.end
        try:
            found = os.lseek(handle, extent.offset, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole up to the end of the file
            found = 1 << 62
        finally:
            os.close(handle)
        self._ends[extent.path] = extent.offset, found
        return found
