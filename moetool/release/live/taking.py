"""A download of whole files whose digests are taken while it comes.

What is claimed of the files is known once the lists of digests are here, so those come first. Only
digests that are compared with a claim are taken: the others can be taken at any later time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from moetool.extents import Extent
from moetool.release.live.download import download_live
from moetool.release.live.streams import Streams
from moetool.release.manifest import CHECKLISTS
from moetool.release.pieces import ends_of
from moetool.release.torrent.selection import selected
from moetool.release.verify.hashing import Computed, Wanted

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.extents import Claim
    from moetool.release.live.arrivals import Arrivals
    from moetool.release.torrent.download import Downloaded
    from moetool.release.torrent.session import Swarm
    from moetool.release.torrent.watch import Progress


@dataclass(frozen=True, slots=True)
class Taken:
    """What a download took, and the digests that were taken of what it left on the disk."""

    downloaded: Downloaded
    digests: dict[Wanted, Computed]


def take(
    swarm: Swarm,
    arrivals: Arrivals,
    have: Sequence[bool],
    claims: Callable[[], Iterable[Claim]],
    on_progress: Callable[[Progress], None],
) -> Taken:
    """Download all pieces; a bool for each that is here already.

    Both ends of every file come first: a header lies there, and what has one can be inspected.
    ``claims`` gives what is claimed of the files, once their lists of digests are here. A piece
    that is bad on the disk has no digest, so that who settles reads it.

    Raises:
        MoetoolError: see `download_live`.
    """
    arrivals.ask(chain.from_iterable(ends_of(arrivals.meta).values()))
    wish = _Wish(arrivals, claims)
    arrivals.ask(wish.lists)
    streams = Streams(arrivals, wish.algorithms)
    try:
        downloaded = download_live(
            swarm, arrivals, have, on_progress, on_piece=streams.nudge, leave_bad=True
        )
        streams.finish(on_progress)
    finally:
        streams.close()
    pieces = {
        Wanted(piece.extents, piece.digest.algorithm): Computed(piece.digest.hex)
        for index, piece in arrivals.pieces.items()
        if piece.is_plain and arrivals.has(index)
    }
    return Taken(downloaded, pieces | streams.taken)


class _Wish:
    """Which digests of whole files are claimed."""

    def __init__(self, arrivals: Arrivals, claims: Callable[[], Iterable[Claim]]) -> None:
        self._arrivals, self._claims = arrivals, claims
        self._sizes = arrivals.meta.file_sizes(arrivals.folder)
        # Of selected files, pieces at the ends cannot be judged: those are read when all is here.
        self._is_apart = selected(arrivals.meta) is not None
        self.lists = [] if self._is_apart else self._pieces_of_lists()

    def algorithms(self) -> dict[Path, set[str]] | None:
        """By path the algorithms of the digests that are claimed of the whole file."""
        if self._is_apart:
            return {}
        if not all(self._arrivals.has(index) for index in self.lists):
            return None
        found: dict[Path, set[str]] = defaultdict(set)
        for claim in self._claims():
            path = claim.extents[0].path
            if claim.extents == (Extent(path, 0, self._sizes.get(path, 0)),):
                found[path].add(claim.digest.algorithm)
        return found

    def _pieces_of_lists(self) -> list[int]:
        found = []
        for path in (self._arrivals.folder / name for name in CHECKLISTS):
            found += self._arrivals.covering(path, 0, self._sizes.get(path, 0))
        return found
