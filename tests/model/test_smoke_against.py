"""With the source at hand: every mutation is caught and the culprit named, no conversion alarms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moetool.arch.mixtral import MISTRAL, MIXTRAL
from moetool.arch.recognize import Recognized
from moetool.arch.schema import expand
from moetool.convert.ops import Halve
from moetool.convert.plan import derive_steps
from moetool.convert.stream import stream
from moetool.errors import Refused
from moetool.model.smoke import SmokeTest, Verdict
from moetool.model.smoke.against import CHECKS
from moetool.tensors import Catalog, DType

CPU = torch.device("cpu")
NAMES = {"same settings", "same tokenizer", "same values", "lockstep"}


def quiet(_done, _note):
    """No progress."""


@pytest.fixture(scope="module")
def source(sound, tiny_release):
    """The release, scanned."""
    checkpoint, recognized = sound
    test = SmokeTest(checkpoint, recognized, tiny_release, CPU)
    test.scan(quiet, widened=True)
    return test


@pytest.fixture
def beside(sound, source, tiny_release):
    """Put a damaged copy beside the source; give the failed checks by name, and all of them."""

    def run(damage=None, folder=None, **args):
        checkpoint, recognized = sound
        tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
        changed = replace(recognized.args, **args)
        if damage:
            damage(tensors, changed)
        test = SmokeTest(
            type(checkpoint)(checkpoint.catalog, tensors), replace(recognized, args=changed),
            folder or tiny_release, CPU, dtype=source.weights.dtype,
        )  # fmt: skip
        test.scan(quiet, widened=True)
        test.compare(source, quiet)
        checks = {check.name: check for check in test.checks if check.name in NAMES}
        assert len(checks) == len(CHECKS)
        return {n: c.detail for n, c in checks.items() if c.verdict is Verdict.FAIL}, test

    return run


def expert(layer, number, matrix):
    return f"layers.{layer}.feed_forward.experts.{number}.{matrix}.weight"


def flip(name, bit):
    def damage(tensors, _args):
        bits = tensors[name].view(torch.int16).view(-1)
        bits[int(tensors[name].view(-1).float().abs().argmax())] ^= 1 << bit

    return damage


def through(dtype):
    def damage(tensors, _args):
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(dtype).to(tensor.dtype)

    return damage


def zero_expert(tensors, _args):
    for matrix in ("w1", "w2", "w3"):
        tensors[expert(2, 5, matrix)].zero_()


def swap(pairs):
    def damage(tensors, _args):
        for one, other in pairs:
            tensors[one], tensors[other] = tensors[other], tensors[one]

    return damage


def experts_3_and_5(tensors, args):
    swap([(expert(2, 3, w), expert(2, 5, w)) for w in ("w1", "w2", "w3")])(tensors, args)


def gate_and_up(layers):
    def damage(tensors, args):
        swap([(expert(n, e, "w1"), expert(n, e, "w3")) for n in layers
              for e in range(args.n_experts)])(tensors, args)  # fmt: skip

    return damage


def copy_expert(tensors, _args):
    for matrix in ("w1", "w2", "w3"):
        tensors[expert(0, 4, matrix)] = tensors[expert(0, 3, matrix)].clone()


def halves(layers):
    def damage(tensors, args):
        for layer in layers:
            for role, heads in (("wq", args.n_heads), ("wk", args.n_kv_heads)):
                name = f"layers.{layer}.attention.{role}.weight"
                order = Halve(heads).order(args.head_dim)
                shape = tensors[name].shape
                tensors[name] = (
                    tensors[name].view(heads, args.head_dim, -1)[:, order].reshape(shape)
                )

    return damage


def roll_kv_heads(tensors, args):
    for role in ("wk", "wv"):
        name = f"layers.1.attention.{role}.weight"
        tensors[name] = tensors[name].roll(args.head_dim, 0)


def permute_router(tensors, _args):
    name = "layers.1.feed_forward.gate.weight"
    tensors[name] = tensors[name].roll(1, 0)


MUTATIONS = {
    "one mantissa bit": (flip(expert(1, 6, "w3"), 0), {}, "layers.1 expert 6"),
    "through f8": (through(torch.float8_e4m3fn), {}, "embeddings"),
    "a zeroed expert": (zero_expert, {}, "layers.2 expert 5"),
    "norms of a layer swapped": (
        swap([("layers.1.attention_norm.weight", "layers.1.ffn_norm.weight")]), {},
        "layers.1 attention"),
    "two experts swapped": (experts_3_and_5, {}, "layers.2 expert"),
    "w1 and w3 swapped in a layer": (gate_and_up([1]), {}, "layers.1 expert"),
    "an exponent bit": (flip(expert(2, 1, "w2"), 13), {}, "layers.2 expert 1"),
    "w1 and w3 swapped": (gate_and_up(range(3)), {}, "layers.0 expert"),
    "kv heads rolled": (roll_kv_heads, {}, "layers.1 attention"),
    "an expert twice": (copy_expert, {}, "layers.0 expert 4"),
    "the permutation missed in a layer": (halves([2]), {}, "layers.2 attention"),
    "the permutation missed": (halves(range(3)), {}, "layers.0 attention"),
    "router rows permuted": (permute_router, {}, "layers.1 router"),
    "norm_eps": (None, {"norm_eps": 1e-3}, "layers.0 attention"),
    "theta": (None, {"rope_theta": 1e4}, "layers.0 attention"),
    "experts for each token": (None, {"n_experts_per_tok": 1}, "feed forward"),
}  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_is_caught_and_its_part_is_named(beside, mutation):
    """By its values or settings, and by what it computes; the first part that differs is it."""
    damage, args, named = MUTATIONS[mutation]
    failed, _ = beside(damage, **args)
    assert ("same values" if damage else "same settings") in failed
    assert failed["lockstep"].startswith(named) or named == "feed forward" in failed["lockstep"]


def test_only_the_part_at_fault_is_named(beside):
    """What a damaged layer does to those behind it does not count for them."""
    _, test = beside(zero_expert)
    (part,) = test._pair.lockstep.differing
    assert (part.layer, part.expert, part.relative, part.cosine) == (2, 5, 1.0, 0.0)
    _, test = beside(halves([0]))
    assert {(part.layer, part.name) for part in test._pair.lockstep.differing} == {(0, "attention")}


def test_bf16_through_f16_is_another_model(beside):
    """Values that underflowed; the same type stores the source's values, so it has no excuse."""
    failed, _ = beside(through(torch.float16))
    assert "same values" in failed


def test_the_tokenizer_of_another_model(beside, source, tiny_release, tmp_path):
    """A piece is another, and all else the same."""
    content = bytearray((tiny_release / "tokenizer.model").read_bytes())
    piece = source.subject.tokenizer.piece(500)[0].encode()
    content[content.index(piece) + len(piece) - 1] ^= 1
    (tmp_path / "tokenizer.model").write_bytes(content)
    failed, _ = beside(folder=tmp_path)
    assert set(failed) == {"same tokenizer"}


def test_a_sound_copy_has_nothing_to_say(beside):
    failed, test = beside()
    assert not failed
    assert not test._pair.lockstep.differing


@pytest.mark.parametrize("dtype", [None, DType.F32, DType.F16])
@pytest.mark.parametrize("layout", [c.name for c in MIXTRAL.conventions])
def test_good_conversions_raise_no_alarm(sound, source, tiny_release, layout, dtype):
    """All layouts, kept, widened, and rounded to f16, which is judged by its band."""
    checkpoint, recognized = sound
    convention, args = MIXTRAL.convention(layout), recognized.args
    table = expand(convention, args)
    steps = derive_steps(checkpoint.catalog, expand(MISTRAL, args), table, args, dtype=dtype)
    infos = {step.target.name: step.target for step in steps}
    held = Bytes(
        Catalog(convention.file_format, infos, {}),
        {step.target.name: b"".join(stream(checkpoint, step)) for step in steps},
    )
    test = SmokeTest(
        held, Recognized(MIXTRAL, convention, args, table), tiny_release, CPU,
        dtype=source.weights.dtype,
    )  # fmt: skip
    test.scan(quiet, widened=True)
    test.compare(source, quiet)
    checks = {check.name: check for check in test.checks if check.name in NAMES}
    assert not [check for check in checks.values() if check.verdict is Verdict.FAIL]
    equal = "equal to the last bit" in checks["lockstep"].detail
    assert equal == (dtype is not DType.F16)


class Bytes:
    """Stored bytes as a checkpoint."""

    def __init__(self, catalog, data):
        self.catalog, self.data = catalog, data

    def read(self, name, start=0, stop=None):
        return self.data[name][start:stop]


def test_other_shapes_cannot_be_compared(source, random_checkpoint, small_args, tmp_path):
    """Refused with the dimension, before anything is computed."""
    held = random_checkpoint()
    test = SmokeTest(
        held, Recognized(MIXTRAL, MISTRAL, small_args, expand(MISTRAL, small_args)), tmp_path, CPU
    )
    test.scan(quiet, widened=True)
    with pytest.raises(Refused, match="dim is 24"):
        test.compare(source, quiet)
