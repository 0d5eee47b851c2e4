"""Five bits and one scale: weight = d * (q - 16).

byte 0-1     d, f16
byte 2-5     bit 4 of all q, weight 0 in the lowest bit
byte 6-21    low half: bits 0-3 of q of weights 0-15; high half: of weights 16-31
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moetool.quant.bits import fifth_bits, half_bytes, halves, nibbles, packed, packed_fifth_bits
from moetool.quant.fits import first_extreme, signed

if TYPE_CHECKING:
    from torch import Tensor


def decode(block_BN: Tensor) -> Tensor:
    """Blocks ``[B, 22]`` -> weights ``[B, 32]``."""
    q_BN = nibbles(block_BN[:, 6:]).flatten(1) | fifth_bits(block_BN, 2)
    return halves(block_BN, 0) * (q_BN.float() - 16)


def encode(block_BN: Tensor, weight_BN: Tensor | None = None) -> Tensor:
    """Weights ``[B, 32]``, and what an error in each counts -> blocks ``[B, 22]``."""
    x_NB = block_BN.T
    if weight_BN is None:
        d_B = first_extreme(x_NB) / -16
        v_NB = x_NB * torch.where(d_B != 0, 1 / d_B, 0.0) + 16.5
        q_BN = v_NB.int().to(torch.int8).clamp(max=31).to(torch.uint8).T
    else:
        q_NB, d_B = signed(x_NB.contiguous(), 16, weight_BN.T.contiguous())
        q_BN = q_NB.to(torch.uint8).T
    return torch.cat(
        (half_bytes(d_B), packed_fifth_bits(q_BN), packed((q_BN & 15).view(-1, 2, 16))), 1
    )
