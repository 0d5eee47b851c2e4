"""The teacher-forced rule: it lets rounding through, and no mistake of an engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moetool.model.fast.agreement import Routes, agreement
from moetool.model.mixtral import Transformer

# Wide enough that bf16 is to it what it is to a real model.
CALM = {"dim": 128, "hidden_dim": 224, "vocab_size": 256, "n_layers": 2}


@pytest.fixture
def models(load_model, odd_args):
    args = replace(odd_args, **CALM)
    return [load_model(args=args, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]


class Wrong:
    """Weights of which some names stand for others."""

    def __init__(self, weights, **exchanged):
        self.weights, self.exchanged = weights, exchanged
        self.device, self.dtype, self.expect = weights.device, weights.dtype, weights.expect
        self.rows = weights.rows

    def __getitem__(self, name):
        for a, b in self.exchanged.items():
            if f".{a}." in name and "layers.1" in name:
                return self.weights[name.replace(f".{a}.", f".{b}.")]
        return self.weights[name]

    matrix = __getitem__


def logits(model, tokens, probe=None):
    return model.forward(tokens, model.new_cache(len(tokens)), probe)


def test_rounding_is_agreement(models, some_tokens):
    tokens = some_tokens(200, models[0].args)
    right, found = (logits(model, tokens) for model in models)
    assert agreement(right, found, tokens).holds
    assert "199/199" in str(agreement(right, right, tokens))


@pytest.mark.parametrize("mistake", [{"w1": "w3", "w3": "w1"}, {"wk": "wv"}, {"w1": "w3"}])
def test_a_mistake_in_one_layer_is_not(models, some_tokens, mistake):
    reference, _ = models
    tokens = some_tokens(200, reference.args)
    wrong = Transformer(reference.args, Wrong(reference.weights, **mistake))
    found = agreement(logits(reference, tokens), logits(wrong, tokens), tokens)
    assert not found.holds, found


def test_a_near_tie_may_go_either_way_and_a_clear_best_may_not():
    tokens = torch.zeros(3, dtype=torch.int64)
    right = torch.tensor([[1.00, 1.05, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    found = torch.tensor([[1.05, 1.00, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    result = agreement(right, found, tokens)
    assert (result.n, result.same, result.agreeing) == (2, 0, 1)
    assert not result.holds


def test_either_limit_is_enough():
    """All best tokens the same and far off; all but undecided between other tokens, hardly off."""
    tokens = torch.zeros(9, dtype=torch.int64)
    sure = torch.tensor([3.0, 0.0, 0.0]).expand(9, 3)
    apart = agreement(sure, sure / 3, tokens)
    assert apart.agreeing == apart.n
    assert not apart.holds
    flat = torch.zeros(9, 100)
    flat[:, 7] = 0.12
    other = agreement(flat, flat.roll(1, 1), tokens)
    assert other.kl < 1e-3
    assert not other.holds


def test_routes_are_compared_whatever_their_order(models, some_tokens):
    tokens = some_tokens(64, models[0].args)
    routes = [Routes(), Routes()]
    for model, probe in zip(models, routes, strict=True):
        logits(model, tokens, probe)
    assert routes[0].same(routes[0]) == 1
    assert 0.9 < routes[0].same(routes[1]) <= 1
