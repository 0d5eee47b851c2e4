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

from moetool.quant.bits import fields, halves, nibbles, scales_and_mins

if TYPE_CHECKING:
    from torch import Tensor


def decode(block_BN: Tensor) -> Tensor:
    """Blocks ``[B, 176]`` -> weights ``[B, 256]``."""
    scales_BG, mins_BG = scales_and_mins(block_BN[:, 4:16])
    low_BGN = nibbles(block_BN[:, 48:].reshape(-1, 32)).view(-1, 8, 32)
    q_BGN = (low_BGN | fields(block_BN[:, 16:48], 1) << 4).float()
    scale_BG1 = (halves(block_BN, 0) * scales_BG)[..., None]
    return (scale_BG1 * q_BGN - (halves(block_BN, 2) * mins_BG)[..., None]).flatten(1)
