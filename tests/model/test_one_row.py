"""A row through all layers at once: the plain Transformer's numbers, and when it is left to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from moetool.arch.args import ModelArgs
from moetool.arch.mistral import DENSE as MISTRAL_7B
from moetool.arch.mixtral import MIXTRAL
from moetool.arch.recognize import recognize
from moetool.arch.schema import expand
from moetool.formats import open_checkpoint
from moetool.model import kernels
from moetool.model.kernels import Choice
from moetool.model.load import open_weights
from moetool.model.mixtral import Probe, Transformer
from moetool.model.one_row import OneRow
from moetool.model.packed import Packed
from moetool.quant import encode
from moetool.tensors import DType

pytest.importorskip("numba", reason="the numba extra is not installed")
CPU = torch.device("cpu")
SPARSE = ModelArgs(
    dim=64, n_layers=3, head_dim=32, hidden_dim=96, n_heads=6, n_kv_heads=2, norm_eps=1e-5,
    vocab_size=72, n_experts=5, n_experts_per_tok=2, max_seq_len=256,
)  # fmt: skip
DENSE = replace(SPARSE, n_experts=0, n_experts_per_tok=0, sliding_window=5)


@pytest.fixture(autouse=True)
def _all_products_are_compiled(monkeypatch):
    monkeypatch.setattr(kernels, "LARGE_NUMEL", 0)
    monkeypatch.setattr(kernels, "chosen_for", lambda _dtype: Choice(compiled_to=8, packed_to=8))


class Held:
    """Weights in memory; ``change`` is given each by name before it is taken."""

    device = CPU

    def __init__(self, args, dtype=torch.bfloat16, change=None):
        self.dtype, self.complete, self._tensors = dtype, True, {}
        random = torch.Generator().manual_seed(3)
        family = MIXTRAL if args.n_experts else MISTRAL_7B
        for name, stored in expand(family.raw, args).items():
            drawn = torch.randn(stored.shape, generator=random).bfloat16()
            scaled = drawn if "norm" in name else (drawn * stored.shape[-1] ** -0.5).bfloat16()
            held = change(name, scaled) if change else scaled
            self._tensors[name] = held.to(dtype) if isinstance(held, torch.Tensor) else held

    def matrix(self, name):
        return self._tensors[name]

    def __getitem__(self, name):
        return self._tensors[name]

    def rows(self, name, index_T):
        return self._tensors[name][index_T]

    def expect(self, names):
        pass


def packed(name, tensor):
    """Its q8_0 blocks, where it is a matrix that is stored in blocks."""
    if "norm" in name or "gate" in name or "tok_embeddings" in name:
        return tensor
    return Packed(encode(tensor.float(), DType.Q8_0).view(len(tensor), -1))


def rounded(name, tensor):
    """The weights that those blocks stand for."""
    blocks = packed(name, tensor)
    return blocks.widen() if isinstance(blocks, Packed) else blocks


def decode(model, prompt, tokens):
    cache = model.new_cache(len(prompt) + len(tokens))
    model.hidden(prompt, cache)
    logits = torch.cat([model.forward(token[None], cache) for token in tokens])
    return logits, cache


def distance(a, b):
    """Of most rows: rounding sends one now and then to another expert, and that one is far off."""
    return float((a - b).float().square().mean(-1).sqrt().median() / b.float().std())


@pytest.mark.parametrize("change", [None, packed])
@pytest.mark.parametrize("args", [SPARSE, DENSE])
def test_it_computes_what_the_plain_one_does(some_tokens, args, change):
    """As near to float32 as that; keys and values of a position are remembered alike."""
    prompt, tokens = some_tokens(9, args), some_tokens(12, args, 2)
    weights = Held(args, change=change)
    found, cache = decode(OneRow(args, weights, 0), prompt, tokens)
    plain, other = decode(Transformer(args, weights), prompt, tokens)
    exact = Held(args, torch.float32, change and rounded)
    truth, _ = decode(Transformer(args, exact), prompt, tokens)
    noise = distance(plain, truth)
    assert 0 < noise < 0.05
    assert distance(found, truth) < 1.5 * noise
    for mine, theirs in (
        (cache.keys_LKCH, other.keys_LKCH),
        (cache.values_LKCH, other.values_LKCH),
    ):
        assert distance(mine, theirs) < noise
        assert torch.equal(mine[0, :, :9], theirs[0, :, :9])


def test_the_release_row_by_row_has_the_logits_of_transformers(tiny_release):
    """Teacher-forced: the best token is theirs, or theirs is behind by less than bf16 moves it."""
    golden = np.load(tiny_release.parent / "golden.npz")
    with open_checkpoint(tiny_release) as checkpoint:
        known = recognize(checkpoint.catalog, checkpoint.directory)
        weights = open_weights(checkpoint, known, CPU)
        for name in weights.steps:
            weights.matrix(name)
        model = OneRow(known.args, weights, 0)
        taken = spied(model)
        for ids, logits in zip(golden["ids"], golden["logits"], strict=True):
            tokens, expected = torch.from_numpy(ids).long(), torch.from_numpy(logits)
            found, _ = decode(model, tokens[:1], tokens[1:])
            noise = (found - expected[1:]).abs().max()
            assert noise < 0.05 * expected.std()
            best = expected[1:].gather(1, found.argmax(-1, keepdim=True))[:, 0]
            assert (expected[1:].amax(-1) - best <= 2 * noise).all()
        weights.close()
    assert len(taken) >= sum(len(ids) - 1 for ids in golden["ids"])


@pytest.mark.parametrize(
    ("wrong", "like"),
    [
        ("experts.3.w1", "experts.3.w3"),
        ("attention.wq", "attention.wo"),
        ("experts.0.w2", "experts.1.w2"),
    ],
)
def test_a_wrong_matrix_shows(some_tokens, monkeypatch, wrong, like):
    """The comparison above can fail: the row takes one matrix for another."""
    prompt, tokens = some_tokens(9, SPARSE), some_tokens(12, SPARSE, 2)
    weights = Held(SPARSE)
    plain, _ = decode(Transformer(SPARSE, weights), prompt, tokens)
    model = OneRow(SPARSE, weights, 0)
    usual = weights.matrix
    monkeypatch.setattr(weights, "matrix", lambda name: usual(name.replace(wrong, like)))
    assert model._begin() is False
    monkeypatch.undo()
    monkeypatch.setattr(kernels, "LARGE_NUMEL", 0)
    monkeypatch.setattr(kernels, "chosen_for", lambda _dtype: Choice(compiled_to=8))
    found, _ = decode(model, prompt, tokens)
    assert distance(found, plain) > 0.05


def test_of_equal_logits_the_lower_expert_wins(some_tokens):
    """All experts' logits are the same: the plain one and this take the first two."""
    weights = Held(SPARSE, change=lambda name, w: torch.ones_like(w) if "gate" in name else w)
    model, tokens = OneRow(SPARSE, weights, 0), some_tokens(6, SPARSE)
    found, _ = decode(model, tokens[:3], tokens[3:])
    plain, _ = decode(Transformer(SPARSE, weights), tokens[:3], tokens[3:])
    assert distance(found, plain) < 0.05


def test_what_is_not_finite_comes_out(some_tokens):
    def spoil(name, w):
        if name == "layers.1.attention.wv.weight":
            w[3, 5] = torch.nan
        return w

    tokens = some_tokens(6, SPARSE)
    found, _ = decode(OneRow(SPARSE, Held(SPARSE, change=spoil), 0), tokens[:3], tokens[3:])
    assert found.isnan().any()


def spied(model):
    """Count the rows that go through all layers at once."""
    taken = []
    begin = model._begin

    def begin_and_spy():
        again = begin()
        if model._row:
            usual = model._row.through
            model._row.through = lambda h, place: taken.append(place.start) or usual(h, place)
        return again

    model._begin = begin_and_spy
    return taken


def test_only_a_lone_row_that_nobody_looks_at_is_taken(some_tokens):
    model, tokens = OneRow(SPARSE, Held(SPARSE), 0), some_tokens(8, SPARSE)
    taken, cache = spied(model), model.new_cache(16)
    model.hidden(tokens[:3], cache)
    model.hidden(tokens[3:5], cache)

    class Look(Probe):
        pass

    model.hidden(tokens[5:6], cache, Look())
    assert taken == []
    model.hidden(tokens[6:7], cache)
    model.hidden_of([tokens[7:]], [cache])
    assert taken == [6, 7]


def test_it_waits_until_all_weights_were_asked_for(some_tokens):
    weights, tokens = Held(SPARSE), some_tokens(4, SPARSE)
    model = OneRow(SPARSE, weights, 0)
    taken, cache = spied(model), model.new_cache(8)
    weights.complete = False
    model.hidden(tokens[:1], cache)
    weights.complete = True
    model.hidden(tokens[1:2], cache)
    assert taken == [1]


def test_a_store_is_complete_when_it_holds_all_for_good(in_layout, recognized):
    checkpoint, _ = in_layout("mistral", SPARSE, 0)
    for share, expected in ((1, True), (2, False)):
        weights = open_weights(
            checkpoint,
            recognized("mistral", SPARSE),
            CPU,
            budget=checkpoint.catalog.nbytes // share,
        )
        assert not weights.complete
        for name in weights.steps:
            weights.matrix(name)
        assert weights.complete is expected
        weights.close()


def test_a_short_text_does_not_wait_for_compiling(some_tokens, monkeypatch):
    """Where the loops were never compiled, the first tokens are the plain one's."""
    from moetool.model import compiled

    monkeypatch.setattr(compiled, "is_kept", lambda: False)
    model, tokens = OneRow(SPARSE, Held(SPARSE), 3), some_tokens(6, SPARSE)
    taken, cache = spied(model), model.new_cache(8)
    for token in tokens:
        model.hidden(token[None], cache)
    assert taken == [3, 4, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_types_stay_with_the_plain_one(some_tokens, dtype):
    model, tokens = OneRow(SPARSE, Held(SPARSE, dtype), 0), some_tokens(4, SPARSE)
    found, _ = decode(model, tokens[:2], tokens[2:])
    plain, _ = decode(Transformer(SPARSE, model._store), tokens[:2], tokens[2:])
    assert torch.equal(found, plain)
    assert model._row is None


def test_threads_change_no_bit(some_tokens):
    model, tokens = OneRow(SPARSE, Held(SPARSE), 0), some_tokens(8, SPARSE)
    once, _ = decode(model, tokens[:4], tokens[4:])
    torch.set_num_threads(2)
    again, _ = decode(model, tokens[:4], tokens[4:])
    assert torch.equal(once, again)
