"""Weights on their way to the device: a thread, two pinned buffers, the queue of copies.

Ordinary memory cannot be copied from while the host does something else, and 90 GB cannot be
pinned. So matrices go piece by piece through two small buffers: while one is being copied to the
device the thread fills the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.model.fast.copies import Copies, Mark

PIECE = 32 << 20  # bytes: a millisecond on the bus, long beside what starting a copy takes


class Feed:
    """Sends matrices to places on the device, one after the other. `close` it."""

    def __init__(self, copies: Copies, dtype: torch.dtype, piece_nbytes: int = PIECE) -> None:
        self._copies = copies
        self._numel = max(1, piece_nbytes // dtype.itemsize)
        self._buffers = [copies.staging(self._numel, dtype) for _ in range(2)]
        self._copied: list[Mark | None] = [None, None]
        self._turn = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")

    def send(
        self, read: Callable[[], Sequence[Tensor]], target: Tensor, after: Mark | None
    ) -> Future[Mark]:
        """Begin to fill a place with matrices, one behind the other, once ``after`` is reached.

        ``read`` is called by the thread. The result marks the end of the last copy.
        """
        return self._thread.submit(self._send, read, target, after)

    def _send(
        self, read: Callable[[], Sequence[Tensor]], target: Tensor, after: Mark | None
    ) -> Mark:
        at = 0
        for matrix in read():
            for piece in torch.split(matrix.flatten(), self._numel):
                after = self._copy(target[at : at + len(piece)], piece, after)
                at += len(piece)
        assert after is not None, "an expert is not empty"
        return after

    def _copy(self, target: Tensor, piece: Tensor, after: Mark | None) -> Mark:
        turn, self._turn = self._turn, 1 - self._turn
        if before := self._copied[turn]:
            before.wait()  # what this buffer held is still being copied
        buffer = self._buffers[turn][: len(piece)]
        buffer.copy_(piece)
        copied = self._copied[turn] = self._copies.copy(target, buffer, after)
        return copied

    def close(self) -> None:
        """Stop; closing twice is harmless."""
        self._thread.shutdown(cancel_futures=True)
