"""One read, many digests: the same as hashlib would give for each range alone."""

from __future__ import annotations

import hashlib
import os
import zlib

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moetool.errors import ReadFailed, Refused
from moetool.extents import Extent, LocalFile
from moetool.release.verify import hashing
from moetool.release.verify.digests import Merkle
from moetool.release.verify.hashing import Trouble, Wanted, read_digests

NBYTES = 300_000


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(NBYTES))
    return path


def _expected(algorithm, data):
    if algorithm == "crc32":
        return f"{zlib.crc32(data):08x}"
    if algorithm == "xxh3_128":
        return xxhash.xxh3_128(data).hexdigest()
    if algorithm == "sha256-merkle":
        return _merkle(data)
    return hashlib.new(algorithm, data).hexdigest()


def _merkle(data):
    """BEP 52, word by word: leaves, zeros to a power of two, pairs."""
    leaves = [hashlib.sha256(data[i : i + 16384]).digest() for i in range(0, len(data), 16384)]
    width = 1
    while width < len(leaves):
        width *= 2
    row = leaves + [bytes(32)] * (width - len(leaves))
    while len(row) > 1:
        row = [hashlib.sha256(a + b).digest() for a, b in zip(row[::2], row[1::2], strict=True)]
    return row[0].hex()


ALGORITHMS = ["md5", "sha1", "sha256", "crc32", "xxh3_128", "sha256-merkle"]
RANGE = st.tuples(st.integers(0, NBYTES - 1), st.integers(1, NBYTES)).map(
    lambda pair: (pair[0], min(pair[1], NBYTES - pair[0]))
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(RANGE, st.sampled_from(ALGORITHMS)), min_size=1, max_size=12))
@pytest.mark.parametrize("block", [4096, 1 << 20])
def test_overlapping_ranges_of_all_algorithms_at_once(file, monkeypatch, block, wishes):
    monkeypatch.setattr(hashing, "BLOCK_NBYTES", block)
    monkeypatch.setattr(hashing, "PART_NBYTES", 3 * block)
    data = file.read_bytes()
    wanted = [Wanted((Extent(file, *span),), algorithm) for span, algorithm in wishes]
    found = read_digests(wanted)
    for want in wanted:
        extent = want.extents[0]
        assert found[want].hex == _expected(want.algorithm, data[extent.offset : extent.end])


def test_each_byte_is_read_once_however_many_digests_want_it(file):
    read = []
    spans = [Extent(file, at, 1000) for at in range(0, NBYTES, 1000)]
    wanted = [Wanted((span,), "sha1") for span in spans]
    wanted += [Wanted((Extent(file, 0, NBYTES),), name) for name in ALGORITHMS]
    read_digests(wanted, on_bytes=read.append)
    assert sum(read) == NBYTES


@pytest.mark.parametrize("nbytes", [0, 1, 16384, 16385, 3 * 16384, 5 * 16384 + 7, 64 * 16384])
def test_the_merkle_root_whatever_the_steps(nbytes):
    data = os.urandom(nbytes)
    root = Merkle()
    for at in range(0, nbytes, 7001):
        root.update(memoryview(data)[at : at + 7001])
    assert root.hexdigest() == (_merkle(data) if nbytes else "00" * 32)
    assert root.hexdigest() == root.hexdigest()


def test_a_digest_may_run_from_one_file_into_the_next(file, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"second")
    want = Wanted((Extent(file, NBYTES - 5, 5), Extent(other, 0, 3)), "sha1")
    expected = hashlib.sha1(file.read_bytes()[-5:] + b"sec").hexdigest()
    assert read_digests([want])[want].hex == expected


def test_short_missing_and_empty_files_are_told_apart(file, tmp_path):
    (tmp_path / "empty").touch()
    short = Wanted((Extent(file, NBYTES - 10, 11),), "md5")
    inside = Wanted((Extent(file, NBYTES - 10, 10),), "md5")
    missing = Wanted((Extent(tmp_path / "nothing", 0, 0),), "md5")
    empty = Wanted((Extent(tmp_path / "empty", 0, 0),), "md5")
    beyond = Wanted((Extent(tmp_path / "empty", 0, 4),), "md5")
    found = read_digests([short, inside, missing, empty, beyond])
    assert [found[want].trouble for want in (short, missing, beyond)] == [Trouble.SHORT] * 3
    assert found[inside].hex == hashlib.md5(file.read_bytes()[-10:]).hexdigest()
    assert found[empty].hex == hashlib.md5(b"").hexdigest()


def test_a_range_that_cannot_be_read_spoils_no_other(file, monkeypatch):
    monkeypatch.setattr(hashing, "BLOCK_NBYTES", 10_000)
    good = LocalFile.pread_into

    def failing(self, buffer, offset):
        if offset <= 55_000 < offset + len(buffer):
            raise ReadFailed("EIO while reading at byte 55000")
        return good(self, buffer, offset)

    monkeypatch.setattr(LocalFile, "pread_into", failing)
    wanted = [Wanted((Extent(file, at, 10_000),), "sha1") for at in range(0, NBYTES, 10_000)]
    whole = Wanted((Extent(file, 0, NBYTES),), "md5")
    found = read_digests([*wanted, whole])
    troubles = [found[want].trouble for want in wanted]
    assert troubles == [None] * 5 + [Trouble.UNREADABLE] + [None] * 24
    assert found[whole].trouble is Trouble.UNREADABLE
    assert "EIO" in found[whole].detail


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refused, match="regular"):
        read_digests([Wanted((Extent(tmp_path / "pipe", 0, 5),), "md5")])


@pytest.mark.parametrize("nbytes", [0, 6, 3 * hashing.BLOCK_NBYTES + 1])
def test_a_git_blob_has_the_name_that_git_gives(tmp_path, nbytes):
    """As `git hash-object` has it: known answers, and the definition for more than one block."""
    path = tmp_path / "x"
    path.write_bytes(b"hello\n" if nbytes == 6 else bytes(nbytes))
    want = Wanted((Extent(path, 0, nbytes),), "git-blob")
    found = read_digests([want])[want].hex
    known = {
        0: "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
        6: "ce013625030ba8dba906f756967f9e9ca394464a",
    }
    data = path.read_bytes()
    assert found == known.get(nbytes, hashlib.sha1(b"blob %d\0" % nbytes + data).hexdigest())
