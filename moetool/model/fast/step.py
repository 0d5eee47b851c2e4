"""One token through the model, in shapes that never change and with no word from the host.

The position is a tensor on the device, routing stays there, and the experts' matrices are gathered
by a tensor of their numbers: so a step can be compiled without a break and recorded as one graph.
The maths is that of mixtral.py for T = 1, a row being a vector here.

Compiled, a product is written as multiplication and sum: the compiler makes of it, with the gather
before and what follows, one kernel that reads the chosen matrices once (as meta-pytorch/gpt-fast:
mixtral-moe/model.py). As a batched product the gather would be written out first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from moetool.model.fast.int8 import Int8, Matrix, part
from moetool.model.mixtral import rms_norm, rotate, route

if TYPE_CHECKING:
    from moetool.arch.args import ModelArgs
    from moetool.model.fast.stacked import Ends, Layer


def layer_step(
    args: ModelArgs,
    layer: Layer,
    h_D: Tensor,
    k_KCH: Tensor,
    v_KCH: Tensor,
    position_1: Tensor,
    turn: tuple[Tensor, Tensor],
) -> Tensor:
    """Put a token through one layer.

    Its keys and values go to ``position_1`` of the cache; ``turn`` are the cosines and sines there.
    """
    x_D = _norm(args, h_D, layer.attention_norm_D)
    heads_nH = product(layer.wqkv_QD, x_D).view(-1, args.head_dim)
    kinds = [args.n_heads, args.n_kv_heads, args.n_kv_heads]
    q_NH, k_KH, v_KH = torch.split(heads_nH, kinds)
    # Not index_copy_, which inductor follows by a copy of the whole cache onto itself.
    k_KCH[:, position_1] = rotate(k_KH[None], *turn)[0][:, None]
    v_KCH[:, position_1] = v_KH[:, None]
    q_KGH = rotate(q_NH[None], *turn)[0].view(args.n_kv_heads, -1, args.head_dim)
    found_KGH = look_back(q_KGH, k_KCH, v_KCH, position_1, args.sliding_window)
    h_D = h_D + product(layer.wo, found_KGH.flatten())

    x_D = _norm(args, h_D, layer.ffn_norm_D)
    routing = route(x_D[None], layer.gate_ED, args.n_experts_per_tok)
    experts_A, weights_A = routing.experts_TA[0], routing.weights_TA[0]
    a_AF, b_AF = product(part(layer.w13_EUD, experts_A), x_D).chunk(2, -1)
    y_AD = product(part(layer.w2_EDF, experts_A), F.silu(a_AF) * b_AF)
    return h_D + (y_AD.float() * weights_A[:, None]).sum(0).to(h_D.dtype)


def head_step(args: ModelArgs, ends: Ends, h_D: Tensor) -> tuple[Tensor, Tensor]:
    """The float32 logits ``[V]`` behind a token, and the best of them ``[1]``.

    Of equal logits the first wins; where one is NaN or infinite there is no best, and it is -1.
    """
    x_D = _norm(args, h_D, ends.norm_D).float()
    logits_V = product(ends.output_VD, x_D)
    return logits_V, first_best(logits_V)


def first_best(logits_V: Tensor) -> Tensor:
    """The first of the largest logits ``[1]``; -1 where one is not finite."""
    V = len(logits_V)
    each_V = torch.arange(V, device=logits_V.device)
    best = torch.where(logits_V == logits_V.max(), each_V, V).min()
    return torch.where(logits_V.isfinite().all(), best, -1)[None]


def product(w_OI: Matrix, x_I: Tensor) -> Tensor:
    """One row times a matrix, or each of some matrices ``[A, O, I]`` times its row or the same.

    Sums are float32 and rounded once.
    """
    values_OI, scale_O = w_OI if isinstance(w_OI, Int8) else (w_OI, None)
    if torch.compiler.is_compiling():
        sum_O = (values_OI.float() * x_I.float().unsqueeze(-2)).sum(-1)
    else:
        sum_O = torch.matmul(values_OI.to(x_I.dtype), x_I.unsqueeze(-1)).squeeze(-1)
    scaled_O: Tensor = sum_O if scale_O is None else sum_O * scale_O
    return scaled_O.to(x_I.dtype)


def look_back(
    q_KGH: Tensor, k_KCH: Tensor, v_KCH: Tensor, position_1: Tensor, window: int | None
) -> Tensor:
    """What a position finds in itself and those before it, all in float32.

    Written out because the kernels of attention give one query of 8 kv heads 8 of 132
    multiprocessors.
    """
    back_C = position_1 - torch.arange(k_KCH.shape[1], device=k_KCH.device)
    hidden_C = back_C < 0 if window is None else (back_C < 0) | (back_C >= window)
    score_KGC = (q_KGH.float()[:, :, None] * k_KCH.float()[:, None]).sum(-1)
    score_KGC = score_KGC * q_KGH.shape[-1] ** -0.5
    share_KGC = score_KGC.masked_fill(hidden_C, -torch.inf).softmax(-1)
    found_KGH: Tensor = (share_KGC[..., None] * v_KCH.float()[:, None]).sum(-2)
    return found_KGH.to(q_KGH.dtype)


def _norm(args: ModelArgs, h_D: Tensor, weight_D: Tensor) -> Tensor:
    return rms_norm(h_D[None], weight_D, args.norm_eps)[0]
