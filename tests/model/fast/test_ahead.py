"""The stream of tokens: that of the reference, whoever is ahead of whom."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from moetool.errors import CheckFailed, UsageFault
from moetool.model.fast.ahead import AHEAD, best, continued
from moetool.model.fast.decoder import Decoder
from moetool.model.generate import Pace, Sampling, generate

PROMPT = [1, 7, 30, 12]


class Late:
    """Copies to the host that are done only when they are waited for, as a GPU's may be."""

    def __init__(self):
        self.n_marks = self.n_waited = 0

    def staging(self, numel, dtype):
        return LateTensor(torch.full((numel,), -7, dtype=dtype))

    def mark(self):
        mark = LateMark(self, list(LateTensor.queue))
        LateTensor.queue.clear()
        self.n_marks += 1
        return mark


class LateMark:
    def __init__(self, copies, queue):
        self.copies, self.queue = copies, queue

    def wait(self):
        self.copies.n_waited += 1
        for target, value in self.queue:
            target.copy_(value)


class LateTensor:
    queue: ClassVar[list] = []

    def __init__(self, tensor):
        self.tensor = tensor

    def __len__(self):
        return len(self.tensor)

    def __getitem__(self, at):
        return LateTensor(self.tensor[at])

    def copy_(self, source, non_blocking):
        assert non_blocking
        LateTensor.queue.append((self.tensor, source.clone()))

    def __int__(self):
        return int(self.tensor)


@pytest.mark.parametrize("n", [1, 2, AHEAD, AHEAD + 1, 30])
def test_greedy_tokens_are_those_of_the_reference(pair, n):
    reference, fast = pair()
    assert list(generate(fast, PROMPT, n)) == list(generate(reference, PROMPT, n))


def test_a_seed_means_the_tokens_of_the_reference(pair):
    reference, fast = pair()
    for seed in (3, 4):
        drawn = Sampling(temperature=1.5, seed=seed)
        right = list(generate(reference, PROMPT, 12, sampling=drawn))
        assert list(generate(fast, PROMPT, 12, sampling=drawn)) == right


def test_tokens_are_read_behind_and_lose_nothing(pair):
    reference, fast = pair()
    right = list(generate(reference, PROMPT, 12))
    late, found = Late(), []
    for token in continued(fast, PROMPT, 12, Sampling(), frozenset(), Pace(), late):
        found.append(token)
        assert late.n_marks - late.n_waited <= AHEAD
        assert late.n_marks == min(12, len(found) + AHEAD)
    assert found == right


def test_it_stops_before_a_stop_token_and_drops_what_came_after(pair):
    _, fast = pair()
    free = list(generate(fast, PROMPT, 20))
    stopped = list(generate(fast, PROMPT, 20, stop=frozenset({free[4]})))
    assert stopped == free[: free.index(free[4])]


def test_pace_counts_the_prompt_and_what_follows(pair):
    pace = Pace()
    list(generate(pair()[1], PROMPT, 5, pace=pace))
    assert (pace.prompt_tokens, pace.new_tokens) == (4, 4)
    assert pace.prompt_seconds > 0 < pace.new_seconds


def test_the_tokens_of_a_context_that_becomes_full(pair):
    reference, fast = pair(max_seq_len=16)
    assert list(generate(fast, PROMPT, 12)) == list(generate(reference, PROMPT, 12))
    with pytest.raises(UsageFault, match="17 tokens are more than the model's context of 16"):
        next(generate(fast, PROMPT, 13))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(pair, temperature):
    """From the prompt, and from a step whose followers are finite again."""
    _, fast = pair()
    fast.stacked.ends.norm_D[3] = float("nan")
    with pytest.raises(CheckFailed, match="not finite"):
        list(generate(fast, PROMPT, 9, sampling=Sampling(temperature)))


def test_one_step_that_is_not_finite_is_not_passed_over(pair, monkeypatch):
    _, fast = pair()
    cache = fast.new_cache(16)
    decoder = Decoder(fast, cache)
    decoder.begin(fast.forward(torch.tensor(PROMPT), cache)[-1])
    made, keep = [], decoder._keep

    def damaged(logits_V, best_1):
        made.append(len(made))
        keep(logits_V, torch.full_like(best_1, -1) if len(made) == 3 else best_1)

    monkeypatch.setattr(decoder, "_keep", damaged)
    tokens = best(decoder, 9, Late())
    assert [next(tokens) for _ in range(3)]
    with pytest.raises(CheckFailed, match="not finite"):
        next(tokens)
