"""A plain function, or its compiled twin where numba is installed."""

from __future__ import annotations

import functools
import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


@functools.cache
def are_compiled() -> bool:
    """Whether loops are compiled here: an optional package decides."""
    return find_spec("numba") is not None


def or_compiled(plain: Callable[P, T]) -> Callable[P, T]:
    """Run the function of that name in `moetool.quant.compiled`, where that can be.

    ``__wrapped__`` is the plain one: what the other must equal.
    """

    @functools.wraps(plain)
    def either(*args: P.args, **kwargs: P.kwargs) -> T:
        if not are_compiled():
            return plain(*args, **kwargs)
        twin: Callable[P, T] = getattr(
            importlib.import_module("moetool.quant.compiled"), plain.__name__
        )
        return twin(*args, **kwargs)

    return either
