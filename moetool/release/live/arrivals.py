"""The pieces of a torrent while they come: readers wait here, and say by that what comes first.

A piece is here when we have hashed it where it lies; libtorrent's word only says when to look.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from moetool.errors import TruncatedFile
from moetool.extents import LocalFile
from moetool.release.pieces import PieceMap, count_pieces
from moetool.release.torrent.selection import wanted_pieces

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.release.torrent.metainfo import Metainfo

URGENT, _USUAL = 7, 4  # libtorrent's highest priority of a piece, and its default
_BAND = 8  # pieces of one priority; each lower one has twice as many
_PATIENCE_S = 0.5  # a waiting reader looks up so often


class Arrivals(PieceMap):
    """The pieces of one torrent in a folder; every method may be called from any thread.

    ``ahead`` is how many pieces may be asked for beyond the last one that a reader wanted; None
    asks for all of them at once, and until somebody plans an order leaves it to the swarm.

    Raises:
        Refused: the torrent does not tell the digests of single pieces.
    """

    def __init__(self, meta: Metainfo, folder: Path, ahead: int | None = None) -> None:
        super().__init__(meta, folder)
        self.meta, self.folder = meta, folder
        self.version = 0  # grows with every change
        self._ahead = ahead
        self._changed = threading.Condition()
        self._checked: set[int] = set()
        self._closed: set[int] = set()  # those, and pieces of which we shall not know more
        self._asked: set[int] = set()
        self._wanted: set[int] = set()
        self._order: list[int] = sorted(wanted_pieces(meta)) if ahead is None else []
        self._place: dict[int, int] = {}
        self._is_planned = False
        self._reached = -1  # the last place in the order that a reader wanted
        self._failure: BaseException | None = None

    def ask(self, indices: Iterable[int]) -> None:
        """Say that pieces are wanted before all others, and do not wait."""
        with self._changed:
            wanted = set(indices)
            self._wanted |= wanted
            places = (self._place.get(index, -1) for index in wanted)
            reached = max([self._reached, *places])
            new = wanted - self._closed - self._asked
            if new or reached > self._reached:
                self._asked |= new
                self._reached = reached
                self._note_change()

    def need(self, indices: Collection[int]) -> None:
        """Wait until pieces are here.

        Raises:
            MoetoolError: what ended the download, or the work that reads.
        """
        self.ask(indices)
        with self._changed:
            while not self._checked.issuperset(indices):
                self._raise_failure()
                self._changed.wait(_PATIENCE_S)

    def plan(self, order: Sequence[int]) -> None:
        """Say in which order the pieces will be read; what is not named is not asked for."""
        with self._changed:
            self._order = list(order)
            self._place = {index: place for place, index in enumerate(order)}
            self._is_planned = True
            self._note_change()

    def read_all(self) -> None:
        """Say that readers have had all that they wanted: what is left of the order may come."""
        with self._changed:
            self._reached = len(self._order)
            self._note_change()

    def check(self, index: int) -> None:
        """Enter a piece that was hashed and is right."""
        with self._changed:
            self._checked.add(index)
            self._close(index)

    def leave(self, index: int) -> None:
        """Wait for a piece no longer, though we have not seen it right: it is judged later."""
        with self._changed:
            self._close(index)

    def fail(self, error: BaseException) -> None:
        """End all waiting with an error; the first one counts."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def go_on(self) -> None:
        """Do nothing, unless somebody has failed.

        Raises:
            MoetoolError: what ended the download, or the work that reads.
        """
        with self._changed:
            self._raise_failure()

    def has(self, index: int) -> bool:
        """Whether a piece was hashed and is right."""
        with self._changed:
            return index in self._checked

    @property
    def checked(self) -> frozenset[int]:
        """The pieces that were hashed and are right."""
        with self._changed:
            return frozenset(self._checked)

    @property
    def n_closed(self) -> int:
        """How many pieces nobody has to look at any more."""
        with self._changed:
            return len(self._closed)

    @property
    def wanted(self) -> frozenset[int]:
        """All that readers have wanted so far."""
        with self._changed:
            return frozenset(self._wanted)

    @property
    def is_complete(self) -> bool:
        """Whether the order is known and everything in it is here."""
        with self._changed:
            planned = self._is_planned or self._ahead is None
            return planned and not self._asked and self._closed.issuperset(self._order)

    @property
    def is_idle(self) -> bool:
        """Whether everything that may be asked for now is here."""
        with self._changed:
            return not self._asked and self._closed.issuperset(self._allowed())

    @property
    def follows_swarm(self) -> bool:
        """Whether nobody has planned in which order pieces come."""
        with self._changed:
            return self._ahead is None and not self._is_planned

    def priorities(self) -> list[int]:
        """A number from 0 (not asked for) to 7 for each piece, as libtorrent takes them."""
        with self._changed:
            found = [0] * count_pieces(self.meta)
            for index in self._closed:
                found[index] = 1
            if self._ahead is None and not self._is_planned:
                for index in self._order:  # whether it is here or not: the list stays the same
                    found[index] = _USUAL
            else:
                left = [index for index in self._allowed() if index not in self._closed]
                for rank, index in enumerate(left):
                    found[index] = max(2, URGENT - (rank // _BAND).bit_length())
            for index in self._asked:
                found[index] = URGENT
            return found

    def wait(self, seconds: float) -> None:
        """Wait for a change of any kind."""
        with self._changed:
            self._raise_failure()
            self._changed.wait(seconds)

    def _allowed(self) -> Sequence[int]:
        if self._ahead is None:
            return self._order
        return self._order[: self._reached + 1 + self._ahead]

    def _close(self, index: int) -> None:
        self._closed.add(index)
        self._asked.discard(index)
        self._note_change()

    def _note_change(self) -> None:
        self.version += 1
        self._changed.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


class LiveFile(LocalFile):
    """A file of the torrent, opened when a byte of it is read; reading waits for its pieces."""

    __slots__ = ("_arrivals", "_opening")

    def __init__(self, path: Path, nbytes: int, arrivals: Arrivals) -> None:
        self.path, self.nbytes, self._arrivals = path, nbytes, arrivals
        self._fd, self._opening = -1, threading.Lock()

    def pread(self, offset: int, nbytes: int) -> bytes:
        """Read exactly ``nbytes`` at ``offset``; see `ByteSource.pread`, `Arrivals.need`."""
        self._have(offset, nbytes)
        return super().pread(offset, nbytes) if nbytes else b""

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """Read into ``buffer`` what one system call gives; see `Arrivals.need`."""
        nbytes = min(len(buffer), max(0, self.nbytes - offset))
        self._have(offset, nbytes)
        return super().pread_into(buffer[:nbytes], offset) if nbytes else 0

    def _have(self, offset: int, nbytes: int) -> None:
        if not 0 <= offset <= offset + nbytes <= self.nbytes:
            raise TruncatedFile(
                f"ends at byte {self.nbytes}, expected {nbytes} bytes at {offset}",
                where=str(self.path),
            )
        self._arrivals.need(self._arrivals.covering(self.path, offset, nbytes))
        with self._opening:
            if self._fd < 0 and nbytes:
                promised = self.nbytes
                super().__init__(self.path)
                self.nbytes = promised  # the last piece may not be here yet
