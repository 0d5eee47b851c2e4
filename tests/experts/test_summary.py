"""Sums over a trace, against counts by hand; the cache against one that is played move by move."""

import io
import random
from collections import OrderedDict

import numpy as np
import pytest
import torch

from moetool.errors import Refused
from moetool.experts.changes import compare_routing
from moetool.experts.routing_file import to_npz
from moetool.experts.summary import summarise
from moetool.experts.trace import Routed, Trace
from moetool.experts.what_if import Traffic, what_if


def made(choices, n_experts=4, tokens=None, window=1000, first=0.75, margins=None):
    """A trace of one layer, or of several where choices are nested so."""
    if isinstance(choices[0][0], int):
        choices = [[token] for token in choices]
    experts = torch.tensor(choices, dtype=torch.int16)
    weights = torch.full(experts.shape, 1 - first)
    weights[..., 0] = first
    margins = torch.ones(experts.shape[:2]) if margins is None else torch.tensor(margins)
    tokens = tuple(tokens or range(len(choices)))
    return Trace(tokens, Routed(experts, weights, margins), n_experts, window)


def randomly(n_tokens=300, n_layers=3, n_experts=6, seed=1):
    rng = random.Random(seed)
    choices = [[rng.sample(range(n_experts), 2) for _ in range(n_layers)] for _ in range(n_tokens)]
    return made(choices, n_experts)


def test_loads_pairs_and_repetitions():
    """Six choices, counted by hand."""
    (layer,) = summarise(made([[0, 1], [0, 2], [2, 0]]), str).layers
    assert layer.load == (3, 1, 2, 0)
    assert layer.best == (2, 0, 1, 0)
    assert layer.together == ((3, 1, 2, 0), (1, 1, 0, 0), (2, 0, 2, 0), (0, 0, 0, 0))
    assert layer.unused == (3,)
    assert layer.heaviest == 3 / 1.5
    assert layer.again == (1 + 2) / 2 / 2
    assert layer.top1_share == pytest.approx(0.75)


def test_the_first_token_of_a_window_has_none_before_it():
    """What stands in another window was not read before."""
    (layer,) = summarise(made([[0, 1], [0, 1], [0, 1]], window=2), str).layers
    assert layer.again == 1
    (layer,) = summarise(made([[0, 1], [2, 3], [2, 3]], window=2), str).layers
    assert layer.again == 0


def test_balance_and_entropy_have_their_ends():
    """1 where all carry the same, 0 where one carries all; the same for weights."""
    even = summarise(made([[0, 1], [2, 3]], first=0.5), str).layers[0]
    assert (even.balance, even.weight_entropy) == pytest.approx((1, 1))
    uneven = summarise(made([[0], [0]], first=1.0), str).layers[0]
    assert uneven.balance == pytest.approx(0)
    decided = summarise(made([[0, 1]], first=1.0), str).layers[0]
    assert decided.weight_entropy == pytest.approx(0)


def test_an_expert_likes_what_others_do_not_get():
    """Token 7 always goes to expert 3, which gets nothing else; rare tokens are not told."""
    choices = [[3, 0]] * 4 + [[0, 1]] * 5 + [[2, 1], [0, 1]]
    found = summarise(made(choices, tokens=[7] * 4 + [8] * 6 + [9]), lambda t: f"t{t}").favourites
    liked = {(f.expert, f.token): f for f in found}
    assert liked[3, 7].lift == pytest.approx(11 / 4)
    assert (liked[3, 7].count, liked[3, 7].text) == (4, "t7")
    assert not any(token == 9 for _, token in liked)
    assert not any(f.count < 3 for f in found)  # expert 2 got one token of kind 8, and no other
    assert (3, 8) not in liked


@pytest.mark.parametrize("slots", range(2, 7))
def test_a_cache_is_what_playing_it_gives(slots):
    """Hits of each layer's own list of the least recently used, move by move."""
    trace = randomly()
    hits = 0
    for layer in range(3):
        held = OrderedDict()
        for chosen in trace.routed.experts_TLA[:, layer].tolist():
            hits += sum(expert in held for expert in chosen)
            for expert in reversed(chosen):  # the best one is used last
                held[expert] = None
                held.move_to_end(expert)
            while len(held) > slots:
                held.popitem(last=False)
    row = what_if(trace, Traffic(100, 1000), [50], 10_000)[slots - 2]
    assert row.slots == slots
    assert row.hit_rate == pytest.approx(hits / (300 * 3 * 2))
    missed = (300 * 3 * 2 - hits) / 300 * 100
    assert row.missed_nbytes_per_token == pytest.approx(missed)
    assert row.paces[0].tokens_s == pytest.approx(1 / (missed / 50 + (1000 + 600) / 10_000))
    assert row.held_nbytes == slots * 3 * 100


def test_pinned_experts_are_the_most_used():
    """All slots hold the heaviest; with all experts held nothing is missed."""
    rows = what_if(made([[0, 1], [0, 2], [0, 3], [0, 1]]), Traffic(1, 1), [1], 1)
    assert rows[0].pinned_hit_rate == 6 / 8
    assert rows[-1].pinned_hit_rate == 1


def test_the_file_is_numpys(tmp_path):
    """Types and shapes as promised; the same routing is the same bytes."""
    trace = randomly()
    found = np.load(io.BytesIO(to_npz(trace)))
    assert {name: found[name].dtype.str for name in found} == {
        "experts": "|i1", "weights": "<f2", "margins": "<f2", "tokens": "<i4", "window": "<i4",
    }  # fmt: skip
    assert np.array_equal(found["experts"], trace.routed.experts_TLA.numpy())
    assert found["weights"].shape == (300, 3, 2)
    assert found["tokens"].tolist() == list(trace.tokens)
    assert to_npz(trace) == to_npz(trace)
    many = made([[200, 1]], n_experts=256)
    assert np.load(io.BytesIO(to_npz(many)))["experts"].dtype == np.int16


def test_changes_are_counted_where_they_begin():
    """Token 0 changes in layer 0 and then again; token 1 only swaps, which is the same set."""
    a = made([[[0, 1], [0, 1]], [[2, 3], [2, 3]]], margins=[[0.5, 2.0], [1.0, 1.0]])
    b = made([[[0, 2], [0, 3]], [[3, 2], [2, 3]]])
    found = compare_routing("b", a, b, str)
    first, second = found.layers
    assert (first.same_set, first.same_best, first.first, first.kept) == (0.5, 0.5, 0.5, 0.75)
    assert (second.same_set, second.first) == (0.5, 0)
    assert first.flip_margin == 0.5
    assert first.weight == pytest.approx((0.25 + 0.5) / 2)
    assert found.untouched == 0.5
    assert [(f.layer, f.position, f.margin) for f in found.flips] == [(1, 0, 2.0), (0, 0, 0.5)]


def test_other_shapes_are_not_compared():
    """A pruned model numbers its experts otherwise."""
    with pytest.raises(Refused, match="1 layers of 3 experts"):
        compare_routing("b", made([[0, 1]]), made([[0, 1]], n_experts=3), str)
