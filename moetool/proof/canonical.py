"""Any checkpoint seen as the raw release would hold it: one matrix for each role, layer and expert.

The canonical form is one more target of a conversion: the same tables, plan and stream that write
a raw .pth give the bytes here, a chunk at a time. So what is said of one layout holds for all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from moetool.arch.recognize import Recognized, recognize
from moetool.arch.schema import Slot, expand
from moetool.convert.here import require_here
from moetool.convert.plan import READABLE, Plan, Shard, Step, derive_steps
from moetool.convert.stream import computing, stream
from moetool.convert.threads import in_order
from moetool.errors import Refused
from moetool.formats import open_checkpoint
from moetool.tensors import DType

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.formats import FileCheckpoint
    from moetool.tensors import Buffer, TensorInfo

K = TypeVar("K")
T = TypeVar("T")
MOST_WORKERS = 8  # beyond that a disk is the limit, not the arithmetic
MOST_HELD_NBYTES = 64 << 20  # of weights by all workers together


@dataclass(frozen=True, slots=True)
class Weights:
    """An opened checkpoint in canonical form.

    ``steps`` has one step for each canonical tensor, in the order of the raw release; its target
    has the raw name and shape, and the storage type of the source; of quantised blocks the weights
    that they stand for are seen, in f32.
    """

    checkpoint: FileCheckpoint
    recognized: Recognized
    steps: Mapping[Slot, Step]

    @property
    def path(self) -> Path:
        """What was asked for."""
        return self.checkpoint.path

    @property
    def nbytes(self) -> int:
        """The bytes of all canonical tensors."""
        return sum(step.target.nbytes for step in self.steps.values())

    @property
    def in_file_order(self) -> list[Slot]:
        """The canonical tensors by where their first bytes lie: a disk is read front to back."""
        extents = self.checkpoint.catalog.extents
        files = {path: number for number, path in enumerate(self.checkpoint.files)}

        def place(slot: Slot) -> tuple[int, int]:
            part = self.steps[slot].parts[0]
            extent = extents[part.source]
            return files[extent.path], extent.offset + part.byte_range[0]

        return sorted(self.steps, key=place)

    def info(self, slot: Slot) -> TensorInfo:
        """Raw name, canonical shape, and the type in which the values are stored."""
        return self.steps[slot].target

    def stored_dtype(self, slot: Slot) -> DType:
        """The type in the file: that of the blocks where they are seen decoded."""
        return self.steps[slot].parts[0].dtype

    def read(self, slot: Slot) -> Iterator[Buffer]:
        """Yield the values of a canonical tensor, row-major, in the type they are stored in.

        Raises:
            ReadFailed, TruncatedFile: the machine could not read, or the file has shrunk.
        """
        return stream(self.checkpoint, self.steps[slot])

    def map(self, work: Callable[[Slot], T], slots: Iterable[Slot]) -> Iterator[tuple[Slot, T]]:
        """Do something for each tensor in threads, and yield the results in order.

        As many threads as there are processors, fewer where what they hold would be too much.
        """
        return in_threads(work, slots, self.steps.values())


def in_threads(
    work: Callable[[K], T], keys: Iterable[K], steps: Iterable[Step], *, working_nbytes: int = 0
) -> Iterator[tuple[K, T]]:
    """Do something for each key in threads, and yield the results in order.

    ``steps`` are those that the work streams: what they hold, and ``working_nbytes`` that the work
    holds beside them, decide how many threads there are.
    """
    plan = Plan((Shard("", tuple(steps)),))
    held = max(1, plan.peak_nbytes + working_nbytes)
    n_workers = max(1, min(_n_cpus(), MOST_WORKERS, MOST_HELD_NBYTES // held))
    with computing(plan):
        yield from in_order(work, keys, n_workers, "canonical")


@contextmanager
def open_weights(path: Path, *, part: bool = False) -> Iterator[Weights]:
    """Open a checkpoint in any format and layout, and see it in canonical form.

    ``part``: not all of it will be read, so a part of a release will do (see `require_here`).

    Raises:
        Refused: it is not understood, or its values are stored in a type that is not decoded.
        NotFetched: it is a part of a release, and all of it is wanted.
    """
    with open_checkpoint(path) as checkpoint:
        recognized = recognize(checkpoint.catalog, checkpoint.directory)
        weights = see(checkpoint, recognized)
        if not part:
            require_here(checkpoint, weights.steps.values())
        yield weights


def see(checkpoint: FileCheckpoint, recognized: Recognized) -> Weights:
    """The canonical form of the tensors in a recognised layout, which may be a part of a model.

    Raises:
        Refused: values are stored in a type that is not decoded.
    """
    layout, args = recognized.layout, recognized.args
    infos = {name: checkpoint.catalog.tensors[name] for name in layout}
    strange = sorted({info.dtype.label for info in infos.values() if info.dtype not in READABLE})
    if strange:
        raise Refused(
            f"holds {', '.join(strange)}, whose values are not the model's own",
            where=str(checkpoint.path),
            hint="give the checkpoint that it was made from (f32, f16 or bf16)",
        )
    held = {cell.slot for stored in layout.values() for cell in stored.cells}
    raw = {
        name: stored
        for name, stored in expand(recognized.architecture.raw, args).items()
        if stored.cells[0].slot in held
    }
    catalog = replace(checkpoint.catalog, tensors=infos)
    steps = derive_steps(catalog, layout, raw, args, decoded=DType.F32)
    slots = [stored.cells[0].slot for stored in raw.values()]
    return Weights(checkpoint, recognized, dict(zip(slots, steps, strict=True)))


def _n_cpus() -> int:
    """The processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
