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

from moetool.quant.bits import fields, halves

if TYPE_CHECKING:
    from torch import Tensor


def decode(block_BN: Tensor) -> Tensor:
    """Blocks ``[B, 84]`` -> weights ``[B, 256]``."""
    packed_BG = block_BN[:, :16]
    scale_BG1 = (halves(block_BN, 80) * (packed_BG & 15).float())[..., None]
    min_BG1 = (halves(block_BN, 82) * (packed_BG >> 4).float())[..., None]
    q_B2 = fields(block_BN[:, 16:80].reshape(-1, 32), 2)  # [2B, 4, 32]
    return (scale_BG1 * q_B2.reshape(-1, 16, 16).float() - min_BG1).flatten(1)
