"""The comparison from end to end: headers, digests, then numbers of what differs.

1  structure    tensors, shapes, types, settings                     no weight is read
2  digests      every tensor of both sides                           each weight once
3  experts      which is which, by digest or by likeness
4  numbers      distances and traits of the tensors that differ      those once more
5  damage       what happened to them, by exact tests
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import BoundedSemaphore
from typing import TYPE_CHECKING

from moetool.arch.schema import Role, Slot
from moetool.convert.plan import Plan, Shard
from moetool.proof.diff.damage import EXPERT_MOVED, Finding, detective, settle_casts, tell
from moetool.proof.diff.experts import ExpertOrder, match_experts, matrix
from moetool.proof.diff.numbers import Numbers, columns, paired, sums_of, values
from moetool.proof.diff.report import (
    DiffReport,
    TensorDifference,
    difference,
    role_groups,
    side,
    verdict,
)
from moetool.proof.diff.structure import ShapeDifference, Structure, compare_structure
from moetool.proof.diff.traits import Trait, Traits
from moetool.proof.identity import Leaf, digest_leaf

if TYPE_CHECKING:
    import torch

    from moetool.proof.canonical import Weights
    from moetool.proof.diff.subject import Subject

_MOST_HELD_NBYTES = 48 << 20  # by all tensors that are measured at once
_COUNTED_NBYTES = 4 << 20  # of the values in hand: in f64, which differ, which are zero …

Progress = Callable[[int, str], None]
Leaves = dict[Slot, Leaf]


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor of A and the one of B that it is compared with; ``rows`` where a router's moved."""

    slot: Slot
    other: Slot
    rows: tuple[int, ...] | None = None


def compare(
    a: Subject,
    b: Subject,
    *,
    tolerance: float = 0.0,
    exact_order: bool = False,
    progress: Progress = lambda _done, _note: None,
) -> DiffReport:
    """Compare two opened checkpoints; ``tolerance`` is a relative RMS for each tensor.

    Raises:
        Refused, ReadFailed, TruncatedFile: as `digest_leaf` and `Weights.read`.
    """
    began = time.monotonic()
    x, y = a.weights, b.weights
    left, right = _digest(x, 0, progress), _digest(y, x.nbytes, progress)
    with _one_thread():
        structure = _with_common_rows(a, b, compare_structure(a, b))
        orders = tuple(_orders(x, y, left, right))
        pairs = [*_pairs(structure, orders)]
        progress(x.nbytes + y.nbytes, "measuring what differs")
        tensors, findings, sign_only = _measure(x, y, pairs, left, right, tolerance)
    worst = _with_damage(tensors, findings, orders)
    return DiffReport(
        a=side(x),
        b=side(y),
        verdict=verdict(structure, worst, orders),
        tolerance=tolerance,
        exact_order=exact_order,
        structure=structure,
        damage=tell(findings, orders),
        experts=tuple(order for order in orders if order.moved or not order.harmless),
        roles=tuple(role_groups([pair.slot for pair in pairs], worst)),
        tensors=worst,
        n_compared=len(pairs),
        sign_only=sign_only,
        nbytes=x.nbytes + y.nbytes,
        seconds=time.monotonic() - began,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch compute on one thread: the tensors share the processors among them."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _digest(weights: Weights, before: int, progress: Progress) -> Leaves:
    """The fast leaves of one side; ``before``: bytes done of the other."""
    leaves, done = {}, before
    for slot, leaf in weights.map(
        lambda slot: digest_leaf(weights, slot, fast=True), weights.steps
    ):
        leaves[slot] = leaf
        done += weights.info(slot).nbytes
        progress(done, leaf.name)
    _give_back()
    return leaves


def _orders(a: Weights, b: Weights, left: Leaves, right: Leaves) -> Iterator[ExpertOrder]:
    """The layers whose experts are not simply equal."""
    n_layers = min(a.recognized.args.n_layers, b.recognized.args.n_layers)
    for layer in range(n_layers):
        order = match_experts(a, b, layer, left, right)
        if order:
            yield order


def _pairs(structure: Structure, orders: tuple[ExpertOrder, ...]) -> Iterator[Pair]:
    """What is compared with what: a renumbered expert with itself, all else with its namesake."""
    renumbered = {o.layer: o.order for o in orders if o.moved and o.harmless}
    for slot in structure.common:
        order = renumbered.get(-1 if slot.layer is None else slot.layer)
        if order and slot.expert is not None:
            yield Pair(slot, replace(slot, expert=order.index(slot.expert)))
        elif order and slot.role is Role.ROUTER:
            yield Pair(slot, slot, order)
        else:
            yield Pair(slot, slot)


def _alike(pair: Pair, left: Leaves, right: Leaves) -> bool:
    """Whether the digests are equal: of a router whose rows moved, those of the rows."""
    x, y = left[pair.slot], right[pair.other]
    if x.dtype != y.dtype:
        return False
    if pair.rows:
        return y.rows == tuple(x.rows[row] for row in pair.rows)
    return x.xxh3_128 == y.xxh3_128


def _measure(
    a: Weights, b: Weights, pairs: list[Pair], left: Leaves, right: Leaves, tolerance: float
) -> tuple[list[TensorDifference], list[Finding], int]:
    """Numbers and damage of what differs, and how many differ in the sign of zeros only."""
    unlike = [pair for pair in pairs if not _alike(pair, left, right)]
    measured = [*_measured(a, b, unlike)]
    _give_back()
    differ = [found for found in measured if not found[1].equal]
    tensors = []
    for pair, numbers, _ in differ:
        info = a.info(pair.slot)
        tensors.append(difference(info.name, pair.slot, pair.other, info.shape, numbers, tolerance))
    seeker = detective(a, b, left, right)
    traits = settle_casts([found for _, _, found in differ])
    findings = [
        finding
        for (pair, _, _), found in zip(differ, traits, strict=True)
        for finding in seeker.explain(pair.slot, pair.other, found)
    ]
    return tensors, findings, len(measured) - len(differ)


def _measured(
    a: Weights, b: Weights, pairs: list[Pair]
) -> Iterator[tuple[Pair, Numbers, list[Trait]]]:
    """Each pair once, as many at a time as what both sides hold of a tensor allows."""
    held = _held(a) + _held(b) + _COUNTED_NBYTES
    room = BoundedSemaphore(max(1, _MOST_HELD_NBYTES // held))
    by_slot = {pair.slot: pair for pair in pairs}

    def work(slot: Slot) -> tuple[Numbers, list[Trait]]:
        with room:
            return _numbers(a, b, by_slot[slot])

    for slot, (numbers, traits) in a.map(work, by_slot):
        yield by_slot[slot], numbers, traits


def _held(weights: Weights) -> int:
    return Plan((Shard("", tuple(weights.steps.values())),)).peak_nbytes


def _give_back() -> None:
    """Have malloc return what a phase used: the next one uses other threads, or none.

    Each thread has an arena of its own, and freed blocks stay in it (mallopt(3), malloc_trim(3)).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)


def _numbers(a: Weights, b: Weights, pair: Pair) -> tuple[Numbers, list[Trait]]:
    """Distances and traits of a pair in one pass."""
    info = a.info(pair.slot)
    sums, traits = sums_of(info, b.info(pair.other)), Traits()
    for x, y in paired(values(a, pair.slot), _aligned(b, pair)):
        sums.add(x, y)
        traits.add(x, y)
    row_numel = columns(info)
    return sums.numbers(row_numel), [*traits.found(row_numel)]


def _aligned(b: Weights, pair: Pair) -> Iterator[torch.Tensor]:
    """The values of B; the rows of a renumbered router in the order of A."""
    if not pair.rows:
        return values(b, pair.other)
    whole = matrix(b, pair.other)
    at = [pair.rows.index(row) for row in range(len(pair.rows))]
    return iter([whole[at].flatten()])


def _with_common_rows(a: Subject, b: Subject, structure: Structure) -> Structure:
    return replace(structure, shapes=tuple(_common_rows(a, b, structure)))


def _common_rows(a: Subject, b: Subject, structure: Structure) -> Iterator[ShapeDifference]:
    """Say of tensors with more rows on one side whether those of both are equal."""
    for shape in structure.shapes:
        slot = shape.slot
        both = slot in a.weights.steps and slot in b.weights.steps
        if not both or "extra row" not in shape.words:
            yield shape
            continue
        info = a.weights.info(slot)
        sums = sums_of(info, b.weights.info(slot))
        for x, y in paired(values(a.weights, slot), values(b.weights, slot)):
            sums.add(x, y)
        numbers = sums.numbers(columns(info))
        rows = min(shape.a[0], shape.b[0])
        said = "are equal" if numbers.equal else f"differ, relative RMS {numbers.rel_rms:.2e}"
        yield replace(shape, words=f"{shape.words}; the {rows} rows of both {said}")


def _with_damage(
    tensors: list[TensorDifference], findings: list[Finding], orders: tuple[ExpertOrder, ...]
) -> tuple[TensorDifference, ...]:
    """Enter the kinds of damage, and put the worst first.

    A router that stayed behind its experts is part of their damage.
    """
    kinds: dict[Slot, set[str]] = {}
    for finding in findings:
        kinds.setdefault(finding.slot, set()).add(finding.kind)
    harmed = {order.layer for order in orders if order.moved and not order.harmless}
    entered = []
    for tensor in tensors:
        slot = tensor.other or tensor.slot
        found = kinds.get(slot, set())
        if slot.role is Role.ROUTER and slot.layer in harmed:
            found = found | {EXPERT_MOVED}
        entered.append(replace(tensor, damage=tuple(sorted(found))))
    return tuple(sorted(entered, key=lambda tensor: tensor.severity, reverse=True))
