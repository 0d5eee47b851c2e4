"""Losses are those of the formulas, in f64 over all windows."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from moetool.errors import UsageFault
from moetool.model.evaluate import evaluate, with_experts


@pytest.fixture
def tokens(some_tokens):
    return some_tokens(50).tolist()


def one_pass(model, tokens):
    return model.forward(torch.tensor(tokens), model.new_cache(len(tokens))).double()


def test_the_loss_is_the_mean_cross_entropy(load_model, tokens):
    model = load_model(dtype=torch.float32)
    each = F.cross_entropy(one_pass(model, tokens)[:-1], torch.tensor(tokens[1:]), reduction="none")
    score = evaluate(model, tokens, 64).score
    assert score.n_tokens == 49
    assert score.loss == pytest.approx(float(each.mean()), rel=1e-6)
    assert score.error == pytest.approx(float(each.std(correction=0)) / 7, rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(score.loss))


def test_windows_are_read_each_for_itself(load_model, tokens):
    """The first token of each is given; a window of one has nothing to score."""
    model = load_model(dtype=torch.float32)
    cuts = [tokens[at : at + 7] for at in range(0, 49, 7)]
    losses = [
        F.cross_entropy(one_pass(model, cut)[:-1], torch.tensor(cut[1:]), reduction="sum")
        for cut in cuts
    ]
    score = evaluate(model, tokens, 7).score
    assert score.n_tokens == 42
    assert score.loss == pytest.approx(float(sum(losses)) / 42, rel=1e-6)


def test_a_model_is_no_distance_from_itself(load_model, tokens):
    """In any layout: every logit the same to the last bit."""
    found = evaluate(load_model(), tokens, 20, load_model("hf-fused"))
    assert found.distance.identical
    assert (found.distance.kl, found.distance.kl_max, found.distance.max_logit) == (0, 0, 0)
    assert found.distance.same_top == 1
    assert found.score.loss == found.other.loss


def test_the_distance_of_two_models(load_model, tokens):
    """KL(A || B) in nats, as the formula has it."""
    a, b = load_model(dtype=torch.float32), load_model(dtype=torch.float32, seed=1)
    found = evaluate(a, tokens, 64, b).distance
    left, right = (one_pass(model, tokens)[:-1].log_softmax(-1) for model in (a, b))
    kl_T = (left.exp() * (left - right)).sum(-1)
    assert found.kl == pytest.approx(float(kl_T.mean()), rel=1e-4)
    assert found.kl_max == pytest.approx(float(kl_T.max()), rel=1e-4)
    assert found.same_top == float((left.argmax(-1) == right.argmax(-1)).double().mean())
    assert not found.identical


def test_other_numbers_of_experts(load_model, tokens):
    """As trained it is the model itself, with fewer another; none and too many are refused."""
    model = load_model()
    trained = model.args.n_experts_per_tok
    assert evaluate(model, tokens, 64, with_experts(model, trained)).distance.identical
    assert not evaluate(model, tokens, 64, with_experts(model, 1)).distance.identical
    for n in (0, model.args.n_experts + 1):
        with pytest.raises(UsageFault):
            with_experts(model, n)


def test_a_text_of_one_token_is_refused(load_model):
    with pytest.raises(UsageFault):
        evaluate(load_model(), [3], 64)
