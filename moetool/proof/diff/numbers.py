"""How far two canonical tensors are apart, in one pass over both, a chunk at a time.

The two sides may be stored in different types and come in chunks of different sizes: the smaller
chunk decides how many values are compared at once. Values are compared in the wider type, which
holds both, and summed in f64.

    value       -0 equals 0, and a NaN equals a NaN
    not finite  where a value differs and one side is NaN or inf, the distances are inf
    sums        over the pairs that are finite on both sides
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.convert.stream import to_torch, torch_dtype
from moetool.tensors import DType

if TYPE_CHECKING:
    import torch

    from moetool.arch.schema import Slot
    from moetool.proof.canonical import Weights
    from moetool.tensors import TensorInfo

PIECE_NUMEL = 1 << 16  # values compared at a time; all that is counted of them takes a few MB
_SIGNIFICANT_BITS = {DType.BF16: 8, DType.F16: 11, DType.F32: 24, DType.F64: 53}


@dataclass(frozen=True, slots=True)
class Numbers:
    """The distance between the values of two tensors of one shape.

    ``rel_rms`` is the root mean square of ``b - a`` over that of ``a``: inf where ``a`` is zero
    throughout and ``b`` is not. ``max_abs`` and ``rel_rms`` are inf where a value that differs is
    NaN or infinite on one side. ``cosine`` is that of the finite pairs; 1 where both are zero, 0
    where one is. ``max_ulp`` counts steps of the stored type with fewer significant bits, after
    rounding to it; NaNs are left out, and of f64 it is rounded above 2**53. ``first_row`` is the
    row of the canonical matrix (the index, in a vector) with the first value that differs.
    """

    numel: int
    differing: int
    max_abs: float
    rel_rms: float
    cosine: float
    max_ulp: int
    first_row: int | None
    nan_a: int
    nan_b: int
    inf_a: int
    inf_b: int

    @property
    def equal(self) -> bool:
        """Whether no value differs."""
        return not self.differing


def compare_values(a: Weights, b: Weights, slot: Slot, other: Slot | None = None) -> Numbers:
    """Compare the values of a tensor of ``a`` with those of ``other`` of ``b``.

    ``other`` is where ``b`` keeps it, if it is not the same slot. Both are streamed: a few MiB are
    held, whatever their size. `Weights.map` runs this with torch on one thread each.

    Raises:
        ValueError: the two have not the same number of values: the caller's bug.
        ReadFailed, TruncatedFile: the machine could not read, or a file has shrunk.
    """
    other = other or slot
    left, right = a.info(slot), b.info(other)
    if left.numel != right.numel:
        raise ValueError(f"{left.name}: {left.numel} values against {right.numel}")
    sums = sums_of(left, right)
    for x, y in paired(values(a, slot), values(b, other)):
        sums.add(x, y)
    return sums.numbers(columns(left))


def sums_of(left: TensorInfo, right: TensorInfo) -> Sums:
    """Empty sums for two tensors."""
    return Sums(torch_dtype(min(left.dtype, right.dtype, key=_SIGNIFICANT_BITS.__getitem__)))


def columns(info: TensorInfo) -> int:
    """The length of a row; 1 in a vector."""
    return info.shape[-1] if len(info.shape) > 1 else 1


def values(weights: Weights, slot: Slot) -> Iterator[torch.Tensor]:
    """Yield the values of a canonical tensor in flat pieces, in the type they are stored in."""
    dtype = weights.info(slot).dtype
    nbytes = PIECE_NUMEL * dtype.type_size
    for block in weights.read(slot):
        view = memoryview(block)
        for at in range(0, len(view), nbytes):
            piece = view[at : at + nbytes]
            yield to_torch(piece, dtype, (len(piece) // dtype.type_size,))


def paired(
    left: Iterator[torch.Tensor], right: Iterator[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Cut two flows of flat pieces into pairs of equal length, `PIECE_NUMEL` at most."""
    import torch

    x = y = torch.empty(0)
    while True:
        x = x if len(x) else next(left, x)
        y = y if len(y) else next(right, y)
        n = min(len(x), len(y), PIECE_NUMEL)
        if not n:
            return
        yield x[:n], y[:n]
        x, y = x[n:], y[n:]


class Sums:
    """What is known of the pairs so far; ``narrower`` is the type whose steps are counted."""

    def __init__(self, narrower: torch.dtype) -> None:
        self.narrower = narrower
        self.numel = self.differing = self.max_ulp = 0
        self.first: int | None = None
        self.max_abs = self.aa = self.bb = self.ab = self.dd = 0.0
        self.nan_a = self.nan_b = self.inf_a = self.inf_b = 0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Enter the next values of both sides, flat and equally many."""
        import torch

        start = self.numel
        self.numel += len(x)
        wide = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(wide), y.to(wide)
        finite = not self._count_strange(x, y)
        unequal = x != y
        if not finite:
            unequal &= ~(x.isnan() & y.isnan())
        n = int(unequal.count_nonzero())
        if n and self.first is None:
            self.first = start + int(unequal.to(torch.uint8).argmax())
        self.differing += n
        if not finite:
            x, y = self._finite_pairs(x, y, unequal)
        self._add_squares(x, y, same=not n)

    def numbers(self, row_numel: int) -> Numbers:
        """Sum up; ``row_numel`` is the length of a row."""
        alike = math.inf if self.dd else 0.0
        rel_rms = math.sqrt(self.dd / self.aa) if self.aa else alike
        norms = math.sqrt(self.aa) * math.sqrt(self.bb)
        alone = float(self.aa == self.bb)  # of two tensors of zeros, or of one
        return Numbers(
            numel=self.numel,
            differing=self.differing,
            max_abs=self.max_abs,
            rel_rms=math.inf if math.isinf(self.max_abs) else rel_rms,
            cosine=max(-1.0, min(1.0, self.ab / norms)) if norms else alone,
            max_ulp=self.max_ulp,
            first_row=None if self.first is None else self.first // row_numel,
            nan_a=self.nan_a,
            nan_b=self.nan_b,
            inf_a=self.inf_a,
            inf_b=self.inf_b,
        )

    def _count_strange(self, x: torch.Tensor, y: torch.Tensor) -> bool:
        """Count NaN and inf; a glance at the largest magnitude tells that there is none."""
        strange = False
        for side, values in (("a", x), ("b", y)):
            if bool(values.abs().max().isfinite()):
                continue
            nan, inf = int(values.isnan().count_nonzero()), int(values.isinf().count_nonzero())
            setattr(self, f"nan_{side}", getattr(self, f"nan_{side}") + nan)
            setattr(self, f"inf_{side}", getattr(self, f"inf_{side}") + inf)
            strange = True
        return strange

    def _finite_pairs(
        self, x: torch.Tensor, y: torch.Tensor, unequal: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The pairs that are finite on both sides; of the others, whether they differ."""
        finite = x.isfinite() & y.isfinite()
        infinite = unequal & ~finite
        if bool(infinite.any()):
            self.max_abs = math.inf
            numbers = infinite & ~(x.isnan() | y.isnan())
            if bool(numbers.any()):
                self.max_ulp = max(self.max_ulp, _ulps(x[numbers], y[numbers], self.narrower))
        return x[finite], y[finite]

    def _add_squares(self, x: torch.Tensor, y: torch.Tensor, *, same: bool) -> None:
        """Enter finite pairs."""
        if not len(x):
            return
        left = x.double()
        aa = float(left.dot(left))
        self.aa += aa
        if same:
            self.bb += aa
            self.ab += aa
            return
        right = y.double()
        self.bb += float(right.dot(right))
        self.ab += float(left.dot(right))
        right -= left
        self.dd += float(right.dot(right))
        self.max_abs = max(self.max_abs, float(right.abs_().max()))
        self.max_ulp = max(self.max_ulp, _ulps(x, y, self.narrower))


def _ulps(x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype) -> int:
    """The most steps between two values of a type: its bits, read as a number, count them."""
    import torch

    bits, low, counted = {
        2: (torch.int16, 0x7FFF, torch.int32),
        4: (torch.int32, 0x7FFFFFFF, torch.int64),
        8: (torch.int64, 0x7FFFFFFFFFFFFFFF, torch.float64),
    }[dtype.itemsize]

    def steps(values: torch.Tensor) -> torch.Tensor:
        raw = values.to(dtype).view(bits)
        negative, magnitude = raw < 0, raw.bitwise_and(low).to(counted)
        return torch.where(negative, magnitude.neg(), magnitude)

    return int((steps(x) - steps(y)).abs_().max())
