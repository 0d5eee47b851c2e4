"""Which expert of A is which of B: by content first, then by likeness, layer by layer.

The order of experts is free as long as the router's rows follow it: the same function, renumbered.
Experts that moved without their rows are another model, and so are rows without their experts.

    by digest    the three matrices of an expert are equal, or one of them is
    by likeness  some values spread over w1 w2 w3 are compared, and the assignment of least
                 distance is taken where it pairs experts that are plainly alike
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.arch.schema import Role, Slot
from moetool.proof.diff.assignment import assign
from moetool.proof.diff.flows import value_at
from moetool.proof.diff.numbers import values

if TYPE_CHECKING:
    import torch

    from moetool.proof.canonical import Weights
    from moetool.proof.identity import Leaf

    Leaves = Mapping[Slot, Leaf]

EXPERT_ROLES = (Role.W1, Role.W2, Role.W3)
_N_SAMPLES = 64  # values of each of the three matrices
_UNLIKE = 0.5  # 1 - cosine; unrelated weights are near 1, fine-tuned ones far below
_NEARLY = 1e-6  # less than any likeness that counts: where two choices are equal, stay


@dataclass(frozen=True, slots=True)
class ExpertOrder:
    """The experts of one layer: expert ``order[j]`` of A is expert ``j`` of B.

    ``by`` is ``digest`` or ``likeness``. ``router`` says what the router's rows did: ``follows``,
    ``stays`` or ``other``; ``exact`` where they are those of A bit for bit.
    """

    layer: int
    order: tuple[int, ...]
    by: str
    router: str
    exact: bool

    @property
    def moved(self) -> bool:
        """Whether the experts are in another order."""
        return self.order != tuple(range(len(self.order)))

    @property
    def harmless(self) -> bool:
        """Whether the router's rows are in the order of the experts."""
        return self.router == "follows"

    @property
    def rotation(self) -> int | None:
        """``k`` where expert ``j`` of B is expert ``(j + k) mod n`` of A, and k is not 0."""
        n, k = len(self.order), self.order[0]
        rotated = k and all(self.order[j] == (j + k) % n for j in range(n))
        return k if rotated else None


def match_experts(
    a: Weights, b: Weights, layer: int, left: Leaves, right: Leaves
) -> ExpertOrder | None:
    """Match the experts of a layer; None where the two sides cannot be compared or are equal.

    ``left`` and ``right`` are the leaves of both sides.
    """
    n = a.recognized.args.n_experts
    router = Slot(Role.ROUTER, layer)
    slots = [Slot(role, layer, expert) for expert in range(n) for role in EXPERT_ROLES]
    needed = [router, *slots]
    if not n or n != b.recognized.args.n_experts:
        return None
    if any(s not in left or s not in right or left[s].shape != right[s].shape for s in needed):
        return None
    if all(_key(left[slot]) == _key(right[slot]) for slot in needed):
        return None
    order, by = _order(a, b, layer, left, right)
    follows, exact = _router(a, b, router, order, left[router], right[router])
    return ExpertOrder(layer, order, by, follows, exact)


def rows_moved(left: Leaf, right: Leaf) -> tuple[int, ...] | None:
    """For each row of B's router the row of A's that it is, if the rows are only reordered."""
    if left.dtype != right.dtype or sorted(left.rows) != sorted(right.rows):
        return None
    free = list(range(len(left.rows)))
    moved = []
    for row in right.rows:
        at = next(number for number in free if left.rows[number] == row)
        free.remove(at)
        moved.append(at)
    return tuple(moved)


def _key(leaf: Leaf) -> tuple[str, str]:
    return leaf.dtype, leaf.xxh3_128


def _order(
    a: Weights, b: Weights, layer: int, left: Leaves, right: Leaves
) -> tuple[tuple[int, ...], str]:
    """Expert ``order[j]`` of A for each ``j`` of B, and how it was found."""
    n = a.recognized.args.n_experts
    order: dict[int, int] = {}
    for least in (3, 1):  # equal matrices: first all three, then any
        _match_digests(order, least, n, layer, left, right)
    unmatched_b = [j for j in range(n) if j not in order]
    unmatched_a = [i for i in range(n) if i not in order.values()]
    if not unmatched_b:
        return tuple(order[j] for j in range(n)), "digest"
    chosen = None
    if len(unmatched_b) > 1:
        chosen = _by_likeness(a, b, layer, unmatched_a, unmatched_b)
    by = "likeness" if chosen else "digest"
    order |= chosen or _staying(unmatched_a, unmatched_b)
    return tuple(order[j] for j in range(n)), by


def _match_digests(
    order: dict[int, int], least: int, n: int, layer: int, left: Leaves, right: Leaves
) -> None:
    """Match what has at least so many equal matrices; an expert that may stay does."""
    taken = set(order.values())
    for j in sorted(range(n), key=lambda j: _equal(layer, j, j, left, right) < least):
        if j in order:
            continue
        for i in (j, *range(n)):
            if i not in taken and _equal(layer, i, j, left, right) >= least:
                order[j] = i
                taken.add(i)
                break


def _equal(layer: int, i: int, j: int, left: Leaves, right: Leaves) -> int:
    """How many of the three matrices expert ``i`` of A and ``j`` of B share."""
    return sum(
        _key(left[Slot(role, layer, i)]) == _key(right[Slot(role, layer, j)])
        for role in EXPERT_ROLES
    )


def _staying(unmatched_a: list[int], unmatched_b: list[int]) -> dict[int, int]:
    """Nothing speaks for another order: who can stay stays, the others go in turn."""
    order = {j: j for j in unmatched_b if j in unmatched_a}
    rest = [i for i in unmatched_a if i not in order]
    return order | dict(zip((j for j in unmatched_b if j not in order), rest, strict=True))


def _by_likeness(
    a: Weights, b: Weights, layer: int, unmatched_a: list[int], unmatched_b: list[int]
) -> dict[int, int] | None:
    """The assignment of least distance, if it moves experts and pairs only those that are alike."""
    there = [_sample(a, layer, i) for i in unmatched_a]
    here = [_sample(b, layer, j) for j in unmatched_b]
    costs = [
        [
            _apart(x, y) - _NEARLY * (i == j)
            for i, x in zip(unmatched_a, there, strict=True)
        ]
        for j, y in zip(unmatched_b, here, strict=True)
    ]  # fmt: skip
    chosen = assign(costs)
    order = {j: unmatched_a[at] for j, at in zip(unmatched_b, chosen, strict=True)}
    alike = all(
        costs[row][at] < _UNLIKE or unmatched_a[at] == unmatched_b[row]
        for row, at in enumerate(chosen)
    )
    moves = any(i != j for j, i in order.items())
    return order if alike and moves else None


def _sample(weights: Weights, layer: int, expert: int) -> list[float]:
    """Values spread over the three matrices of an expert, the same places for every expert."""
    found = []
    for role in EXPERT_ROLES:
        slot = Slot(role, layer, expert)
        numel = weights.info(slot).numel
        for number in range(_N_SAMPLES):
            value = value_at(weights, slot, (number * 2_654_435_761 + numel // 7) % numel)
            found.append(value if math.isfinite(value) else 0.0)
    return found


def _apart(x: list[float], y: list[float]) -> float:
    """1 - cosine; 1 where one of them is zero."""
    norms = math.sqrt(math.fsum(v * v for v in x)) * math.sqrt(math.fsum(v * v for v in y))
    return 1 - sum(v * w for v, w in zip(x, y, strict=True)) / norms if norms else 1.0


def _router(
    a: Weights, b: Weights, slot: Slot, order: tuple[int, ...], left: Leaf, right: Leaf
) -> tuple[str, bool]:
    """What the rows of the router did, and whether they are A's bit for bit."""
    if left.dtype == right.dtype:
        if right.rows == tuple(left.rows[i] for i in order):
            return "follows", True
        if right.rows == left.rows:
            return "stays", True
        if rows_moved(left, right):
            return "other", True
    if order == tuple(range(len(order))):
        return "follows", False
    following, staying = _row_distances(a, b, slot, order)
    return ("follows" if following < staying else "stays"), False


def _row_distances(
    a: Weights, b: Weights, slot: Slot, order: tuple[int, ...]
) -> tuple[float, float]:
    """How far B's router is from A's with its rows in the order of the experts, and as it is."""
    x, y = (matrix(weights, slot) for weights in (a, b))
    following = float((x[list(order)] - y).square().nansum())
    return following, float((x - y).square().nansum())


def matrix(weights: Weights, slot: Slot) -> torch.Tensor:
    """A whole router in f64; it has a row for each expert, a few MB at most."""
    import torch

    return torch.cat([piece.double() for piece in values(weights, slot)]).view(
        weights.info(slot).shape
    )
