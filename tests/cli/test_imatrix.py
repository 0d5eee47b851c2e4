"""`moetool imatrix` as a user and as a script see it."""

from __future__ import annotations

import json
import os

import pytest

from moetool.formats.imatrix import read_imatrix

WORDS = ("--device", "cpu", "--chunk", 64)


@pytest.fixture
def text(tiny_release, tmp_path):
    """A text, and what is left over of its last chunk."""
    path = tmp_path / "text.txt"
    path.write_text("the old lighthouse keeper went down to the harbour again, " * 12)
    return path


def test_a_file_and_one_document(moetool, tiny_release, text, tmp_path):
    done = moetool("imatrix", tiny_release, "--text", text, "--out", tmp_path / "i.gguf", *WORDS,
                   "--process-output", "--json", check=0)  # fmt: skip
    report = json.loads(done.stdout)
    found = read_imatrix(tmp_path / "i.gguf")
    assert (report["schema"], report["ok"]) == ("moetool.imatrix", True)
    assert report["n_chunks"] == found.chunk_count >= 2
    assert report["n_tokens"] == 64 * found.chunk_count
    assert 0 < report["n_left"] < 64
    assert found.chunk_size == report["chunk"] == 64
    assert found.datasets == (str(text),)
    assert report["n_entries"] == len(found.entries) == 4 * 8 + 1
    assert found.entries["output.weight"].counts == (report["n_tokens"],)
    idle = {
        (layer, expert)
        for layer in range(4)
        for expert in found.never_activated(f"blk.{layer}.ffn_down_exps.weight")
    }
    assert idle == {(each["layer"], each["expert"]) for each in report["never_activated"]}


def test_the_older_form_and_who_was_never_activated(moetool, tiny_release, tmp_path):
    """Two tokens reach at most four of the eight experts of a layer."""
    (tmp_path / "short.txt").write_text("the old lighthouse")
    done = moetool("imatrix", tiny_release, "--text", "short.txt", "--out", "i.dat", "--chunk", 2,
                   "--max-chunks", 1, "--device", "cpu", check=0)  # fmt: skip
    assert "never activated" in done.stdout
    assert "  layer 0: " in done.stdout
    assert "will all count the same" in done.stderr
    assert read_imatrix(tmp_path / "i.dat").chunk_count == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--out", "imatrix.bin"], 2),
        (["--out", "none/imatrix.gguf"], 2),
        (["--out", "there.dat"], 7),
        (["--out", "i.dat", "--chunk", 1], 2),
        (["--out", "i.dat", "--text", "none.txt"], 2),
    ],
)
def test_what_is_refused_leaves_no_file(words, code, moetool, tiny_release, text, tmp_path):
    (tmp_path / "there.dat").write_bytes(b"mine")
    moetool("imatrix", tiny_release, "--text", text, *words, "--device", "cpu", check=code)
    assert sorted(os.listdir(tmp_path)) == ["text.txt", "there.dat"]
    assert (tmp_path / "there.dat").read_bytes() == b"mine"
