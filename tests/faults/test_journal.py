"""The journal is mutated 1,000 times: what it claims is checked, so the output is always right."""

import random
import shutil

import pytest

from moetool.cli.app import run

from .harness import JOURNAL, Done

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]


def flip(data, dice):
    at = dice.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]


def torn(data, dice):
    return data[: dice.randrange(len(data))]


def garbage(data, dice):
    return data + dice.randbytes(dice.randrange(1, 300))


def zeros(data, dice):
    at = dice.randrange(len(data))
    return data[:at] + bytes(len(data) - at)


def dropped(data, dice):
    lines = data.splitlines(keepends=True)
    del lines[dice.randrange(len(lines))]
    return b"".join(lines)


def doubled(data, dice):
    lines = data.splitlines(keepends=True)
    return b"".join([*lines, dice.choice(lines)])


def shuffled(data, dice):
    lines = data.splitlines(keepends=True)
    dice.shuffle(lines)
    return b"".join(lines)


MUTATIONS = (flip, torn, garbage, zeros, dropped, doubled, shuffled)


@pytest.mark.parametrize("worker", [0, 1])
def test_a_mutated_journal_never_spoils_the_output(worker, half_done, tmp_path, tally, many):
    """Bits, lines, tails: whatever is left of the claims, exit 0 and the right bytes."""
    here, template = half_done(), tmp_path / "template"
    shutil.copytree(here.partial, template)
    count = tally(f"journal mutated, part {worker + 1}", "hf", trusted=False)
    dice = random.Random(worker)
    original = (template / JOURNAL).read_bytes()
    for trial in range(many(500, len(MUTATIONS))):
        here.clear()
        shutil.copytree(template, here.partial)
        mutation = MUTATIONS[trial % len(MUTATIONS)]
        (here.partial / JOURNAL).write_bytes(mutation(original, dice))
        ended = Done(run(here.words))  # in this process: a thousand starts would take ten minutes
        count.judge(f"{mutation.__name__} {trial}", here, ended, {0})
    count.settle()


@pytest.mark.parametrize("damage", [flip, torn, garbage, zeros])
def test_a_spoilt_shard_is_made_again(damage, half_done, tally):
    """The journal is right and a shard it names is not: the shard is hashed, found and redone."""
    here, count = half_done(), tally(f"shard {damage.__name__}", "hf", trusted=False)
    before = here.shards()
    spoilt = min(before)
    path = here.partial / spoilt
    path.write_bytes(damage(path.read_bytes(), random.Random(0)))
    ended = here.run()
    after = here.shards()
    count.judge(damage.__name__, here, ended, {0})
    again = {name for name in before if after.get(name) != before[name]}
    assert again == {spoilt}, "that one is written again, and no other"
    count.settle()
