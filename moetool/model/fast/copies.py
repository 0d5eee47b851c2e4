"""The seam to a GPU's queues: copies beside the computing, and marks to wait for.

Work given to a device is done later, in the order of its queue (a CUDA stream). There are two: the
computing one, which everything goes to that says nothing else, and one for copies. A `Mark` stands
in a queue behind what was given to it so far. On a CPU all is done when it is asked for.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Mark(Protocol):
    """A place in a queue."""

    def wait(self) -> None:
        """Hold up the host until the device has come here."""
        ...

    def hold(self) -> None:
        """Hold up the computing queue until then; the host goes on."""
        ...


class Copies(Protocol):
    """What is done beside the computing."""

    def staging(self, numel: int, dtype: torch.dtype) -> Tensor:
        """Host memory that a device copies from and to without help of the host."""
        ...

    def copy(self, target: Tensor, source: Tensor, after: Mark | None) -> Mark:
        """Begin a copy to the device, behind earlier copies and behind ``after``; mark its end."""
        ...

    def mark(self) -> Mark:
        """Mark the end of what the computing queue has now."""
        ...


class Reached:
    """A mark that the device is at already."""

    def wait(self) -> None:
        """It was reached."""

    def hold(self) -> None:
        """It was reached."""


class AtOnce:
    """Everything when it is asked for."""

    def staging(self, numel: int, dtype: torch.dtype) -> Tensor:
        """Take ordinary memory."""
        return torch.empty(numel, dtype=dtype)

    def copy(self, target: Tensor, source: Tensor, after: Mark | None) -> Mark:
        """Copy now."""
        if after:
            after.wait()
        target.copy_(source)
        return Reached()

    def mark(self) -> Mark:
        """All before is done."""
        return Reached()


class CudaMark:
    """A CUDA event, recorded."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.event.record(stream)

    def wait(self) -> None:
        """Hold up the host."""
        self.event.synchronize()

    def hold(self) -> None:
        """Hold up the current stream."""
        torch.cuda.current_stream().wait_event(self.event)


class CudaCopies:
    """A stream of its own, and pinned memory.

    Its memory must outlive the copies: slabs and staging buffers that are taken once do.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def staging(self, numel: int, dtype: torch.dtype) -> Tensor:
        """Take memory that the system will not move."""
        return torch.empty(numel, dtype=dtype, pin_memory=True)

    def copy(self, target: Tensor, source: Tensor, after: Mark | None) -> Mark:
        """Queue a copy; may be called from any thread."""
        with torch.cuda.stream(self._stream):
            if after:
                after.hold()
            target.copy_(source, non_blocking=True)
        return CudaMark(self._stream)

    def mark(self) -> Mark:
        """Record an event on the computing stream."""
        return CudaMark(torch.cuda.current_stream(self.device))


def copies_for(device: torch.device) -> Copies:
    """The copies of a device."""
    return CudaCopies(device) if device.type == "cuda" else AtOnce()
