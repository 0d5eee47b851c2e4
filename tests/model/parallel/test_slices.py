"""The parts of matrices that ranks keep, from every layout."""

from __future__ import annotations

import pytest
import torch

from moetool.convert.stream import stream, to_torch
from moetool.errors import UsageFault
from moetool.model.load import canonical_steps
from moetool.model.parallel.slices import SlicedCheckpoint, refuse_uneven

LAYOUTS = ["mistral", "mistral-packed", "hf", "hf-fused", "gguf", "gguf-split"]


def whole(checkpoint, step):
    return to_torch(b"".join(stream(checkpoint, step)), step.target.dtype, step.target.shape)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_parts_of_all_ranks_make_the_matrix(in_layout, recognized, odd_args, layout):
    checkpoint, _ = in_layout(layout, odd_args)
    steps = canonical_steps(checkpoint.catalog, recognized(layout))
    shares = [SlicedCheckpoint(checkpoint, steps, rank, 2) for rank in range(2)]
    for name, step in steps.items():
        expected = whole(checkpoint, step)
        parts = [whole(share, share.steps[name]) for share in shares]
        kind = name.removesuffix(".weight").rpartition(".")[2]
        if kind in {"wo", "w2"}:
            assert torch.equal(torch.cat(parts, dim=1), expected), name
        elif kind in {"wq", "wk", "wv", "w1", "w3", "output"}:
            assert torch.equal(torch.cat(parts), expected), name
        else:
            assert all(torch.equal(part, expected) for part in parts), name
    assert not any(share._made for share in shares)


def test_a_share_is_read_in_any_chunks(in_layout, recognized, odd_args):
    checkpoint, _ = in_layout("mistral", odd_args)
    steps = canonical_steps(checkpoint.catalog, recognized())
    share = SlicedCheckpoint(checkpoint, steps, 1, 2)
    name = "layers.1.feed_forward.experts.3.w2.weight"
    nbytes = share.catalog.tensors[name].nbytes
    expected = whole(checkpoint, steps[name])[:, 28:]
    chunks = [bytes(share.read(name, at, min(at + 100, nbytes))) for at in range(0, nbytes, 100)]
    assert torch.equal(to_torch(b"".join(chunks), steps[name].target.dtype, (40, 28)), expected)


def test_what_does_not_divide_is_refused_with_all_that_does_not(odd_args):
    refuse_uneven(odd_args, 2)
    with pytest.raises(UsageFault, match="over 3 ranks") as refused:
        refuse_uneven(odd_args, 3)
    assert refused.value.findings == ("n_kv_heads is 2", "hidden_dim is 56")
    assert "divides 2" in refused.value.hint
