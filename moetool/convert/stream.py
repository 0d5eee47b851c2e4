"""Run one step: the bytes of a target tensor, a chunk at a time.

Copies and row reorderings are done on bytes, without torch; a transpose or a cast holds the
matrix of one expert at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moetool.convert.ops import Cast, Halve, Interleave, Reorder, Transpose
from moetool.convert.plan import COPY_CHUNK, Part, Step
from moetool.tensors import Buffer, Checkpoint, DType

if TYPE_CHECKING:
    import torch


def stream(checkpoint: Checkpoint, step: Step) -> Iterator[Buffer]:
    """Yield the stored bytes of a step's target, in order."""
    for part in step.parts:
        yield from _stream_part(checkpoint, part)


def _stream_part(checkpoint: Checkpoint, part: Part) -> Iterator[Buffer]:
    match part.ops:
        case ():
            start, stop = part.byte_range
            for at in range(start, stop, COPY_CHUNK):
                yield checkpoint.read(part.source, at, min(at + COPY_CHUNK, stop))
        case (Halve() | Interleave() as op,):
            yield from _reorder_rows(checkpoint, part, op)
        case _:
            yield _compute(checkpoint, part)


def _reorder_rows(checkpoint: Checkpoint, part: Part, op: Reorder) -> Iterator[Buffer]:
    """Reorder the rows of one head at a time: at most one head is in memory."""
    head_rows = part.shape[0] // op.n_heads
    order, size = op.order(head_rows), part.row_nbytes
    for head in range(op.n_heads):
        at = (part.start + head * head_rows) * size
        block = memoryview(checkpoint.read(part.source, at, at + head_rows * size))
        yield b"".join(block[row * size : (row + 1) * size] for row in order)


def _compute(checkpoint: Checkpoint, part: Part) -> Buffer:
    tensor = to_torch(checkpoint.read(part.source, *part.byte_range), part.dtype, part.shape)
    for op in part.ops:
        match op:
            case Transpose():
                tensor = tensor.T
            case Halve() | Interleave():
                tensor = _reordered(tensor, op)
            case Cast(_, target):
                tensor = tensor.to(torch_dtype(target))
    return to_bytes(tensor)


def _reordered(tensor: torch.Tensor, op: Reorder) -> torch.Tensor:
    rows, columns = tensor.shape
    heads = tensor.view(op.n_heads, rows // op.n_heads, columns)
    return heads[:, op.order(rows // op.n_heads)].reshape(rows, columns)


def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch type of the same bytes."""
    import torch

    return {
        DType.F64: torch.float64,
        DType.F32: torch.float32,
        DType.F16: torch.float16,
        DType.BF16: torch.bfloat16,
    }[dtype]


def to_torch(buffer: Buffer, dtype: DType, shape: tuple[int, ...]) -> torch.Tensor:
    """See bytes as a tensor; they are copied only where torch could not write to them."""
    import torch

    writable = buffer if isinstance(buffer, bytearray) else bytearray(buffer)
    return torch.frombuffer(writable, dtype=torch_dtype(dtype)).view(shape)


def to_bytes(tensor: torch.Tensor) -> bytearray:
    """The elements of a tensor, row-major; torch alone does it, numpy need not be installed."""
    import torch

    flat = tensor.contiguous().view(-1).view(torch.uint8)
    buffer = bytearray(flat.numel())
    torch.frombuffer(buffer, dtype=torch.uint8).copy_(flat)
    return buffer
