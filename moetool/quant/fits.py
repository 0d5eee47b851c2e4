"""Which scale fits a group of weights: the searches of ggml's reference, on many groups at once.

    positive        x = scale * q              q from 0 to levels          a block's scales
    signed          x = scale * q              q from -half to half - 1    q3_k, q6_k
    refined         x = scale * q              q from -half to half - 1    q3_k unweighted
    with_minimum    x = scale * q - minimum    q from 0 to levels          q2_k, q4_k, q5_k
    stored_levels   q again, under the scale and the minimum as a block stores them

Bits have to be those of ggml-org/llama.cpp: ggml/src/ggml-quants.c (make_qp_quants, make_qx_quants,
make_q3_quants, make_qkx2_quants, make_qkx3_quants): everything is float32, sums run over a group's
weights in their order, no two operations are fused. Groups stand side by side, ``[N, G]``, so what
runs in order runs over rows, for all groups at once. Where numba is installed, the functions of
`moetool.quant.compiled` take the place of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from moetool.quant.exact import divided, first_extreme, first_minimum, in_order, nearest
from moetool.quant.quicker import or_compiled

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-15  # a group whose largest weight is smaller is stored as zeros


@dataclass(frozen=True, slots=True)
class Grid:
    """Scales to try: those that spread ``levels + first + k * step`` over a group, k to ``last``.

    ``bounded``: what falls outside the levels is cut before it is rounded, not after.
    """

    first: float
    step: float
    last: int
    bounded: bool = False

    def spreads(self, levels: int) -> list[float]:
        """Each spread, as float32 arithmetic gives it."""
        steps = torch.tensor(self.step) * torch.arange(self.last + 1)
        return (torch.tensor(self.first) + steps + levels).tolist()


IMPORTANCE_GRID = Grid(-0.9, 0.05, 36, bounded=True)  # of all formats with a minimum
REFINEMENTS = 5


@or_compiled
def stored_levels(  # the six values that decide it
    x_NG: Tensor, q_NG: Tensor, scale_G: Tensor, min_G: Tensor | None, half: int, levels: int
) -> Tensor:
    """The levels nearest to weights under the scale and the minimum that a block stores.

    A scale of zero says nothing of the levels: those of the fit stay.

    Args:
        x_NG: the weights.
        q_NG: the levels of the fit.
        scale_G: the stored scale of each group.
        min_G: the stored minimum of each group; None where the format has none.
        half: levels below zero, added to what is stored.
        levels: the largest level that is stored.

    Returns:
        Levels uint8 ``[N, G]``.
    """
    shifted_NG = x_NG if min_G is None else x_NG + min_G
    found_NG = nearest(shifted_NG / scale_G).clamp(-half, levels - half) + half
    return torch.where(scale_G != 0, found_NG, q_NG).to(torch.uint8)


@or_compiled
def signed(x_NG: Tensor, half: int, w_NG: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Fit a scale to weights of both signs.

    Args:
        x_NG: the weights.
        half: levels below zero; there is one less above.
        w_NG: how much an error counts; by default the square of the weight.

    Returns:
        Levels ``[N, G]`` from 0 on, that is with ``half`` added, and the scale ``[G]``.
    """
    w_NG = x_NG * x_NG if w_NG is None else w_NG
    wx_NG = w_NG * x_NG
    extreme_G = first_extreme(x_NG)
    best_scale_G = best_G = best_q_NG = torch.empty(0)
    for step in (0, *range(-9, 0), *range(1, 10)):
        spread = -(half + torch.tensor(0.1) * step)
        q_NG = nearest(spread / extreme_G * x_NG).clamp(-half, half - 1)
        q = q_NG.float()
        xq_G, qq_G = in_order(wx_NG * q), in_order(w_NG * q * q)
        scale_G = torch.where(qq_G != 0, xq_G / qq_G, 0.0)
        if step == 0:
            best_scale_G, best_G, best_q_NG = scale_G, scale_G * xq_G, q_NG
            continue
        better_G = (qq_G > 0) & (xq_G * xq_G > best_G * qq_G)
        best_scale_G = torch.where(better_G, scale_G, best_scale_G)
        best_G = torch.where(better_G, scale_G * xq_G, best_G)
        best_q_NG = torch.where(better_G, q_NG, best_q_NG)
    return _none_where_tiny(best_q_NG + half, best_scale_G, extreme_G)


@or_compiled
def refined(x_NG: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Fit a scale by moving one level after another while that lowers the error; as `signed`."""
    w_NG, extreme_G = x_NG * x_NG, first_extreme(x_NG)
    q_NG = nearest(-half / extreme_G * x_NG).clamp(-half, half - 1).float()
    scale_G = _moved(x_NG, w_NG, q_NG, -half, half - 1)
    return _none_where_tiny(q_NG.int() + half, scale_G, extreme_G)


def positive(x_NG: Tensor, levels: int, w_NG: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a scale to values of which none is negative: levels ``[N, G]``, and the scale ``[G]``."""
    largest_G = x_NG.amax(0).clamp(min=0)
    iscale_G = divided(levels, largest_G)
    best_iscale_G, best_G = iscale_G, torch.empty(0)
    for step in (0, *range(-4, 0), *range(1, 5)):
        tried_G = (torch.tensor(0.1) * step + levels) / largest_G if step else iscale_G
        q_NG = nearest(tried_G * x_NG)
        q = (q_NG.clamp(max=levels) if step else q_NG & 255).float()
        off_NG = x_NG - 1 / tried_G * q
        error_G = in_order(w_NG * off_NG * off_NG)
        if not step:
            best_G = error_G
            continue
        better_G = error_G < best_G
        best_G = torch.where(better_G, error_G, best_G)
        best_iscale_G = torch.where(better_G, tried_G, best_iscale_G)
    q_NG = nearest(best_iscale_G * x_NG).clamp(max=levels).float()
    scale_G = _moved(x_NG, w_NG, q_NG, None, levels)
    return _none_where_tiny(q_NG.int(), scale_G, largest_G)


def positive_by_block(
    value_G: Tensor, w_G: Tensor, n_groups: int, levels: int
) -> tuple[Tensor, Tensor]:
    """`positive` for the groups of each block: levels ``[B, n_groups]``, and the scale ``[B]``."""
    value_JB = value_G.view(-1, n_groups).T.contiguous()
    level_JB, scale_B = positive(value_JB, levels, w_G.view(-1, n_groups).T)
    return level_JB.T, scale_B


@or_compiled
def with_minimum(
    x_NG: Tensor, w_NG: Tensor, levels: int, grid: Grid, *, absolute: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a scale and a minimum, ``x = scale * q - minimum``.

    Each try spreads the levels from the best minimum so far, then solves for the scale and the
    minimum that are best for the levels so found, by weighted least squares.

    Args:
        x_NG: the weights.
        w_NG: how much an error counts.
        levels: the largest level.
        grid: what is tried.
        absolute: errors count as they are, not squared.

    Returns:
        Levels uint8 ``[N, G]``, the scale ``[G]`` and the minimum ``[G]``, which is not negative.
    """
    min_G, max_G = first_minimum(x_NG), x_NG.amax(0)
    min_G = torch.where(min_G > 0, 0.0, min_G)
    flat_G = max_G <= min_G
    w_G, x_G = _sums(w_NG, x_NG)

    def error_of(q_NG: Tensor, scale_G: Tensor, min_G: Tensor) -> Tensor:
        off_NG = scale_G * q_NG + min_G - x_NG
        return in_order(w_NG * (off_NG.abs() if absolute else off_NG * off_NG))

    iscale_G = divided(levels, max_G - min_G)
    scale_G = 1 / iscale_G
    best_q_NG = nearest(iscale_G * (x_NG - min_G)).clamp(0, levels)
    best_G = error_of(best_q_NG.float(), scale_G, min_G)
    for spread in grid.spreads(levels):
        v_NG = divided(spread, max_G - min_G) * (x_NG - min_G)
        if grid.bounded:
            q_NG = torch.where(v_NG > 0, nearest(v_NG.clamp(max=levels)), 0)
        else:
            q_NG = nearest(v_NG).clamp(0, levels)
        q = q_NG.float()
        wq_NG = w_NG * q
        q_G, qq_G, xq_G = in_order(wq_NG), in_order(wq_NG * q), in_order(wq_NG * x_NG)
        determinant_G = w_G * qq_G - q_G * q_G
        new_scale_G = (w_G * xq_G - x_G * q_G) / determinant_G
        new_min_G = (qq_G * x_G - q_G * xq_G) / determinant_G
        above_G = new_min_G > 0
        new_min_G = torch.where(above_G, 0.0, new_min_G)
        new_scale_G = torch.where(above_G, xq_G / qq_G, new_scale_G)
        error_G = error_of(q, new_scale_G, new_min_G)
        better_G = (determinant_G > 0) & (error_G < best_G)
        best_q_NG = torch.where(better_G, q_NG, best_q_NG)
        best_G = torch.where(better_G, error_G, best_G)
        scale_G = torch.where(better_G, new_scale_G, scale_G)
        min_G = torch.where(better_G, new_min_G, min_G)
    best_q_NG = torch.where(flat_G, 0, best_q_NG).to(torch.uint8)
    return best_q_NG, torch.where(flat_G, 0.0, scale_G), -min_G


def _moved(x_NG: Tensor, w_NG: Tensor, q_NG: Tensor, low: int | None, high: int) -> Tensor:
    """Move one level after another while that lowers the error; the scale that fits them then.

    Each goes to what is best for all the others. ``q_NG`` is changed in place. ``low`` is None
    where there are no levels below zero; what is asked of the sums differs then, as it does in C.
    """
    wx_NG = w_NG * x_NG
    xq_G, qq_G = in_order(wx_NG * q_NG), in_order(w_NG * q_NG * q_NG)
    for _ in range(REFINEMENTS):
        for x_G, w_G, wx_G, q_G in zip(x_NG, w_NG, wx_NG, q_NG, strict=True):
            without_G = xq_G - wx_G * q_G
            rest_G = qq_G - w_G * q_G * q_G
            new_G = nearest(x_G * rest_G / without_G).clamp(low, high).float()
            new_xq_G = without_G + wx_G * new_G
            new_qq_G = rest_G + w_G * new_G * new_G
            better_G = new_xq_G * new_xq_G * qq_G > xq_G * xq_G * new_qq_G
            better_G &= (without_G > 0) & (new_G != q_G)
            better_G &= (rest_G if low is None else new_qq_G) > 0
            q_G.copy_(torch.where(better_G, new_G, q_G))
            xq_G = torch.where(better_G, new_xq_G, xq_G)
            qq_G = torch.where(better_G, new_qq_G, qq_G)
    return torch.where(qq_G > 0, xq_G / qq_G, 0.0)


def _sums(w_NG: Tensor, x_NG: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of w and of w * x; they begin with a term, not with zero."""
    w_G, x_G = w_NG[0], w_NG[0] * x_NG[0]
    for weight_G, value_G in zip(w_NG[1:], x_NG[1:], strict=True):
        w_G = w_G + weight_G
        x_G = x_G + weight_G * value_G
    return w_G, x_G


def _none_where_tiny(q_NG: Tensor, scale_G: Tensor, extreme_G: Tensor) -> tuple[Tensor, Tensor]:
    tiny_G = extreme_G.abs() < TINY
    return torch.where(tiny_G, 0, q_NG).to(torch.uint8), torch.where(tiny_G, 0.0, scale_G)
