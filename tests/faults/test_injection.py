"""The n-th call fails, lies, or is the last one: n = 1, 2, 3 … for every call that there is."""

from itertools import cycle

import pytest

from .harness import LONG, sample
from .means import Hook, Listed, Strace, refusal

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]

FIRST_WRITES = 30
STEPS = {"fsync", "rename", "ftruncate", "fallocate", "mkdir", "unlink"}
# The errors go round from point to point. Python repeats what EINTR stopped, but for rename, for
# which no file system of ours gives it.
ERRORS = {
    "write": ("EIO", "ENOSPC", "EACCES"),
    "fsync": ("EIO", "ENOSPC"),
    "rename": ("EIO", "ENOSPC", "EACCES"),
    "read": ("EIO", "EACCES"),
    "ftruncate": ("EIO", "ENOSPC", "EACCES"),
    "fallocate": ("ENOSPC", "EIO"),
    "mkdir": ("ENOSPC", "EACCES"),
    "unlink": ("EIO", "EACCES"),
}
EVERY = 10**6
REACH = 0.9  # of the points: the threads of two runs need not agree on each
SHORT = [("strace", "hf"), ("hook", "pth")]
MORE = [("strace", "gguf"), ("strace", "pth"), ("hook", "hf")]
BY_HOOK = ("write", "fsync", "rename", "read", "ftruncate", "mkdir")  # what Python itself calls


def refused(point):
    """The exit codes that are right: a folder that is there already need not be made."""
    return {0} if point.kind == "mkdir" and point.number > 1 else {5}


@pytest.fixture(scope="session")
def listed():
    """The points that were listed already."""
    return Listed()


@pytest.fixture
def means(request, tmp_path):
    """A means of injection: strace from outside the process, the hook from inside it."""
    if request.param == "hook":
        return Hook(tmp_path / "hook.log")
    if refusal():
        pytest.skip(f"UNTESTED: {refusal()}")
    return Strace(tmp_path / "strace.log")


@pytest.fixture
def trial(place, listed):
    """Inject one fault after the other into conversions of a shape, and have each judged."""

    def run(count, means, shape, wanted, actions, codes, few):
        here = place(shape)
        found = [point for point in listed.of(means, shape, here) if wanted(point)]
        assert found, "no such call was seen"
        for point, action in zip(sample(found, few), cycle(actions), strict=False):
            done, fired = means.run(here, point, action)
            if fired:
                count.judge(f"{shape} {action} at {point}", here, done, codes(point))
            else:
                count.note("not reached")
            here.clear()

    return run


@pytest.mark.parametrize(
    ("means", "shape"),
    SHORT + (MORE if LONG else []),
    indirect=["means"],
)
def test_killed_at_every_step(shape, means, tally, trial, many):
    """KILL at every fsync, rename, ftruncate, mkdir, unlink, and at the first thirty writes."""
    count = tally(f"KILL at a call ({means.name})", shape)
    few = many(EVERY if means.name == "strace" else 40, 2)
    trial(count, means, shape, lambda p: p.kind in STEPS, ["kill"], lambda _: {-9}, few)
    first = iter(range(FIRST_WRITES))
    trial(count, means, shape, lambda p: p.kind == "write" and next(first, None) is not None,
          ["kill"], lambda _: {-9}, many(FIRST_WRITES, 1))  # fmt: skip
    count.settle(reach=REACH)


@pytest.mark.parametrize(
    ("means", "shape", "kind"),
    [
        (means, shape, kind)
        for means, shape in SHORT + ([("strace", "pth"), ("hook", "hf")] if LONG else [])
        for kind in (ERRORS if means == "strace" else BY_HOOK)
    ],
    indirect=["means"],
)
def test_the_nth_call_fails(shape, kind, means, tally, trial, many):
    """Each call fails once: exit 5, nothing is tried again, and the same command goes on."""
    count = tally(f"{kind} fails ({means.name})", shape)
    few = many(100 if means.name == "strace" else 30, 1)
    trial(count, means, shape, lambda p: p.kind == kind, ERRORS[kind], refused, few)
    count.settle(reach=REACH)


@pytest.mark.parametrize("means", ["strace"], indirect=True)
@pytest.mark.parametrize("kind", ["write", "fsync", "read", "ftruncate", "fallocate"])
def test_a_signal_in_the_middle_of_a_call(kind, means, tally, trial, many):
    """EINTR is no error: the call is made again, and the run ends well."""
    count = tally(f"EINTR in {kind}", "hf")
    trial(count, means, "hf", lambda p: p.kind == kind, ["EINTR"], lambda _: {0}, many(12, 1))
    count.settle(reach=REACH)
