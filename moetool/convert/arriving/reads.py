"""Which bytes each step of a plan reads, and in which order the pieces of a torrent follow."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.extents import Extent, union

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.convert.plan import Plan
    from moetool.formats import FileCheckpoint
    from moetool.release.live.arrivals import Arrivals

_FILE_ORDER_COSTS = 20  # the order of the file is kept where it delays less than 1/20 of all


@dataclass(frozen=True, slots=True)
class StepReads:
    """What is read for one tensor of the target: ranges of the source's files, and their pieces."""

    name: str
    extents: tuple[Extent, ...]
    pieces: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PieceOrder:
    """Pieces in the order in which they are fetched; ``lag`` of them are here before their turn."""

    pieces: tuple[int, ...]
    lag: int


def reads_of(plan: Plan, checkpoint: FileCheckpoint, arrivals: Arrivals) -> tuple[StepReads, ...]:
    """What the steps of a plan read, in the order of the plan; of a file in parts, of its parts."""
    found = []
    for step in plan.steps:
        extents: list[Extent] = []
        for part in step.parts:
            whole, (start, stop) = checkpoint.catalog.extents[part.source], part.byte_range
            source = checkpoint.sources[whole.path]
            extents += source.places(whole.offset + start, stop - start)
        held = [i for e in extents for i in arrivals.covering(e.path, e.offset, e.nbytes)]
        found.append(StepReads(step.target.name, tuple(extents), tuple(dict.fromkeys(held))))
    return tuple(found)


def piece_order(steps: Sequence[Sequence[int]]) -> PieceOrder:
    """The order of the pieces that steps read, each given by its pieces.

    That of the files is kept where it costs little: then the digests of whole files can be taken
    while they come. Elsewhere it is that of the steps.
    """
    planned = tuple(dict.fromkeys(index for pieces in steps for index in pieces))
    in_file = tuple(sorted(planned))
    place = {index: number for number, index in enumerate(in_file)}
    seen: set[int] = set()
    reached = lag = 0
    for pieces in steps:
        seen.update(pieces)
        reached = max([reached, *(place[index] + 1 for index in pieces)])
        lag = max(lag, reached - len(seen))
    if lag * _FILE_ORDER_COSTS <= len(planned):
        return PieceOrder(in_file, lag)
    return PieceOrder(planned, 0)


class Behind:
    """Gives back the pieces all of whose readers are on the disk; may be called from any thread.

    Only bytes that a step has read go, and no piece of ``kept``: headers stay readable.
    ``give_back`` takes the ranges of one piece.
    """

    def __init__(
        self,
        steps: Iterable[StepReads],
        arrivals: Arrivals,
        kept: Collection[int],
        give_back: Callable[[Iterable[Extent]], None],
    ) -> None:
        self._arrivals, self._kept, self._give_back = arrivals, frozenset(kept), give_back
        self._steps = {step.name: step for step in steps}
        self._uses = Counter(index for step in self._steps.values() for index in step.pieces)
        self._read: dict[int, list[Extent]] = defaultdict(list)
        self._lock = threading.Lock()
        for step in self._steps.values():
            for extent in step.extents:
                for index in arrivals.covering(extent.path, extent.offset, extent.nbytes):
                    self._read[index] += _common(extent, arrivals.pieces[index].extents)

    def sealed(self, names: Iterable[str]) -> None:
        """Take note of tensors of the target that are on the disk and in the journal.

        Raises:
            SystemFault: the machine said no.
        """
        with self._lock:
            for name in names:
                step = self._steps.pop(name, None)
                for index in step.pieces if step else ():
                    self._uses[index] -= 1
                    if not self._uses[index] and self._may_go(index):
                        self._give_back(_joined(self._read[index]))

    def unread(self) -> list[int]:
        """The pieces that a step which is not sealed reads, and those that no step reads."""
        with self._lock:
            return [i for i in self._arrivals.pieces if self._uses[i] or i not in self._read]

    def _may_go(self, index: int) -> bool:
        return index not in self._kept and self._arrivals.has(index)


def _common(extent: Extent, others: Iterable[Extent]) -> Iterable[Extent]:
    for other in others:
        start, stop = max(extent.offset, other.offset), min(extent.end, other.end)
        if other.path == extent.path and start < stop:
            yield Extent(extent.path, start, stop - start)


def _joined(extents: Iterable[Extent]) -> list[Extent]:
    by_file: dict[Path, list[tuple[int, int]]] = defaultdict(list)
    for extent in extents:
        by_file[extent.path].append((extent.offset, extent.end))
    return [
        Extent(path, start, stop - start)
        for path, ranges in by_file.items()
        for start, stop in union(ranges)
    ]
