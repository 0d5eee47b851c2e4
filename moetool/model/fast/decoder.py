"""Tokens one after another on the device: what a step reads and writes, and its recordings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moetool.model.fast.resident import bucket
from moetool.model.fast.step import first_best

if TYPE_CHECKING:
    from moetool.model.cache import Cache
    from moetool.model.fast.resident import Resident


class Decoder:
    """One sequence behind its prompt.

    ``token_1`` is what the next step reads, ``logits_V`` what the last one found and ``chosen_1``
    the best of them, -1 where they are not finite. All stay where they are, for a recorded step
    knows their places only. A step reads its own choice next, unless `token_1` is set to another.
    """

    def __init__(self, model: Resident, cache: Cache) -> None:
        device = model.weights.device
        self.token_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self.chosen_1 = torch.zeros_like(self.token_1)
        self.logits_V = torch.zeros(model.args.vocab_size, device=device)
        self._position_1 = torch.zeros_like(self.token_1)
        self._model, self._cache = model, cache
        self._steps: dict[int, Callable[[], None]] = {}

    @torch.inference_mode()
    def prepare(self, first: int, last: int) -> None:
        """Compile and record what steps at ``first`` to ``last`` positions need.

        Call it before the prompt is read: a rehearsal writes to position 0 of the cache.
        """
        while True:
            size = bucket(first, self._cache.room)
            self._step(size)
            if size >= min(last, self._cache.room):
                return
            first = size + 1

    @torch.inference_mode()
    def begin(self, logits_V: Tensor) -> None:
        """Take the logits behind the prompt, which is in the cache."""
        self._position_1.fill_(self._cache.length)
        self._keep(logits_V, first_best(logits_V))

    @torch.inference_mode()
    def advance(self) -> None:
        """Start one step; nothing is waited for.

        Raises:
            UsageFault: the cache is full.
        """
        self._step(bucket(self._cache.take(1).stop, self._cache.room))()

    def _step(self, size: int) -> Callable[[], None]:
        if size not in self._steps:
            state = (self.token_1, self.chosen_1, self.logits_V, self._position_1)
            run = partial(self._run, size)
            self._steps[size] = self._model.repeat.recorded(run, state)
        return self._steps[size]

    def _run(self, size: int) -> None:
        model, cache, weights = self._model, self._cache, self._model.stacked
        turn = cache.cos_CP[self._position_1], cache.sin_CP[self._position_1]
        h_D = weights.ends.tok_embeddings_VD[self.token_1][0]
        for layer, k_KCH, v_KCH in zip(
            weights.layers, cache.keys_LKCH, cache.values_LKCH, strict=True
        ):
            seen = k_KCH[:, :size], v_KCH[:, :size]
            h_D = model.layer_step(layer, h_D, *seen, self._position_1, turn)
        self._keep(*model.head_step(weights.ends, h_D))
        self._position_1 += 1

    def _keep(self, logits_V: Tensor, best_1: Tensor) -> None:
        self.logits_V.copy_(logits_V)
        self.chosen_1.copy_(best_1)
        self.token_1.copy_(best_1.clamp(min=0))  # -1 is no row of the embedding
