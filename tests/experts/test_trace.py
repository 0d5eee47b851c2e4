"""A trace is the router's own choice, token by token, however the text was read."""

import numpy as np
import pytest
import torch

from moetool.errors import UsageFault
from moetool.experts.trace import Tracer, generate_routed, trace
from moetool.model.generate import generate
from moetool.model.mixtral import Probe, Transformer, route


class Streams(Probe):
    def __init__(self):
        self.attended = {}

    def hidden(self, layer, part, h_TD):
        if part == "attention":
            self.attended[layer] = h_TD


def test_a_trace_is_what_the_router_says_of_the_stream(model, tokens):
    """Norm and router applied by hand to the stream give the same experts, weights and margins."""
    found = trace(model, tokens, len(tokens)).routed
    streams = Streams()
    model.hidden(torch.tensor(tokens), model.new_cache(len(tokens)), streams)
    for layer in range(model.args.n_layers):
        x_TD = model._norm(layer, "ffn_norm", streams.attended[layer])
        gate_ED = model.weights[f"layers.{layer}.feed_forward.gate.weight"]
        expected = route(x_TD, gate_ED, 2)
        assert torch.equal(found.experts_TLA[:, layer].long(), expected.experts_TA)
        assert torch.equal(found.weights_TLA[:, layer], expected.weights_TA)
        ordered_TE = expected.logits_TE.sort(-1, descending=True).values
        assert torch.equal(found.margins_TL[:, layer], ordered_TE[:, 1] - ordered_TE[:, 2])


def test_a_trace_is_the_golden_one(model, tiny_release):
    """What transformers' routers chose when the fixture was made, on both of its prompts."""
    arrays = np.load(tiny_release.parent / "golden.npz")
    for ids, experts, weights in zip(
        arrays["ids"], arrays["experts"], arrays["weights"], strict=True
    ):
        found = trace(model, ids.tolist(), len(ids)).routed
        clear = found.margins_TL > 1e-3
        assert clear.double().mean() > 0.97
        expected = torch.from_numpy(experts).to(torch.int16).swapaxes(0, 1)
        assert torch.equal(found.experts_TLA[clear], expected[clear])
        expected = torch.from_numpy(weights).swapaxes(0, 1)
        torch.testing.assert_close(found.weights_TLA[clear], expected[clear], atol=1e-3, rtol=0)


def test_windows_are_read_each_for_itself(model, tokens):
    """A window's choices are those of the window alone."""
    found = trace(model, tokens, 16)
    alone = trace(model, tokens[16:32], 16)
    assert torch.equal(found.routed.experts_TLA[16:32], alone.routed.experts_TLA)
    assert len(found.routed) == len(tokens)


def test_generating_tells_the_choices_of_each_token(model, tokens):
    """The same text as without a trace; prompt first, then one position at a time."""
    steps = list(generate_routed(model, tokens[:12], 6))
    assert [step.token for step in steps] == list(generate(model, tokens[:12], 6))
    assert [len(step.routed) for step in steps] == [12, 1, 1, 1, 1, 1]
    assert steps[0].experts_LA.shape == steps[3].weights_LA.shape == (model.args.n_layers, 2)
    read = [*tokens[:12], *(step.token for step in steps[:-1])]
    whole = trace(model, read, len(read)).routed
    for at, step in enumerate(steps):
        # Rows alone and rows together may round differently: only where the margin is clear.
        clear = whole.margins_TL[11 + at] > 1e-4
        assert torch.equal(step.experts_LA[clear], whole.experts_TLA[11 + at][clear])
        torch.testing.assert_close(step.weights_LA[clear], whole.weights_TLA[11 + at][clear],
                                   atol=1e-4, rtol=0)  # fmt: skip


def test_all_experts_chosen_have_no_margin(model, tokens, changed_args):
    """Nothing is left out, so nothing could be chosen instead."""
    every = Transformer(changed_args(model.args, n_experts_per_tok=8), model.weights)
    assert trace(every, tokens[:4], 4).routed.margins_TL.isinf().all()


def test_a_dense_model_and_an_empty_text_are_refused(model, changed_args):
    """They have no choices to tell."""
    dense = Transformer(changed_args(model.args, n_experts=0, n_experts_per_tok=0), model.weights)
    with pytest.raises(UsageFault, match="dense"):
        Tracer(dense)
    with pytest.raises(UsageFault, match="not every layer"):
        Tracer(model).take()
    with pytest.raises(UsageFault, match="empty"):
        trace(model, [], 8)


def test_a_router_that_is_not_finite_is_told(model, tokens, monkeypatch):
    """Neither a trace nor a cost is made of NaN."""
    from moetool.errors import CheckFailed
    from moetool.experts.ablate import measure
    from moetool.experts.saliency import saliencies

    whole = type(model.weights).__getitem__

    def broken(weights, name):
        found = whole(weights, name)
        return found * torch.nan if name == "layers.2.ffn_norm.weight" else found

    monkeypatch.setattr(type(model.weights), "__getitem__", broken)
    for work in (trace, saliencies):
        with pytest.raises(CheckFailed, match="not finite"):
            work(model, tokens, 16)
    with pytest.raises(CheckFailed, match="not finite"):
        measure(model, tokens, 16, [{0: frozenset({1})}])
