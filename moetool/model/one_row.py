"""The Transformer whose single rows go through all layers in one call, where loops are compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moetool.model.kernels import loops_for_a_row
from moetool.model.mixtral import ATTENTION, NORMS, Probe, Transformer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from moetool.arch.args import ModelArgs
    from moetool.model.cache import Place
    from moetool.model.compiled import Row
    from moetool.model.load import WeightStore

PATIENCE = 256  # tokens that make up for compiling, which takes ten seconds once on a machine


class OneRow(Transformer):
    """The same model; a token that follows others, and that nobody looks at, takes less time.

    That needs all weights in memory: until each has been asked for, it is the plain Transformer. So
    it is for the first ``patience`` such tokens where the loops have never been compiled before.
    """

    def __init__(self, args: ModelArgs, weights: WeightStore, patience: int = PATIENCE) -> None:
        super().__init__(args, weights)
        self._store = weights
        self._patience = patience
        self._row: Row | None = None
        self._may = weights.device.type == "cpu"

    @torch.inference_mode()
    def through(
        self, layers: range, h_TD: Tensor, places: Sequence[Place], probe: Probe | None = None
    ) -> Tensor:
        """Put rows through layers; ``places`` say where they stand, one behind the other."""
        row = None if probe or len(h_TD) > 1 else self._compiled()
        if row is None or len(layers) < self.args.n_layers:
            return super().through(layers, h_TD, places, probe)
        (place,) = places
        return row.through(h_TD, place)

    def _compiled(self) -> Row | None:
        """The loops over all layers, as soon as they can be had."""
        if self._row is None and self._may and self._store.complete:
            self._may = self._begin()
        return self._row

    def _begin(self) -> bool:
        """Make the loops, or leave it; whether to ask again."""
        layers = [f"layers.{layer}" for layer in range(self.args.n_layers)]
        experts = range(self.args.n_experts) if self.args.n_experts else [None]
        matrices = [
            [self._store.matrix(f"{name}.attention.{w}.weight") for w in ATTENTION]
            + [self._store.matrix(expert) for expert in self._expert_names(layer, experts)]
            for layer, name in enumerate(layers)
        ]
        loops = loops_for_a_row([w for layer in matrices for w in layer])
        if loops is None or self.args.head_dim % loops.BLOCK:
            return False
        self._patience -= 1
        if self._patience >= 0 and not loops.is_kept():
            return True
        norms = [self._store[f"{name}.{norm}.weight"] for name in layers for norm in NORMS]
        routed = layers if self.args.n_experts else []
        gates = [self._store[f"{name}.feed_forward.gate.weight"] for name in routed]
        self._row = loops.Row(self.args, matrices, norms, gates)
        return False
