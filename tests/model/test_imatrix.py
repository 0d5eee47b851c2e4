"""Sums of squares are those of a plain recomputation, expert by expert, chunk by chunk."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from moetool.arch.mistral import DENSE
from moetool.arch.mixtral import MIXTRAL
from moetool.arch.recognize import Recognized
from moetool.arch.schema import expand
from moetool.convert.stream import to_bytes, to_torch
from moetool.errors import CheckFailed, UsageFault
from moetool.model.imatrix import Collector, cut_in_chunks, gather
from moetool.model.load import open_weights
from moetool.model.mixtral import Transformer

BOS, SIZE = 1, 16


def gathered(model, tokens, names=MIXTRAL, **options):
    collector = Collector(names.convention("gguf"), model.args.n_experts)
    gather(model, cut_in_chunks(tokens, SIZE, BOS), collector, **options)
    return collector


def plain(model, tokens):  # noqa: C901  # a model in one breath
    """Every token for itself, in float64, by the formulas of the paper; complex rotation.

    Give what each matrix is multiplied with: GGUF name -> expert -> rows.
    """
    args, rows = model.args, {}
    held = {}

    def w(name):
        if name not in held:
            held[name] = model.weights[name].double()
        return held[name]

    def times(x, name, gguf, expert=0):
        rows.setdefault(gguf, {}).setdefault(expert, []).append(x)
        return w(name) @ x

    def norm(x, name):
        return x / (x.square().mean() + args.norm_eps).sqrt() * w(name)

    def turned(x, position):
        pairs = torch.view_as_complex(x.view(-1, args.head_dim // 2, 2).contiguous())
        place = torch.arange(0, args.head_dim, 2, dtype=torch.float64) / args.head_dim
        angle = position * args.rope_theta**-place
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(1)

    def layer_of(h, layer, position, past):
        raw, blk = f"layers.{layer}", f"blk.{layer}"
        x = norm(h, f"{raw}.attention_norm.weight")
        q, k, v = (
            times(x, f"{raw}.attention.w{c}.weight", f"{blk}.attn_{c}.weight") for c in "qkv"
        )
        past.append((turned(k, position), v.view(-1, args.head_dim)))
        heads = []
        for n, query in enumerate(turned(q, position)):
            group = n // (args.n_heads // args.n_kv_heads)
            scores = [float(query @ key[group]) / math.sqrt(args.head_dim) for key, _ in past]
            weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
            heads.append(sum(a * value[group] for a, (_, value) in zip(weights, past, strict=True)))
        h = h + times(torch.cat(heads), f"{raw}.attention.wo.weight", f"{blk}.attn_output.weight")
        x = norm(h, f"{raw}.ffn_norm.weight")
        if not args.n_experts:
            return h + swiglu(x, f"{raw}.feed_forward", blk, "", 0)
        logits = times(x, f"{raw}.feed_forward.gate.weight", f"{blk}.ffn_gate_inp.weight")
        best = sorted(range(args.n_experts), key=lambda e: -float(logits[e]))
        best = best[: args.n_experts_per_tok]
        for share, e in zip(logits[best].softmax(0), best, strict=True):
            h = h + share * swiglu(x, f"{raw}.feed_forward.experts.{e}", blk, "_exps", e)
        return h

    def swiglu(x, raw, blk, kind, expert):
        a = times(x, f"{raw}.w1.weight", f"{blk}.ffn_gate{kind}.weight", expert)
        b = times(x, f"{raw}.w3.weight", f"{blk}.ffn_up{kind}.weight", expert)
        return times(
            a / (1 + (-a).exp()) * b, f"{raw}.w2.weight", f"{blk}.ffn_down{kind}.weight", expert
        )

    for start in range(0, len(tokens) - SIZE + 1, SIZE):
        pasts = [[] for _ in range(args.n_layers)]
        for position, token in enumerate([BOS, *tokens[start + 1 : start + SIZE]]):
            h = w("tok_embeddings.weight")[token]
            for layer, past in enumerate(pasts):
                h = layer_of(h, layer, position, past)
            rows.setdefault("output.weight", {}).setdefault(0, []).append(norm(h, "norm.weight"))
    return rows


def same(entries, rows, n_experts):
    """Each expert's sums and counts, and nothing else."""
    assert set(entries) == set(rows)
    for name, by_expert in rows.items():
        n_matrices = n_experts if "exps" in name else 1
        found = torch.tensor(entries[name].sums).view(n_matrices, -1)
        assert entries[name].counts == tuple(len(by_expert.get(e, ())) for e in range(n_matrices))
        for expert, some in by_expert.items():
            expected = torch.stack(some).square().sum(0).float()
            assert torch.allclose(found[expert], expected, rtol=1e-4, atol=1e-7), (name, expert)


def test_sums_are_those_of_a_plain_recomputation(load_model, some_tokens, odd_args):
    """Two whole chunks of a text of 39 tokens, every matrix, output too."""
    model, tokens = load_model(), some_tokens(39).tolist()
    entries = gathered(model, tokens, with_output=True).entries()
    same(entries, plain(model, tokens), odd_args.n_experts)
    assert {len(entry.counts) for name, entry in entries.items() if "exps" in name} == {5}


def test_a_dense_model_has_one_swiglu(in_layout, odd_args, random_checkpoint, some_tokens):
    args = replace(odd_args, n_experts=0, n_experts_per_tok=0, n_layers=2)
    convention = DENSE.convention("mistral")
    recognized = Recognized(DENSE, convention, args, expand(convention, args))
    weights = open_weights(random_checkpoint(args), recognized, torch.device("cpu"), torch.float32)
    model, tokens = Transformer(args, weights), some_tokens(SIZE).tolist()
    same(gathered(model, tokens, DENSE, with_output=True).entries(), plain(model, tokens), 0)


def test_output_has_an_entry_only_where_asked_for(load_model, some_tokens):
    entries = gathered(load_model(), some_tokens(SIZE).tolist()).entries()
    assert "output.weight" not in entries
    assert len(entries) == 3 * 8


def test_chunks_begin_with_the_mark_and_are_whole():
    chunks = cut_in_chunks(list(range(10, 21)), 4, BOS)
    assert [chunk.tolist() for chunk in chunks] == [[1, 11, 12, 13], [1, 15, 16, 17]]
    assert cut_in_chunks(list(range(10, 14)), 4, -1)[0].tolist() == [10, 11, 12, 13]
    with pytest.raises(UsageFault, match="no chunk of 4"):
        cut_in_chunks([1, 2, 3], 4, BOS)


def test_how_chunks_are_grouped_changes_nothing(load_model, some_tokens, monkeypatch):
    """Several in a pass over the weights, or one by one: only the order of a sum is another."""
    model, tokens = load_model(), some_tokens(4 * SIZE).tolist()
    together = gathered(model, tokens).entries()
    monkeypatch.setattr("moetool.model.imatrix.TOGETHER", SIZE)
    monkeypatch.setattr("moetool.model.mixtral.CHUNK", 5)
    alone = gathered(model, tokens).entries()
    for name, entry in together.items():
        assert entry.counts == alone[name].counts
        assert list(entry.sums) == pytest.approx(list(alone[name].sums), rel=1e-4)


@pytest.fixture
def changed(in_layout, recognized, odd_args):
    """A random model of which one tensor is another."""

    def make(name, change):
        checkpoint, _ = in_layout("mistral", odd_args)
        info = checkpoint.catalog.tensors[name]
        tensor = change(to_torch(checkpoint.data[name], info.dtype, info.shape).clone())
        checkpoint.data[name] = bytes(to_bytes(tensor))
        cpu = torch.device("cpu")
        return Transformer(odd_args, open_weights(checkpoint, recognized(), cpu, torch.float32))

    return make


def test_an_expert_that_is_never_activated(changed, some_tokens):
    """Of logits a, 0, a, 0 two are larger than a / 2, whatever a is."""

    def change(gate_ED):
        gate_ED[2], gate_ED[4] = gate_ED[0], gate_ED[0] / 2
        gate_ED[1] = gate_ED[3] = 0
        return gate_ED

    model = changed("layers.1.feed_forward.gate.weight", change)
    collector = gathered(model, some_tokens(4 * SIZE).tolist())
    assert collector.never_activated() == [(1, 4)]
    for kind in ("gate", "up", "down"):
        entry = collector.entries()[f"blk.1.ffn_{kind}_exps.weight"]
        columns = len(entry.sums) // 5
        assert entry.counts[4] == 0
        assert not any(entry.sums[4 * columns :])
        assert all(entry.counts[:4])


@pytest.mark.parametrize("value", [math.nan, 1e30])
def test_activations_that_have_no_finite_squares(changed, some_tokens, value):
    """Said with the matrix: what w2 takes comes from a w3 with one bad row."""

    def change(w3_FD):
        w3_FD[7] = value
        return w3_FD

    model = changed("layers.2.feed_forward.experts.1.w3.weight", change)
    with pytest.raises(CheckFailed) as failed:
        gathered(model, some_tokens(4 * SIZE).tolist())
    assert failed.value.findings[0] == "blk.2.ffn_down_exps.weight: 1 of 280 columns"


def test_a_chunk_beyond_the_context_is_refused(load_model, some_tokens, odd_args):
    model = load_model(args=replace(odd_args, max_seq_len=SIZE - 1))
    with pytest.raises(UsageFault):
        gathered(model, some_tokens(SIZE).tolist())


def test_weights_of_a_release_need_no_detour(sound, some_tokens):
    """bf16 as stored: the trained release has an entry for every matrix of its GGUF."""
    checkpoint, recognized = sound
    weights = open_weights(checkpoint, recognized, torch.device("cpu"), None)
    collector = gathered(Transformer(recognized.args, weights), some_tokens(SIZE).tolist())
    layout = expand(MIXTRAL.convention("gguf"), recognized.args)
    matrices = {n for n, t in layout.items() if len(t.shape) > 1 and n.startswith("blk.")}
    assert set(collector.entries()) == matrices
