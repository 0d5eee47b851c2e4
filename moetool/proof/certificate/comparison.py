"""What an output is, beside its source: the same values, the same in another order, or rounded.

    EQUAL        every canonical tensor has the same values
    RENUMBERED   the same, but for the order of experts, whose router rows went with them
    ROUNDED      every value is the nearest in the type that the output stores
    QUANTISED    some are in blocks, and as near as the type of block usually comes
    DIFFERENT    anything else: not the same model

A rounded or quantised output says of each tensor how far it is from its source. Of blocks, that is
all that is shown: which blocks a quantiser chooses depends on the quantiser. A tensor in another's
place, or one with a lost row or scale, is several times as far away as any quantiser puts it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from moetool.convert.plan import BLOCKS
from moetool.convert.quantised.distance import usual_rel_rms
from moetool.convert.stream import torch_dtype
from moetool.errors import DigestMismatch
from moetool.proof.diff.numbers import columns, paired, sums_of, values
from moetool.proof.identity import digest_leaf

if TYPE_CHECKING:
    import torch

    from moetool.arch.schema import Slot
    from moetool.proof.canonical import Weights
    from moetool.proof.identity import Identity, Leaf


ROOM = 2.0  # times the distance of normal weights: tails that are heavier take more


class Verdict(Enum):
    """The only words for what an output is."""

    EQUAL = "EQUAL"
    RENUMBERED = "RENUMBERED"
    ROUNDED = "ROUNDED"
    QUANTISED = "QUANTISED"
    DIFFERENT = "DIFFERENT"


@dataclass(frozen=True, slots=True)
class Bound:
    """How far one tensor is from its source; the numbers are those of `moetool.proof.diff`.

    ``rounded`` is true where every value is the source's, rounded to the type that is stored, or
    where the type is one of blocks and the tensor within `ROOM` times its usual distance.
    ``max_abs`` and ``rel_rms`` are None where a value became infinite or NaN: JSON has neither.
    """

    name: str
    source_dtype: str
    output_dtype: str
    rounded: bool
    numel: int
    differing: int
    max_abs: float | None
    rel_rms: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdict; ``bounds`` has the tensors whose values differ, ``reasons`` what else does."""

    verdict: Verdict
    bounds: tuple[Bound, ...] = ()
    reasons: tuple[str, ...] = ()


def compare(
    source: Weights,
    output: Weights,
    before: Identity,
    after: Identity,
    progress: Callable[[int, str], None] = lambda _done, _note: None,
) -> Comparison:
    """Judge an output by both identities; only tensors that differ are read once more.

    Raises:
        DigestMismatch: a tensor does not read the same twice.
        ReadFailed, TruncatedFile: the machine could not read, or a file has shrunk.
    """
    reasons = tuple(_reasons(before, after))
    if reasons:
        return Comparison(Verdict.DIFFERENT, reasons=reasons)
    if before.root == after.root:
        return Comparison(Verdict.EQUAL)
    if before.any_order_root == after.any_order_root:
        return Comparison(Verdict.RENUMBERED)
    ours, theirs = before.by_slot, after.by_slot
    differing = [slot for slot, leaf in ours.items() if leaf.sha256 != theirs[slot].sha256]
    bounds, done = [], 0

    def bounded(slot: Slot) -> Bound:
        for weights, leaf in ((source, ours[slot]), (output, theirs[slot])):
            _refuse_unsteady(weights, slot, leaf)
        return _bound(source, output, slot)

    for slot, bound in source.map(bounded, differing):
        bounds.append(bound)
        done += source.info(slot).nbytes
        progress(done, bound.name)
    if not all(bound.rounded for bound in bounds):
        return Comparison(Verdict.DIFFERENT, tuple(bounds))
    blocks = any(output.stored_dtype(slot) in BLOCKS for slot in differing)
    return Comparison(Verdict.QUANTISED if blocks else Verdict.ROUNDED, tuple(bounds))


def _reasons(before: Identity, after: Identity) -> Iterator[str]:
    """What makes two models different before a value is looked at."""
    for name, value in before.maths.items():
        if after.maths[name] != value:
            yield f"{name} is {value} in the source, {after.maths[name]} in the output"
    ours, theirs = before.by_slot, after.by_slot
    for slot in sorted({*ours, *theirs}, key=str):
        if slot not in ours or slot not in theirs:
            yield f"{slot} is only in the {'source' if slot in ours else 'output'}"
        elif ours[slot].shape != theirs[slot].shape:
            yield f"{slot} is {ours[slot].shape} in the source, {theirs[slot].shape} in the output"


def _refuse_unsteady(weights: Weights, slot: Slot, leaf: Leaf) -> None:
    """Read a tensor once more: a bit that changed on its way would be taken for rounding.

    Raises:
        DigestMismatch: it is not what it was.
    """
    if not digest_leaf(weights, slot, fast=True).agrees(leaf):
        raise DigestMismatch(
            f"{leaf.name} does not read the same twice",
            where=str(weights.path),
            hint="the disk, the cable or the memory is not sound; run the same command again",
        )


def _bound(source: Weights, output: Weights, slot: Slot) -> Bound:
    left, right, stored = source.info(slot), output.info(slot), output.stored_dtype(slot)
    sums, rounded = sums_of(left, right), True
    for x, y in paired(values(source, slot), values(output, slot)):
        sums.add(x, y)
        rounded = rounded and (stored in BLOCKS or _is_nearest(x, y, torch_dtype(right.dtype)))
    found = sums.numbers(columns(left))
    # Digests that differ without a value that does: zeros of another sign, which no rounding makes.
    rounded = rounded and bool(found.differing or found.nan_b)
    if stored in BLOCKS:
        rounded = found.rel_rms <= ROOM * usual_rel_rms(stored)  # false where it is NaN
    return Bound(left.name, source.stored_dtype(slot).label, stored.label, rounded, found.numel,
                 found.differing, _finite(found.max_abs), _finite(found.rel_rms))  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _is_nearest(x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether each value is what rounding to the stored type gives; -0 and NaN as values."""
    nearest = x.to(dtype)
    return bool(((nearest == y) | (nearest.isnan() & y.isnan())).all())
