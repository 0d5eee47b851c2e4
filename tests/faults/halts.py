"""A run that halts at chosen calls and goes on when the test has done what it came for.

The hook in the process writes a line before and after each such call and waits for an answer: the
moment is exact, whichever thread makes the call and however slow the machine is.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from .harness import PATIENCE, WEIGHTS, Done, Place, finish

SYNCS = ("fsync", "fdatasync")
MOVES = ("rename", "replace")


@dataclass(frozen=True)
class Halt:
    """``before`` or ``after`` which call, on which path."""

    when: str
    call: str
    path: Path


class Halted:
    """A conversion under way; as a context, it is killed at the end if it did not end itself."""

    def __init__(self, place: Place, calls: Sequence[str], *prefix: str) -> None:
        self._asked, asks = os.pipe()
        answers, self._answer = os.pipe()
        there = place.having(
            FAULTS_ROOTS=str(place.folder),
            FAULTS_HALT=f"{answers} {asks}",
            FAULTS_HALT_AT=",".join(calls),
        )
        self.began = time.monotonic()
        self.process = there.start(*prefix, descriptors=(answers, asks))
        os.close(answers)
        os.close(asks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=PATIENCE)

    def go_on(self) -> None:
        """Halt no more: whoever waits for an answer finds that nobody is there."""
        for descriptor in (self._asked, self._answer):
            if descriptor >= 0:
                os.close(descriptor)
        self._asked = self._answer = -1

    def end(self) -> Done:
        """Halt no more, and wait for the end."""
        self.go_on()
        return finish(self.process, self.began)

    def halts(self) -> Iterator[Halt]:
        """Each halt; the run goes on when the next one is asked for."""
        while self._asked >= 0:
            ready, _, _ = select.select([self._asked], [], [], PATIENCE)
            assert ready, f"neither a halt nor an end in {PATIENCE} s"
            line = os.read(self._asked, select.PIPE_BUF).decode()  # one halt at a time is under way
            if not line:
                return
            when, call, path = line.rstrip("\n").split(" ", 2)
            yield Halt(when, call, Path(path))
            if self._answer >= 0:
                os.write(self._answer, b"g")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop every thread, not only the one that halts: the others would go on writing."""
        tasks, end = Path(f"/proc/{self.process.pid}/task"), time.monotonic() + PATIENCE
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            while {_state(task) for task in tasks.iterdir()} - set("TtZX"):
                assert time.monotonic() < end, "a thread does not stop"
                time.sleep(0.0005)
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"  # it has left


def is_shard(halt: Halt) -> bool:
    """Whether a file of weights in work is what a halt is about."""
    return halt.path.suffix == ".tmp" and halt.path.with_suffix("").suffix in WEIGHTS


def stopped_with(place: Place, n_shards: int) -> Halt:
    """Kill a run when so many shards are finished and entered, and the next is about to be."""
    with Halted(place, MOVES) as run:
        for halt in run.halts():
            if halt.when == "before" and is_shard(halt) and len(place.shards()) == n_shards:
                run.process.kill()
                return halt
        done = run.end()
    raise AssertionError(f"there was no moment with {n_shards} shards finished: {done}")
