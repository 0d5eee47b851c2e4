"""What malloc does with freed memory; a wish that only glibc knows.

Left alone, glibc raises both limits whenever a larger mapped block is freed (mallopt(3)); setting
them ends that.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def limit_heap(*, kept_nbytes: int, mapped_nbytes: int) -> None:
    """Have at most ``kept_nbytes`` kept free at the end of the heap, and larger blocks mapped."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc
        mallopt(_M_TRIM_THRESHOLD, kept_nbytes)
        mallopt(_M_MMAP_THRESHOLD, mapped_nbytes)
