"""Block codecs of GGUF: a few bits a weight, and a scale for each block of a row.

    q8_0 q4_0 q4_1 q5_0 q5_1 mxfp4     32 weights a block
    q2_k q3_k q4_k q5_k q6_k           256 weights, in groups of 16 or 32 with scales of their own
    bits, six_bits                     fields of a block, and what else several formats share
    spreads, fits                      scales by a block's extremes, and by search
    exact, quicker, compiled           float32 as C computes it; the same as compiled loops
    importance                         what an error in each weight counts
    compare                            how far stored weights are from those they were made of

A module is named by its type; its docstring draws the block. ``decode`` takes blocks as uint8
``[B, bytes]`` and gives float32 ``[B, weights]``, ``encode`` the reverse, both the very bits that
ggml's reference gives (ggml-org/llama.cpp: ggml/src/ggml-quants.c: dequantize_row_*,
quantize_row_*_ref and quantize_row_*_impl). Products in ``decode`` are exact, for a scale has 11
bits, a group's at most 6, a weight's 5: so no order or fusing of them matters. In q6_k they have
more, and the order is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.quant import mxfp4, q2_k, q3_k, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0
from moetool.quant.importance import weigh
from moetool.tensors import DType

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["DECODERS", "ENCODERS", "decode", "encode"]

SMALL_BLOCK = 32

DECODERS: dict[DType, Callable[[Tensor], Tensor]] = {
    DType.Q8_0: q8_0.decode,
    DType.Q4_0: q4_0.decode,
    DType.Q4_1: q4_1.decode,
    DType.Q5_0: q5_0.decode,
    DType.Q5_1: q5_1.decode,
    DType.Q2_K: q2_k.decode,
    DType.Q3_K: q3_k.decode,
    DType.Q4_K: q4_k.decode,
    DType.Q5_K: q5_k.decode,
    DType.Q6_K: q6_k.decode,
    DType.MXFP4: mxfp4.decode,
}

ENCODERS: dict[DType, Callable[[Tensor, Tensor | None], Tensor]] = {
    DType.Q8_0: q8_0.encode,
    DType.Q4_0: q4_0.encode,
    DType.Q4_1: q4_1.encode,
    DType.Q5_0: q5_0.encode,
    DType.Q5_1: q5_1.encode,
    DType.Q2_K: q2_k.encode,
    DType.Q3_K: q3_k.encode,
    DType.Q4_K: q4_k.encode,
    DType.Q5_K: q5_k.encode,
    DType.Q6_K: q6_k.encode,
    DType.MXFP4: mxfp4.encode,
}


def decode(stored: Tensor, dtype: DType) -> Tensor:
    """The weights of a run of whole blocks, float32 ``[n]``; ``stored`` is uint8 ``[bytes]``.

    Raises:
        KeyError: a type that has no decoder here.
    """
    return DECODERS[dtype](stored.view(-1, dtype.type_size)).flatten()


def encode(row_RC: Tensor, dtype: DType, importance_C: Tensor | None = None) -> Tensor:
    """Quantise whole rows; none of the weights may be NaN or infinite.

    Args:
        row_RC: the weights, float32; a row is a whole number of blocks.
        dtype: what to store them as.
        importance_C: what an error in each column counts, if that is known.

    Returns:
        The rows as stored, uint8 ``[R, row bytes]``.

    Raises:
        KeyError: a type that has no encoder here.
    """
    weight_RC = None
    if importance_C is not None:
        weight_RC = importance_C.expand_as(row_RC)
        if dtype.block_size == SMALL_BLOCK:  # these weigh by a mean over the row
            weight_RC = weigh(row_RC, weight_RC)
        weight_RC = weight_RC.reshape(-1, dtype.block_size)
    block_BN = ENCODERS[dtype](row_RC.reshape(-1, dtype.block_size), weight_RC)
    return block_BN.view(len(row_RC), -1)
