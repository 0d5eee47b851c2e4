"""The Transformer against the formulas it stands for, and against itself in every layout."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from moetool.errors import UsageFault
from moetool.model import mixtral
from moetool.model.mixtral import Transformer, attend, rms_norm, rope_table, rotate, route

LAYOUTS = ["mistral", "mistral-packed", "hf", "hf-fused", "gguf", "gguf-split"]


def naive_attention(q_TNH, k_KCH, v_KCH, window=None):
    """Softmax attention in float64, query by query and head by head."""
    T, N, H = q_TNH.shape
    K, C, _ = k_KCH.shape
    out = torch.empty(T, N, H, dtype=torch.float64)
    for t in range(T):
        at = C - T + t
        first = 0 if window is None else max(0, at - window + 1)
        for n in range(N):
            keys, values = (x[n // (N // K), first : at + 1].double() for x in (k_KCH, v_KCH))
            out[t, n] = (keys @ q_TNH[t, n].double() / H**0.5).softmax(0) @ values
    return out


def qkv(T, C, dtype=torch.float32, N=6, K=2, H=16):
    random = torch.Generator().manual_seed(T * 1000 + C)
    shapes = ((T, N, H), (K, C, H), (K, C, H))
    return [torch.randn(shape, generator=random).to(dtype) for shape in shapes]


@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize(("T", "C"), [(1, 1), (1, 40), (7, 7), (40, 40), (9, 40)])
def test_attention_is_the_formula_for_prompt_chunk_and_single_token(T, C, window):
    q, k, v = qkv(T, C)
    expected = naive_attention(q, k, v, window)
    assert (attend(q, k, v, window).double() - expected).abs().max() < 2e-6


@pytest.mark.parametrize("T", [1, 2048])
def test_bf16_attention_accumulates_in_float32(T):
    """Over 2048 positions the error stays that of rounding weights and output once."""
    q, k, v = qkv(T, 2048, torch.bfloat16)
    expected = naive_attention(q[-1:], k, v)
    error = (attend(q, k, v, None)[-1:].double() - expected).abs().max()
    assert error < 2**-8 * expected.abs().max()


def test_rms_norm_rounds_before_the_weight():
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = torch.rand(40, generator=torch.Generator().manual_seed(1)).bfloat16()
    x64 = x.double()
    scaled = (x64 / (x64.square().mean(-1, keepdim=True) + 1e-5).sqrt()).bfloat16()
    assert torch.equal(rms_norm(x, weight, 1e-5), scaled * weight)


def test_rms_norm_keeps_a_finer_weight():
    """A GGUF holds norms in f32: the same bf16 values there give the same bits."""
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = torch.rand(40, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(rms_norm(x, weight, 1e-5), rms_norm(x, weight.float(), 1e-5))


def test_rotation_depends_on_distance_only():
    cos, sin = rope_table(16, 1e6, 300)
    q, k, _ = qkv(1, 1)
    products = [
        (
            rotate(q[:, :2], cos[a : a + 1], sin[a : a + 1])
            * rotate(k.transpose(0, 1), cos[b : b + 1], sin[b : b + 1])
        ).sum()
        for a, b in ((7, 3), (104, 100), (293, 289))
    ]
    assert max(products) - min(products) < 1e-4


def test_rotation_turns_neighbouring_pairs_by_the_published_angles():
    cos, sin = rope_table(16, 1e6, 32)
    x = torch.randn(32, 2, 16, generator=torch.Generator().manual_seed(0))
    position = torch.arange(32, dtype=torch.float64)
    rate = 1e6 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    turn = torch.polar(torch.ones(32, 8, dtype=torch.float64), torch.outer(position, rate))
    pairs = torch.view_as_complex(x.double().view(32, 2, 8, 2))
    expected = torch.view_as_real(pairs * turn[:, None]).flatten(-2)
    assert (rotate(x, cos, sin).double() - expected).abs().max() < 1e-6


def test_rope_table_is_right_at_the_end_of_a_long_context():
    """Angles in float32 would be off by 1e-3 rad at 32 k."""
    cos, _ = rope_table(128, 1e6, 32768)
    position = torch.tensor(32767, dtype=torch.float64)
    assert abs(float(cos[-1, 0]) - float(position.cos())) < 1e-7


def test_equal_router_logits_go_to_the_lower_expert():
    x = torch.ones(3, 4)
    gate = torch.tensor([1.0, 2.0, 2.0, 1.0, 2.0])[:, None].expand(5, 4)
    routing = route(x, gate, 2)
    assert routing.experts_TA.tolist() == [[1, 2]] * 3
    assert torch.equal(routing.weights_TA, torch.full((3, 2), 0.5))


@pytest.mark.parametrize("n_chosen", [1, 2, 3])
def test_router_weights_are_the_renormalised_softmax_over_all(n_chosen):
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    gate = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    routing = route(x, gate, n_chosen)
    best = (x.double() @ gate.double().T).softmax(-1).topk(n_chosen)
    assert torch.equal(routing.experts_TA, best.indices)
    expected = best.values / best.values.sum(-1, keepdim=True)
    assert (routing.weights_TA.double() - expected).abs().max() < 1e-5


def test_router_is_float32_whatever_the_weights_are():
    x = torch.randn(4, 32).bfloat16()
    assert route(x, torch.randn(8, 32).bfloat16(), 2).logits_TE.dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_layout_gives_the_same_bits(load_model, some_tokens, layout, dtype):
    logits = []
    for name in ("mistral", layout):
        model = load_model(name, dtype=dtype)
        cache = model.new_cache(48)
        first = model.forward(some_tokens(40), cache)
        logits.append(torch.cat([first, model.forward(some_tokens(1), cache)]))
    assert torch.equal(*logits)


@pytest.mark.parametrize("splits", [[40], [1] * 40, [13, 27], [20, 1, 1, 18]])
def test_a_prompt_may_come_in_pieces(load_model, some_tokens, splits):
    model, tokens = load_model(), some_tokens(40)
    whole = model.forward(tokens, model.new_cache(40))
    cache = model.new_cache(64)
    parts = [model.forward(piece, cache) for piece in tokens.split(splits)]
    assert (torch.cat(parts) - whole).abs().max() < 1e-4 * whole.std()


def test_sequences_advance_together_as_they_would_alone(load_model, some_tokens):
    """Pieces of two sequences, one of them in several pieces, in one pass over the weights."""
    model, tokens, others = load_model(), some_tokens(40), some_tokens(33, seed=3)
    cache, other = model.new_cache(48), model.new_cache(48)
    *pieces, last = tokens.split([20, 1, 1, 17, 1])
    states = model.hidden_of([*pieces, others], [cache] * len(pieces) + [other])
    *_, whole, beside = [*states, *model.hidden_of([last, others[:1]], [cache, other])]
    assert (cache.length, other.length) == (40, 34)
    alone = [model.new_cache(48), model.new_cache(48)]
    expected = [model.hidden(tokens, alone[0]), model.hidden(others, alone[1])]
    for found, right in zip([torch.cat([*states[:4], whole]), states[4]], expected, strict=True):
        assert (found - right).abs().max() < 1e-5 * right.std()
    assert (model.hidden(others[:1], alone[1]) - beside).abs().max() < 1e-5 * beside.std()
    assert (cache.keys_LKCH - alone[0].keys_LKCH).abs().max() < 1e-5


@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_long_prompts_go_in_chunks(load_model, some_tokens, monkeypatch, chunk):
    """What bounds the memory changes the order of some sums and nothing else."""
    model, tokens, others = load_model(), some_tokens(40), some_tokens(9, seed=3)
    expected = model.hidden_of([tokens, others], [model.new_cache(40), model.new_cache(40)])
    monkeypatch.setattr(mixtral, "CHUNK", chunk)
    found = model.hidden_of([tokens, others], [model.new_cache(40), model.new_cache(40)])
    for ours, right in zip(found, expected, strict=True):
        assert (ours - right).abs().max() < 1e-5 * right.std()


def test_a_rewound_cache_forgets(load_model, some_tokens):
    model, tokens = load_model(), some_tokens(20)
    cache = model.new_cache(64)
    first = model.forward(tokens, cache)
    model.forward(some_tokens(9, seed=5), cache)
    cache.rewind(0)
    assert torch.equal(model.forward(tokens, cache), first)


def test_each_weight_is_asked_for_once_in_a_call(load_model, some_tokens, odd_args):
    model = load_model()

    class Counting:
        device, dtype, asked = model.weights.device, model.weights.dtype, Counter()

        def __getitem__(self, name):
            self.asked[name] += 1
            return model.weights[name]

        matrix = __getitem__

        def expect(self, names):
            pass

        def rows(self, name, index):
            return model.weights.rows(name, index)

    weights = Counting()
    Transformer(odd_args, weights).forward(some_tokens(64), model.new_cache(64))
    assert set(weights.asked.values()) == {1}
    assert sum("experts" in name for name in weights.asked) == 3 * 5 * 3  # all experts were hit


def test_the_probe_sees_every_half_of_every_layer(load_model, some_tokens):
    seen = []

    class Probe(mixtral.Probe):
        def hidden(self, layer, part, h):
            seen.append((layer, part, tuple(h.shape)))

        def routed(self, layer, routing):
            seen.append((layer, "router", tuple(routing.experts_TA.shape)))
            chosen.append(routing.experts_TA.flatten().bincount(minlength=5).tolist())

        def expert(self, layer, expert, y):
            outputs.append((layer, expert, tuple(y.shape)))

    chosen, outputs = [], []
    model = load_model()
    model.forward(some_tokens(7), model.new_cache(7), Probe())
    assert outputs == [
        (layer, expert, (n, 40))
        for layer in range(3)
        for expert, n in enumerate(chosen[layer])
        if n
    ]
    expected = [("attention", (7, 40)), ("router", (7, 2)), ("experts", (7, 40))]
    assert seen == [(layer, *each) for layer in range(3) for each in expected]


def test_a_sliding_window_forgets_what_lies_behind_it(load_model, some_tokens, odd_args):
    """One layer with a window of 4: a token five positions back changes nothing."""
    args = replace(odd_args, n_layers=1, sliding_window=4)
    model = load_model(args=args)
    tokens, changed = some_tokens(12), some_tokens(12)
    changed[3] = (changed[3] + 1) % args.vocab_size
    logits = [model.forward(each, model.new_cache(12)) for each in (tokens, changed)]
    assert torch.allclose(logits[0][7:], logits[1][7:], atol=1e-5)
    assert not torch.allclose(logits[0][6], logits[1][6], atol=1e-5)


def test_a_full_cache_and_a_context_too_long_are_refused(load_model, some_tokens):
    model = load_model()
    with pytest.raises(UsageFault, match="8 positions, 5 taken, 4 to come"):
        cache = model.new_cache(8)
        model.forward(some_tokens(5), cache)
        model.forward(some_tokens(4), cache)
    with pytest.raises(UsageFault, match="257 tokens are more than the model's context of 256"):
        model.new_cache(257)
