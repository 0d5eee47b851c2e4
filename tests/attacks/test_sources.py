"""Hostile sources of a plan: side files that ask for the impossible, and torn files."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from moetool.arch.spelling import to_config_json, to_params_json
from moetool.convert.dry_run.unfinished import survey
from moetool.convert.job import prepare
from moetool.convert.synthetic import random_source
from moetool.convert.targets import find_target


@pytest.fixture
def made(small_args, tmp_path):
    """A small checkpoint on disk."""

    def make(*words):
        out = tmp_path / "source"
        prepare(random_source(small_args, 0, None), find_target(*words), out).run()
        return out

    return make


_PLAN = """
import json, re, sys, time
from pathlib import Path
from moetool.cli.app import run
started = time.process_time()
code = run(["convert", sys.argv[1], "--dry-run", "--json"])
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print("\\n" + json.dumps([code, time.process_time() - started, peak]))
"""


@pytest.mark.parametrize(
    "change",
    [{"n_layers": 1 << 24}, {"moe": {"num_experts": 1 << 24, "num_experts_per_tok": 2}},
     {"dim": 1 << 24, "hidden_dim": 1 << 24, "vocab_size": 1 << 24}],
    ids=["layers", "experts", "dimensions"],
)  # fmt: skip
def test_a_side_file_cannot_make_a_plan_explode(change, small_args, tmp_path):
    """No weights are here, so the side file decides alone: in time, and in little room."""
    params = to_params_json(small_args) | change
    (tmp_path / "params.json").write_text(json.dumps(params))
    (tmp_path / "consolidated.00.pth").write_bytes(b"PK\x03\x04")
    done = subprocess.run([sys.executable, "-c", _PLAN, str(tmp_path)], capture_output=True,
                          text=True, timeout=60, check=False)  # fmt: skip
    code, seconds, kilobytes = json.loads(done.stdout.splitlines()[-1])
    # Large dimensions are only numbers: such a plan is made, and no disk has the room.
    assert code == (5 if "dim" in change else 4)
    assert seconds < 5
    assert kilobytes < 150_000


@pytest.mark.parametrize("words", [("safetensors", "hf"), ("gguf", None), ("pth", "mistral")])
def test_mutants_of_a_source_are_planned_or_refused(words, made, survive):
    """Torn, spliced and cut: a survey ends with a plan or a refusal, and with nothing else."""
    folder = made(*words)
    path = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    good = path.read_bytes()

    def read(raw):
        path.write_bytes(raw)
        survey(folder)

    outcomes = survive(good, read, 400)
    assert outcomes["read"] > 0
    assert outcomes["refused"] > 0


@pytest.mark.parametrize("name", ["params.json", "config.json"])
def test_mutants_of_a_side_file_are_read_or_refused(name, small_args, tmp_path, survive):
    """A number too many, a brace too few: said, not thrown."""
    data = {
        "params.json": to_params_json(small_args),
        "config.json": to_config_json(small_args, "bfloat16"),
    }[name]
    weights = "consolidated.00.pth" if name == "params.json" else "model.safetensors"
    (tmp_path / weights).write_bytes(b"")

    def read(raw):
        (tmp_path / name).write_bytes(raw)
        survey(tmp_path)

    outcomes = survive(json.dumps(data).encode(), read, 1000)
    assert outcomes["refused"] > 500
