"""Two checkpoints, any layouts: where they differ, by how much, and what happened.

subject       one side, also where tensors are missing or extra
structure     tensors, shapes, types, settings                         no weight is read
numbers       how far two canonical tensors are apart, in one pass
traits        what the differing values share: zeros, NaN, a cast, a bit
assignment    which of n is which of n others, at the least cost
experts       which expert of A is which of B
flows         a tensor in another order, a chunk at a time
rearranged    is a tensor of B one of A's in another order?
damage        what happened, told once for all it hit
compare       the whole
report        the result as data
"""

from __future__ import annotations

from moetool.proof.diff.compare import compare
from moetool.proof.diff.damage import by_order, spans
from moetool.proof.diff.numbers import Numbers, compare_values
from moetool.proof.diff.report import Damage, DiffReport
from moetool.proof.diff.subject import Subject, open_subject

__all__ = [
    "Damage", "DiffReport", "Numbers", "Subject", "by_order", "compare", "compare_values",
    "open_subject", "spans",
]  # fmt: skip
