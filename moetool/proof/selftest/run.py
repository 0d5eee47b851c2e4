"""Put in each fault, let every command look, and say which of them caught it and by which words.

The sound subjects go first: a command that finds something in one of them would find something in
anything. What it costs to be sure of the detectors is a few minutes; nobody else has tried them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from moetool.proof.selftest.fault import Detector, Fault, Kind, Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.proof.selftest.release import Bench

# Running the model takes seconds, and has nothing to say of a container.
SEMANTIC_ONLY = frozenset({"smoke-test"})
FINE = 0


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one fault.

    ``codes`` are the exit codes by command, ``caught_by`` the commands that said by theirs that
    something is wrong. ``named`` is the line that names the fault, from the first of the commands
    that must; ``lapses`` say what did not go as the fault's entry demands.
    """

    fault: str
    kind: Kind
    what: str
    codes: Mapping[str, int]
    caught_by: tuple[str, ...]
    named: str
    lapses: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Caught and named by every command that must, and nothing broke."""
        return bool(self.caught_by) and not self.lapses


@dataclass(frozen=True, slots=True)
class SoundSubject:
    """What the commands said of a subject without a fault; ``alarms`` must be empty."""

    subject: str
    codes: Mapping[str, int]
    alarms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SelftestReport:
    """Every fault and every sound subject, and what the commands made of them.

    ``missed`` are the faults that were not caught, or not by whom and as they must be.
    """

    schema: ClassVar[str] = "moetool.selftest"
    version: ClassVar[int] = 1

    commands: tuple[str, ...]
    trials: tuple[Trial, ...]
    sound: tuple[SoundSubject, ...]
    n_caught: int
    n_named: int
    missed: tuple[str, ...]
    n_false_alarms: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Nothing was missed, and nothing sound was blamed."""
        return not self.missed and not self.n_false_alarms


def selftest(
    bench: Bench,
    faults: Sequence[Fault],
    detectors: Mapping[str, Detector],
    progress: Callable[[int, str], None] = lambda _done, _name: None,
) -> SelftestReport:
    """Try the detectors on every sound subject and on every fault.

    ``progress`` is called with the number of subjects done and the name of the next.
    """
    began, done = time.monotonic(), 0
    sound, trials = [], []
    for subject, path in bench.subjects.items():
        progress(done, f"sound {subject}")
        sound.append(_look_at_sound(subject, path, bench.good, detectors))
        done += 1
    for fault in faults:
        progress(done, fault.name)
        trials.append(_try(bench, fault, detectors))
        done += 1
    bench.clear()
    return SelftestReport(
        commands=tuple(detectors),
        trials=tuple(trials),
        sound=tuple(sound),
        n_caught=sum(bool(trial.caught_by) for trial in trials),
        n_named=sum(bool(trial.named) for trial in trials),
        missed=tuple(trial.fault for trial in trials if not trial.ok),
        n_false_alarms=sum(len(each.alarms) for each in sound),
        seconds=time.monotonic() - began,
    )


def _look_at_sound(
    subject: str, path: Path, good: Path, detectors: Mapping[str, Detector]
) -> SoundSubject:
    outcomes = {command: look(path, good) for command, look in detectors.items()}
    alarms = [
        f"{command}: exit {outcome.code}: {_first_line(outcome.text)}"
        for command, outcome in outcomes.items()
        if outcome.code != FINE
    ]
    return SoundSubject(subject, _codes(outcomes), tuple(alarms))


def _try(bench: Bench, fault: Fault, detectors: Mapping[str, Detector]) -> Trial:
    began = time.monotonic()
    path = fault.make(bench)
    here = f"{path.parent}/"  # of no interest to who reads the report
    outcomes = {
        command: _without(here, look(path, bench.good))
        for command, look in detectors.items()
        if fault.kind is Kind.SEMANTIC or command not in SEMANTIC_ONLY
    }
    lines = [
        naming_line(words, outcomes[command].text)
        for command, words in fault.expected.items()
        if command in outcomes and outcomes[command].caught
    ]
    return Trial(
        fault=fault.name,
        kind=fault.kind,
        what=fault.what,
        codes=_codes(outcomes),
        caught_by=tuple(command for command, outcome in outcomes.items() if outcome.caught),
        named=next(filter(None, lines), ""),
        lapses=tuple(_lapses(fault, outcomes)),
        seconds=time.monotonic() - began,
    )


def _without(folder: str, outcome: Outcome) -> Outcome:
    return replace(outcome, text=outcome.text.replace(folder, ""))


def _lapses(fault: Fault, outcomes: Mapping[str, Outcome]) -> list[str]:
    """What is not as the fault's entry demands."""
    found = [
        f"{command} broke with exit {outcome.code}: {_first_line(outcome.text)}"
        for command, outcome in outcomes.items()
        if outcome.code != FINE and not outcome.caught
    ]
    for command, words in fault.expected.items():
        outcome = outcomes.get(command)
        if outcome is None or not outcome.caught:
            found.append(f"{command} did not catch it")
        elif not naming_line(words, outcome.text):
            found.append(f"{command} did not name it: no /{words}/")
    return found


def naming_line(words: str, text: str) -> str:
    """The first line in which the regular expression is found; empty where none is."""
    pattern = re.compile(words)
    return next((line.strip() for line in text.splitlines() if pattern.search(line)), "")


def _codes(outcomes: Mapping[str, Outcome]) -> dict[str, int]:
    return {command: outcome.code for command, outcome in outcomes.items()}


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no output")
