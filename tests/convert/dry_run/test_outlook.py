"""A dry run says what would be done, to the byte, and leaves nothing behind."""

import json
import os
import time
from pathlib import Path

import pytest

from moetool.arch.mixtral import MIXTRAL
from moetool.arch.schema import expand
from moetool.convert.dry_run import probe
from moetool.convert.dry_run.outlook import collapse_steps, foresee
from moetool.convert.dry_run.probe import Speeds, estimate_s, measure
from moetool.convert.dry_run.unfinished import survey
from moetool.convert.execute.room import require_room, room_for
from moetool.convert.job import prepare
from moetool.convert.plan import derive_steps
from moetool.convert.synthetic import GEOMETRIES, random_source
from moetool.convert.targets import find_target
from moetool.errors import NoRoomOnDisk, UsageFault
from moetool.extents import Extent
from moetool.reports import to_json
from moetool.tensors import Catalog, DType, TensorInfo

FULL = GEOMETRIES["8x7b"]
NAMES = [convention.name for convention in MIXTRAL.conventions]


def steps_of(source, target, args=FULL, dtype=None):
    layout = expand(MIXTRAL.convention(source), args)
    infos = {n: TensorInfo(n, DType.BF16, s.shape) for n, s in layout.items()}
    wanted = expand(MIXTRAL.convention(target), args)
    return derive_steps(Catalog("", infos, {}), layout, wanted, args, dtype=dtype)


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("source", NAMES)
def test_the_collapsed_plan_loses_no_tensor_and_no_byte(source, target):
    """A screen for 995 tensors: at most 14 lines, whose counts and bytes add up."""
    steps = steps_of(source, target)
    groups = collapse_steps(steps)
    assert len(groups) <= 14
    assert sum(group.n_tensors for group in groups) == len(steps)
    written = sum(step.target.nbytes for step in steps)
    assert sum(group.copied_nbytes + group.transformed_nbytes for group in groups) == written


def test_a_line_names_its_layers_experts_and_ops():
    """Ranges instead of indices, ops in words, and what is copied against what is computed."""
    groups = {group.target: group for group in collapse_steps(steps_of("mistral", "hf"))}
    queries = groups["model.layers.0-31.self_attn.q_proj.weight"]
    assert queries.source == "layers.0-31.attention.wq.weight"
    assert (queries.n_tensors, queries.ops) == (32, ("pairs to halves in 32 heads",))
    assert (queries.copied_nbytes, queries.transformed_nbytes) == (0, 32 * 4096 * 4096 * 2)
    experts = groups["model.layers.0-31.block_sparse_moe.experts.0-7.w2.weight"]
    assert (experts.n_tensors, experts.ops, experts.transformed_nbytes) == (256, (), 0)
    (down,) = [g for g in collapse_steps(steps_of("mistral-packed", "gguf", dtype=DType.F16))
               if "ffn_down" in g.target]  # fmt: skip
    assert down.source == "layers.0-31.block_sparse_moe.w2"
    assert (down.n_parts, down.ops) == (8, ("transpose", "bf16 to f16"))


@pytest.fixture
def job_and_survey(raw, tmp_path):
    """A prepared conversion of the small raw release."""
    found = survey(raw)
    target = find_target("safetensors", "hf")
    return prepare(found.source, target, tmp_path / "deep" / "out", 9_000), found


def test_the_report_has_every_step(job_and_survey):
    """As JSON: each tensor with its parts, rows, types and ops, and nothing of it twice."""
    job, found = job_and_survey
    report = json.loads(to_json(foresee(job, found, readback=True)))
    assert (report["schema"], report["ok"], report["gaps"]) == ("moetool.plan", True, [])
    steps = [step for shard in report["shards"] for step in shard["steps"]]
    assert [step["target"]["name"] for step in steps] == [s.target.name for s in job.plan.steps]
    assert sum(step["nbytes"] for step in steps) == report["nbytes"]
    assert report["copied_nbytes"] + report["transformed_nbytes"] == report["nbytes"]
    assert report["files"] == {shard.file_name: shard.nbytes for shard in job.plan.shards}
    queries = next(s for s in steps if s["target"]["name"].endswith("1.self_attn.q_proj.weight"))
    assert queries["target"] == {
        "name": "model.layers.1.self_attn.q_proj.weight", "dtype": "bf16", "shape": [32, 24],
    }  # fmt: skip
    assert queries["parts"] == [{
        "source": "layers.1.attention.wq.weight", "rows": [0, 32], "columns": 24, "dtype": "bf16",
        "nbytes": 1536, "ops": [{"op": "halve", "n_heads": 4}],
    }]  # fmt: skip
    assert report["estimate"]["seconds"] > 0


def test_what_is_in_the_way_is_said(job_and_survey):
    """A dry run finds the output, or what an earlier run has left of it."""
    job, found = job_and_survey
    partial = job.out.with_name("out.partial")
    partial.mkdir(parents=True)
    assert "a conversion goes on" in foresee(job, found, readback=True).notes[-1]
    partial.rename(job.out)
    assert "--force" in foresee(job, found, readback=True).notes[-1]


def test_more_files_than_names_is_usage(raw, tmp_path):
    """consolidated.100.pth is a file that no reader finds: refused before the work, not after."""
    found = survey(raw)
    target = find_target("pth", "mistral")
    args = GEOMETRIES["8x7b"]
    with pytest.raises(UsageFault, match="number 100 at most") as caught:
        prepare(random_source(args, 0, None), target, tmp_path / "x", 500_000_000)
    assert "--max-shard-size" in caught.value.hint
    assert len(prepare(found.source, target, tmp_path / "x", 5_000).plan.shards) <= 100


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_nothing_is_written(job_and_survey, tmp_path):
    """Not the output's folder, nor one above it; the probe's file never had a name."""
    job, found = job_and_survey
    before = tree(tmp_path)
    foresee(job, found, readback=True)
    assert tree(tmp_path) == before


def test_a_probe_is_short_and_says_so(job_and_survey, tmp_path):
    """Half a second, whatever the size of the source."""
    job, _ = job_and_survey
    began = time.monotonic()
    speeds = measure(tuple(job.source.checkpoint.catalog.extents.values()), tmp_path)
    assert time.monotonic() - began < 3  # the disk of a busy machine; usually 0.3
    assert speeds.same_disk
    assert min(speeds.read, speeds.hashed, speeds.written) > 0


def test_a_probe_reads_far_apart_and_each_block_once(tmp_path):
    """The first blocks of a large source are not all at its start."""
    extents = [Extent(tmp_path / "x", 100, 50 * probe.BLOCK + 7), Extent(tmp_path / "x", 0, 100)]
    places = list(probe._places(extents))
    assert len(places) == len(set(places)) == 51
    first = [offset // probe.BLOCK for _, offset in places[:5]]
    assert max(first) - min(first) > 25
    assert {extent for extent, _ in places} == {extents[0]}


def test_what_cannot_be_measured_gives_no_time(tmp_path, monkeypatch):
    """No source yet, or a disk that takes nothing: the estimate is left out, not invented."""
    assert measure((), tmp_path).read is None

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    speeds = measure((), tmp_path)
    assert speeds.written is None
    assert estimate_s(speeds, 1, 1) is None


def test_the_time_is_that_of_the_slowest(tmp_path):
    """One disk reads and writes in turn, two at once; hashing and reading back count."""
    speeds = Speeds(read=100, hashed=50, written=100, same_disk=True, seconds=0.4)
    assert estimate_s(speeds, 1000, 1000) == 20
    assert estimate_s(speeds, 1000, 1000, 1000) == 30
    apart = Speeds(read=100, hashed=1000, written=25, same_disk=False, seconds=0.4)
    assert estimate_s(apart, 1000, 1000) == 40


def test_room_counts_what_an_earlier_run_has_written(tmp_path, monkeypatch):
    """Free is what the disk says, and what lies in OUT.partial already."""
    out = tmp_path / "not" / "yet" / "out"
    room = room_for(out, 10**6)
    assert room.needed_nbytes > 10**6
    assert room.short_nbytes == 0
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "x").write_bytes(bytes(100_000))
    assert room_for(tmp_path / "out", 10**6).free_nbytes >= 10**6 + 100_000
    with pytest.raises(NoRoomOnDisk, match="1,000,000 are free") as caught:
        require_room(out, 10**6)
    assert "--out" in caught.value.hint


def test_an_output_without_vocabulary_is_said(small_args, tmp_path, tiny_release):
    """llama.cpp does not load a GGUF without one, and transformers needs its files."""
    tokenizer = (tiny_release / "tokenizer.model").read_bytes()
    for words, told in (
        (("gguf", None), "llama.cpp will not load"),
        (("pth", None), "none beside"),
    ):
        job = prepare(random_source(small_args, 0, None), find_target(*words), tmp_path / "x")
        assert told in job.notes[0]
        job = prepare(random_source(small_args, 0, tokenizer), find_target(*words), Path("/x"))
        assert job.notes == ()
