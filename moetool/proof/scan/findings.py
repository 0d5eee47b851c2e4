"""What is said of values, and from where on: every threshold of the scan, with its reason.

Errors are what no training leaves behind. What some healthy model may have is a warning, and a
note is worth knowing. How often healthy checkpoints set one off is measured
(docs/explanation/scan.md, benchmarks/scan.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moetool.proof.scan.subjects import Item

LARGEST = 1e4  # of a weight's magnitude; in published models the largest are below 100

# One value against the median magnitude of its row.
SPIKE, WILD_SPIKE = 256.0, 4096.0

# Row scales in log2 against the median row: a factor of 8, and 64.
ROW_REACH, WILD_ROW = 3.0, 6.0
# Tensor scales against the same role elsewhere: 4 and 64 for matrices, 32 for norms, whose scale
# grows with the layers. With fewer than 4 siblings no spread is known: 8.
TENSOR_REACH, WILD_TENSOR, NORM_REACH, PAIR_REACH = 2.0, 6.0, 5.0, 3.0
FEWEST_SIBLINGS = 4
N_SPREADS, WIDEST_SPREAD = 6.0, 1.0

# Root mean square of a matrix; initialisations lie between 0.002 and 1.
LEAST_SCALE, MOST_SCALE = 1e-5, 16.0

MOST_OF_A_KIND = 8  # findings of one code in one tensor; the last says how many more there are


class Severity(Enum):
    """How sure it is that something is wrong."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about values: where, what, and a code that stays the same between versions.

    ``tensor`` is the canonical name where the model is recognised, else the stored one; ``stored``
    is empty where it would be the same. ``rows`` are first and last, of the canonical matrix.
    ``count`` says of how many values, rows or tensors it is true.
    """

    code: str
    severity: Severity
    tensor: str
    reason: str
    stored: str = ""
    layer: int | None = None
    expert: int | None = None
    rows: tuple[int, int] | None = None
    column: int | None = None
    count: int = 1

    @property
    def place(self) -> str:
        """Rows and column for people: ``rows 4-7``, ``row 3 column 9``."""
        if self.rows is None:
            return ""
        first, last = self.rows
        rows = f"row {first}" if first == last else f"rows {first}-{last}"
        return rows + ("" if self.column is None else f" column {self.column}")


def finding(  # one named value for each column of the report
    code: str,
    severity: Severity,
    item: Item,
    reason: str,
    *,
    rows: tuple[int, int] | None = None,
    column: int | None = None,
    count: int = 1,
) -> Finding:
    """A finding about one tensor."""
    name, slot = item.info.name, item.slot
    return Finding(
        code,
        severity,
        name,
        reason,
        stored="" if item.stored == name else item.stored,
        layer=slot.layer if slot else None,
        expert=slot.expert if slot else None,
        rows=rows,
        column=column,
        count=count,
    )
