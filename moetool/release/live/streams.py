"""Digests of whole files, taken from the disk in the order of their bytes while the pieces come.

No byte is taken before its piece was hashed where it lies. What came in another order waits for its
turn, and what has not had it at the end is read then: of a download in the order of the files that
is nothing, of one in the order of the swarm nearly all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from moetool.extents import Extent, LocalFile
from moetool.release.live.holes import punch
from moetool.release.pieces import read_through
from moetool.release.torrent.watch import Progress
from moetool.release.verify.digests import HASHES
from moetool.release.verify.hashing import BLOCK_NBYTES, Computed, Wanted

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.release.live.arrivals import Arrivals

_FILES = 4  # in work at a time; of one file nothing can be shared out
_TICK_S = 0.1

Algorithms = Mapping["Path", Iterable[str]]


class Streams:
    """The digests of whole files, each taken from its front on as far as the pieces are here.

    ``algorithms`` gives those to take of each file; None while that is not known yet.
    """

    def __init__(self, arrivals: Arrivals, algorithms: Callable[[], Algorithms | None]) -> None:
        self._arrivals, self._algorithms = arrivals, algorithms
        self._streams: dict[Path, _Stream] | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(_FILES, thread_name_prefix="digests")

    def nudge(self) -> None:
        """Have what is new taken, in threads."""
        for stream in self._begun().values():
            if stream.is_due():
                self._pool.submit(self._try, stream)

    def finish(self, on_progress: Callable[[Progress], None] = lambda _: None) -> None:
        """Take all that can be taken, and wait for it.

        Raises:
            MoetoolError: what came between.
        """
        streams = self._begun().values()
        jobs = [self._pool.submit(stream.advance) for stream in streams]
        total = sum(stream.nbytes for stream in streams)
        is_over = False
        while not is_over:
            is_over = not wait(jobs, _TICK_S).not_done
            on_progress(Progress("verify", sum(stream.position for stream in streams), total))
        for job in jobs:
            job.result()

    def give_back(self, ranges: Iterable[Extent]) -> None:
        """Give ranges back to the disk, after what can be taken of them was taken.

        Raises:
            SystemFault: the machine said no.
        """
        streams = self._begun()
        for extent in ranges:
            streams[extent.path].give_back(extent)

    def digests(self, path: Path) -> dict[str, str]:
        """The digests of a file by algorithm; empty where they could not be taken to the end."""
        stream = self._begun().get(path)
        if stream is None or stream.is_broken or stream.position < stream.nbytes:
            return {}
        return {name: found.hexdigest() for name, found in stream.hashes.items()}

    @property
    def taken(self) -> dict[Wanted, Computed]:
        """Every digest of a whole file that was taken."""
        return {
            Wanted((Extent(path, 0, stream.nbytes),), name): Computed(digest)
            for path, stream in self._begun().items()
            for name, digest in self.digests(path).items()
        }

    def close(self) -> None:
        """End the threads."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def _begun(self) -> Mapping[Path, _Stream]:
        """The files in work; none while it is not known what is to be taken of them."""
        with self._lock:
            if self._streams is None:
                wanted = self._algorithms()
                if wanted is None:
                    return {}
                sizes = self._arrivals.meta.file_sizes(self._arrivals.folder)
                self._streams = {
                    path: _Stream(path, sizes[path], names, self._arrivals, self._stop)
                    for path, names in wanted.items()
                }
            return self._streams

    def _try(self, stream: _Stream) -> None:
        try:
            stream.advance()
        except BaseException as error:  # noqa: BLE001  # whoever waits must hear of it
            self._arrivals.fail(error)


class _Stream:
    """The digests of one file up to a position."""

    def __init__(
        self,
        path: Path,
        nbytes: int,
        algorithms: Iterable[str],
        arrivals: Arrivals,
        stop: threading.Event,
    ) -> None:
        self.path, self.nbytes, self.position, self.is_broken = path, nbytes, 0, False
        self.hashes = {name: HASHES[name]() for name in algorithms}
        self._arrivals, self._stop = arrivals, stop
        self._lock = threading.Lock()
        self._is_queued = False

    def is_due(self) -> bool:
        """Whether a thread should be given to it; True once until it has had its turn."""
        if self._is_queued or self.is_broken or self._end_of_next() is None:
            return False
        self._is_queued = True
        return True

    def advance(self) -> None:
        """Take what is here; bytes that were given back before their turn end it."""
        with self._lock:
            if not self.is_broken and self._end_of_next() is not None:
                self._take()
            self._is_queued = False

    def give_back(self, extent: Extent) -> None:
        """Give a range back to the disk, after what can be taken of it was taken."""
        self.advance()
        with self._lock:
            self.is_broken |= self.position < extent.end
            punch([extent])

    def _take(self) -> None:
        buffer = memoryview(bytearray(min(BLOCK_NBYTES, self.nbytes)))
        with LocalFile(self.path) as file:
            while (end := self._end_of_next()) is not None:
                for content in read_through(file, self.position, end, buffer):
                    for found in self.hashes.values():
                        found.update(content)
                    self.position += len(content)
                    if self._stop.is_set():
                        return

    def _end_of_next(self) -> int | None:
        """Where the piece at the position ends in this file; None where it is not here."""
        if self.position >= self.nbytes:
            return None
        index = self._arrivals.covering(self.path, self.position, 1)[0]
        if not self._arrivals.has(index):
            return None
        extents = self._arrivals.pieces[index].extents
        return next(extent.end for extent in extents if extent.path == self.path)
