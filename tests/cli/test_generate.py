"""`moetool generate` and `moetool eval` as a user and as a script see them."""

from __future__ import annotations

import json

import pytest

from moetool.cli.eval import parse_range
from moetool.errors import UsageFault

WORDS = ("generate", "--prompt", "The old", "--device", "cpu")


def test_text_on_stdout_and_pace_on_stderr(moetool, tiny_release):
    done = moetool(*WORDS, tiny_release, "--max-tokens", 12, check=0)
    assert done.stdout.strip()
    assert "tokens/s" not in done.stdout
    assert "first token after" in done.stderr
    assert "anonymous" in done.stderr


def test_one_document(moetool, tiny_release):
    found = json.loads(moetool(*WORDS, tiny_release, "--max-tokens", 5, "--json", check=0).stdout)
    assert (found["schema"], len(found["tokens"]), found["stopped"]) == (
        "moetool.generate", 5, "length"
    )  # fmt: skip
    assert found["new_tokens"] == 4


def test_a_stop_text_ends_it_and_is_not_printed(moetool, tiny_release):
    whole = json.loads(moetool(*WORDS, tiny_release, "--max-tokens", 40, "--json", check=0).stdout)
    stop = whole["text"][11:16]
    assert len(stop) == 5
    done = moetool(*WORDS, tiny_release, "--max-tokens", 40, "--stop", stop, "-q", check=0)
    assert done.stdout.rstrip("\n") == whole["text"][: whole["text"].index(stop)]
    found = json.loads(
        moetool(*WORDS, tiny_release, "--max-tokens", 40, "--stop", stop, "--json", check=0).stdout
    )
    assert found["stopped"] == "stop"
    assert len(found["tokens"]) < 40


def test_a_model_beyond_its_memory_says_the_same(moetool, tiny_release):
    """Weights that are read again and again are the same weights."""
    texts, read = [], []
    for memory in ("1GB", "2MB"):
        done = moetool(*WORDS, tiny_release, "--max-tokens", 12, "--memory", memory, "--json",
                       check=0)  # fmt: skip
        found = json.loads(done.stdout)
        texts.append(found["text"])
        read.append(found["weights_nbytes_read"])
    assert texts[0] == texts[1]
    assert read[1] > 3 * read[0]
    said = moetool(*WORDS, tiny_release, "--max-tokens", 1, "--memory", "2MB", check=0).stderr
    assert "1.91 MiB of 14.27 MiB of weights" in said
    assert "a pass over all weights reads 14.27 MiB, " in said
    assert "a new token up to " in said


def test_a_seed_means_the_same_each_time(moetool, tiny_release):
    def drawn(seed):
        return moetool(*WORDS, tiny_release, "--temperature", 1.5, "--seed", seed, "-q",
                       "--max-tokens", 16, check=0).stdout  # fmt: skip

    assert drawn(1) == drawn(1) != drawn(2)


def test_bad_words_are_usage_faults(moetool, tiny_release):
    moetool(*WORDS, tiny_release, "--memory", "much", check=2)
    moetool(*WORDS, tiny_release, "--dtype", "int3", check=2)
    moetool("generate", tiny_release.parent / "absent", check=2)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(
        "The old owl lived by the green pond. One day a small cat came to the pond. " * 4
    )
    return path


def test_eval_scores_a_text(moetool, tiny_release, text):
    done = moetool("eval", tiny_release, "--text", text, "--json", check=0)
    found = json.loads(done.stdout)
    (row,) = found["rows"]
    assert found["schema"] == "moetool.eval"
    assert row["n_experts_per_tok"] == 2
    assert row["scores"]["score"]["loss"] > 0
    assert row["scores"]["distance"] is None


def test_eval_against_a_conversion_is_equal_bit_for_bit(moetool, tiny_release, text, tmp_path):
    moetool("convert", tiny_release, "--to", "gguf", "--out", tmp_path / "out", "-q", check=0)
    done = moetool("eval", tiny_release, "--text", text, "--against", tmp_path / "out", check=0)
    assert "bit for bit" in done.stdout


def test_eval_of_fewer_experts(moetool, tiny_release, text):
    done = moetool("eval", tiny_release, "--text", text, "--top-k", "1..3", "--json", check=0)
    rows = json.loads(done.stdout)["rows"]
    assert [row["n_experts_per_tok"] for row in rows] == [1, 2, 3]
    assert len({row["scores"]["score"]["loss"] for row in rows}) == 3


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--top-k", "x"], 2), (["--top-k", "9"], 2), (["--window", "1"], 2), (["--dtype", "q"], 2)],
)
def test_eval_refuses(words, code, moetool, tiny_release, text):
    moetool("eval", tiny_release, "--text", text, *words, check=code)


def test_eval_refuses_what_is_no_text(moetool, tiny_release, tmp_path):
    moetool("eval", tiny_release, "--text", tmp_path / "none.txt", check=2)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    moetool("eval", tiny_release, "--text", tmp_path / "bytes", check=4)


def test_ranges():
    assert list(parse_range("1..3", 2)) == [1, 2, 3]
    assert list(parse_range(None, 2)) == [2]
    for text in ("3..1", "0", "..", "a"):
        with pytest.raises(UsageFault):
            parse_range(text, 2)
