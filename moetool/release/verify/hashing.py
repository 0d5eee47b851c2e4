"""Digests of many byte ranges in one read, hashed in threads.

A file is read once, front to back; each block goes to one lane per algorithm, and a lane is a
thread, for hashlib, zlib and xxhash release the interpreter's lock. MD5 is the slowest of them and
cannot be split (0.7 GB/s on one core), so it must never stand in a row with the others. Pieces
alone (SHA-1 while resuming) have no such lane: then the file is cut and its parts go in parallel.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from moetool.errors import ReadFailed
from moetool.extents import Extent
from moetool.files import open_file
from moetool.release.verify.digests import HASHES, Hash

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.files import File

BLOCK_NBYTES = 1 << 20  # larger reads leave the cache between the cores' hashes and are slower
RING = 4
PART_NBYTES = 64 << 20

_ZEROS = memoryview(bytes(BLOCK_NBYTES))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A digest that somebody wants of bytes, one extent after another.

    So many ``zeros`` are hashed behind them, for padding up to a piece lies nowhere (BEP 47).
    """

    extents: tuple[Extent, ...]
    algorithm: str
    zeros: int = 0


class Trouble(Enum):
    """Why there is no digest."""

    SHORT = "the file ends before"
    UNREADABLE = "the machine could not read"


@dataclass(frozen=True, slots=True)
class Computed:
    """The digest in lower-case hex, or why there is none and where."""

    hex: str = ""
    trouble: Trouble | None = None
    detail: str = ""


def read_digests(
    wanted: Iterable[Wanted],
    *,
    threads: int | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
    opened: Callable[[Path], File] = open_file,
) -> dict[Wanted, Computed]:
    """Read every byte that is asked for once, and compute every digest.

    Ranges that cannot be read spoil the digests that need them and no others. A v1 piece that
    spans files is read apart from them, for its hash must run from one file into the next.

    Args:
        wanted: digests; equal ones are computed once.
        threads: files or parts of files in work at a time; by default one per core, at most 8.
        on_bytes: called with the bytes read since the last call, from any thread.
        opened: opens a file; `open_raw` where the holes of a partial release are to be read too.

    Raises:
        Refused: a path is no regular file.
        NotFetched: bytes are a hole; ask for none of them (`LocalFile.holds`).
    """
    width = threads or min(8, os.cpu_count() or 1)
    stop = threading.Event()
    found: dict[Wanted, Computed] = {}
    with ThreadPoolExecutor(width, thread_name_prefix="hash") as pool:
        jobs = [pool.submit(_Job(part, opened).run, stop, on_bytes) for part in _parts(wanted)]
        try:
            for job in jobs:
                found.update(job.result())
        finally:
            stop.set()
            for job in jobs:
                job.cancel()
    return found


def _parts(wanted: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    """Group what is wanted into parts that can be read alone, large ones first."""
    by_file: dict[object, list[Wanted]] = defaultdict(list)
    for want in dict.fromkeys(wanted):
        alone = len(want.extents) != 1
        by_file[want.extents if alone else want.extents[0].path].append(want)
    parts = [part for group in by_file.values() for part in _cut(group)]
    return iter(sorted(parts, key=_span, reverse=True))


def _cut(group: list[Wanted]) -> Iterator[list[Wanted]]:
    """Cut a file where no digest runs across, in parts of `PART_NBYTES` and more."""
    if len(group[0].extents) != 1:
        yield group
        return
    part: list[Wanted] = []
    start = end = 0
    for want in sorted(group, key=lambda want: want.extents[0].offset):
        extent = want.extents[0]
        if part and extent.offset >= end and end - start >= PART_NBYTES:
            yield part
            part = []
        if not part:
            start = extent.offset
        part.append(want)
        end = max(end, extent.end)
    yield part


def _span(part: list[Wanted]) -> int:
    return max((want.extents[-1].end for want in part), default=0) - part[0].extents[0].offset


class _Lane:
    """Digests of one algorithm that do not overlap, in the order of their bytes."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, int, Wanted]] = []
        self.found: dict[Wanted, Computed] = {}
        self._hash: Hash | None = None

    @property
    def end(self) -> int:
        return self.spans[-1][1] if self.spans else 0

    def feed(self, at: int, block: memoryview) -> None:
        """Take the bytes at position ``at`` of the stream; positions only grow."""
        end = at + len(block)
        while self.spans and self.spans[0][0] <= end:
            start, stop, want = self.spans[0]
            if self._hash is None:
                self._hash = HASHES[want.algorithm]()
            self._hash.update(block[max(0, start - at) : max(0, stop - at)])
            if stop > end:
                return
            for done in range(0, want.zeros, BLOCK_NBYTES):
                self._hash.update(_ZEROS[: want.zeros - done])
            self.found.setdefault(want, Computed(self._hash.hexdigest()))
            self._hash = None
            del self.spans[0]

    def spoil(self, at: int, end: int, outcome: Computed) -> None:
        """Settle what needs bytes ``at:end`` of the stream, which are not to be had."""
        for start, stop, want in self.spans:
            if start < end and at < max(stop, start + 1):
                self.found.setdefault(want, outcome)


class _Job:
    """A part of a file, or one piece across files, and the lanes that hash it."""

    def __init__(self, part: list[Wanted], opened: Callable[[Path], File]) -> None:
        self.opened = opened
        lanes: dict[str, list[_Lane]] = defaultdict(list)
        across = len(part[0].extents) != 1
        for want in sorted(part, key=lambda want: want.extents[0].offset if want.extents else 0):
            start = 0 if across else want.extents[0].offset
            stop = start + sum(extent.nbytes for extent in want.extents)
            free = next((lane for lane in lanes[want.algorithm] if lane.end <= start), None)
            if free is None:
                lanes[want.algorithm].append(free := _Lane())
            free.spans.append((start, stop, want))
        self.lanes = [lane for group in lanes.values() for lane in group]
        self.reads = _in_a_row(part[0].extents) if across else _merged(part)

    @property
    def nbytes(self) -> int:
        return sum(extent.nbytes for _, extent in self.reads)

    def run(self, stop: threading.Event, on_bytes: Callable[[int], None]) -> dict[Wanted, Computed]:
        """Read and hash."""
        with ExitStack() as stack:
            # One lane, or a small part, needs no threads: other parts use the cores meanwhile.
            alone = len(self.lanes) == 1 or self.nbytes <= RING * BLOCK_NBYTES
            threads = [
                stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="lane"))
                for _ in ([] if alone else self.lanes)
            ]
            ring = _Ring(self.lanes, threads)
            for at, extent in self.reads:
                _read(self.opened, at, extent, ring, stop, on_bytes)
            ring.drain()
        return {want: outcome for lane in self.lanes for want, outcome in lane.found.items()}


class _Ring:
    """A few buffers, each free again when all lanes have taken it."""

    def __init__(self, lanes: list[_Lane], threads: list[ThreadPoolExecutor]) -> None:
        self._lanes, self._threads = lanes, threads
        self._buffers = [memoryview(bytearray(BLOCK_NBYTES)) for _ in range(RING)]
        self._busy: list[list[Future[None]]] = [[] for _ in range(RING)]
        self._turn = 0

    def next_buffer(self) -> memoryview:
        self._turn = (self._turn + 1) % RING
        self._wait(self._turn)
        return self._buffers[self._turn]

    def feed(self, at: int, block: memoryview) -> None:
        if not self._threads:
            for lane in self._lanes:
                lane.feed(at, block)
            return
        for lane, thread in zip(self._lanes, self._threads, strict=True):
            self._busy[self._turn].append(thread.submit(lane.feed, at, block))

    def spoil(self, at: int, end: int, outcome: Computed) -> None:
        self.drain()
        for lane in self._lanes:
            lane.spoil(at, end, outcome)

    def drain(self) -> None:
        for turn in range(RING):
            self._wait(turn)

    def _wait(self, turn: int) -> None:
        wait(self._busy[turn])
        for future in self._busy[turn]:
            future.result()
        self._busy[turn].clear()


def _in_a_row(extents: tuple[Extent, ...]) -> list[tuple[int, Extent]]:
    at, reads = 0, []
    for extent in extents:
        reads.append((at, extent))
        at += extent.nbytes
    return reads


def _merged(part: list[Wanted]) -> list[tuple[int, Extent]]:
    """The ranges of the file that somebody wants, each byte once, in order."""
    ranges: list[Extent] = []
    for extent in sorted((want.extents[0] for want in part), key=lambda extent: extent.offset):
        if ranges and extent.offset <= ranges[-1].end:
            last = ranges.pop()
            end = max(last.end, extent.end)
            ranges.append(Extent(last.path, last.offset, end - last.offset))
        else:
            ranges.append(extent)
    return [(extent.offset, extent) for extent in ranges]


def _read(
    opened: Callable[[Path], File],
    at: int,
    extent: Extent,
    ring: _Ring,
    stop: threading.Event,
    on_bytes: Callable[[int], None],
) -> None:
    """Hand the bytes of an extent to the lanes, at position ``at`` of the stream."""
    end = at + extent.nbytes
    try:
        source = opened(extent.path)
    except ReadFailed as error:
        missing = isinstance(error.__cause__, FileNotFoundError)
        trouble = Trouble.SHORT if missing else Trouble.UNREADABLE
        ring.spoil(at, max(end, at + 1), Computed(trouble=trouble, detail=str(error)))
        return
    with source:
        while not stop.is_set():
            buffer = ring.next_buffer()[: min(BLOCK_NBYTES, end - at)]
            offset = extent.end - (end - at)
            try:
                got = source.pread_into(buffer, offset)
            except ReadFailed as error:
                outcome = Computed(trouble=Trouble.UNREADABLE, detail=str(error))
                ring.spoil(at, at + len(buffer), outcome)
                at += len(buffer)
            else:
                if got == 0 and at < end:
                    ring.feed(at, buffer[:0])  # what wants no bytes here is content
                    ring.spoil(at, end, Computed(trouble=Trouble.SHORT, detail=f"at byte {offset}"))
                    return
                ring.feed(at, buffer[:got])
                on_bytes(got)
                at += got
            if at >= end:
                return
