"""How far what was stored is from what it was made of: the sums that every measure is made of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from moetool.quant import decode
from moetool.quant.quicker import or_compiled

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.tensors import DType

Sums = tuple[float, float, float, float]


def compared(x_N: Tensor, stored: Tensor, dtype: DType) -> Sums:
    """Sums of x * x, off * off and off * x where off = what is stored - x, and the largest |off|.

    Of float32 and the blocks that were made of it, uint8; in float32 where it can hold the squares.
    Where a weight is NaN or infinite, the last is not finite either.
    """
    sums = sums_of(x_N, stored, dtype)
    if math.isfinite(sums[-1]) and not all(map(math.isfinite, sums)):
        return _sums(x_N.double(), decode(stored, dtype).double())
    return sums


@or_compiled
def sums_of(x_N: Tensor, stored: Tensor, dtype: DType) -> Sums:
    """`compared`, whose first three are not finite where squares are beyond float32."""
    return _sums(x_N, decode(stored, dtype))


def _sums(x_N: Tensor, made_N: Tensor) -> Sums:
    off_N = made_N - x_N
    pairs = ((x_N, x_N), (off_N, off_N), (off_N, x_N))
    square, off_square, along = (float(torch.dot(a_N, b_N)) for a_N, b_N in pairs)
    return square, off_square, along, float(off_N.abs().max())
