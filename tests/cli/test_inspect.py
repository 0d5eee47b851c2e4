"""`moetool inspect`: right totals, every layout, bounded cost."""

import json
import subprocess
import sys

import pytest

LAYOUTS = ["mistral", "mistral-packed", "hf", "hf-fused", "gguf", "gguf-split"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_named_and_counted(layout, moetool, tmp_path):
    """The same model is counted alike, whatever its layout."""
    moetool("tiny", tmp_path / "x", "--layout", layout, check=0)
    report = json.loads(moetool("inspect", tmp_path / "x", "--json", check=0).stdout)
    assert report["model"]["convention"] == layout
    # 2 layers, 8 experts of 3 x 256 x 256, top 2, 4 + 2 heads of 64, 768 tokens twice
    shared = 2 * (2 * 256 * 256 + 2 * 128 * 256 + 8 * 256 + 2 * 256) + 2 * 768 * 256 + 256
    assert report["model"]["n_params_shared"] == shared
    assert report["model"]["n_params"] == shared + 2 * 8 * 3 * 256 * 256
    assert report["model"]["n_params_active"] == shared + 2 * 2 * 3 * 256 * 256
    assert sum(role["nbytes"] for role in report["model"]["roles"]) == report["nbytes"]


def test_repeated_layers_are_collapsed_and_names_whole(moetool, tiny_release):
    """One line stands for all layers and experts."""
    shown = moetool("inspect", tiny_release, check=0).stdout
    assert "layers.0-3.feed_forward.experts.0-7.w1-3.weight" in shown
    assert "x96" in shown
    assert "rope_theta, max_seq_len" in shown


def test_tensors_lists_each_one(moetool, tiny_release):
    """--tensors collapses nothing."""
    report = json.loads(moetool("inspect", tiny_release, "--tensors", "--json", check=0).stdout)
    assert len(report["tensors"]) == report["n_tensors"] == 127


def test_context_sets_the_kv_cache(moetool, tiny_release):
    """4 layers, 2 kv heads of 64, keys and values in bf16."""
    report = json.loads(
        moetool("inspect", tiny_release, "--context", "1000", "--json", check=0).stdout
    )
    assert report["model"]["kv_cache_nbytes"] == 2 * 4 * 2 * 64 * 2 * 1000


def test_an_unknown_model_is_shown_and_refused(moetool, tmp_path):
    """A table of what is there, the reason, and exit 4."""
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"encoder.weight": zeros(3, 4)}, tmp_path / "model.safetensors")
    done = moetool("inspect", tmp_path, check=4)
    assert "not recognised" in done.stdout
    assert "encoder.weight" in done.stdout


def test_hostile_names_are_made_visible(moetool, tmp_path):
    """Escape sequences in a tensor name never reach the terminal."""
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"a\x1b[31m[bold]\u202e": zeros(1)}, tmp_path / "model.safetensors")
    done = moetool("inspect", tmp_path)
    assert done.returncode == 4
    assert "\x1b" not in done.stdout + done.stderr
    assert "\u202e" not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def full_geometry(tmp_path_factory):
    """The 8x7B file at its true size, its weights a hole."""
    out = tmp_path_factory.mktemp("full") / "mixtral"
    subprocess.run([sys.executable, "-m", "moetool", "tiny", str(out), "--geometry", "8x7b"],
                   check=True, capture_output=True)  # fmt: skip
    return out


def test_the_full_geometry_has_the_published_totals(full_geometry, moetool):
    """46.7 B parameters, 12.9 B active, 93.4 GB, from headers alone."""
    weights = full_geometry / "consolidated.00.pth"
    assert weights.stat().st_size > 93_405_585_408
    assert weights.stat().st_blocks * 512 < 20_000_000
    report = json.loads(moetool("inspect", full_geometry, "--json", check=0).stdout)
    assert report["n_tensors"] == 995
    assert report["model"]["n_params"] == 46_702_792_704
    assert report["model"]["n_params_active"] == 12_879_925_248
    assert report["model"]["kv_cache_nbytes"] == 4 * 2**30


def test_the_full_geometry_is_inspected_in_little_memory(full_geometry):
    """At most 60 MB of resident memory for 93.4 GB; the time is in benchmarks/."""
    program = (
        "import re, sys; from moetool.cli.app import run; run(['inspect', sys.argv[1]]);"
        "status = open('/proc/self/status').read();"
        "print(re.search(r'VmHWM:\\s+(\\d+)', status)[1], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, full_geometry], capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert int(done.stderr.split()[-1]) * 1024 <= 60_000_000
