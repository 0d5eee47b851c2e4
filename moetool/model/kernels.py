"""Products of activations and a matrix stored ``[out, in]``: the same numbers, four ways.

    mv          one row: bound by memory, and for that the quickest of torch's on most CPUs
    linear      torch's own: where a CPU multiplies bf16, nothing is quicker for many rows
    widened     a few rows of the matrix at a time are made float32, in a buffer that stays in cache
    compiled    weights are made float32 in registers: up to 64 rows, where numba is installed

Which is quickest depends on the CPU: without instructions for bf16 torch's own product of many
rows is eight times slower than the widened one, with them it is six times faster. So the first
large product of a process tries them, which takes less than a second, and all others follow.
Small matrices are not tried: several rows are widened. All four sum in float32 and round once; the
order of a sum differs, so its last bit may.

A packed matrix can only be widened, or multiplied by compiled loops. What is stored packed is kept
so where one row takes no longer than with a matrix of 16 bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from moetool.model.packed import Packed
from moetool.quant.quicker import are_compiled

if TYPE_CHECKING:
    from types import ModuleType

    from moetool.model.packed import Matrix

TILE_NBYTES = 8 << 20  # of float32: half of a small CPU's last cache
LARGE_NUMEL = 1 << 20  # below, no choice is worth the trying: see `SMALL`
FEW_ROWS = (1, 8, 64)
MANY_ROWS = (16, 64)
BETTER = 1.25  # times as quick as the usual way, before another one is taken: trials are noisy
LITTLE = 1.1  # for compiled loops, which take no memory and are never far behind
PART = 1024  # outputs of a trial with many rows

M = TypeVar("M", Tensor, Packed)


@dataclass(frozen=True, slots=True)
class Choice:
    """How 16-bit products are computed: ``mv`` for one row or not, ``widened`` from so many on.

    ``compiled_to``, ``packed_to``: compiled loops for up to so many rows, with a matrix of 16 bits
    and with a packed one. ``packed``: whether a matrix that is stored packed stays so.
    """

    mv: bool = True
    widened_from: int | None = None
    compiled_to: int = 0
    packed_to: int = 0
    packed: bool = True

    def __str__(self) -> str:
        parts = [
            f"{'mv' if self.mv else 'linear'} for one row",
            self.widened_from and f"widened from {self.widened_from} rows on",
            self.compiled_to and f"compiled to {self.compiled_to}",
            self.packed_to and f"q8_0 compiled to {self.packed_to}",
            not self.packed and "q8_0 decoded",
        ]
        return ", ".join(part for part in parts if part)


SMALL = Choice(widened_from=4)  # a little more to do at worst; a twelfth without bf16


def linear(x_TI: Tensor, w_OI: Matrix) -> Tensor:
    """Multiply by a matrix; the result has the type of the rows."""
    if isinstance(w_OI, Packed):
        return widened(x_TI.float(), w_OI).to(x_TI.dtype)
    if x_TI.device.type != "cpu":
        return F.linear(x_TI, w_OI)
    n_rows, chosen = len(x_TI), _choice(w_OI)
    many = chosen.widened_from and n_rows >= chosen.widened_from
    if many or n_rows <= chosen.compiled_to:
        return widened(x_TI.float(), w_OI).to(x_TI.dtype)
    if n_rows == 1 and chosen.mv:
        return torch.mv(w_OI, x_TI[0])[None]
    return F.linear(x_TI, w_OI)


def widened(x_TI: Tensor, w_OI: Matrix) -> Tensor:
    """Multiply float32 rows by a matrix of any type, exactly as if it were stored in float32."""
    if isinstance(w_OI, Tensor) and w_OI.dtype == torch.float32:
        return torch.mv(w_OI, x_TI[0])[None] if x_TI.shape[0] == 1 else F.linear(x_TI, w_OI)
    if loops := _loops_for(len(x_TI), w_OI):
        product: Tensor = loops.times(x_TI, w_OI)
        return product
    return tiled(x_TI, w_OI)


def tiled(x_TI: Tensor, w_OI: Matrix) -> Tensor:
    """`widened`, a few rows of the matrix at a time."""
    n_out, n_in = w_OI.shape
    height = max(1, TILE_NBYTES // (n_in * 4))
    tile = torch.empty(min(height, n_out), n_in, device=x_TI.device)
    y_TO = torch.empty(x_TI.shape[0], n_out, device=x_TI.device)
    for top in range(0, n_out, height):
        rows = w_OI[top : top + height]
        room = tile[: len(rows)]
        wide = rows.widen(room) if isinstance(rows, Packed) else room.copy_(rows)
        if x_TI.shape[0] == 1:
            torch.mv(wide, x_TI[0], out=y_TO[0, top : top + height])
        else:
            y_TO[:, top : top + height] = x_TI @ wide.T
    return y_TO


def are_tried(device: torch.device, dtype: torch.dtype, numel: int) -> bool:
    """Whether products with such matrices are computed in the way that trying chose."""
    return device.type == "cpu" and dtype != torch.float32 and numel >= LARGE_NUMEL


def stay_packed(device: torch.device, dtype: torch.dtype, numel: int) -> bool:
    """Whether matrices that are stored packed, the largest of ``numel``, are kept so.

    ``dtype`` is that of the activations. Float32 is for who wants nothing but the ground truth.
    """
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    return not are_tried(device, dtype, numel) or chosen_for(dtype).packed


_SETTLED: dict[torch.dtype, Choice] = {}


def chosen_for(dtype: torch.dtype) -> Choice:
    """The choice of this process: made by trying when it is first asked for."""
    if dtype not in _SETTLED:
        _SETTLED[dtype] = _tried(dtype)
    return _SETTLED[dtype]


def settle(dtype: torch.dtype, choices: Sequence[Choice]) -> None:
    """Take the first of several processes' choices, as far as all of them can follow it."""
    _SETTLED[dtype] = replace(
        choices[0],
        compiled_to=min(choice.compiled_to for choice in choices),
        packed_to=min(choice.packed_to for choice in choices),
    )


def _choice(w_OI: Matrix) -> Choice:
    tried = are_tried(w_OI.device, w_OI.dtype, w_OI.numel())
    return chosen_for(w_OI.dtype) if tried else SMALL


def _loops_for(n_rows: int, w_OI: Matrix) -> ModuleType | None:
    """The compiled loops, where such a product is left to them."""
    chosen = _choice(w_OI)
    most = chosen.packed_to if isinstance(w_OI, Packed) else chosen.compiled_to
    loops = _compiled() if n_rows <= most else None
    return loops if loops and loops.takes(w_OI) else None


def loops_for_a_row(matrices: Iterable[Matrix]) -> ModuleType | None:
    """The compiled loops, where one row times any of these is left to them."""
    matrices = list(matrices)
    large = [w for w in matrices if w.numel() >= LARGE_NUMEL]
    loops = _compiled() if large and all(_loops_for(1, w) for w in large) else None
    return loops if loops and all(map(loops.takes, matrices)) else None


@cache
def _compiled() -> ModuleType | None:
    """The compiled loops; None where numba is not installed, or not for this Python."""
    if not are_compiled():
        return None
    try:
        from moetool.model import compiled
    except ImportError:
        return None
    return compiled


def _tried(dtype: torch.dtype) -> Choice:
    matrices = [torch.ones(2048, 4096, dtype=dtype) for _ in range(4)]
    packed = [Packed(torch.ones(2048, 4096 // 32 * 34, dtype=torch.uint8)) for _ in range(3)]
    rows = torch.ones(max(MANY_ROWS), 4096, dtype=dtype)
    by_mv, by_linear = _seconds(
        matrices, lambda w: torch.mv(w, rows[0]), lambda w: F.linear(rows[:1], w)
    )
    mv = by_mv <= BETTER * by_linear

    def by_torch(x: Tensor, w: Tensor) -> Tensor:
        return torch.mv(w, x[0]) if mv and len(x) == 1 else F.linear(x, w)

    compiled_to, one = _few(by_torch, rows, matrices)
    packed_to, packed_one = _few(lambda x, w: tiled(x.float(), w).to(dtype), rows, packed)
    widened_from = _many(rows, matrices, compiled_to)
    # Packed takes half the memory: in doubt it stays so.
    return Choice(mv, widened_from, compiled_to, packed_to, packed_one <= BETTER * one)


def _few(
    usual: Callable[[Tensor, M], Tensor], rows: Tensor, matrices: list[M]
) -> tuple[int, float]:
    """Up to how many rows compiled loops are better, and the seconds that one row takes then."""
    loops = _compiled()
    if loops is None or not loops.takes(matrices[0]):
        (one,) = _seconds(matrices, lambda w: usual(rows[:1], w))
        return 0, one
    compiled_to, one = 0, math.inf
    for n in FEW_ROWS:
        some = rows[:n]
        theirs, ours = _seconds(
            matrices if n < min(MANY_ROWS) else _parts(matrices),
            lambda w: usual(some, w),  # noqa: B023  # called at once
            lambda w: loops.times(some.float(), w).to(some.dtype),  # noqa: B023
        )
        one = min(one, theirs, ours)
        # In doubt one row is theirs: all else that a token needs is then compiled as well.
        if ours > (theirs * LITTLE if n == 1 else theirs / LITTLE):
            break
        compiled_to = n
    return compiled_to, one


def _many(rows: Tensor, matrices: list[Tensor], beyond: int) -> int | None:
    """From how many rows on the widened product is better than torch's; few have their way."""
    for n in MANY_ROWS:
        if n < beyond:
            continue
        some = rows[:n]
        usual, other = _seconds(
            _parts(matrices),
            lambda w: F.linear(some, w),  # noqa: B023  # called at once
            lambda w: tiled(some.float(), w).to(some.dtype),  # noqa: B023
        )
        if usual > BETTER * other:
            return n
    return None


def _parts(matrices: list[M]) -> list[M]:
    """Enough of them for many rows, which are bound by arithmetic and not by memory."""
    return [w[:PART] for w in matrices[:2]]


def _seconds(matrices: list[M], *products: Callable[[M], Tensor]) -> list[float]:
    """The quickest of a few calls of each, on matrices that have left the cache in between.

    They take turns, so that what else a machine does meets them alike.
    """
    times: list[list[float]] = [[] for _ in products]
    for product in products:
        product(matrices[0])
    for matrix in matrices:
        for product, seconds in zip(products, times, strict=True):
            began = time.perf_counter()
            product(matrix)
            seconds.append(time.perf_counter() - began)
    return [min(seconds) for seconds in times]
