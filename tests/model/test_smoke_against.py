"""With the source at hand: every mutation is caught and the culprit named, no conversion alarms."""

from __future__ import annotations

import pytest
import torch

from moetool.arch.mixtral import MISTRAL, MIXTRAL
from moetool.arch.recognize import Recognized
from moetool.arch.schema import expand
from moetool.convert.plan import derive_steps
from moetool.convert.stream import stream
from moetool.errors import Refused
from moetool.model.smoke import SmokeTest, Verdict
from moetool.model.smoke.against import CHECKS
from moetool.tensors import Catalog, DType

from .smoke_mutations import MUTATIONS, halves, through, zero_expert

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
def beside(damaged, source, tiny_release):
    """Put a damaged copy beside the source; give the failed checks by name, and all of them."""

    def run(damage=None, folder=None, **args):
        test = SmokeTest(
            *damaged(damage, **args), folder or tiny_release, CPU, dtype=source.weights.dtype
        )
        test.scan(quiet, widened=True)
        test.compare(source, quiet)
        checks = {check.name: check for check in test.checks if check.name in NAMES}
        assert len(checks) == len(CHECKS)
        return {n: c.detail for n, c in checks.items() if c.verdict is Verdict.FAIL}, test

    return run


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
