"""Four bits and one scale: weight = d * (q - 8).

byte 0-1     d, f16
byte 2-17    low half: q of weights 0-15; high half: of weights 16-31
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.quant.bits import halves, nibbles

if TYPE_CHECKING:
    from torch import Tensor


def decode(block_BN: Tensor) -> Tensor:
    """Blocks ``[B, 18]`` -> weights ``[B, 32]``."""
    return halves(block_BN, 0) * (nibbles(block_BN[:, 2:]).flatten(1).float() - 8)
