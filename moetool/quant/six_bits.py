"""The head that q4_k and q5_k share: how scales and minima of six bits are found and stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moetool.quant.bits import groups, half_bytes, packed_scales_and_mins
from moetool.quant.exact import divided, in_order, nearest, root
from moetool.quant.fits import IMPORTANCE_GRID, Grid, positive_by_block, with_minimum
from moetool.quant.importance import weigh

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = 63


def fit_groups(
    x_NG: Tensor, block_BN: Tensor, importance_BN: Tensor | None, levels: int, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Fit groups of 32 weights, and then the scales of each block's eight groups.

    Without importance a weight counts by its size, and scales and minima are spread over 0 … 63.

    Returns:
        The levels of the fit, uint8 ``[32, G]``, and the first 16 bytes of each block.
    """
    if importance_BN is None:
        size_G = root(in_order(x_NG * x_NG) / 32)
        q_NG, scale_G, min_G = with_minimum(x_NG, size_G + x_NG.abs(), levels, grid)
        scale_B8, d_B = _spread(scale_G.view(-1, 8))
        min_B8, dmin_B = _spread(min_G.view(-1, 8))
    else:
        w_NG = groups(weigh(block_BN, importance_BN, 2), 32)
        q_NG, scale_G, min_G = with_minimum(x_NG, w_NG, levels, IMPORTANCE_GRID)
        w_G = in_order(w_NG)
        scale_B8, d_B = positive_by_block(scale_G, w_G, 8, LEVELS)
        min_B8, dmin_B = positive_by_block(min_G, w_G, 8, LEVELS)
        scale_B8, min_B8 = scale_B8.clamp(max=LEVELS), min_B8.clamp(max=LEVELS)
    packed_B12 = packed_scales_and_mins(scale_B8, min_B8)
    return q_NG, torch.cat((half_bytes(d_B), half_bytes(dmin_B), packed_B12), 1)


def _spread(value_BG: Tensor) -> tuple[Tensor, Tensor]:
    """Values as levels 0 … 63 of the largest of a block, and the value of one level."""
    largest_B1 = value_BG.amax(1, keepdim=True)
    largest_B1 = torch.where(largest_B1 > 0, largest_B1, 0.0)  # and not -0.0
    inverse_B1 = torch.where(largest_B1 > 0, divided(LEVELS, largest_B1), 0.0)
    return (nearest(inverse_B1 * value_BG) & 255).clamp(max=LEVELS), largest_B1[:, 0] / LEVELS
