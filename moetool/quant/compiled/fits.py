"""`moetool.quant.fits` as compiled loops, over tiles of groups that stay in the first cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from moetool.quant.compiled.loops import F, Floats, Levels, bounded_level, compiled, within
from moetool.quant.fits import REFINEMENTS, TINY

if TYPE_CHECKING:
    from moetool.quant.fits import Grid

TILE = 128  # groups: with their weights, levels and sums, a first cache of 32 KiB


def signed(
    x_NG: torch.Tensor, half: int, w_NG: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `moetool.quant.fits.signed`."""
    w_NG = x_NG * x_NG if w_NG is None else w_NG
    q_NG, scale_G = torch.empty_like(x_NG, dtype=torch.uint8), torch.empty_like(x_NG[0])
    _signed(x_NG.numpy(), w_NG.contiguous().numpy(), half, q_NG.numpy(), scale_G.numpy())
    return q_NG, scale_G


def refined(x_NG: torch.Tensor, half: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `moetool.quant.fits.refined`."""
    q_NG, scale_G = torch.empty_like(x_NG, dtype=torch.uint8), torch.empty_like(x_NG[0])
    _refined(x_NG.numpy(), half, q_NG.numpy(), scale_G.numpy())
    return q_NG, scale_G


def with_minimum(
    x_NG: torch.Tensor,
    w_NG: torch.Tensor,
    levels: int,
    grid: Grid,
    *,
    absolute: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `moetool.quant.fits.with_minimum`."""
    q_NG = torch.empty_like(x_NG, dtype=torch.uint8)
    scale_G, min_G = torch.empty_like(x_NG[0]), torch.empty_like(x_NG[0])
    spreads = np.array(grid.spreads(levels), F)
    _with_minimum(
        x_NG.numpy(), w_NG.contiguous().numpy(), levels, spreads, grid.bounded, absolute,
        q_NG.numpy(), scale_G.numpy(), min_G.numpy(),
    )  # fmt: skip
    return q_NG, scale_G, min_G


def stored_levels(
    x_NG: torch.Tensor,
    q_NG: torch.Tensor,
    scale_G: torch.Tensor,
    min_G: torch.Tensor | None,
    half: int,
    levels: int,
) -> torch.Tensor:
    """See `moetool.quant.fits.stored_levels`."""
    min_G = torch.zeros_like(scale_G) if min_G is None else min_G
    found_NG = torch.empty_like(q_NG)
    _stored_levels(
        x_NG.numpy(), q_NG.numpy(), scale_G.numpy(), min_G.numpy(), half, levels, found_NG.numpy()
    )
    return found_NG


@compiled()
def _signed(xs: Floats, ws: Floats, half: int, q_out: Levels, scale_out: Floats) -> None:
    for left in range(0, xs.shape[1], TILE):
        x, w = xs[:, left : left + TILE].copy(), ws[:, left : left + TILE].copy()
        extreme, width = _first_extreme(x), x.shape[1]
        inverse, xq, qq = np.empty(width, F), np.empty(width, F), np.empty(width, F)
        best_inverse, best, scale = np.empty(width, F), np.empty(width, F), np.empty(width, F)
        for tried in range(-10, 10):
            if tried == 0:
                continue
            first = tried == -10
            spread = -(F(half) + F(0.1) * F(0 if first else tried))
            for g in range(width):
                inverse[g] = spread / extreme[g]
            _signed_sums(x, w, inverse, half, xq, qq)
            for g in range(width):
                found = xq[g] / qq[g] if qq[g] != F(0) else F(0)
                better = (qq[g] > F(0)) & (xq[g] * xq[g] > best[g] * qq[g])
                better |= first
                scale[g] = found if better else scale[g]
                best[g] = found * xq[g] if better else best[g]
                best_inverse[g] = inverse[g] if better else best_inverse[g]
        for g in range(width):
            scale_out[left + g] = F(0) if abs(extreme[g]) < F(TINY) else scale[g]
        for i in range(len(x)):
            x_i, q_i = x[i], q_out[i, left : left + width]
            for g in range(width):
                q = within(best_inverse[g] * x_i[g], -half, half - 1) + half
                q_i[g] = np.uint8(0 if abs(extreme[g]) < F(TINY) else q)


@compiled()
def _first_extreme(x: Floats) -> Floats:
    size, extreme = np.zeros_like(x[0]), np.zeros_like(x[0])
    for i in range(len(x)):
        x_i = x[i]
        for g in range(len(size)):
            larger = abs(x_i[g]) > size[g]
            size[g] = abs(x_i[g]) if larger else size[g]
            extreme[g] = x_i[g] if larger else extreme[g]
    return extreme


@compiled()
def _signed_sums(x: Floats, w: Floats, inverse: Floats, half: int, xq: Floats, qq: Floats) -> None:
    xq[:], qq[:] = F(0), F(0)
    for i in range(len(x)):
        x_i, w_i = x[i], w[i]
        for g in range(len(xq)):
            q = F(within(inverse[g] * x_i[g], -half, half - 1))
            xq[g] += w_i[g] * x_i[g] * q
            qq[g] += w_i[g] * q * q


@compiled()
def _refined(xs: Floats, half: int, q_out: Levels, scale_out: Floats) -> None:
    for left in range(0, xs.shape[1], TILE):
        x = xs[:, left : left + TILE].copy()
        q, w, extreme, width = np.empty_like(x), x * x, _first_extreme(x), x.shape[1]
        inverse, xq, qq = np.empty(width, F), np.empty(width, F), np.empty(width, F)
        for g in range(width):
            inverse[g] = F(-half) / extreme[g]
        _signed_sums(x, w, inverse, half, xq, qq)
        for i in range(len(x)):
            x_i, q_i = x[i], q[i]
            for g in range(width):
                q_i[g] = F(within(inverse[g] * x_i[g], -half, half - 1))
        for _ in range(REFINEMENTS):
            for i in range(len(x)):
                _move_levels(x[i], w[i], half, q[i], xq, qq)
        for g in range(width):
            tiny = abs(extreme[g]) < F(TINY)
            scale_out[left + g] = xq[g] / qq[g] if (qq[g] > F(0)) & (not tiny) else F(0)
        for i in range(len(x)):
            q_i, out_i = q[i], q_out[i, left : left + width]
            for g in range(width):
                out_i[g] = np.uint8(0 if abs(extreme[g]) < F(TINY) else np.int32(q_i[g]) + half)


@compiled()
def _move_levels(x: Floats, w: Floats, half: int, q: Floats, xq: Floats, qq: Floats) -> None:
    """Move one weight of each group to the level that is best for all the others, if it helps."""
    for g in range(len(x)):
        without = xq[g] - w[g] * x[g] * q[g]
        rest = qq[g] - w[g] * q[g] * q[g]
        new = F(within(x[g] * rest / without, -half, half - 1))
        new_xq = without + w[g] * x[g] * new
        new_qq = rest + w[g] * new * new
        better = (without > F(0)) & (new != q[g]) & (new_qq > F(0))
        better &= new_xq * new_xq * qq[g] > xq[g] * xq[g] * new_qq
        q[g] = new if better else q[g]
        xq[g] = new_xq if better else xq[g]
        qq[g] = new_qq if better else qq[g]


@compiled()
def _with_minimum(
    xs: Floats, ws: Floats, levels: int, spreads: Floats, bounded: bool, absolute: bool,
    q_out: Levels, scale_out: Floats, min_out: Floats,
) -> None:  # fmt: skip
    for left in range(0, xs.shape[1], TILE):
        x, w = xs[:, left : left + TILE].copy(), ws[:, left : left + TILE].copy()
        q, width, (low, high, sum_w, sum_x) = np.empty_like(x), x.shape[1], _extent(x, w)
        inverse, error = np.empty(width, F), np.empty(width, F)
        new_scale, new_min, best = np.empty(width, F), np.empty(width, F), np.empty(width, F)
        sums = np.empty((3, width), F)
        scale, minimum, best_min, tried = (
            low.copy(),
            low.copy(),
            low.copy(),
            np.zeros(width, np.bool_),
        )
        for g in range(width):
            inverse[g] = F(levels) / (high[g] - low[g])
            scale[g] = F(1) / inverse[g]
        best_inverse = inverse.copy()
        _try_levels(x, w, inverse, minimum, levels, False, q, sums)
        _error(x, w, q, scale, minimum, absolute, best)
        for spread in spreads:
            for g in range(width):
                inverse[g] = spread / (high[g] - minimum[g])
            _try_levels(x, w, inverse, minimum, levels, bounded, q, sums)
            _solve(sum_w, sum_x, sums, new_scale, new_min)
            _error(x, w, q, new_scale, new_min, absolute, error)
            for g in range(width):
                better = error[g] < best[g]
                tried[g] |= better
                best[g] = error[g] if better else best[g]
                best_inverse[g] = inverse[g] if better else best_inverse[g]
                best_min[g] = minimum[g] if better else best_min[g]
                scale[g] = new_scale[g] if better else scale[g]
                minimum[g] = new_min[g] if better else minimum[g]
        for g in range(width):
            scale_out[left + g] = F(0) if high[g] <= low[g] else scale[g]
            min_out[left + g] = -minimum[g]
        for i in range(len(x)):
            x_i, q_i = x[i], q_out[i, left : left + width]
            for g in range(width):
                v = best_inverse[g] * (x_i[g] - best_min[g])
                found = bounded_level(v, levels) if bounded & tried[g] else within(v, 0, levels)
                q_i[g] = np.uint8(0 if high[g] <= low[g] else found)


@compiled()
def _extent(x: Floats, w: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """The least weight, or zero, and the largest; the sums of w and of w * x."""
    low, high, sum_w, sum_x = x[0].copy(), x[0].copy(), w[0].copy(), w[0] * x[0]
    for i in range(1, len(x)):
        x_i, w_i = x[i], w[i]
        for g in range(len(low)):
            low[g] = min(low[g], x_i[g])
            high[g] = max(high[g], x_i[g])
            sum_w[g] += w_i[g]
            sum_x[g] += w_i[g] * x_i[g]
    for g in range(len(low)):
        low[g] = min(low[g], F(0))
    return low, high, sum_w, sum_x


@compiled()
def _try_levels(
    x: Floats, w: Floats, inverse: Floats, minimum: Floats, levels: int, bounded: bool,
    q: Floats, sums: Floats,
) -> None:  # fmt: skip
    """Levels, and the sums of w * q, w * q * q and w * q * x."""
    sums[:] = F(0)
    sum_q, sum_qq, sum_xq = sums[0], sums[1], sums[2]
    for i in range(len(x)):
        x_i, w_i, q_i = x[i], w[i], q[i]
        if bounded:
            for g in range(len(inverse)):
                q_i[g] = F(bounded_level(inverse[g] * (x_i[g] - minimum[g]), levels))
        else:
            for g in range(len(inverse)):
                q_i[g] = F(within(inverse[g] * (x_i[g] - minimum[g]), 0, levels))
        for g in range(len(inverse)):
            wq = w_i[g] * q_i[g]
            sum_q[g] += wq
            sum_qq[g] += wq * q_i[g]
            sum_xq[g] += wq * x_i[g]


@compiled()
def _solve(w: Floats, x: Floats, sums: Floats, scale: Floats, minimum: Floats) -> None:
    """Scale and minimum by least squares; NaN where the levels do not determine them."""
    q, qq, xq = sums[0], sums[1], sums[2]
    for g in range(len(w)):
        determinant = w[g] * qq[g] - q[g] * q[g]
        determinant = determinant if determinant > F(0) else F(np.nan)
        found = (w[g] * xq[g] - x[g] * q[g]) / determinant
        low = (qq[g] * x[g] - q[g] * xq[g]) / determinant
        scale[g] = xq[g] / qq[g] if low > F(0) else found
        minimum[g] = min(low, F(0))


@compiled()
def _error(
    x: Floats, w: Floats, q: Floats, scale: Floats, minimum: Floats, absolute: bool, error: Floats
) -> None:
    error[:] = F(0)
    for i in range(len(x)):
        x_i, w_i, q_i = x[i], w[i], q[i]
        if absolute:
            for g in range(len(error)):
                error[g] += w_i[g] * abs(scale[g] * q_i[g] + minimum[g] - x_i[g])
        else:
            for g in range(len(error)):
                off = scale[g] * q_i[g] + minimum[g] - x_i[g]
                error[g] += w_i[g] * (off * off)


@compiled()
def _stored_levels(
    x: Floats, q: Levels, scale: Floats, minimum: Floats, half: int, levels: int, found: Levels
) -> None:
    for i in range(len(x)):
        x_i, q_i, found_i = x[i], q[i], found[i]
        for g in range(len(scale)):
            new = within((x_i[g] + minimum[g]) / scale[g], -half, levels - half) + half
            found_i[g] = np.uint8(new) if scale[g] != F(0) else q_i[g]
