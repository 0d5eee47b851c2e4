"""How loops are compiled, and the rounding that all of them use."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Floats: TypeAlias = "NDArray[np.float32]"
Levels: TypeAlias = "NDArray[np.uint8]"
F = np.float32

# Division by zero gives infinity as in C, and no thread holds the interpreter's lock.
compiled = partial(numba.njit, nogil=True, error_model="numpy", cache=True)
inlined = partial(compiled, inline="always")


@inlined()
def nearest(v: F) -> np.int32:
    """See `moetool.quant.exact.nearest`."""
    return (F(v + F(12582912.0)).view(np.int32) & 0x7FFFFF) - 0x400000


@inlined()
def within(v: F, low: int, high: int) -> int:
    """Round, then cut what lies outside the levels."""
    return min(max(nearest(v), low), high)


@inlined()
def bounded_level(v: F, levels: int) -> int:
    """Cut, then round; NaN is the largest level when it is cut and none in the end."""
    top = F(levels)
    found = nearest(min(top, v))
    return found if v > F(0) else 0
