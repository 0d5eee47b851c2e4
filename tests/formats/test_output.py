"""What the writers share: order, exact sizes, a file that was not there, the system's refusals."""

from __future__ import annotations

import errno
import os

import pytest

from moetool.errors import MoetoolError, NoRoomOnDisk, OutputExists, SystemFault
from moetool.formats.output import Output
from moetool.tensors import DType, TensorInfo

A, B = TensorInfo("a", DType.U8, (4,)), TensorInfo("b", DType.U8, (2,))


def test_tensors_come_in_the_announced_order(tmp_path):
    """Another order, an unknown name and one too many are bugs of ours."""
    output = Output(tmp_path / "x", [A, B])
    with pytest.raises(MoetoolError, match="b was written when a was due"):
        output.next_tensor("b")
    assert output.next_tensor("a") == A
    assert output.next_tensor("b") == B
    with pytest.raises(MoetoolError, match="when nothing was due"):
        output.next_tensor("c")


@pytest.mark.parametrize(("chunks", "got"), [([b"123"], 3), ([b"12", b"345"], 5), ([], 0)])
def test_a_tensor_has_exactly_its_bytes(tmp_path, chunks, got):
    """A short or long tensor would surface as a corrupt file at load time."""
    output = Output(tmp_path / "x", [A])
    with pytest.raises(MoetoolError, match=f"a got {got} bytes, not 4"):
        output.copy(output.next_tensor("a"), chunks)


def test_a_file_is_finished_only_when_all_is_written(tmp_path):
    """Closing early is refused; closing twice is harmless."""
    output = Output(tmp_path / "x", [B])
    with pytest.raises(MoetoolError, match="b was not written"):
        output.finish()
    output.copy(output.next_tensor("b"), [b"xy"])
    output.finish()
    output.finish()
    assert (tmp_path / "x").read_bytes() == b"xy"


def test_a_hole_at_the_end_counts(tmp_path):
    """The file is as long as what was skipped."""
    output = Output(tmp_path / "x", [])
    output.append(b"x")
    output.skip(10)
    output.finish()
    assert (tmp_path / "x").read_bytes() == b"x" + bytes(10)


def test_chunks_may_be_any_buffer(tmp_path):
    """A memoryview of wide numbers is counted in bytes."""
    output = Output(tmp_path / "x", [A])
    output.copy(output.next_tensor("a"), [memoryview(b"\1\2\3\4").cast("I")])
    output.finish()
    assert (tmp_path / "x").read_bytes() == b"\1\2\3\4"


def test_an_existing_file_is_never_touched(tmp_path):
    """Neither a file nor a link to one."""
    (tmp_path / "x").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("x", "link"):
        with pytest.raises(OutputExists):
            Output(tmp_path / name, [])
    assert (tmp_path / "x").read_bytes() == b"mine"


def test_the_mode_follows_the_umask(tmp_path):
    """Not 0600: the file is for whom the directory is for."""
    before = os.umask(0o027)
    try:
        Output(tmp_path / "x", []).finish()
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoRoomOnDisk),
        (errno.EDQUOT, NoRoomOnDisk),
        (errno.EFBIG, NoRoomOnDisk),
        (errno.EIO, SystemFault),
    ],
)
@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_the_systems_no_is_ours(tmp_path, monkeypatch, number, kind, call):
    """A full disk and an I/O error, in a write or at the sync."""

    def fail(*_):
        raise OSError(number, os.strerror(number))

    output = Output(tmp_path / "x", [])
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(kind, match=os.strerror(number)) as caught:
        output.append(b"x")
        output.finish()
    assert caught.value.exit_code == 5


def test_short_writes_are_continued(tmp_path, monkeypatch):
    """The system may take a part only."""
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, content, at: write(fd, content[:3], at))
    output = Output(tmp_path / "x", [])
    output.append(b"0123456789")
    output.finish()
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_no_directory_to_write_in(tmp_path):
    """A parent that is not there is the system's no."""
    with pytest.raises(SystemFault, match="No such file"):
        Output(tmp_path / "none" / "x", [])
