"""Matrices as whole numbers from -127 to 127 and a float32 factor for each row.

Half the bytes, so up to twice the tokens, and 8x7B on a card of 80 GB. It rounds weights, so it is
for running a model and not for checking one. Products multiply whole numbers by the row as it is
and scale the sum: nothing is rounded but the weights.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

LARGEST = 127


class Int8(NamedTuple):
    """A matrix, or several: ``values[..., o, i] * scale[..., o]``."""

    values_OI: Tensor
    scale_O: Tensor


Matrix: TypeAlias = Tensor | Int8


def quantised(w_OI: Tensor) -> Int8:
    """Round to the nearest; the largest of a row is 127."""
    if w_OI.dim() > 2:  # noqa: PLR2004  # several: one at a time, for float32 takes its room
        values, scales = zip(*map(quantised, w_OI), strict=True)
        return Int8(torch.stack(values), torch.stack(scales))
    wide = w_OI.float()
    scale_O = (wide.abs().amax(-1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return Int8((wide / scale_O[..., None]).round_().to(torch.int8), scale_O)


def dense(w_OI: Matrix, dtype: torch.dtype) -> Tensor:
    """A matrix as it can be given to any product."""
    if not isinstance(w_OI, Int8):
        return w_OI
    return (w_OI.values_OI.float() * w_OI.scale_O[..., None]).to(dtype)


def part(w_OI: Matrix, index: Tensor | slice | tuple[int, slice]) -> Matrix:
    """Some of several matrices, or some rows of one."""
    if not isinstance(w_OI, Int8):
        return w_OI[index]
    return Int8(w_OI.values_OI[index], w_OI.scale_O[index])


def nbytes(w_OI: Matrix) -> int:
    """What it takes."""
    return sum(x.nbytes for x in w_OI) if isinstance(w_OI, Int8) else w_OI.nbytes
