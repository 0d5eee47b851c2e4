"""What is sooner done: moving a missed expert to the device, or its rows to the CPU.

An expert of 8x7B is 352 MB, a row 8 KB. By PCIe 4 the expert takes 14 ms; a CPU that reads its
memory at 80 GB/s has multiplied one row by it in 4 (efeslab/fiddler). With many rows the CPU loses.
Both are measured at the start, because buses, memories and CPUs differ tenfold.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from moetool.model.kernels import linear

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.model.fast.feed import Feed

SIDE = 4096  # of the matrices that are timed
MATRICES = 5  # one after the other, so that none is still in the CPU's cache
MANY_ROWS = 64


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second of weights that are moved, and that a CPU multiplies one row by.

    ``cpu_flops`` is what it reaches with many rows.
    """

    moved: float
    multiplied: float
    cpu_flops: float

    def cpu_wins(self, nbytes: int, numel: int, n_rows: int) -> bool:
        """Whether the CPU is done with rows of an expert before the expert is on the device."""
        reading, computing = nbytes / self.multiplied, 2 * numel * n_rows / self.cpu_flops
        return max(reading, computing) < nbytes / self.moved


def measure(feed: Feed, device: torch.device, dtype: torch.dtype, side: int = SIDE) -> Rates:
    """Time both, in a fraction of a second."""
    matrices = [torch.ones(side, side, dtype=dtype) for _ in range(MATRICES)]
    target = torch.empty(side * side, dtype=dtype, device=device)
    row_1I, rows_TI = (torch.ones(n, side, dtype=dtype) for n in (1, MANY_ROWS))
    nbytes, numel = matrices[0].nbytes, matrices[0].numel()

    def move(w: Tensor) -> None:
        feed.send(lambda: [w], target, None).result().wait()

    return Rates(
        moved=nbytes / _seconds(move, matrices),
        multiplied=nbytes / _seconds(lambda w: linear(row_1I, w), matrices),
        cpu_flops=2 * numel * MANY_ROWS / _seconds(lambda w: linear(rows_TI, w), matrices),
    )


def _seconds(use: Callable[[Tensor], object], matrices: list[Tensor]) -> float:
    """The median for one matrix; the first, which wakes threads up, does not count."""
    seconds = []
    for matrix in matrices:
        began = time.perf_counter()
        use(matrix)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])
