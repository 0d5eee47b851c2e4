"""CRC-32s of ranges become those of members, in whatever order and pieces they are read."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest
import xxhash

from moetool.convert.execute.checked_source import CheckedSource
from moetool.errors import DigestMismatch
from moetool.extents import Claim, Digest, Extent
from moetool.formats.pth_writer import crc32_combine
from moetool.tensors import Catalog, DType, TensorInfo

FILE = Path("a.pth")
DATA = random.Random(0).randbytes(100)  # a member at 20-90; the tensors lie at 20-50, 40-60, 70-80
PLACES = {"a": (20, 30), "b": (40, 20), "c": (70, 10), "alone": (95, 5)}


class Memory:
    """A file and the checkpoint in it."""

    path, nbytes = FILE, len(DATA)

    def __init__(self, data, crc32):
        self.data = data
        member = Claim(
            (Extent(FILE, 20, 70),), Digest("crc32", f"{crc32:08x}"), "zip CRC-32#data/0"
        )
        infos = {name: TensorInfo(name, DType.U8, (size,)) for name, (_, size) in PLACES.items()}
        extents = {name: Extent(FILE, *place) for name, place in PLACES.items()}
        self.catalog = Catalog("pth", infos, extents, {}, (member,))

    def pread(self, offset, nbytes):
        return self.data[offset : offset + nbytes]

    def read(self, name, start=0, stop=None):
        offset, size = PLACES[name]
        return self.data[offset : offset + size][start:stop]


def read_all(data, crc32, seed=0):
    """Read each tensor in pieces, in a random order, and settle."""
    memory = Memory(data, crc32)
    source = CheckedSource(memory, {FILE: memory})
    order = [(name, at) for name, (_, size) in PLACES.items() for at in range(0, size, 5)]
    random.Random(seed).shuffle(order)
    ranges = []
    for name, at in order:
        source.begin(fingerprint=False)
        source.read(name, at, at + 5)
        ranges += source.end()[0]
    source.settle_rest()
    return source, ranges


@pytest.mark.parametrize("cut", [0, 1, 50, 99, 100])
def test_two_crcs_make_one(cut):
    first, second = zlib.crc32(DATA[:cut]), zlib.crc32(DATA[cut:])
    assert crc32_combine(first, second, 100 - cut) == zlib.crc32(DATA)


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_tensors_that_overlap_and_leave_gaps_settles_the_member(seed):
    read_all(DATA, zlib.crc32(DATA[20:90]), seed)


@pytest.mark.parametrize("at", [20, 45, 65, 89])
def test_a_flipped_byte_is_found_also_where_no_tensor_lies(at):
    damaged = DATA[:at] + bytes([DATA[at] ^ 1]) + DATA[at + 1 :]
    with pytest.raises(DigestMismatch, match=r"a, b, c \(data/0\) has CRC-32"):
        read_all(damaged, zlib.crc32(DATA[20:90]))


def test_ranges_of_an_earlier_run_count():
    """What was read before an interruption is not read again, and is settled with the rest."""
    _, ranges = read_all(DATA, zlib.crc32(DATA[20:90]))
    memory = Memory(DATA, zlib.crc32(DATA[20:90]))
    CheckedSource(memory, {FILE: memory}).settle(ranges)
    wrong = Memory(DATA, 0)
    source = CheckedSource(wrong, {FILE: wrong})
    source.settle(ranges)
    with pytest.raises(DigestMismatch):
        source.settle_rest()
    assert source.damaged == {"a", "b", "c"}


def test_neighbours_in_one_read_are_one_range():
    memory = Memory(DATA, zlib.crc32(DATA[20:90]))
    source = CheckedSource(memory, {FILE: memory})
    source.begin(fingerprint=True)
    for at in (0, 10, 20):
        source.read("a", at, at + 10)
    ranges, fingerprint = source.end()
    assert [(r.start, r.stop, r.crc32) for r in ranges] == [(0, 30, zlib.crc32(DATA[20:50]))]
    assert len(fingerprint) == 32


def test_what_is_read_again_is_checked_again_and_fingerprinted_once():
    """A transpose passes over a matrix several times; each pass must have seen the same."""
    memory = Memory(DATA, zlib.crc32(DATA[20:90]))
    source = CheckedSource(memory, {FILE: memory})
    source.begin(fingerprint=True)
    source.read("a")
    source.read_again("a", 0, 30)
    _, fingerprint = source.end()
    assert fingerprint == xxhash.xxh3_128_hexdigest(DATA[20:50])
    source.begin(fingerprint=True)
    source.read("a")
    memory.data = DATA[:30] + b"\0" + DATA[31:]
    source.read_again("a", 0, 30)
    with pytest.raises(DigestMismatch, match="had another when it was read before"):
        source.end()
    assert source.damaged == {"a", "b", "c"}
