"""How fast this machine reads, hashes and writes, as half a second shows it.

The read is of the source itself, at places spread over it, with the pages that are cached dropped
before; the write is to a file that has no name and is gone when it is closed. So short a look sees
caches of a disk that a long run does not: what comes of it is an estimate and is called so.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.convert.execute.room import existing_parent
from moetool.convert.plan import BLOCKS, QUANTISED_NUMEL, QUANTISERS
from moetool.extents import Extent
from moetool.files.joined import on_disk, parts_of

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.convert.plan import Plan
    from moetool.tensors import DType

BLOCK = 4 << 20  # bytes read or written at a time
SHARE_S = 0.15  # for reading, and again for writing; a block begun in time is finished


@dataclass(frozen=True, slots=True)
class Speeds:
    """Bytes a second; None for what could not be measured. ``same_disk``: source and output."""

    read: float | None
    hashed: float | None
    written: float | None
    same_disk: bool
    seconds: float


def measure(extents: Sequence[Extent], out: Path) -> Speeds:
    """Read some of the source and write beside the output, about 0.5 s in all."""
    began = time.perf_counter()
    where = existing_parent(out)
    read, hashed = read_speeds(extents)
    written = _write(where)
    files = {extent.path for extent in extents}
    places = {place for path in files for place in parts_of(path) or (path,)}
    devices = {path.stat().st_dev for path in places if path.exists()}
    seconds = time.perf_counter() - began
    return Speeds(read, hashed, written, where.stat().st_dev in devices, seconds)


def estimate_s(speeds: Speeds, n_read: int, n_written: int, n_again: int = 0) -> float | None:
    """The seconds that a conversion would take at these speeds; None where one is not known.

    Reading and writing share a disk or go on at once; hashing goes on beside both. ``n_again``
    bytes are read behind it, to be compared. What is computed (transposes, casts) is not in it.
    """
    if not (speeds.read and speeds.hashed and speeds.written):
        return None
    reading, writing = n_read / speeds.read, n_written / speeds.written
    moving = reading + writing if speeds.same_disk else max(reading, writing)
    return max(moving, n_written / speeds.hashed) + n_again / speeds.read


def quantising_s(plan: Plan) -> float:
    """The seconds that the processors need to quantise; nothing where nothing is quantised.

    Measured with one piece of normal weights for each type of block, on one thread.
    """
    numel: Counter[DType] = Counter()
    for step in plan.steps:
        for part in step.parts:
            if part.cast and part.cast.target in BLOCKS:
                numel[part.cast.target] += part.shape[0] * part.shape[1]
    if not numel:
        return 0.0
    import torch

    from moetool.convert.stream import on_one_thread
    from moetool.quant import encode

    rows = torch.randn(QUANTISED_NUMEL // 1024, 1024, generator=torch.Generator().manual_seed(0))
    total = 0.0
    with on_one_thread():
        for dtype, count in numel.items():
            encode(rows[:1], dtype)  # what is compiled is compiled now
            began = time.perf_counter()
            encode(rows, dtype)
            total += (time.perf_counter() - began) * count / rows.numel()
    return total / QUANTISERS


def read_speeds(extents: Sequence[Extent]) -> tuple[float | None, float | None]:
    """Bytes a second that are read, and that are hashed; None where they cannot be read."""
    n_read, reading, hashing = 0, 0.0, 0.0
    try:
        for extent, offset in _places(extents):
            place = next(on_disk(Extent(extent.path, offset, min(BLOCK, extent.end - offset))))
            with place.path.open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), place.offset, place.nbytes, os.POSIX_FADV_DONTNEED)
                began = time.perf_counter()
                block = os.pread(file.fileno(), place.nbytes, place.offset)
                read = time.perf_counter()
                hashlib.sha256(block)
                hashing += time.perf_counter() - read
                reading += read - began
                n_read += len(block)
            if reading + hashing > SHARE_S:
                break
    except OSError:
        return None, None
    return (n_read / reading, n_read / hashing) if n_read else (None, None)


def _places(extents: Sequence[Extent]) -> Iterator[tuple[Extent, int]]:
    """Blocks of the source, each far from the one before it where the source is large."""
    large = [extent for extent in extents if extent.nbytes >= BLOCK]  # a norm tells of seeks only
    blocks = [
        (extent, offset)
        for extent in large or extents
        for offset in range(extent.offset, extent.end, BLOCK)
    ]
    # A stride near the golden section of the count spreads any number of first blocks evenly.
    count = len(blocks)
    stride = max(1, round(count * 0.618))
    seen: set[int] = set()
    at = 0
    while len(seen) < count:
        while at in seen:
            at = (at + 1) % count
        seen.add(at)
        yield blocks[at]
        at = (at + stride) % count


def _write(folder: Path) -> float | None:
    block, n_written = os.urandom(BLOCK), 0
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            began = time.perf_counter()
            while (seconds := time.perf_counter() - began) < SHARE_S:
                n_written += os.write(file.fileno(), block)
                os.fdatasync(file.fileno())
            return n_written / seconds
    except OSError:
        return None  # a full disk or a folder that cannot be written: there is nothing to say
