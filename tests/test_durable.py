"""One rename publishes, and it replaces nothing, on file systems new and old."""

import ctypes
import errno
from types import SimpleNamespace

import pytest

from moetool.durable import locked, publish
from moetool.errors import LockHeld, OutputExists


def without_flags(*_arguments):
    ctypes.set_errno(errno.EINVAL)
    return -1


SYSTEMS = {
    "renameat2": None,
    "no flags": SimpleNamespace(renameat2=without_flags),
    "no renameat2": SimpleNamespace(),
}


@pytest.fixture(params=SYSTEMS)
def system(request, monkeypatch):
    """The C library as it is, or of a system that lacks what is wanted."""
    if SYSTEMS[request.param] is not None:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_arguments, **_more: SYSTEMS[request.param])


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "out.partial"
    folder.mkdir()
    (folder / "file").write_text("content")
    return folder


@pytest.mark.usefixtures("system")
def test_a_finished_folder_gets_its_name(work, tmp_path):
    publish(work, tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == "content"
    assert not work.exists()


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("kind", ["empty folder", "file", "dangling link"])
def test_nothing_is_replaced(kind, work, tmp_path):
    """rename(2) alone would take the place of an empty folder."""
    out = tmp_path / "out"
    match kind:
        case "empty folder":
            out.mkdir()
        case "file":
            out.write_text("mine")
        case "dangling link":
            out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExists, match="appeared while"):
        publish(work, out)
    assert (work / "file").exists()


def test_what_only_the_work_needs_goes_with_the_rename(work, tmp_path):
    journal, lock = work / "journal", work / "lock"
    journal.write_text("what is done")
    publish(work, tmp_path / "out", without=(journal, lock))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_what_the_work_needs_is_back_where_the_rename_is_refused(work, tmp_path):
    journal = work / "journal"
    journal.write_text("what is done")
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExists):
        publish(work, tmp_path / "out", without=(journal,))
    assert journal.read_text() == "what is done"


def test_another_error_of_the_rename_is_that_error(work, tmp_path):
    with pytest.raises(FileNotFoundError):
        publish(work, tmp_path / "absent" / "out")


def test_a_lock_names_its_holder(tmp_path):
    import os

    path = tmp_path / "lock"
    with locked(path), pytest.raises(LockHeld, match=f"process {os.getpid()}"), locked(path):
        pytest.fail("a lock was taken twice")
