"""Keys and values of the positions seen so far, and where the rows of a call stand among them.

A name ends in its shape; the letters are those of mixtral.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from moetool.errors import UsageFault

if TYPE_CHECKING:
    from torch import Tensor

S = TypeVar("S", bound=Sized)


@dataclass(slots=True)
class Cache:
    """Keys and values of one sequence; room for all C positions is taken at the start.

    ``first_layer``: the number of the first of the L layers, where others are kept elsewhere.
    """

    keys_LKCH: Tensor
    values_LKCH: Tensor
    cos_CP: Tensor
    sin_CP: Tensor
    length: int = 0
    first_layer: int = 0

    @property
    def room(self) -> int:
        """How many positions there can be."""
        return self.cos_CP.shape[0]

    def take(self, n_tokens: int) -> Place:
        """Count ``n_tokens`` more positions as seen, and give their place.

        Raises:
            UsageFault: there is no room for so many.
        """
        start, stop = self.length, self.length + n_tokens
        if stop > self.room:
            raise UsageFault(
                f"the cache has {self.room} positions, {start} taken, {n_tokens} to come"
            )
        self.length = stop
        return Place(self, start, stop)

    def rewind(self, length: int) -> None:
        """Forget all positions from ``length`` on."""
        self.length = min(self.length, length)


@dataclass(frozen=True, slots=True)
class Place:
    """Positions ``start:stop`` of a sequence, which rows of a call stand at."""

    cache: Cache
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def cos(self) -> Tensor:
        """The cosines of the rotary angles there, ``[T, P]``."""
        return self.cache.cos_CP[self.start : self.stop]

    @property
    def sin(self) -> Tensor:
        """The sines of the rotary angles there, ``[T, P]``."""
        return self.cache.sin_CP[self.start : self.stop]

    def remember(self, layer: int, k_TKH: Tensor, v_TKH: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of a layer here; give all that these positions may look at."""
        index = layer - self.cache.first_layer
        k_KCH, v_KCH = self.cache.keys_LKCH[index], self.cache.values_LKCH[index]
        k_KCH[:, self.start : self.stop] = k_TKH.transpose(0, 1)
        v_KCH[:, self.start : self.stop] = v_TKH.transpose(0, 1)
        return k_KCH[:, : self.stop], v_KCH[:, : self.stop]

    def cut(self, n: int) -> Iterator[Place]:
        """The same positions, at most ``n`` at a time."""
        for start in range(self.start, self.stop, n):
            yield Place(self.cache, start, min(start + n, self.stop))


def in_chunks(places: Iterable[Place], n: int) -> Iterator[list[Place]]:
    """The same rows in the same order, at most ``n`` together."""
    return in_groups((part for place in places for part in place.cut(n)), n)


def in_groups(pieces: Iterable[S], n: int) -> Iterator[list[S]]:
    """Pieces in their order, as many together as have at most ``n`` rows; one may have more."""
    group: list[S] = []
    for piece in pieces:
        if group and sum(map(len, group)) + len(piece) > n:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group
