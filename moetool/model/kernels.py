"""Products of activations and a matrix stored ``[out, in]``: the same numbers, three ways.

    mv          one row: bound by memory, and for that the quickest of torch's on most CPUs
    linear      torch's own: where a CPU multiplies bf16, nothing is quicker for many rows
    widened     a few rows of the matrix at a time are made float32, in a buffer that stays in cache

Which is quickest depends on the CPU: without instructions for bf16 torch's own product of many
rows is eight times slower than the widened one, with them it is six times faster. So the first
large product of a process tries them, which takes half a second, and all others follow.
All three sum in float32 and round once; the order of a sum differs, so its last bit may.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_NBYTES = 8 << 20  # of float32: half of a small CPU's last cache
LARGE_NUMEL = 1 << 20  # below, no choice is worth the trying
TRIED_ROWS = (16, 64)
BETTER = 1.25  # times as quick as the usual way, before another one is taken: trials are noisy


@dataclass(frozen=True, slots=True)
class Choice:
    """How 16-bit products are computed: ``mv`` for one row or not, ``widened`` from so many on."""

    mv: bool = True
    widened_from: int | None = None

    def __str__(self) -> str:
        one = "mv" if self.mv else "linear"
        many = f", widened from {self.widened_from} rows on" if self.widened_from else ""
        return f"{one} for one row{many}"


def linear(x_TI: Tensor, w_OI: Tensor) -> Tensor:
    """Multiply by a matrix; the result has the type of the rows."""
    if x_TI.device.type != "cpu":
        return F.linear(x_TI, w_OI)
    n_rows = x_TI.shape[0]
    tried = are_tried(x_TI.device, x_TI.dtype, w_OI.numel())
    chosen = chosen_for(x_TI.dtype) if tried else Choice()
    if n_rows == 1 and chosen.mv:
        return torch.mv(w_OI, x_TI[0])[None]
    if chosen.widened_from and n_rows >= chosen.widened_from:
        return widened(x_TI.float(), w_OI).to(x_TI.dtype)
    return F.linear(x_TI, w_OI)


def widened(x_TI: Tensor, w_OI: Tensor) -> Tensor:
    """Multiply float32 rows by a matrix of any type, exactly as if it were stored in float32."""
    if w_OI.dtype == torch.float32:
        return torch.mv(w_OI, x_TI[0])[None] if x_TI.shape[0] == 1 else F.linear(x_TI, w_OI)
    n_out, n_in = w_OI.shape
    height = max(1, TILE_NBYTES // (n_in * 4))
    tile = torch.empty(min(height, n_out), n_in, device=x_TI.device)
    y_TO = torch.empty(x_TI.shape[0], n_out, device=x_TI.device)
    for top in range(0, n_out, height):
        rows = w_OI[top : top + height]
        wide = tile[: len(rows)].copy_(rows)
        if x_TI.shape[0] == 1:
            torch.mv(wide, x_TI[0], out=y_TO[0, top : top + height])
        else:
            y_TO[:, top : top + height] = x_TI @ wide.T
    return y_TO


def are_tried(device: torch.device, dtype: torch.dtype, numel: int) -> bool:
    """Whether products with such matrices are computed in the way that trying chose."""
    return device.type == "cpu" and dtype != torch.float32 and numel >= LARGE_NUMEL


_SETTLED: dict[torch.dtype, Choice] = {}


def chosen_for(dtype: torch.dtype) -> Choice:
    """The choice of this process: made by trying when it is first asked for."""
    if dtype not in _SETTLED:
        _SETTLED[dtype] = _tried(dtype)
    return _SETTLED[dtype]


def settle(dtype: torch.dtype, choice: Choice) -> None:
    """Take another process's choice, so that both compute the same bits."""
    _SETTLED[dtype] = choice


def _tried(dtype: torch.dtype) -> Choice:
    random = torch.Generator().manual_seed(0)
    matrices = [torch.randn(2048, 4096, generator=random).to(dtype) for _ in range(4)]
    rows = torch.randn(max(TRIED_ROWS), 4096, generator=random).to(dtype)
    usual = _seconds(lambda w: torch.mv(w, rows[0]), matrices)
    mv = usual <= BETTER * _seconds(lambda w: F.linear(rows[:1], w), matrices)
    for n in TRIED_ROWS:
        some = rows[:n]
        usual = _seconds(lambda w: F.linear(some, w), matrices)  # noqa: B023  # called at once
        other = _seconds(lambda w: widened(some.float(), w).to(dtype), matrices)  # noqa: B023
        if usual > BETTER * other:
            return Choice(mv, n)
    return Choice(mv)


def _seconds(product: Callable[[Tensor], Tensor], matrices: list[Tensor]) -> float:
    """The quickest of a few calls, on matrices that have left the cache in between."""
    product(matrices[0])
    times = []
    for matrix in matrices:
        began = time.perf_counter()
        product(matrix)
        times.append(time.perf_counter() - began)
    return min(times)
