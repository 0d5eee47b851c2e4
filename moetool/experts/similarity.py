"""Which experts are alike: within a layer, and between two checkpoints, matched by assignment.

The measure is the cosine of all three matrices together. It sees copies, fine-tuned copies, and
experts that were made of one dense layer. It does not see two experts that compute the same with
their hidden units in another order, nor what they do on a text. The router's rows are compared
beside it: where an expert went without its row, the two part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from moetool.arch.schema import Role, Slot
from moetool.errors import Refused, UsageFault
from moetool.experts.lockstep import cosines, products, whole
from moetool.proof.diff.assignment import assign
from moetool.proof.diff.experts import EXPERT_ROLES

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.experts.selection import Kept
    from moetool.model.evaluate import Progress
    from moetool.proof.canonical import Weights

ALIKE = 0.5  # cosine; `moetool.proof.diff.experts` takes experts below it for unrelated


@dataclass(frozen=True, slots=True)
class Match:
    """Expert ``a`` of the first is expert ``b`` of the second, or as near as there is one.

    ``router``: the cosine of their rows of the router.
    """

    a: int
    b: int
    cosine: float
    router: float

    @property
    def alike(self) -> bool:
        """Whether they are related at all."""
        return self.cosine >= ALIKE


@dataclass(frozen=True, slots=True)
class LayerSimilarity:
    """Cosines of a layer ``[a][b]``; ``matches`` are empty within one checkpoint."""

    layer: int
    cosines: tuple[tuple[float, ...], ...]
    matches: tuple[Match, ...] = ()


def within(
    weights: Weights, progress: Progress = lambda _done, _total: None
) -> tuple[LayerSimilarity, ...]:
    """Every expert of a layer with every other one.

    Raises:
        UsageFault: the model is dense.
    """
    args = weights.recognized.args
    _refuse_dense(weights)
    found = []
    for layer in range(args.n_layers):
        sides = [(weights, expert) for expert in range(args.n_experts)]
        found.append(LayerSimilarity(layer, _table(_cosines(sides, layer))))
        progress(layer + 1, args.n_layers)
    return tuple(found)


def across(
    a: Weights, b: Weights, progress: Progress = lambda _done, _total: None
) -> tuple[LayerSimilarity, ...]:
    """Every expert of one checkpoint with every one of another, and the best assignment.

    The other may have fewer experts or more: those that are left over are in no match.

    Raises:
        UsageFault: a model is dense.
        Refused: their experts have other shapes, or they have another number of layers.
    """
    for one in (a, b):
        _refuse_dense(one)
    ours, theirs = a.recognized.args, b.recognized.args
    shape = ("n_layers", "dim", "hidden_dim")
    if any(getattr(ours, name) != getattr(theirs, name) for name in shape):
        told = ", ".join(f"{n} {getattr(theirs, n)} for {getattr(ours, n)}" for n in shape)
        raise Refused(
            f"experts of other shapes: {told}",
            where=str(b.path),
            hint="compare checkpoints of one family; moetool diff says what differs",
        )
    sides = [(a, expert) for expert in range(ours.n_experts)]
    sides += [(b, expert) for expert in range(theirs.n_experts)]
    found = []
    for layer in range(ours.n_layers):
        cosine_AB = _cosines(sides, layer)[: ours.n_experts, ours.n_experts :]
        router_AB = _router_cosines(a, b, layer)
        found.append(LayerSimilarity(layer, _table(cosine_AB), _matches(cosine_AB, router_AB)))
        progress(layer + 1, ours.n_layers)
    return tuple(found)


def order_like(layers: tuple[LayerSimilarity, ...]) -> Kept:
    """The order of the first's experts in which each stands where its match in the second does.

    Raises:
        Refused: experts that are like none of the other's.
    """
    lone = [
        f"layer {found.layer}: expert {match.a} is like none, {match.cosine:.2f} at most"
        for found in layers
        for match in found.matches
        if not match.alike
    ]
    if lone:
        raise Refused(
            "the experts of the two are not related, so there is no order to follow",
            findings=tuple(lone),
            hint="moetool experts similarity shows the whole table",
        )
    return tuple(
        tuple(match.a for match in sorted(found.matches, key=lambda match: match.b))
        for found in layers
    )


def _matches(cosine_AB: Tensor, router_AB: Tensor) -> tuple[Match, ...]:
    """The assignment of the largest total; whoever is left over is paired with nobody."""
    n_a, n_b = cosine_AB.shape
    n = max(n_a, n_b)
    cost = torch.ones(n, n, dtype=torch.double)
    cost[:n_b, :n_a] = 1 - cosine_AB.nan_to_num(0, 0, 0).T
    chosen = assign(cost.tolist())
    return tuple(
        Match(a, b, float(cosine_AB[a, b]), float(router_AB[a, b]))
        for b, a in enumerate(chosen)
        if a < n_a and b < n_b
    )


def _cosines(sides: list[tuple[Weights, int]], layer: int) -> Tensor:
    gram = sum(
        (products(sides, role, layer) for role in EXPERT_ROLES), torch.zeros((), dtype=torch.double)
    )
    return cosines(gram)


def _router_cosines(a: Weights, b: Weights, layer: int) -> Tensor:
    rows = torch.cat([whole(one, Slot(Role.ROUTER, layer)).double() for one in (a, b)])
    n_a = a.recognized.args.n_experts
    return cosines(rows @ rows.T)[:n_a, n_a:]


def _table(values: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.nan_to_num(0, 0, 0).tolist())


def _refuse_dense(weights: Weights) -> None:
    if not weights.recognized.args.n_experts:
        raise UsageFault(
            "a dense model has no experts",
            where=str(weights.path),
            hint="give a mixture of experts; moetool inspect says what a checkpoint is",
        )
