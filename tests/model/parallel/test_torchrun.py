"""The commands under torchrun: one voice, the words of one process."""

from __future__ import annotations

import json

import pytest

WORDS = ("--prompt", "The old", "--device", "cpu", "--max-tokens", "12", "--json")


def test_generate_says_under_torchrun_what_it_says_alone(moetool, torchrun, tiny_release):
    alone = json.loads(moetool("generate", tiny_release, *WORDS, check=0).stdout)
    done = torchrun(2, "generate", tiny_release, *WORDS[2:], "--prompt", "-", stdin="The old")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["text"], found["tokens"]) == (alone["text"], alone["tokens"])
    assert alone["ranks"] == []
    assert [rank["holds"] for rank in found["ranks"]] == [
        "layers 0-1, embeddings", "layers 2-3, output",
    ]  # fmt: skip
    assert done.stderr.count("of weights planned") == 2


def test_eval_scores_with_split_tensors_what_it_scores_alone(
    moetool, ranks_of, tiny_release, tmp_path
):
    """Also with fewer experts for each token, which is another model over the same share."""
    text = tmp_path / "text.txt"
    text.write_text("The old mill. Now Leo has 8 beans and eats 3 of them. " * 4, encoding="utf-8")
    words = ("eval", tiny_release, "--text", text, "--top-k", "1..2", "--device", "cpu", "--json",
             "--dtype", "float32")  # fmt: skip
    alone = json.loads(moetool(*words, check=0).stdout)
    codes, output, error = ranks_of(2, *words, "--parallel", "tensor")
    assert codes == [0, 0], error
    found = json.loads(output)
    losses = [[row["scores"]["score"]["loss"] for row in each["rows"]] for each in (alone, found)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[0][0] != losses[0][1]
    assert [rank["holds"] for rank in found["ranks"]] == ["1/2 of every layer"] * 2


def test_what_all_ranks_refuse_is_said_once(ranks_of, tiny_release):
    codes, output, error = ranks_of(2, "generate", tiny_release, *WORDS, "--memory", "3MB")
    assert codes == [5, 5]
    found = json.loads(output)
    assert (found["kind"], found["code"], len(found["findings"])) == ("NotEnoughMemory", 5, 2)
    assert error.count("error: ") == 1


def test_tensor_parallel_without_torchrun_is_a_wrong_command_line(moetool, tiny_release):
    done = moetool("generate", tiny_release, *WORDS, "--parallel", "tensor", check=2)
    assert "this one is alone" in done.stderr
    done = moetool("generate", tiny_release, *WORDS, "--parallel", "sideways", check=2)
    assert "pipeline or tensor" in done.stderr
