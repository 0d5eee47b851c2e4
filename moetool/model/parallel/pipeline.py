"""Each rank runs a range of layers and sends the stream on to the next rank.

    rank 0  embeddings, layers 0-13   ── h_TD ─>  rank 1  layers 14-27   ── h_TD ─> …
    the last rank  layers 42-55, norm, output   ── logits ─>  all ranks

No sum crosses a rank: each computes what one process would, on the same rows in the same groups,
so that the logits are one process's to the last bit (on CPUs or GPUs of one kind). All ranks get
the logits, so all choose the same token and go on alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moetool.model.mixtral import Transformer
from moetool.model.parallel.shared import Shared

if TYPE_CHECKING:
    from moetool.arch.args import ModelArgs
    from moetool.model.cache import Cache
    from moetool.model.load import WeightStore
    from moetool.model.mixtral import Probe
    from moetool.model.parallel.group import Ranks


class Pipeline(Shared):
    """The layers of one rank, with the face of the whole model."""

    def __init__(self, args: ModelArgs, store: WeightStore, ranks: Ranks, layers: range) -> None:
        self.layers = layers
        self.is_first, self.is_last = layers.start == 0, layers.stop == args.n_layers
        ends = [f"layers {layers.start}-{layers.stop - 1}"]
        ends += ["embeddings"] if self.is_first else []
        ends += ["output"] if self.is_last else []
        super().__init__(args, store, ranks, ", ".join(ends))

    def new_cache(self, n_positions: int) -> Cache:
        """Make room for a sequence, in the layers of this rank."""
        own = Transformer(replace(self.args, n_layers=len(self.layers)), self.weights)
        cache = own.new_cache(n_positions)
        cache.first_layer = self.layers.start
        self.fill()
        return cache

    def hidden_of(
        self, pieces: Sequence[Tensor], caches: Sequence[Cache], probe: Probe | None = None
    ) -> list[Tensor]:
        """Read pieces of one or more sequences; a probe sees the layers of its own rank.

        The last hidden states are the last rank's. Those of the others have the shape and no
        values, for `logits` to take.
        """
        places = [cache.take(len(piece_T)) for piece_T, cache in zip(pieces, caches, strict=True)]
        h_TD = self.embed(torch.cat(list(pieces)))
        h_TD = self.hand_on(self.through(self.layers, h_TD, places, probe))
        return list(torch.split(h_TD, [len(place) for place in places]))

    @torch.inference_mode()
    def embed(self, tokens_T: Tensor) -> Tensor:
        """The residual stream as it begins here: embeddings, or what the rank before sends."""
        if self.is_first:
            return super().embed(tokens_T)
        shape = (len(tokens_T), self.args.dim)
        return self.ranks.receive(shape, self.weights.dtype, self.ranks.rank - 1)

    @torch.inference_mode()
    def hand_on(self, h_TD: Tensor) -> Tensor:
        """Send the stream to the next rank; the last one keeps it."""
        if self.is_last:
            return h_TD
        self.ranks.send(h_TD, self.ranks.rank + 1)
        return h_TD.to("meta")

    @torch.inference_mode()
    def logits(self, h_TD: Tensor) -> Tensor:
        """Score every token of the vocabulary on the last rank, and give all ranks the scores."""
        found_TV = super().logits(h_TD) if self.is_last else None
        shape = (len(h_TD), self.args.vocab_size)
        return self.ranks.broadcast(found_TV, shape, torch.float32, self.ranks.size - 1)
