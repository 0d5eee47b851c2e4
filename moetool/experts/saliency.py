"""What each expert of each layer adds to the stream, from one pass over a text.

    reap       mean of weight * norm of the output, over the tokens that came to the expert
    norm       mean norm of the output, over the same tokens
    mass       sum of weight * norm over all tokens: what is lost in all if it is gone
    frequency  share of the tokens that came to it

``reap`` is router-weighted expert activation pruning ("REAP the Experts: Why Pruning Prevails for
One-Shot MoE compression", arXiv 2510.13999, equation 9), the usual choice for pruning; ``norm`` is
the mean activation norm of arXiv 2606.15716, which found it better where the text is not of the
kind that the model will be used for. An expert that no token came to has 0 everywhere. These are
cheap guesses of what losing an expert costs: `moetool.experts.ablate` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from moetool.errors import UsageFault
from moetool.model.cache import in_groups
from moetool.model.evaluate import TOGETHER, Progress, windows
from moetool.model.generate import not_finite
from moetool.model.mixtral import Probe

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.model.mixtral import Routing, Transformer

CRITERIA = ("reap", "norm", "mass", "frequency")


@dataclass(frozen=True, slots=True)
class ExpertSaliency:
    """One expert of one layer; ``n_tokens`` came to it."""

    layer: int
    expert: int
    n_tokens: int
    reap: float
    norm: float
    mass: float
    frequency: float

    def by(self, criterion: str) -> float:
        """The value of a criterion.

        Raises:
            UsageFault: there is none of that name.
        """
        if criterion not in CRITERIA:
            raise UsageFault(f"no criterion {criterion!r}", hint=f"one of {', '.join(CRITERIA)}")
        return float(getattr(self, criterion))


class Observer(Probe):
    """A probe that adds up norms and weights, in float64."""

    def __init__(self, model: Transformer) -> None:
        args = model.args
        if not args.n_experts:
            raise UsageFault(
                "a dense model has no experts",
                hint="give a mixture of experts; moetool inspect says what a checkpoint is",
            )
        shape = (args.n_layers, args.n_experts)
        self._counts_LE = torch.zeros(shape, dtype=torch.long)
        self._norms_LE = torch.zeros(shape, dtype=torch.double)
        self._weighted_LE = torch.zeros(shape, dtype=torch.double)
        self._routing: Routing | None = None
        self._n_tokens = torch.zeros(args.n_layers, dtype=torch.long)

    def routed(self, layer: int, routing: Routing) -> None:
        """Remember the weights that the experts' outputs will get."""
        self._routing = routing
        self._n_tokens[layer] += len(routing.experts_TA)

    def expert(self, layer: int, expert: int, y_SD: Tensor) -> None:
        """Add the norms of an expert's outputs, which come in the order of its tokens."""
        assert self._routing is not None
        token_S, place_S = torch.where(self._routing.experts_TA == expert)
        norm_S = torch.linalg.vector_norm(y_SD.float(), dim=-1).cpu().double()
        weight_S = self._routing.weights_TA[token_S, place_S].cpu().double()
        self._counts_LE[layer, expert] += len(norm_S)
        self._norms_LE[layer, expert] += norm_S.sum()
        self._weighted_LE[layer, expert] += (weight_S * norm_S).sum()

    def saliencies(self) -> tuple[ExpertSaliency, ...]:
        """What was found, layer by layer."""
        return tuple(
            self._one(layer, expert)
            for layer in range(self._counts_LE.shape[0])
            for expert in range(self._counts_LE.shape[1])
        )

    def _one(self, layer: int, expert: int) -> ExpertSaliency:
        count = int(self._counts_LE[layer, expert])
        mass = float(self._weighted_LE[layer, expert])
        return ExpertSaliency(
            layer=layer,
            expert=expert,
            n_tokens=count,
            reap=mass / max(count, 1),
            norm=float(self._norms_LE[layer, expert]) / max(count, 1),
            mass=mass,
            frequency=count / max(int(self._n_tokens[layer]), 1),
        )


def saliencies(
    model: Transformer,
    tokens: Sequence[int],
    window: int,
    progress: Progress = lambda _done, _total: None,
) -> tuple[ExpertSaliency, ...]:
    """Read a text once, in windows, and say what each expert added.

    Raises:
        UsageFault: the model is dense, or a window is beyond its context.
        CheckFailed: an expert's output is NaN or infinite.
    """
    observer, device, done = Observer(model), model.weights.device, 0
    for group in in_groups(windows(tokens, window), TOGETHER):
        caches = [model.new_cache(len(window_T)) for window_T in group]
        model.hidden_of([window_T.to(device) for window_T in group], caches, observer)
        done += sum(map(len, group))
        progress(done, len(tokens))
    found = observer.saliencies()
    if not math.isfinite(sum(one.mass for one in found)):
        raise not_finite()
    return found


def keep_best(worth: Mapping[tuple[int, int], float], n_kept: int) -> tuple[tuple[int, ...], ...]:
    """The experts of each layer that are worth most, in their old order.

    ``worth``: by layer and expert; of equal ones the lower number stays.
    """
    layers = sorted({layer for layer, _ in worth})
    ranked = sorted(worth, key=lambda place: (-worth[place], place[1]))
    chosen = [[expert for at, expert in ranked if at == layer][:n_kept] for layer in layers]
    return tuple(tuple(sorted(experts)) for experts in chosen)
