"""Each rank has some heads of every layer and a part of every expert; two sums a layer join them.

    attention   heads n/R of N on each rank, their columns of wo     ── sum ─> stream
    experts     rows of w1 and w3, the same columns of w2            ── sum ─> stream
    output      rows of the vocabulary                               ── side by side ─> logits

All ranks work at the same time on the same token, which is what it is for: R memories are read at
once. Products are rounded to the weights' type on each rank, then summed in float32, so the last
digits are not one process's. Norms, router and embeddings are whole on every rank; as the sums are
the same bits everywhere, so is the routing.
"""

from __future__ import annotations

from collections.abc import Collection
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
    from moetool.model.parallel.group import Ranks
    from moetool.model.parallel.slices import SlicedCheckpoint


class TensorParallel(Shared):
    """One rank's part of every layer, with the face of the whole model.

    A probe sees whole streams and routings; of an expert's output, this rank's addend.
    """

    def __init__(
        self, args: ModelArgs, store: WeightStore, ranks: Ranks, slices: SlicedCheckpoint
    ) -> None:
        super().__init__(args, store, ranks, f"1/{ranks.size} of every layer")
        self._slices = slices

    @property
    def nbytes_read(self) -> int:
        """What this rank took from the checkpoint, columns that it did not keep included."""
        return self._slices.nbytes_read

    @property
    def split(self) -> str:
        """Every sum over heads and over an expert's hidden units has one addend of each rank."""
        return f"tensor parallel on {self.ranks.size} ranks"

    @property
    def own(self) -> Collection[str]:
        """Raw names of the tensors that are this rank's to look at: every so many, whole."""
        return list(self.store.steps)[self.ranks.rank :: self.ranks.size]

    def new_cache(self, n_positions: int) -> Cache:
        """Make room for a sequence, for the kv heads of this rank."""
        n_kv_heads = self.args.n_kv_heads // self.ranks.size
        own = Transformer(replace(self.args, n_kv_heads=n_kv_heads), self.weights)
        cache = own.new_cache(n_positions)
        self.fill()
        return cache

    @torch.inference_mode()
    def logits(self, h_TD: Tensor) -> Tensor:
        """Score this rank's part of the vocabulary, and join all parts."""
        return self.ranks.side_by_side(super().logits(h_TD))

    def _joined(self, addend_TD: Tensor) -> Tensor:
        return self.ranks.sum(addend_TD)
