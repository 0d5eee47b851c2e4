"""The judge of the campaign: what every trial must show, and the row that a class of them makes."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from .harness import INTERNAL, JOURNAL, Done, Place, digests

GAP = "stopped without a journal just before the end"


@dataclass
class Tally:
    """The outcomes of one class of faults; ``wrong`` lists each broken promise.

    ``trusted`` is False where the fault is in the journal or in a finished shard itself: then what
    the journal says is finished may have to be made again.
    """

    kind: str
    expected: dict[str, str]
    trusted: bool = True
    trials: int = 0
    complete: int = 0  # the final name was there after the fault
    resumed: int = 0
    finished: int = 0  # renamed, and entered in the journal
    reused: int = 0
    marked: int = 0
    marks_reused: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def judge(self, label: str, place: Place, done: Done, codes: Collection[int]) -> None:
        """Settle one trial: what the fault left, then the same command again."""
        self.trials += 1
        self._words(label, done)
        if done.code not in codes:
            self.wrong.append(
                f"{label}: exit {done.code}, not {sorted(codes)}: {done.words[-300:]}"
            )
        if place.out.exists():
            self.complete += 1
        else:
            if done.code == 0:
                self.wrong.append(f"{label}: exit 0 without an output")
            self._resume(label, place)
        self._whole(label, place)

    def _resume(self, label: str, place: Place) -> None:
        before, entered, marked = place.shards(), place.entered(), place.marked()
        journal = (place.partial / JOURNAL).exists()
        if before and not journal:
            self.note(GAP)
            entered = set(before)  # finished all the same: the row shows what that costs
        again = place.run()
        self._words(f"{label}, again", again)
        if again.code:
            self.wrong.append(f"{label}: again gives {again.code}: {again.words[-300:]}")
            return
        self.resumed += 1
        after = place.shards()
        kept = {name for name, identity in before.items() if after.get(name) == identity}
        marks_kept = {name for name, inode in marked.items() if after.get(name, (0,))[0] == inode}
        self.finished += len(entered)
        self.reused += len(entered & kept)
        self.marked += len(marked)
        self.marks_reused += len(marks_kept)
        lost = sorted((entered - kept) | (set(marked) - marks_kept))
        if self.trusted and journal and lost:
            self.wrong.append(f"{label}: written again though the journal held them: {lost}")
        between = sorted(set(before) - entered)
        if between:
            self.note("between rename and journal")
        if self.trusted and len(between) > 1:
            self.wrong.append(f"{label}: renamed and not entered: {between}")

    def _words(self, label: str, done: Done) -> None:
        for word in INTERNAL:
            if word in done.words:
                self.wrong.append(f"{label}: {word!r} in {done.words[-600:]}")

    def _whole(self, label: str, place: Place) -> None:
        found = digests(place.out) if place.out.is_dir() else {}
        names = sorted(
            name for name in {*found, *self.expected} if found.get(name) != self.expected.get(name)
        )
        if names:
            self.wrong.append(f"{label}: CORRUPT output, {names[:6]}")
        strays = sorted(path.name for path in place.view.iterdir() if path.name != "out")
        if strays:
            self.wrong.append(f"{label}: strays {strays}")

    def note(self, word: str) -> None:
        """Count something of interest."""
        self.notes[word] = self.notes.get(word, 0) + 1

    def settle(self, *, reach: float = 0.0, anew: float = 1.0) -> None:
        """Fail with every broken promise.

        ``reach`` is the share of points that must be reached, ``anew`` that of trials which may be
        stopped between the journal's removal and the last rename, so that all is written anew.
        """
        assert not self.wrong, "\n".join(self.wrong)
        assert self.trials, "not one trial"
        missed = self.notes.get("not reached", 0)
        assert self.trials >= reach * (self.trials + missed), self.row()
        assert self.notes.get(GAP, 0) <= math.ceil(anew * self.trials), self.row()

    def row(self) -> str:
        """One line of the campaign's table."""
        reuse = f"{self.reused}/{self.finished}" if self.finished else "-"
        marks = f"{self.marks_reused}/{self.marked}" if self.marked else "-"
        notes = ", ".join(f"{count} {word}" for word, count in sorted(self.notes.items()))
        return (
            f"| {self.kind} | {self.trials} | {self.complete} | {self.resumed} | {reuse} | {marks} "
            f"| {len(self.wrong)} | {notes} |"
        )
