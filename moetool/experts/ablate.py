"""What losing experts costs, exactly: the text is read again from the layer that loses one.

    layer 0 ── 1 ── 2 ── 3 ── … ── loss            as it is
               └────┴─ 2'── 3'─ … ── loss'         without expert 5 of layer 1
                    └───── 3"─ … ── loss"          without expert 0 of layer 2

All variants go through a layer before the next one is touched, so where memory holds a layer, each
weight is read once for as many variants as there is room for streams of. Keys and values need no
copy for each variant: those of a layer are looked at in that layer only, right after they were
written. A variant is computed in the same grouping of tokens as the whole model, so what differs is
the expert.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from moetool.errors import UsageFault
from moetool.experts.masked import Masked, MaskedTransformer
from moetool.model.cache import in_groups
from moetool.model.evaluate import TOGETHER, Progress, windows
from moetool.model.generate import not_finite
from moetool.model.mixtral import Probe

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.model.mixtral import Transformer

STREAMS_NBYTES = 1 << 30  # that the streams of all variants may take at once


@dataclass(frozen=True, slots=True)
class Cost:
    """``delta``: the loss without these experts, less the loss with them, in nats a token.

    ``error`` is the standard error of the mean of the tokens' own differences.
    """

    delta: float
    error: float


@dataclass(frozen=True, slots=True)
class Costs:
    """The loss of the whole model, and the cost of each cut in the order asked for."""

    n_tokens: int
    loss: float
    cuts: tuple[Cost, ...]


@dataclass(slots=True)
class _Sum:
    total: float = 0.0
    squares: float = 0.0

    def add(self, values_T: Tensor) -> None:
        self.total += float(values_T.sum())
        self.squares += float(values_T.square().sum())

    def cost(self, n: int) -> Cost:
        mean = self.total / n
        return Cost(mean, math.sqrt(max(0.0, self.squares / n - mean * mean) / n))


@dataclass(slots=True)
class _Counter:
    """Layers that all variants of a batch went through."""

    progress: Progress
    total: int
    done: int = 0

    def one(self) -> None:
        self.done += 1
        self.progress(self.done, self.total)


class _Attended(Probe):
    """Keeps the stream between the attention and the experts of a layer."""

    h_TD: Tensor

    def hidden(self, layer: int, part: str, h_TD: Tensor) -> None:  # noqa: ARG002  # one layer
        if part == "attention":
            self.h_TD = h_TD


def measure(
    model: Transformer,
    tokens: Sequence[int],
    window: int,
    cuts: Sequence[Masked],
    progress: Progress = lambda _done, _total: None,
) -> Costs:
    """Measure what each cut costs on a text, read in windows; ``progress`` counts layers.

    Raises:
        UsageFault: fewer than two tokens, or a cut that cannot be made.
        CheckFailed: a loss is NaN or infinite.
    """
    if len(tokens) < 2:  # noqa: PLR2004  # one is given, one is scored
        raise UsageFault(
            "the text has fewer than two tokens, so there is nothing to score",
            hint="give a longer text",
        )
    variants = [(min(cut, default=0), MaskedTransformer(model, cut)) for cut in cuts]
    sums, whole, n_scored = [_Sum() for _ in cuts], _Sum(), 0
    groups = list(in_groups(windows(tokens, window), TOGETHER))
    batches = _batches(model, variants, max(sum(map(len, group)) for group in groups))
    passed = _Counter(progress, len(groups) * len(batches) * model.args.n_layers)
    for group in groups:
        for number, batch in enumerate(batches):
            streams = _streams(model, group, [variants[at] for at in batch], passed)
            base_T = _losses(model, group, next(streams))
            if not number:
                whole.add(base_T)
                n_scored += len(base_T)
            for at, stream_TD in zip(batch, streams, strict=True):
                sums[at].add(_losses(model, group, stream_TD) - base_T)
    if not math.isfinite(sum(one.total for one in (whole, *sums))):
        raise not_finite()
    return Costs(n_scored, whole.total / n_scored, tuple(one.cost(n_scored) for one in sums))


def _batches(
    model: Transformer, variants: Sequence[tuple[int, MaskedTransformer]], n_rows: int
) -> list[list[int]]:
    """Variants that go together, those that begin early first; one empty batch where none is."""
    held = max(1, STREAMS_NBYTES // (n_rows * model.args.dim * model.weights.dtype.itemsize) - 1)
    order = sorted(range(len(variants)), key=lambda at: variants[at][0])
    return [order[at : at + held] for at in range(0, len(order), held)] or [[]]


@torch.inference_mode()
def _streams(
    model: Transformer,
    group: Sequence[Tensor],
    variants: Sequence[tuple[int, MaskedTransformer]],
    passed: _Counter,
) -> Iterator[Tensor]:
    """The last hidden states of all windows ``[T, D]``: the whole model's, then each variant's."""
    device = model.weights.device
    caches = [model.new_cache(len(window_T)) for window_T in group]
    places = [cache.take(len(window_T)) for cache, window_T in zip(caches, group, strict=True)]
    h_TD = model.embed(torch.cat(list(group)).to(device))
    branched: dict[int, Tensor] = {}
    for layer in range(model.args.n_layers):
        for at, stream_TD in branched.items():
            branched[at] = variants[at][1].through(range(layer, layer + 1), stream_TD, places)
        attended = _Attended()
        h_TD = model.through(range(layer, layer + 1), h_TD, places, attended)
        for at, (first, masked) in enumerate(variants):
            if first == layer:  # it leaves the whole model at the experts
                branched[at] = masked.experts(layer, attended.h_TD)
        passed.one()
    yield h_TD
    for at in range(len(variants)):
        yield branched.pop(at)


@torch.inference_mode()
def _losses(model: Transformer, group: Sequence[Tensor], h_TD: Tensor) -> Tensor:
    """The loss of each scored token, float64, window after window."""
    found = []
    for window_T, part_TD in zip(group, torch.split(h_TD, [len(w) for w in group]), strict=True):
        logits_TV = model.logits(part_TD[:-1])
        target_T = window_T[1:].to(logits_TV.device)
        found.append(F.cross_entropy(logits_TV, target_T, reduction="none").cpu().double())
    return torch.cat(found)
