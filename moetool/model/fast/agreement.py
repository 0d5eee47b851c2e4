"""Whether two engines are the same model: both read the same tokens, and choices are compared.

Left to themselves they part at the first near tie and write different texts, which says nothing.
So each position gets the same tokens before it (teacher forcing). There the best next token is the
same, or the reference is all but undecided between the two. A token that goes to another expert in
some layer, because two router logits were all but equal, is off by more; of such there are few.

The limits stand between what bf16 does to a sound model (KL 4e-4, the best the same in 99.2 %) and
the least of the mistakes an engine can make (two experts exchanged in one layer: 1.4e-2, 96.1 %).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from moetool.model.mixtral import Probe

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.model.mixtral import Routing

TIE = 0.1  # nats: bf16 moves a logit by 0.03, and a difference is of two
LEAST_AGREEING = 0.98
MOST_KL = 5e-3


@dataclass(frozen=True, slots=True)
class Agreement:
    """Over ``n`` positions, against the reference.

    ``same``: how often the best next token is the same; ``agreeing``: that, or a near tie;
    ``apart``: the most that the log-probability of the token read next moved, in nats; ``kl``: the
    mean of KL(reference || other).
    """

    n: int
    same: int
    agreeing: int
    apart: float
    kl: float

    @property
    def holds(self) -> bool:
        """Whether they are the same model."""
        return self.agreeing >= LEAST_AGREEING * self.n and self.kl < MOST_KL

    def __str__(self) -> str:
        return (
            f"best token the same {self.same}/{self.n}, or a near tie {self.agreeing}/{self.n}, "
            f"log-probability apart by {self.apart:.3f} at most, KL {self.kl:.1e}"
        )


def agreement(right_TV: Tensor, found_TV: Tensor, tokens_T: Tensor) -> Agreement:
    """Compare logits at each position but the last; ``tokens_T`` is what was read."""
    pair = (logits_TV[:-1].cpu().double() for logits_TV in (right_TV, found_TV))
    right_TV, found_TV = (logits_TV.log_softmax(-1) for logits_TV in pair)
    next_T1 = tokens_T.cpu()[1:, None]
    best_T1, chosen_T1 = right_TV.argmax(-1, keepdim=True), found_TV.argmax(-1, keepdim=True)
    margin_T1 = right_TV.gather(1, best_T1) - right_TV.gather(1, chosen_T1)
    moved_T1 = right_TV.gather(1, next_T1) - found_TV.gather(1, next_T1)
    return Agreement(
        n=len(next_T1),
        same=int((best_T1 == chosen_T1).sum()),
        agreeing=int((margin_T1 < TIE).sum()),
        apart=float(moved_T1.abs().max()),
        kl=float((right_TV.exp() * (right_TV - found_TV)).sum(-1).mean()),
    )


class Routes(Probe):
    """A probe that remembers who went where."""

    def __init__(self) -> None:
        self._experts: list[Tensor] = []

    def routed(self, layer: int, routing: Routing) -> None:  # noqa: ARG002  # a Probe's
        """Remember the experts of each token, whatever their order."""
        self._experts.append(routing.experts_TA.sort(-1).values.cpu())

    def same(self, other: Routes) -> float:
        """The share of tokens, over all layers, that went to the same experts."""
        ours, theirs = torch.cat(self._experts), torch.cat(other._experts)
        return float((ours == theirs).all(-1).double().mean())
