"""Block codecs of GGUF: a few bits a weight, and a scale for each block of a row.

    q8_0 q4_0 q4_1 q5_0 q5_1 mxfp4     32 weights a block
    q2_k q3_k q4_k q5_k q6_k           256 weights, in groups of 16 or 32 with scales of their own
    bits                               fields of a block, and what else several formats share

A module is named by the type it reads; its docstring draws the block. ``decode`` takes blocks as
uint8 ``[B, bytes]`` and gives float32 ``[B, weights]``, the very bits that ggml's reference gives
(ggml-org/llama.cpp: ggml/src/ggml-quants.c: dequantize_row_*). Products there are exact, for a
scale has 11 bits, a group's at most 6, a weight's 5: so no order or fusing of them matters. In q6_k
they have more, and the order is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.quant import mxfp4, q2_k, q3_k, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0
from moetool.tensors import DType

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["DECODERS", "decode"]

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


def decode(stored: Tensor, dtype: DType) -> Tensor:
    """The weights of a run of whole blocks, float32 ``[n]``; ``stored`` is uint8 ``[bytes]``.

    Raises:
        KeyError: a type that has no decoder here.
    """
    return DECODERS[dtype](stored.view(-1, dtype.type_size)).flatten()
