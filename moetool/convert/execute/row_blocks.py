"""Digests of blocks of rows: they say where in a tensor of hundreds of megabytes a byte went wrong.

A block is whole rows of the stored matrix: a sixteenth of the tensor, at least a page and at most
as much as a piece of a large torrent. A checkpoint of 87 GB has 24,000 of them, which take 400 KB
of its manifest and, as XXH3-64, a tenth of a second of each gigabyte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.release.verify.digests import HASHES, BlockHash

if TYPE_CHECKING:
    from moetool.tensors import Buffer, TensorInfo

PARTS = 16
MIN_NBYTES, MAX_NBYTES = 4 << 10, 4 << 20


@dataclass(frozen=True, slots=True)
class RowBlocks:
    """A tensor's blocks of ``rows`` rows, the last with what is left, and the digest of each."""

    rows: int
    xxh3_64: tuple[str, ...]


class RowBlocksHash:
    """Hashes a tensor's bytes, a block of rows at a time."""

    def __init__(self, info: TensorInfo) -> None:
        self.rows = rows_of_a_block(info)
        self._blocks = BlockHash(HASHES["xxh3_64"], self.rows * info.row_nbytes)

    def update(self, content: Buffer) -> None:
        """Take the next bytes, however they are cut."""
        self._blocks.update(memoryview(content).cast("B"))

    def finish(self) -> RowBlocks:
        """The blocks, once all bytes were taken."""
        return RowBlocks(self.rows, self._blocks.finish())


def rows_of_a_block(info: TensorInfo) -> int:
    """How many rows of a tensor share a digest; at least one, however long a row is."""
    wanted = min(max(info.nbytes // PARTS, MIN_NBYTES), MAX_NBYTES)
    return max(wanted // info.row_nbytes, 1)


def spans(info: TensorInfo, rows: int) -> Iterator[tuple[int, int]]:
    """First byte and length of each block of ``rows`` rows, counted from the tensor's start."""
    step = rows * info.row_nbytes
    for start in range(0, info.nbytes, step):
        yield start, min(step, info.nbytes - start)
