"""Eight bits and one scale: weight = d * q.

byte 0-1     d, f16
byte 2-33    q of 32 weights, int8
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moetool.quant.bits import halves
from moetool.quant.spreads import by_largest

if TYPE_CHECKING:
    from torch import Tensor


def decode(block_BN: Tensor) -> Tensor:
    """Blocks ``[B, 34]`` -> weights ``[B, 32]``."""
    return halves(block_BN, 0) * block_BN[:, 2:].view(torch.int8).float()


def encode(block_BN: Tensor, _weight_BN: Tensor | None = None) -> Tensor:
    """Weights ``[B, 32]`` -> blocks ``[B, 34]``; halves are rounded away from zero.

    The largest weight decides the scale, whatever the weights count.
    """
    return by_largest(block_BN)
