"""Three bits; 16 groups of 16 weights with a scale of six bits each.

    byte 0-31       bit 2 of q: bit k of byte l is that of weight 32 k + l
    byte 32-95      bits 0-1 of q: 32 bytes for each half of the block, in them 4 fields of 2 bits
    byte 96-107     scales: low halves of bytes 0-7 are bits 0-3 of scales 0-7, high halves of
                    8-15; bytes 8-11 have fields of 2 bits: bits 4-5 of scales 0-3, 4-7, 8-11 …
    byte 108-109    d, f16

weight = d * (scale - 32) * (q - 4)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moetool.quant.bits import fields, groups, half_bytes, halves, in_blocks, nibbles, packed
from moetool.quant.exact import first_extreme, in_order, nearest
from moetool.quant.fits import refined, signed, stored_levels
from moetool.quant.importance import weigh

if TYPE_CHECKING:
    from torch import Tensor


def decode(block_BN: Tensor) -> Tensor:
    """Blocks ``[B, 110]`` -> weights ``[B, 256]``."""
    low_BG = nibbles(block_BN[:, 96:104]).flatten(1)
    high_BG = fields(block_BN[:, 104:108], 2).flatten(1)
    scale_BG = halves(block_BN, 108) * ((low_BG | high_BG << 4).float() - 32)
    low_BN = fields(block_BN[:, 32:96].reshape(-1, 32), 2).reshape(-1, 256)
    q_BN = low_BN | fields(block_BN[:, :32], 1).flatten(1) << 2
    return (scale_BG[..., None] * (q_BN.float() - 4).view(-1, 16, 16)).flatten(1)


def encode(block_BN: Tensor, importance_BN: Tensor | None = None) -> Tensor:
    """Weights ``[B, 256]``, and what an error in each counts -> blocks ``[B, 110]``."""
    x_NG = groups(block_BN, 16)
    if importance_BN is None:
        q_NG, scale_G = refined(x_NG, 4)
        largest_B1 = first_extreme(scale_G.view(-1, 16).T)[:, None]
        inverse_B1 = -32 / largest_B1
        level_BG = (nearest(inverse_B1 * scale_G.view(-1, 16))).clamp(-32, 31) + 32
        level_BG = torch.where(largest_B1 != 0, level_BG, 0).to(torch.uint8)
        d_B = torch.where(largest_B1 != 0, 1 / inverse_B1, 0.0)[:, 0]
    else:
        w_NG = groups(weigh(block_BN, importance_BN, 2), 16)
        q_NG, scale_G = signed(x_NG, 4, w_NG)
        w_GB = in_order(w_NG).view(-1, 16).T.contiguous()
        level_GB, d_B = signed(scale_G.view(-1, 16).T.contiguous(), 32, w_GB)
        level_BG = level_GB.T
    d_BN = half_bytes(d_B)
    scale_G = (halves(d_BN, 0) * (level_BG.float() - 32)).flatten()
    q_BN = in_blocks(stored_levels(x_NG, q_NG, scale_G, None, 4, 7))
    high_B32 = packed((q_BN >> 2).view(-1, 8, 32))
    low_B64 = packed((q_BN & 3).view(-1, 4, 32)).view(-1, 64)
    level_B12 = (packed((level_BG & 15).view(-1, 2, 8)), packed((level_BG >> 4).view(-1, 4, 4)))
    return torch.cat((high_B32, low_B64, *level_B12, d_BN), 1)
