"""Values far too small to be the others' like, and not zero: an exponent that lost a high bit.

A weight of a few hundredths has most of its high exponent bits set, so one flipped bit makes it
vanish more often than explode. Near zero the values of a matrix lie evenly: below 2**-48 of its
row's root mean square lies one of 10**14. In f16 nothing that small can be stored.

One pass orders the magnitudes as integers, which grow with the value, and puts zero behind them:
twice the bits, so that the sign falls off, and a wrap around.

    magnitude m           0     1     2           largest
    2m + last, wrapped    last  least least + 2   last - 2
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.tensors import DType

if TYPE_CHECKING:
    import torch

FAINT = -48.0  # log2 of the share of the root mean square


class Faint:
    """Counts the rows of one tensor that hold such a value."""

    def __init__(self, dtype: DType) -> None:
        self.told = dtype in {DType.BF16, DType.F32}
        self.count = 0
        self.first = 0
        self.value = 0.0

    def add(self, values: torch.Tensor, scales: torch.Tensor, start: int) -> None:
        """Look at rows ``[R, C]`` in the stored type that begin at a flat place.

        ``scales`` are the log2 of their root mean squares ``[R]``.
        """
        if not self.told:
            return
        import torch

        kind = torch.int16 if values.itemsize == 2 else torch.int32  # noqa: PLR2004  # bf16
        last = torch.iinfo(kind).max - 1
        order = torch.add(torch.tensor(last, dtype=kind), values.view(kind), alpha=2)
        least = order.amin(1)
        smallest = _magnitude(least, last).view(values.dtype).float()
        hits = (smallest.log2() < scales + FAINT).nonzero()[:, 0]
        if hits.numel() and not self.count:
            row = int(hits[0])
            column = int(order[row].argmin())
            self.first, self.value = start + row * values.shape[1] + column, float(smallest[row])
        self.count += hits.numel()


def _magnitude(order: torch.Tensor, last: int) -> torch.Tensor:
    """The bits without their sign; undoes the order."""
    import torch

    return ((order.to(torch.int64) + last + 4) // 2).to(order.dtype)
