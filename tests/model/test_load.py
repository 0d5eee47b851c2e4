"""Weights by name: what is read, what is held, what is refused."""

from __future__ import annotations

import pytest
import torch

from moetool.arch.recognize import recognize
from moetool.errors import NotEnoughMemory, ReadFailed, Refused
from moetool.formats import open_checkpoint
from moetool.model import load
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
        assert sum(future.result().nbytes for future in weights._held.values()) <= budget
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


def test_many_pieces_cost_one_pass(watched, recognized, odd_args, some_tokens):
    """Sixteen tokens decoded one by one read no tensor twice, with room for a tenth of a layer."""
    from moetool.model.mixtral import Transformer

    weights = open_weights(watched, recognized(), CPU, budget=12_000)
    model = Transformer(odd_args, weights)
    pieces = some_tokens(64).split([48, *[1] * 16])
    model.hidden_of(pieces, [model.new_cache(64)] * len(pieces))
    rows = 64 * odd_args.dim * 2
    embeddings = weights.steps["tok_embeddings.weight"].target.nbytes
    assert watched.nbytes <= watched.catalog.nbytes - embeddings + rows


def test_what_is_expected_is_read_before_it_is_asked_for(watched, recognized):
    """In the order that was said, as far as there is room; what is held already stays."""
    weights = open_weights(watched, recognized(), CPU, budget=21_000)
    names = [f"layers.{layer}.attention.{w}.weight" for layer in range(3) for w in ("wq", "wk")]
    sizes = [weights.steps[name].target.nbytes for name in names]
    assert 21_000 - sizes[1] < sum(sizes[:4]) <= 21_000  # so there is room for four of them
    weights.expect(names)
    weights._readers.submit(int).result()  # whatever was begun before is done now
    assert watched.nbytes == sum(sizes[:4])
    for number, name in enumerate(names):
        weights[name]
        assert len(weights._held) >= min(number + 1, 4)
    weights._readers.submit(int).result()
    assert watched.nbytes == sum(sizes)
    weights.expect([names[2], names[0]])
    weights._readers.submit(int).result()
    assert watched.nbytes == sum(sizes) + sizes[0]
    weights.close()
    weights.close()


def test_what_is_not_expected_any_more_makes_room(watched, recognized):
    """A wrong guess costs its reading; it does not stay in the way."""
    weights = open_weights(watched, recognized(), CPU, budget=20_000)
    guess = [f"layers.2.feed_forward.experts.{e}.w1.weight" for e in range(5)]
    weights.expect(guess)
    truth = [f"layers.1.feed_forward.experts.{e}.w1.weight" for e in range(4)]
    weights.expect(truth)
    weights._readers.submit(int).result()
    assert set(truth) <= set(weights._held)
    weights.expect(guess)
    asked = weights["output.weight"]  # nobody expected it: it goes first all the same
    assert (
        asked.nbytes
        + sum(
            future.result().nbytes
            for name, future in weights._held.items()
            if name != "output.weight"
        )
        <= 20_000
    )


def test_a_read_that_fails_ahead_fails_where_it_is_asked_for(watched, recognized):
    class Failing(Watching):
        def read(self, name, *_range):
            raise ReadFailed("EIO while reading at byte 7", where=name)

    weights = open_weights(Failing(watched.checkpoint), recognized(), CPU, budget=20_000)
    weights.expect(["norm.weight"])
    with pytest.raises(ReadFailed, match="EIO"):
        weights["norm.weight"]


def test_the_cache_of_the_system_is_left_alone_unless_it_cannot_hold_the_file(
    tiny_release, monkeypatch
):
    """Behind a pass over a file that is larger than memory, none of its pages are left there."""
    dropped = []
    monkeypatch.setattr(load, "drop_from_cache", dropped.append)
    with open_checkpoint(tiny_release) as checkpoint:
        known = recognize(checkpoint.catalog, checkpoint.directory)
        for free in (1 << 40, 1 << 20):
            monkeypatch.setattr(load, "available_nbytes", lambda _device, free=free: free)
            assert dropped == []
            weights = open_weights(checkpoint, known, CPU, budget=1 << 20)
            weights["layers.3.attention.wq.weight"]
    (extent,) = dropped
    whole = checkpoint.catalog.extents["layers.3.attention.wq.weight"]
    assert (extent.path, extent.offset, extent.nbytes) == (whole.path, whole.offset, whole.nbytes)


def test_norms_and_routers_keep_the_type_they_are_stored_in(in_layout, recognized):
    checkpoint, _ = in_layout("gguf", recognized().args)
    weights = open_weights(checkpoint, recognized("gguf"), CPU)
    assert weights.dtype == torch.bfloat16
    assert weights["layers.0.feed_forward.gate.weight"].dtype == torch.float32
    assert weights["norm.weight"].dtype == torch.float32
    assert weights["layers.0.attention.wq.weight"].dtype == torch.bfloat16


def test_types_that_are_not_decoded_are_refused_by_name(recognized, random_checkpoint, odd_args):
    checkpoint = random_checkpoint(odd_args)
    infos = dict(checkpoint.catalog.tensors)
    infos["output.weight"] = TensorInfo("output.weight", DType.IQ4_NL, (72, 32))
    checkpoint.catalog = Catalog("gguf", infos, {})
    with pytest.raises(Refused, match=r"output\.weight is iq4_nl"):
        open_weights(checkpoint, recognized(), CPU)


def test_a_budget_below_the_largest_tensor_is_refused(watched, recognized):
    with pytest.raises(NotEnoughMemory, match="1000 bytes may be used on cpu"):
        open_weights(watched, recognized(), CPU, budget=1000)


def test_the_main_type_is_the_one_of_most_bytes(in_layout, odd_args):
    assert main_dtype(in_layout("gguf", odd_args)[0].catalog.tensors.values()) is DType.BF16


def test_quantised_blocks_are_computed_in_bf16_unless_told():
    """Alone and as a rank's share alike: `open_model` asks the same."""
    infos = {"a": TensorInfo("a", DType.Q4_K, (256, 256)), "b": TensorInfo("b", DType.F32, (256,))}
    assert load.kept_dtype(Catalog("gguf", infos, {})) is torch.bfloat16
    assert load.kept_dtype(Catalog("gguf", {"b": infos["b"]}, {})) is torch.float32
