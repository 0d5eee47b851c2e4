"""Killed at any moment: `kill -9` is the normal way to stop, Ctrl-C and SIGTERM are polite ones."""

import random
import signal
import time

import pytest

from .halts import MOVES, Halted, is_shard
from .harness import PATIENCE, Done, sample

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]

TRIALS = {"hf": (100, 4), "gguf": (50, 1), "pth": (50, 3)}  # long form, short form: 200 in all
POLITE = {signal.SIGINT: 130, signal.SIGTERM: 143}
PROMPT = 2  # seconds from a polite signal to the exit


def wait_for_work(place, process):
    """Wait until the work folder is there, the process has ended, or patience ends."""
    until = time.monotonic() + PATIENCE
    while not place.partial.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.0005)


def spans(place):
    """Measure an undisturbed run: seconds until the work folder is there, and from then on."""
    began = time.monotonic()
    process = place.start()
    wait_for_work(place, process)
    middle = time.monotonic()
    _, words = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, words
    place.clear()
    return middle - began, time.monotonic() - middle


def stop_at(place, number, wait):
    """Start a run, wait (from the start, or from the first sign of work), and signal it."""
    process = place.start()
    if wait < 0:
        time.sleep(-wait)
    else:
        wait_for_work(place, process)
        time.sleep(wait)
    process.send_signal(number)
    signalled = time.monotonic()
    _, words = process.communicate(timeout=PATIENCE)
    return Done(process.returncode, words, time.monotonic() - signalled)


@pytest.mark.parametrize("shape", TRIALS)
def test_killed_at_random_times(shape, place, tally, many):
    """Seeded moments over the whole run, most of them while it writes; the code is -9 or 0."""
    here, count = place(shape), tally("kill -9 at random", shape)
    before, inside = spans(here)
    moments = random.Random(shape)
    for trial in range(many(*TRIALS[shape])):
        early = trial % 10 == 9
        wait = -moments.uniform(0, before) if early else moments.uniform(0, inside)
        ended = stop_at(here, signal.SIGKILL, wait)
        where = "after" if here.out.exists() else "inside" if here.partial.exists() else "before"
        count.note(where)
        inside *= 0.8 if where == "after" else 1.05  # others use the machine: its pace changes
        count.judge(f"{shape} {trial} at {wait:.4f} s ({where})", here, ended, {-9, 0})
        here.clear()
    assert count.notes.get("inside", 0) >= count.trials // 4, count.notes
    count.settle(anew=0.05)


@pytest.mark.parametrize("number", POLITE, ids=lambda number: number.name)
def test_asked_to_stop(number, place, tally, many):
    """Ctrl-C and SIGTERM while it writes: their own exit codes, within two seconds, resumable."""
    here, count = place("hf"), tally(number.name, "hf")
    dice = random.Random(number)
    for n_shards in sample(range(11), many(11, 2)):
        with Halted(here, MOVES) as run:
            for halt in run.halts():
                if halt.when == "before" and is_shard(halt) and len(here.shards()) == n_shards:
                    break
            run.go_on()
            time.sleep(dice.uniform(0, 0.01))
            run.process.send_signal(number)
            signalled = time.monotonic()
            ended = run.end()
        if time.monotonic() - signalled > PROMPT:
            count.wrong.append(f"{number.name}: {time.monotonic() - signalled:.1f} s to leave")
        count.note("stopped" if ended.code else "too late")
        count.judge(f"{number.name} after {n_shards}", here, ended, {POLITE[number], 0})
        here.clear()
    assert count.notes.get("stopped", 0) >= count.trials // 2, count.notes
    count.settle(anew=0.05)
