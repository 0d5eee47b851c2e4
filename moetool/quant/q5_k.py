"""Five bits; 8 groups of 32 weights with a scale and a minimum of six bits each.

    byte 0-1       d, f16
    byte 2-3       dmin, f16
    byte 4-15      scales and minima, packed as `scales_and_mins` draws it
    byte 16-47     bit 4 of q: bit g of byte l is that of weight l of group g
    byte 48-175    bits 0-3 of q: 32 bytes for each two groups, the first in the low halves

weight = d * scale * q - dmin * minimum
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moetool.quant.bits import fields, groups, halves, in_blocks, nibbles, packed, scales_and_mins
from moetool.quant.fits import Grid, stored_levels
from moetool.quant.six_bits import fit_groups

if TYPE_CHECKING:
    from torch import Tensor

GRID = Grid(-0.5, 0.1, 15)


def decode(block_BN: Tensor) -> Tensor:
    """Blocks ``[B, 176]`` -> weights ``[B, 256]``."""
    scales_BG, mins_BG = scales_and_mins(block_BN[:, 4:16])
    low_BGN = nibbles(block_BN[:, 48:].reshape(-1, 32)).view(-1, 8, 32)
    q_BGN = (low_BGN | fields(block_BN[:, 16:48], 1) << 4).float()
    scale_BG1 = (halves(block_BN, 0) * scales_BG)[..., None]
    return (scale_BG1 * q_BGN - (halves(block_BN, 2) * mins_BG)[..., None]).flatten(1)


def encode(block_BN: Tensor, importance_BN: Tensor | None = None) -> Tensor:
    """Weights ``[B, 256]``, and what an error in each counts -> blocks ``[B, 176]``."""
    x_NG = groups(block_BN, 32)
    q_NG, head_BN = fit_groups(x_NG, block_BN, importance_BN, 31, GRID)
    scale_BG, min_BG = scales_and_mins(head_BN[:, 4:])
    scale_G, min_G = (
        (halves(head_BN, 0) * scale_BG).flatten(),
        (halves(head_BN, 2) * min_BG).flatten(),
    )
    q_BN = in_blocks(stored_levels(x_NG, q_NG, scale_G, min_G, 0, 31))
    low_BN = packed((q_BN & 15).view(-1, 2, 32)).view(-1, 128)
    return torch.cat((head_BN, packed((q_BN >> 4).view(-1, 8, 32)), low_BN), 1)
