"""What block formats share: fields of a block, groups of weights, packed scales and minima."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def halves(block_BN: Tensor, at: int) -> Tensor:
    """The f16 at byte ``at`` of each block, as float32 ``[B, 1]``."""
    return block_BN[:, at : at + 2].contiguous().view(torch.float16).float()


def half_bytes(value_B: Tensor) -> Tensor:
    """Values rounded to f16, as the bytes of a block: ``[B]`` -> uint8 ``[B, 2]``."""
    return value_B.half()[:, None].contiguous().view(torch.uint8)


def nibbles(packed_BN: Tensor) -> Tensor:
    """Low halves of all bytes, then high halves: ``[B, N]`` -> ``[B, 2, N]``."""
    return torch.stack((packed_BN & 15, packed_BN >> 4), 1)


def fields(packed_BN: Tensor, width: int) -> Tensor:
    """Fields of ``width`` bits, lowest first: ``[B, N]`` -> ``[B, 8 / width, N]``."""
    mask = (1 << width) - 1
    return torch.stack([packed_BN >> shift & mask for shift in range(0, 8, width)], 1)


def packed(fields_BFN: Tensor) -> Tensor:
    """Undo `fields`, and `nibbles` where there are two: ``[B, F, N]`` -> uint8 ``[B, N]``."""
    width = 8 // fields_BFN.shape[1]
    whole_BN = fields_BFN[:, 0].to(torch.uint8)
    for place, field_BN in enumerate(fields_BFN.unbind(1)[1:], start=1):
        whole_BN = whole_BN | field_BN.to(torch.uint8) << width * place
    return whole_BN


def groups(block_BN: Tensor, size: int) -> Tensor:
    """The weights of blocks as groups side by side: ``[B, N]`` -> ``[size, B * N / size]``."""
    return block_BN.reshape(-1, size).T.contiguous()


def in_blocks(q_NG: Tensor, block_size: int = 256) -> Tensor:
    """Undo `groups`."""
    return q_NG.T.reshape(-1, block_size)


def fifth_bits(block_BN: Tensor, at: int) -> Tensor:
    """Bit j of the little-endian u32 at byte ``at`` is bit 4 of weight j: ``[B, 32]``, 0 or 16."""
    bits_B48 = block_BN[:, at : at + 4, None] >> torch.arange(8, dtype=torch.uint8) & 1
    return bits_B48.flatten(1) << 4


def packed_fifth_bits(q_BN: Tensor) -> Tensor:
    """Undo `fifth_bits`: bit 4 of 32 levels -> uint8 ``[B, 4]``."""
    return packed((q_BN >> 4 & 1).view(-1, 4, 8).transpose(1, 2))


def scales_and_mins(packed_B12: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minima of 6 bits in 12 bytes, as float32 ``[B, 8]`` each.

    byte 0-3    scale 0-3, above them bits 4-5 of scale 4-7
    byte 4-7    min 0-3, above them bits 4-5 of min 4-7
    byte 8-11   bits 0-3 of scale 4-7, above them bits 0-3 of min 4-7
    """
    first, second, third = packed_B12[:, 0:4], packed_B12[:, 4:8], packed_B12[:, 8:12]
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), 1)
    mins = torch.cat((second & 63, third >> 4 | second >> 6 << 4), 1)
    return scales.float(), mins.float()


def packed_scales_and_mins(scale_B8: Tensor, min_B8: Tensor) -> Tensor:
    """Undo `scales_and_mins`: levels 0 … 63 -> uint8 ``[B, 12]``."""
    scale_B8, min_B8 = scale_B8.to(torch.uint8), min_B8.to(torch.uint8)
    first = scale_B8[:, :4] | scale_B8[:, 4:] >> 4 << 6
    second = min_B8[:, :4] | min_B8[:, 4:] >> 4 << 6
    return torch.cat((first, second, scale_B8[:, 4:] & 15 | min_B8[:, 4:] << 4), 1)
