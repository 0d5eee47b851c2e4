"""What a run will take: said before, and true after."""

from __future__ import annotations

import pytest
import torch

from moetool.convert.synthetic import GEOMETRIES
from moetool.errors import NotEnoughMemory
from moetool.model import outlook as module
from moetool.model.outlook import Work, cache_nbytes, foresee, rows_nbytes

GB = 1e9


class Full:
    """Weights of the true geometry that nobody has to hold."""

    device, dtype, extents = torch.device("cpu"), torch.bfloat16, ()
    nbytes = nbytes_stored = 93_405_585_408
    largest_nbytes = 2 * 32_000 * 4096

    def __init__(self, budget):
        self.budget, self.resident = budget, budget >= self.nbytes


def test_8x7b_on_a_laptop(monkeypatch):
    """The published arithmetic: 4.29 GB of cache at 32 k, 25.5 GB for a token, one pass of 93.4."""
    args = GEOMETRIES["8x7b"]
    assert cache_nbytes(args, 32_768, 2) == pytest.approx(4.29 * GB, rel=0.01)
    monkeypatch.setattr(module, "free_nbytes", lambda: int(12 * GB))
    seen = foresee(Full(int(6 * GB)), args, Work(600, 512))
    assert not seen.resident
    assert seen.token_nbytes == pytest.approx(25.8 * GB, rel=0.01)
    assert seen.pass_nbytes == Full.nbytes
    assert 6.3 * GB < seen.peak_nbytes < 7.5 * GB
    assert seen.pass_seconds is None  # no disk was looked at
    with pytest.raises(NotEnoughMemory) as caught:
        foresee(Full(int(6 * GB)), args, Work(32_768, 32_768))
    hint = int(caught.value.hint.split("--memory ")[1].split("MB")[0]) << 20
    assert hint > 3 * GB
    assert foresee(Full(hint), args, Work(32_768, 32_768)).peak_nbytes < 12.3 * GB


def test_a_model_that_is_held_reads_nothing_for_a_token(load_model):
    model = load_model()
    seen = foresee(model.weights, model.args, Work(40, 40))
    assert seen.resident
    assert seen.token_nbytes == 0
    assert seen.held_nbytes == model.weights.nbytes


@pytest.mark.parametrize(("n_rows", "n_scored"), [(1, 1), (100, 100), (3000, 1)])
def test_rows_take_no_more_than_was_said(n_rows, n_scored):
    """Counted by torch's own profiler of memory, with matrices that are there already."""
    from dataclasses import replace

    from moetool.model.mixtral import Transformer

    args = replace(
        GEOMETRIES["tiny"], dim=256, hidden_dim=896, n_heads=4, n_kv_heads=1, vocab_size=2000
    )

    class Held:
        """Weights made of one row each, so that only rows take memory."""

        device, dtype = torch.device("cpu"), torch.bfloat16

        def __init__(self):
            random = torch.Generator().manual_seed(0)
            self.made = {}
            self.shapes = {
                "wq": (256, 256), "wk": (64, 256), "wv": (64, 256), "wo": (256, 256),
                "w1": (896, 256), "w3": (896, 256), "w2": (256, 896), "gate": (8, 256),
                "output": (2000, 256),
            }  # fmt: skip
            self.random = random

        def __getitem__(self, name):
            kind = name.split(".")[-2]
            shape = self.shapes.get(kind, (256,))
            if name not in self.made:
                self.made[name] = (torch.randn(shape, generator=self.random) / 16).bfloat16()
            return self.made[name]

        matrix = __getitem__

        def rows(self, _name, index):
            return torch.zeros(len(index), 256, dtype=torch.bfloat16)

        def expect(self, names):
            pass

    model = Transformer(args, Held())
    tokens = torch.arange(n_rows) % 2000
    model.forward(tokens[:40], model.new_cache(40))  # makes the matrices
    cache = model.new_cache(n_rows)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        h = model.hidden(tokens, cache)
        model.logits(h[-n_scored:])
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    said = rows_nbytes(args, Work(n_rows, n_rows, n_scored), 2)
    assert peak <= said
    assert said <= 4 * peak + (40 << 20)  # nor several times as much
