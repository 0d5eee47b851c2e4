"""What `spreads`, `fits` and `compare` compute, as compiled loops: the same bits, much faster.

torch takes one pass over memory for each operation; here all of a search is done while its weights
are in the first cache. The inner loops run over groups that stand side by side, so the compiler
makes vectors of them while each group's sums keep their order. Nothing is fused and nothing
reordered (no fastmath): that is what the equality of bits rests on. It needs numba, an optional
extra; each function is compiled when it is first called, and kept on disk.
"""

from moetool.quant.compiled.compare import sums_of
from moetool.quant.compiled.fits import refined, signed, stored_levels, with_minimum
from moetool.quant.compiled.spreads import by_extreme, by_largest, by_range

__all__ = [
    "by_extreme",
    "by_largest",
    "by_range",
    "refined",
    "signed",
    "stored_levels",
    "sums_of",
    "with_minimum",
]
