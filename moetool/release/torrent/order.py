"""In which order pieces are asked for: a decision on what can be seen of the swarm, and why.

    sequential   the order of the files: digests of whole files are ready with the last piece
    rarest       the piece that the fewest have goes first: what keeps a swarm alive

Others fetch from us and from whom we fetch. Where copies are few, all of us asking for the same
pieces leaves the others to whoever goes next; where nobody else needs any, or there are enough, the
order harms nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

SEQUENTIAL, RAREST = "sequential", "rarest"
ORDERS = ("auto", SEQUENTIAL, RAREST)
ENOUGH = 3.0
"""Copies of every piece among the peers from which on the order harms nobody."""

_PATIENCE_S = 2.0  # who was just met has not said yet what he has
_DWELL_S = 10.0  # between two changes: peers come and go

_WORDS = {SEQUENTIAL: "sequential, so that md5 follows", RAREST: "rarest first"}


@dataclass(slots=True)
class Chooser:
    """Chooses the order of one download; ``wish`` is auto, sequential or rarest."""

    wish: str = "auto"
    order: str = ""
    _met_s: float | None = None
    _chosen_s: float = 0.0

    def choose(self, *, seeds: int, peers: int, copies: float, now_s: float) -> str:
        """The line to be told where ``order`` has changed, empty where it stays.

        ``peers`` counts the seeds too; ``copies`` is libtorrent's availability, -1 where unknown.
        """
        if self.wish != "auto":
            before, self.order = self.order, self.wish
            return "" if before else f"order: {_WORDS[self.order]}, as asked for"
        if not peers or copies < 0:
            return ""
        self._met_s = now_s if self._met_s is None else self._met_s
        is_early = copies < 1 and now_s - self._met_s < _PATIENCE_S
        if is_early if not self.order else now_s - self._chosen_s < _DWELL_S:
            return ""
        alone = seeds > 0 and seeds == peers
        order = SEQUENTIAL if alone or copies >= ENOUGH else RAREST
        if order == self.order:
            return ""
        self.order, self._chosen_s = order, now_s
        what = f"{seeds} seed{'s' * (seeds != 1)}" if alone else f"availability {copies:.2f}"
        return f"order: {_WORDS[order]}; {what}"
