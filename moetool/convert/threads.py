"""Work in threads whose results come in the order of the work."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

K = TypeVar("K")
T = TypeVar("T")


def in_order(
    work: Callable[[K], T], keys: Iterable[K], n_workers: int, name: str
) -> Iterator[tuple[K, T]]:
    """Do something for each key, and yield key and result in order; few keys are taken ahead."""
    waiting: deque[tuple[K, Future[T]]] = deque()
    with ThreadPoolExecutor(n_workers, thread_name_prefix=name) as pool:
        try:
            for key in keys:
                waiting.append((key, pool.submit(work, key)))
                if len(waiting) > 2 * n_workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
