"""Prompts are chosen where the model has a choice, and continued together; a quick test has one."""

from __future__ import annotations

import math

import pytest
import torch

from moetool.model.generate import Pace, Sampling, generate
from moetool.model.smoke import SmokeTest, Verdict
from moetool.model.smoke.continuations import (
    LONGEST,
    SHORTEST,
    Writing,
    beginnings,
    entropies,
    write_together,
)
from moetool.model.smoke.text import Text

CPU = torch.device("cpu")
N_WORDS = 64
WORDS = ["<s>", ".", "<0x0A>", *(f"▁w{n}" for n in range(3, N_WORDS))]


class Words:
    """A tokenizer whose pieces are whole words."""

    def piece(self, token):
        return (WORDS[token], 0.0, False, False)

    def decode(self, ids):
        return "".join(WORDS[token].replace("▁", " ") for token in ids)


def logits_with(share, size):
    """Rows whose entropy is about ``share`` of chance at every position."""
    n_even = max(1, round(N_WORDS**share))
    row = torch.full((N_WORDS,), -1e4)
    row[:n_even] = 0.0
    return row.repeat(size, 1)


def sentences(n, words):
    """``n`` sentences of so many words; the first word of each tells which it is."""
    return Text("it", (0, *(t for s in range(n) for t in (s + 3, *range(40, 39 + words), 1))), True)


@pytest.fixture(scope="module")
def seen(sound, tiny_release):
    """The release, after its text."""
    test = SmokeTest(*sound, tiny_release, CPU)
    test.observe(lambda _done, _note: None)
    return test


def test_entropy_is_that_of_the_distribution():
    assert entropies(torch.zeros(3, 768)) == pytest.approx([math.log(768)] * 3)
    assert entropies(torch.eye(4) * 1e4) == [0.0] * 4


@pytest.mark.parametrize("share", [0.0, 0.05, 0.8, 1.0])
def test_where_there_is_no_choice_or_nothing_else_no_prompt_is_taken(share):
    text = sentences(12, 10)
    assert beginnings(text, logits_with(share, len(text)), Words()) == []


def test_three_beginnings_are_spread_over_the_text():
    text = sentences(12, 10)
    found = beginnings(text, logits_with(0.3, len(text)), Words())
    assert [each.split()[0] for each in found] == ["w3", "w7", "w11"]
    assert all(SHORTEST <= len(each.split()) <= LONGEST and "." not in each for each in found)


def test_a_prompt_ends_where_the_entropy_is_in_the_middle():
    text = sentences(3, 20)
    logits_TV = logits_with(0.0, len(text))
    logits_TV[4] = logits_with(0.3, 1)  # too short a beginning
    logits_TV[6] = logits_with(0.55, 1)
    logits_TV[9] = logits_with(0.3, 1)
    assert beginnings(text, logits_TV, Words()) == ["w3 w40 w41 w42 w43 w44 w45 w46 w47"]


def test_the_beginning_of_a_line_is_preferred():
    tokens = (0, *(3, 40, 41, 42, 43, 44, 45, 1), *(4, 40, 41, 42, 43, 44, 2),
              *(5, 40, 41, 42, 43, 44, 45, 1))  # fmt: skip
    text = Text("it", tokens * 3, True)
    found = beginnings(text, logits_with(0.3, len(text)), Words())
    assert {each.split()[0] for each in found} == {"w5"}


def test_the_releases_own_beginnings_leave_a_choice(seen):
    writings = seen.prompts(None)
    assert len(writings) == 3
    list(seen.write(writings, 4, Sampling()))
    chance = math.log(768)
    for each in seen.continuations:
        assert 0.02 * chance < each.entropy < 0.7 * chance
        assert len(each.tokens) == 4


def test_together_they_are_what_they_are_alone(sound, tiny_release):
    """In float32, where another grouping of rows decides no token; one stops before the others."""
    test = SmokeTest(*sound, tiny_release, CPU, dtype=torch.float32)
    prompts = ["Once upon a time there was", "3 * 2 =", "Diary of Anna"]
    ids = [test.subject.tokenizer.encode(prompt) for prompt in prompts]
    alone = [list(generate(test.model, each, 12)) for each in ids]
    stop = frozenset({alone[1][4]})
    alone = [made[: next((n for n, t in enumerate(made) if t in stop), 12)] for made in alone]
    assert len({len(made) for made in alone}) > 1
    writings = [Writing(text, each) for text, each in zip(prompts, ids, strict=True)]
    pace = Pace()
    list(write_together(test.model, writings, 12, Sampling(), stop, pace))
    assert [each.made for each in writings] == alone
    assert pace.prompt_tokens == sum(map(len, ids))


def test_a_given_prompt_is_the_only_one_and_its_pieces_are_its_text(seen):
    writings = seen.prompts("Once upon a time")
    assert [each.prompt for each in writings] == ["Once upon a time"]
    pieces = list(seen.write(writings, 6, Sampling()))
    (continuation,) = seen.continuations
    assert "".join(pieces) == continuation.text != ""


def test_a_quick_test_says_what_it_did_not_look_at(sound, tiny_release):
    test = SmokeTest(*sound, tiny_release, CPU, quick=True)
    test.observe(lambda _done, _note: None)
    report = test.report(tiny_release)
    assert report.ok
    missing = {c.name: c.detail for c in report.checks if c.verdict is Verdict.NOT_COVERED}
    assert set(missing) == {"bits", "loss band", "cached = one pass"}
    assert "128 tokens" in missing["loss band"]
    assert len(report.text_tokens) == report.figures.text_tokens == 128
    assert [each.prompt for each in test.prompts(None)] == [test.subject.release.smoke.prompt]


def test_a_quick_test_still_finds_what_is_not_finite_and_what_is_worse_than_chance(
    sound, tiny_release
):
    checkpoint, recognized = sound
    for damage, name in (
        (lambda tensors: tensors["layers.3.ffn_norm.weight"].fill_(float("nan")), "finite layers"),
        (lambda tensors: tensors["output.weight"].neg_(), "loss"),
    ):
        tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
        damage(tensors)
        held = type(checkpoint)(checkpoint.catalog, tensors)
        test = SmokeTest(held, recognized, tiny_release, CPU, quick=True)
        test.observe(lambda _done, _note: None)
        assert name in {c.name for c in test.checks if c.verdict is Verdict.FAIL}
