"""The trained tiny release, broken on purpose: the smoke test must say no, and say where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moetool.arch.mixtral import MISTRAL, MIXTRAL
from moetool.arch.recognize import Recognized
from moetool.arch.schema import expand
from moetool.convert.ops import Halve
from moetool.convert.plan import derive_steps
from moetool.convert.stream import stream, to_torch
from moetool.model import mixtral
from moetool.model.generate import generate
from moetool.model.mixtral import Probe
from moetool.model.smoke import SmokeTest, Verdict
from moetool.release.fixture import find_fixture
from moetool.release.manifest import find_release
from moetool.tensors import Catalog

CPU = torch.device("cpu")
LAYOUTS = ["mistral", "mistral-packed", "hf", "hf-fused", "gguf", "gguf-split"]


@pytest.fixture(scope="module")
def golden_arrays():
    numpy = pytest.importorskip("numpy", reason="golden.npz holds numpy arrays")
    arrays = numpy.load(find_fixture().torrent.parent / "golden.npz")
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture
def smoke(damaged, tiny_release):
    """Run all checks on the release after ``damage(tensors, args)``; failed checks by name."""

    def run(damage=None, dtype=None, **args):
        test = SmokeTest(*damaged(damage, **args), tiny_release, CPU, dtype=dtype)
        test.scan(lambda _done, _note: None)
        test.observe(lambda _done, _note: None)
        report = test.report(tiny_release)
        failed = {c.name: c.detail for c in report.checks if c.verdict is Verdict.FAIL}
        assert report.ok == (not failed)
        return failed

    return run


def swap_w1_w3(tensors, _args):
    for name in [name for name in tensors if name.endswith("w1.weight")]:
        other = name.replace("w1", "w3")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def permute(tensors, args):
    """Put q and k rows in halves, as a Hugging Face file has them: once too often."""
    for name, tensor in tensors.items():
        if name.endswith(("wq.weight", "wk.weight")):
            heads = args.n_heads if "wq" in name else args.n_kv_heads
            order = Halve(heads).order(args.head_dim)
            tensors[name] = tensor.view(heads, args.head_dim, -1)[:, order].reshape(tensor.shape)


def permute_twice(tensors, args):
    permute(tensors, args)
    permute(tensors, args)


def rotate_experts(tensors, args):
    old = dict(tensors)
    for name in old:
        if ".experts." in name:
            head, rest = name.split(".experts.")
            expert, matrix = rest.split(".", 1)
            after = (int(expert) + 1) % args.n_experts
            tensors[name] = old[f"{head}.experts.{after}.{matrix}"]


@pytest.mark.parametrize("damage", [swap_w1_w3, permute, permute_twice, rotate_experts])
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_wrong_layouts_show_in_the_loss_alone(smoke, damage, dtype):
    """All bits are sound and every shape fits: only the loss on the text can say no."""
    failed = set(smoke(damage, dtype))
    assert "loss band" in failed
    assert failed <= {"loss band", "loss"}


def test_theta_10000_shows_in_the_config_and_in_the_loss(smoke):
    failed = smoke(rope_theta=1e4)
    assert set(failed) == {"rope_theta", "loss band"}
    assert failed["rope_theta"] == "10000 (assumed, no file says it), tiny-mixtral-8x1m has 1e+06"


def test_values_that_no_shape_shows_are_compared(smoke):
    assert "norm_eps" in smoke(norm_eps=1e-6)
    assert "n_experts_per_tok" in smoke(n_experts_per_tok=1)
    assert "max_seq_len" in smoke(max_seq_len=4096)


@pytest.mark.parametrize(
    ("name", "row", "column", "where"),
    [
        ("tok_embeddings.weight", 700, 9, "tok_embeddings row 700 column 9"),
        ("layers.0.attention.wk.weight", 3, 0, "layers.0 wk row 3 column 0"),
        ("layers.1.attention_norm.weight", None, 5, "layers.1 attention_norm row 0 column 5"),
        ("layers.2.feed_forward.gate.weight", 7, 100, "layers.2 router row 7 column 100"),
        ("layers.3.feed_forward.experts.6.w2.weight", 1, 2, "layers.3 expert 6 w2 row 1 column 2"),
        ("norm.weight", None, 255, "norm row 0 column 255"),
        ("output.weight", 0, 0, "output row 0 column 0"),
    ],
)
def test_one_nan_anywhere_fails_and_is_named(smoke, name, row, column, where):
    def damage(tensors, _args):
        tensors[name][column if row is None else (row, column)] = float("nan")

    failed = smoke(damage)
    assert failed["no NaN"] == where


def test_a_nan_is_traced_to_the_first_layer_and_part(smoke):
    def damage(tensors, _args):
        tensors["layers.2.attention.wo.weight"][0, 0] = float("nan")

    assert smoke(damage)["finite layers"] == "first not finite: layers.2 attention"


def test_a_zeroed_expert_fails_though_it_still_talks(smoke):
    def damage(tensors, _args):
        for matrix in ("w1", "w2", "w3"):
            tensors[f"layers.2.feed_forward.experts.5.{matrix}.weight"].zero_()

    failed = smoke(damage)
    assert "layers.2 expert 5 w1 row 0" in failed["no zero rows"]


def test_an_expert_written_twice_fails(smoke):
    def damage(tensors, _args):
        for matrix in ("w1", "w2", "w3"):
            name = f"layers.0.feed_forward.experts.{{}}.{matrix}.weight"
            tensors[name.format(4)] = tensors[name.format(3)].clone()

    assert "layers.0 expert 3 w1 = layers.0 expert 4 w1" in smoke(damage)["no duplicates"]


def test_the_sound_release_passes_in_bf16_and_in_float32(smoke):
    assert smoke() == {}
    assert smoke(dtype=torch.float32) == {}


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_cache_that_loses_positions_fails(smoke, monkeypatch, dtype):
    """Single tokens see the later half of what is cached: all else is as it should be."""
    attend = mixtral.attend

    def forgetful(q, k, v, window):
        first = k.shape[1] // 2 if len(q) == 1 else 0
        return attend(q, k[:, first:], v[:, first:], window)

    monkeypatch.setattr(mixtral, "attend", forgetful)
    assert set(smoke(dtype=dtype)) == {"cached = one pass"}


def relayout(sound, name):
    checkpoint, recognized = sound
    convention = MIXTRAL.convention(name)
    layout = expand(convention, recognized.args)
    raw = expand(MISTRAL, recognized.args)
    steps = derive_steps(checkpoint.catalog, raw, layout, recognized.args)
    tensors = {
        step.target.name: to_torch(
            b"".join(map(bytes, stream(checkpoint, step))), step.target.dtype, step.target.shape
        )
        for step in steps
    }
    catalog = Catalog("memory", {step.target.name: step.target for step in steps}, {})
    return type(checkpoint)(catalog, tensors), Recognized(
        MIXTRAL, convention, recognized.args, layout
    )


def test_raw_and_converted_pass_with_equal_logits(sound, tiny_release):
    logits, losses = [], set()
    for layout in LAYOUTS:
        checkpoint, recognized = relayout(sound, layout)
        test = SmokeTest(checkpoint, recognized, tiny_release, CPU)
        test.scan(lambda _done, _note: None)
        test.observe(lambda _done, _note: None)
        assert test.report(Path(layout)).ok
        (once,) = test.prompts("Once there was")
        logits.append(test.model.forward(torch.tensor(once.tokens), test.model.new_cache(64)))
        losses.add(next(check.value for check in test.checks if check.name == "loss"))
    assert all(torch.equal(logits[0], each) for each in logits[1:])
    assert len(losses) == 1


class Routes(Probe):
    """A probe that keeps what the routers chose."""

    def __init__(self):
        self.seen = []

    def routed(self, layer, routing):
        assert layer == len(self.seen)
        self.seen.append(routing)


def test_a_small_budget_changes_nothing_but_the_bytes_read(sound, tiny_release):
    """A megabyte for 15 MB of weights: the same loss to the last bit, from more reading."""
    checkpoint, recognized = sound
    reports = []
    for budget in (1 << 30, 1 << 20):
        test = SmokeTest(checkpoint, recognized, tiny_release, CPU, budget=budget)
        test.scan(lambda _done, _note: None)
        test.observe(lambda _done, _note: None)
        reports.append(test.report(tiny_release))
    resident, streamed = reports
    assert resident.checks == streamed.checks
    assert (resident.figures.weights_resident, streamed.figures.weights_resident) == (True, False)
    assert resident.figures.weights_nbytes_read <= resident.figures.weights_nbytes
    assert streamed.figures.weights_nbytes_read > resident.figures.weights_nbytes


def test_logits_and_routing_are_those_of_transformers(sound, golden_arrays, tiny_release):
    """Golden float32 logits: equal to 1e-4, where they deviate by several units."""
    checkpoint, recognized = sound
    test = SmokeTest(checkpoint, recognized, tiny_release, CPU, dtype=torch.float32)
    names = ("ids", "logits", "experts", "weights")
    for ids, logits, experts, weights in zip(*(golden_arrays[n] for n in names), strict=True):
        routes = Routes()
        ours = test.model.forward(ids.long(), test.model.new_cache(len(ids)), routes)
        assert logits.std() > 1
        assert (ours - logits).abs().max() < 1e-4
        for routing, best, shares in zip(routes.seen, experts, weights, strict=True):
            assert torch.equal(routing.experts_TA, best.long())
            assert (routing.weights_TA - shares).abs().max() < 1e-4


def test_greedy_continuations_are_those_of_transformers(sound, golden, tiny_release):
    checkpoint, recognized = sound
    test = SmokeTest(checkpoint, recognized, tiny_release, CPU, dtype=torch.float32)
    assert len(golden["greedy"]) >= 4
    for domain, entry in golden["greedy"].items():
        (writing,) = test.prompts(entry["prompt"])
        ids = writing.tokens
        assert ids == entry["prompt_ids"]
        made = list(generate(test.model, ids, len(entry["output_ids"])))
        assert made == entry["output_ids"], domain
        stream = test.subject.tokenizer.stream(ids)
        assert "".join(map(stream.push, made)) + stream.flush() == entry["output"]
        assert writing.prompt == entry["prompt"]


def test_the_loss_is_that_of_transformers(sound, golden, tiny_release):
    checkpoint, recognized = sound
    for dtype, key, noise in (
        (torch.float32, "loss_float32", 1e-5),
        (torch.bfloat16, "loss_bfloat16", 5e-3),
    ):
        test = SmokeTest(checkpoint, recognized, tiny_release, CPU, dtype=dtype)
        test.observe(lambda _done, _note: None)
        loss = next(check.value for check in test.checks if check.name == "loss")
        assert abs(loss - golden["smoke"][key]) < noise


def test_the_band_lies_between_noise_and_damage(golden):
    """Twice the noise of bf16 fits in; the mildest of the damages does not come near."""
    low, high = find_release("tiny-mixtral-8x1m").smoke.loss
    smoke = golden["smoke"]
    sound = (smoke["loss_float32"], smoke["loss_bfloat16"])
    noise = abs(sound[0] - sound[1])
    assert low + 2 * noise < min(sound)
    assert max(sound) < high - 2 * noise
    assert min(smoke["loss_damaged"].values()) > high + 0.05
