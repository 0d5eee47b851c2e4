"""`moetool convert --dry-run`: a screen for people, every step as JSON, nothing on the disk."""

import json
import re
import shutil

import pytest

from moetool.cli.app import run


@pytest.fixture
def raw(moetool, tmp_path):
    """A random raw checkpoint on disk."""
    moetool("tiny", tmp_path / "raw", check=0)
    return tmp_path / "raw"


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_the_plan_is_shown_by_layer_and_nothing_is_written(raw, moetool):
    """Ops in words, layers and experts as ranges, bytes copied and computed, room and time."""
    before = tree(raw.parent)
    shown = moetool("convert", raw, "--dry-run", check=0).stdout
    queries = next(line for line in shown.splitlines() if "q_proj" in line)
    assert queries.split()[:3] == ["model.layers.0-1.self_attn.q_proj.weight", "x2", "bf16"]
    assert "pairs to halves in 4 heads" in queries
    assert re.search(r"experts\.0-7\.w1\.weight +x16 .* copy ", shown)
    assert re.search(r"copied +7\.14 MiB byte for byte \(95\.0%\)", shown)
    assert re.search(r"computed +384\.00 KiB", shown)
    assert re.search(r"memory +\S+ KiB of weights at most", shown)
    assert re.search(r"disk +\S+ MiB needed, .* free", shown)
    assert re.search(
        r"time +about .* s, an estimate from a probe of 0\.\d s: reads .*, writes", shown
    )
    assert tree(raw.parent) == before


@pytest.mark.parametrize(
    "layout", ["mistral", "mistral-packed", "hf", "hf-fused", "gguf", "gguf-split"]
)
def test_resharding_is_a_plan_of_copies(layout, tmp_path, capsys):
    """The same layout with another largest file: no ops at all, in every layout."""
    to = ["--to", "pth"] if layout == "mistral" else []
    words = [str(tmp_path / "source"), "--layout", layout, *to]
    assert run(["tiny", *words]) == 0
    capsys.readouterr()
    assert run(["convert", *words, "--max-shard-size", "2MB", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["transformed_nbytes"] == 0
    assert plan["copied_nbytes"] == plan["nbytes"]
    assert len(plan["files"]) > 2
    parts = [p for shard in plan["shards"] for step in shard["steps"] for p in step["parts"]]
    assert not any(part["ops"] for part in parts)
    assert len(parts) == plan["n_tensors"]


def test_a_source_that_is_cut_short_is_planned_and_not_converted(raw, moetool):
    """What is to come is named; the conversion itself refuses."""
    weights = raw / "consolidated.00.pth"
    weights.write_bytes(weights.read_bytes()[:100_000])
    done = moetool("convert", raw, "--to", "gguf", "--dry-run", check=0)
    assert re.search(r"to come +consolidated\.00\.pth is cut short", done.stdout)
    assert re.search(r"assumed +65 of 65 tensors are bf16", done.stdout)
    assert "hint: the source is not complete" in done.stderr
    plan = json.loads(moetool("convert", raw, "--dry-run", "--json", check=0).stdout)
    assert len(plan["gaps"]) == 1
    moetool("convert", raw, "--to", "gguf", check=4)


def test_missing_shards_are_named(raw, moetool, tmp_path):
    """The index says what will be in them."""
    source = tmp_path / "hf"
    moetool("tiny", source, "--layout", "hf", "--max-shard-size", "1000000", check=0)
    gone = sorted(source.glob("model-*.safetensors"))[2:4]
    for path in gone:
        path.unlink()
    shown = moetool("convert", source, "--layout", "mistral", "--dry-run", check=0).stdout
    assert all(f"'{path.name}' is missing" in shown for path in gone)


def test_the_folder_of_a_running_fetch_is_found_by_its_final_name(tiny_release, moetool, tmp_path):
    """OUT is not there before it is complete; OUT.partial is, and the plan is for OUT."""
    folder = tmp_path / "release.partial"
    (folder / ".moetool").mkdir(parents=True)
    torrent = tiny_release.parent / "tiny-mixtral-8x1m.torrent"
    shutil.copy(torrent, folder / ".moetool" / "release.torrent")
    origin = {"name": "x", "info_hashes": ["0" * 40], "magnet": "magnet:?", "fetched_at": None}
    (folder / ".moetool" / "release.json").write_text(json.dumps(origin))
    shutil.copy(tiny_release / "params.json", folder)
    plan = json.loads(
        moetool("convert", tmp_path / "release", "--dry-run", "--json", check=0).stdout
    )
    assert plan["gaps"] == ["'consolidated.00.pth' is missing"]
    assert plan["out"] == str(tmp_path / "release-hf")
    assert plan["estimate"]["seconds"] is None


def test_too_little_room_is_exit_5_with_the_plan(raw, monkeypatch, capsys):
    """One document on stdout, the next step on stderr."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert run(["convert", str(raw), "--dry-run", "--json"]) == 5
    told = capsys.readouterr()
    plan = json.loads(told.out)
    assert plan["ok"] is False
    assert plan["room"]["free_nbytes"] == 1000
    assert "hint: free" in told.err
    assert run(["convert", str(raw), "--dry-run"]) == 5
    assert "too little" in capsys.readouterr().out


def test_the_full_geometry_is_planned_from_its_headers(moetool, tmp_path):
    """995 tensors of 93.4 GB, all steps, in a moment."""
    moetool("tiny", tmp_path / "full", "--geometry", "8x7b", check=0)
    done = moetool("convert", tmp_path / "full", "--dry-run", "--json")
    assert done.returncode in {0, 5}  # 5 where the disk is smaller than the model
    plan = json.loads(done.stdout)
    assert plan["nbytes"] == 93_405_585_408
    assert len(plan["shards"]) == 19
    assert sum(len(shard["steps"]) for shard in plan["shards"]) == 995
    assert len(plan["layers"]) == 13
