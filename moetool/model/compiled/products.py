"""Products of a few float32 rows and one matrix; weights are made float32 in registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from numba import prange

from moetool.model.compiled.dot import (
    BLOCK,
    HAS_HALVES,
    OUTPUTS,
    ROWS,
    dot_bf16,
    dot_q8_0,
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
    loops = _by_rows if few else _by_tiles
    with threads():
        loops(stored.data_ptr(), row_nbytes, packed, x_TI.data_ptr(), n_in // BLOCK, y_TO.numpy())
    return y_TO[:n_rows]


# ``w x`` are the addresses of the matrix and of the rows, which stand one behind the other.
@compiled(parallel=True)
def _by_rows(w: int, row_nbytes: int, packed: bool, x: int, n_blocks: int, y_TO: Any) -> None:  # noqa: ANN401
    for o in prange(y_TO.shape[1]):
        for t in range(y_TO.shape[0]):
            y_TO[t, o] = _product(
                w + o * row_nbytes, packed, x + 4 * BLOCK * n_blocks * t, n_blocks
            )


@compiled(parallel=True)
def _by_tiles(w: int, row_nbytes: int, packed: bool, x: int, n_blocks: int, y_TO: Any) -> None:  # noqa: ANN401
    n_out = y_TO.shape[1]
    for strip in prange((n_out + STRIP - 1) // STRIP):
        first, stop = strip * STRIP, min(n_out, (strip + 1) * STRIP)
        _strip(w + first * row_nbytes, row_nbytes, packed, x, n_blocks, y_TO[:, first:stop])


@compiled()
def _product(w: int, packed: bool, x: int, n_blocks: int) -> Any:  # noqa: ANN401
    return dot_q8_0(w, x, n_blocks) if packed else dot_bf16(w, x, n_blocks)


@compiled()
def _strip(w: int, row_nbytes: int, packed: bool, x: int, n_blocks: int, y_TO: Any) -> None:  # noqa: ANN401
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
    for o in range(whole, n_out):
        for t in range(n_rows):
            y_TO[t, o] = _product(w + o * row_nbytes, packed, x + t * x_nbytes, n_blocks)
