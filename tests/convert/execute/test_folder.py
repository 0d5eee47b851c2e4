"""Outputs are complete under their final name, or not there at all."""

import fcntl
import os

import pytest

from moetool.convert.execute import room
from moetool.convert.execute.folder import check_written, output_directory
from moetool.convert.execute.room import require_room
from moetool.convert.job import prepare
from moetool.convert.synthetic import random_source
from moetool.convert.targets import TARGETS, find_target
from moetool.errors import InconsistentCheckpoint, LockHeld, NoRoomOnDisk, OutputExists
from moetool.formats import open_checkpoint


@pytest.fixture
def job(small_args, tmp_path):
    """A small conversion that is ready to run."""
    return prepare(random_source(small_args, 0, None), find_target("safetensors", "hf"),
                   tmp_path / "out", 9_000)  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.file_format}-{t.convention}")
def test_what_is_written_is_what_was_planned(target, small_args, tmp_path, in_layout):
    """Each target's files hold the bytes of the same weights in memory."""
    prepare(random_source(small_args, 0, None), target, tmp_path / "out", 9_000).run()
    expected, _ = in_layout(target.convention)
    with open_checkpoint(tmp_path / "out") as written:
        assert dict(written.catalog.tensors) == dict(expected.catalog.tensors)
        assert len(written.files) > 1
        for name, content in expected.data.items():
            assert written.read(name) == content, name


def test_an_error_leaves_nothing_under_the_final_name(job, monkeypatch):
    """A source that fails half way leaves OUT.partial, and a second run ends well."""
    held = job.source.checkpoint
    real, calls = held.read, []

    def failing(name, start=0, stop=None):
        calls.append(name)
        if len(calls) > 20:
            raise OSError(5, "Input/output error")
        return real(name, start, stop)

    monkeypatch.setattr(held, "read", failing)
    with pytest.raises(OSError, match="Input/output"):
        job.run()
    assert not job.out.exists()
    assert job.out.with_name("out.partial").is_dir()
    monkeypatch.undo()
    job.run()
    assert job.out.is_dir()
    assert not job.out.with_name("out.partial").exists()


def test_a_second_writer_is_told_who_holds_the_lock(job):
    """Two conversions to one place: the second leaves at once and names the first."""
    work = job.out.with_name("out.partial")
    work.mkdir()
    with (work / "lock").open("w+") as lock:
        lock.write("4242")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LockHeld, match="process 4242"):
            job.run()
    assert not job.out.exists()
    job.run()  # the lock died with its holder


def test_left_overs_of_a_killed_run_do_not_reach_the_output(job):
    """Whatever lies in OUT.partial is swept before writing."""
    work = job.out.with_name("out.partial")
    (work / "folder").mkdir(parents=True)
    (work / "model-00001-of-00099.safetensors").write_bytes(b"torn")
    job.run()
    assert "model-00001-of-00099.safetensors" not in os.listdir(job.out)


def test_an_output_that_appears_meanwhile_is_kept(tmp_path):
    """The last rename never replaces what somebody else made."""
    with pytest.raises(OutputExists), output_directory(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("x")
    assert (tmp_path / "out" / "theirs").read_text() == "x"


def test_a_dangling_link_is_in_the_way(tmp_path):
    """A link to nowhere is something that exists."""
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExists), output_directory(tmp_path / "out"):
        pytest.fail("must not begin")


def test_too_little_room_is_refused_before_the_first_byte(job, monkeypatch):
    """Needed and free bytes are named, and no folder is made."""
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: type("U", (), {"free": 1000}))
    with pytest.raises(NoRoomOnDisk, match="1,000 are free"):
        job.run()
    assert not list(job.out.parent.glob("out*"))
    with pytest.raises(NoRoomOnDisk):
        require_room(job.out, 1)


def test_a_file_that_is_not_the_planned_one_is_caught(job):
    """The written folder is opened with the public reader before it gets its name."""
    job.run()
    other = job.plan.shards[0].steps
    with pytest.raises(InconsistentCheckpoint) as caught:
        check_written(type(job.plan)((type(job.plan.shards[0])("x", other),)), job.out)
    assert caught.value.findings


def test_nothing_of_torch_is_needed_for_raw_to_hf(tiny_release, tmp_path):
    """A reordering of rows and byte copies need neither torch nor numpy."""
    import subprocess
    import sys

    program = (
        "import sys; from moetool.cli.app import run;"
        "code = run(['convert', sys.argv[1], '--out', sys.argv[2], '--quiet']);"
        "print(code, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, tiny_release, tmp_path / "out"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0 False False"
