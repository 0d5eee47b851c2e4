"""`moetool tiny`: every layout and format, the seed decides, the trained weights too."""

import hashlib

import pytest

from moetool.cli.app import run

PAIRS = [("mistral-packed", "pth"), ("hf-fused", "safetensors"), ("gguf", "gguf")]


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize(("layout", "to"), PAIRS)
def test_each_format_is_made_the_same_twice(layout, to, moetool, tmp_path):
    """Same seed, same bytes, in every file; in another process, too."""
    words = ["--layout", layout, "--to", to, "--seed", "7", "--max-shard-size", "1500000"]
    assert run(["tiny", str(tmp_path / "a/x"), *words]) == 0
    moetool("tiny", tmp_path / "b/x", *words, check=0)
    assert digests(tmp_path / "a/x") == digests(tmp_path / "b/x")


def test_another_seed_is_another_model(moetool, tmp_path):
    """The seed matters."""
    for seed in "01":
        moetool("tiny", tmp_path / seed, "--seed", seed, check=0)
    first, second = (digests(tmp_path / seed) for seed in "01")
    assert first["consolidated.00.pth"] != second["consolidated.00.pth"]
    assert first["tokenizer.model"] == second["tokenizer.model"]


def test_an_unknown_geometry_lists_the_known(moetool, tmp_path):
    """A typo is usage."""
    assert "8x22b" in moetool("tiny", tmp_path / "x", "--geometry", "9x9b", check=2).stderr
