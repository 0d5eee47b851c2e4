"""What a fault is: how it is put into a fresh copy, who must catch it, and by which words.

A **container** fault breaks a digest, a header or a list of files: who has a reference sees it. A
**semantic** fault lies in a sound container without any reference, as a wrong converter would have
written it: every checksum is right, and only the values, or what the model does, can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.errors import Mismatch, Refused

if TYPE_CHECKING:
    from moetool.proof.selftest.model import Model
    from moetool.proof.selftest.release import Bench

CAUGHT = (Mismatch.exit_code, Refused.exit_code)


class Kind(Enum):
    """Where a fault lies."""

    CONTAINER = "container"
    SEMANTIC = "semantic"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    ``make`` puts it into a fresh copy and returns the path of that. ``expected`` maps each command
    that must catch it to a regular expression of the words that must name it; another command may
    catch it besides.
    """

    name: str
    kind: Kind
    what: str
    make: Callable[[Bench], Path]
    expected: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command said of a checkpoint: its exit code, and all that it printed."""

    code: int
    text: str

    @property
    def caught(self) -> bool:
        """True when it said that something is wrong, by exit code."""
        return self.code in CAUGHT


# A command as a function of the checkpoint under test and the sound release. Neither says which
# fault was put in, or whether any was.
Detector = Callable[[Path, Path], Outcome]


def written(
    subject: str, name: str, what: str, change: Callable[[Model], None], **expected: str
) -> Fault:
    """A semantic fault: the weights after ``change``, written as a bare subject is written.

    ``expected`` is as in `Fault`, with ``smoke_test`` for ``smoke-test``.
    """

    def make(bench: Bench) -> Path:
        return bench.write(subject, change)

    return Fault(name, Kind.SEMANTIC, what, make, _by_command(expected))


def copied(
    subject: str,
    name: str,
    what: str,
    damage: Callable[[Path], None],
    *,
    kind: Kind = Kind.CONTAINER,
    **expected: str,
) -> Fault:
    """A fault in a copy of a sound subject: ``damage`` is given the folder and edits its files."""

    def make(bench: Bench) -> Path:
        path = bench.copy(subject)
        damage(path)
        return path

    return Fault(name, kind, what, make, _by_command(expected))


def _by_command(expected: Mapping[str, str]) -> dict[str, str]:
    return {command.replace("_", "-"): words for command, words in expected.items()}
