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

from moetool.quant.bits import fields, halves, nibbles

if TYPE_CHECKING:
    from torch import Tensor


def decode(block_BN: Tensor) -> Tensor:
    """Blocks ``[B, 210]`` -> weights ``[B, 256]``."""
    low_BN = nibbles(block_BN[:, :128].reshape(-1, 64)).reshape(-1, 256)
    high_BN = fields(block_BN[:, 128:192].reshape(-1, 32), 2).reshape(-1, 256)
    q_BGN = ((low_BN | high_BN << 4).float() - 32).view(-1, 16, 16)
    scale_BG = halves(block_BN, 208) * block_BN[:, 192:208].view(torch.int8).float()
    return (scale_BG[..., None] * q_BGN).flatten(1)
