"""What the two ways to share a model have in common: a share, when it is read, what it takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.model.device import Memory, MemoryWatch
from moetool.model.mixtral import Transformer

if TYPE_CHECKING:
    from moetool.arch.args import ModelArgs
    from moetool.model.load import WeightStore
    from moetool.model.parallel.group import Ranks

# What a run takes beside weights: activations of 2048 rows, logits of a window, tensors that are
# being read, keys and values. Who takes more holds something twice.
WORKING_NBYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class RankMemory:
    """What one rank was to take, and took, in bytes.

    ``planned``, ``held``: weights on the device. ``nbytes_read``: from the checkpoint. ``before``:
    anonymous memory before a weight was read, which ``peak`` counts as well.
    """

    rank: int
    holds: str
    planned: int
    held: int
    nbytes_read: int
    before: int
    peak: Memory

    @property
    def taken(self) -> int | None:
        """The most that the run took where the weights are; None where the system does not say."""
        if self.peak.device is not None:
            return self.peak.device
        return self.peak.anonymous and self.peak.anonymous - self.before


def beyond_plan(found: Sequence[RankMemory]) -> list[int]:
    """The ranks that took more than planned, of one model or of several in the same processes."""
    planned: dict[int, int] = defaultdict(int)
    taken: dict[int, int] = defaultdict(int)
    for rank in found:
        planned[rank.rank] += rank.planned
        taken[rank.rank] = max(taken[rank.rank], rank.taken or 0)
    more = {rank.rank for rank in found if rank.held > rank.planned}
    more |= {rank for rank in planned if taken[rank] > planned[rank] + WORKING_NBYTES}
    return sorted(more)


def least_of(model: Transformer, nbytes: int) -> int:
    """Of memory that is free here, what every rank has of its own: all must decide alike by it."""
    if isinstance(model, Shared):
        return min(model.ranks.share(model.ranks.part_of(nbytes)))
    return nbytes


class Shared(Transformer):
    """A model of which this rank holds a share; all ranks make the same calls.

    ``holds`` says in words what the share is.
    """

    def __init__(self, args: ModelArgs, store: WeightStore, ranks: Ranks, holds: str) -> None:
        super().__init__(args, store)
        self.store, self.ranks, self.holds = store, ranks, holds
        self._held = 0
        self._watch = MemoryWatch()
        self._before = self._watch.peak(store.device).anonymous or 0

    @property
    def nbytes_read(self) -> int:
        """What this rank took from the checkpoint."""
        return self.store.nbytes_read

    @property
    def split(self) -> str:
        """How sums are divided between the ranks; empty where they are those of one process."""
        return ""

    @property
    def own(self) -> Collection[str]:
        """Raw names of the tensors that are this rank's to look at, if each is to be seen once."""
        return self.store.steps

    def fill(self) -> None:
        """Read the share, once; a rank that waited for its first row would read after the others.

        It is done with the first cache and not before: what can be refused is refused by then.
        """
        if self._held:
            return
        self.store.expect(self.store.steps)
        self._held = sum(self.store[name].nbytes for name in self.store.steps)
        self._watch.sample()

    def memory(self) -> RankMemory:
        """What this rank took so far."""
        return RankMemory(
            rank=self.ranks.rank,
            holds=self.holds,
            planned=self.store.nbytes,
            held=self._held,
            nbytes_read=self.nbytes_read,
            before=self._before,
            peak=self._watch.peak(self.store.device),
        )
