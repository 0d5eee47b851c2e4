"""What a cast does to the values, counted and refused where nobody allowed it.

    finite value -> inf      overflowed    refused unless allowed: the model would be another one
    nonzero value -> 0       underflowed   counted
    any other change         rounded       counted
    NaN                      nan           counted; it stays what it is

The three changes exclude each other. A cast that nobody asked for (a GGUF's f32 norms on their way
back to bf16) must change nothing at all.
"""

from __future__ import annotations

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
class TensorCast:
    """The count of one written tensor, with the types as labels."""

    name: str
    source: str
    target: str
    count: CastCount


@dataclass(frozen=True, slots=True)
class CastReport:
    """All casts of a conversion: their sum, and the tensors that need a look first."""

    n_tensors: int
    total: CastCount
    worst: tuple[TensorCast, ...]


@dataclass(slots=True)
class CastAccount:
    """Collects the counts of a conversion by written tensor."""

    allow_overflow: bool = False
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
        )

    def report(self) -> CastReport | None:
        """Sum up; None when nothing was cast."""
        if not self.tensors:
            return None
        told = [tensor for tensor in self.tensors.values() if any(_severity(tensor.count))]
        told.sort(key=lambda tensor: _severity(tensor.count), reverse=True)
        total = sum((tensor.count for tensor in self.tensors.values()), CastCount())
        return CastReport(len(self.tensors), total, tuple(told[:WORST]))


@dataclass(slots=True)
class Tally:
    """Counts one part chunk by chunk; ``first`` is the element that overflowed first."""

    total: CastCount = CastCount()
    first: int | None = None

    def count(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Compare a flat chunk before and after its cast.

        Where a glance at the largest and smallest magnitude shows that nothing is NaN, infinite or
        zero, only the rounded values are counted: a third of the time.
        """
        import torch

        wide = torch.promote_types(before.dtype, after.dtype)
        if wide is after.dtype:  # widened: every value has its equal
            nan = int(before.isnan().count_nonzero())
            self.total += CastCount(numel=before.numel(), nan=nan)
            return
        old, new = before.to(wide), after.to(wide)
        smallest, largest = new.abs().aminmax()
        if not bool(largest.isfinite()):
            self._count_each(old, new)
            return
        underflowed = 0
        if not bool(smallest):
            underflowed = int(old.count_nonzero()) - int(new.count_nonzero())
        changed = int((new - old).count_nonzero())
        self.total += CastCount(
            before.numel(), rounded=changed - underflowed, underflowed=underflowed
        )

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


def _severity(count: CastCount) -> tuple[int, int, int, int]:
    return count.overflowed, count.nan, count.underflowed, count.rounded
