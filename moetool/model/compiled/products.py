"""Products of a few float32 rows and one matrix; weights are made float32 in registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange

from moetool.model.compiled.dot import (
    BLOCK,
    HAS_HALVES,
    OUTPUTS,
    ROWS,
    TAKERS,
    dot_bf16,
    dot_q8_0,
    take,
    threads,
    tile_bf16,
    tile_q8_0,
)
from moetool.model.packed import Packed
from moetool.quant.compiled.loops import compiled

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.model.packed import Matrix

STRIP, CHUNK = 16, 64  # outputs and blocks whose weights, with those of some rows, stay in a cache


def takes(w_OI: Matrix) -> bool:
    """Whether there is a loop for such a matrix: bf16 or packed, whole blocks, row by row."""
    if isinstance(w_OI, Packed):
        return HAS_HALVES
    blocks = w_OI.dtype == torch.bfloat16 and w_OI.shape[1] % BLOCK == 0
    return blocks and w_OI.is_contiguous()


def times(x_TI: Tensor, w_OI: Matrix) -> Tensor:
    """Multiply float32 rows by a matrix that it `takes`; the result is float32 ``[T, O]``."""
    packed = isinstance(w_OI, Packed)
    stored = w_OI.data if isinstance(w_OI, Packed) else w_OI
    row_nbytes = stored.stride(0) * stored.itemsize
    (n_out, n_in), n_rows = w_OI.shape, len(x_TI)
    few = n_rows < ROWS
    x_TI = x_TI.contiguous() if few else F.pad(x_TI, (0, 0, 0, -n_rows % ROWS)).contiguous()
    y_TO = torch.zeros(len(x_TI), n_out)
    with threads():
        _times(stored.data_ptr(), row_nbytes, packed, x_TI.data_ptr(), n_in // BLOCK, y_TO.numpy())
    return y_TO[:n_rows]


# ``w x`` are the addresses of the matrix and of the rows, which stand one behind the other.
@compiled(parallel=True)
def _times(w: int, row_nbytes: int, packed: bool, x: int, n_blocks: int, y_TO: Any) -> None:  # noqa: ANN401
    n_rows, n_out = y_TO.shape
    n_strips, counter = (n_out + STRIP - 1) // STRIP, np.zeros(1, np.intp)
    for _ in prange(TAKERS):
        strip: int = take(counter.ctypes.data)
        while strip < n_strips:
            first, stop = strip * STRIP, min(n_out, (strip + 1) * STRIP)
            weights, found_TO = w + first * row_nbytes, y_TO[:, first:stop]
            if n_rows < ROWS:
                _by_rows(weights, row_nbytes, packed, x, n_blocks, 0, found_TO)
            else:
                _by_tiles(weights, row_nbytes, packed, x, n_blocks, found_TO)
            strip = take(counter.ctypes.data)


@compiled()
def product(w: int, packed: bool, x: int, n_blocks: int) -> Any:  # noqa: ANN401
    """One output: of a row of blocks and one of activations."""
    return dot_q8_0(w, x, n_blocks) if packed else dot_bf16(w, x, n_blocks)


@compiled()
def _by_rows(
    w: int,
    row_nbytes: int,
    packed: bool,
    x: int,
    n_blocks: int,
    first: int,
    y_TO: Any,  # noqa: ANN401
) -> None:
    n_rows, n_out = y_TO.shape
    for o in range(first, n_out):
        for t in range(n_rows):
            y_TO[t, o] = product(w + o * row_nbytes, packed, x + 4 * BLOCK * n_blocks * t, n_blocks)


@compiled()
def _by_tiles(w: int, row_nbytes: int, packed: bool, x: int, n_blocks: int, y_TO: Any) -> None:  # noqa: ANN401
    n_rows, n_out = y_TO.shape
    x_nbytes, y_nbytes, y = 4 * BLOCK * n_blocks, y_TO.strides[0], y_TO.ctypes.data
    block_nbytes = row_nbytes // n_blocks
    whole = n_out - n_out % OUTPUTS
    for i in range(0, n_blocks, CHUNK):
        n = min(CHUNK, n_blocks - i)
        for t in range(0, n_rows, ROWS):
            rows, found = x + t * x_nbytes + 4 * BLOCK * i, y + t * y_nbytes
            for o in range(0, whole, OUTPUTS):
                weights = w + o * row_nbytes + i * block_nbytes
                if packed:
                    tile_q8_0(weights, row_nbytes, rows, x_nbytes, found + 4 * o, y_nbytes, n)
                else:
                    tile_bf16(weights, row_nbytes, rows, x_nbytes, found + 4 * o, y_nbytes, n)
    _by_rows(w, row_nbytes, packed, x, n_blocks, whole, y_TO)
