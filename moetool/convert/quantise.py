"""Quantise the rows of a part in several threads, and measure what that did to the weights.

    chunks ─whole rows→ pieces ─┬─> encode, decode, compare ─┬─> blocks, in the order of the rows
                                └─> encode, decode, compare ─┘

A piece is the same whatever the number of threads, so the blocks and the measured error are, too.
NaN and infinity are refused: a block has one scale, and they would take the weights beside them
along.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.convert.casts import BlockError
from moetool.convert.pieces import whole_rows
from moetool.convert.plan import QUANTISED_NUMEL, QUANTISERS
from moetool.convert.threads import in_order
from moetool.errors import LossyCast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

    from moetool.convert.casts import Tally
    from moetool.convert.ops import Cast
    from moetool.tensors import Buffer, DType


@dataclass(frozen=True, slots=True)
class _Made:
    """The blocks of a piece and their error, or the weights in it that are no numbers."""

    stored: bytes = b""
    error: BlockError | None = None
    n_nan: int = 0
    n_inf: int = 0
    n_beyond: int = 0


def quantised(
    chunks: Iterable[Buffer],
    columns: int,
    cast: Cast,
    tally: Tally,
    importance: torch.Tensor | None,
) -> Iterator[Buffer]:
    """Yield the blocks of rows of ``columns`` weights, and enter their error in ``tally``.

    Raises:
        LossyCast: with the number of weights that are NaN or infinite, or so large that their
            block's scale is.
    """
    size = cast.source.type_size
    pieces = whole_rows(chunks, columns * size, QUANTISED_NUMEL * size)
    n_nan = n_inf = n_beyond = 0

    def make(piece: bytearray) -> _Made:
        return _quantise(piece, columns, cast, importance)

    for _, made in in_order(make, pieces, QUANTISERS, "quantise"):
        n_nan, n_inf, n_beyond = n_nan + made.n_nan, n_inf + made.n_inf, n_beyond + made.n_beyond
        if n_nan or n_inf or n_beyond:
            continue  # to count them all
        assert made.error is not None
        tally.quantised(made.error)
        yield made.stored
    if n_nan or n_inf:
        raise LossyCast(
            f"{n_nan:,} weights are NaN and {n_inf:,} infinite, which {cast.target.label} cannot "
            "store: they would spoil the weights beside them",
            hint="moetool scan says where they are; --dtype keep carries them as they are",
        )
    if n_beyond:
        raise LossyCast(
            f"{n_beyond:,} weights are beyond {cast.target.label}, whose scales are f16",
            hint="--dtype bf16 or f32 holds them",
        )


def _quantise(piece: bytearray, columns: int, cast: Cast, importance: torch.Tensor | None) -> _Made:
    import torch

    from moetool.convert.stream import to_torch
    from moetool.quant import encode

    rows = to_torch(piece, cast.source, (-1, columns)).float()
    square = float(torch.dot(rows.flatten(), rows.flatten()))
    if not math.isfinite(square):
        n_nan, n_inf = int(rows.isnan().sum()), int(rows.isinf().sum())
        if n_nan or n_inf:
            return _Made(n_nan=n_nan, n_inf=n_inf)
    stored = encode(rows, cast.target, importance)
    content = bytearray(stored.numel())
    torch.frombuffer(content, dtype=torch.uint8).copy_(stored.flatten())
    error = _error(rows.flatten(), stored.flatten(), cast.target)
    n_beyond = 0 if math.isfinite(error.off_square) else rows.numel()
    return _Made(bytes(content), error, n_beyond=n_beyond)


def _error(x: torch.Tensor, stored: torch.Tensor, dtype: DType) -> BlockError:
    import torch

    from moetool.quant import decode

    y = decode(stored, dtype)
    off = y - x
    low, high = torch.aminmax(off)
    sums = [float(torch.dot(a, b)) for a, b in ((x, x), (off, off), (y, y), (x, y))]
    if not all(map(math.isfinite, sums)) and math.isfinite(float(high - low)):
        x, y, off = x.double(), y.double(), off.double()
        pairs = ((x, x), (off, off), (y, y), (x, y))
        sums = [float(torch.dot(a, b)) for a, b in pairs]
    square, off_square, made_square, product = sums
    largest = max(-float(low), float(high))
    return BlockError(x.numel(), square, off_square, made_square, product, largest)
