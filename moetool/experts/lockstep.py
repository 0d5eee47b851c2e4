"""Matrices of many experts read side by side: a few rows of each at a time, never a whole layer.

One expert of Mixtral 8x7B has 352 MB; what is asked here are products between experts, and those
are sums over rows. Any layout serves, and two checkpoints may store other types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from moetool.arch.schema import Slot
from moetool.convert.pieces import whole_rows
from moetool.convert.stream import values_of

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.arch.schema import Role
    from moetool.proof.canonical import Weights

TOGETHER_NUMEL = 1 << 20  # values of all experts at a time; with their float64 they take 12 MiB


def side_by_side(places: Sequence[tuple[Weights, Slot]]) -> Iterator[Tensor]:
    """The same rows of every tensor, float32 ``[tensors, values]``, until the end of all."""
    columns = places[0][0].info(places[0][1]).shape[-1]
    rows = max(1, TOGETHER_NUMEL // (columns * len(places)))
    flows = [_rows(weights, slot, rows) for weights, slot in places]
    for pieces in zip(*flows, strict=True):
        yield torch.stack(pieces)


def _rows(weights: Weights, slot: Slot, rows: int) -> Iterator[Tensor]:
    info = weights.info(slot)
    size = info.dtype.nbytes(info.shape[-1])
    for piece in whole_rows(weights.read(slot), size, rows * size):
        yield values_of(piece, info.dtype).float()


def products(sides: Sequence[tuple[Weights, int]], role: Role, layer: int) -> Tensor:
    """Scalar products of a role's matrices with each other, float64 ``[N, N]``.

    ``sides``: experts by checkpoint, N in all. Values that are not finite make theirs so.
    """
    total = torch.zeros(len(sides), len(sides), dtype=torch.double)
    for piece in side_by_side([(weights, Slot(role, layer, e)) for weights, e in sides]):
        wide = piece.double()
        total += wide @ wide.T
    return total


def whole(weights: Weights, slot: Slot) -> Tensor:
    """A whole tensor, float32; one matrix of an expert of 8x7B takes 235 MB."""
    info = weights.info(slot)
    return torch.cat([
        values_of(bytearray(chunk), info.dtype).float() for chunk in weights.read(slot)
    ]).view(info.shape)  # fmt: skip


def cosines(products_NN: Tensor) -> Tensor:
    """Cosines between things of which the scalar products are known; 0 where one is zero."""
    norm_N = products_NN.diagonal().clamp(min=0).sqrt()
    scale_NN = norm_N[:, None] * norm_N[None]
    return torch.where(scale_NN > 0, products_NN / scale_NN.clamp(min=1e-300), 0.0)
