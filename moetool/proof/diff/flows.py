"""A tensor of A in another order, as it would be read had something gone wrong; and single values.

Each flow gives the bytes of a whole tensor in one type, a few MiB at a time, so that it can be held
against what B has: byte for byte, stopping where they part.

    reordered    the rows of each head in another order             one head is held
    transposed   rows and columns swapped, read row by row          `HELD_NBYTES` are held
    chosen_rows  rows of one or two tensors, in an order of theirs  one chunk of each is held
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from moetool.convert.ops import Halve, Interleave, Transpose, simplify
from moetool.convert.plan import COPY_CHUNK, HELD_NBYTES, Step
from moetool.convert.stream import stream, to_bytes, to_torch, torch_dtype, values_of
from moetool.proof.narrow import in_type
from moetool.tensors import TensorInfo

if TYPE_CHECKING:
    from moetool.arch.schema import Slot
    from moetool.proof.canonical import Weights
    from moetool.tensors import Buffer, DType


def plain(weights: Weights, slot: Slot, dtype: DType) -> Iterator[Buffer]:
    """The values of a tensor as they are, in a type that holds them.

    Raises:
        NotHeldError: it does not hold them.
    """
    return in_type(weights.read(slot), weights.info(slot).dtype, dtype)


def reordered(weights: Weights, slot: Slot, dtype: DType, order: list[int]) -> Iterator[Buffer]:
    """The rows of each head in another order; ``order`` gives for each row the one it is."""
    size = dtype.nbytes(weights.info(slot).shape[-1])
    for head in _cut(plain(weights, slot, dtype), size * len(order)):
        view = memoryview(head)
        yield b"".join(view[row * size : (row + 1) * size] for row in order)


def transposed(weights: Weights, slot: Slot, dtype: DType) -> Iterator[Buffer]:
    """The values of a matrix column by column."""
    info, step = weights.info(slot), weights.steps[slot]
    ops = simplify([*step.parts[0].ops, Transpose()])
    if len(ops) > 1:
        yield from columns(weights, slot, dtype, info.shape)
        return
    turned = Step(
        TensorInfo(info.name, info.dtype, info.shape[::-1]), (replace(step.parts[0], ops=ops),)
    )
    yield from in_type(stream(weights.checkpoint, turned), info.dtype, dtype)


def columns(weights: Weights, slot: Slot, dtype: DType, shape: tuple[int, ...]) -> Iterator[Buffer]:
    """The values column by column, seen as a matrix of another shape or stored in another order.

    The tensor is read once for each group of columns that a quarter of `HELD_NBYTES` holds:
    reading it may hold a group of its own.
    """
    import torch

    info = weights.info(slot)
    rows, row_numel = shape
    width = max(1, HELD_NBYTES // 4 // (rows * info.dtype.type_size))
    size = info.dtype.nbytes(row_numel)
    height = max(1, COPY_CHUNK // 8 // size)
    for left in range(0, row_numel, width):
        held = torch.empty(rows, min(width, row_numel - left), dtype=torch_dtype(info.dtype))
        for number, block in enumerate(_cut(weights.read(slot), height * size)):
            top = number * height
            few = to_torch(block, info.dtype, (-1, row_numel))
            held[top : top + len(few)] = few[:, left : left + width]
        high = max(1, COPY_CHUNK // 4 // (rows * info.dtype.type_size))
        for top in range(0, held.shape[1], high):
            yield from in_type([to_bytes(held[:, top : top + high].T)], info.dtype, dtype)


def chosen_rows(
    weights: Weights, sources: Iterable[tuple[Slot, range]], dtype: DType
) -> Iterator[Buffer]:
    """One row of each source in turn: those that its range names, all ranges being as long."""
    each = [_rows(weights, slot, dtype, wanted) for slot, wanted in sources]
    for rows in zip(*each, strict=True):
        yield b"".join(rows)


def rows_of_all(
    weights: Weights, sources: Iterable[tuple[Slot, range]], dtype: DType
) -> Iterator[Buffer]:
    """The rows that the range of the first source names, then those of the next."""
    for slot, wanted in sources:
        yield from _rows(weights, slot, dtype, wanted)


def _rows(weights: Weights, slot: Slot, dtype: DType, wanted: range) -> Iterator[bytes]:
    size = dtype.nbytes(weights.info(slot).shape[-1])
    for number, row in enumerate(_cut(plain(weights, slot, dtype), size)):
        if number in wanted:
            yield row


def _cut(blocks: Iterable[Buffer], size: int) -> Iterator[bytes]:
    """Cut a flow into pieces of ``size`` bytes; the last may be shorter."""
    rest = b""
    for block in blocks:
        view = memoryview(block)
        at = min(size - len(rest), len(view)) if rest else 0
        rest += view[:at]
        if len(rest) == size:
            yield rest
            rest = b""
        if rest:
            continue
        whole = at + (len(view) - at) // size * size
        for start in range(at, whole, size):
            yield bytes(view[start : start + size])
        rest = bytes(view[whole:])
    if rest:
        yield rest


def same(left: Iterator[Buffer], right: Iterator[Buffer]) -> bool:
    """Whether two flows are the same bytes; neither is read beyond the first that differ."""
    x = y = memoryview(b"")
    while True:
        x = x or memoryview(next(left, b""))
        y = y or memoryview(next(right, b""))
        n = min(len(x), len(y))
        if not n:
            return len(x) == len(y)
        if bytes(x[:n]) != bytes(y[:n]):  # views are compared item by item, which is slow
            return False
        x, y = x[n:], y[n:]


def value_at(weights: Weights, slot: Slot, index: int) -> float:
    """One value of a canonical tensor by its row-major index, wherever it is stored."""
    part, info = weights.steps[slot].parts[0], weights.info(slot)
    shape = (part.rows_out, info.numel // part.rows_out)
    row, column = divmod(index, shape[1])
    for op in reversed(part.moves):
        match op:
            case Transpose():
                row, column = column, row
            case Halve(n_heads) | Interleave(n_heads):
                head_rows = part.shape[0] // n_heads
                head, within = divmod(row, head_rows)
                row = head * head_rows + op.order(head_rows)[within]
    size, (block, within) = part.dtype.type_size, divmod(column, part.dtype.block_size)
    at = (part.start + row) * part.row_nbytes + block * size
    content = weights.checkpoint.read(part.source, at, at + size)
    return float(values_of(content, part.dtype)[within])
