"""Run one step: the bytes of a target tensor, a chunk at a time.

A part goes through two stages: its rows are laid out (copied, reordered head by head, transposed),
then cast. Copies, row reorderings and the widening of a norm or a router are done on bytes, without
torch; a transpose holds `HELD_NBYTES` of a matrix; any other cast holds `CAST_NUMEL` values.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from moetool.convert.casts import CastAccount, Tally
from moetool.convert.ops import Cast, Halve, Interleave, Reorder, Transpose
from moetool.convert.plan import BLOCKS, CAST_NUMEL, COPY_CHUNK, HELD_NBYTES, Part, Plan, Step
from moetool.convert.quantised.rows import Unfit, quantised
from moetool.heap import limit_heap
from moetool.tensors import Buffer, Checkpoint, DType

if TYPE_CHECKING:
    import torch


def stream(
    checkpoint: Checkpoint, step: Step, casts: CastAccount | None = None
) -> Iterator[Buffer]:
    """Yield the stored bytes of a step's target, in order; ``casts`` counts what is changed.

    Raises:
        LossyCast: values that may not change would, or a type of blocks cannot store them.
    """
    account = casts or CastAccount(allow_overflow=True)
    row, unfit = 0, Unfit()
    importance = account.importance.get(step.target.name, [None] * len(step.parts))
    for part, weight in zip(step.parts, importance, strict=True):
        if part.cast is None:
            yield from _laid_out(checkpoint, part)
        else:
            tally, laid_out = Tally(), _laid_out(checkpoint, part)
            if part.cast.target in BLOCKS:
                columns = step.target.shape[-1]
                unfit += yield from quantised(laid_out, columns, part.cast, tally, weight)
            else:
                yield from _cast(laid_out, part, part.cast, tally)
            account.add(step.target, part, part.cast, tally, row)
        row += part.rows_out
    unfit.refuse(step.target)


@contextmanager
def computing(plan: Plan) -> Iterator[None]:
    """Have torch compute on one thread and reuse memory, where a plan computes at all.

    Hashing and writing take the other cores. A second thread of torch's waits for its share by
    spinning, which was measured to take three times as long where there are two cores.
    """
    if not any(part.needs_torch for step in plan.steps for part in step.parts):
        yield
        return
    with on_one_thread():
        yield


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Have torch compute on one thread and reuse memory; see `computing`."""
    import torch

    _keep_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _keep_memory() -> None:
    """Have malloc keep freed blocks: giving each back and having it zeroed anew took a quarter.

    Blocks are of a few MiB, which glibc maps and unmaps by default (mallopt(3)). What is larger is
    still mapped: in a heap of small blocks it would leave holes that nothing else of its size fits.
    """
    limit_heap(kept_nbytes=64 << 20, mapped_nbytes=8 << 20)


def _laid_out(checkpoint: Checkpoint, part: Part) -> Iterator[Buffer]:
    """The rows of a part in their new order, in the type of the source."""
    match part.moves:
        case ():
            start, stop = part.byte_range
            chunk = COPY_CHUNK // part.dtype.type_size * part.dtype.type_size  # whole blocks
            for at in range(start, stop, chunk):
                yield checkpoint.read(part.source, at, min(at + chunk, stop))
        case (Halve() | Interleave() as op,):
            yield from _reorder_rows(checkpoint, part, op)
        case (Transpose(),):
            yield from _transposed(checkpoint, part)
        case _:  # no convention has both; what the ops say is done all the same
            yield from _rearranged(checkpoint, part)


def _reorder_rows(checkpoint: Checkpoint, part: Part, op: Reorder) -> Iterator[Buffer]:
    """Reorder the rows of one head at a time: at most one head is in memory."""
    head_rows = part.shape[0] // op.n_heads
    order, size = op.order(head_rows), part.row_nbytes
    for head in range(op.n_heads):
        at = (part.start + head * head_rows) * size
        block = memoryview(checkpoint.read(part.source, at, at + head_rows * size))
        yield b"".join(block[row * size : (row + 1) * size] for row in order)


def _transposed(checkpoint: Checkpoint, part: Part) -> Iterator[Buffer]:
    """Turn columns into rows, as many at a time as `HELD_NBYTES` hold of them.

    The matrix is read once for each group of columns: from the second time on it comes out of the
    system's cache, and a packed expert of 117 MB never is in memory.
    """
    import torch

    rows, columns = part.shape
    width = max(1, HELD_NBYTES // (rows * part.dtype.type_size))
    height = max(1, COPY_CHUNK // part.row_nbytes)
    dtype = torch_dtype(part.dtype)
    read = checkpoint.read
    kept = torch.empty(rows, min(width, columns), dtype=dtype)
    for left in range(0, columns, width):
        held = kept[:, : columns - left]
        for top in range(0, rows, height):
            bottom = min(top + height, rows)
            at = (part.start + top) * part.row_nbytes
            content = read(part.source, at, at + (bottom - top) * part.row_nbytes)
            block = _read_only(content, part.dtype).view(bottom - top, columns)
            held[top:bottom] = block[:, left : left + held.shape[1]]
        high = max(1, COPY_CHUNK // (rows * part.dtype.type_size))
        for top in range(0, held.shape[1], high):
            yield to_bytes(held[:, top : top + high].T)
        read = getattr(checkpoint, "read_again", checkpoint.read)


def _rearranged(checkpoint: Checkpoint, part: Part) -> Iterator[Buffer]:
    """Hold a matrix, see it transposed, and give its new rows a slab at a time."""
    tensor = to_torch(_whole(checkpoint, part), part.dtype, part.shape)
    for op in part.moves:
        match op:
            case Transpose():
                tensor = tensor.T
            case Halve() | Interleave():
                tensor = _reordered(tensor, op)
    rows = max(1, COPY_CHUNK // (tensor.shape[1] * tensor.itemsize))
    for at in range(0, len(tensor), rows):
        yield to_bytes(tensor[at : at + rows])


def _whole(checkpoint: Checkpoint, part: Part) -> bytearray:
    """All bytes of a part, in memory once: torch can use what it may write to."""
    whole, (start, stop) = bytearray(part.nbytes), part.byte_range
    for at in range(start, stop, COPY_CHUNK):
        end = min(at + COPY_CHUNK, stop)
        whole[at - start : end - start] = checkpoint.read(part.source, at, end)
    return whole


def _cast(blocks: Iterator[Buffer], part: Part, cast: Cast, tally: Tally) -> Iterator[Buffer]:
    if not part.needs_torch:
        yield from (tally.widen_bf16(bytes(block)) for block in blocks)
        return
    import torch

    if cast.source in BLOCKS:
        yield from _decoded(blocks, cast, tally)
        return
    dtype = torch_dtype(cast.target)
    for block in _ahead(blocks) if part.nbytes > COPY_CHUNK else blocks:
        before = _read_only(block, cast.source)
        made = bytearray(before.numel() * cast.target.type_size)
        after = torch.frombuffer(made, dtype=dtype)
        for at in range(0, before.numel(), CAST_NUMEL):
            few = slice(at, at + CAST_NUMEL)
            tally.cast(before[few], after[few])
        yield made


def _decoded(blocks: Iterator[Buffer], cast: Cast, tally: Tally) -> Iterator[Buffer]:
    """The weights of quantised blocks; in float32 they are what the format defines."""
    import torch

    few = CAST_NUMEL // cast.source.block_size * cast.source.type_size
    for block in blocks:
        whole = memoryview(block).cast("B")
        for at in range(0, len(whole), few):
            weights = values_of(whole[at : at + few], cast.source)
            made = bytearray(weights.numel() * cast.target.type_size)
            tally.cast(weights, torch.frombuffer(made, dtype=torch_dtype(cast.target)))
            yield made


def _ahead(blocks: Iterator[Buffer]) -> Iterator[Buffer]:
    """Read and check one block while the one before it is computed with."""
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        coming = pool.submit(next, blocks, b"")
        while block := coming.result():
            coming = pool.submit(next, blocks, b"")
            yield block


def _read_only(buffer: Buffer, dtype: DType) -> torch.Tensor:
    """See bytes as a flat tensor to which nobody writes, without a copy."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.frombuffer(buffer, dtype=torch_dtype(dtype))


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
        DType.U8: torch.uint8,
    }[dtype]


def to_torch(buffer: Buffer, dtype: DType, shape: tuple[int, ...]) -> torch.Tensor:
    """See bytes as a tensor; they are copied only where torch could not write to them."""
    import torch

    writable = buffer if isinstance(buffer, bytearray) else bytearray(buffer)
    return torch.frombuffer(writable, dtype=torch_dtype(dtype)).view(shape)


def values_of(buffer: Buffer, dtype: DType) -> torch.Tensor:
    """The values that stored bytes stand for, flat: what is quantised is decoded to float32."""
    if dtype not in BLOCKS:
        return to_torch(buffer, dtype, (-1,))
    from moetool.quant import decode

    return decode(to_torch(buffer, DType.U8, (-1,)), dtype)


def to_bytes(tensor: torch.Tensor) -> bytearray:
    """The elements of a tensor, row-major; torch alone does it, numpy need not be installed."""
    import torch

    buffer = bytearray(tensor.numel() * tensor.itemsize)
    if buffer:  # torch sees no tensor in an empty one
        torch.frombuffer(buffer, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
    return buffer
