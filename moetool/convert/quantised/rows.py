"""Quantise the rows of a part in several threads, and measure what that did to the weights.

    chunks ─whole rows→ pieces ─┬─> encode, decode, compare ─┬─> blocks, in the order of the rows
                                └─> encode, decode, compare ─┘

A piece is the same whatever the number of threads, so the blocks and the measured error are, too.
NaN and infinity are refused: a block has one scale, and they would take the weights beside them
along. So would a weight that is beyond what a scale of f16 can reach.
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
    from collections.abc import Generator, Iterable

    import torch

    from moetool.convert.casts import Tally
    from moetool.convert.ops import Cast
    from moetool.tensors import Buffer, DType, TensorInfo

_LARGEST_HALF = 65504.0


@dataclass(frozen=True, slots=True)
class Unfit:
    """The weights that a type of blocks cannot store."""

    n_nan: int = 0
    n_inf: int = 0
    n_beyond: int = 0

    def __add__(self, other: Unfit) -> Unfit:
        return Unfit(
            self.n_nan + other.n_nan, self.n_inf + other.n_inf, self.n_beyond + other.n_beyond
        )

    def __bool__(self) -> bool:
        return bool(self.n_nan or self.n_inf or self.n_beyond)

    def refuse(self, target: TensorInfo) -> None:
        """Refuse a tensor that has any.

        Raises:
            LossyCast: with their number.
        """
        label = target.dtype.label
        if self.n_nan or self.n_inf:
            raise LossyCast(
                f"{self.n_nan:,} weights are NaN and {self.n_inf:,} infinite, which {label} cannot "
                "store: they would spoil the weights beside them",
                where=target.name,
                hint="moetool scan says where they are; --dtype keep carries them as they are",
            )
        if self.n_beyond:
            raise LossyCast(
                f"{self.n_beyond:,} weights are beyond {label}, whose scales are f16, or in a "
                "block with one that is",
                where=target.name,
                hint="--dtype bf16 or f32 holds them",
            )


@dataclass(frozen=True, slots=True)
class _Made:
    """The blocks of a piece and their error, or the weights in it that do not fit."""

    stored: Buffer = b""
    error: BlockError | None = None
    unfit: Unfit = Unfit()


def quantised(
    chunks: Iterable[Buffer],
    columns: int,
    cast: Cast,
    tally: Tally,
    importance: torch.Tensor | None,
) -> Generator[Buffer, None, Unfit]:
    """Yield the blocks of rows of ``columns`` weights, and enter their error in ``tally``.

    Returns the weights that do not fit. There are no more blocks from the first of them on, but
    all are counted: what is refused is refused with its number.
    """
    size = cast.source.type_size
    pieces = whole_rows(chunks, columns * size, QUANTISED_NUMEL * size)
    unfit = Unfit()

    def make(piece: bytearray) -> _Made:
        return _quantise(piece, columns, cast, importance)

    for _, made in in_order(make, pieces, QUANTISERS, "quantise"):
        unfit += made.unfit
        if made.error and not unfit:
            tally.quantised(made.error)
            yield made.stored
    return unfit


def _quantise(piece: bytearray, columns: int, cast: Cast, importance: torch.Tensor | None) -> _Made:
    import torch

    from moetool.convert.stream import to_torch
    from moetool.quant import encode

    rows = to_torch(piece, cast.source, (-1, columns)).float()
    if not math.isfinite(float(torch.dot(rows.flatten(), rows.flatten()))):
        n_nan, n_inf = int(rows.isnan().sum()), int(rows.isinf().sum())
        if n_nan or n_inf:
            return _Made(unfit=Unfit(n_nan, n_inf))
    stored = encode(rows, cast.target, importance).flatten()
    content = bytearray(stored.numel())
    torch.frombuffer(content, dtype=torch.uint8).copy_(stored)
    error, n_beyond = _error(rows.flatten(), stored, cast.target)
    return _Made(content, error, Unfit(n_beyond=n_beyond))


def _error(x: torch.Tensor, stored: torch.Tensor, dtype: DType) -> tuple[BlockError, int]:
    """The error of a piece; and how many weights are lost, for they or others are too large."""
    from moetool.quant import decode
    from moetool.quant.compare import compared

    square, off_square, along, largest = compared(x, stored, dtype)
    product = square + along  # of x and x + off
    made_square = product + along + off_square
    error = BlockError(x.numel(), square, off_square, made_square, product, largest)
    if largest <= _LARGEST_HALF / 2:  # false where it is NaN
        return error, 0
    off = decode(stored, dtype) - x
    huge = (x.abs() > _LARGEST_HALF) & (off.abs() > x.abs() / 2)
    return error, int((huge | ~off.isfinite()).sum())
