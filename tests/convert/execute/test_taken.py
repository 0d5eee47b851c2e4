"""Pieces hashed while an output is written give the torrent that publishing it later gives."""

from __future__ import annotations

import os

import pytest

from moetool.convert.execute.run import Manner
from moetool.release.publish import run as publishing
from moetool.release.publish.taken import TakenPieces

KINDS = [("gguf", None), ("safetensors", "hf"), ("pth", "mistral-packed")]


def planned(folder):
    return publishing.plan(folder, write_release=False)


@pytest.fixture
def converted(convert, tmp_path):
    """Convert with the pieces taken; the folder, and what was taken."""

    def make(kind=KINDS[1], before=None, **options):
        taken = TakenPieces(1)  # as small as it is, its pieces are leaves
        convert(kind, Manner(mark_nbytes=1, taken=taken), before, **options)
        return tmp_path / "out", taken

    return make


def as_published_later(folder, report):
    """Whether a run that reads everything makes the very same .torrent."""
    made = report.torrent.read_bytes()
    report.torrent.unlink()
    later = publishing.run(planned(folder))
    return (
        later.torrent.read_bytes() == made
        and later.magnet == report.magnet
        and later.read_nbytes == later.nbytes
    )


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_was_hashed_while_it_was_written_is_not_read_again(kind, converted):
    folder, taken = converted(kind, max_shard_nbytes=9_000 if kind[1] == "hf" else None)
    made = planned(folder)
    report = publishing.run(made, known=taken.known(made))
    weights = {name for name in report.files if not name.endswith((".json", ".model"))}
    assert weights
    rest = sum(nbytes for name, nbytes in report.files.items() if name not in weights)
    assert report.read_nbytes == rest
    assert as_published_later(folder, report)


@pytest.mark.parametrize("n_reads", [1, 9, 30])
def test_a_file_that_goes_on_is_hashed_from_its_front(n_reads, converted, failing_after, stop):
    """What an earlier run wrote of it is read for its other digests, and for these as well."""
    with pytest.raises(stop):
        converted(KINDS[0], failing_after(n_reads, stop()))
    folder, taken = converted(KINDS[0])
    made = planned(folder)
    report = publishing.run(made, known=taken.known(made))
    assert report.read_nbytes == report.nbytes - report.files["out.gguf"]
    assert as_published_later(folder, report)


def test_files_that_an_earlier_run_finished_are_read(converted, failing_after, stop, tmp_path):
    with pytest.raises(stop):
        converted(before=failing_after(30, stop()), max_shard_nbytes=9_000)
    finished = sum(p.stat().st_size for p in (tmp_path / "out.partial").glob("*.safetensors"))
    folder, taken = converted(max_shard_nbytes=9_000)
    made = planned(folder)
    report = publishing.run(made, known=taken.known(made))
    side = sum(n for name, n in report.files.items() if not name.endswith(".safetensors"))
    assert finished > 0
    assert report.read_nbytes == finished + side
    assert as_published_later(folder, report)


def test_a_file_that_changed_since_is_read(converted):
    folder, taken = converted()
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))  # the clock of a file system may be coarse
    made = planned(folder)
    report = publishing.run(made, known=taken.known(made))
    assert report.read_nbytes == report.nbytes
    assert as_published_later(folder, report)


@pytest.mark.parametrize("options", [{"piece_length": 32_768}, {"v1_only": True}], ids=str)
def test_another_form_or_length_is_read(options, converted):
    """Nothing that was taken fits it."""
    folder, taken = converted()
    made = publishing.plan(folder, write_release=False, **options)
    assert taken.known(made) == {}
    assert publishing.run(made).read_nbytes > 0
