"""What others do meanwhile: a second process on the same output, and a source that changes."""

import os
import time

import pytest

from .halts import MOVES, Halted, is_shard
from .harness import finish

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def test_two_processes_on_one_output(place, tally, many):
    """One of them wins, the other leaves with 7; the output is whole and nothing stays."""
    here, count = place("hf"), tally("two at once", "hf")
    for trial in range(many(40, 2)):
        began = time.monotonic()
        pair = [here.start(), here.start()]
        ends = sorted([finish(process, began) for process in pair], key=lambda end: end.code)
        count.judge(f"{trial}, the winner", here, ends[0], {0})
        if ends[1].code != 7:
            count.wrong.append(f"{trial}: the loser left with {ends[1].code}: {ends[1].words}")
        here.clear()
    count.settle()


def test_a_second_process_while_the_first_writes(place, tally, many):
    """The second comes when so many shards are finished: 7, and the first is not disturbed."""
    here, count = place("hf"), tally("a second one later", "hf")
    for n_shards in range(12)[:: many(1, 6)]:
        with Halted(here, MOVES) as run:
            for halt in run.halts():
                if halt.when == "before" and is_shard(halt) and len(here.shards()) == n_shards:
                    second = here.run()
            first = run.end()
        count.judge(f"{n_shards}, the first", here, first, {0})
        if second.code != 7:
            count.wrong.append(f"{n_shards}: the second left with {second.code}: {second.words}")
        here.clear()
    count.settle()


@pytest.mark.parametrize("call", ["mkdir", "flock"])
def test_the_other_ends_between_a_look_and_a_lock(call, place, tally):
    """One looks for the output, the other publishes it, then the first takes the lock: still 7."""
    here, count = place("hf"), tally(f"another ends before the {call}", "hf")
    with Halted(here, (call,)) as slow:
        other = None
        for halt in slow.halts():
            if other is None and halt.when == "before" and "out.partial" in str(halt.path):
                other = here.run()
        late = slow.end()
    assert other is not None, f"no {call} was seen"
    count.judge("the other", here, other, {0})
    if late.code != 7:
        count.wrong.append(f"the late one left with {late.code}: {late.words}")
    count.settle()


def test_a_source_that_was_touched_is_another_source(half_done, tally):
    """Another time stamp: exit 7 and nothing mixed; the old time back: the same run goes on."""
    here, count = half_done(own_source=True), tally("source touched between runs", "hf")
    weights = here.raw / "consolidated.00.pth"
    stamp = weights.stat().st_mtime_ns
    kept = here.shards()
    os.utime(weights, ns=(stamp + 10**9, stamp + 10**9))
    ended = here.run()
    assert here.shards() == kept
    os.utime(weights, ns=(stamp, stamp))
    count.judge("touched", here, ended, {7})
    count.settle(anew=0)


def test_a_source_that_changes_under_the_work(half_done, tally):
    """Its time changes while it is read: nothing is published, and with the old time it goes on."""
    here, count = half_done(own_source=True), tally("source touched during a run", "hf")
    weights = here.raw / "consolidated.00.pth"
    stamp = weights.stat().st_mtime_ns
    with Halted(here, MOVES) as run:
        for halt in run.halts():
            if halt.when == "before" and is_shard(halt) and len(here.shards()) == 8:
                os.utime(weights, ns=(stamp + 10**9, stamp + 10**9))
        ended = run.end()
    os.utime(weights, ns=(stamp, stamp))
    count.judge("touched", here, ended, {7})
    count.settle(anew=0)


def test_other_weights_under_the_same_stamp(half_done, tally):
    """Size and time are kept and the bytes are not: the checksums in the source say so."""
    here, count = half_done(own_source=True), tally("source replaced between runs", "hf")
    weights = here.raw / "consolidated.00.pth"
    stat, content = weights.stat(), weights.read_bytes()
    weights.write_bytes(content[:6_000_000] + bytes([content[6_000_000] ^ 1]) + content[6_000_001:])
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    ended = here.run()
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    count.judge("replaced", here, ended, {3})
    count.settle(anew=0)


def test_other_options_are_another_job(half_done, tally):
    """Another shard size: exit 7 and nothing mixed; the old options go on."""
    here, count = half_done(), tally("options changed between runs", "hf")
    kept = here.shards()
    ended = here.run(more=("--max-shard-size", "2MB"))
    assert here.shards() == kept
    count.judge("options", here, ended, {7})
    count.settle(anew=0)
