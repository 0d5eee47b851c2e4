"""Where two models choose other experts for the same tokens.

Each model reads the text by itself, so what differs early may be why it differs later: the first
layer in which a token goes elsewhere is counted too. A choice whose margin is small flips at any
change of rounding; where a large one flips, something was changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.errors import Refused
from moetool.experts.summary import one_hot

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.experts.trace import Trace

MOST_FLIPS = 20


@dataclass(frozen=True, slots=True)
class LayerChange:
    """Shares of tokens of one layer.

    ``same_set``: the same experts in any order; ``same_best``: the same first; ``first``: the first
    layer with another set. ``kept``: the share of all choices that both made. ``weight``: the mean
    distance of the weights of an expert, 0 for who did not choose it. ``flip_margin``: the mean
    margin in A of tokens whose set changed, None where none did; ``margin``: that of all, None
    where every expert is chosen.
    """

    layer: int
    same_set: float
    same_best: float
    first: float
    kept: float
    weight: float
    margin: float | None
    flip_margin: float | None


@dataclass(frozen=True, slots=True)
class Flip:
    """A token that went elsewhere though its margin was large."""

    position: int
    layer: int
    token: str
    a: tuple[int, ...]
    b: tuple[int, ...]
    margin: float


@dataclass(frozen=True, slots=True)
class Changes:
    """All layers, the surest choices that changed, and tokens whose routing is the same in all."""

    path: str
    layers: tuple[LayerChange, ...]
    flips: tuple[Flip, ...]
    untouched: float


def compare_routing(path: str, a: Trace, b: Trace, spell: Callable[[int], str]) -> Changes:
    """Compare the traces of one text.

    Raises:
        Refused: the models have other numbers of layers or experts.
    """
    if a.n_experts != b.n_experts or a.routed.margins_TL.shape != b.routed.margins_TL.shape:
        raise Refused(
            f"{b.routed.margins_TL.shape[1]} layers of {b.n_experts} experts, the first has "
            f"{a.routed.margins_TL.shape[1]} of {a.n_experts}",
            where=path,
            hint="compare a checkpoint with what was made of it, such as a quantised one",
        )
    chosen_a, chosen_b = one_hot(a), one_hot(b)
    same_TL = (chosen_a == chosen_b).all(-1)
    best_TL = a.routed.experts_TLA[:, :, 0] == b.routed.experts_TLA[:, :, 0]
    # Layers before which nothing was elsewhere: the running product of "the same so far".
    before_TL = same_TL.int().cumprod(1).bool().roll(1, 1)
    before_TL[:, 0] = True
    first_TL = before_TL & ~same_TL
    kept_TL = (chosen_a & chosen_b).sum(-1).double() / chosen_a.sum(-1)
    weight_TL = (_spread(a) - _spread(b)).abs().sum(-1) / 2
    margin_TL = a.routed.margins_TL
    layers = []
    for layer in range(same_TL.shape[1]):
        flipped = margin_TL[:, layer][~same_TL[:, layer]]
        layers.append(
            LayerChange(
                layer=layer,
                same_set=float(same_TL[:, layer].double().mean()),
                same_best=float(best_TL[:, layer].double().mean()),
                first=float(first_TL[:, layer].double().mean()),
                kept=float(kept_TL[:, layer].mean()),
                weight=float(weight_TL[:, layer].mean()),
                margin=_finite(float(margin_TL[:, layer].mean())),
                flip_margin=float(flipped.mean()) if len(flipped) else None,
            )
        )
    untouched = float(same_TL.all(1).double().mean())
    return Changes(path, tuple(layers), _flips(a, b, same_TL, spell), untouched)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _spread(trace: Trace) -> Tensor:
    """The weight of each expert for each token, 0 where it was not chosen ``[T, L, E]``."""
    shape = (*trace.routed.margins_TL.shape, trace.n_experts)
    spread_TLE = trace.routed.weights_TLA.new_zeros(shape)
    return spread_TLE.scatter_(2, trace.routed.experts_TLA.long(), trace.routed.weights_TLA)


def _flips(a: Trace, b: Trace, same_TL: Tensor, spell: Callable[[int], str]) -> tuple[Flip, ...]:
    """The changed choices of the largest margins."""
    sure_TL = a.routed.margins_TL.masked_fill(same_TL, -1)
    values, places = sure_TL.flatten().topk(min(MOST_FLIPS, sure_TL.numel()))
    found = []
    for margin, place in zip(values.tolist(), places.tolist(), strict=True):
        if margin < 0:
            break
        position, layer = divmod(place, same_TL.shape[1])
        found.append(
            Flip(
                position=position,
                layer=layer,
                token=spell(a.tokens[position]),
                a=tuple(a.routed.experts_TLA[position, layer].tolist()),
                b=tuple(b.routed.experts_TLA[position, layer].tolist()),
                margin=margin,
            )
        )
    return tuple(found)
