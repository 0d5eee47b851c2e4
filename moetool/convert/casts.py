"""What a cast does to the values, counted and refused where nobody allowed it.

    finite value -> inf      overflowed    refused unless allowed: the model would be another one
    nonzero value -> 0       underflowed   counted
    any other change         rounded       counted
    NaN                      nan           counted; it stays what it is

The three changes exclude each other. A cast that nobody asked for (a GGUF's f32 norms on their way
back to bf16) must change nothing at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moetool.errors import LossyCast

if TYPE_CHECKING:
    import torch

    from moetool.convert.ops import Cast
    from moetool.convert.plan import Part
    from moetool.tensors import TensorInfo

WORST = 10  # tensors that a report names


@dataclass(frozen=True, slots=True)
class CastCount:
    """How many values were cast, and what became of them."""

    numel: int = 0
    rounded: int = 0
    overflowed: int = 0
    underflowed: int = 0
    nan: int = 0

    @property
    def changed(self) -> int:
        """The values that are not what they were."""
        return self.rounded + self.overflowed + self.underflowed

    def __add__(self, other: CastCount) -> CastCount:
        return CastCount(
            self.numel + other.numel,
            self.rounded + other.rounded,
            self.overflowed + other.overflowed,
            self.underflowed + other.underflowed,
            self.nan + other.nan,
        )


@dataclass(frozen=True, slots=True)
class BlockError:
    """How far quantised weights y are from the weights x: sums over ``numel`` of them.

    ``square`` of x * x, ``made_square`` of y * y, ``product`` of x * y, ``off_square`` of
    (y - x) * (y - x).
    """

    numel: int = 0
    square: float = 0.0
    off_square: float = 0.0
    made_square: float = 0.0
    product: float = 0.0
    max_abs: float = 0.0

    @property
    def rel_rms(self) -> float:
        """The root mean square of the error, relative to that of the weights."""
        return math.sqrt(self.off_square / self.square) if self.square else 0.0

    @property
    def cosine(self) -> float:
        """The cosine between the weights and what is stored of them; 1 where all are zero."""
        norms = math.sqrt(self.square * self.made_square)
        return min(self.product / norms, 1.0) if norms else float(self.square == self.made_square)

    def __add__(self, other: BlockError) -> BlockError:
        return BlockError(
            self.numel + other.numel,
            self.square + other.square,
            self.off_square + other.off_square,
            self.made_square + other.made_square,
            self.product + other.product,
            max(self.max_abs, other.max_abs),
        )


@dataclass(frozen=True, slots=True)
class TensorCast:
    """The count of one written tensor, with the types as labels; its error where it is blocks."""

    name: str
    source: str
    target: str
    count: CastCount
    error: BlockError | None = None


@dataclass(frozen=True, slots=True)
class RoleError:
    """The error of all tensors of a role that have one type, and of the worst of them."""

    tensors: str
    n_tensors: int
    dtype: str
    rel_rms: float
    max_abs: float
    cosine: float
    worst: str
    worst_rel_rms: float


@dataclass(frozen=True, slots=True)
class CastReport:
    """All casts of a conversion: their sum, and the tensors that need a look first.

    ``quantised`` has the error of what is stored in blocks, which the other two leave out.
    """

    n_tensors: int
    total: CastCount
    worst: tuple[TensorCast, ...]
    quantised: tuple[RoleError, ...] = ()


@dataclass(slots=True)
class CastAccount:
    """Collects the counts of a conversion by written tensor.

    ``importance``: what an error in each column counts, by tensor for each of its matrices.
    """

    allow_overflow: bool = False
    importance: Mapping[str, Sequence[torch.Tensor]] = field(default_factory=dict)
    tensors: dict[str, TensorCast] = field(default_factory=dict)

    def add(self, target: TensorInfo, part: Part, cast: Cast, tally: Tally, row: int) -> None:
        """Enter what happened to a part whose first row is ``row`` of the written tensor.

        Raises:
            LossyCast: values changed that may not.
        """
        count = tally.total
        if cast.exact and count.changed:
            raise LossyCast(
                f"{count.changed:,} of {count.numel:,} values of {part.source} are no "
                f"{cast.target.label} values, though the rest of the checkpoint is "
                f"{cast.target.label}; nothing is cast unasked",
                where=target.name,
                hint=f"--dtype {cast.target.label} rounds them, --dtype f32 keeps all values",
            )
        if count.overflowed and not self.allow_overflow:
            columns = target.shape[-1] if len(target.shape) > 1 else 1
            raise LossyCast(
                f"{count.overflowed:,} of {count.numel:,} values of {part.source} are beyond "
                f"{cast.target.label}, the first in row {row + (tally.first or 0) // columns}",
                where=target.name,
                hint="--dtype bf16 or f32 holds them; --allow-overflow writes inf instead",
            )
        held = self.tensors.get(target.name)
        self.tensors[target.name] = TensorCast(
            target.name,
            cast.source.label,
            cast.target.label,
            held.count + count if held else count,
            tally.error + held.error if held and held.error and tally.error else tally.error,
        )

    def report(self) -> CastReport | None:
        """Sum up; None when nothing was cast."""
        if not self.tensors:
            return None
        told = [tensor for tensor in self.tensors.values() if any(_severity(tensor.count))]
        told.sort(key=lambda tensor: _severity(tensor.count), reverse=True)
        plain = [tensor.count for tensor in self.tensors.values() if tensor.error is None]
        total = sum(plain, CastCount())
        return CastReport(len(plain), total, tuple(told[:WORST]), self._errors())

    def _errors(self) -> tuple[RoleError, ...]:
        roles: dict[tuple[str, str], list[tuple[str, BlockError]]] = {}
        for cast in self.tensors.values():
            if cast.error is not None:
                role = re.sub(r"(?<=\.)\d+(?=\.)", "#", cast.name)
                roles.setdefault((role, cast.target), []).append((cast.name, cast.error))
        return tuple(_role_error(*key, errors) for key, errors in roles.items())


@dataclass(slots=True)
class Tally:
    """Counts one part chunk by chunk; ``first`` is the element that overflowed first."""

    total: CastCount = CastCount()
    first: int | None = None
    error: BlockError | None = None

    def cast(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Cast a flat chunk of at most 2**24 values into ``after``, and compare the two.

        Where a glance at the smallest and largest magnitude shows that nothing is zero, infinite
        or NaN, only the rounded values are counted. Through the wider type, which both need for
        that, and in place: half the time of casting and comparing one after the other.
        """
        import torch

        wide = torch.promote_types(before.dtype, after.dtype)
        if wide is after.dtype:  # widened: every value has its equal
            after.copy_(before)
            nan = int(before.isnan().count_nonzero())
            if nan and before.dtype is torch.float16:
                after.copy_(widen_f16(before))
            self.total += CastCount(numel=before.numel(), nan=nan)
            return
        old = before.to(wide)
        new = after.copy_(old).to(wide)
        smallest, largest = _magnitudes(after)
        if not bool(largest.isfinite()):
            self._count_each(old, new)
            return
        underflowed = 0
        if not bool(smallest):
            underflowed = int(old.count_nonzero()) - int(new.count_nonzero())
        changed = int(new.ne_(old).sum())  # the sum of so few ones is exact in any float type
        self.total += CastCount(
            before.numel(), rounded=changed - underflowed, underflowed=underflowed
        )

    def quantised(self, error: BlockError) -> None:
        """Enter a piece that was stored in blocks."""
        self.total += CastCount(numel=error.numel)
        self.error = self.error + error if self.error else error

    def widen_bf16(self, raw: bytes) -> bytearray:
        """The f32 of bf16 values, which are its upper halves: a norm need not wait for torch."""
        low, high = raw[0::2], raw[1::2]
        wide = bytearray(2 * len(raw))
        wide[2::4], wide[3::4] = low, high
        nan = 0
        if b"\x7f" in high or b"\xff" in high:
            nan = sum(b & 0x7F == 0x7F and a > 0x80 for a, b in zip(low, high, strict=True))  # noqa: PLR2004  # exponent of ones, a fraction behind it
        self.total += CastCount(numel=len(low), nan=nan)
        return wide

    def _count_each(self, old: torch.Tensor, new: torch.Tensor) -> None:
        import torch

        nan = int(old.isnan().count_nonzero())
        overflowed = new.isinf() & old.isfinite()
        n_overflowed = int(overflowed.count_nonzero())
        n_underflowed = int(((new == 0) & (old != 0)).count_nonzero())
        changed = int((new != old).count_nonzero()) - nan  # a NaN differs from itself
        if n_overflowed and self.first is None:
            self.first = self.total.numel + int(overflowed.to(torch.uint8).argmax())
        self.total += CastCount(
            old.numel(), changed - n_overflowed - n_underflowed, n_overflowed, n_underflowed, nan
        )


def widen_f16(values: torch.Tensor) -> torch.Tensor:
    """The f32 of f16 values, a NaN with its payload.

    torch gives one NaN or another, by where in a tensor it stands: what is left over of a vector
    register takes another way than the rest.
    """
    import torch

    bits = values.view(torch.int16).to(torch.int32)
    moved = (bits & 0x8000) << 16 | 0x7F800000 | (bits & 0x3FF) << 13
    return torch.where(values.isnan(), moved.view(torch.float32), values.to(torch.float32))


def _magnitudes(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest and the largest magnitude; inf and, above it, NaN are the largest of all."""
    import torch

    if values.itemsize != 2:  # noqa: PLR2004
        smallest, largest = values.abs().aminmax()
        return smallest, largest
    low, high = values.view(torch.int16).bitwise_and(0x7FFF).aminmax()  # ordered as the values are
    return low.view(values.dtype), high.view(values.dtype)


def _role_error(role: str, dtype: str, errors: list[tuple[str, BlockError]]) -> RoleError:
    total = sum((error for _, error in errors), BlockError())
    worst, error = max(errors, key=lambda item: item[1].rel_rms)
    return RoleError(
        role, len(errors), dtype, total.rel_rms, total.max_abs, total.cosine, worst, error.rel_rms
    )


def _severity(count: CastCount) -> tuple[int, int, int, int]:
    return count.overflowed, count.nan, count.underflowed, count.rounded
