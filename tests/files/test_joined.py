"""A file in parts gives the bytes of the whole, whatever is asked of it, or is refused."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.errors import BadHeader, ReadFailed, Refused, TruncatedFile
from moetool.extents import Claim, Digest, Extent
from moetool.files import open_file
from moetool.files.joined import (
    JoinedFile,
    Joins,
    on_disk,
    part_names,
    parts_of,
    status_of,
    whole_name,
)

WHOLE = "consolidated.00.pth"


def cut(folder, *contents, whole=WHOLE):
    """Write parts 0, 1, 2 … and give the path that stands for them."""
    for number, content in enumerate(contents):
        (folder / f"{whole}-split{number}").write_bytes(content)
    return folder / whole


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A new empty folder at each call, for tests of many examples."""
    return lambda: tmp_path_factory.mktemp("parts")


PARTS = st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=12)


@given(PARTS, st.data())
def test_any_range_is_that_of_the_whole(folders, parts, data):
    """pread and pread_into against the bytes in a row; numbers beyond 9 sort by value."""
    whole = b"".join(parts)
    path = cut(folders(), *parts)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    with open_file(path) as file:
        assert file.nbytes == len(whole)
        assert file.pread(start, stop - start) == whole[start:stop]
        buffer, got = bytearray(stop - start), 0
        while got < len(buffer):
            step = file.pread_into(memoryview(buffer)[got:], start + got)
            assert step > 0
            got += step
        assert buffer == whole[start:stop]
        assert file.pread_into(memoryview(bytearray(3)), len(whole)) == 0
        with pytest.raises(TruncatedFile):
            file.pread(start, len(whole) - start + 1)


@given(PARTS, st.data())
def test_where_bytes_lie_and_back(folders, parts, data):
    """`on_disk` names places that hold the same bytes, and `Joins` finds the way back."""
    whole = b"".join(parts)
    path = cut(folders(), *parts)
    start = data.draw(st.integers(0, len(whole) - 1))
    extent = Extent(path, start, data.draw(st.integers(1, len(whole) - start)))
    places = list(on_disk(extent))
    assert (
        b"".join(p.path.read_bytes()[p.offset : p.end] for p in places)
        == (whole[extent.offset : extent.end])
    )
    joins = Joins({part: part.stat().st_size for part in parts_of(path)})
    assert joins.wholes == {path: len(whole)}
    digest = Digest("sha256", "")
    assert joins.claim(Claim(tuple(places), digest, "x")) == Claim((extent,), digest, "x")


def test_a_file_by_itself_is_left_alone(tmp_path):
    """Nothing of this touches a file that is whole, nor files of other kinds."""
    path = tmp_path / WHOLE
    path.write_bytes(b"abc")
    assert parts_of(path) == ()
    assert list(on_disk(Extent(path, 1, 2))) == [Extent(path, 1, 2)]
    assert not isinstance(open_file(path), JoinedFile)
    assert Joins({path: 3}).files({path: 3}) == {path: 3}
    (tmp_path / "notes.txt-split0").write_bytes(b"abc")
    assert whole_name("notes.txt-split0") is None
    with pytest.raises(ReadFailed):
        open_file(tmp_path / "notes.txt")


def test_a_whole_beside_its_parts_is_the_one_that_counts(tmp_path):
    """Somebody has joined them, or is at it: the file of that name is read, as it stands."""
    path = cut(tmp_path, b"abc", b"def")
    path.write_bytes(b"abcd")
    with open_file(path) as file:
        assert file.nbytes == 4
    files = dict.fromkeys(tmp_path.iterdir())
    assert Joins(files).files(files) == files


@pytest.mark.parametrize(
    ("names", "findings"),
    [
        (["split0", "split2", "split3"], ["missing: {}-split1"]),
        (["split1"], ["missing: {}-split0"]),
        (["split0", "split01"], ["not numbered 0, 1, 2 … like the others: '{}-split01'"]),
        (["split0", "split123456"], ["not numbered 0, 1, 2 … like the others: '{}-split123456'"]),
    ],
)
def test_parts_that_are_not_all_there_are_refused_by_name(tmp_path, names, findings):
    """What is missing is said, as the file that must be fetched."""
    for name in names:
        (tmp_path / f"{WHOLE}-{name}").write_bytes(b"x")
    with pytest.raises(BadHeader, match="not complete") as caught:
        open_file(tmp_path / WHOLE)
    assert [text.format(WHOLE) for text in findings] == list(caught.value.findings)
    assert caught.value.hint


def test_parts_may_be_numbered_behind_a_dot(tmp_path):
    """As in the raw mirror of 8x22B; not both ways at once, and a single NAME.1 is no upload."""
    whole = "consolidated.safetensors"
    for number in range(11):
        (tmp_path / f"{whole}.{number}").write_bytes(b"%x" % number)
    with open_file(tmp_path / whole) as file:
        assert file.pread(0, 11) == b"0123456789a"
    (tmp_path / f"{whole}-split11").write_bytes(b"b")
    with pytest.raises(BadHeader) as caught:
        open_file(tmp_path / whole)
    assert caught.value.findings[0].endswith(f"like the others: '{whole}.0'")
    with pytest.raises(BadHeader) as caught:
        part_names("model.gguf", ["model.gguf.1"])
    assert caught.value.findings == ("missing: model.gguf.0",)


def test_an_absurd_number_costs_nothing():
    """A part of number 9,999 does not make a message of 9,999 lines."""
    with pytest.raises(BadHeader) as caught:
        part_names(WHOLE, [f"{WHOLE}-split9999"])
    assert len(caught.value.findings) == 100


def test_an_empty_part_is_refused(tmp_path):
    """A download that failed leaves such; the bytes behind it would be at wrong places."""
    path = cut(tmp_path, b"abc", b"", b"def")
    with pytest.raises(BadHeader, match="holds nothing") as caught:
        open_file(path)
    assert caught.value.findings == (f"0 bytes: {WHOLE}-split1",)


def test_a_part_that_is_no_file_is_refused(tmp_path):
    """A FIFO among the parts must not be waited for."""
    path = cut(tmp_path, b"abc")
    os.mkfifo(tmp_path / f"{WHOLE}-split1")
    with pytest.raises(Refused, match="not a regular file"):
        open_file(path)


def test_a_part_that_shrinks_is_found_out(tmp_path):
    """The error names the part, not only the whole."""
    path = cut(tmp_path, b"abc", b"defg")
    with open_file(path) as file:
        os.truncate(tmp_path / f"{WHOLE}-split1", 1)
        with pytest.raises(TruncatedFile, match="split1"):
            file.pread(2, 4)
        with pytest.raises(TruncatedFile, match="split1"):
            file.pread_into(memoryview(bytearray(2)), 5)


def test_the_status_of_parts_changes_when_one_does(tmp_path):
    """Size, time or identity of any part."""
    path = cut(tmp_path, b"abc", b"def")
    before = status_of(path)
    assert before.nbytes == 6
    assert before.held_nbytes >= 0
    part = tmp_path / f"{WHOLE}-split1"
    os.utime(part, ns=(0, before.mtime_ns + 1))
    assert status_of(path).mtime_ns == before.mtime_ns + 1
    part.unlink()
    assert status_of(path).nbytes == 3  # nobody can know that there was another
    assert status_of(tmp_path / "consolidated.01.pth") is None


def test_parts_of_which_one_is_not_as_promised_are_judged_apart(tmp_path):
    """Behind a part of another size nobody knows where bytes belong."""
    path = cut(tmp_path, b"abc", b"def")
    first, second = parts_of(path)
    short = {first: 4, second: 3}
    joins = Joins(short)
    assert joins.wholes == {}
    assert joins.files(short) == short
    missing = {first: 3, second: 3, path.with_name(f"{WHOLE}-split2"): 3}
    assert Joins(missing).files(missing) == missing


def test_a_claim_across_files_keeps_its_order(tmp_path):
    """A torrent's piece may begin in another file and end in a part."""
    path = cut(tmp_path, b"abc", b"def", b"ghi")
    other = tmp_path / "params.json"
    parts = parts_of(path)
    joins = Joins(dict.fromkeys(parts))
    digest = Digest("sha1", "")
    extents = (Extent(other, 0, 2), Extent(parts[0], 2, 1), Extent(parts[1], 0, 3))
    moved = joins.claim(Claim(extents, digest, "x")).extents
    assert moved == (Extent(other, 0, 2), Extent(path, 2, 4))
