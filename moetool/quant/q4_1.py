"""Four bits, a scale and a minimum: weight = d * q + m.

byte 0-1     d, f16
byte 2-3     m, f16
byte 4-19    low half: q of weights 0-15; high half: of weights 16-31
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.quant.bits import halves, nibbles

if TYPE_CHECKING:
    from torch import Tensor


def decode(block_BN: Tensor) -> Tensor:
    """Blocks ``[B, 20]`` -> weights ``[B, 32]``."""
    q_BN = nibbles(block_BN[:, 4:]).flatten(1).float()
    return halves(block_BN, 0) * q_BN + halves(block_BN, 2)
