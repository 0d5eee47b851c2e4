"""`moetool convert`: plans shown, outputs complete or absent, nothing overwritten."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from moetool.convert.execute.journal import Journal, Past, Work
from moetool.formats import open_checkpoint


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
        "config.json", "generation_config.json", "model.safetensors", "moetool-certificate.json",
        "moetool-manifest.json",
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["--layout", "mistral-packed"], ["consolidated.00.pt", "consolidated.07.pt"]),
        (["--layout", "mistral"], ["consolidated.safetensors"]),
        (["--layout", "gguf"], ["out.gguf"]),
        (["--to", "pth"], ["consolidated.00.pth"]),
        (["--layout", "mistral", "--max-shard-size", "2MB"],
         ["consolidated-00001-of-00004.safetensors", "consolidated-00004-of-00004.safetensors"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)  # fmt: skip
def test_a_layout_or_a_format_alone_means_the_usual_other(words, written, raw, moetool, tmp_path):
    """File names are those that each layout's readers look for."""
    moetool("convert", raw, "--out", tmp_path / "out", *words, check=0)
    names = os.listdir(tmp_path / "out")
    assert set(written) <= set(names)


def test_an_output_without_vocabulary_is_warned_of(raw, moetool):
    """A GGUF without one does not load in llama.cpp."""
    (raw / "tokenizer.model").unlink()
    done = moetool("convert", raw, "--to", "gguf", "--json", check=0)
    assert "warning: no tokenizer.model beside the source" in done.stderr
    assert "llama.cpp will not load" in json.loads(done.stdout)["notes"][0]


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


def test_force_moves_the_old_output_aside(raw, moetool):
    """OUT.old-1 is what was there."""
    moetool("convert", raw, check=0)
    (raw.with_name("raw-hf") / "note").write_text("mine")
    moetool("convert", raw, "--force", check=0)
    assert (raw.with_name("raw-hf.old-1") / "note").read_text() == "mine"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_within_two_seconds_and_prints_the_command_to_go_on(
    number, code, raw, tmp_path
):
    """What is kept is counted, the command works as it is printed, and it goes on."""
    pipe = tmp_path / "go"
    program = (
        "import os, sys, time\n"
        "from moetool.formats import FileCheckpoint\n"
        "real, reads = FileCheckpoint.read, []\n"
        "def read(self, *where):\n"
        "    reads.append(1)\n"
        "    if len(reads) == 30:\n"
        f"        open({str(pipe)!r}, 'w').close()\n"
        "        time.sleep(60)\n"
        "    return real(self, *where)\n"
        "FileCheckpoint.read = read\n"
        "from moetool.cli.app import run\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    words = ["convert", "raw", "--out", "o u t", "--max-shard-size", "1MB"]
    with subprocess.Popen(
        [sys.executable, "-c", program, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as child:
        until = time.monotonic() + 30
        while not pipe.exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        began = time.monotonic()
        child.send_signal(number)
        _, told = child.communicate(timeout=20)
    assert time.monotonic() - began < 2
    assert child.returncode == code, told
    assert "Traceback" not in told
    assert re.search(r"[1-9]\d* of \d+ files are finished", told), told
    command = told.rpartition("to go on: ")[2].strip()
    assert not (tmp_path / "o u t").exists()
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)], cwd="/", capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "were there from an earlier run" in done.stdout
    assert (tmp_path / "o u t" / "moetool-manifest.json").is_file()


def test_other_options_name_both_plans(raw, moetool):
    """Exit 7, what differs, and the way out."""
    partial = raw.with_name("raw-hf.partial")
    moetool("convert", raw, "--max-shard-size", "1MB", check=0)
    assert not partial.exists()
    out = raw.with_name("raw-hf")
    shutil.rmtree(out)
    (out.parent / "raw-hf.partial").mkdir()
    work = Work("0" * 64, (), {"to": "gguf"})
    Journal(partial, Past(work))
    done = moetool("convert", raw, check=7)
    assert "begun as plan 0000000000000000" in done.stderr
    assert "--restart" in done.stderr
    moetool("convert", raw, "--restart", check=0)


@pytest.mark.parametrize(
    "words",
    [(), ("--max-shard-size", "1MB"), ("--to", "gguf"), ("--to", "pth")],
    ids=" ".join,
)
def test_verify_finds_any_flipped_byte_by_file_and_tensor(words, raw, moetool, tmp_path):
    """The manifest speaks of every file, and of every tensor in it."""
    out = tmp_path / "out"
    moetool("convert", raw, "--out", out, *words, check=0)
    assert re.search(r"^MATCH ", moetool("verify", out, check=0).stdout, re.MULTILINE)
    with open_checkpoint(out) as checkpoint:
        name, extent = max(checkpoint.catalog.extents.items(), key=lambda item: item[1].nbytes)
    places = [(path, path.stat().st_size // 3) for path in out.iterdir() if path != extent.path][
        ::4
    ]
    for path, at in [(extent.path, extent.offset + extent.nbytes // 2), *places]:
        before = path.read_bytes()
        path.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
        done = moetool("verify", out, check=3)
        assert path.name in done.stdout + done.stderr
        assert (name in done.stdout) == (path == extent.path)
        path.write_bytes(before)
    moetool("verify", out, check=0)


def test_verify_misses_a_file_that_the_manifest_names(raw, moetool):
    """A side file is a part of the output."""
    moetool("convert", raw, check=0)
    (raw.with_name("raw-hf") / "generation_config.json").unlink()
    assert "missing" in moetool("verify", raw.with_name("raw-hf"), check=3).stdout
