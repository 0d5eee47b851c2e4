"""The model where the device holds all but the experts, and of those a few.

    file → host memory, within a budget → two pinned buffers → a slot on the device
                └→ the CPU, with the rows of an expert, where that is sooner done

Bits: an expert's rows go through the same `swiglu` as in the reference, and the sum is made in the
same order. With device and host both CPUs, logits equal the reference's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import zip_longest
from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moetool.model.mixtral import CHUNK, MANY, SWIGLU, Probe, Transformer, route, swiglu

if TYPE_CHECKING:
    from moetool.arch.args import ModelArgs
    from moetool.model.fast.rates import Rates
    from moetool.model.fast.slots import Key, Slots
    from moetool.model.mixtral import Weights

EXPERTS = ".experts."


class HostExperts:
    """The experts' matrices in host memory, as far as they fit; for two threads.

    ``weights`` keeps what was used last and knows of one thread only.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights, self._lock = weights, Lock()

    def read(self, key: Key) -> list[Tensor]:
        """w1, w2 and w3 of an expert."""
        with self._lock:
            return [self._weights[name] for name in _names(key)]

    def expect(self, keys: Iterable[Key]) -> None:
        """Hear which will be asked for next, so that they are read ahead."""
        names = [name for key in keys for name in _names(key)]
        with self._lock:
            self._weights.expect(names)


class SharedWeights:
    """What every token meets, on the device; a `moetool.model.mixtral.Weights` without experts."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._tensors["output.weight"].device

    @property
    def dtype(self) -> torch.dtype:
        """The type of matrices and activations."""
        return self._tensors["output.weight"].dtype

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def matrix(self, name: str) -> Tensor:
        """The same: nothing is packed here."""
        return self[name]

    def rows(self, name: str, index_T: Tensor) -> Tensor:
        """Some rows of a tensor."""
        return self._tensors[name][index_T]

    def expect(self, names: Iterable[str]) -> None:
        """All that can be asked for is here."""


class Offloaded(Transformer):
    """The Transformer with its experts in slots, on their way there, or left to the CPU.

    ``n_held n_copied n_cpu`` count which way experts were run so far.
    """

    def __init__(
        self, args: ModelArgs, weights: SharedWeights, host: HostExperts, slots: Slots, rates: Rates
    ) -> None:
        super().__init__(args, weights)
        self._host, self._slots, self._rates = host, slots, rates
        self.n_held = self.n_copied = self.n_cpu = 0

    def _mixture(self, layer: int, x_TD: Tensor, probe: Probe | None) -> Tensor:
        gate_ED = self.weights[f"layers.{layer}.feed_forward.gate.weight"]
        routing = route(x_TD, gate_ED, self.args.n_experts_per_tok)
        if probe:
            probe.routed(layer, routing)
        experts_TA = routing.experts_TA.cpu()  # the host has to know: here a token waits
        places = {
            e: torch.where(experts_TA == e) for e in sorted(set(experts_TA.flatten().tolist()))
        }
        made = self._run(layer, x_TD, {e: token_S for e, (token_S, _) in places.items()})
        sum_TD = torch.zeros_like(x_TD, dtype=torch.float32)
        for expert, (token_S, place_S) in places.items():
            y_SD = made[expert].float()
            if probe:
                probe.expert(layer, expert, y_SD)
            # As in the reference: no token has an expert twice, so each row gets one addend.
            weights_S1 = routing.weights_TA[token_S, place_S, None]
            sum_TD.index_add_(0, token_S.to(x_TD.device), y_SD * weights_S1)
        return sum_TD.to(x_TD.dtype)

    def _run(self, layer: int, x_TD: Tensor, rows: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """What experts make of their rows; the device and the CPU work at the same time."""
        held = [e for e in rows if self._slots.holds((layer, e))]
        missed = [e for e in rows if e not in held]
        on_cpu = [e for e in missed if self._left_to_cpu(len(rows[e]))]
        # The busiest first: what is left in vacant slots is worth the most there.
        coming = sorted(set(missed) - set(on_cpu), key=lambda e: -len(rows[e]))
        self.n_held += len(held)
        self.n_cpu += len(on_cpu)
        self.n_copied += len(coming)
        x_host_TD = x_TD.cpu() if on_cpu else x_TD  # before the queue gets long
        keep = len(x_TD) < MANY
        made = {e: self._on_device(layer, e, x_TD, rows[e]) for e in held}
        self._host.expect((layer, expert) for expert in (*coming, *on_cpu))
        for expert in coming[:2]:
            self._slots.fetch((layer, expert), keep=keep)
        for expert in on_cpu:
            y_SD = _in_chunks(x_host_TD, rows[expert], self._host.read((layer, expert)))
            made[expert] = y_SD.to(x_TD.device)
        for expert, later in zip_longest(coming, coming[2:]):
            made[expert] = self._on_device(layer, expert, x_TD, rows[expert])
            if later is not None:
                self._slots.fetch((layer, later), keep=keep)
        if not keep and layer + 1 < self.args.n_layers:
            every = ((layer + 1, expert) for expert in range(self.args.n_experts))
            self._host.expect(key for key in every if not self._slots.holds(key))
        return made

    def _on_device(self, layer: int, expert: int, x_TD: Tensor, token_S: Tensor) -> Tensor:
        F, D = self.args.hidden_dim, self.args.dim
        with self._slots.use((layer, expert)) as row_X:
            w1, w2, w3 = torch.split(row_X, F * D)
            matrices = w1.view(F, D), w2.view(D, F), w3.view(F, D)
            return _in_chunks(x_TD, token_S.to(x_TD.device), matrices)

    def _left_to_cpu(self, n_rows: int) -> bool:
        numel = self.args.n_params_expert_layer
        return self._rates.cpu_wins(numel * self.weights.dtype.itemsize, numel, n_rows)


def _in_chunks(x_TD: Tensor, token_S: Tensor, matrices: Iterable[Tensor]) -> Tensor:
    """Rows through an expert, as many at a time as in the reference."""
    w1, w2, w3 = matrices
    return torch.cat([swiglu(x_TD[rows], w1, w2, w3) for rows in torch.split(token_S, CHUNK)])


def _names(key: Key) -> list[str]:
    layer, expert = key
    return [f"layers.{layer}.feed_forward{EXPERTS}{expert}.{w}.weight" for w in SWIGLU]
