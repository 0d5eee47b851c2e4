"""Weights by name: what is read, what is held, what is refused."""

from __future__ import annotations

import pytest
import torch

from moetool.errors import NotEnoughMemory, Refused
from moetool.model.load import open_weights
from moetool.tensors import Catalog, DType, TensorInfo, main_dtype

CPU = torch.device("cpu")


class Watching:
    """A checkpoint that remembers what was read."""

    def __init__(self, checkpoint):
        self.checkpoint, self.catalog, self.nbytes = checkpoint, checkpoint.catalog, 0

    def read(self, name, start=0, stop=None):
        data = self.checkpoint.read(name, start, stop)
        self.nbytes += len(data)
        return data


@pytest.fixture
def watched(random_checkpoint, odd_args):
    return Watching(random_checkpoint(odd_args))


def test_resident_weights_are_read_once(watched, recognized):
    weights = open_weights(watched, recognized(), CPU)
    assert weights.resident
    assert watched.nbytes == 0
    for _ in range(2):
        for name in weights.steps:
            weights[name]
    assert watched.nbytes == weights.nbytes_read == watched.catalog.nbytes


def test_the_budget_is_kept_and_the_least_recently_used_leaves(watched, recognized):
    budget = 20_000
    weights = open_weights(watched, recognized(), CPU, budget=budget)
    assert not weights.resident
    for name in weights.steps:
        weights[name]
        assert sum(tensor.nbytes for tensor in weights._held.values()) <= budget
    before = watched.nbytes
    weights["output.weight"]  # the last one is still there
    assert watched.nbytes == before
    weights["layers.0.attention.wq.weight"]  # the first one is not
    assert watched.nbytes > before


def test_the_budget_changes_no_bit(load_model, some_tokens):
    tokens = some_tokens(30)
    logits = [
        model.forward(tokens, model.new_cache(30))
        for model in (load_model(), load_model(budget=30_000))
    ]
    assert torch.equal(*logits)


def test_a_prompt_needs_its_own_rows_of_the_embedding_only(watched, recognized, odd_args):
    weights = open_weights(watched, recognized(), CPU, budget=20_000)
    rows = weights.rows("tok_embeddings.weight", torch.tensor([9, 3, 9, 70]))
    assert watched.nbytes == 3 * odd_args.dim * 2
    assert torch.equal(rows, weights["tok_embeddings.weight"][[9, 3, 9, 70]])


def test_prefill_reads_each_tensor_once_however_small_the_budget(
    watched, recognized, odd_args, some_tokens
):
    from moetool.model.mixtral import Transformer

    weights = open_weights(watched, recognized(), CPU, budget=12_000)
    model = Transformer(odd_args, weights)
    model.forward(some_tokens(64), model.new_cache(64))
    rows = 64 * odd_args.dim * 2
    embeddings = weights.steps["tok_embeddings.weight"].target.nbytes
    assert watched.nbytes <= watched.catalog.nbytes - embeddings + rows


def test_many_pieces_cost_one_pass_where_a_layer_fits(watched, recognized, odd_args, some_tokens):
    """Sixteen tokens decoded one by one read no tensor twice, with room for one layer of three."""
    from moetool.model.mixtral import Transformer

    layer = sum(
        info.nbytes for name, info in watched.catalog.tensors.items() if "layers.0." in name
    )
    weights = open_weights(watched, recognized(), CPU, budget=layer)
    model = Transformer(odd_args, weights)
    pieces = some_tokens(64).split([48, *[1] * 16])
    model.hidden_of(pieces, [model.new_cache(64)] * len(pieces))
    assert watched.nbytes <= 3 * layer + 64 * odd_args.dim * 2


def test_norms_and_routers_keep_the_type_they_are_stored_in(in_layout, recognized):
    checkpoint, _ = in_layout("gguf", recognized().args)
    weights = open_weights(checkpoint, recognized("gguf"), CPU)
    assert weights.dtype == torch.bfloat16
    assert weights["layers.0.feed_forward.gate.weight"].dtype == torch.float32
    assert weights["norm.weight"].dtype == torch.float32
    assert weights["layers.0.attention.wq.weight"].dtype == torch.bfloat16


def test_quantised_tensors_are_refused_by_name(recognized, random_checkpoint, odd_args):
    checkpoint = random_checkpoint(odd_args)
    infos = dict(checkpoint.catalog.tensors)
    infos["output.weight"] = TensorInfo("output.weight", DType.Q8_0, (72, 32))
    checkpoint.catalog = Catalog("gguf", infos, {})
    with pytest.raises(Refused, match=r"output\.weight is q8_0"):
        open_weights(checkpoint, recognized(), CPU)


def test_a_budget_below_the_largest_tensor_is_refused(watched, recognized):
    with pytest.raises(NotEnoughMemory, match="1000 bytes may be used on cpu"):
        open_weights(watched, recognized(), CPU, budget=1000)


def test_the_main_type_is_the_one_of_most_bytes(in_layout, odd_args):
    assert main_dtype(in_layout("gguf", odd_args)[0].catalog.tensors.values()) is DType.BF16
