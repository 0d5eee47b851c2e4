"""What an error in a weight counts: its importance, and more the larger it is beside the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.quant.exact import in_order, root

if TYPE_CHECKING:
    from torch import Tensor


def weigh(weight_BN: Tensor, importance_BN: Tensor, factor: int = 1) -> Tensor:
    """Importance * sqrt(factor * mean square + square), the mean over each row of what is given.

    The importance of a column is the mean square of what the matrix was multiplied with there
    (ggml-org/llama.cpp: tools/imatrix; ggml/src/ggml-quants.c: the quantize_row functions that
    take weights). q4_0 to q5_1 take the mean over a row of the matrix, the others over a block.
    """
    square_BN = weight_BN * weight_BN
    mean_B = factor * in_order(square_BN.T.contiguous()) / weight_BN.shape[1]
    return importance_BN * root(mean_B[:, None] + square_BN)
