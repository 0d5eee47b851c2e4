"""A file with holes gives the true bytes or refuses: never zeros for weights."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.errors import BadHeader, NotFetched, TruncatedFile
from moetool.extents import Extent
from moetool.files import Holdings, open_file
from moetool.files.partial import (
    RECORD,
    find_partial,
    forget_partial,
    move_partial,
    refuse_partial,
    write_partial,
)

SIZE = 10_000
DATA = random.Random(7).randbytes(SIZE)
RANGES = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 3000)), max_size=6)


def _sparse(path, ranges):
    """The file with its bytes in some ranges, and zeros elsewhere."""
    content = bytearray(SIZE)
    for start, stop in ranges:
        content[start:stop] = DATA[start:stop]
    path.write_bytes(content)


def _record(folder, here, name="model.safetensors"):
    sizes = {folder / name: SIZE, folder / "absent.gguf": 10}
    extents = [Extent(folder / name, start, stop - start) for start, stop in here]
    return write_partial(folder, "magnet:?xt=urn:btih:0", ["layers.0"], sizes, extents)


@pytest.fixture
def part(tmp_path):
    """A folder that holds bytes 100:4000 and 6000:7000 of a file."""
    folder = tmp_path / "part"
    folder.mkdir()
    here = [(100, 4000), (6000, 7000)]
    _sparse(folder / "model.safetensors", here)
    _record(folder, here)
    return folder


def _reads(path, offset, nbytes):
    """What the two ways of reading give; None where they refuse."""
    buffer = memoryview(bytearray(nbytes))
    found = []
    with open_file(path) as file:
        for read in (
            lambda: file.pread(offset, nbytes),
            lambda: bytes(buffer[: file.pread_into(buffer, offset)]),
        ):
            try:
                found.append(read())
            except NotFetched:
                found.append(None)
    return found


@given(RANGES, st.lists(st.tuples(st.integers(0, SIZE), st.integers(1, 2500)), min_size=1))
def test_every_range_is_true_or_refused(spans, asked):
    """And it is refused exactly where a byte of it was not fetched."""
    here = [(start, min(SIZE, start + nbytes)) for start, nbytes in spans]
    held = {at for start, stop in here for at in range(start, stop)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        path = folder / "model.safetensors"
        _sparse(path, here)
        _record(folder, here)
        for offset, length in asked:
            nbytes = min(length, SIZE - offset)
            if not nbytes:
                continue
            expected = DATA[offset : offset + nbytes]
            whole = held.issuperset(range(offset, offset + nbytes))
            assert _reads(path, offset, nbytes) == [expected if whole else None] * 2
            with open_file(path) as file:
                n_held = len(held.intersection(range(offset, offset + nbytes)))
                assert file.held(offset, nbytes) == n_held
                assert file.holds(offset, nbytes) == whole


def test_what_lies_behind_the_end_is_no_hole(part):
    path = part / "model.safetensors"
    _sparse(path, [(0, SIZE)])
    _record(part, [(0, SIZE)])
    with open_file(path) as file:
        assert file.pread(SIZE, 0) == b""
        assert file.pread_into(memoryview(bytearray(5)), SIZE) == 0
        assert file.holds(SIZE - 5, 50)
        with pytest.raises(TruncatedFile):
            file.pread(SIZE - 5, 50)


def test_the_refusal_names_the_file_and_the_command(part):
    with open_file(part / "model.safetensors") as file, pytest.raises(NotFetched) as caught:
        file.pread(3990, 20)
    assert caught.value.where == str(part / "model.safetensors")
    assert "3990-4009" in caught.value.what
    assert caught.value.hint == f"moetool fetch 'magnet:?xt=urn:btih:0' --out {part}"
    assert caught.value.exit_code == 4


def test_links_lead_to_the_same_holes(part, tmp_path):
    for link, target in (("a.safetensors", part / "model.safetensors"), ("folder", part)):
        (tmp_path / link).symlink_to(target)
    for path in (tmp_path / "a.safetensors", tmp_path / "folder" / "model.safetensors"):
        assert _reads(path, 5000, 10) == [None, None]
        assert _reads(path, 200, 10) == [DATA[200:210]] * 2
    assert find_partial(tmp_path / "folder") == find_partial(part)


def test_files_that_the_record_does_not_name_are_whole(part):
    (part / "notes.gguf").write_bytes(DATA)
    assert _reads(part / "notes.gguf", 5000, 10) == [DATA[5000:5010]] * 2
    assert find_partial(part / "notes.gguf") is None
    assert find_partial(part.parent) is None
    (part / "other").mkdir()
    assert find_partial(part / "other") is None
    assert find_partial(part / "model.safetensors") == find_partial(part)


def test_the_record_of_a_folder_holds_for_files_below_it(part):
    (part / "deep").mkdir()
    (part / "deep" / "w.gguf").write_bytes(bytes(50))
    sizes = {part / "deep" / "w.gguf": 50}
    write_partial(part, "m", (), sizes, [Extent(part / "deep" / "w.gguf", 0, 10)])
    assert _reads(part / "deep" / "w.gguf", 5, 10) == [None, None]
    assert _reads(part / "deep" / "w.gguf", 0, 10) == [bytes(10)] * 2
    assert find_partial(part / "deep").folder == part


_HEAD = b'{"schema": "moetool.partial", "version": 1, "link": "m", "only": [], "nbytes": 5, '


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"schema": "moetool.partial", "version": 2}',
        b"\xff",
        b"[" * 100_000,
        _HEAD + b'"here": {"model.safetensors": [[5, 1]]}}',
        _HEAD + b'"here": {"model.safetensors": [[0, 1e9]]}}',
        _HEAD + b'"here": {"model.safetensors": 5}}',
    ],
)
def test_a_record_that_is_no_record_refuses_all(part, content):
    (part / ".moetool" / RECORD).write_bytes(content)
    with pytest.raises(BadHeader, match="cannot be understood"):
        open_file(part / "model.safetensors")


def test_a_record_that_changes_is_read_again_and_one_that_goes_is_forgotten(part):
    path = part / "model.safetensors"
    assert _reads(path, 5000, 10) == [None, None]
    _sparse(path, [(0, SIZE)])
    assert _reads(path, 5000, 10) == [None, None]  # the record speaks, not what lies there
    partial = _record(part, [(0, SIZE)])
    assert not partial.is_whole  # absent.gguf is not here
    assert _reads(path, 5000, 10) == [DATA[5000:5010]] * 2
    forget_partial(part)
    forget_partial(part)
    assert find_partial(part) is None


def test_the_record_goes_with_files_that_move(part, tmp_path):
    new = tmp_path / "part.partial"
    move_partial(part, new)
    shutil.move(part / "model.safetensors", new)
    assert _reads(new / "model.safetensors", 5000, 10) == [None, None]
    assert str(part) in find_partial(new).command(["layers.1"])
    assert find_partial(new).command(["layers.1"]).endswith("--only layers.1")


def test_parts_of_an_upload_have_holes_where_their_parts_have(tmp_path):
    """The ranges of the whole run through all parts."""
    parts = [tmp_path / f"w.pth-split{number}" for number in range(3)]
    for number, path in enumerate(parts):
        path.write_bytes(DATA[4000 * number : 4000 * (number + 1)])
    sizes = {path: path.stat().st_size for path in parts}
    here = [Extent(parts[0], 3000, 1000), Extent(parts[1], 0, 500), Extent(parts[2], 0, 2000)]
    write_partial(tmp_path, "m", (), sizes, here)
    whole = tmp_path / "w.pth"
    assert _reads(whole, 3500, 900)[0] == DATA[3500:4400]
    assert _reads(whole, 3500, 1100)[0] is None
    with open_file(whole) as file:
        assert file.held(0, SIZE) == 3500
        assert list(file.places(3900, 300)) == [
            Extent(parts[0], 3900, 100), Extent(parts[1], 0, 200),
        ]  # fmt: skip
    holdings = Holdings()
    assert holdings.hold(Extent(whole, 3000, 1500))
    assert not holdings.hold(Extent(whole, 3000, 1501))
    assert holdings.hold(Extent(tmp_path / "none", 0, 5))  # reading will tell


def test_who_needs_all_is_told_how_much_is_here(part, tmp_path):
    with pytest.raises(NotFetched, match=r"only 4,900 of 10,010 bytes were fetched, and seeding"):
        refuse_partial(part, "seeding")
    refuse_partial(tmp_path, "seeding")


def test_the_record_is_of_ranges_that_follow_each_other(part):
    """Neighbouring pieces are one range, so a large release has a small record."""
    _record(part, [(4000, 6000), (0, 4000), (6000, 6001)])
    table = json.loads((part / ".moetool" / RECORD).read_bytes())
    assert table["here"] == {"model.safetensors": [[0, 6001]], "absent.gguf": []}
