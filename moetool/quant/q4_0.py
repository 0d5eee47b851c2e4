"""Four bits and one scale: weight = d * (q - 8).

byte 0-1     d, f16
byte 2-17    low half: q of weights 0-15; high half: of weights 16-31
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moetool.quant.bits import groups, half_bytes, halves, in_blocks, nibbles, packed
from moetool.quant.fits import signed
from moetool.quant.spreads import by_extreme

if TYPE_CHECKING:
    from torch import Tensor


def decode(block_BN: Tensor) -> Tensor:
    """Blocks ``[B, 18]`` -> weights ``[B, 32]``."""
    return halves(block_BN, 0) * (nibbles(block_BN[:, 2:]).flatten(1).float() - 8)


def encode(block_BN: Tensor, weight_BN: Tensor | None = None) -> Tensor:
    """Weights ``[B, 32]``, and what an error in each counts -> blocks ``[B, 18]``."""
    if weight_BN is None:
        q_BN, d_B = by_extreme(block_BN, 8)
    else:
        q_NB, d_B = signed(groups(block_BN, 32), 8, groups(weight_BN, 32))
        q_BN = in_blocks(q_NB, 32)
    return torch.cat((half_bytes(d_B), packed((q_BN & 15).view(-1, 2, 16))), 1)
