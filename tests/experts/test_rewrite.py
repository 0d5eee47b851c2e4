"""Writing a selection keeps the conversion's promises: damage is seen, a stopped one goes on."""

import shutil
from dataclasses import replace

import pytest

from moetool.convert.execute.run import Manner
from moetool.convert.job import open_source
from moetool.convert.targets import find_target
from moetool.errors import DigestMismatch, Interrupted, PlanChanged, UsageFault
from moetool.experts import rewrite
from moetool.experts.rewrite import (
    Comparer,
    masked_by,
    parse_experts,
    prepare_selection,
    run_selection,
)
from moetool.formats import open_checkpoint

KEPT = ((0, 1, 4), (5, 2, 3), (0, 3, 6), (2, 7, 4))


def quiet(_done, _note):
    return


def written(path, out, kept=KEPT, layout="hf", progress=quiet, manner=None):
    with open_checkpoint(path) as checkpoint:
        job = prepare_selection(open_source(checkpoint), kept, find_target(None, layout), out,
                                measured={"operation": "prune"})  # fmt: skip
        return run_selection(job, progress, manner or Manner(certify=Comparer(job, quiet)))


def damaged(tiny_release, folder, name):
    """A copy with one flipped byte in a tensor."""
    shutil.copytree(tiny_release, folder)
    with open_checkpoint(folder) as checkpoint:
        extent = checkpoint.catalog.extents[name]
    with (folder / "consolidated.00.pth").open("r+b") as file:
        file.seek(extent.offset + extent.nbytes // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0x10]))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "layers.1.feed_forward.experts.5.w2.weight",
        "layers.2.feed_forward.gate.weight",
        "layers.0.attention.wk.weight",
        "output.weight",
    ],
)
def test_a_flipped_byte_is_never_written_on(tiny_release, tmp_path, name):
    """Of an expert that is kept, of a router that is read in rows, of what all share."""
    source = damaged(tiny_release, tmp_path / "source", name)
    with pytest.raises(DigestMismatch, match="the zip promises"):
        written(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_taken_out_is_not_read(tiny_release, tmp_path):
    """A damaged expert can be pruned away."""
    name = "layers.1.feed_forward.experts.6.w1.weight"
    source = damaged(tiny_release, tmp_path / "source", name)
    written(source, tmp_path / "out")
    expected = written(tiny_release, tmp_path / "expected")
    assert expected.files["model.safetensors"]
    ours, theirs = (tmp_path / each / "model.safetensors" for each in ("out", "expected"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_the_packed_layout_is_checked_as_a_whole(tiny_release, tmp_path):
    """There, experts are rows of one tensor: any flipped byte of it is seen."""
    every = tuple(tuple(range(8)) for _ in KEPT)
    written(tiny_release, tmp_path / "packed", every, "mistral-packed")
    with open_checkpoint(tmp_path / "packed") as checkpoint:
        extent = checkpoint.catalog.extents["layers.1.block_sparse_moe.w1"]
    with extent.path.open("r+b") as file:
        file.seek(extent.offset + extent.nbytes // 2 + 1)
        file.write(b"\xff")
    with pytest.raises(DigestMismatch):
        written(tmp_path / "packed", tmp_path / "out")


def test_a_stopped_one_goes_on_and_other_experts_are_another_plan(tiny_release, tmp_path):
    """Ctrl-C in the middle; the same command ends with the bytes of one that never stopped."""
    seen = []

    def stop(done, _note):
        seen.append(done)
        if done > 4_000_000:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        written(tiny_release, tmp_path / "out", progress=stop, manner=Manner(mark_nbytes=1 << 20))
    assert not (tmp_path / "out").exists()
    other = (KEPT[1], KEPT[0], *KEPT[2:])
    with pytest.raises(PlanChanged) as caught:
        written(tiny_release, tmp_path / "out", other)
    assert any(finding.startswith("experts:") for finding in caught.value.findings)
    report = written(tiny_release, tmp_path / "out")
    assert report.resumed_nbytes > 0
    written(tiny_release, tmp_path / "whole")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_what_was_written_is_compared_with_what_was_chosen(tiny_release, tmp_path, monkeypatch):
    """Experts that were swapped on the way do not get the output's name."""
    chosen = rewrite.select

    def swapped(checkpoint, recognized, kept):
        found, seen = chosen(checkpoint, recognized, kept)
        w1, w3 = (f"layers.1.feed_forward.experts.0.{w}.weight" for w in ("w1", "w3"))
        found._ranges[w1], found._ranges[w3] = found._ranges[w3], found._ranges[w1]
        found.catalog = replace(found.catalog, claims=())  # else the CRC-32 sees it first
        return found, seen

    with open_checkpoint(tiny_release) as checkpoint:
        source = open_source(checkpoint)
        right = prepare_selection(source, KEPT, find_target(None, "hf"), tmp_path / "out")
        monkeypatch.setattr(rewrite, "select", swapped)
        wrong = prepare_selection(source, KEPT, find_target(None, "hf"), tmp_path / "out")
        with pytest.raises(DigestMismatch, match="not what was chosen"):
            run_selection(wrong, quiet, Manner(certify=Comparer(right, quiet)))
    assert not (tmp_path / "out").exists()


def test_experts_in_words(tiny_release):
    """Layers add up, and an order is kept."""
    assert parse_experts(("1:5,0", "all:3"), 3, "--drop") == {1: (5, 0, 3), 0: (3,), 2: (3,)}
    for words in ("1", "1:", "x:0", "1:a", ":1", "3:0", "-1:0"):
        with pytest.raises(UsageFault) as caught:
            parse_experts((words,), 3, "--drop")
        assert caught.value.hint
    with open_checkpoint(tiny_release) as checkpoint:
        recognized = open_source(checkpoint).recognized
    whole = tuple(range(8))
    assert masked_by(recognized, (whole, whole[1:], whole, whole)) == {1: frozenset({0})}
