"""Four bits, a scale and a minimum: weight = d * q + m.

byte 0-1     d, f16
byte 2-3     m, f16
byte 4-19    low half: q of weights 0-15; high half: of weights 16-31
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moetool.quant.bits import groups, half_bytes, halves, in_blocks, nibbles, packed
from moetool.quant.fits import IMPORTANCE_GRID, with_minimum
from moetool.quant.spreads import by_range

if TYPE_CHECKING:
    from torch import Tensor


def decode(block_BN: Tensor) -> Tensor:
    """Blocks ``[B, 20]`` -> weights ``[B, 32]``."""
    q_BN = nibbles(block_BN[:, 4:]).flatten(1).float()
    return halves(block_BN, 0) * q_BN + halves(block_BN, 2)


def encode(block_BN: Tensor, weight_BN: Tensor | None = None) -> Tensor:
    """Weights ``[B, 32]``, and what an error in each counts -> blocks ``[B, 20]``."""
    if weight_BN is None:
        q_BN, d_B, m_B = by_range(block_BN, 15)
    else:
        x_NB, w_NB = groups(block_BN, 32), groups(weight_BN, 32)
        q_NB, d_B, min_B = with_minimum(x_NB, w_NB, 15, IMPORTANCE_GRID)
        q_BN, m_B = in_blocks(q_NB, 32), -min_B
    return torch.cat((half_bytes(d_B), half_bytes(m_B), packed((q_BN & 15).view(-1, 2, 16))), 1)
