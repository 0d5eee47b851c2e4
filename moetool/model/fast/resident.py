"""The model where all of it fits the device: a prompt here, tokens behind it in decoder.py."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from moetool.model.fast.grouped import experts_of_rows, sort_by_expert, weighted_sum
from moetool.model.fast.int8 import dense
from moetool.model.fast.repeat import Graphs, Plain, Repeat
from moetool.model.fast.step import head_step, layer_step
from moetool.model.mixtral import Probe, Transformer, attend, rms_norm, rotate, route

if TYPE_CHECKING:
    from moetool.arch.args import ModelArgs
    from moetool.model.cache import Cache, Place
    from moetool.model.fast.stacked import StackedWeights

SHORTEST, STEP = 512, 4


def bucket(n_positions: int, longest: int) -> int:
    """The length of cache that a step reads for ``n_positions``: 512, 2048, 8192, … , longest.

    A step has fixed shapes, so it reads empty positions as well. Four times as many are at the
    worst 3 % of what a token of 8x7B reads up to 2,048, and 12 % up to 32 k; a finer ladder would
    mean compiling and recording more steps.
    """
    size = SHORTEST
    while size < n_positions:
        size *= STEP
    return min(size, longest)


class Resident(Transformer):
    """The Transformer over stacked weights: the same maths in fewer and larger products."""

    def __init__(
        self, args: ModelArgs, weights: StackedWeights, repeat: Repeat | None = None
    ) -> None:
        super().__init__(args, weights)
        self.stacked = weights
        self.repeat = repeat or (Graphs() if weights.device.type == "cuda" else Plain())
        self.layer_step = self.repeat.compiled(partial(layer_step, args))
        self.head_step = self.repeat.compiled(partial(head_step, args))

    def new_cache(self, n_positions: int) -> Cache:
        """Make room as a step wants it: of a bucket's length, the heads of a position together.

        So the first positions have the same strides in a cache of any length, and a step that was
        compiled for one serves all.
        """
        longest = self.args.max_seq_len
        fits = n_positions <= longest
        cache = super().new_cache(bucket(n_positions, longest) if fits else n_positions)
        L, K, C, H = cache.keys_LKCH.shape
        cache.keys_LKCH = cache.keys_LKCH.view(L, C, K, H).transpose(1, 2)
        cache.values_LKCH = cache.values_LKCH.view(L, C, K, H).transpose(1, 2)
        return cache

    @torch.inference_mode()
    def attention(
        self,
        layer: int,
        h_TD: Tensor,
        places: Sequence[Place],
        probe: Probe | None = None,  # noqa: ARG002  # what a fused product takes is not shown
    ) -> Tensor:
        """Add to the stream what its positions find in those before them."""
        args, weights = self.args, self.stacked.layers[layer]
        x_TD = rms_norm(h_TD, weights.attention_norm_D, args.norm_eps)
        heads_TnH = F.linear(x_TD, dense(weights.wqkv_QD, x_TD.dtype)).view(
            len(x_TD), -1, args.head_dim
        )
        kinds = [args.n_heads, args.n_kv_heads, args.n_kv_heads]
        q_TNH, k_TKH, v_TKH = torch.split(heads_TnH, kinds, 1)
        cos_TP = torch.cat([place.cos for place in places])
        sin_TP = torch.cat([place.sin for place in places])
        q_TNH, k_TKH = rotate(q_TNH, cos_TP, sin_TP), rotate(k_TKH, cos_TP, sin_TP)
        sizes = [len(place) for place in places]
        pieces = zip(places, *(torch.split(x, sizes) for x in (q_TNH, k_TKH, v_TKH)), strict=True)
        found_TNH = []
        for place, q, k, v in pieces:
            seen, said = place.remember(layer, k, v)
            found_TNH.append(attend(q, seen, said, args.sliding_window))
        return h_TD + F.linear(torch.cat(found_TNH).flatten(1), dense(weights.wo, x_TD.dtype))

    def _mixture(self, layer: int, x_TD: Tensor, probe: Probe | None) -> Tensor:
        weights = self.stacked.layers[layer]
        routing = route(x_TD, weights.gate_ED, self.args.n_experts_per_tok)
        pairs = sort_by_expert(routing.experts_TA, self.args.n_experts)
        stacks = (dense(stack, x_TD.dtype) for stack in (weights.w13_EUD, weights.w2_EDF))
        y_SD = experts_of_rows(x_TD[pairs.token_S], pairs.ends_E, *stacks)
        if probe:
            probe.routed(layer, routing)
            ends = pairs.ends_E.tolist()
            for expert, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
                if start < stop:
                    probe.expert(layer, expert, y_SD[start:stop].float())
        return weighted_sum(y_SD, pairs.place_TA, routing).to(x_TD.dtype)
