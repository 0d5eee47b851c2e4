"""What is foreseen of a cache is what the offloaded engine's own slots do with the same text."""

import pytest
import torch

from moetool.experts.trace import trace
from moetool.experts.what_if import Traffic, traffic_of, what_if
from moetool.model.fast.copies import AtOnce
from moetool.model.fast.feed import Feed
from moetool.model.fast.slots import PASSING, Slots


def played(choices, n_layers, n_slots):
    """Hits of the engine's slots, token by token; what is held is used first, as it does."""
    feed = Feed(AtOnce(), torch.float32, 4)
    slab = torch.zeros(PASSING + n_layers * n_slots, 1)
    slots = Slots(slab, n_layers, lambda key: [torch.tensor([float(key[1])])], feed, AtOnce())
    hits = 0
    for token in choices:
        for layer, experts in enumerate(token):
            held = [expert for expert in experts if slots.holds((layer, expert))]
            hits += len(held)
            for expert in (*held, *(e for e in experts if e not in held)):
                if expert not in held:
                    slots.fetch((layer, expert), keep=True)
                with slots.use((layer, expert)) as row:
                    assert row.item() == expert
    feed.close()
    return hits


@pytest.mark.parametrize("n_slots", [3, 5, 7])
def test_the_engines_slots_agree(model, tokens, n_slots):
    """Which of a token's two experts counts as used later is theirs to choose: a percent or so."""
    found = trace(model, tokens, len(tokens))
    rows = what_if(found, Traffic(1, 1), [1], 1)
    n_layers = model.args.n_layers
    hits = played(found.routed.experts_TLA.tolist(), n_layers, n_slots)
    rate = hits / (len(tokens) * n_layers * 2)
    assert rows[n_slots - 2].hit_rate == pytest.approx(rate, abs=0.02)
    assert 0.4 < rate < 1


def test_the_bytes_of_a_token(opened):
    """An expert is its three matrices as stored; embeddings are looked up, not read."""
    model, checkpoint, recognized, _ = opened
    args, traffic = recognized.args, traffic_of(model.weights, recognized.args)
    assert traffic.expert_nbytes == 2 * args.n_params_expert_layer
    embeddings = 2 * args.vocab_size * args.dim
    experts = args.n_layers * args.n_experts * traffic.expert_nbytes
    assert traffic.shared_nbytes == checkpoint.catalog.nbytes - embeddings - experts
