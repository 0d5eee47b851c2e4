"""How far something lies from its like, told by medians: a few strays do not move them.

Scales are compared as log2, so that a factor is a distance. The spread is the median absolute
deviation times 1.4826, which for normal values is their standard deviation.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TO_SIGMA = 1.4826  # 1 / the 75 % quantile of a normal distribution


@dataclass(frozen=True, slots=True)
class Centre:
    """The median of scales in log2, and their spread."""

    median: float
    spread: float

    def reach(self, least: float, n_spreads: float, widest: float) -> float:
        """How far off is far: ``n_spreads`` spreads, at least ``least``.

        A spread counts for ``widest`` at most: where a third of all rows is wrong, they must not
        excuse each other.
        """
        return max(least, n_spreads * min(self.spread, widest))


def centre(scales: Sequence[float]) -> Centre:
    """Median and spread of at least one number."""
    median = statistics.median(scales)
    deviations = [abs(scale - median) for scale in scales]
    return Centre(median, TO_SIGMA * statistics.median(deviations))


def centre_of_rows(scales: torch.Tensor) -> Centre:
    """Median and spread of a vector with at least one element ``[R]``."""
    median = scales.median()
    return Centre(float(median), TO_SIGMA * float((scales - median).abs().median()))
