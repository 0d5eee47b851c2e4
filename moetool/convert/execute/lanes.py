"""The threads beside the one that reads: writing, hashing and syncing overlap.

    source ─read, CRC-32─> append ─┬─> SHA-256
    (the caller's thread)          ├─> XXH3 of the file and of each tensor
                                   ├─> SHA-1 and SHA-256 tree of each piece, where it is published
                                   └─> write ─each 64 MiB, each mark─> sync

Each arrow is a thread and a short queue that live as long as the conversion: hashlib, xxhash and
the system's calls let go of the interpreter's lock. No lane waits for one on its left, so none can
wait for itself.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

DEPTH = 8  # pieces ahead of a thread: 8 MiB for each of three


class Lane:
    """Calls made in order in a thread of its own, with at most ``depth`` of them waiting.

    What a call raises is raised by a later `put` or by `drain`, and nothing is done after it: what
    follows a write that failed must not be written, and still less be marked as done.
    """

    def __init__(self, name: str, depth: int = DEPTH) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting: deque[Future[object]] = deque()
        self._depth = depth
        self._failure: BaseException | None = None

    def put(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Hand over a call; wait while too many are ahead of it."""
        if len(self._waiting) >= self._depth:
            self._waiting.popleft().result()
        future = self._pool.submit(self._do, partial(call, *args, **kwargs))
        self._waiting.append(future)  # type: ignore[arg-type]  # a future of any result will do
        return future

    def _do(self, call: Callable[[], T]) -> T:
        if self._failure is not None:
            raise self._failure
        try:
            return call()
        except BaseException as error:
            self._failure = error
            raise

    def drain(self) -> None:
        """Wait until everything is done."""
        while self._waiting:
            self._waiting.popleft().result()

    def settle(self) -> None:
        """Wait until nothing is being done any more, whatever failed, and forget the failure."""
        while self._waiting:
            self._waiting.popleft().exception()
        self._failure = None

    def close(self) -> None:
        """End the thread, when it has done what it began."""
        self._pool.shutdown(cancel_futures=True)


class Lanes:
    """The threads of one conversion."""

    def __init__(self) -> None:
        self.sha256, self.xxh3, self.write = Lane("sha256"), Lane("xxh3"), Lane("write")
        self.sha1, self.merkle = Lane("sha1"), Lane("merkle")
        self.sync = Lane("sync", 1)
        self._all = (self.sha256, self.xxh3, self.sha1, self.merkle, self.write, self.sync)

    def drain(self) -> None:
        """Wait until everything is done; the order is that in which lanes hand to each other."""
        for lane in self._all:
            lane.drain()

    def settle(self) -> None:
        """Have nothing going on any more; what failed was told, or is of no interest any more."""
        for lane in self._all:
            lane.settle()

    def close(self) -> None:
        """End the threads."""
        for lane in self._all:
            lane.close()
