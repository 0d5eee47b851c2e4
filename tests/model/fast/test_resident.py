"""A prompt over stacked weights: the reference's numbers, whichever way the products go."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from moetool.model.fast import grouped
from moetool.model.fast.agreement import agreement
from moetool.model.fast.grouped import grouped_product, sort_by_expert
from moetool.model.fast.stacked import stack
from moetool.model.mixtral import Probe, Transformer


def test_the_reference_runs_on_the_stacks_to_the_last_bit(pair, some_tokens, odd_args):
    """Each raw name is the view that it should be."""
    reference, fast = pair()
    tokens = some_tokens(30)
    over_stacks = Transformer(odd_args, fast.stacked)
    logits = [m.forward(tokens, m.new_cache(30)) for m in (reference, over_stacks)]
    assert torch.equal(*logits)


def test_the_stacks_hold_each_weight_once(pair, odd_args):
    reference, fast = pair()
    assert fast.stacked.nbytes == reference.weights.nbytes
    names = set(reference.weights.steps)
    assert set(fast.stacked._parts) == names
    for name in names:
        assert torch.equal(fast.stacked[name], reference.weights[name]), name


def test_an_error_while_stacking_comes_through(pair, odd_args):
    reference, _ = pair()

    def read(name):
        if "experts.4.w2" in name:
            raise OSError("unreadable")
        return reference.weights[name]

    with pytest.raises(OSError, match="unreadable"):
        stack(odd_args, read, n_threads=3)


@pytest.mark.parametrize("changed", [
    {}, {"n_experts_per_tok": 1}, {"n_experts_per_tok": 5}, {"sliding_window": 7},
    {"n_kv_heads": 1},
])  # fmt: skip
def test_a_prompt_gives_the_logits_of_the_reference(pair, some_tokens, off, changed):
    reference, fast = pair(**changed)
    tokens = some_tokens(64)
    right = reference.forward(tokens, reference.new_cache(64))
    assert off(fast.forward(tokens, fast.new_cache(64)), right) < 1e-4


def test_sequences_and_pieces_go_together(pair, some_tokens, off):
    reference, fast = pair()
    a, b = some_tokens(40), some_tokens(9, seed=3)
    found = fast.hidden_of(
        [a[:25], a[25:], b], [cache := fast.new_cache(64), cache, fast.new_cache(9)]
    )
    right = reference.hidden_of([a, b], [reference.new_cache(40), reference.new_cache(9)])
    assert off(torch.cat(found), torch.cat(right)) < 1e-4


def test_bf16_agrees_by_the_teacher_forced_rule(pair, some_tokens):
    reference, fast = pair(dtype=torch.bfloat16, dim=128, hidden_dim=224)
    tokens = some_tokens(200)
    right = reference.forward(tokens, reference.new_cache(200))
    found = agreement(right, fast.forward(tokens, fast.new_cache(200)), tokens)
    assert found.holds, found


@pytest.mark.parametrize("rows", [1, 7, 50])
def test_many_rows_go_in_parts(pair, some_tokens, off, monkeypatch, rows):
    """What bounds the memory may cut through an expert's rows."""
    _, fast = pair()
    tokens = some_tokens(40)
    right = fast.forward(tokens, fast.new_cache(40))
    monkeypatch.setattr(grouped, "ROWS", rows)
    plain = grouped.grouped_product

    def checked(x_SI, w_EOI, ends_E):
        """A kernel is given ends that lie within its rows."""
        assert ends_E[-1] == len(x_SI)
        assert ends_E.min() >= 0
        return plain(x_SI, w_EOI, ends_E)

    monkeypatch.setattr(grouped, "grouped_product", checked)
    assert off(fast.forward(tokens, fast.new_cache(40)), right) < 1e-5


def test_a_prompt_asks_the_host_for_nothing(valueless, monkeypatch):
    monkeypatch.setattr(grouped, "can_group", lambda *_: True)
    fast = valueless(dim=64, hidden_dim=64, dtype=torch.bfloat16)
    tokens = torch.zeros(40, dtype=torch.int64, device="meta")
    assert fast.forward(tokens, fast.new_cache(40)).shape == (40, 72)


def test_without_a_grouped_kernel_the_host_loops(pair, some_tokens, off, monkeypatch):
    """torch before 2.10, f32 on a GPU."""
    _, fast = pair()
    tokens = some_tokens(40)
    right = fast.forward(tokens, fast.new_cache(40))
    monkeypatch.delattr(F, "grouped_mm")
    assert off(fast.forward(tokens, fast.new_cache(40)), right) < 1e-5


def test_an_expert_without_rows_has_none(monkeypatch):
    x, w = torch.randn(6, 8), torch.randn(4, 12, 8)
    ends = torch.tensor([0, 2, 2, 6], dtype=torch.int32)
    right = torch.cat([x[:2] @ w[1].T, x[2:] @ w[3].T])
    assert (grouped_product(x, w, ends) - right).abs().max() < 1e-5
    monkeypatch.setattr(grouped, "can_group", lambda *_: False)
    assert (grouped_product(x, w, ends) - right).abs().max() < 1e-5


def test_pairs_are_sorted_by_expert_and_then_by_token():
    experts_TA = torch.tensor([[2, 0], [0, 3], [3, 2]])
    pairs = sort_by_expert(experts_TA, 5)
    assert pairs.token_S.tolist() == [0, 1, 0, 2, 1, 2]
    assert pairs.ends_E.tolist() == [2, 2, 4, 6, 6]
    assert pairs.token_S[pairs.place_TA].tolist() == [[0, 0], [1, 1], [2, 2]]
    expert_S = torch.tensor([0, 0, 2, 2, 3, 3])
    assert torch.equal(expert_S[pairs.place_TA], experts_TA)


def test_the_probe_sees_what_it_sees_of_the_reference(pair, some_tokens):
    class Seen(Probe):
        def __init__(self):
            self.seen = []

        def hidden(self, layer, part, h):
            self.seen.append((layer, part, h))

        def routed(self, layer, routing):
            self.seen.append((layer, "router", routing.experts_TA))

        def expert(self, layer, expert, y):
            self.seen.append((layer, expert, y))

    reference, fast = pair()
    probes = [Seen(), Seen()]
    for model, probe in zip((reference, fast), probes, strict=True):
        model.forward(some_tokens(9), model.new_cache(9), probe)
    right, found = (probe.seen for probe in probes)
    assert [each[:2] for each in found] == [each[:2] for each in right]
    for (*_, ours), (*_, theirs) in zip(found, right, strict=True):
        assert (ours - theirs).abs().max() < 1e-4
