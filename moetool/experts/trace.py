"""Which experts each token went to: a probe that notes the router's choices, layer by layer.

    T tokens    L layers    A experts of one token, best first (k)

`trace` reads a whole text, `generate_routed` tells the choices of each token while a text is
written. The choices are those of the pass itself: nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from moetool.errors import UsageFault
from moetool.model.cache import in_groups
from moetool.model.evaluate import TOGETHER, Progress
from moetool.model.generate import generate, not_finite
from moetool.model.mixtral import Probe

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.model.generate import Pace, Sampling
    from moetool.model.mixtral import Routing, Transformer


@dataclass(frozen=True, slots=True)
class Routed:
    """The choices for T tokens, on the CPU.

    ``experts_TLA`` int16; ``weights_TLA`` float32, which sum to 1 over A; ``margins_TL`` float32:
    how far the logit of the last expert that was chosen is above the first that was not, infinite
    where all are chosen. Where a margin is below the noise of a sum, another machine may choose
    otherwise.
    """

    experts_TLA: Tensor
    weights_TLA: Tensor
    margins_TL: Tensor

    def __len__(self) -> int:
        return len(self.experts_TLA)


@dataclass(frozen=True, slots=True)
class Trace:
    """The choices for a text that was read in windows of ``window`` tokens."""

    tokens: tuple[int, ...]
    routed: Routed
    n_experts: int
    window: int


@dataclass(frozen=True, slots=True)
class RoutedToken:
    """A token that was written, and the choices of the pass that gave it.

    With the first token these are the choices for all tokens of the prompt ``[P, L, A]``, later
    those for the one token before this one ``[1, L, A]``. The last row is of the position whose
    logits this token was drawn from.
    """

    token: int
    routed: Routed

    @property
    def experts_LA(self) -> Tensor:
        """The experts of the position that this token was drawn at, int16 ``[L, A]``."""
        return self.routed.experts_TLA[-1]

    @property
    def weights_LA(self) -> Tensor:
        """Their weights, float32 ``[L, A]``."""
        return self.routed.weights_TLA[-1]


class Tracer(Probe):
    """A probe that notes the choices of passes until they are taken.

    Raises:
        UsageFault: the model is dense.
    """

    def __init__(self, model: Transformer) -> None:
        args = model.args
        if not args.n_experts:
            raise UsageFault(
                "a dense model has no router",
                hint="give a mixture of experts; moetool inspect says what a checkpoint is",
            )
        self._layers: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in range(args.n_layers)]

    def routed(self, layer: int, routing: Routing) -> None:
        """Note what a layer chose."""
        n_chosen, n_experts = routing.experts_TA.shape[1], routing.logits_TE.shape[1]
        if n_chosen < n_experts:
            best_TB = routing.logits_TE.topk(n_chosen + 1).values
            margin_T = best_TB[:, -2] - best_TB[:, -1]
        else:
            margin_T = torch.full_like(routing.logits_TE[:, 0], torch.inf)
        self._layers[layer].append(
            (routing.experts_TA.to("cpu", torch.int16), routing.weights_TA.cpu(), margin_T.cpu())
        )

    def take(self) -> Routed:
        """The choices since the last call, in the order in which the tokens were read.

        Raises:
            UsageFault: a layer was not seen, as where several processes share them.
        """
        if not all(self._layers):
            raise UsageFault(
                "not every layer was seen, so there is no whole choice to tell",
                hint="trace a model that one process runs, after a pass",
            )
        layers = [[torch.cat(kind) for kind in zip(*noted, strict=True)] for noted in self._layers]
        for noted in self._layers:
            noted.clear()
        experts, weights, margins = zip(*layers, strict=True)
        return Routed(torch.stack(experts, 1), torch.stack(weights, 1), torch.stack(margins, 1))


def generate_routed(
    model: Transformer,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    sampling: Sampling | None = None,
    stop: frozenset[int] = frozenset(),
    pace: Pace | None = None,
) -> Iterator[RoutedToken]:
    """Continue a prompt as `generate` does, and give with each token the choices that led to it.

    Raises:
        UsageFault: the model is dense, there is no prompt, or it leaves no room in the context.
        CheckFailed: a logit is NaN or infinite.
    """
    tracer = Tracer(model)
    for token in generate(
        model, prompt, max_tokens, sampling=sampling, stop=stop, probe=tracer, pace=pace
    ):
        yield RoutedToken(token, tracer.take())


def trace(
    model: Transformer,
    tokens: Sequence[int],
    window: int,
    progress: Progress = lambda _done, _total: None,
) -> Trace:
    """Read a text in windows, each for itself, and note the choices for every token.

    Raises:
        UsageFault: the model is dense, the text is empty, or a window is beyond the context.
        CheckFailed: a router's weight is NaN.
    """
    if not tokens:
        raise UsageFault("the text is empty, so there is nothing to route")
    tracer, device = Tracer(model), model.weights.device
    pieces = torch.split(torch.tensor(tokens), window)
    done = 0
    # Windows of a group go through the weights together: each layer is read once for all of them.
    for group in in_groups(pieces, TOGETHER):
        caches = [model.new_cache(len(piece_T)) for piece_T in group]
        model.hidden_of([piece_T.to(device) for piece_T in group], caches, tracer)
        done += sum(map(len, group))
        progress(done, len(tokens))
    routed = tracer.take()
    if not bool(routed.weights_TLA.isfinite().all()):
        raise not_finite()
    return Trace(tuple(tokens), routed, model.args.n_experts, window)
