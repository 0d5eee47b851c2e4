"""`moetool.quant.spreads` as compiled loops."""

from __future__ import annotations

import numpy as np
import torch

from moetool.quant.bits import half_bytes
from moetool.quant.compiled.loops import F, Floats, Levels, compiled, inlined

TILE = 128  # blocks of float32: they stay in a first cache of 32 KiB


def by_largest(block_BN: torch.Tensor) -> torch.Tensor:
    """See `moetool.quant.spreads.by_largest`."""
    stored_BS = torch.empty((len(block_BN), 34), dtype=torch.uint8)
    d_B = block_BN.new_empty(len(block_BN))
    _by_largest(block_BN.contiguous().numpy(), stored_BS.numpy(), d_B.numpy())
    stored_BS[:, :2] = half_bytes(d_B)
    return stored_BS


def by_extreme(block_BN: torch.Tensor, half: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `moetool.quant.spreads.by_extreme`."""
    q_BN = torch.empty_like(block_BN, dtype=torch.uint8)
    d_B = block_BN.new_empty(len(block_BN))
    _by_extreme(block_BN.contiguous().numpy(), half, q_BN.numpy(), d_B.numpy())
    return q_BN, d_B


def by_range(
    block_BN: torch.Tensor, levels: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `moetool.quant.spreads.by_range`."""
    q_BN = torch.empty_like(block_BN, dtype=torch.uint8)
    d_B, m_B = block_BN.new_empty(len(block_BN)), block_BN.new_empty(len(block_BN))
    _by_range(block_BN.contiguous().numpy(), levels, q_BN.numpy(), d_B.numpy(), m_B.numpy())
    return q_BN, d_B, m_B


@inlined()
def _inverse(d: F) -> F:
    return F(1) / d if d != F(0) else F(0)


@inlined()
def _largest(x: Floats) -> F:
    """The largest magnitude; magnitudes of float32 are in order as integers, too."""
    bits, most = x.view(np.int32), 0
    for j in range(len(x)):
        most = max(most, np.int32(bits[j] & 0x7FFFFFFF))
    return np.int32(most).view(F)


@compiled()
def _by_largest(blocks: Floats, stored: Levels, d_out: Floats) -> None:
    for first in range(0, len(blocks), TILE):
        x, d = blocks[first : first + TILE], d_out[first : first + TILE]
        _scales(x, d)
        _signed_levels(x, d, stored[first : first + TILE, 2:])


@compiled()
def _scales(blocks: Floats, d: Floats) -> None:
    for b in range(len(blocks)):
        most = F(0)
        for j in range(32):
            size = abs(blocks[b, j])
            most = size if size > most else most  # noqa: FURB136  # max asks for NaN: slow
        d[b] = most / F(127)


@compiled()
def _signed_levels(blocks: Floats, d: Floats, q: Levels) -> None:
    for b in range(len(blocks)):
        inverse = _inverse(d[b])
        for j in range(32):
            v = blocks[b, j] * inverse
            whole = np.int32(v)
            q[b, j] = np.uint8(np.int32(whole + np.int32(F(2) * (v - F(whole)))))


@compiled()
def _by_extreme(blocks: Floats, half: int, q_out: Levels, d_out: Floats) -> None:
    for b in range(len(blocks)):
        x, q = blocks[b], q_out[b]
        size, j = _largest(x), 0
        while abs(x[j]) != size:
            j += 1
        d_out[b] = (x[j] + F(0)) / F(-half)  # zeros count as positive
        inverse = _inverse(d_out[b])
        for i in range(len(x)):
            q[i] = np.uint8(min(np.int8(np.int32(x[i] * inverse + F(half + 0.5))), 2 * half - 1))


@compiled()
def _by_range(blocks: Floats, levels: int, q_out: Levels, d_out: Floats, m_out: Floats) -> None:
    for b in range(len(blocks)):
        x, q = blocks[b], q_out[b]
        low, high = x[0], x[0]
        for j in range(1, len(x)):
            low = min(low, x[j])
            high = max(high, x[j])
        d_out[b], m_out[b] = (high - low) / F(levels), low
        inverse = _inverse(d_out[b])
        for j in range(len(x)):
            q[j] = np.uint8(min(np.uint8(np.int32((x[j] - low) * inverse + F(0.5))), levels))
