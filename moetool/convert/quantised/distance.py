"""How far quantised weights are from those they were made of."""

from __future__ import annotations

from moetool.tensors import DType

# Bits of a weight. The largest of 32 normal weights is at 2.4 deviations; 2^bits steps over twice
# that are off by 1.4 / 2^bits of a deviation, as root mean square.
_BITS: dict[DType, float] = {
    DType.Q8_0: 8.0, DType.Q6_K: 6.0, DType.Q5_0: 5.0, DType.Q5_1: 5.0, DType.Q5_K: 5.0,
    DType.Q4_0: 4.0, DType.Q4_1: 4.0, DType.Q4_K: 4.0, DType.MXFP4: 3.5, DType.Q3_K: 3.0,
    DType.Q2_K: 2.0,
}  # fmt: skip


def usual_rel_rms(dtype: DType) -> float:
    """The root mean square error of normal weights in blocks of a type, relative to theirs.

    Raises:
        KeyError: a type that has no codec here.
    """
    return 1.4 / float(2.0 ** _BITS[dtype])
