"""L1: every tensor read once, as bits: NaN, infinity, zero rows, constants, duplicate experts.

No float is computed with: the magnitude of a float, seen as an integer, grows with its value, so
the largest one of each row tells at once a NaN or infinity (exponent all ones) and a row of zeros.

            sign  exponent            largest finite magnitude + 1
    f32     1     8       23 bits     0x7F80_0000 = infinity, above it NaN
    bf16    1     8        7 bits     0x7F80
    f16     1     5       10 bits     0x7C00

Tensors are read through the canonical steps: findings name layer, expert, matrix, row, column as
the raw release has them, whatever the layout on disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import xxhash

from moetool.arch.schema import Role, Slot, expand
from moetool.convert.casts import widen_f16
from moetool.convert.pieces import whole_rows
from moetool.convert.stream import stream, to_bytes, torch_dtype
from moetool.model.load import canonical_steps
from moetool.model.smoke.checks import Check, judge
from moetool.tensors import DType

if TYPE_CHECKING:
    from moetool.convert.plan import Step
    from moetool.model.smoke.subject import Subject
    from moetool.tensors import Checkpoint

PIECE = 4 << 20  # bytes looked at at once, whole rows; what stays in a CPU cache is fastest

# Rows of the two token tables may be zero: pieces that no training text held.
TOKEN_TABLES = {Role.TOK_EMBEDDINGS, Role.OUTPUT}


@dataclass(frozen=True, slots=True)
class BitLayout:
    """How to see a float as an integer: the type, all bits but the sign, infinity's pattern."""

    integer: torch.dtype
    magnitude: int
    infinity: int


BITS = {
    DType.F32: BitLayout(torch.int32, 0x7FFF_FFFF, 0x7F80_0000),
    DType.BF16: BitLayout(torch.int16, 0x7FFF, 0x7F80),
    DType.F16: BitLayout(torch.int16, 0x7FFF, 0x7C00),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in one tensor: how many values or rows, and the first of them."""

    slot: Slot
    count: int
    row: int
    column: int | None = None

    def __str__(self) -> str:
        place = f"row {self.row}" + ("" if self.column is None else f" column {self.column}")
        return f"{self.slot} {place}" + (f" and {self.count - 1} more" if self.count > 1 else "")


@dataclass(slots=True)
class Scan:
    """What one pass over all tensors found.

    ``digests``: XXH3-128 of the values of each, widened to f32 where that was asked for, so that
    two checkpoints that store the same values in two types have the same ones.
    """

    nan: list[Finding] = field(default_factory=list)
    infinite: list[Finding] = field(default_factory=list)
    zero_rows: list[Finding] = field(default_factory=list)
    constant: list[Slot] = field(default_factory=list)
    twins: list[tuple[Slot, Slot]] = field(default_factory=list)
    digests: dict[Slot, bytes] = field(default_factory=dict)
    n_tensors: int = 0
    nbytes: int = 0
    seconds: float = 0.0


def scan(
    subject: Subject,
    progress: Callable[[int, str], None],
    *,
    widened: bool = False,
    only: Collection[str] | None = None,
) -> Scan:
    """Read every tensor once; memory stays bounded by one piece and one matrix.

    ``only``: raw names of the tensors that are to be read; `join` puts several scans together.
    """
    began, found = time.perf_counter(), Scan()
    for slot, step in _slots_and_steps(subject):
        if only is not None and step.target.name not in only:
            continue
        digest = _scan_tensor(subject.checkpoint, slot, step, found, widened=widened)
        found.digests[slot] = digest
        found.n_tensors += 1
        found.nbytes += step.target.nbytes
        progress(found.nbytes, str(slot))
    found.seconds = time.perf_counter() - began
    return join([found])


def join(scans: Sequence[Scan]) -> Scan:
    """One scan of what several have read at the same time; twins may be in two of them."""
    found = Scan(seconds=max(scan.seconds for scan in scans))
    for scan in scans:
        found.nan += scan.nan
        found.infinite += scan.infinite
        found.zero_rows += scan.zero_rows
        found.constant += scan.constant
        found.digests |= scan.digests
        found.n_tensors += scan.n_tensors
        found.nbytes += scan.nbytes
    first_with: dict[bytes, Slot] = {}
    for slot, digest in found.digests.items():
        twin = first_with.setdefault(digest, slot)
        if twin is not slot and slot.role.per_layer and not slot.role.is_norm:
            found.twins.append((twin, slot))
    return found


def _slots_and_steps(subject: Subject) -> Iterator[tuple[Slot, Step]]:
    steps = canonical_steps(subject.checkpoint.catalog, subject.recognized)
    for name, stored in expand(subject.recognized.architecture.raw, subject.args).items():
        yield stored.cells[0].slot, steps[name]


def _scan_tensor(
    checkpoint: Checkpoint, slot: Slot, step: Step, found: Scan, *, widened: bool
) -> bytes:
    """Look at one tensor; return the digest of its canonical bytes."""
    layout, shape = BITS[step.target.dtype], step.target.shape
    columns = shape[-1]  # a vector is one row
    digest, first_row = xxhash.xxh3_128(), 0
    nan, infinite, zero, constant = _Tally(), _Tally(), _Tally(), True
    first_value: torch.Tensor | None = None
    for piece in whole_rows(stream(checkpoint, step), step.target.dtype.nbytes(columns), PIECE):
        digest.update(_in_f32(piece, step.target.dtype) if widened else piece)
        bits = torch.frombuffer(piece, dtype=layout.integer).view(-1, columns)
        magnitude = bits & layout.magnitude
        largest = magnitude.amax(1)
        if int(largest.max()) >= layout.infinity:
            nan.add(magnitude > layout.infinity, first_row)
            infinite.add(magnitude == layout.infinity, first_row)
        zero.add((largest == 0)[:, None], first_row)
        first_value = bits[0, 0] if first_value is None else first_value
        # Nearly always settled by the first row: only a constant row leads to a look at all.
        constant = constant and bool((bits[0] == first_value).all() and (bits == first_value).all())
        first_row += bits.shape[0]
    found.nan += nan.finding(slot, with_column=True)
    found.infinite += infinite.finding(slot, with_column=True)
    found.zero_rows += zero.finding(slot, with_column=False)
    if constant and len(shape) > 1 and zero.count < first_row:
        found.constant.append(slot)
    return digest.digest()


def _in_f32(piece: bytearray, dtype: DType) -> bytearray:
    values = torch.frombuffer(piece, dtype=torch_dtype(dtype))
    return to_bytes(widen_f16(values) if dtype is DType.F16 else values.float())


@dataclass(slots=True)
class _Tally:
    """Counts hits over the pieces of one tensor and remembers the first."""

    count: int = 0
    row: int = 0
    column: int = 0

    def add(self, hits: torch.Tensor, first_row: int) -> None:
        n_hits = int(hits.sum())
        if n_hits and not self.count:
            row, column = (int(at) for at in hits.nonzero()[0])
            self.row, self.column = first_row + row, column
        self.count += n_hits

    def finding(self, slot: Slot, *, with_column: bool) -> list[Finding]:
        if not self.count:
            return []
        return [Finding(slot, self.count, self.row, self.column if with_column else None)]


def not_read() -> Check:
    """What a quick test says in place of all the checks below."""
    unseen = "NaN, infinities, zero rows, constants, duplicates"
    return judge("L1", "bits", None, f"quick: no tensor was read whole, so {unseen} are not seen")


def no_nan(found: Scan) -> Check:
    """No value is NaN."""
    return _none("no NaN", found.nan, found)


def no_infinity(found: Scan) -> Check:
    """No value is infinite."""
    return _none("no infinity", found.infinite, found)


def no_zero_rows(found: Scan) -> Check:
    """No output of any matrix is switched off; a zeroed expert shows here and in no text."""
    wrong = [finding for finding in found.zero_rows if finding.slot.role not in TOKEN_TABLES]
    unused = sum(f.count for f in found.zero_rows if f.slot.role in TOKEN_TABLES)
    note = f"; {unused} zero rows of token tables are no fault" if unused else ""
    return _none("no zero rows", wrong, found, note)


def no_constants(found: Scan) -> Check:
    """No matrix holds one value throughout."""
    return _none("no constant matrix", found.constant, found)


def no_twins(found: Scan) -> Check:
    """No two matrices of the layers are equal: an expert written twice, a layer written twice."""
    pairs = [f"{one} = {other}" for one, other in found.twins]
    return _none("no duplicates", pairs, found)


def _none(
    name: str, wrong: list[Finding] | list[Slot] | list[str], found: Scan, note: str = ""
) -> Check:
    names = [str(each) for each in wrong]
    if names:
        more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""  # noqa: PLR2004
        return judge("L1", name, ok=False, detail="; ".join(names[:3]) + more, value=names)
    return judge("L1", name, ok=True, detail=f"in {found.n_tensors} tensors{note}")


CHECKS: tuple[Callable[[Scan], Check], ...] = (
    no_nan,
    no_infinity,
    no_zero_rows,
    no_constants,
    no_twins,
)
