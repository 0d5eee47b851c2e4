"""Which bytes of a file are settled, and as what: arithmetic on byte ranges.

A digest that does not match says that at least one byte of its range is wrong; one that matches
says that every byte of its range is right. So the wrong bytes lie in what some failing range holds
and no passing one does: a piece, a storage of the zip and the whole file narrow each other down.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from moetool.extents import Range, length, subtract, union


@dataclass(frozen=True, slots=True)
class Tally:
    """The bytes of a file by what was found of them; together the size of the file."""

    match: int = 0
    mismatch: int = 0
    unreadable: int = 0
    not_covered: int = 0


def suspects(failing: Sequence[Range], passing: Sequence[Range]) -> list[Range]:
    """Where the wrong bytes of a file lie.

    Each failing range holds one. The narrow ones are looked at first, and a wide one that holds a
    suspect already is explained by it. Where passing ranges cover a failing one whole, two
    references contradict each other, and all of it stays under suspicion.
    """
    good = union(passing)
    narrowed: list[Range] = []
    for low, high in sorted(failing, key=lambda bad: bad[1] - bad[0]):
        behind = bisect_left(narrowed, (low, low))
        if behind < len(narrowed) and narrowed[behind][1] <= high:
            continue
        for part in subtract([(low, high)], good) or [(low, high)]:
            insort(narrowed, part)
    return union(narrowed)


def tally(
    nbytes: int, *, bad: Sequence[Range], unread: Sequence[Range], good: Sequence[Range]
) -> Tally:
    """Count the bytes of a file: what is wrong, what could not be read, what is right."""
    wrong = length(union(bad))
    unreadable = length(subtract(unread, [*bad, *good]))
    right = length(subtract(good, bad))
    return Tally(right, wrong, unreadable, max(0, nbytes - wrong - unreadable - right))
