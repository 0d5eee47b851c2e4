"""Four-bit floats that share an exponent: weight = 2^(e - 127) * v, as OCP's MX formats have it.

    byte 0       e, an exponent without sign or digits
    byte 1-16    low half: code of weights 0-15; high half: of weights 16-31

Codes stand for 0 ½ 1 1½ 2 3 4 6, above 7 negative. ggml keeps them doubled and the scale halved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moetool.quant.bits import nibbles, packed

if TYPE_CHECKING:
    from torch import Tensor

DOUBLED = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]).float()


def decode(block_BN: Tensor) -> Tensor:
    """Blocks ``[B, 17]`` -> weights ``[B, 32]``."""
    exponent_B1 = block_BN[:, :1].double() - 128
    scale_B1 = torch.exp2(exponent_B1).float()  # down to 2^-128, which float32 holds as subnormal
    return scale_B1 * DOUBLED[nibbles(block_BN[:, 1:]).flatten(1).long()]


def encode(block_BN: Tensor, _weight_BN: Tensor | None = None) -> Tensor:
    """Weights ``[B, 32]`` -> blocks ``[B, 17]``; of two codes as near, the first.

    The exponent is that of the largest weight, less 2: the codes go up to 6, which is 1.5 * 2^2.
    """
    largest_B = block_BN.abs().amax(1)
    power_B = largest_B.double().log2().float().floor()  # rounded as a logarithm in float32 is
    exponent_B1 = torch.where(largest_B > 0, power_B - 2 + 127, 0.0).int()[:, None] & 255
    scale_B1 = torch.exp2(exponent_B1.double() - 128).float()
    q_BN = torch.zeros_like(block_BN, dtype=torch.uint8)
    nearest_BN = (DOUBLED[0] * scale_B1 - block_BN).abs()
    for code in range(1, len(DOUBLED)):
        off_BN = (DOUBLED[code] * scale_B1 - block_BN).abs()
        closer_BN = off_BN < nearest_BN
        q_BN = torch.where(closer_BN, code, q_BN)
        nearest_BN = torch.where(closer_BN, off_BN, nearest_BN)
    return torch.cat((exponent_B1.to(torch.uint8), packed(q_BN.view(-1, 2, 16))), 1)
