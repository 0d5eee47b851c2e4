"""Six bits; 16 groups of 16 weights with a scale of eight bits each.

    byte 0-127      bits 0-3 of q: 64 bytes for each half of the block; their low halves are weights
                    0-63 of the half, their high halves weights 64-127
    byte 128-191    bits 4-5 of q: 32 bytes for each half, 4 fields of 2 bits: weights 0-31, 32-63 …
    byte 192-207    scales, int8
    byte 208-209    d, f16

weight = d * scale * (q - 32), in this order: the second product is rounded
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moetool.quant.bits import fields, groups, half_bytes, halves, in_blocks, nibbles, packed
from moetool.quant.exact import first_extreme, nearest
from moetool.quant.fits import TINY, signed, stored_levels

if TYPE_CHECKING:
    from torch import Tensor


def decode(block_BN: Tensor) -> Tensor:
    """Blocks ``[B, 210]`` -> weights ``[B, 256]``."""
    low_BN = nibbles(block_BN[:, :128].reshape(-1, 64)).reshape(-1, 256)
    high_BN = fields(block_BN[:, 128:192].reshape(-1, 32), 2).reshape(-1, 256)
    q_BGN = ((low_BN | high_BN << 4).float() - 32).view(-1, 16, 16)
    scale_BG = halves(block_BN, 208) * block_BN[:, 192:208].view(torch.int8).float()
    return (scale_BG[..., None] * q_BGN).flatten(1)


def encode(block_BN: Tensor, importance_BN: Tensor | None = None) -> Tensor:
    """Weights ``[B, 256]``, and what an error in each counts -> blocks ``[B, 210]``."""
    x_NG = groups(block_BN, 16)
    w_NG = None if importance_BN is None else groups(importance_BN, 16)
    q_NG, scale_G = signed(x_NG, 32, w_NG)
    largest_B1 = first_extreme(scale_G.view(-1, 16).T)[:, None]
    inverse_B1 = -128 / largest_B1
    level_BG = nearest(inverse_B1 * scale_G.view(-1, 16)).clamp(max=127).to(torch.int8)
    d_BN = half_bytes(1 / inverse_B1[:, 0])
    scale_G = (halves(d_BN, 0) * level_BG).flatten()
    q_B128 = in_blocks(stored_levels(x_NG, q_NG, scale_G, None, 32, 63)).view(-1, 128)
    low_BN = packed((q_B128 & 15).view(-1, 2, 64)).view(-1, 128)
    high_BN = packed((q_B128 >> 4).view(-1, 4, 32)).view(-1, 64)
    whole_BN = torch.cat((low_BN, high_BN, level_BG.view(torch.uint8), d_BN), 1)
    return torch.where(largest_B1.abs() < TINY, 0, whole_BN)
