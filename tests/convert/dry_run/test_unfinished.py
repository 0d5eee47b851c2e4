"""A plan for a source that is not complete yet is the plan of the complete one."""

import json
import shutil

import pytest

from moetool.arch.spelling import to_config_json
from moetool.convert.dry_run.unfinished import survey
from moetool.convert.job import open_source, prepare
from moetool.convert.synthetic import random_source
from moetool.convert.targets import TARGETS, find_target
from moetool.errors import BadHeader, InconsistentCheckpoint, MoetoolError, Refused, UsageFault
from moetool.formats import open_checkpoint

NAMES = [f"{target.file_format}-{target.convention}" for target in TARGETS]
GOAL = find_target("safetensors", "hf-fused")


@pytest.fixture
def made(small_args, tmp_path):
    """A small checkpoint on disk in any target, in several files or in one."""

    def make(target, max_nbytes=None):
        out = tmp_path / "source"
        prepare(random_source(small_args, 0, None), target, out, max_nbytes).run()
        return out

    return make


def plan_of(path, out):
    """The plan that a survey of ``path`` gives, and what it says of the source."""
    found = survey(path)
    return prepare(found.source, GOAL, out).plan, found


def whole_plan(path, out):
    with open_checkpoint(path) as checkpoint:
        return prepare(open_source(checkpoint), GOAL, out).plan


def cut(path, nbytes):
    path.write_bytes(path.read_bytes()[:nbytes])


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_a_complete_source_has_no_gaps(target, made, tmp_path):
    """Nothing is assumed, and the plan is that of a conversion."""
    source = made(target)
    plan, found = plan_of(source, tmp_path / "out")
    assert plan == whole_plan(source, tmp_path / "out")
    assert (found.gaps, found.assumed) == ((), ())


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_without_its_last_file_the_plan_is_the_same(target, made, tmp_path):
    """The missing file is named; only the types of its tensors had to be assumed."""
    source = made(target, 9_000)
    expected = whole_plan(source, tmp_path / "out")
    with open_checkpoint(source) as checkpoint:
        last = checkpoint.files[-1]
        n_last = sum(e.path == last for e in checkpoint.catalog.extents.values())
        n_all = len(checkpoint.catalog.tensors)
    last.unlink()
    if target.file_format == "pth" and last.suffix == ".pth":
        expected_gap = "files after consolidated."  # the names do not say how many there are
    else:
        expected_gap = last.name if last.suffix != ".pt" else "files after consolidated."
    plan, found = plan_of(source, tmp_path / "out")
    assert plan == expected
    assert expected_gap in found.gaps[0]
    assert found.assumed == (f"{n_last} of {n_all} tensors are bf16",)


@pytest.mark.parametrize("form", ["safetensors-hf", "gguf-gguf"])
def test_a_file_of_which_the_header_is_here_needs_no_assumption(form, made, tmp_path):
    """The bytes that are here are counted against those that the header promises."""
    source = made(dict(zip(NAMES, TARGETS, strict=True))[form])
    expected = whole_plan(source, tmp_path / "out")
    (path,) = source.glob("*.safetensors" if form.startswith("s") else "*.gguf")
    size = path.stat().st_size
    cut(path, size // 2)
    plan, found = plan_of(source, tmp_path / "out")
    assert plan == expected
    assert found.gaps == (f"{path.name} is cut short: {size // 2:,} of {size:,} bytes",)
    assert found.assumed == ()
    with pytest.raises(Refused):
        open_checkpoint(source)


@pytest.mark.parametrize("form", ["safetensors-hf", "pth-mistral", "pth-mistral-packed"])
@pytest.mark.parametrize("left", [0, 6, 1000])
def test_a_file_without_its_header_is_planned_from_the_side_file(form, left, made, tmp_path):
    """A .pth has its directory at the end; the hyperparameters say what will be in it."""
    source = made(dict(zip(NAMES, TARGETS, strict=True))[form], 10**9)
    expected = whole_plan(source, tmp_path / "out")
    path = max(source.iterdir(), key=lambda path: path.stat().st_size)
    cut(path, left)
    plan, found = plan_of(source, tmp_path / "out")
    assert plan == expected
    assert "is cut short" in found.gaps[0]
    assert found.assumed[0].endswith("tensors are bf16")


def test_an_index_alone_says_what_will_be_there(made, tmp_path):
    """The first thing that a download from the hub brings."""
    source = made(find_target("safetensors", "hf"), 9_000)
    expected = whole_plan(source, tmp_path / "out")
    shards = list(source.glob("model-*.safetensors"))
    for shard in shards:
        shard.unlink()
    plan, found = plan_of(source, tmp_path / "out")
    assert plan == expected
    assert len(found.gaps) == len(shards)


def test_the_first_part_of_a_split_gguf_carries_the_hyperparameters(made, tmp_path):
    """Without it nothing can be said, and that is said."""
    source = made(find_target("gguf", None), 9_000)
    min(source.glob("*.gguf")).unlink()
    with pytest.raises(MoetoolError) as caught:
        survey(source)
    assert caught.value.exit_code == 4


def test_a_tensor_that_no_file_will_bring_is_refused(made, small_args):
    """All files are here and whole: what lacks is not to come."""
    source = made(find_target("safetensors", "hf"))
    from dataclasses import replace

    config = to_config_json(replace(small_args, n_layers=3), "bfloat16")
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(InconsistentCheckpoint, match="do not fit"):
        survey(source)


def test_what_is_malformed_is_not_taken_for_incomplete(made, tmp_path):
    """Bytes behind the last tensor, or a header that is no header, are refused as ever."""
    source = made(find_target("safetensors", "hf"))
    path = source / "model.safetensors"
    path.write_bytes(b"\x10" + bytes(7) + b"no JSON object here")
    with pytest.raises(BadHeader):
        survey(source)
    with pytest.raises(UsageFault):
        survey(tmp_path / "nothing")


def test_a_survey_reads_no_weight(made):
    """Its checkpoint has headers only."""
    found = survey(made(find_target("pth", "mistral")))
    with pytest.raises(MoetoolError):
        found.source.checkpoint.read("norm.weight")


@pytest.fixture
def fetching(tiny_release, tmp_path):
    """A fetch that was stopped: its records, and as much of the files as a test puts there."""
    torrent = tiny_release.parent / "tiny-mixtral-8x1m.torrent"
    folder = tmp_path / "tiny.partial"
    (folder / ".moetool").mkdir(parents=True)
    shutil.copy(torrent, folder / ".moetool" / "release.torrent")
    origin = {"name": "tiny", "info_hashes": ["0" * 40], "magnet": "magnet:?", "fetched_at": None}
    (folder / ".moetool" / "release.json").write_text(json.dumps(origin))
    return folder


def test_a_fetch_that_goes_on_is_planned_for(fetching, tiny_release, tmp_path):
    """Before the weights are begun, while they are a hole with an end, and when they are whole."""
    expected = whole_plan(tiny_release, tmp_path / "out")
    shutil.copy(tiny_release / "params.json", fetching)
    plan, found = plan_of(fetching, tmp_path / "out")
    assert plan == expected
    assert found.gaps == ("'consolidated.00.pth' is missing",)
    size = (tiny_release / "consolidated.00.pth").stat().st_size
    weights = fetching / "consolidated.00.pth"
    with weights.open("wb") as file:
        file.truncate(size)
    plan, found = plan_of(fetching, tmp_path / "out")
    assert plan == expected
    assert found.gaps == (
        f"consolidated.00.pth is being fetched: 0 of {size:,} bytes are here",
    )  # fmt: skip
    shutil.copy(tiny_release / "consolidated.00.pth", weights)
    plan, found = plan_of(fetching, tmp_path / "out")
    assert plan == expected
    assert "is being fetched" in found.gaps[0]
    assert found.assumed == ()
