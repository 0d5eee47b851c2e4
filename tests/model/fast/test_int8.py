"""int8: nothing is rounded but the weights, and each row by half a step at the most."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from moetool.model.fast.decoder import Decoder
from moetool.model.fast.int8 import Int8, dense, part, quantised
from moetool.model.fast.step import layer_step, product
from moetool.model.mixtral import Transformer


@pytest.mark.parametrize("shape", [(48, 64), (5, 48, 64)])
def test_a_weight_is_off_by_half_a_step_of_its_row(shape):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rounded = quantised(w)
    assert rounded.values_OI.abs().amax(-1).eq(127).all()
    off = (dense(rounded, torch.float32) - w).abs().amax(-1)
    assert (off <= rounded.scale_O * 0.5001).all()


def test_a_row_of_zeros_stays_zero():
    assert dense(quantised(torch.zeros(3, 8)), torch.bfloat16).eq(0).all()


def test_products_are_those_of_the_rounded_matrix():
    random = torch.Generator().manual_seed(0)
    w = quantised(torch.randn(3, 48, 64, generator=random))
    x, experts = torch.randn(64, generator=random), torch.tensor([2, 0])
    right = dense(w, torch.float32)[experts] @ x
    compiled = torch.compile(product, backend="eager", fullgraph=True)
    for way in (product, compiled):
        assert (way(part(w, experts), x) - right).abs().max() < 1e-4
    assert (product(part(w, (2, slice(8, 20))), x) - right[0, 8:20]).abs().max() < 1e-4


def test_the_engine_is_the_reference_on_the_rounded_weights(pair, some_tokens, off, odd_args):
    _, fast = pair(int8=True)
    tokens = some_tokens(40)
    rounded = Transformer(odd_args, fast.stacked)
    right = rounded.forward(tokens, rounded.new_cache(40))
    cache = fast.new_cache(40)
    decoder = Decoder(fast, cache)
    rows = [fast.forward(tokens[:20], cache)]
    decoder.begin(rows[0][-1])
    for token in tokens[20:]:
        decoder.token_1.fill_(token)
        decoder.advance()
        rows.append(decoder.logits_V.clone()[None])
    assert off(torch.cat(rows), right) < 1e-4


def test_a_step_compiles_without_a_break(pair):
    _, fast = pair(int8=True)
    layer, cache = fast.stacked.layers[0], fast.new_cache(8)
    where = cache.keys_LKCH[0], cache.values_LKCH[0], torch.tensor([0])
    turn = cache.cos_CP[:1], cache.sin_CP[:1]
    step = partial(layer_step, fast.args)
    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend="eager")
    h_D = torch.randn(fast.args.dim, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert (
            compiled(layer, h_D, *where, turn) - step(layer, h_D, *where, turn)
        ).abs().max() < 1e-4


def test_half_the_bytes_and_nearly_the_same_model(pair, some_tokens, off):
    wide = {"dim": 128, "hidden_dim": 224, "vocab_size": 256, "dtype": torch.bfloat16}
    reference, fast = pair(**wide)
    _, half = pair(**wide, int8=True)
    assert isinstance(half.stacked.layers[0].w13_EUD, Int8)
    embedding = half.stacked.ends.tok_embeddings_VD.nbytes
    assert half.stacked.nbytes - embedding < 0.55 * (fast.stacked.nbytes - embedding)
    tokens = some_tokens(100, reference.args)
    right, found = (m.forward(tokens, m.new_cache(100)).log_softmax(-1) for m in (reference, half))
    kl = (right.exp() * (right - found)).sum(-1).mean()
    assert 1e-7 < kl < 0.02
