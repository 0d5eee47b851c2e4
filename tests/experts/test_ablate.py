"""A mask takes experts out, a saliency adds up what they give, a cost is what the loss says."""

import pytest
import torch

from moetool.errors import UsageFault
from moetool.experts import ablate
from moetool.experts.masked import MaskedTransformer
from moetool.experts.saliency import CRITERIA, ExpertSaliency, keep_best, saliencies
from moetool.experts.trace import trace
from moetool.model.evaluate import evaluate
from moetool.model.load import open_weights
from moetool.model.mixtral import Probe, Transformer, swiglu


def test_a_masked_expert_gets_nothing_and_the_rest_share_anew(model, tokens):
    """Weights sum to 1 over the next best; other layers choose as before."""

    class Watch(Probe):
        def __init__(self):
            self.found = {}

        def routed(self, layer, routing):
            self.found[layer] = routing

    read, whole, masked = torch.tensor(tokens), Watch(), Watch()
    model.hidden(read, model.new_cache(len(tokens)), whole)
    cut = MaskedTransformer(model, {1: frozenset({0, 3})})
    cut.hidden(read, cut.new_cache(len(tokens)), masked)
    assert torch.equal(whole.found[0].experts_TA, masked.found[0].experts_TA)
    assert {0, 3} & set(whole.found[1].experts_TA.unique().tolist())
    assert not {0, 3} & set(masked.found[1].experts_TA.unique().tolist())
    order_TE = whole.found[1].logits_TE.argsort(-1, descending=True)
    for row, chosen in zip(order_TE.tolist(), masked.found[1].experts_TA.tolist(), strict=True):
        assert chosen == [expert for expert in row if expert not in {0, 3}][:2]
    torch.testing.assert_close(masked.found[1].weights_TA.sum(-1), torch.ones(len(tokens)))


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        ({9: frozenset({0})}, "no layer 9"),
        ({0: frozenset({8})}, "no expert 8"),
        ({0: frozenset(range(7))}, "1 experts left"),
    ],
)
def test_what_cannot_be_masked(model, cut, said):
    with pytest.raises(UsageFault) as caught:
        MaskedTransformer(model, cut)
    assert said in caught.value.findings[0]


def test_saliency_is_weight_times_norm(model, tokens):
    """Computed by hand for one layer from the stream, the matrices and the router."""
    found = {(s.layer, s.expert): s for s in saliencies(model, tokens, len(tokens))}

    class Stream(Probe):
        def hidden(self, layer, part, h_TD):
            if (layer, part) == (2, "attention"):
                self.h_TD = h_TD

    stream = Stream()
    model.hidden(torch.tensor(tokens), model.new_cache(len(tokens)), stream)
    x_TD = model._norm(2, "ffn_norm", stream.h_TD)
    routing = model.route(2, x_TD)
    for expert in range(8):
        name = f"layers.2.feed_forward.experts.{expert}"
        matrices = [model.weights[f"{name}.{w}.weight"] for w in ("w1", "w2", "w3")]
        norm_T = swiglu(x_TD, *matrices).norm(dim=-1).double()
        weight_T = (routing.weights_TA * (routing.experts_TA == expert)).sum(-1).double()
        came_T = (routing.experts_TA == expert).any(-1)
        one, n = found[2, expert], int(came_T.sum())
        assert one.n_tokens == n
        assert one.frequency == pytest.approx(n / len(tokens))
        assert one.mass == pytest.approx(float((weight_T * norm_T).sum()), rel=1e-5)
        assert one.reap == pytest.approx(one.mass / max(n, 1))
        assert one.norm == pytest.approx(float(norm_T[came_T].sum()) / max(n, 1), rel=1e-5)


def test_windows_and_groups_add_up(model, tokens, monkeypatch):
    """Cut into groups of two windows, the sums are the same."""
    whole = saliencies(model, tokens, 16)
    monkeypatch.setattr("moetool.experts.saliency.TOGETHER", 32)
    for one, other in zip(whole, saliencies(model, tokens, 16), strict=True):
        assert one.n_tokens == other.n_tokens
        assert one.mass == pytest.approx(other.mass, rel=1e-5)


def test_the_best_are_kept_in_their_order():
    """The lower number stays where two are worth the same; a layer is judged by itself."""
    worth = {(0, 0): 1.0, (0, 1): 3.0, (0, 2): 0.0, (0, 3): 3.0,
             (1, 0): 0.0, (1, 1): 0.0, (1, 2): 0.0, (1, 3): 0.1}  # fmt: skip
    assert keep_best(worth, 2) == ((1, 3), (0, 3))
    assert keep_best(worth, 3) == ((0, 1, 3), (0, 1, 3))
    one = ExpertSaliency(0, 0, 1, 1.0, 2.0, 3.0, 4.0)
    assert [one.by(criterion) for criterion in CRITERIA] == [1, 2, 3, 4]
    with pytest.raises(UsageFault, match="no criterion"):
        one.by("layer")


CUTS = [{3: frozenset({0})}, {0: frozenset({1})}, {}, {1: frozenset({2, 5}), 2: frozenset({4})}]


def test_a_cost_is_the_difference_of_two_losses(model, tokens):
    """Read again from a layer, or wholly: the same bits."""
    found = ablate.measure(model, tokens, 24, CUTS)
    whole = evaluate(model, tokens, 24).score
    assert found.n_tokens == whole.n_tokens
    assert found.loss == pytest.approx(whole.loss, abs=1e-12)
    assert (found.cuts[2].delta, found.cuts[2].error) == (0, 0)
    for cut, cost in zip(CUTS, found.cuts, strict=True):
        score = evaluate(MaskedTransformer(model, cut), tokens, 24).score
        assert cost.delta == pytest.approx(score.loss - whole.loss, abs=1e-9)
    assert found.cuts[0].delta != 0
    assert found.cuts[0].error > 0


def test_batches_and_groups_change_nothing(model, tokens, monkeypatch):
    """One variant at a time, two windows at a time: the same costs."""
    expected = ablate.measure(model, tokens, 16, CUTS)
    monkeypatch.setattr(ablate, "STREAMS_NBYTES", 1)
    done = []
    found = ablate.measure(model, tokens, 16, CUTS, lambda n, total: done.append((n, total)))
    assert found == expected
    assert [n for n, _ in done] == list(range(1, 4 * len(CUTS) + 1))
    assert {total for _, total in done} == {4 * len(CUTS)}
    monkeypatch.setattr(ablate, "TOGETHER", 32)
    grouped = ablate.measure(model, tokens, 16, CUTS)
    for one, other in zip(found.cuts, grouped.cuts, strict=True):
        assert one.delta == pytest.approx(other.delta, abs=1e-4)
    with pytest.raises(UsageFault, match="fewer than two"):
        ablate.measure(model, tokens[:1], 16, [])


def test_read_as_they_are_needed_the_weights_give_the_same(opened, tokens):
    """Two megabytes for fifteen: the same saliencies, costs and choices to the last bit."""
    model, checkpoint, recognized, _ = opened
    few = open_weights(checkpoint, recognized, torch.device("cpu"), torch.float32, 2_000_000)
    assert not few.resident
    streamed = Transformer(recognized.args, few)
    assert saliencies(streamed, tokens, 24) == saliencies(model, tokens, 24)
    assert ablate.measure(streamed, tokens, 24, CUTS) == ablate.measure(model, tokens, 24, CUTS)
    ours, theirs = (trace(each, tokens, 24).routed for each in (streamed, model))
    assert torch.equal(ours.experts_TLA, theirs.experts_TLA)
    assert torch.equal(ours.weights_TLA, theirs.weights_TLA)
    few.close()
