"""Blocks of rows: whole rows, few of them, and the same digests however the bytes are cut."""

from __future__ import annotations

import random

import pytest
import xxhash

from moetool.convert.execute.row_blocks import (
    MAX_NBYTES,
    MIN_NBYTES,
    PARTS,
    RowBlocksHash,
    rows_of_a_block,
    spans,
)
from moetool.tensors import DType, TensorInfo


@pytest.mark.parametrize(
    ("shape", "dtype", "n_blocks"),
    [
        ((14_336, 4096), DType.BF16, 28),  # an expert of 8x7B: blocks of 4 MiB
        ((32_768, 6144), DType.BF16, 97),  # a last block of the rows that are left
        ((1024, 4096), DType.BF16, 16),
        ((4096,), DType.BF16, 2),  # a row of a vector is one value
        ((8, 4096), DType.F32, 8),  # a row is longer than a block would be
        ((3, 5), DType.F32, 1),
        ((1024, 4096), DType.Q8_0, 16),  # whole blocks of 32 values
        ((), DType.F32, 1),
        ((0, 4), DType.F32, 0),
    ],
)
def test_blocks_are_whole_rows(shape, dtype, n_blocks):
    """Together they are the tensor, without gap; each within its bounds, or a single row."""
    info = TensorInfo("t", dtype, shape)
    rows = rows_of_a_block(info)
    cuts = list(spans(info, rows))
    assert len(cuts) == n_blocks
    assert [start for start, _ in cuts] == [rows * info.row_nbytes * n for n in range(n_blocks)]
    assert sum(nbytes for _, nbytes in cuts) == info.nbytes
    largest = max((nbytes for _, nbytes in cuts), default=0)
    assert largest <= max(MAX_NBYTES, info.row_nbytes)
    assert n_blocks <= PARTS + 1 or largest > MAX_NBYTES - info.row_nbytes
    assert n_blocks <= max(info.nbytes // MIN_NBYTES + 1, info.shape[0] if info.shape else 1)


def test_digests_do_not_depend_on_the_cuts():
    """Chunks end anywhere: in a row, at a block, with nothing in them."""
    info = TensorInfo("t", DType.F32, (70, 50))
    draw = random.Random(7)
    content = draw.randbytes(info.nbytes)
    rows = rows_of_a_block(info)
    expected = tuple(
        xxhash.xxh3_64_hexdigest(content[start : start + n]) for start, n in spans(info, rows)
    )
    assert len(expected) == 4
    for _ in range(50):
        cuts = sorted(draw.choices(range(info.nbytes + 1), k=draw.randrange(9)))
        hashed = RowBlocksHash(info)
        for start, stop in zip([0, *cuts], [*cuts, info.nbytes], strict=True):
            hashed.update(content[start:stop])
        assert (hashed.finish().rows, hashed.finish().xxh3_64) == (rows, expected)
