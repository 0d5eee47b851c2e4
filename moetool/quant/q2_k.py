"""Two bits; 16 groups of 16 weights with a scale and a minimum of four bits each.

    byte 0-15     of each group: scale in the low half, minimum in the high half
    byte 16-79    q: 32 bytes for each half of the block, in them 4 fields of 2 bits: weights
                  0-31, 32-63, 64-95, 96-127 of the half
    byte 80-81    d, f16
    byte 82-83    dmin, f16

weight = d * scale * q - dmin * minimum
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moetool.quant.bits import fields, groups, half_bytes, halves, in_blocks, packed
from moetool.quant.exact import divided, in_order, nearest
from moetool.quant.fits import IMPORTANCE_GRID, Grid, positive_by_block, stored_levels, with_minimum
from moetool.quant.importance import weigh

if TYPE_CHECKING:
    from torch import Tensor

GRID = Grid(-0.5, 0.1, 15)
LEVELS = 15  # of scales and minima


def decode(block_BN: Tensor) -> Tensor:
    """Blocks ``[B, 84]`` -> weights ``[B, 256]``."""
    packed_BG = block_BN[:, :16]
    scale_BG1 = (halves(block_BN, 80) * (packed_BG & 15).float())[..., None]
    min_BG1 = (halves(block_BN, 82) * (packed_BG >> 4).float())[..., None]
    q_B2 = fields(block_BN[:, 16:80].reshape(-1, 32), 2)  # [2B, 4, 32]
    return (scale_BG1 * q_B2.reshape(-1, 16, 16).float() - min_BG1).flatten(1)


def encode(block_BN: Tensor, importance_BN: Tensor | None = None) -> Tensor:
    """Weights ``[B, 256]``, and what an error in each counts -> blocks ``[B, 84]``."""
    x_NG = groups(block_BN, 16)
    if importance_BN is None:
        q_NG, scale_G, min_G = with_minimum(x_NG, x_NG.abs(), 3, GRID, absolute=True)
        scale_BG, d_B = _spread(scale_G.view(-1, 16))
        min_BG, dmin_B = _spread(min_G.view(-1, 16))
    else:
        w_NG = groups(weigh(block_BN, importance_BN), 16)
        q_NG, scale_G, min_G = with_minimum(x_NG, w_NG, 3, IMPORTANCE_GRID)
        w_G = in_order(w_NG)
        scale_BG, d_B = positive_by_block(scale_G, w_G, 16, LEVELS)
        min_BG, dmin_B = positive_by_block(min_G, w_G, 16, LEVELS)
    packed_BG = (scale_BG | min_BG << 4).to(torch.uint8)
    d_BN, dmin_BN = half_bytes(d_B), half_bytes(dmin_B)
    scale_G = (halves(d_BN, 0) * (packed_BG & 15)).flatten()
    min_G = (halves(dmin_BN, 0) * (packed_BG >> 4)).flatten()
    q_BN = in_blocks(stored_levels(x_NG, q_NG, scale_G, min_G, 0, 3))
    q_B64 = packed(q_BN.view(-1, 4, 32)).view(-1, 64)
    return torch.cat((packed_BG, q_B64, d_BN, dmin_BN), 1)


def _spread(value_BG: Tensor) -> tuple[Tensor, Tensor]:
    """Values as levels 0 … 15 of the largest of a block, and the value of one level."""
    largest_B1 = value_BG.amax(1, keepdim=True)
    largest_B1 = torch.where(largest_B1 > 0, largest_B1, 0.0)  # and not -0.0
    level_BG = nearest(divided(LEVELS, largest_B1) * value_BG)
    return torch.where(largest_B1 > 0, level_BG, 0), largest_B1[:, 0] / LEVELS
