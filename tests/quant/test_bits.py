"""What is packed into the fields of a block comes out of it again, and lies where it is drawn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moetool.quant.bits import (
    fields,
    fifth_bits,
    groups,
    half_bytes,
    halves,
    in_blocks,
    nibbles,
    packed,
    packed_fifth_bits,
    packed_scales_and_mins,
    scales_and_mins,
)

EVERY_BYTE = torch.arange(256, dtype=torch.uint8).view(16, 16)
six_bits = st.lists(st.integers(0, 63), min_size=16, max_size=16)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_fields_of_every_byte_come_back(width):
    found = fields(EVERY_BYTE, width)
    assert found.shape == (16, 8 // width, 16)
    assert int(found.max()) == (1 << width) - 1
    assert torch.equal(packed(found), EVERY_BYTE)
    lowest = EVERY_BYTE & (1 << width) - 1
    assert torch.equal(found[:, 0], lowest)


def test_nibbles_are_fields_of_four_bits():
    assert torch.equal(nibbles(EVERY_BYTE), fields(EVERY_BYTE, 4))
    assert nibbles(torch.tensor([[0xA5]], dtype=torch.uint8)).flatten().tolist() == [5, 10]


@given(st.integers(0, 2**32 - 1))
def test_the_fifth_bits_are_a_number_of_32_bits(number):
    """Bit j is weight j's, lowest first, at the byte that is named."""
    block = torch.tensor([[7, 7, *number.to_bytes(4, "little"), 7]], dtype=torch.uint8)
    found = fifth_bits(block, 2)
    assert found.tolist() == [[(number >> j & 1) << 4 for j in range(32)]]
    levels = found | torch.arange(32, dtype=torch.uint8) & 15  # the other bits do not count
    assert packed_fifth_bits(levels).tolist() == block[:, 2:6].tolist()


@given(six_bits)
def test_scales_and_minima_come_back(values):
    scale, minimum = torch.tensor([values[:8]]), torch.tensor([values[8:]])
    stored = packed_scales_and_mins(scale, minimum)
    assert stored.shape == (1, 12)
    found = scales_and_mins(stored)
    assert (found[0].tolist(), found[1].tolist()) == (scale.tolist(), minimum.tolist())


@given(st.binary(min_size=12, max_size=12))
def test_every_twelve_bytes_are_scales_and_minima(raw):
    """No bit is unused, and none is two things at once."""
    block = torch.tensor([list(raw)], dtype=torch.uint8)
    assert torch.equal(packed_scales_and_mins(*scales_and_mins(block)), block)


def test_scales_lie_where_the_drawing_has_them():
    """Each by itself: scale 0 in the low bits of byte 0, minimum 7 in bytes 11 and 7."""
    one = torch.eye(16, dtype=torch.uint8) * 63
    found = packed_scales_and_mins(one[:, :8], one[:, 8:]).tolist()
    for k in range(4):
        assert found[k] == [63 * (at == k) for at in range(12)]
        assert found[8 + k] == [63 * (at == 4 + k) for at in range(12)]
        assert found[4 + k] == [0xC0 * (at == k) + 0x0F * (at == 8 + k) for at in range(12)]
        assert found[12 + k] == [0xC0 * (at == 4 + k) + 0xF0 * (at == 8 + k) for at in range(12)]


@given(st.sampled_from([16, 32]), st.integers(1, 5))
def test_groups_go_back_into_their_blocks(size, n_blocks):
    blocks = torch.arange(n_blocks * 256).view(n_blocks, 256)
    side_by_side = groups(blocks, size)
    assert side_by_side[:, 1].tolist() == list(range(size, 2 * size))
    assert torch.equal(in_blocks(side_by_side), blocks)


def test_every_half_comes_back():
    """All 65,536 of them; a NaN as one."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.float16).float()
    stored = half_bytes(values)
    assert stored.shape == (2**16, 2)
    found = halves(torch.cat((torch.zeros(2**16, 3, dtype=torch.uint8), stored), 1), 3)[:, 0]
    assert torch.equal(found.isnan(), values.isnan())
    assert torch.equal(found[~found.isnan()], values[~values.isnan()])
    assert torch.equal(found.signbit()[~found.isnan()], values.signbit()[~values.isnan()])
