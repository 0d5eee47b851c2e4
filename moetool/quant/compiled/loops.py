"""How loops are compiled, and the rounding that all of them use."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeAlias, TypeVar

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

P = ParamSpec("P")
T = TypeVar("T")

Floats: TypeAlias = "NDArray[np.float32]"
Levels: TypeAlias = "NDArray[np.uint8]"
F = np.float32


def compiled(**options: str | set[str] | bool) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Compile a function; what was compiled is kept beside this file or in the user's cache.

    Division by zero gives infinity as in C, and no thread holds the interpreter's lock.
    """

    def wrap(plain: Callable[P, T]) -> Callable[P, T]:
        build = partial(numba.njit, plain, nogil=True, error_model="numpy", **options)
        try:
            return build(cache=True)
        except RuntimeError:  # no folder that could be written to
            return build()

    return wrap


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
