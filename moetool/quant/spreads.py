"""Levels spread over a block of 32 weights by its extremes, as the older formats do: no search.

by_largest    q8_0           the largest magnitude is 127
by_extreme    q4_0, q5_0     the weight of largest magnitude is the lowest level, which has no twin
by_range      q4_1, q5_1     the least weight is 0, the largest the highest level

As in `moetool.quant.fits`, everything is float32, and numba's loops take over where it is there.
(ggml-org/llama.cpp: ggml/src/ggml-quants.c: quantize_row_q8_0_ref, quantize_row_q4_0_ref, …)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moetool.quant.bits import half_bytes
from moetool.quant.exact import first_extreme, first_minimum
from moetool.quant.quicker import or_compiled

if TYPE_CHECKING:
    from torch import Tensor


@or_compiled
def by_largest(block_BN: Tensor) -> Tensor:
    """Blocks uint8 ``[B, 34]``: the scale as f16, then levels of both signs, halves away from 0.

    As they are stored and not in two parts: to join them would cost as much as to find them.
    """
    d_B = block_BN.abs().amax(1) / 127
    v_BN = block_BN * _inverse(d_B)[:, None]
    whole_BN = v_BN.trunc()
    q_BN = whole_BN + (2 * (v_BN - whole_BN)).trunc()
    return torch.cat((half_bytes(d_B), q_BN.int().to(torch.int8).view(torch.uint8)), 1)


@or_compiled
def by_extreme(block_BN: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Levels uint8 ``[B, 32]``, ``half`` standing for zero, and the scale ``[B]``."""
    d_B = first_extreme(block_BN.T) / -half
    v_BN = block_BN * _inverse(d_B)[:, None] + (half + 0.5)
    return v_BN.int().to(torch.int8).clamp(max=2 * half - 1).to(torch.uint8), d_B


@or_compiled
def by_range(block_BN: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Levels uint8 ``[B, 32]`` from the least weight on, the scale and that weight, ``[B]``."""
    m_B = first_minimum(block_BN.T)
    d_B = (block_BN.amax(1) - m_B + 0.0) / levels  # and not -0.0, where zeros have both signs
    v_BN = (block_BN - m_B[:, None]) * _inverse(d_B)[:, None] + 0.5
    return v_BN.int().to(torch.uint8).clamp(max=levels), d_B, m_B


def _inverse(d_B: Tensor) -> Tensor:
    return torch.where(d_B != 0, 1 / d_B, 0.0)
