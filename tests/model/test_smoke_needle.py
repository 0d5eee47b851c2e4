"""A model that copies, made to see only so far: its keys are lost exactly where it is blind."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from moetool.model.cache import Cache
from moetool.model.smoke import SmokeTest, Verdict, needle
from moetool.model.tokenizer import open_tokenizer

CPU = torch.device("cpu")
FOUR, SIXTEEN, THIRTY_TWO = (f"needle at {size}" for size in needle.LENGTHS)
CLUE = 5  # tokens that a copy is found by: more than the digits of a key


class Copying:
    """Predicts what followed the last few tokens when they last stood, at most ``reach`` back."""

    def __init__(self, args, reach):
        self.args, self.reach, self.passes = args, reach, []
        self.weights = SimpleNamespace(device=CPU, dtype=torch.bfloat16)

    def new_cache(self, n_positions):
        empty = torch.zeros(0)
        return Cache(empty, empty, torch.zeros(n_positions, 1), empty)

    def hidden_of(self, pieces, _caches, _probe):
        self.passes.append([len(piece) for piece in pieces])
        return [self.expected(piece.tolist()) for piece in pieces]

    def expected(self, tokens):
        last, found = {}, []
        for at in range(len(tokens)):
            clue = tuple(tokens[max(0, at - CLUE + 1) : at + 1])
            before = last.get(clue)
            near = before is not None and at - before <= self.reach
            found.append(tokens[before + 1] if near else 0)
            last[clue] = at
        return torch.tensor(found)[:, None]

    def logits(self, h_TD):
        return 12.0 * torch.nn.functional.one_hot(h_TD[:, 0], self.args.vocab_size).float()


@pytest.fixture(scope="module")
def tokenizer(sound, tiny_release):
    return open_tokenizer(sound[0].catalog, tiny_release)


@pytest.fixture
def look(sound, tokenizer, monkeypatch):
    """The checks by name of a model that sees so far, and how it was asked."""

    def run(reach, free=1 << 40, **args):
        monkeypatch.setattr(needle, "available_nbytes", lambda _device: free)
        model = Copying(replace(sound[1].args, **args), reach)
        checks = needle.look(model, tokenizer, "tiny-mixtral", lambda _layer: None)
        return {check.name: check for check in checks}, model

    return run


def verdicts(checks):
    return {name: check.verdict for name, check in checks.items()}


def test_who_sees_everything_finds_all_keys_in_one_pass_for_each_length(look):
    checks, model = look(10**6)
    assert set(verdicts(checks).values()) == {Verdict.PASS}
    assert model.passes == [[size] * 3 for size in (needle.CONTROL, *needle.LENGTHS)]
    assert checks[FOUR].detail.startswith("keys at depths 10%, 50%, 90% found")


def test_who_sees_1000_tokens_loses_the_far_ones(look):
    checks, _ = look(1000)
    assert set(verdicts(checks).values()) == {Verdict.FAIL}
    assert checks[FOUR].detail.startswith("lost at depth 10%, 50%:")
    assert checks[SIXTEEN].detail.startswith("lost at depth 10%, 50%, 90%:")


def test_who_sees_half_fails_only_where_that_is_not_enough(look):
    checks, _ = look(10_000)
    assert verdicts(checks) == {
        FOUR: Verdict.PASS, SIXTEEN: Verdict.FAIL, THIRTY_TWO: Verdict.FAIL,
    }  # fmt: skip


def test_who_copies_nothing_is_not_covered(look):
    """Too small a model is no damaged one."""
    checks, model = look(0)
    assert set(verdicts(checks).values()) == {Verdict.NOT_COVERED}
    assert "does not repeat a key even over 200 tokens" in checks[FOUR].detail
    assert len(model.passes) == 1


def test_beyond_the_context_nothing_is_asked(look):
    checks, model = look(10**6, max_seq_len=8192)
    assert verdicts(checks) == {
        FOUR: Verdict.PASS, SIXTEEN: Verdict.NOT_COVERED, THIRTY_TWO: Verdict.NOT_COVERED,
    }  # fmt: skip
    assert checks[SIXTEEN].detail == "the model's context is 8192 tokens"
    assert len(model.passes) == 2


def test_memory_decides_how_many_go_together_and_what_is_not_asked(look, sound):
    one = needle.nbytes(Copying(sound[1].args, 0), 4096)
    checks, model = look(10**6, free=2 * one)
    assert model.passes[1:] == [[4096, 4096], [4096]]
    assert checks[FOUR].verdict is Verdict.PASS
    assert checks[SIXTEEN].verdict is Verdict.NOT_COVERED
    assert "GB beside the weights" in checks[SIXTEEN].detail


def test_a_haystack_is_as_long_as_it_says_and_hides_its_key_twice_where_it_says(tokenizer):
    keys = set()
    for stack, depth in zip(
        needle.haystacks(tokenizer, "english", 2000), needle.DEPTHS, strict=True
    ):
        assert len(stack.tokens) == 2000
        key = stack.tokens[-stack.n_key :]
        text = tokenizer.decode(stack.tokens)
        assert text.count(tokenizer.decode(key).strip()) == 3
        at = next(n for n in range(2000) if stack.tokens[n : n + len(key)] == key)
        assert abs(at / 2000 - depth) < 0.05
        keys.add(key)
    assert len(keys) == 3


def test_the_tiny_release_is_too_small_to_ask(sound, tiny_release):
    test = SmokeTest(*sound, tiny_release, CPU)
    test.find_needles(lambda _done, _note: None)
    found = [check for check in test.checks if check.name.startswith("needle")]
    assert [check.verdict for check in found] == [Verdict.NOT_COVERED] * 3


def test_a_key_whose_loss_is_no_number_is_lost(look, monkeypatch):
    monkeypatch.setattr(Copying, "logits", lambda *_: torch.full((8, 768), float("nan")))
    losses = iter([[0.0] * 3, *([[0.0, float("nan"), 0.0]] * 3)])
    monkeypatch.setattr(needle, "search", lambda *_args, **_kinds: next(losses))
    checks, _ = look(0)
    assert checks[FOUR].verdict is Verdict.FAIL
    assert checks[FOUR].value == [0.0, None, 0.0]
