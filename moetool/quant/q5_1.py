"""Five bits, a scale and a minimum: weight = d * q + m.

byte 0-1     d, f16
byte 2-3     m, f16
byte 4-7     bit 4 of all q, weight 0 in the lowest bit
byte 8-23    low half: bits 0-3 of q of weights 0-15; high half: of weights 16-31
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.quant.bits import fifth_bits, halves, nibbles

if TYPE_CHECKING:
    from torch import Tensor


def decode(block_BN: Tensor) -> Tensor:
    """Blocks ``[B, 24]`` -> weights ``[B, 32]``."""
    q_BN = nibbles(block_BN[:, 8:]).flatten(1) | fifth_bits(block_BN, 4)
    return halves(block_BN, 0) * q_BN.float() + halves(block_BN, 2)
