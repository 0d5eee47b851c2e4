"""Places for experts on the device: taken once, filled again and again.

A step of decoding goes through the layers in the same order each time and uses two experts of each.
One list of the least recently used over all layers would throw out what the next token needs,
whenever there are fewer slots than a token has experts: what is oldest is what comes next. So each
layer has its own slots and its own list. Two more are for passing through: a prompt needs all
experts of a layer once and must not throw out what decoding will need.

A slot is written to by the queue of copies while earlier work that reads it may still stand in the
computing queue: each use leaves a mark, and the next copy into the slot stands behind it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.model.fast.copies import Copies, Mark
    from moetool.model.fast.feed import Feed

Key = tuple[int, int]
"""Layer, expert."""
PASSING = 2  # one is computed with while the other is filled


class Slots:
    """S slots of one slab; ``slab_SX`` has the numbers of an expert's matrices in a row each."""

    def __init__(
        self,
        slab_SX: Tensor,
        n_layers: int,
        read: Callable[[Key], Sequence[Tensor]],
        feed: Feed,
        copies: Copies,
    ) -> None:
        self._slab_SX, self._read, self._feed, self._copies = slab_SX, read, feed, copies
        own = range(PASSING, len(slab_SX))
        self._vacant = [list(own[layer::n_layers]) for layer in range(n_layers)]
        self._held = [OrderedDict[int, int]() for _ in range(n_layers)]
        self._passing = OrderedDict[int, Key | None]((slot, None) for slot in range(PASSING))
        self._where: dict[Key, int] = {}
        self._coming: dict[Key, Future[Mark]] = {}
        self._used: dict[int, Mark] = {}

    def holds(self, key: Key) -> bool:
        """Whether an expert is in a slot, or on its way."""
        return key in self._where

    def fetch(self, key: Key, *, keep: bool) -> None:
        """Begin to bring an expert; at most `PASSING` that nobody used yet.

        It takes a vacant slot of its layer. Where there is none: to ``keep`` it, that of the expert
        used longest ago; else one to pass through.
        """
        slot = self._where[key] = self._choose(key, keep=keep)
        self._coming[key] = self._feed.send(
            lambda: self._read(key), self._slab_SX[slot], self._used.get(slot)
        )

    @contextmanager
    def use(self, key: Key) -> Iterator[Tensor]:
        """The row of the slab that an expert is in, for work that is queued inside of this."""
        slot, (layer, expert) = self._where[key], key
        if coming := self._coming.pop(key, None):
            coming.result().hold()
        yield self._slab_SX[slot]
        self._used[slot] = self._copies.mark()
        if expert in self._held[layer]:
            self._held[layer].move_to_end(expert)

    def _choose(self, key: Key, *, keep: bool) -> int:
        layer, expert = key
        held = self._held[layer]
        oldest = next((e for e in held if keep and (layer, e) not in self._coming), None)
        if self._vacant[layer]:
            slot = self._vacant[layer].pop()
        elif oldest is not None:
            slot = held.pop(oldest)
            del self._where[layer, oldest]
        else:
            return self._pass_through(key)
        held[expert] = slot
        return slot

    def _pass_through(self, key: Key) -> int:
        slot, former = next(iter(self._passing.items()))
        assert former not in self._coming, "more on the way than may be"
        if former is not None:
            del self._where[former]
        self._passing[slot] = key
        self._passing.move_to_end(slot)
        return slot
