"""What the values of a tensor that differ have in common: zeros, NaN, a cast, a single bit.

One pass over both sides beside the sums. Each trait is a claim about every value, dropped at the
first one that contradicts it: what is left at the end is exact.

    f16, bf16   B is A rounded through that type, or A is B, value for value
    truncated   B is A with the lower half of each f32 cut off, or A is B
    zeroed      every value that differs is 0 in B (or in A)
    NaN         values are NaN in B where they are not in A
    bit         one value differs, and one bit of it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BIT, NAN, ZEROED, F16, BF16, TRUNCATED = (
    "bit-flipped", "nan", "zeroed", "cast-f16", "cast-bf16", "truncated-bf16",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trait:
    """One thing that is true of a tensor; ``side`` is the one that is damaged, if so.

    ``detail`` says which rows, columns and bits.
    """

    kind: str
    side: str
    detail: str = ""


@dataclass(slots=True)
class Span:
    """Where values have a property that the other side's have not; indices are row-major."""

    count: int = 0
    first: int = -1
    last: int = -1
    holes: int = 0  # values between the first and the last that have it not
    _waiting: int = 0

    def add(self, start: int, hit: torch.Tensor, alike: torch.Tensor) -> None:
        """Enter a piece: ``hit`` where the property is new, ``alike`` where it holds at all."""
        if not bool(hit.any()):
            self._waiting += len(alike) - int(alike.count_nonzero())
            return
        where, strange = hit.nonzero().flatten(), ~alike
        low, high = int(where[0]), int(where[-1])
        before = int(strange[:low].count_nonzero())
        inside = int(strange[low : high + 1].count_nonzero())
        if self.count:
            self.holes += self._waiting + before
        else:
            self.first = start + low
        self.holes += inside
        self._waiting = int(strange[high + 1 :].count_nonzero())
        self.last = start + high
        self.count += len(where)

    def rows(self, row_numel: int, numel: int) -> str:
        """Where it is, for people."""
        first, last = self.first // row_numel, self.last // row_numel
        if row_numel == 1:
            place = f"values {first}-{last}" if last > first else f"value {first}"
        elif first == last:
            low, high = self.first % row_numel, self.last % row_numel
            columns = f" columns {low}-{high}" if high > low else f" column {low}"
            place = f"row {first}" + ("" if self.count == row_numel else columns)
        else:
            place = f"rows {first}-{last}"
        if self.count == numel:
            return "all values"
        n_values = f"{self.count:,} value" + "s" * (self.count > 1)
        return f"{n_values} in {place}" + (", to the end" * (self.last == numel - 1))


@dataclass(slots=True)
class Traits:
    """Collects what is true of all pairs of values so far."""

    numel: int = 0
    differing: int = 0
    single: tuple[int, float, float, int] | None = None  # index, a, b, bits that differ
    zeros: dict[str, Span] = field(default_factory=lambda: {"A": Span(), "B": Span()})
    nans: dict[str, Span] = field(default_factory=lambda: {"A": Span(), "B": Span()})
    casts: set[tuple[str, str]] = field(
        default_factory=lambda: {(k, s) for k in (F16, BF16, TRUNCATED) for s in ("A", "B")}
    )

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Enter the next values of both sides, flat and equally many, in their stored types."""
        import torch

        start, stored = self.numel, (x, y)
        self.numel += len(x)
        wide = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(wide), y.to(wide)
        nan_x, nan_y = x.isnan(), y.isnan()
        unequal = (x != y) & ~(nan_x & nan_y)
        n = int(unequal.count_nonzero())
        self.differing += n
        for side, value, nan in (("A", x, nan_x), ("B", y, nan_y)):
            self.nans[side].add(start, unequal & nan, nan)
            if side in self.zeros:
                self.zeros[side].add(start, unequal & (value == 0), value == 0)
                if self.zeros[side].count != self.differing:
                    del self.zeros[side]
        self.casts = {claim for claim in self.casts if _is_cast(*claim, x, y)}
        if n == self.differing == 1:
            at = int(unequal.to(torch.uint8).argmax())
            self.single = (start + at, float(x[at]), float(y[at]), _bits(*stored, at))

    def found(self, row_numel: int) -> Iterator[Trait]:
        """What is true, the most telling first; ``row_numel`` is the length of a row."""
        if not self.differing:
            return
        if self.differing == 1 and self.single and self.single[3].bit_count() == 1:
            yield Trait(BIT, "", self._bit(row_numel))
        for side, span in self.nans.items():
            if span.count:
                yield Trait(NAN, side, span.rows(row_numel, self.numel))
        kinds = (F16, BF16, TRUNCATED)
        for kind, side in sorted(self.casts, key=lambda claim: (kinds.index(claim[0]), claim[1])):
            yield Trait(kind, side)
        for side, span in self.zeros.items():
            yield Trait(ZEROED, side, span.rows(row_numel, self.numel) + _scattered(span))

    def _bit(self, row_numel: int) -> str:
        assert self.single
        index, before, after, bits = self.single
        row, column = divmod(index, row_numel)
        place = f"row {row} column {column}" if row_numel > 1 else f"value {index}"
        return f"{place} bit {bits.bit_length() - 1} ({before:g} in A, {after:g} in B)"


def _scattered(span: Span) -> str:
    return ", scattered" if span.holes else ""


def _is_cast(kind: str, side: str, x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether the values of ``side`` are those of the other after a cast."""
    before, after = (x, y) if side == "B" else (y, x)
    made = _CASTS[kind](before)
    return bool(((made == after) | (made.isnan() & after.isnan())).all())


def _through_f16(values: torch.Tensor) -> torch.Tensor:
    import torch

    return values.to(torch.float16).to(values.dtype)


def _through_bf16(values: torch.Tensor) -> torch.Tensor:
    import torch

    return values.to(torch.bfloat16).to(values.dtype)


def _cut_to_bf16(values: torch.Tensor) -> torch.Tensor:
    import torch

    bits = values.to(torch.float32).view(torch.int32)
    return bits.bitwise_and(-65536).view(torch.float32).to(values.dtype)


_CASTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    F16: _through_f16,
    BF16: _through_bf16,
    TRUNCATED: _cut_to_bf16,
}


def _bits(x: torch.Tensor, y: torch.Tensor, at: int) -> int:
    """The bits in which two values differ: of the stored type if it is one, else of the wider."""
    import torch

    wide = torch.promote_types(x.dtype, y.dtype)
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[wide.itemsize]
    left, right = (int(side[at : at + 1].to(wide).view(kind)) for side in (x, y))
    return (left ^ right) & ((1 << 8 * wide.itemsize) - 1)
