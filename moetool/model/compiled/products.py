"""Products of a few float32 rows and one matrix; weights are made float32 in registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from numba import prange

from moetool.model.compiled.dot import BLOCK, HAS_HALVES, dot_bf16, dot_q8_0, threads
from moetool.model.packed import Packed
from moetool.quant.compiled.loops import compiled

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.model.packed import Matrix


def takes(w_OI: Matrix) -> bool:
    """Whether there is a loop for such a matrix: bf16 or packed, whole blocks, row by row."""
    if isinstance(w_OI, Packed):
        return HAS_HALVES
    blocks = w_OI.dtype == torch.bfloat16 and w_OI.shape[1] % BLOCK == 0
    return blocks and w_OI.is_contiguous()


def times(x_TI: Tensor, w_OI: Matrix) -> Tensor:
    """Multiply float32 rows by a matrix that it `takes`; the result is float32 ``[T, O]``."""
    loops, stored = (_times_q8_0, w_OI.data) if isinstance(w_OI, Packed) else (_times_bf16, w_OI)
    n_out, n_in = w_OI.shape
    x_TI, y_TO = x_TI.contiguous(), torch.empty(len(x_TI), n_out)
    row_nbytes = stored.stride(0) * stored.itemsize
    with threads():
        loops(stored.data_ptr(), row_nbytes, x_TI.data_ptr(), n_in // BLOCK, y_TO.numpy())
    return y_TO


# ``w x`` are the addresses of the matrix and of the rows, which stand one behind the other.
@compiled(parallel=True)
def _times_bf16(w: int, row_nbytes: int, x: int, n_blocks: int, y_TO: Any) -> None:  # noqa: ANN401
    for o in prange(y_TO.shape[1]):
        for t in range(y_TO.shape[0]):
            y_TO[t, o] = dot_bf16(w + o * row_nbytes, x + 4 * BLOCK * n_blocks * t, n_blocks)


@compiled(parallel=True)
def _times_q8_0(w: int, row_nbytes: int, x: int, n_blocks: int, y_TO: Any) -> None:  # noqa: ANN401
    for o in prange(y_TO.shape[1]):
        for t in range(y_TO.shape[0]):
            y_TO[t, o] = dot_q8_0(w + o * row_nbytes, x + 4 * BLOCK * n_blocks * t, n_blocks)
