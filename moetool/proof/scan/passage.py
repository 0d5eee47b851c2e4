"""The trace of an earlier cast: values that all fit a narrower type than the one they lie in.

    stored   tried       a matrix that was never there                    seen in
    f64      f32         has other bits in nearly every value             64 values
    f32      bf16, f16   the same                                         64 values
    f16      bf16        the same: 3 of 10 fraction bits must be zero     64 values
    bf16     f16         fits but where f16 rounds: below 2**-17          32 such values

One value that does not fit settles it, mostly in the first few: what is done here costs nothing
unless all fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.convert.stream import torch_dtype
from moetool.tensors import DType

if TYPE_CHECKING:
    import torch

TRIED = {
    DType.F64: (DType.F32,),
    DType.F32: (DType.BF16, DType.F16),
    DType.F16: (DType.BF16,),
    DType.BF16: (DType.F16,),
}
FIRST_LOOK = 4096  # values
ENOUGH, ENOUGH_SMALL = 64, 32
# f16 holds the 8 bits of a bf16 down to here: its smallest step is 2**-24.
F16_ROUNDS_BELOW = 2.0**-17


class Passage:
    """Follows the values of one tensor."""

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype
        self.fitting = list(TRIED[dtype])
        self.n_telling = 0

    def add(self, values: torch.Tensor) -> None:
        """Look at more values, flat and in the stored type."""
        if not self.fitting:
            return
        self.fitting = [
            dtype
            for dtype in self.fitting
            if _all_fit(values[:FIRST_LOOK], dtype) and _all_fit(values, dtype)
        ]
        if not self.fitting:
            return
        if self.dtype is DType.BF16:
            telling = (values.abs() < F16_ROUNDS_BELOW) & (values != 0)
        else:
            telling = values != 0
        self.n_telling += int(telling.sum())

    @property
    def settled(self) -> bool:
        """Whether anything can be said: a value did not fit, or enough of them did."""
        enough = ENOUGH_SMALL if self.dtype is DType.BF16 else ENOUGH
        return not self.fitting or self.n_telling >= enough

    @property
    def narrower(self) -> str:
        """The label of the narrower type that all values fit; empty where there is none."""
        return self.fitting[0].label if self.fitting and self.settled else ""


def _all_fit(values: torch.Tensor, dtype: DType) -> bool:
    """Whether each is the same there; a NaN says nothing."""
    back = values.to(torch_dtype(dtype)).to(values.dtype)
    return bool(((back == values) | values.isnan()).all())
