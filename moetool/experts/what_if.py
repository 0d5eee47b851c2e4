"""What a cache of experts would do, from a trace: hits, bytes moved, and the pace that allows.

The text is taken as if it had been written token by token, which is where a model that does not fit
waits for its experts. Each layer has its own slots, as the offloaded engine here has
(`moetool.model.fast.slots` says why). Two ways of filling them are counted: the least recently used
expert leaves, or the experts that this text uses most stay for good.

    seconds a token = bytes that miss / bandwidth they come by + bytes in use / memory's bandwidth

One copy at a time, nothing hidden behind another: an engine that copies while it computes does
better, at best the larger of the two terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from moetool.arch.args import ModelArgs
    from moetool.experts.trace import Trace
    from moetool.model.load import WeightStore


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one token needs: bytes of one expert of one layer, and of all else that it reads."""

    expert_nbytes: int
    shared_nbytes: int


def traffic_of(weights: WeightStore, args: ModelArgs) -> Traffic:
    """What the weights are stored as; of the embeddings a token reads one row, which is nothing."""
    nbytes = {n: sum(part.nbytes for part in step.parts) for n, step in weights.steps.items()}
    experts = sum(size for name, size in nbytes.items() if ".experts." in name)
    rest = sum(nbytes.values()) - experts - nbytes["tok_embeddings.weight"]
    return Traffic(experts // (args.n_layers * args.n_experts), rest)


@dataclass(frozen=True, slots=True)
class Pace:
    """Tokens a second where missing experts come by ``nbytes_s``."""

    nbytes_s: int
    tokens_s: float


@dataclass(frozen=True, slots=True)
class CacheRow:
    """``slots`` experts held in each layer, ``held_nbytes`` in all; rates are shares of choices."""

    slots: int
    held_nbytes: int
    hit_rate: float
    pinned_hit_rate: float
    missed_nbytes_per_token: float
    paces: tuple[Pace, ...]


def what_if(
    trace: Trace, traffic: Traffic, bandwidths: Sequence[int], memory_nbytes_s: int
) -> tuple[CacheRow, ...]:
    """A row for each number of slots, from those of one token to all experts."""
    n_tokens, n_layers, n_chosen = trace.routed.experts_TLA.shape
    n_choices = n_tokens * n_layers * n_chosen
    depths = _depths(trace)
    loads_LE = _sorted_loads(trace)
    active = traffic.shared_nbytes + n_layers * n_chosen * traffic.expert_nbytes
    rows = []
    for slots in range(n_chosen, trace.n_experts + 1):
        hits = sum(depths[:slots])
        missed = (n_choices - hits) / n_tokens * traffic.expert_nbytes
        rows.append(
            CacheRow(
                slots=slots,
                held_nbytes=slots * n_layers * traffic.expert_nbytes,
                hit_rate=hits / n_choices,
                pinned_hit_rate=int(loads_LE[:, :slots].sum()) / n_choices,
                missed_nbytes_per_token=missed,
                paces=tuple(
                    Pace(rate, 1 / (missed / rate + active / memory_nbytes_s))
                    for rate in bandwidths
                ),
            )
        )
    return tuple(rows)


def _depths(trace: Trace) -> list[int]:
    """How many choices found their expert at each depth of the list of the recently used.

    What is at depth d is a hit for every cache of more than d slots, so one pass over the trace
    serves all sizes (Mattson et al. 1970: LRU is a stack algorithm). What a token needs is brought
    for all of its experts before they compute, so they are looked up before any of them moves.
    """
    counts = [0] * trace.n_experts
    for layer in range(trace.routed.experts_TLA.shape[1]):
        recent: list[int] = []
        for chosen in trace.routed.experts_TLA[:, layer].tolist():
            for expert in chosen:
                if expert in recent:
                    counts[recent.index(expert)] += 1
            recent = [*chosen, *(expert for expert in recent if expert not in chosen)]
    return counts


def _sorted_loads(trace: Trace) -> torch.Tensor:
    """The choices that each expert of a layer got, the most used first ``[L, E]``."""
    n_layers = trace.routed.experts_TLA.shape[1]
    loads = [
        torch.bincount(
            trace.routed.experts_TLA[:, layer].flatten().long(), minlength=trace.n_experts
        )
        for layer in range(n_layers)
    ]
    return torch.stack(loads).sort(1, descending=True).values
