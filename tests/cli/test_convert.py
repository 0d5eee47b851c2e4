"""`moetool convert`: plans shown, outputs complete or absent, nothing overwritten."""

import json
import os

import pytest


@pytest.fixture
def raw(moetool, tmp_path):
    """A random raw checkpoint on disk."""
    moetool("tiny", tmp_path / "raw", check=0)
    return tmp_path / "raw"


def test_the_default_is_hf_beside_the_source(raw, moetool):
    """`convert --to safetensors` makes a folder that transformers loads."""
    report = json.loads(moetool("convert", raw, "--to", "safetensors", "--json", check=0).stdout)
    out = raw.with_name("raw-hf")
    assert report["out"] == str(out)
    assert sorted(os.listdir(out)) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer.model", "tokenizer_config.json",
    ]  # fmt: skip


def test_files_follow_the_umask(raw, moetool):
    """safetensors' own writer makes files private; ours are as the user asked the system."""
    old = os.umask(0o027)
    try:
        moetool("convert", raw, check=0)
    finally:
        os.umask(old)
    modes = {path.stat().st_mode & 0o777 for path in raw.with_name("raw-hf").iterdir()}
    assert modes == {0o640}


def test_shards_and_index(raw, moetool):
    """Files up to the size asked for, and the index that transformers reads."""
    moetool("convert", raw, "--max-shard-size", "1MB", check=0)
    out = raw.with_name("raw-hf")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in out.glob("model-*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == shards
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert index["metadata"]["total_size"] == 2 * json.loads(
        moetool("inspect", out, "--json", check=0).stdout)["model"]["n_params"]  # fmt: skip


def test_dry_run_writes_nothing_and_shows_the_plan(raw, moetool):
    """One row for each kind of step."""
    before = sorted(raw.parent.iterdir())
    shown = moetool("convert", raw, "--dry-run", check=0).stdout
    assert "model.layers.N.self_attn.q_proj.weight" in shown
    assert "Halve(n_heads=4)" in shown
    assert sorted(raw.parent.iterdir()) == before


def test_an_existing_output_is_in_the_way(raw, moetool):
    """Nothing is overwritten: exit 7, and the output stays as it was."""
    moetool("convert", raw, check=0)
    done = moetool("convert", raw, check=7)
    assert "is there already" in done.stderr


def test_the_source_is_never_written_into(raw, moetool):
    """An output inside the source is refused."""
    before = sorted(raw.iterdir())
    moetool("convert", raw, "--out", raw / "hf", check=2)
    assert sorted(raw.iterdir()) == before


def test_what_cannot_be_written_lists_what_can(raw, moetool):
    """A pair of format and layout that no client reads is usage."""
    done = moetool("convert", raw, "--to", "gguf", "--layout", "hf", check=2)
    assert "safetensors/hf-fused" in done.stderr
    moetool("convert", raw, "--max-shard-size", "big", check=2)


def test_a_shape_that_does_not_fit_is_refused_before_the_first_byte(raw, moetool):
    """All findings, exit 4, no folder."""
    params = json.loads((raw / "params.json").read_text())
    (raw / "params.json").write_text(json.dumps(params | {"hidden_dim": 128}))
    done = moetool("convert", raw, check=4)
    assert "expected shape [128, 256], got [256, 256]" in done.stderr
    assert not list(raw.parent.glob("raw-hf*"))


def test_without_path_the_current_folder_is_taken_and_named(raw, moetool):
    """PATH left out: the checkpoint that one stands in."""
    done = moetool("convert", cwd=raw, check=0)
    assert "using the checkpoint in the current folder" in done.stderr
    assert raw.with_name("raw-hf").is_dir()
