"""Two and four processes against one: the same bits by a pipeline, nearly the same by tensors."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

LOGITS = ("prompt", "cached", "together", "one by one")
MODELS = ("f32", "bf16", "hf", "dense", "dense bf16")


@pytest.mark.parametrize("model", MODELS)
def test_a_pipeline_gives_one_process_s_bits_on_every_rank(by_ranks, alone, model):
    for rank in by_ranks:
        found = rank["pipeline"][model]
        for name in LOGITS:
            assert torch.equal(found[name], alone[model][name]), name
        assert found["drawn"] == alone[model]["drawn"]
        assert found["loss"] == alone[model]["loss"]


def ranges(reads):
    """The ranges of bytes that were read of each tensor, joined; none may be read twice."""
    found = []
    for name, start, stop in sorted(reads):
        if found and found[-1][0] == name:
            assert start >= found[-1][2], f"{name} read twice at {start}"
            if start == found[-1][2]:
                found[-1] = (name, found[-1][1], stop)
                continue
        found.append((name, start, stop))
    return found


def total(reads):
    return sum(stop - start for _, start, stop in reads)


@pytest.mark.parametrize("model", MODELS)
def test_a_rank_of_a_pipeline_reads_its_own_bytes_once_and_all_read_everything(
    by_ranks, alone, model
):
    shares = [rank["pipeline"][model]["reads"] for rank in by_ranks]
    assert ranges(list(chain(*shares))) == ranges(alone[model]["reads"])
    for share, rank in zip(shares, by_ranks, strict=True):
        memory = rank["pipeline"][model]["memory"]
        assert total(share) == memory.nbytes_read
        assert memory.held == memory.planned


def test_shares_are_of_like_size_and_caches_are_of_own_layers(by_ranks, alone):
    found = [rank["pipeline"]["bf16"] for rank in by_ranks]
    planned = [share["planned"] for share in found]
    assert sum(planned) == alone["bf16"]["planned"]
    assert max(planned) < alone["bf16"]["planned"] / len(by_ranks) * 1.7  # five layers, unevenly
    n_layers = [share["cache"][0] for share in found]
    assert sum(n_layers) == 5
    assert max(n_layers) == {2: 3, 4: 2}[len(by_ranks)]


@pytest.mark.parametrize("model", ["f32", "hf", "dense"])
def test_tensor_parallel_is_near_one_process_and_alike_on_every_rank(by_ranks, alone, model):
    for rank in by_ranks:
        found = rank["tensor"][model]
        for name in LOGITS:
            expected = alone[model][name]
            assert torch.equal(found[name], by_ranks[0]["tensor"][model][name])
            assert (found[name] - expected).abs().max() <= 1e-5 * expected.std(), name
        assert found["loss"] == pytest.approx(alone[model]["loss"], abs=1e-5)
        assert found["drawn"] == alone[model]["drawn"]


def test_tensor_parallel_in_bf16_is_as_near_to_float32_as_one_process(by_ranks, alone):
    """Without experts: with them, a near tie sends a token to another one, here or there."""
    for name in LOGITS:
        exact, once = alone["dense"][name], alone["dense bf16"][name]
        split = by_ranks[-1]["tensor"]["dense bf16"][name]
        assert not torch.equal(split, once)
        assert (split - exact).square().mean() < 2 * (once - exact).square().mean()


def test_tensor_parallel_keeps_a_part_of_all_but_the_small(by_ranks, alone):
    n = len(by_ranks)
    for rank in by_ranks:
        found = rank["tensor"]["bf16"]
        memory = found["memory"]
        whole = 72 * 40 + 5 * 5 * 40 + 11 * 40  # embeddings, routers, norms
        assert memory.held == found["planned"]
        assert memory.planned == 2 * whole + (alone["bf16"]["planned"] - 2 * whole) // n
        assert found["cache"] == (5, 4 // n, 8, 16)


def test_tensor_parallel_reads_rows_as_they_are(by_ranks):
    """Of wq, wk, wv, w1, w3 and the output a rank reads its own rows and no others."""
    n = len(by_ranks)
    by_rows = ("wq", "wk", "wv", "w1", "w3", "output")
    shares = [
        [
            read
            for read in rank["tensor"]["bf16"]["reads"]
            if read[0].removesuffix(".weight").rpartition(".")[2] in by_rows
        ]
        for rank in by_ranks
    ]
    whole = ranges(list(chain(*shares)))
    assert all(start == 0 for _, start, _ in whole)
    assert {total(share) for share in shares} == {total(whole) // n}
