"""Four-bit floats that share an exponent: weight = 2^(e - 127) * v, as OCP's MX formats have it.

    byte 0       e, an exponent without sign or digits
    byte 1-16    low half: code of weights 0-15; high half: of weights 16-31

Codes stand for 0 ½ 1 1½ 2 3 4 6, above 7 negative. ggml keeps them doubled and the scale halved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moetool.quant.bits import nibbles

if TYPE_CHECKING:
    from torch import Tensor

DOUBLED = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]).float()


def decode(block_BN: Tensor) -> Tensor:
    """Blocks ``[B, 17]`` -> weights ``[B, 32]``."""
    exponent_B1 = block_BN[:, :1].double() - 128
    scale_B1 = torch.exp2(exponent_B1).float()  # down to 2^-128, which float32 holds as subnormal
    return scale_B1 * DOUBLED[nibbles(block_BN[:, 1:]).flatten(1).long()]
