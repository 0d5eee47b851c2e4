"""The same model with some experts that nothing is routed to.

Their logits count as minus infinity: a token that would have gone there goes to the next best, and
the weights of those that are left are shared anew. That is what a checkpoint computes from which
these experts and their rows of the router were taken out.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from moetool.errors import UsageFault
from moetool.model.mixtral import Routing, Transformer

if TYPE_CHECKING:
    from torch import Tensor

Masked = Mapping[int, frozenset[int]]
"""Experts by layer."""


class MaskedTransformer(Transformer):
    """A model over the weights of another, without some of its experts."""

    def __init__(self, model: Transformer, masked: Masked) -> None:
        super().__init__(copy(model.args), model.weights)
        refuse_impossible(model, masked)
        self._masked = masked

    def route(self, layer: int, x_TD: Tensor) -> Routing:
        """Choose among the experts that are left."""
        masked = self._masked.get(layer)
        if not masked:
            return super().route(layer, x_TD)
        gate_ED = self.weights[f"layers.{layer}.feed_forward.gate.weight"]
        logits_TE = F.linear(x_TD.float(), gate_ED.float())
        logits_TE[:, sorted(masked)] = -torch.inf
        ordered_TE, order_TE = logits_TE.sort(dim=-1, descending=True, stable=True)
        chosen = slice(self.args.n_experts_per_tok)
        return Routing(logits_TE, order_TE[:, chosen], ordered_TE[:, chosen].softmax(-1))


def refuse_impossible(model: Transformer, masked: Masked) -> None:
    """Refuse experts that are not there, and layers that would have too few left.

    Raises:
        UsageFault: with all that is wrong.
    """
    args = model.args
    findings = []
    for layer, experts in masked.items():
        if not 0 <= layer < args.n_layers:
            findings.append(f"no layer {layer}, there are {args.n_layers}")
            continue
        strange = sorted(expert for expert in experts if not 0 <= expert < args.n_experts)
        findings += [f"layer {layer} has no expert {expert}" for expert in strange]
        left = args.n_experts - len(experts)
        if left < args.n_experts_per_tok:
            findings.append(
                f"layer {layer} would have {left} experts left, a token needs "
                f"{args.n_experts_per_tok}"
            )
    if findings:
        raise UsageFault(
            "these experts cannot be taken out",
            findings=tuple(findings),
            hint="moetool inspect says how many layers and experts there are",
        )
