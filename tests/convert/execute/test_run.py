"""Stopped anywhere and run again, a conversion ends with the bytes it would have had."""

from __future__ import annotations

import json
import os

import pytest

from moetool.convert.execute import hashed_file, read_back, shard
from moetool.convert.execute.journal import JOURNAL, read_journal
from moetool.convert.execute.run import Manner
from moetool.errors import (
    DigestMismatch,
    Interrupted,
    NoRoomOnDisk,
    OutputExists,
    PlanChanged,
    SourceChanged,
    SystemFault,
)
from moetool.formats import open_checkpoint

SMALL_SHARDS = {"max_shard_nbytes": 9_000}
SINGLE = [("gguf", None), ("safetensors", "hf"), ("pth", "mistral"), ("pth", "mistral-packed")]
EACH_TENSOR = Manner(mark_nbytes=1)


@pytest.fixture
def partial(tmp_path):
    return tmp_path / "out.partial"


@pytest.mark.parametrize("n_reads", range(0, 36, 4))
def test_finished_files_are_used_again(
    n_reads, convert, failing_after, stop, partial, tmp_path, contents
):
    """A failure anywhere: what was finished keeps its inode and time, what ends is the same."""
    convert(out="expected", **SMALL_SHARDS)
    with pytest.raises(stop):
        convert(before=failing_after(n_reads, stop()), **SMALL_SHARDS)
    assert not (tmp_path / "out").exists()
    finished = {path.name: path.stat() for path in partial.glob("*.safetensors")}
    report = convert(**SMALL_SHARDS)
    assert report.resumed_nbytes == sum(status.st_size for status in finished.values())
    for name, before in finished.items():
        after = (tmp_path / "out" / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert not partial.exists()


@pytest.mark.parametrize("kind", SINGLE, ids=str)
@pytest.mark.parametrize("n_reads", [1, 9, 30])
def test_a_single_file_goes_on_inside(
    kind, n_reads, convert, failing_after, stop, partial, tmp_path, contents
):
    """From the last mark on: nothing before it is read from the source again."""
    convert(kind, out="else/out", manner=EACH_TENSOR)
    with pytest.raises(stop):
        convert(kind, EACH_TENSOR, failing_after(n_reads, stop()))
    marks = read_journal(partial).marks
    n_done = sum(len(mark.tensors) for found in marks.values() for mark in found)
    names = []

    def listen(job):
        checkpoint = job.source.checkpoint

        class Listening(type(checkpoint)):
            __slots__ = ()

            def read(self, name, *where):
                names.append(name)
                return super().read(name, *where)

        checkpoint.__class__ = Listening

    report = convert(kind, EACH_TENSOR, listen)
    assert report.resumed_nbytes > 0 or n_done == 0
    assert n_done > 0 or n_reads == 1 or kind[1] == "mistral-packed"
    assert len(names) > 0
    assert contents(tmp_path / "out") == contents(tmp_path / "else" / "out")


def test_a_torn_or_foreign_end_is_cut_off(
    convert, failing_after, stop, partial, tmp_path, contents
):
    """What a killed run had written behind its last mark does not count."""
    convert(("gguf", None), out="else/out")
    with pytest.raises(stop):
        convert(("gguf", None), EACH_TENSOR, failing_after(30, stop()))
    with (partial / "out.gguf.tmp").open("ab") as file:
        file.write(b"torn" * 1000)
    assert convert(("gguf", None), EACH_TENSOR).resumed_nbytes > 0
    assert contents(tmp_path / "out") == contents(tmp_path / "else" / "out")


def test_a_flipped_byte_in_what_is_kept_is_found(convert, failing_after, stop, partial, contents,
                                                tmp_path):  # fmt: skip
    """A finished shard and a marked front are hashed again; what does not match is redone."""
    convert(out="expected", **SMALL_SHARDS)
    with pytest.raises(stop):
        convert(before=failing_after(30, stop()), manner=EACH_TENSOR, **SMALL_SHARDS)
    for path in [*partial.glob("*.safetensors"), *partial.glob("*.tmp")]:
        flip(path, path.stat().st_size // 2)
    assert convert(**SMALL_SHARDS).resumed_nbytes == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_every_mutation_of_a_journal_ends_well(
    convert, failing_after, stop, partial, tmp_path, contents
):
    """Flipped bytes, dropped, doubled and torn lines: redone or reused, never wrong."""
    import shutil

    expected = tmp_path / "else" / "out"
    options = {"max_shard_nbytes": 15_000}
    convert(out="else/out", **options)
    with pytest.raises(stop):
        convert(before=failing_after(30, stop()), manner=Manner(mark_nbytes=4_000), **options)
    shutil.copytree(partial, tmp_path / "kept")
    journal = (partial / JOURNAL).read_bytes()
    lines = journal.splitlines(keepends=True)
    assert len(lines) > 4
    mutants = [b"".join(lines[:n] + lines[n + 1 :]) for n in range(len(lines))]
    mutants += [b"".join(lines[:n] + lines[n:][:1] + lines[n:]) for n in range(len(lines))]
    mutants += [b"".join(reversed(lines)), journal[:-40], journal + b"{", b"", b"\n\t\n\0"]
    for at in range(0, len(journal), len(journal) // 24):
        mutants.append(journal[:at] + bytes([journal[at] ^ 1]) + journal[at + 1 :])
    for mutant in mutants:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(tmp_path / "kept", partial)
        (partial / JOURNAL).write_bytes(mutant)
        convert(**options)
        assert contents(tmp_path / "out") == contents(expected)


def test_other_options_are_in_the_way(convert, failing_after, stop, tmp_path):
    """Exit 7 names both plans and what differs; --restart begins anew."""
    with pytest.raises(stop):
        convert(before=failing_after(30, stop()), **SMALL_SHARDS)
    with pytest.raises(PlanChanged, match=r"begun as plan \w{16}, now it is \w{16}") as caught:
        convert(max_shard_nbytes=20_000)
    assert caught.value.exit_code == 7
    assert "max_shard_nbytes: 9000, now 20000" in caught.value.findings
    assert convert(max_shard_nbytes=20_000, manner=Manner(restart=True)).resumed_nbytes == 0
    assert (tmp_path / "out").is_dir()


def test_a_source_that_changed_between_two_runs_is_in_the_way(convert, failing_after, stop, raw):
    """A time is enough: two sources are never mixed."""
    with pytest.raises(stop):
        convert(before=failing_after(30, stop()), **SMALL_SHARDS)
    os.utime(raw / "consolidated.00.pth", ns=(1, 1))
    with pytest.raises(SourceChanged, match="begun as plan") as caught:
        convert(**SMALL_SHARDS)
    assert caught.value.exit_code == 7
    assert "consolidated.00.pth" in caught.value.findings[0]
    assert convert(manner=Manner(restart=True), **SMALL_SHARDS).ok


def test_a_source_that_changes_meanwhile_is_noticed(convert, raw, tmp_path):
    """The files are looked at again at the end; nothing gets the final name."""

    def touch(job):
        real = job.source.checkpoint.__class__

        class Touching(real):
            __slots__ = ()

            def read(self, *where):
                os.utime(raw / "consolidated.00.pth", ns=(1, 1))
                return super().read(*where)

        job.source.checkpoint.__class__ = Touching

    with pytest.raises(SourceChanged, match="while it was converted"):
        convert(before=touch)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [("safetensors", "hf"), ("safetensors", "hf-fused"), *SINGLE[2:]])
def test_a_bit_that_rots_in_the_source_is_named(kind, convert, raw, tmp_path):
    """torch would load it; we name the tensor, and nothing gets the final name."""
    with open_checkpoint(raw) as checkpoint:
        name = "layers.1.block_sparse_moe.experts.1.w2.weight"
        if name not in checkpoint.catalog.extents:
            name = next(n for n in checkpoint.catalog.extents if ".w2" in n or "experts" in n)
        extent = checkpoint.catalog.extents[name]
    before = (raw / "consolidated.00.pth").stat()
    flip(raw / "consolidated.00.pth", extent.offset + extent.nbytes // 3)
    os.utime(raw / "consolidated.00.pth", ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(DigestMismatch, match="the zip promises") as caught:
            convert(kind, **SMALL_SHARDS)
        assert name in caught.value.what
        assert not (tmp_path / "out").exists()
    flip(raw / "consolidated.00.pth", extent.offset + extent.nbytes // 3)
    os.utime(raw / "consolidated.00.pth", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert convert(kind, **SMALL_SHARDS).ok


@pytest.mark.parametrize("flags", [os.O_DIRECT, 0], ids=["O_DIRECT", "cache dropped"])
@pytest.mark.parametrize("kind", [("safetensors", "hf"), ("gguf", None)], ids=str)
def test_what_flips_between_write_and_read_back_is_caught(
    kind, flags, convert, monkeypatch, partial
):
    """A disk or a memory that is not sound: exit 3, no file under its name."""
    real, digests = shard.read_back, read_back._digest

    def flipping(path, nbytes, expected):
        flip(path, nbytes - 1)
        real(path, nbytes, expected)

    def without_direct(path, nbytes, wanted):
        if wanted != flags:
            raise OSError(22, "Invalid argument")  # as a file system without O_DIRECT says it
        return digests(path, nbytes, wanted)

    monkeypatch.setattr(shard, "read_back", flipping)
    monkeypatch.setattr(read_back, "_digest", without_direct)
    with pytest.raises(DigestMismatch, match="reads back with"):
        convert(kind)
    assert [path.name for path in partial.iterdir() if path.suffix == ".tmp"] == []
    monkeypatch.setattr(shard, "read_back", real)
    assert convert(kind).ok


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_write_that_fails_is_not_tried_again(call, convert, monkeypatch, partial):
    """An I/O error: exit 5, the file in work is gone, the next run is complete."""
    real, calls = getattr(os, call), []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(5, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(SystemFault, match="Input/output"):
        convert(manner=EACH_TENSOR)
    assert not list(partial.glob("*.tmp"))
    monkeypatch.undo()
    assert convert().ok


def test_a_disk_that_fills_keeps_what_is_marked(convert, monkeypatch, partial):
    """ENOSPC in a single file: what was synced before is not written twice."""
    real, calls = os.pwrite, []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) > 30:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NoRoomOnDisk):
        convert(("gguf", None), EACH_TENSOR)
    monkeypatch.undo()
    assert convert(("gguf", None), EACH_TENSOR).resumed_nbytes > 0


def test_no_room_is_said_before_the_first_byte_of_a_file(convert, monkeypatch):
    """The room of a file is taken when it is made."""

    def refuse(_fd, _nbytes):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hashed_file, "preallocate", refuse)
    with pytest.raises(NoRoomOnDisk):
        convert()


def test_a_signal_says_what_is_kept(convert, failing_after, partial):
    """The message counts files and bytes; the file in work ends at its last mark."""
    manner = Manner(mark_nbytes=1, again="moetool convert x --out y")
    with pytest.raises(Interrupted, match=r"of \d+ files are finished, [\d,]+ of") as caught:
        convert(before=failing_after(25, KeyboardInterrupt()), manner=manner, **SMALL_SHARDS)
    assert caught.value.exit_code == 130
    assert "moetool convert x --out y" in caught.value.hint
    for name, marks in read_journal(partial).marks.items():
        path = partial / (name + ".tmp")
        assert not path.exists() or path.stat().st_size == marks[-1].position
    assert convert(**SMALL_SHARDS).resumed_nbytes > 0


def test_force_moves_the_old_output_aside(convert, tmp_path):
    """Numbered, and nothing of it is touched."""
    convert()
    with pytest.raises(OutputExists, match="is there already"):
        convert()
    (tmp_path / "out" / "note").write_text("mine")
    convert(manner=Manner(force=True))
    convert(manner=Manner(force=True))
    assert (tmp_path / "out.old-1" / "note").read_text() == "mine"
    assert (tmp_path / "out.old-2" / "model.safetensors").is_file()
    assert not (tmp_path / "out" / "note").exists()


def test_casts_of_an_earlier_run_are_counted(convert, failing_after, stop):
    """The counts lie in the journal: a report is of the whole conversion."""
    from moetool.tensors import DType

    whole = convert(out="expected", dtype=DType.F16, **SMALL_SHARDS)
    with pytest.raises(stop):
        convert(before=failing_after(30, stop()), dtype=DType.F16, **SMALL_SHARDS)
    resumed = convert(dtype=DType.F16, **SMALL_SHARDS)
    assert resumed.resumed_nbytes > 0
    assert resumed.casts == whole.casts


def test_the_same_input_gives_the_same_manifest(convert, tmp_path, raw):
    """No date, no place: neither where nor when, nor the times of the source."""
    convert(out="else/out")
    os.utime(raw / "consolidated.00.pth", ns=(1, 1))
    convert()
    first, second = (
        (folder / "out" / "moetool-manifest.json").read_bytes()
        for folder in (tmp_path, tmp_path / "else")
    )
    assert first == second
    assert json.loads(first)["tensors"]
