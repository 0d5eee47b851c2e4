"""What a kernel, a disk or a cable does without a word: half a call, changed bytes, lost writes.

Whatever is read of the source is covered by a CRC-32 of the zip, whatever is written is read back.
"""

from functools import cache
from pathlib import Path

import pytest

from moetool.formats import open_checkpoint

from .harness import sample
from .means import Hook

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]

SHAPES = ("hf", "pth")
BODY = 4096  # a read-back is of whole pieces; what is read of a written header is less


@pytest.fixture(scope="session")
def known():
    return {}


@pytest.fixture
def trial(place, tmp_path, known, tally, many):
    """Do something to some of the reads or writes of a conversion, and have each end judged."""

    def run(shape, action, wanted, codes):
        here, hook = place(shape), Hook(tmp_path / "hook.log")
        count = tally(f"{action} {wanted.__name__}", shape)
        found = [point for point in hook.points(here) if wanted(point)]
        assert found, "no such call was seen"
        for point in sample(found, many(20, 1)):
            done, fired = hook.run(here, point, action)
            if fired:
                count.judge(f"{shape} {action} at {point}", here, done, codes)
            else:
                count.note("not reached")
            here.clear()
        count.settle(reach=0.9)

    return run


def writes(point):
    return point.kind == "write" and ".tmp" in point.path and point.nbytes > 1


def source_reads(point):
    return point.kind == "read" and "consolidated" in point.path and point.nbytes > 1


def weight_reads(point):
    """The reads of a tensor and of nothing else."""
    return source_reads(point) and any(
        extent.offset <= point.offset and point.offset + point.nbytes <= extent.end
        for extent in weights(point.path)
    )


def header_reads(point):
    return source_reads(point) and not weight_reads(point)


@cache
def weights(path):
    with open_checkpoint(Path(path)) as checkpoint:
        return tuple(checkpoint.catalog.extents.values())


def read_backs(point):
    return point.kind == "read" and point.path.endswith(".tmp") and point.nbytes >= BODY


@pytest.mark.parametrize("shape", SHAPES)
def test_half_a_write(shape, trial):
    """A write may take a part: the rest is written after it, and all is well."""
    trial(shape, "short", writes, {0})


@pytest.mark.parametrize("action", ["flip", "lost"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_write_that_arrives_otherwise(shape, action, trial):
    """A bit changed on its way, or a write that never arrives: read-back finds it, exit 3."""
    trial(shape, action, writes, {3})


@pytest.mark.parametrize("shape", SHAPES)
def test_half_a_read(shape, trial):
    """A read may give a part: the rest is read after it, and all is well."""
    trial(shape, "short", source_reads, {0})


def test_a_bit_of_the_weights_changes_on_its_way(trial):
    """The CRC-32 in the zip does not match: exit 3, and nothing made of it is kept."""
    trial("hf", "flip", weight_reads, {3})


def test_a_bit_of_a_header_changes_on_its_way(trial):
    """Wrong, refused, or a bit that means nothing; never another output."""
    trial("hf", "flip", header_reads, {0, 3, 4})


def test_the_source_ends_too_early(trial):
    """Bytes that its own directory promises are not there: the file is refused."""
    trial("hf", "empty", source_reads, {4})


@pytest.mark.parametrize("action", ["flip", "empty"])
def test_the_disk_reads_back_something_else(action, trial):
    """What was written cannot be had again: exit 3, and the shard is written anew."""
    trial("hf", action, read_backs, {3})
