"""How well a model predicts a text, and how far two models are apart on it.

A text is cut into windows that are read each for itself; the first token of a window is given, all
others are scored. Two models, or one with fewer experts for each token, see the same windows in the
same grouping of tokens, so that what differs is theirs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from moetool.errors import UsageFault
from moetool.model.cache import in_groups

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.model.mixtral import Transformer

Progress = Callable[[int, int], None]
TOGETHER = 4096  # tokens in one pass over the weights, where several windows fit


@dataclass(frozen=True, slots=True)
class Score:
    """The loss in nats a token, summed in f64, with its standard error."""

    n_tokens: int
    loss: float
    error: float
    seconds: float

    @property
    def perplexity(self) -> float:
        """The exponential of the loss; inf where that is too large."""
        return math.exp(self.loss) if self.loss < 700 else math.inf  # noqa: PLR2004  # f64 ends


@dataclass(frozen=True, slots=True)
class Distance:
    """How far B is from A over the same tokens.

    ``kl`` is the mean of KL(A || B) in nats, ``kl_max`` the largest of a token; ``same_top`` the
    share of tokens whose best continuation is the same; ``max_logit`` the largest difference of a
    logit; ``identical`` whether every logit is the same to the last bit.
    """

    kl: float
    kl_max: float
    same_top: float
    max_logit: float
    identical: bool


@dataclass(frozen=True, slots=True)
class Scores:
    """What came of a text: the score, and the other model's with the distance, if there is one."""

    score: Score
    other: Score | None = None
    distance: Distance | None = None


def with_experts(model: Transformer, n_chosen: int) -> Transformer:
    """The same weights, with another number of experts for each token.

    Raises:
        UsageFault: a dense model has none, and no layer has so many.
    """
    args = model.args
    if not 1 <= n_chosen <= args.n_experts:
        raise UsageFault(
            f"{n_chosen} experts for each token of {args.n_experts} in a layer",
            hint="a dense model has none to choose from" if not args.n_experts else None,
        )
    changed = copy(model)  # a rank's share stays one
    changed.args = replace(args, n_experts_per_tok=n_chosen)
    return changed


def evaluate(
    model: Transformer,
    tokens: Sequence[int],
    window: int,
    other: Transformer | None = None,
    progress: Progress = lambda _done, _total: None,
) -> Scores:
    """Score a text, window by window, by one model or by two.

    Raises:
        UsageFault: fewer than two tokens, or a window beyond the model's context.
    """
    if len(tokens) < 2:  # noqa: PLR2004  # one is given, one is scored
        raise UsageFault("the text has fewer than two tokens, so there is nothing to score")
    sums, theirs, apart = _Sums(), _Sums(), _Apart()
    done = 0
    # Windows of a group go through the weights together: each layer is read once for all of them.
    for group in in_groups(windows(tokens, window), TOGETHER):
        ours = _timed(model, group, sums)
        if other is None:
            for window_T, logits_TV in zip(group, ours, strict=True):
                sums.add(window_T, logits_TV)
        else:
            for window_T, a_TV, b_TV in zip(group, ours, _timed(other, group, theirs), strict=True):
                sums.add(window_T, a_TV)
                theirs.add(window_T, b_TV)
                apart.add(a_TV[:-1], b_TV[:-1].to(a_TV.device))
        done += sum(map(len, group))
        progress(done, len(tokens))
    if other is None:
        return Scores(sums.score())
    return Scores(sums.score(), theirs.score(), apart.distance())


def windows(tokens: Sequence[int], size: int) -> Iterator[Tensor]:
    """Cut a text; a last token that stands alone has nothing to be scored by."""
    for at in range(0, len(tokens), size):
        piece = tokens[at : at + size]
        if len(piece) > 1:
            yield torch.tensor(piece)


def _timed(model: Transformer, group: list[Tensor], sums: _Sums) -> Iterator[Tensor]:
    """Logits of each window, a window's at a time; the states of all are made in one pass."""
    began = time.perf_counter()
    device = model.weights.device
    caches = [model.new_cache(len(window_T)) for window_T in group]
    states = model.hidden_of([window_T.to(device) for window_T in group], caches)
    sums.seconds += time.perf_counter() - began
    for h_TD in states:
        began = time.perf_counter()
        logits_TV = model.logits(h_TD)
        sums.seconds += time.perf_counter() - began
        yield logits_TV


class _Sums:
    def __init__(self) -> None:
        self.n = 0
        self.loss = self.squares = self.seconds = 0.0

    def add(self, window_T: Tensor, logits_TV: Tensor) -> None:
        targets_T = window_T[1:].to(logits_TV.device)
        loss_T = F.cross_entropy(logits_TV[:-1], targets_T, reduction="none").double()
        self.n += len(loss_T)
        self.loss += float(loss_T.sum())
        self.squares += float(loss_T.square().sum())

    def score(self) -> Score:
        mean = self.loss / self.n
        variance = max(0.0, self.squares / self.n - mean * mean)
        return Score(self.n, mean, math.sqrt(variance / self.n), self.seconds)


class _Apart:
    def __init__(self) -> None:
        self.n = self.same = 0
        self.kl = self.kl_max = self.max_logit = 0.0
        self.identical = True

    def add(self, a_TV: Tensor, b_TV: Tensor) -> None:
        self.identical = self.identical and torch.equal(a_TV, b_TV)
        a, b = a_TV.log_softmax(-1), b_TV.log_softmax(-1)
        kl_T = (a.exp() * (a - b)).sum(-1).double().clamp(min=0)
        self.n += len(kl_T)
        self.kl += float(kl_T.sum())
        self.kl_max = max(self.kl_max, float(kl_T.max()))
        self.same += int((a_TV.argmax(-1) == b_TV.argmax(-1)).sum())
        self.max_logit = max(self.max_logit, float((a_TV - b_TV).abs().max()))

    def distance(self) -> Distance:
        return Distance(
            self.kl / self.n, self.kl_max, self.same / self.n, self.max_logit, self.identical
        )
