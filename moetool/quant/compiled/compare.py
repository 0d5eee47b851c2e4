"""`moetool.quant.compare` as compiled loops: one pass over memory where torch makes six."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from moetool.quant import decode
from moetool.quant.bits import halves
from moetool.quant.compiled.loops import F, Floats, Levels, compiled
from moetool.tensors import DType

if TYPE_CHECKING:
    from torch import Tensor

RUN = 1024  # weights: with their differences in the first cache, and short for a float32 sum
BLOCK = 32  # weights of q8_0


def sums_of(x_N: Tensor, stored: Tensor, dtype: DType) -> tuple[float, float, float, float]:
    """See `moetool.quant.compare.sums_of`; blocks of q8_0 are decoded where they are compared."""
    if dtype is DType.Q8_0:
        block_BS = stored.contiguous().view(-1, dtype.type_size)
        x_BN = x_N.contiguous().view(-1, BLOCK)
        levels_BS = block_BS.view(torch.int8).numpy()
        return _sums_of_blocks(x_BN.numpy(), levels_BS, halves(block_BS, 0).numpy())
    return _sums_of(x_N.contiguous().numpy(), decode(stored, dtype).numpy())


@compiled()
def _sums_of(xs: Floats, made: Floats) -> tuple[float, float, float, float]:
    off, most = np.empty(RUN, F), np.int32(0)
    square, off_square, along = 0.0, 0.0, 0.0
    for first in range(0, len(xs), RUN):
        x, run = xs[first : first + RUN], off[: min(RUN, len(xs) - first)]
        _differences(x, made[first : first + RUN], run)
        sums = _sums(x, run)
        square, off_square, along = square + sums[0], off_square + sums[1], along + sums[2]
        most = max(most, _largest(run.view(np.int32)))
    return square, off_square, along, float(np.int32(most).view(F))


@compiled()
def _sums_of_blocks(
    xs: Floats, stored: Levels, scales: Floats
) -> tuple[float, float, float, float]:
    off, most = np.empty((RUN // BLOCK, BLOCK), F), np.int32(0)
    square, off_square, along = 0.0, 0.0, 0.0
    for first in range(0, len(xs), len(off)):
        x = xs[first : first + len(off)]
        run = off[: len(x)]
        _differences_of_blocks(x, stored[first : first + len(off), 2:], scales[first:, 0], run)
        sums = _sums(x.reshape(-1), run.reshape(-1))
        square, off_square, along = square + sums[0], off_square + sums[1], along + sums[2]
        most = max(most, _largest(run.reshape(-1).view(np.int32)))
    return square, off_square, along, float(np.int32(most).view(F))


@compiled()
def _differences(x: Floats, made: Floats, off: Floats) -> None:
    for i in range(len(off)):
        off[i] = made[i] - x[i]


@compiled()
def _differences_of_blocks(x: Floats, levels: Levels, scales: Floats, off: Floats) -> None:
    for b in range(len(off)):
        scale = scales[b]
        for j in range(BLOCK):
            off[b, j] = scale * F(levels[b, j]) - x[b, j]


# The order of a sum is left to the compiler, else it adds one weight at a time.
@compiled(fastmath={"reassoc", "nsz"})
def _sums(x: Floats, off: Floats) -> tuple[F, F, F]:
    square, off_square, along = F(0), F(0), F(0)
    for i in range(len(off)):
        square += x[i] * x[i]
        off_square += off[i] * off[i]
        along += off[i] * x[i]
    return square, off_square, along


@compiled()
def _largest(bits: Levels) -> np.int32:
    """The bits of the largest magnitude: in order as integers, NaN and infinity above all."""
    most = np.int32(0)
    for i in range(len(bits)):
        most = max(most, np.int32(bits[i] & np.int32(0x7FFFFFFF)))
    return most
