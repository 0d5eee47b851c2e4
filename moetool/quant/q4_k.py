"""Four bits; 8 groups of 32 weights with a scale and a minimum of six bits each.

    byte 0-1       d, f16
    byte 2-3       dmin, f16
    byte 4-15      scales and minima, packed as `scales_and_mins` draws it
    byte 16-143    q: 32 bytes for each two groups, the first in the low halves

weight = d * scale * q - dmin * minimum
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.quant.bits import halves, nibbles, scales_and_mins

if TYPE_CHECKING:
    from torch import Tensor


def decode(block_BN: Tensor) -> Tensor:
    """Blocks ``[B, 144]`` -> weights ``[B, 256]``."""
    scales_BG, mins_BG = scales_and_mins(block_BN[:, 4:16])
    q_BGN = nibbles(block_BN[:, 16:].reshape(-1, 32)).view(-1, 8, 32).float()
    scale_BG1 = (halves(block_BN, 0) * scales_BG)[..., None]
    return (scale_BG1 * q_BGN - (halves(block_BN, 2) * mins_BG)[..., None]).flatten(1)
