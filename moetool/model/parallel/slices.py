"""The rows or columns that one rank keeps of each matrix, as a checkpoint of its own.

    wq wk wv w1 w3 output   rows       whole heads, a part of the hidden dim or of the vocabulary
    wo w2                   columns    what is multiplied with the above
    all else                whole      norms, router, embeddings

Rows of a matrix that is stored as it is used, or head by head, are a range of bytes: nothing else
is read. Columns are cut from whole rows, and so are rows of what is stored transposed: there the
matrix is read a few MiB at a time, and only the share is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING

import torch

from moetool.convert.ops import Halve, Interleave, Op
from moetool.convert.pieces import whole_rows
from moetool.convert.plan import Part, Step
from moetool.convert.stream import stream, to_bytes
from moetool.errors import UsageFault
from moetool.tensors import Catalog, TensorInfo

if TYPE_CHECKING:
    from moetool.arch.args import ModelArgs
    from moetool.tensors import Buffer, Checkpoint

BY_ROWS = {"wq", "wk", "wv", "w1", "w3", "output"}
BY_COLUMNS = {"wo", "w2"}
DIVIDED = ("n_kv_heads", "hidden_dim", "vocab_size")
PIECE = 4 << 20  # bytes of a matrix that columns are cut from at a time


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows and columns of one tensor; a vector is one column."""

    rows: range
    columns: range


def refuse_uneven(args: ModelArgs, n_ranks: int) -> None:
    """Every rank must get as much as every other.

    Raises:
        UsageFault: with every dimension that the ranks do not divide.
    """
    uneven = [
        f"{name} is {getattr(args, name)}" for name in DIVIDED if getattr(args, name) % n_ranks
    ]
    if uneven:
        raise UsageFault(
            f"tensors cannot be split evenly over {n_ranks} ranks",
            findings=tuple(uneven),
            hint=f"--nproc-per-node that divides {args.n_kv_heads}, or --parallel pipeline",
        )


def cut_for(info: TensorInfo, rank: int, n_ranks: int) -> Cut:
    """What a rank keeps of a raw tensor."""
    n_rows, n_columns = (*info.shape, 1)[:2]
    kind = info.name.removesuffix(".weight").rpartition(".")[2]
    return Cut(
        _part(n_rows, rank, n_ranks if kind in BY_ROWS else 1),
        _part(n_columns, rank, n_ranks if kind in BY_COLUMNS else 1),
    )


def _part(n: int, rank: int, n_parts: int) -> range:
    each = n // n_parts
    start = each * rank if n_parts > 1 else 0
    return range(start, start + each)


class SlicedCheckpoint:
    """The share of one rank; a `Checkpoint` in raw names, whose `steps` copy.

    ``nbytes_read`` counts what was taken from the source, columns that are not kept included.
    """

    def __init__(
        self, source: Checkpoint, steps: Mapping[str, Step], rank: int, n_ranks: int
    ) -> None:
        self._source, self._steps = source, steps
        self._cuts = {name: cut_for(step.target, rank, n_ranks) for name, step in steps.items()}
        self._made: dict[str, bytearray] = {}
        self._counting = Lock()
        self.nbytes_read = 0
        infos = {name: self._kept(step.target) for name, step in steps.items()}
        self.catalog = Catalog(source.catalog.format, infos, {})
        self.steps = {name: Step(info, (_copy(info),)) for name, info in infos.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Buffer:
        """Read bytes of a share; it is made at the first read of it, and dropped at the last."""
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = self._make(name)
        if stop is None or stop >= len(made):
            self._made.pop(name, None)
        return memoryview(made)[start:stop]

    def _kept(self, info: TensorInfo) -> TensorInfo:
        cut = self._cuts[info.name]
        return replace(info, shape=(len(cut.rows), len(cut.columns))[: len(info.shape)])

    def _make(self, name: str) -> bytearray:
        step, cut = self._steps[name], self._cuts[name]
        narrow = rows_of(step, cut.rows)
        rows = cut.rows if narrow is None else range(len(cut.rows))
        read = narrow or step
        width = step.target.dtype.type_size
        columns = slice(cut.columns.start * width, cut.columns.stop * width)
        row_nbytes = step.target.row_nbytes
        kept, top = bytearray(), 0
        for piece in whole_rows(stream(self._source, read), row_nbytes, PIECE):
            block = torch.frombuffer(piece, dtype=torch.uint8).view(-1, row_nbytes)
            wanted = slice(max(rows.start - top, 0), max(rows.stop - top, 0))
            kept += to_bytes(block[wanted, columns])
            top += len(block)
        with self._counting:
            self.nbytes_read += sum(part.nbytes for part in read.parts)
        return kept


def _copy(info: TensorInfo) -> Part:
    n_rows, n_columns = (*info.shape, 1)[:2]
    return Part(info.name, 0, n_rows, n_columns, info.dtype, ())


def rows_of(step: Step, rows: range) -> Step | None:
    """The step that makes these rows and reads no others; None where all must be read."""
    if len(step.parts) != 1:
        return None
    part = step.parts[0]
    ops = [_of_rows(op, part.stop - part.start, rows) for op in part.ops]
    if len(step.target.shape) == 1 or None in ops:
        return None
    narrow = replace(
        part,
        start=part.start + rows.start,
        stop=part.start + rows.stop,
        ops=tuple(op for op in ops if op is not None),
    )
    return Step(replace(step.target, shape=(len(rows), *step.target.shape[1:])), (narrow,))


def _of_rows(op: Op, n_rows: int, rows: range) -> Op | None:
    """The op on these rows alone; None where it needs others."""
    match op:
        case Halve(n_heads) | Interleave(n_heads):
            height = n_rows // n_heads
            if rows.start % height or rows.stop % height:
                return None
            return replace(op, n_heads=len(rows) // height)
        case _:
            return None
