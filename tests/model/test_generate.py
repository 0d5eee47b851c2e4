"""Decoding: greedy and sampled, reproducible, and never from NaN."""

from __future__ import annotations

import pytest
import torch

from moetool.errors import CheckFailed, UsageFault
from moetool.model.generate import Pace, Sampling, choose, generate

PROMPT = [1, 7, 30, 12]


def test_greedy_decoding_is_what_one_pass_says(load_model):
    model = load_model()
    made = list(generate(model, PROMPT, 20))
    whole = torch.tensor(PROMPT + made)
    best = model.forward(whole, model.new_cache(len(whole))).argmax(-1)
    assert made == best[len(PROMPT) - 1 : -1].tolist()


def test_equal_logits_give_the_lower_token():
    logits = torch.tensor([0.0, 3.0, 1.0, 3.0])
    assert choose(logits, Sampling(), torch.Generator()) == 1


def test_a_seed_means_the_same_tokens(load_model):
    model = load_model()
    runs = [
        list(generate(model, PROMPT, 12, sampling=Sampling(temperature=1.5, seed=seed)))
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_sampling_follows_the_softmax():
    logits = torch.tensor([0.1, 0.3, 0.6]).log()
    random = torch.Generator().manual_seed(0)
    drawn = [choose(logits, Sampling(temperature=1.0), random) for _ in range(3000)]
    for token, share in enumerate((0.1, 0.3, 0.6)):
        assert abs(drawn.count(token) / 3000 - share) < 0.03


def test_top_k_and_top_p_cut_the_tail():
    logits = torch.tensor([0.1, 0.5, 0.3, 0.1]).log()
    random = torch.Generator().manual_seed(0)

    def drawn(**cut):
        return {choose(logits, Sampling(temperature=1.0, **cut), random) for _ in range(200)}

    assert drawn(top_k=1) == {1}
    assert drawn(top_p=0.4) == {1}
    assert drawn(top_p=0.7) == drawn(top_k=2) == {1, 2}
    assert drawn() == {0, 1, 2, 3}


def test_it_stops_before_a_stop_token(load_model):
    model = load_model()
    free = list(generate(model, PROMPT, 10))
    stopped = list(generate(model, PROMPT, 10, stop=frozenset({free[4]})))
    assert stopped == free[: free.index(free[4])]


def test_pace_counts_the_prompt_and_what_follows(load_model):
    pace = Pace()
    list(generate(load_model(), PROMPT, 5, pace=pace))
    assert (pace.prompt_tokens, pace.new_tokens) == (4, 4)
    assert pace.prompt_seconds > 0 < pace.new_seconds


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_never_drawn_from(value):
    with pytest.raises(CheckFailed, match="not finite"):
        choose(torch.tensor([0.0, value]), Sampling(), torch.Generator())


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}]
)
def test_senseless_sampling_is_a_usage_error(wrong):
    with pytest.raises(UsageFault):
        Sampling(**wrong)


def test_an_empty_prompt_is_a_usage_error(load_model):
    with pytest.raises(UsageFault, match="empty"):
        next(generate(load_model(), [], 5))


def test_a_prompt_longer_than_the_context_is_a_usage_error(load_model):
    with pytest.raises(UsageFault, match="context of 256"):
        next(generate(load_model(), PROMPT * 64, 5))
