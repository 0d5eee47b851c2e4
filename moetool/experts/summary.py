"""What a trace says of each layer: who carries how much, how evenly, with whom, of which tokens.

    load           how many of a layer's T * k choices an expert got
    balance        the load's entropy over its largest, ln E: 1 where all carry the same
    heaviest       the largest load over the mean one: what the slowest device waits for
    weight entropy how undecided the router is between the k it chose: 0 is one, 1 is all alike
    top-1 share    the mean weight of the best expert
    again          how many choices the token before had made as well; an even router without
                   memory gives k / E
    lift           how much more often an expert gets a token than it gets any token

arXiv 2401.04088, section 5, found in Mixtral 8x7B tokens that stay with their experts and hardly
any topic that belongs to one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.experts.trace import Trace

FAVOURITES = 5  # tokens told of an expert
FEWEST = 3  # times that a token must have come to count as a favourite


@dataclass(frozen=True, slots=True)
class LayerRouting:
    """One layer; ``together[i][j]``: how many tokens chose both i and j, or i at all where equal.

    ``load`` and ``best`` count choices and first choices of each expert.
    """

    layer: int
    load: tuple[int, ...]
    best: tuple[int, ...]
    balance: float
    heaviest: float
    weight_entropy: float
    top1_share: float
    again: float
    together: tuple[tuple[int, ...], ...]

    @property
    def unused(self) -> tuple[int, ...]:
        """The experts that no token came to."""
        return tuple(expert for expert, count in enumerate(self.load) if not count)


@dataclass(frozen=True, slots=True)
class Favourite:
    """A token that an expert gets far more often than others do."""

    layer: int
    expert: int
    token: int
    text: str
    count: int
    lift: float


@dataclass(frozen=True, slots=True)
class Summary:
    """All layers, and the tokens that each expert likes most."""

    layers: tuple[LayerRouting, ...]
    favourites: tuple[Favourite, ...]


def summarise(trace: Trace, spell: Callable[[int], str]) -> Summary:
    """Add up a trace; ``spell`` gives a token's text."""
    chosen_TLE = one_hot(trace)
    layers = tuple(
        _layer(trace, chosen_TLE[:, layer], layer) for layer in range(chosen_TLE.shape[1])
    )
    return Summary(layers, _favourites(trace, chosen_TLE, spell))


def one_hot(trace: Trace) -> Tensor:
    """Which experts each token chose, bool ``[T, L, E]``."""
    experts_TLA = trace.routed.experts_TLA.long()
    shape = (*experts_TLA.shape[:2], trace.n_experts)
    return torch.zeros(shape, dtype=torch.bool).scatter_(2, experts_TLA, value=True)


def _layer(trace: Trace, chosen_TE: Tensor, layer: int) -> LayerRouting:
    weights_TA = trace.routed.weights_TLA[:, layer].double()
    first_T = trace.routed.experts_TLA[:, layer, 0].long()
    seen_TE = chosen_TE.float()  # sums of ones are exact up to 2**24 tokens
    load_E = seen_TE.sum(0)
    n_chosen = weights_TA.shape[1]
    return LayerRouting(
        layer=layer,
        load=tuple(int(count) for count in load_E),
        best=tuple(torch.bincount(first_T, minlength=trace.n_experts).tolist()),
        balance=_entropy(load_E.double() / load_E.sum()) / math.log(trace.n_experts)
        if trace.n_experts > 1
        else 1.0,
        heaviest=float(load_E.max() / load_E.mean()),
        weight_entropy=_mean_entropy(weights_TA) / math.log(n_chosen) if n_chosen > 1 else 0.0,
        top1_share=float(weights_TA[:, 0].mean()),
        again=_again(chosen_TE, trace.window) / n_chosen,
        together=tuple(tuple(int(n) for n in row) for row in seen_TE.T @ seen_TE),
    )


def _entropy(share_E: Tensor) -> float:
    """In nats; what has no share adds nothing."""
    return -float((share_E * share_E.clamp(min=1e-300).log()).sum())


def _mean_entropy(weights_TA: Tensor) -> float:
    return -float((weights_TA * weights_TA.clamp(min=1e-300).log()).sum(-1).mean())


def _again(chosen_TE: Tensor, window: int) -> float:
    """Experts that a token shares with the one before it in its window, on the mean."""
    both_T = (chosen_TE[1:] & chosen_TE[:-1]).sum(-1)
    inside_T = torch.arange(1, len(chosen_TE)) % window != 0
    return float(both_T[inside_T].double().mean()) if bool(inside_T.any()) else 0.0


def _favourites(
    trace: Trace, chosen_TLE: Tensor, spell: Callable[[int], str]
) -> tuple[Favourite, ...]:
    """For each expert the tokens of the highest lift, of those that came often enough."""
    kinds, index_T, count_K = torch.unique(
        torch.tensor(trace.tokens), return_inverse=True, return_counts=True
    )
    n_layers, n_experts = chosen_TLE.shape[1:]
    found = []
    often_K = count_K >= FEWEST
    for layer in range(n_layers):
        seen_TE = chosen_TLE[:, layer].double()
        got_KE = torch.zeros(len(kinds), n_experts, dtype=torch.double)
        got_KE.index_add_(0, index_T, seen_TE)
        usual_E = seen_TE.mean(0)
        lift_KE = got_KE / count_K[:, None] / usual_E.clamp(min=1e-300)
        lift_KE[~often_K] = 0
        lift_KE[got_KE < FEWEST] = 0
        order_KE = lift_KE.sort(dim=0, descending=True, stable=True).indices
        for expert in range(n_experts):
            for kind in order_KE[:FAVOURITES, expert].tolist():
                lift = float(lift_KE[kind, expert])
                if lift > 1:
                    token = int(kinds[kind])
                    found.append(
                        Favourite(layer, expert, token, spell(token), int(got_KE[kind, expert]),
                                  lift)
                    )  # fmt: skip
    return tuple(found)
