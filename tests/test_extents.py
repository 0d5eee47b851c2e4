"""Reading ranges: exactly what was asked for, or words that say what happened."""

import os

import pytest

from moetool.errors import ReadFailed, Refused, TruncatedFile
from moetool.extents import Extent, LocalFile


def test_pread_gives_exactly_the_range(tmp_path):
    """Offset and length are honoured, the file's position plays no part."""
    path = tmp_path / "f"
    path.write_bytes(bytes(range(100)))
    with LocalFile(path) as file:
        assert file.pread(10, 5) == bytes(range(10, 15))
        assert file.pread(0, 100) == bytes(range(100))
        assert file.nbytes == 100


def test_the_end_of_the_file_is_named(tmp_path):
    """A short file says at which byte it ends."""
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    with LocalFile(path) as file, pytest.raises(TruncatedFile, match="ends at byte 5"):
        file.pread(3, 10)


def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    """A device or pipe in place of a checkpoint does not hang the tool."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refused, match="not a regular file"):
        LocalFile(tmp_path / "pipe")


def test_what_is_not_there_cannot_be_read(tmp_path):
    """A missing file is a system fault with its name."""
    with pytest.raises(ReadFailed, match="No such file"):
        LocalFile(tmp_path / "nothing")


def test_an_extent_knows_its_end(tmp_path):
    """The end is the first byte behind."""
    assert Extent(tmp_path, 10, 5).end == 15
