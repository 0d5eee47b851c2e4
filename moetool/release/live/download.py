"""A download whose pieces come in the order in which they are read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from moetool.errors import DigestMismatch
from moetool.release.pieces import Piece, read_extent
from moetool.release.torrent.download import Downloaded, Stay

if TYPE_CHECKING:
    from moetool.release.live.arrivals import Arrivals
    from moetool.release.torrent.alerts import Status
    from moetool.release.torrent.session import Swarm
    from moetool.release.torrent.watch import Progress

_LOOKS = 4  # at a piece that libtorrent has finished; each waits twice as long as the one before
_FIRST_LOOK_S = 0.1
_CHECKERS = 2
_TICK_S = 0.2
_ASK_S = 0.1  # between two lists of priorities: each has a number for every piece


def download_live(
    swarm: Swarm,
    arrivals: Arrivals,
    have: Sequence[bool],
    on_progress: Callable[[Progress], None],
    note: Callable[[], str] = lambda: "",
    on_piece: Callable[[], None] = lambda: None,
) -> Downloaded:
    """Download until all that was asked for is here; a bool for each piece that is here already.

    ``note`` is told with the progress: how far they are for whom it is done. ``on_piece`` is called
    from any thread when a piece was hashed and is right.

    Raises:
        NoRoomOnDisk, SystemFault, Stalled: see `moetool.release.torrent.download.download`.
        DigestMismatch: a piece was not written as it was received.
        MoetoolError: what ended the work that reads.
    """
    # Where nothing more is wanted for now, libtorrent would hang up on every seed.
    swarm.session.apply_settings({"close_redundant_connections": False})
    for index in arrivals.pieces:
        if have and have[index]:
            arrivals.check(index)
    stay = Stay(
        swarm,
        arrivals.meta,
        arrivals.folder,
        lambda now: on_progress(replace(now, note=", ".join(filter(None, (note(), now.note))))),
        arrivals.priorities(),
    )
    with ThreadPoolExecutor(_CHECKERS, thread_name_prefix="pieces") as pool:
        loop = _Loop(arrivals, stay, pool, on_piece)
        stay.join(have)
        while True:
            stay.wait(loop.has_rest)
            if arrivals.is_complete:
                break
            while arrivals.is_idle and not arrivals.is_complete:
                arrivals.wait(_TICK_S)
            stay.rested()
    swarm.session.remove_torrent(stay.handle)
    return stay.took()


@dataclass(slots=True)
class _Loop:
    """What is done at each look at the torrent's status."""

    arrivals: Arrivals
    stay: Stay
    pool: ThreadPoolExecutor
    on_piece: Callable[[], None]
    handed: set[int] = field(default_factory=set)
    _finished: int = -1  # pieces that libtorrent has, at the last look
    _version: int = -1
    _asked_s: float = 0.0

    def __post_init__(self) -> None:
        self.handed |= self.arrivals.checked

    def has_rest(self, status: Status) -> bool:
        """Have new pieces hashed, and ask for what is wanted now; True while nothing is."""
        self.arrivals.go_on()
        if status.num_pieces != self._finished:
            self._finished = status.num_pieces
            for index, piece in self._new(status.pieces):
                self.handed.add(index)
                self.pool.submit(self._check, piece)
        version, now_s = self.arrivals.version, time.monotonic()
        if version != self._version and now_s - self._asked_s >= _ASK_S:
            self._version, self._asked_s = version, now_s
            wanted = self.arrivals.priorities()
            if wanted != self.stay.priorities:
                self.stay.priorities = wanted
                self.stay.handle.prioritize_pieces(wanted)
        return self.arrivals.is_idle

    def _new(self, finished: Sequence[bool]) -> Iterator[tuple[int, Piece]]:
        for index, piece in self.arrivals.pieces.items():
            if index not in self.handed and finished[index : index + 1] == [True]:
                yield index, piece

    def _check(self, piece: Piece) -> None:
        """Hash a piece where it lies; nobody reads it before."""
        try:
            if self._is_right(piece):
                self.arrivals.check(piece.index)
                self.on_piece()
            else:
                self.arrivals.fail(_other_bytes(piece, self.arrivals.meta.name))
        except BaseException as error:  # noqa: BLE001  # whoever waits for the piece must hear of it
            self.arrivals.fail(error)

    def _is_right(self, piece: Piece) -> bool:
        for look in range(_LOOKS):
            blocks = [read_extent(extent) for extent in piece.extents]
            whole = [block for block in blocks if block is not None]
            if len(whole) == len(blocks) and piece.matches(whole):
                return True
            time.sleep(_FIRST_LOOK_S * 2**look)
        return False


def _other_bytes(piece: Piece, name: str) -> DigestMismatch:
    return DigestMismatch(
        f"piece {piece.index} does not have the {piece.digest.algorithm} of the torrent",
        where=name,
        hint="run the same command again: it was not written as it was received",
    )
