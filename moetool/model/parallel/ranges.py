"""Which layers each rank of a pipeline has: one range each, so that the fullest is least full."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from moetool.errors import UsageFault


def split_layers(
    layers: Sequence[int], n_ranks: int, before: int = 0, behind: int = 0
) -> list[range]:
    """Cut layers of these sizes into ranges.

    ``before`` is the size of what the first rank has beside its layers, ``behind`` of what the last
    one has. Of cuts that are equally good, the evenest one.

    Raises:
        UsageFault: there are more ranks than layers.
    """
    if n_ranks > len(layers):
        raise UsageFault(
            f"{n_ranks} ranks for {len(layers)} layers",
            hint=f"at most --nproc-per-node {len(layers)}",
        )

    def nbytes(start: int, stop: int) -> int:
        ends = (before if start == 0 else 0) + (behind if stop == len(layers) else 0)
        return sum(layers[start:stop]) + ends

    @cache
    def best(start: int, n: int) -> tuple[int, int, tuple[int, ...]]:
        """The size of the fullest, the sum of squares, and the ends of ``n`` ranges from here."""
        if n == 1:
            size = nbytes(start, len(layers))
            return size, size * size, (len(layers),)
        found = []
        for stop in range(start + 1, len(layers) - n + 2):
            size = nbytes(start, stop)
            fullest, squares, stops = best(stop, n - 1)
            found.append((max(size, fullest), size * size + squares, (stop, *stops)))
        return min(found)

    stops = best(0, n_ranks)[2]
    return [range(start, stop) for start, stop in zip((0, *stops), stops, strict=False)]
