"""L2: two checkpoints side by side over the same tokens, part by part on the same input.

    embeddings ─┬─ A ─> attention ─> router, each expert ─> output
                └─ B ─> …            B gets A's stream before every part

So a part that differs is at fault itself: what a damaged layer does to those behind it does not
count for them. Where both hold the same values, everything is equal to the last bit, for one engine
computes both, in the same groups of tokens. At any time one layer of each is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moetool.model.mixtral import Probe
from moetool.model.parallel.pipeline import Pipeline

if TYPE_CHECKING:
    from moetool.model.mixtral import Routing, Transformer


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the model that differs; ``layer`` and ``expert`` are None where there is none.

    ``relative`` is the norm of the difference over that of A's output: inf where one of them is
    not finite, or only A's is zero. ``cosine`` is between the two outputs.
    """

    layer: int | None
    name: str
    expert: int | None
    relative: float
    cosine: float

    def __str__(self) -> str:
        where = "" if self.layer is None else f"layers.{self.layer} "
        what = f"expert {self.expert}" if self.expert is not None else self.name
        return f"{where}{what} (relative {self.relative:.1e}, cosine {self.cosine:.4f})"


@dataclass(frozen=True, slots=True)
class Lockstep:
    """What differed, in the order of computing; ``silent`` are experts that no token reached."""

    n_tokens: int
    n_parts: int
    differing: tuple[Part, ...]
    silent: tuple[tuple[int, int], ...]
    seconds: float

    @property
    def worst(self) -> float:
        """The largest relative difference of a part."""
        return max((part.relative for part in self.differing), default=0.0)


class _Seen(Probe):
    """A probe that keeps the routing and the experts' outputs of one layer."""

    def __init__(self) -> None:
        self.routing: Routing | None = None
        self.outputs: dict[int, Tensor] = {}

    def routed(self, layer: int, routing: Routing) -> None:
        """Keep it."""
        del layer
        self.routing = routing

    def expert(self, layer: int, expert: int, y_SD: Tensor) -> None:
        """Keep it."""
        del layer
        self.outputs[expert] = y_SD


class _Comparison:
    """Compares outputs as they come, and keeps what differs."""

    def __init__(self) -> None:
        self.n_parts = 0
        self.differing: list[Part] = []

    def add(
        self, layer: int | None, name: str, a: Tensor, b: Tensor, expert: int | None = None
    ) -> bool:
        self.n_parts += 1
        b = b.to(a.device)
        if torch.equal(a, b):
            return True
        relative, cosine = _apart(a, b)
        self.differing.append(Part(layer, name, expert, relative, cosine))
        return False


def run_lockstep(
    a: Transformer,
    b: Transformer,
    tokens_T: Tensor,
    note: Callable[[int], None] = lambda _layer: None,
) -> Lockstep:
    """Run both over the same tokens, B on A's stream; ``note`` gets each layer when it is done.

    Two pipelines are cut alike: each rank compares its layers, on the stream that A hands on.
    """
    began, found = time.perf_counter(), _Comparison()
    places = [[model.new_cache(len(tokens_T)).take(len(tokens_T))] for model in (a, b)]
    layers, n_layers = _layers(a), a.args.n_layers
    h_TD = a.embed(tokens_T)
    if layers.start == 0:
        found.add(None, "embeddings", h_TD, b.embed(tokens_T))
    silent: list[tuple[int, int]] = []
    for layer in layers:
        before, h_TD = h_TD, a.attention(layer, h_TD, places[0])
        found.add(layer, "attention", h_TD, b.attention(layer, before, places[1]))
        seen, theirs = _Seen(), _Seen()
        before, h_TD = h_TD, a.experts(layer, h_TD, seen)
        after = b.experts(layer, before, theirs)
        _compare_experts(found, layer, seen, theirs, (h_TD, after))
        silent += [(layer, e) for e in range(a.args.n_experts) if e not in seen.outputs]
        note(layer)
    if isinstance(a, Pipeline):
        h_TD = a.hand_on(h_TD)
    ours_TV, theirs_TV = a.logits(h_TD), b.logits(h_TD)
    if layers.stop == n_layers:
        found.add(None, "output", ours_TV, theirs_TV)
    seconds = time.perf_counter() - began
    return Lockstep(len(tokens_T), found.n_parts, tuple(found.differing), tuple(silent), seconds)


def _layers(model: Transformer) -> range:
    return model.layers if isinstance(model, Pipeline) else range(model.args.n_layers)


def join(parts: Sequence[Lockstep]) -> Lockstep:
    """One comparison of what the ranks have compared, each its layers."""
    return Lockstep(
        n_tokens=parts[0].n_tokens,
        n_parts=sum(part.n_parts for part in parts),
        differing=tuple(chain(*(part.differing for part in parts))),
        silent=tuple(chain(*(part.silent for part in parts))),
        seconds=max(part.seconds for part in parts),
    )


def _compare_experts(
    found: _Comparison, layer: int, a: _Seen, b: _Seen, streams: tuple[Tensor, Tensor]
) -> None:
    """Router first, then each expert; the sum only where nothing else of the layer differs."""
    equal = True
    if a.routing is not None and b.routing is not None:
        equal = found.add(layer, "router", a.routing.logits_TE, b.routing.logits_TE)
        if torch.equal(a.routing.experts_TA, b.routing.experts_TA.to(a.routing.experts_TA.device)):
            for expert, output in a.outputs.items():
                equal &= found.add(layer, "expert", output, b.outputs[expert], expert)
    if equal:
        found.add(layer, "feed forward", *streams)


def _apart(a: Tensor, b: Tensor) -> tuple[float, float]:
    a, b = a.double().flatten(), b.double().flatten()
    norm, other, apart = float(a.norm()), float(b.norm()), float((b - a).norm())
    relative = apart / norm if norm and apart == apart else float("inf")  # noqa: PLR0124  # NaN
    cosine = float(a.dot(b)) / (norm * other) if norm and other else 0.0
    return relative, cosine


def by_layer(parts: tuple[Part, ...]) -> Iterator[str]:
    """The parts in words, the first of each layer."""
    told: set[int | None] = set()
    for part in parts:
        if part.layer not in told:
            told.add(part.layer)
            yield str(part)
