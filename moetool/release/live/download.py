"""A download whose pieces are hashed where they lie, in the order of who reads or of the swarm.

libtorrent says that a piece is finished and writes it then: so a look may come too early, and the
piece is looked at again, later and later. What is not right in the end is another's to judge.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from moetool.errors import DigestMismatch
from moetool.release.torrent.download import Downloaded, Stay
from moetool.release.torrent.order import Chooser
from moetool.release.torrent.watch import Progress
from moetool.release.verify.hashing import BLOCK_NBYTES

if TYPE_CHECKING:
    from moetool.release.live.arrivals import Arrivals
    from moetool.release.pieces import Piece
    from moetool.release.torrent.alerts import Status
    from moetool.release.torrent.session import Swarm

_LOOKS = 9  # at a piece that libtorrent has finished; each waits twice as long as the one before
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
    *,
    leave_bad: bool = False,
) -> Downloaded:
    """Download until all that was asked for is here; a bool for each piece that is here already.

    ``note`` is told with the progress: how far they are for whom it is done. ``on_piece`` is called
    from any thread when a piece was hashed and is right. With ``leave_bad`` a piece that is not is
    left to who settles.

    Raises:
        NoRoomOnDisk, SystemFault, Stalled: see `moetool.release.torrent.download.download`.
        DigestMismatch: a piece was not written as it was received.
        MoetoolError: what ended the work that reads.
    """
    if not arrivals.follows_swarm:
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
        loop = _Loop(arrivals, stay, pool, on_piece, Chooser(swarm.options.order), leave_bad)
        stay.join(have)
        while True:
            stay.wait(loop.has_rest)
            if arrivals.is_complete:
                break
            while arrivals.is_idle and not arrivals.is_complete:
                arrivals.wait(_TICK_S)
            stay.rested()
    stay.leave()
    return stay.took()


@dataclass(slots=True)
class _Loop:
    """What is done at each look at the torrent's status."""

    arrivals: Arrivals
    stay: Stay
    pool: ThreadPoolExecutor
    on_piece: Callable[[], None]
    chooser: Chooser
    leave_bad: bool
    handed: set[int] = field(default_factory=set)
    _late: dict[int, tuple[int, float]] = field(default_factory=dict)  # looks, time of the next
    _own: threading.local = field(default_factory=threading.local)
    _finished: int = -1  # pieces that libtorrent has, at the last look
    _version: int = -1
    _asked_s: float = 0.0

    def __post_init__(self) -> None:
        self.handed |= self.arrivals.checked

    def has_rest(self, status: Status) -> bool:
        """Have new pieces hashed, and ask for what is wanted now; True while nothing is."""
        self.arrivals.go_on()
        now_s = time.monotonic()
        if status.num_pieces != self._finished:
            self._finished = status.num_pieces
            for index in self._new(status.pieces):
                self._hand(index)
        for index in [i for i, (_, due_s) in [*self._late.items()] if due_s <= now_s]:
            self._late[index] = self._late[index][0], float("inf")  # until it was looked at
            self.pool.submit(self._check, self.arrivals.pieces[index])
        if len(self.handed) > self.arrivals.n_closed:
            self.stay.rested()  # it is for us to go on, not for the swarm
        self._choose_order(status, now_s)
        self._ask(now_s)
        return self.arrivals.is_idle

    def _new(self, finished: Sequence[bool]) -> Iterator[int]:
        """The pieces that libtorrent has finished since the last look."""
        return (i for i, here in enumerate(finished) if here and i not in self.handed)

    def _hand(self, index: int) -> None:
        self.handed.add(index)
        piece = self.arrivals.pieces.get(index)
        if piece is None:
            # It reaches into a file that is not here: libtorrent alone can have hashed it.
            self.arrivals.leave(index)
        else:
            self.pool.submit(self._check, piece)

    def _choose_order(self, status: Status, now_s: float) -> None:
        if not self.arrivals.follows_swarm:
            return
        told = self.chooser.choose(
            seeds=status.num_seeds,
            peers=status.num_peers,
            copies=status.distributed_copies,
            now_s=now_s,
        )
        if told:
            self.stay.follow(self.chooser.order)
            self.stay.on_progress(Progress("download", told=told, order=self.chooser.order))

    def _ask(self, now_s: float) -> None:
        version = self.arrivals.version
        if version != self._version and now_s - self._asked_s >= _ASK_S:
            self._version, self._asked_s = version, now_s
            wanted = self.arrivals.priorities()
            if wanted != self.stay.priorities:
                self.stay.priorities = wanted
                self.stay.handle.prioritize_pieces(wanted)

    def _check(self, piece: Piece) -> None:
        """Hash a piece where it lies; nobody reads it before."""
        try:
            if piece.is_right(self._buffer()):
                self._late.pop(piece.index, None)
                self.arrivals.check(piece.index)
                self.on_piece()
                return
            looks = self._late.get(piece.index, (0, 0.0))[0] + 1
            if looks < _LOOKS:
                due_s = time.monotonic() + _FIRST_LOOK_S * 2 ** (looks - 1)
                self._late[piece.index] = looks, due_s
            elif self.leave_bad:
                self._late.pop(piece.index)
                self.arrivals.leave(piece.index)
            else:
                self.arrivals.fail(_other_bytes(piece, self.arrivals.meta.name))
        except BaseException as error:  # noqa: BLE001  # whoever waits for the piece must hear of it
            self.arrivals.fail(error)

    def _buffer(self) -> memoryview:
        """A buffer of this thread."""
        if not hasattr(self._own, "buffer"):
            self._own.buffer = memoryview(bytearray(BLOCK_NBYTES))
        found: memoryview = self._own.buffer
        return found


def _other_bytes(piece: Piece, name: str) -> DigestMismatch:
    return DigestMismatch(
        f"piece {piece.index} does not have the {piece.digest.algorithm} of the torrent",
        where=name,
        hint="run the same command again: it was not written as it was received",
    )
