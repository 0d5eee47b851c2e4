"""A disk that is full: at once, at any point of the work, and a limit that cuts a write short."""

import random
import shutil

import pytest

from .disks import used
from .halts import MOVES, SYNCS, Halted
from .harness import sample
from .means import refusal

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

ROOM = 96 << 20  # what the preflight asks for, and some
LEFT = 600_000  # less than a shard: so the next one does not fit
AT_ONCE = 10  # seconds from the full disk to the exit
# Where a file system cannot take room beforehand, it is a write in the middle that fails.
NO_FALLOCATE = ("strace", "-f", "-qq", "-e", "trace=fallocate", "-e",
                "inject=fallocate:error=EOPNOTSUPP", "-o", "/dev/null")  # fmt: skip


@pytest.fixture
def small_disk(place, namespace):
    """A tmpfs that holds the output and little else."""
    here = place("hf")
    namespace.mount("-t", "tmpfs", "-o", f"size={ROOM}", "none", point=here.folder)
    return namespace.place(here, here.folder)


def test_no_room_from_the_start(small_disk, namespace):
    """Refused before the first byte, with the bytes that are needed, and nothing is made."""
    assert namespace.resize(small_disk.folder, 8 << 20)
    done = small_disk.run()
    assert done.code == 5, done.words
    assert "bytes are needed" in done.words
    assert not list(small_disk.view.iterdir())


def moments(disk):
    """The halts of an undisturbed run at which a whole shard is still to come."""
    found = []
    with Halted(disk, (*SYNCS, *MOVES)) as run:
        for number, _ in enumerate(run.halts()):
            if disk.partial.exists() and len(disk.shards()) <= 10:  # of 12
                found.append(number)
        done = run.end()
    assert done.code == 0, done.words
    disk.clear()
    return found


def fill(disk, namespace, moment, left, prefix):
    """Run, and at a moment leave the disk no more than some bytes."""
    with Halted(disk, (*SYNCS, *MOVES), *prefix) as run:
        for number, _ in enumerate(run.halts()):
            if number >= moment and namespace.resize(disk.folder, used(disk.view) + left):
                break  # where it grew meanwhile, the next halt will do
        return run.end()


@pytest.mark.parametrize("where", ["taking room", "a write"])
def test_the_disk_fills_up(where, small_disk, namespace, tally, many):
    """Full at a point of the work: exit 5 in ten seconds; with room again the same command ends."""
    if where == "a write" and refusal():
        pytest.skip(f"UNTESTED: {refusal()}")
    count = tally(f"tmpfs full, seen by {where}", "hf")
    dice = random.Random(5)
    for moment in sample(moments(small_disk), many(20, 2)):
        left = dice.randrange(0, LEFT, 4096)
        done = fill(small_disk, namespace, moment, left, NO_FALLOCATE if where == "a write" else ())
        assert namespace.resize(small_disk.folder, ROOM)
        count.judge(f"full at {moment}, {left} left", small_disk, done, {5})
        if done.seconds > AT_ONCE:
            count.wrong.append(f"full at {moment}: {done.seconds:.1f} s to say so")
        small_disk.clear()
    count.settle()


@pytest.mark.parametrize("shape", ["hf", "pth"])
def test_a_write_is_cut_short(shape, place, tally, many):
    """A limit on file sizes makes a real short write, then EFBIG: exit 5, and it goes on."""
    if not shutil.which("prlimit"):
        pytest.skip("UNTESTED: no prlimit here")
    here, count = place(shape), tally("file size limit", shape)
    for limit in (300_001, 100, 40_000, 500_000, 650_000)[: many(5, 1)]:
        done = here.run("prlimit", f"--fsize={limit}", "--")
        count.judge(f"limit {limit}", here, done, {5})
        here.clear()
    count.settle()
