"""Routing, saliency, masking and pruning are what transformers makes of the same experts."""

from __future__ import annotations

import pytest

from moetool.convert.job import open_source
from moetool.convert.targets import find_target
from moetool.experts.ablate import measure
from moetool.experts.rewrite import prepare_selection
from moetool.experts.saliency import saliencies
from moetool.experts.trace import trace
from moetool.formats import open_checkpoint
from moetool.model.load import open_weights
from moetool.model.mixtral import Transformer
from moetool.model.tokenizer import open_tokenizer

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="the clients extra is not installed")

KEPT = ((1, 3, 4, 5, 6, 7), (1, 2, 4, 5, 6, 7), (0, 1, 2, 4, 5, 6), (1, 2, 3, 4, 5, 7))
GONE = {layer: frozenset(range(8)) - set(kept) for layer, kept in enumerate(KEPT)}
NOISE = 1e-3  # of a logit of the router, both sides in float32; margins are of the order of 1


@pytest.fixture(scope="module")
def written(tmp_path_factory, tiny_release):
    """The release as transformers reads it, and pruned in two layouts."""
    folder = tmp_path_factory.mktemp("pruned")
    every = tuple(tuple(range(8)) for _ in KEPT)
    with open_checkpoint(tiny_release) as checkpoint:
        source = open_source(checkpoint)
        for name, target, kept in (
            ("whole", find_target(None, "hf"), every),
            ("hf", find_target(None, "hf"), KEPT),
            ("hf-fused", find_target(None, "hf-fused"), KEPT),
        ):
            prepare_selection(source, kept, target, folder / name).run()
    return folder


@pytest.fixture(scope="module")
def ours(tiny_release):
    """The release in our runner, float32, with a text of all its domains."""
    with open_checkpoint(tiny_release) as checkpoint:
        recognized = open_source(checkpoint).recognized
        weights = open_weights(checkpoint, recognized, torch.device("cpu"), torch.float32)
        tokenizer = open_tokenizer(checkpoint.catalog, checkpoint.directory)
        text = (tiny_release.parent / "smoke_text.txt").read_text()
        yield Transformer(recognized.args, weights), tokenizer.encode(text)
        weights.close()


def load(folder):
    model, info = transformers.MixtralForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


@pytest.fixture(scope="module")
def theirs(written):
    return load(written / "whole")


@torch.inference_mode()
def logits_of(model, tokens):
    return model(torch.tensor([tokens])).logits[0]


def losses_of(model, tokens):
    logits = logits_of(model, tokens)
    return torch.nn.functional.cross_entropy(
        logits[:-1], torch.tensor(tokens[1:]), reduction="none"
    ).double()


def masked(model, gone):
    """Hooks on transformers' own routers: these experts' logits become minus infinity."""

    def hide(experts, k):
        def hook(_module, _inputs, out):
            logits = out[0].float().clone()
            logits[:, sorted(experts)] = -torch.inf
            weights, chosen = logits.softmax(-1).topk(k, dim=-1)
            return logits, (weights / weights.sum(-1, keepdim=True)).to(out[1].dtype), chosen

        return hook

    k = model.config.num_experts_per_tok
    return [
        model.model.layers[layer].mlp.gate.register_forward_hook(hide(experts, k))
        for layer, experts in gone.items()
    ]


def test_routing_is_transformers_router(ours, theirs):
    """Ids wherever the margin is above the noise, weights within it, on 910 tokens in 4 layers."""
    model, tokens = ours
    found = trace(model, tokens, len(tokens)).routed
    seen = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda _m, _i, out: seen.append(out))
        for layer in theirs.model.layers
    ]
    logits_of(theirs, tokens)
    for hook in hooks:
        hook.remove()
    for layer, (_, weights, chosen) in enumerate(seen):
        clear = found.margins_TL[:, layer] > NOISE
        assert clear.double().mean() > 0.99
        first = weights[:, 0] - weights[:, 1] > NOISE  # else which is first is a tie as well
        same = chosen[clear & first].to(torch.int16)
        assert torch.equal(found.experts_TLA[clear & first, layer], same)
        sets = found.experts_TLA[clear, layer].sort(-1).values
        assert torch.equal(sets, chosen[clear].to(torch.int16).sort(-1).values)
        torch.testing.assert_close(
            found.weights_TLA[clear, layer], weights[clear].float(), atol=NOISE, rtol=0
        )


def test_ablation_is_masking_in_transformers(ours, theirs):
    """The cost of single experts and of several at once, in nats."""
    model, tokens = ours
    cuts = [{0: frozenset({4})}, {2: frozenset({1})}, {3: frozenset({2})}, GONE]
    costs = measure(model, tokens, len(tokens), cuts)
    whole = losses_of(theirs, tokens)
    assert costs.loss == pytest.approx(float(whole.mean()), abs=1e-4)
    for cut, cost in zip(cuts, costs.cuts, strict=True):
        hooks = masked(theirs, cut)
        difference = losses_of(theirs, tokens) - whole
        for hook in hooks:
            hook.remove()
        assert cost.delta == pytest.approx(float(difference.mean()), abs=1e-4)
        assert cost.error == pytest.approx(
            float(difference.std(correction=0)) / len(difference) ** 0.5, rel=1e-2
        )
        assert cost.delta > 0.01


@torch.no_grad()
def test_saliency_is_what_transformers_experts_give(ours, theirs):
    """Weight times output norm, from the weights and the routers that transformers holds."""
    model, tokens = ours
    found = {(one.layer, one.expert): one for one in saliencies(model, tokens, len(tokens))}
    layer = theirs.model.layers[1].mlp
    inputs, routed = [], []
    hooks = [
        layer.register_forward_hook(lambda _m, given, _out: inputs.append(given[0])),
        layer.gate.register_forward_hook(lambda _m, _i, out: routed.append(out)),
    ]
    logits_of(theirs, tokens)
    for hook in hooks:
        hook.remove()
    x, (_, weights, chosen) = inputs[0].flatten(0, 1), routed[0]
    for expert in range(8):
        gate, up = (x @ layer.experts.gate_up_proj[expert].T).chunk(2, -1)
        norm = ((torch.nn.functional.silu(gate) * up) @ layer.experts.down_proj[expert].T).norm(
            dim=-1
        )
        weight = (weights * (chosen == expert)).sum(-1)
        n_tokens = int((chosen == expert).sum())
        assert found[1, expert].n_tokens == pytest.approx(n_tokens, abs=1)
        assert found[1, expert].reap == pytest.approx(
            float((weight * norm).sum()) / n_tokens, rel=1e-2
        )


@pytest.mark.parametrize("layout", ["hf", "hf-fused"])
def test_pruned_is_masked_in_transformers(written, ours, theirs, layout):
    """The pruned file loads with nothing missing, and has the logits of the masked whole one."""
    _, tokens = ours
    pruned = load(written / layout)
    assert pruned.config.num_local_experts == 6
    hooks = masked(theirs, GONE)
    expected = logits_of(theirs, tokens)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(logits_of(pruned, tokens), expected, atol=2e-3, rtol=0)
    assert (expected - logits_of(theirs, tokens)).abs().max() > 1
