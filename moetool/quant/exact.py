"""Float32 arithmetic as C does it: every operation rounded once, every sum in its order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDER = 12582912.0  # 1.5 * 2^23: a float32 near it has no digits behind the point


def nearest(v: Tensor) -> Tensor:
    """Round half to even, int32; beyond 2^22 it wraps, as the rounding by a sum does in ggml."""
    return ((v + _ROUNDER).view(torch.int32) & 0x7FFFFF) - 0x400000


def divided(number: float, by_G: Tensor) -> Tensor:
    """Divide a number; torch's own ``/`` multiplies by the reciprocal then, and rounds twice."""
    return torch.div(torch.tensor(number, dtype=torch.float32), by_G)


def root(v: Tensor) -> Tensor:
    """The square root, rounded once; torch's own of float32 may be the neighbour of that."""
    return v.double().sqrt().float()


def in_order(terms_NG: Tensor) -> Tensor:
    """Sum over the first dimension, one after another: ``[N, G]`` -> ``[G]``."""
    total_G = torch.zeros_like(terms_NG[0])
    for term_G in terms_NG:
        total_G += term_G
    return total_G


def first_extreme(x_NG: Tensor) -> Tensor:
    """Of the values of largest magnitude the first, with its sign: ``[G]``.

    NaN, as the scale of huge weights can be, is not larger than anything. A zero is positive.
    """
    x_NG = torch.where(x_NG.isnan(), 0.0, x_NG)
    return x_NG.gather(0, x_NG.abs().argmax(0, keepdim=True))[0] + 0.0


def first_minimum(x_NG: Tensor) -> Tensor:
    """Of the smallest weights the first, for 0 may have either sign: ``[G]``."""
    at_1G = (x_NG == x_NG.amin(0)).to(torch.uint8).argmax(0, keepdim=True)
    return x_NG.gather(0, at_1G)[0]
