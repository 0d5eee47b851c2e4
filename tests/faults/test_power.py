"""Power cuts: what had reached the disk at some moment is mounted and looked at.

The output is on an ext4 in a file. A copy of that file, taken while it is mounted and every thread
of the process stands still, is the disk as a power cut would leave it: what was not synced is
missing there. Moments are before and after each sync and rename.
"""

import os
import shutil
import subprocess
from dataclasses import replace

import pytest

from .halts import MOVES, SYNCS, Halted
from .harness import CUT, LONG, PATIENCE

pytestmark = [pytest.mark.faults, pytest.mark.timeout(2400)]

# ext4 would write by itself each 5 s: a mercy to an unsynced file, and copies torn in the middle.
QUIET = "loop,commit=300"
# Reading back makes the kernel write early, which hides a sync that is missing.
CASES = [("hf", ("--no-readback",)), ("pth", ())] + ([("hf", ())] if LONG else [])
RUNS, STRIDE = 8, 30  # long form: every halt, in so many runs; short form: each so manieth


@pytest.fixture
def disk(namespace, place):
    """Mount an empty ext4; give the file it is in and the place on it."""

    def make(shape, options):
        plain, image = place(shape), namespace.ext4()
        pattern = replace(plain, options=plain.options + options)
        point = image.with_name("disk")
        namespace.mount("-o", QUIET, str(image), point=point)
        here = namespace.place(pattern, point / "place")
        os.sync()  # the empty folder itself is not what is tried
        return image, point, here

    return make


def copies(run, image, every, first):
    """Copy the disk at some of the halts; the name of a copy says at which."""
    for number, halt in enumerate(run.halts()):
        if number % every != first:
            continue
        copy = image.with_name(f"{number} {halt.when} {halt.call} {halt.path.name}.img")
        with run.frozen():
            subprocess.run(
                ["cp", "--sparse=always", str(image), str(copy)], check=True, timeout=PATIENCE
            )
        yield copy


def look(namespace, count, pattern, copy, *, complete):
    """Mount a copy as after the power cut; the final name is absent or whole, the work goes on."""
    point = copy.with_name("after")
    namespace.mount("-o", "loop", str(copy), point=point)
    after = namespace.place(pattern, point / "place")
    if complete and not after.out.exists():
        count.wrong.append("the command said done, and the output is not on the disk")
    count.judge(copy.stem, after, CUT, {CUT.code})
    namespace.unmount(point)
    copy.unlink()


@pytest.mark.parametrize(("shape", "options"), CASES)
def test_the_power_fails(shape, options, namespace, disk, tally, many):
    """At each sync and rename: the final name is absent or whole, and the work goes on."""
    count = tally(" ".join(["power cut", *options]), shape)
    image, point, here = disk(shape, options)
    for first in range(many(RUNS, 1)):
        with Halted(here, (*SYNCS, *MOVES)) as run:
            taken = list(copies(run, image, many(RUNS, STRIDE), first))
            end = run.end()
        assert end.code == 0, end.words
        assert len(taken) > 1, "the process hardly halted"
        last = image.with_name("end.img")
        shutil.copyfile(image, last)  # at once: nothing but what was synced may count
        for copy in taken:
            look(namespace, count, here, copy, complete=False)
        look(namespace, count, here, last, complete=True)
        here.clear()
        os.sync()
    namespace.unmount(point)
    count.settle()
