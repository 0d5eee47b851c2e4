"""A conversion is computed, not written: two conventions in, steps out.

    source table ── where is each slot? ──┐
                                          ├─ for each stored tensor of the target:
    target table ── what fills each row? ─┘     parts (rows of a source tensor + ops), in order

The ops of a part are "to canonical" of the source followed by "from canonical" of the target, with
whatever undoes itself dropped. Where nothing is left the part is a byte copy, and neighbouring
parts that lie side by side in the source become one: resharding is such a plan. Nothing here
reads a weight: a plan can be printed for a checkpoint that is not on this machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.arch.schema import Cell, RopeLayout, StoredTensor
from moetool.convert.ops import Cast, Halve, Interleave, Move, Op, Transpose, simplify
from moetool.errors import Refused
from moetool.tensors import Catalog, DType, TensorInfo, main_dtype

if TYPE_CHECKING:
    from moetool.arch.args import ModelArgs

COPY_CHUNK = 2 << 20  # bytes read at a time where nothing is rearranged
HELD_NBYTES = 16 << 20  # held of a matrix that is being transposed
QUANTISED_NUMEL = 1 << 18  # weights quantised at a time by a thread
QUANTISED_NBYTES = QUANTISED_NUMEL * 48  # a piece: as stored, in float32, by groups, its levels
QUANTISERS = min(16, len(os.sched_getaffinity(0)))  # threads; for each, two more pieces wait
CAST_NUMEL = 1 << 18  # values cast at a time; with what is counted of them, a core's cache

FLOATS = frozenset({DType.F64, DType.F32, DType.F16, DType.BF16})
BLOCKS = frozenset({  # what moetool.quant decodes
    DType.Q8_0, DType.Q4_0, DType.Q4_1, DType.Q5_0, DType.Q5_1, DType.MXFP4,
    DType.Q2_K, DType.Q3_K, DType.Q4_K, DType.Q5_K, DType.Q6_K,
})  # fmt: skip
READABLE = FLOATS | BLOCKS  # what stands for values that are known here
HALF_WIDTH = frozenset({DType.F16, DType.BF16})


@dataclass(frozen=True, slots=True)
class Part:
    """Rows ``start:stop`` of a source tensor seen as ``[rows, columns]``, and their ops."""

    source: str
    start: int
    stop: int
    columns: int
    dtype: DType
    ops: tuple[Op, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns before the ops."""
        return (self.stop - self.start, self.columns)

    @property
    def row_nbytes(self) -> int:
        """The bytes of one source row."""
        return self.dtype.nbytes(self.columns)

    @property
    def nbytes(self) -> int:
        """The bytes read from the source."""
        return (self.stop - self.start) * self.row_nbytes

    @property
    def byte_range(self) -> tuple[int, int]:
        """Where the rows lie in the stored bytes of the source tensor."""
        return (self.start * self.row_nbytes, self.stop * self.row_nbytes)

    @property
    def moves(self) -> tuple[Move, ...]:
        """The ops that change where values lie."""
        return tuple(op for op in self.ops if not isinstance(op, Cast))

    @property
    def cast(self) -> Cast | None:
        """The cast behind the moves, if there is one."""
        return next((op for op in self.ops if isinstance(op, Cast)), None)

    @property
    def rows_out(self) -> int:
        """The rows of the target that the part fills."""
        shape = self.shape
        for op in self.ops:
            shape = op.infer(shape)
        return shape[0]

    @property
    def needs_torch(self) -> bool:
        """True where more is done than copying rows, or widening the few of a norm or a router."""
        cast, numel = self.cast, self.shape[0] * self.columns
        widened = cast and (cast.source, cast.target) == (DType.BF16, DType.F32)
        computed = cast and not (widened and numel <= CAST_NUMEL)
        return bool(computed) or any(isinstance(op, Transpose) for op in self.moves)

    def working_nbytes(self) -> int:
        """The most bytes held at once while the part streams through its two stages."""
        match self.moves:
            case ():
                held = block = min(self.nbytes, COPY_CHUNK)
            case (Halve(n_heads) | Interleave(n_heads),):
                block = self.nbytes // n_heads
                held = 2 * block
            case (Transpose(),):
                block = min(self.nbytes, COPY_CHUNK)
                held = min(self.nbytes, HELD_NBYTES) + 2 * block
            case moves:
                copies = sum(isinstance(op, Halve | Interleave) for op in moves)
                block = min(self.nbytes, COPY_CHUNK)
                held = (1 + copies) * self.nbytes + 2 * block
        if self.cast is None:
            return held
        source, target = self.cast.source.type_size, self.cast.target.type_size
        if self.cast.target in BLOCKS:
            return held + block + 3 * QUANTISERS * QUANTISED_NBYTES
        if self.cast.source in BLOCKS:  # a piece of weights, as bytes, as float32, and as fields
            return held + block + CAST_NUMEL * (target + 16)
        # The block that is read ahead, the one that is made, and of a few values: both types, and
        # both widened for the count.
        few = (source + target + 2 * max(4, source, target)) * CAST_NUMEL
        return held + block + block // source * target + few


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor of the target: its parts, one after another along the rows."""

    target: TensorInfo
    parts: tuple[Part, ...]

    @property
    def is_copy(self) -> bool:
        """True when the bytes are the source's own."""
        return not any(part.ops for part in self.parts)


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the output and the steps that fill it."""

    file_name: str
    steps: tuple[Step, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors, without the header."""
        return sum(step.target.nbytes for step in self.steps)


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps of a conversion, by output file."""

    shards: tuple[Shard, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps in the order in which they are written."""
        return tuple(step for shard in self.shards for step in shard.steps)

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors written."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def main_dtype(self) -> DType:
        """The type in which most bytes are written."""
        return main_dtype(step.target for step in self.steps)

    @property
    def copied_nbytes(self) -> int:
        """The bytes that are the source's own, untouched."""
        return sum(part.nbytes for step in self.steps for part in step.parts if not part.ops)

    @property
    def transformed_nbytes(self) -> int:
        """The bytes written that are computed: reordered, transposed or cast."""
        return self.nbytes - self.copied_nbytes

    @property
    def read_nbytes(self) -> int:
        """The bytes of weights read from the source."""
        return sum(part.nbytes for step in self.steps for part in step.parts)

    @property
    def unreadable(self) -> tuple[str, ...]:
        """The types written that are not decoded here: of their values nothing can be said."""
        kinds = {step.target.dtype for step in self.steps}
        return tuple(sorted(kind.label for kind in kinds - READABLE))

    @property
    def certified_nbytes(self) -> int:
        """What is read of source and output when the values of both are compared."""
        return self.read_nbytes + self.nbytes

    @property
    def peak_nbytes(self) -> int:
        """The most bytes of weights held at once."""
        return max((part.working_nbytes() for step in self.steps for part in step.parts), default=0)


def derive_steps(
    catalog: Catalog,
    source: Mapping[str, StoredTensor],
    target: Mapping[str, StoredTensor],
    args: ModelArgs,
    *,
    dtype: DType | None = None,
    restore: bool = False,
    decoded: DType | None = None,
    types: Mapping[str, DType] | None = None,
) -> tuple[Step, ...]:
    """Derive the steps that turn one layout into another.

    ``dtype``: the storage type of the target; None keeps what the source has. Tensors that the
    target holds in full precision become f32 either way. ``restore``: what the source holds in
    full precision by its own rule goes back to the type of the rest; the cast is exact, so values
    that were not merely widened are refused when they are met. ``decoded``: the type of what is
    stored in quantised blocks; None leaves the blocks as they are. ``types``: the type of each
    tensor of the target, as a mix chooses it.

    Raises:
        Refused: a tensor is stored in a type that cannot be transposed or cast.
    """
    places = {cell.slot: (stored, cell) for stored in source.values() for cell in stored.cells}
    main = main_dtype(catalog.tensors.values()) if restore else None
    steps = []
    for stored in target.values():
        held = {places[cell.slot][0].name: places[cell.slot][0] for cell in stored.cells}
        kept = dtype or _common({_kept(catalog, found, main) for found in held.values()})
        if decoded and kept in BLOCKS:
            kept = decoded
        wanted = DType.F32 if stored.full_precision else types[stored.name] if types else kept
        bridge = _Bridge(catalog, args, wanted, exact=dtype is None and types is None)
        parts = [bridge.part(*places[cell.slot], cell) for cell in stored.cells]
        steps.append(Step(TensorInfo(stored.name, wanted, stored.shape), _merge(parts)))
    return tuple(steps)


def assign_shards(
    steps: Sequence[Step], single: str, numbered: str, max_nbytes: int | None
) -> tuple[Shard, ...]:
    """Fill files in order, each up to ``max_nbytes``; a larger tensor gets a file of its own.

    ``single`` names the file where one is enough, ``numbered`` (with ``{index}`` from 1,
    ``{index0}`` from 0 and ``{count}``) each of several.
    """
    groups: list[list[Step]] = [[]]
    filled = 0
    for step in steps:
        if groups[-1] and max_nbytes is not None and filled + step.target.nbytes > max_nbytes:
            groups.append([])
            filled = 0
        groups[-1].append(step)
        filled += step.target.nbytes
    if len(groups) == 1:
        return (Shard(single, tuple(groups[0])),)
    return _numbered(groups, numbered)


def spread_shards(steps: Sequence[Step], numbered: str, count: int) -> tuple[Shard, ...]:
    """Fill exactly ``count`` files in order, as evenly as whole tensors allow.

    Fewer where there are fewer tensors; ``numbered`` as for `assign_shards`.
    """
    count = min(count, len(steps))
    left = sum(step.target.nbytes for step in steps)
    groups: list[list[Step]] = [[]]
    filled = 0
    for n_done, step in enumerate(steps):
        n_files = count - len(groups) + 1  # this one and those after it
        nearer_without = (2 * filled + step.target.nbytes) * n_files >= 2 * left
        needed_later = len(steps) - n_done < n_files
        if groups[-1] and n_files > 1 and (nearer_without or needed_later):
            groups.append([])
            left -= filled
            filled = 0
        groups[-1].append(step)
        filled += step.target.nbytes
    return _numbered(groups, numbered)


def _numbered(groups: Sequence[Sequence[Step]], name: str) -> tuple[Shard, ...]:
    return tuple(
        Shard(name.format(index=index, index0=index - 1, count=len(groups)), tuple(group))
        for index, group in enumerate(groups, start=1)
    )


def _kept(catalog: Catalog, stored: StoredTensor, main: DType | None) -> DType:
    """The type that a source tensor has, or had before its convention widened it."""
    dtype = catalog.tensors[stored.name].dtype
    widened = stored.full_precision and dtype is DType.F32
    return main if widened and main in HALF_WIDTH else dtype


def _common(dtypes: set[DType]) -> DType:
    """The type that holds all values where a target tensor joins several source types."""
    if len(dtypes) == 1:
        return dtypes.pop()
    return DType.F64 if DType.F64 in dtypes else DType.F32


@dataclass(frozen=True, slots=True)
class _Bridge:
    """From where the source keeps a canonical tensor to where the target does."""

    catalog: Catalog
    args: ModelArgs
    wanted: DType
    exact: bool

    def part(self, stored: StoredTensor, source: Cell, target: Cell) -> Part:
        found = self.catalog.tensors[stored.name].dtype
        ops = simplify([*_to_canonical(source, self.args), *_from_canonical(target, self.args)])
        if found is not self.wanted:
            ops += (Cast(found, self.wanted, self.exact),)
        computed = [op for op in ops if isinstance(op, Transpose | Cast)]
        decoded = found in BLOCKS and not any(isinstance(op, Transpose) for op in computed)
        if found in BLOCKS and self.wanted in BLOCKS and found is not self.wanted:
            raise Refused(
                f"{stored.name} is {found.label} already, and would be quantised twice",
                hint="convert the checkpoint that it was made from (f32, f16 or bf16)",
            )
        if computed and found not in FLOATS and not decoded:
            raise Refused(
                f"{stored.name} is {found.label}, which cannot be transposed or cast",
                hint="convert the checkpoint that it was made from (f32, f16 or bf16)",
            )
        return Part(stored.name, source.start, source.stop, stored.columns, found, ops)


def _to_canonical(cell: Cell, args: ModelArgs) -> list[Op]:
    ops: list[Op] = [Transpose()] if cell.transposed else []
    if cell.rope is RopeLayout.HALVES:
        ops.append(Interleave(args.heads(cell.slot.role)))
    return ops


def _from_canonical(cell: Cell, args: ModelArgs) -> list[Op]:
    ops: list[Op] = [Halve(args.heads(cell.slot.role))] if cell.rope is RopeLayout.HALVES else []
    return [*ops, Transpose()] if cell.transposed else ops


def _merge(parts: list[Part]) -> tuple[Part, ...]:
    """Join byte copies that lie side by side in the source."""
    merged = parts[:1]
    for part in parts[1:]:
        last = merged[-1]
        if part.source == last.source and part.start == last.stop and not (part.ops or last.ops):
            merged[-1] = Part(last.source, last.start, part.stop, last.columns, last.dtype, ())
        else:
            merged.append(part)
    return tuple(merged)
