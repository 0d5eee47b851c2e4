"""One row through all layers: `moetool.model.mixtral` for a single token, in one call.

A token of a small model is some 1,500 operations of torch, and each costs microseconds whatever it
computes: at 791 M parameters a third of the time. Here a layer is five loops that all threads share
(wq wk wv / attention / wo / w1 w3 / w2) with a little between them.

What is rounded to bf16 there is rounded to bf16 here, and what is float32 there is float32 here.
Sums have another order, so last bits may differ. An array's name ends in its shape, by the letters
of mixtral.py, and

    L layers    M matrices of a layer: wq wk wv wo, then w1 w2 w3 of each expert    J some of them
    S rows that these are multiplied with, in turn    R rows of all J, one behind the other
    W what is known of a matrix: address, bytes of a row, number of rows, whether it is packed
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numba import prange

from moetool.model.compiled.dot import BLOCK, TAKERS, dot_bf16, dot_f32, take, threads
from moetool.model.compiled.products import STRIP, product
from moetool.model.packed import Packed
from moetool.quant.compiled.loops import compiled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from moetool.arch.args import ModelArgs
    from moetool.model.cache import Place
    from moetool.model.packed import Matrix

Floats: TypeAlias = "NDArray[np.float32]"
Halves: TypeAlias = "NDArray[np.int16]"
Table: TypeAlias = "NDArray[np.int64]"
F = np.float32
ADDRESS, ROW_NBYTES, N_ROWS, PACKED = 0, 1, 2, 3
N_ATTENTION, N_SWIGLU = 4, 3


class Row:
    """The layers of a model whose weights stay where they are.

    ``matrices`` has M of each layer, ``norms`` both of each layer, ``gates`` each router, none for
    a dense model.
    """

    def __init__(
        self,
        args: ModelArgs,
        matrices: Sequence[Sequence[Matrix]],
        norms: Sequence[Tensor],
        gates: Sequence[Tensor],
    ) -> None:
        self.args = args
        self._kept = matrices  # the table has their addresses, and these alone keep no memory
        self._table_LMW = np.array([[_known(w) for w in layer] for layer in matrices], np.int64)
        shape = (args.n_layers, 2, args.dim)
        self._norms_LKD = torch.stack(tuple(norms)).float().view(shape).numpy()
        no_gates = torch.empty(args.n_layers, 0, args.dim)
        self._gates_LED = (torch.stack(tuple(gates)).float() if gates else no_gates).numpy()

    def through(self, h_TD: Tensor, place: Place) -> Tensor:
        """Put the one row at a place through all layers; its keys and values are remembered."""
        args, cache = self.args, place.cache
        h_D = h_TD[0].float().numpy()
        window = args.sliding_window
        first = 0 if window is None else max(0, place.stop - window)
        with threads():
            _layers(
                h_D, self._norms_LKD, self._gates_LED, self._table_LMW,
                place.cos[0].numpy(), place.sin[0].numpy(),
                cache.keys_LKCH.view(torch.int16).numpy(),
                cache.values_LKCH.view(torch.int16).numpy(),
                first, place.start, args.norm_eps, args.n_experts_per_tok,
            )  # fmt: skip
        return torch.from_numpy(h_D)[None].to(h_TD.dtype)


def is_kept() -> bool:
    """Whether the loops were compiled on this machine before, so that they come from disk."""
    loops: Any = _layers  # numba's, and not the function it is declared to be
    folder = loops.stats.cache_path
    return folder is not None and any(Path(folder).glob("row._layers-*.nbi"))


def _known(w_OI: Matrix) -> tuple[int, int, int, int]:
    packed = isinstance(w_OI, Packed)
    stored = w_OI.data if isinstance(w_OI, Packed) else w_OI
    return stored.data_ptr(), stored.stride(0) * stored.itemsize, len(w_OI), packed


@compiled()
def _widened(half: np.int16) -> F:
    return np.int32(np.int32(half) << 16).view(np.float32)


@compiled()
def _rounded(value: F) -> F:
    """The nearest bf16, the even one of two, as torch rounds."""
    bits = F(value).view(np.int32)
    up = np.int32(bits + np.int32(0x7FFF) + (np.int32(bits >> 16) & np.int32(1)))
    return np.int32(up & np.int32(-65536)).view(np.float32) if value == value else value  # noqa: PLR0124


@compiled()
def _narrowed(value: F) -> np.int16:
    return np.int16(F(_rounded(value)).view(np.int32) >> 16)


@compiled()
def _layers(
    h_D: Floats, norms_LKD: Floats, gates_LED: Floats, table_LMW: Table, cos_P: Floats,
    sin_P: Floats, keys_LKCH: Halves, values_LKCH: Halves, first: int, at: int, eps: float,
    n_chosen: int,
) -> None:  # fmt: skip
    for layer in range(len(norms_LKD)):
        w_MW = table_LMW[layer]
        x_1D = _normed(h_D, norms_LKD[layer, 0], eps)
        keys_KCH, values_KCH = keys_LKCH[layer], values_LKCH[layer]
        _attention(h_D, x_1D, w_MW[:N_ATTENTION], cos_P, sin_P, keys_KCH, values_KCH, first, at)
        x_1D = _normed(h_D, norms_LKD[layer, 1], eps)
        _experts(h_D, x_1D, gates_LED[layer], w_MW[N_ATTENTION:], n_chosen)


@compiled()
def _normed(h_D: Floats, weight_D: Floats, eps: float) -> Floats:
    total = 0.0
    for d in range(len(h_D)):
        total += h_D[d] * h_D[d]
    scale = F(1 / math.sqrt(total / len(h_D) + eps))
    x_1D = np.empty((1, len(h_D)), F)
    for d in range(len(h_D)):
        x_1D[0, d] = _rounded(_rounded(h_D[d] * scale) * weight_D[d])
    return x_1D


@compiled(parallel=True)
def _multiplied(w_JW: Table, x_SI: Floats) -> Floats:
    """The products of all matrices as if they were one, rounded to bf16."""
    y_R, counter = np.empty(w_JW[:, N_ROWS].sum(), F), np.zeros(1, np.intp)
    for _ in prange(TAKERS):
        first = take(counter.ctypes.data) * STRIP
        while first < len(y_R):
            for r in range(first, min(len(y_R), first + STRIP)):
                y_R[r] = _rounded(_product(w_JW, x_SI, r))
            first = take(counter.ctypes.data) * STRIP
    return y_R


@compiled()
def _product(w_JW: Table, x_SI: Floats, row: int) -> Any:  # noqa: ANN401
    j = 0
    while row >= w_JW[j, N_ROWS]:
        row -= w_JW[j, N_ROWS]
        j += 1
    weights = w_JW[j, ADDRESS] + row * w_JW[j, ROW_NBYTES]
    values, n_blocks = x_SI[j % len(x_SI)].ctypes.data, x_SI.shape[1] // BLOCK
    return product(weights, w_JW[j, PACKED], values, n_blocks)


@compiled()
def _attention(
    h_D: Floats, x_1D: Floats, w_JW: Table, cos_P: Floats, sin_P: Floats, keys_KCH: Halves,
    values_KCH: Halves, first: int, at: int,
) -> None:  # fmt: skip
    K, _, H = keys_KCH.shape
    N = w_JW[0, N_ROWS] // H
    qkv_R = _multiplied(w_JW[:3], x_1D)
    for n in range(N + K):
        _rotate(qkv_R[n * H : (n + 1) * H], cos_P, sin_P)
    for k in range(K):
        for i in range(H):
            keys_KCH[k, at, i] = _narrowed(qkv_R[(N + k) * H + i])
            values_KCH[k, at, i] = _narrowed(qkv_R[(N + K + k) * H + i])
    y_D = _multiplied(w_JW[3:], _attended(qkv_R[: N * H], keys_KCH, values_KCH, first, at + 1))
    for d in range(len(h_D)):
        h_D[d] = _rounded(h_D[d] + y_D[d])


@compiled()
def _rotate(x_H: Floats, cos_P: Floats, sin_P: Floats) -> None:
    for p in range(len(cos_P)):
        a, b = x_H[2 * p], x_H[2 * p + 1]
        x_H[2 * p] = _rounded(a * cos_P[p] - b * sin_P[p])
        x_H[2 * p + 1] = _rounded(a * sin_P[p] + b * cos_P[p])


@compiled(parallel=True)
def _attended(q_Q: Floats, keys_KCH: Halves, values_KCH: Halves, first: int, stop: int) -> Floats:
    """What each query finds in positions ``first:stop``, rounded to bf16, ``[1, Q]``."""
    found_1Q, n_queries = np.empty((1, len(q_Q)), F), len(q_Q) // len(keys_KCH)
    for k in prange(len(keys_KCH)):
        mine = slice(k * n_queries, (k + 1) * n_queries)
        _attend(q_Q[mine], keys_KCH[k], values_KCH[k], first, stop, found_1Q[0, mine])
    return found_1Q


@compiled()
def _attend(
    q_Q: Floats, keys_CH: Halves, values_CH: Halves, first: int, stop: int, found_Q: Floats
) -> None:
    """The queries of one kv head, each key and value being read once for all of them."""
    H = keys_CH.shape[1]
    G = len(q_Q) // H
    scale = F(1 / math.sqrt(H))
    share_GC, found_GH = np.empty((G, stop - first), F), np.zeros((G, H), F)
    for c in range(first, stop):
        key = keys_CH[c].ctypes.data
        for g in range(G):
            query = q_Q[g * H :].ctypes.data
            share_GC[g, c - first] = dot_bf16(key, query, H // BLOCK) * scale
    for g in range(G):
        _softmax(share_GC[g])
    for c in range(first, stop):
        for g in range(G):
            share = share_GC[g, c - first]
            for i in range(H):
                found_GH[g, i] += share * _widened(values_CH[c, i])
    for g in range(G):
        for i in range(H):
            found_Q[g * H + i] = _rounded(found_GH[g, i])


@compiled()
def _softmax(x_C: Floats) -> None:
    largest, total = x_C[0], 0.0
    for x in x_C:
        largest = max(largest, x)
    for c in range(len(x_C)):
        x_C[c] = math.exp(x_C[c] - largest)
        total += x_C[c]
    for c in range(len(x_C)):
        x_C[c] = F(x_C[c] / total)


@compiled()
def _experts(h_D: Floats, x_1D: Floats, gate_ED: Floats, w_MW: Table, n_chosen: int) -> None:
    expert_A, share_A = _routed(x_1D, gate_ED, n_chosen)
    A, D = len(expert_A), len(h_D)
    n_known = w_MW.shape[1]
    w13_JW, w2_JW = np.empty((2 * A, n_known), np.int64), np.empty((A, n_known), np.int64)
    for a in range(A):
        w1 = N_SWIGLU * expert_A[a]
        for i in range(n_known):  # to assign whole rows takes numba four seconds to compile
            w13_JW[2 * a, i], w13_JW[2 * a + 1, i] = w_MW[w1, i], w_MW[w1 + 2, i]
            w2_JW[a, i] = w_MW[w1 + 1, i]
    y_R = _multiplied(w2_JW, _gated(_multiplied(w13_JW, x_1D), A))
    for d in range(D):
        total = F(0)
        for a in range(A):
            total += y_R[a * D + d] * share_A[a]
        h_D[d] = _rounded(h_D[d] + _rounded(total))


@compiled(parallel=True)
def _gated(y_R: Floats, n_chosen: int) -> Floats:
    n_hidden = len(y_R) // (2 * n_chosen)
    gated_AF = np.empty((n_chosen, n_hidden), F)
    for f in prange(n_hidden):
        for a in range(n_chosen):
            at = 2 * a * n_hidden + f
            gated_AF[a, f] = _silu_times(y_R[at], y_R[at + n_hidden])
    return gated_AF


@compiled()
def _silu_times(x: F, y: F) -> F:
    return _rounded(_rounded(x / (F(1) + F(math.exp(-x)))) * y)


@compiled()
def _routed(x_1D: Floats, gate_ED: Floats, n_chosen: int) -> tuple[Table, Floats]:
    """The experts that are chosen, by their number, and their shares; a dense model has one."""
    n_experts = len(gate_ED)
    if not n_experts:
        return np.zeros(1, np.int64), np.ones(1, F)
    logit_E, is_chosen_E = np.empty(n_experts, F), np.zeros(n_experts, np.bool_)
    n_blocks = x_1D.shape[1] // BLOCK
    for e in range(n_experts):
        logit_E[e] = dot_f32(gate_ED[e].ctypes.data, x_1D.ctypes.data, n_blocks)
    for _ in range(n_chosen):
        best = -1
        for e in range(n_experts):
            # Of equal logits the lower index wins; one that is NaN is still some expert's.
            if not is_chosen_E[e] and (best < 0 or logit_E[e] > logit_E[best]):
                best = e
        is_chosen_E[best] = True
    expert_A, share_A, a = np.empty(n_chosen, np.int64), np.empty(n_chosen, F), 0
    for e in range(n_experts):
        if is_chosen_E[e]:
            expert_A[a], share_A[a] = e, logit_E[e]
            a += 1
    _softmax(share_A)
    return expert_A, share_A
