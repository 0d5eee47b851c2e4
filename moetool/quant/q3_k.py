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

from moetool.quant.bits import fields, halves, nibbles

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
