"""One rank fails: all are gone soon, with its exit code and its reason."""

from __future__ import annotations

import time

import pytest

from moetool.errors import Interrupted, MoetoolError, NotEnoughMemory, Refused, SystemFault
from moetool.model.parallel.watch import Failure

SOON_S = 60  # most of it is importing torch three times


def test_a_rank_that_refuses_takes_those_along_that_wait_for_it(failing):
    began = time.monotonic()
    codes, said = failing(3, "refuse")
    assert codes == [4, 4, 4]
    assert said[0] == "error: rank 1: this rank does not like it\n"
    assert said[1:] == ("", "")
    assert time.monotonic() - began < SOON_S


def test_a_rank_that_is_killed_is_missed(failing):
    began = time.monotonic()
    codes, said = failing(2, "die")
    assert codes == [5, -9]
    assert "rank 1 does not answer" in said[0]
    assert time.monotonic() - began < SOON_S


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (Refused("no", hint="so", findings=("a", "b")), Refused, 4),
        (NotEnoughMemory("no"), SystemFault, 5),
        (OSError("no"), SystemFault, 5),
        (Interrupted("terminated", exit_code=143), Interrupted, 143),
        (KeyboardInterrupt(), Interrupted, 130),
        (ZeroDivisionError("no"), MoetoolError, 1),
    ],
)
def test_a_failure_arrives_as_an_error_of_its_branch(error, kind, code):
    failure = Failure.of(2, error)
    assert Failure.read(str(failure).encode()) == failure
    arrived = failure.as_error()
    assert type(arrived) is kind
    assert arrived.exit_code == code
    assert str(arrived).startswith("rank 2: ")
    assert arrived.findings == getattr(error, "findings", ())
