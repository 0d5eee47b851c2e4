"""Golden results: to the last bit where they were recorded, elsewhere within a band."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from moetool.errors import BadHeader, OutputExists, Refused
from moetool.model.smoke import SmokeTest, Verdict, golden
from moetool.model.smoke.golden_file import parse

from .smoke_mutations import MUTATIONS, zero_expert

CPU = torch.device("cpu")
# What L0, L1 and L3 say no to where neither a source nor golden results are at hand.
CAUGHT_ALONE = 11
# What golden results of another machine say no to: all but four that stay within its rounding.
WITHIN_ROUNDING = {"one mantissa bit", "an exponent bit", "a zeroed expert", "two experts swapped"}


def quiet(_done, _note):
    """No progress."""


@pytest.fixture(scope="module")
def run(damaged, tiny_release):
    """Run all checks but those of a source, after a damage."""

    def make(damage=None, dtype=None, **args):
        test = SmokeTest(*damaged(damage, **args), tiny_release, CPU, dtype=dtype)
        test.scan(quiet)
        test.observe(quiet)
        return test

    return make


@pytest.fixture(scope="module")
def mutants(run):
    """Every mutation, run once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {name: run(damage, **args) for name, (damage, args, _) in MUTATIONS.items()}
    torch.set_num_threads(threads)
    return found


@pytest.fixture(scope="module")
def recorded(run, tmp_path_factory):
    """The sound release, run once, and its golden file."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("golden") / "golden.json"
    test = run()
    test.record(path)
    torch.set_num_threads(threads)
    return test, path


def expect(test, path):
    """The check of a run against a golden file."""
    test.expect(test.read_golden(path))
    return test._more.pop()


def elsewhere(results):
    """The same results, recorded on another machine."""
    return replace(results, fingerprint=replace(results.fingerprint, cpu="another"))


def test_a_second_run_is_equal_to_the_last_bit(run, recorded):
    check = expect(run(), recorded[1])
    assert check.verdict is Verdict.PASS
    assert check.detail == "4 layers over 910 tokens, equal to the last bit"


def test_every_mutation_differs_where_it_is(mutants, recorded):
    """Even one mantissa bit; the layer that is named is the one that was damaged."""
    _, path = recorded
    for mutation, test in mutants.items():
        check, culprit = expect(test, path), MUTATIONS[mutation][2]
        assert check.verdict is Verdict.FAIL, mutation
        layer, _, part = culprit.partition(" ")
        if layer.startswith("layers."):
            half = "experts" if part.startswith("expert") else part
            assert check.value == f"{layer} {half}", mutation
        else:
            assert check.value.startswith("layers.0 "), mutation


def test_another_machine_is_judged_by_a_band(run, mutants, recorded):
    """Float32 for bf16 moves more than another CPU does, and it fits; most mutations do not."""
    theirs = elsewhere(recorded[0]._golden())
    fine = replace(run(dtype=torch.float32)._golden(), dtype="bfloat16")
    check = golden.compare(theirs, fine)
    assert check.verdict is Verdict.PASS, check.detail
    assert "recorded elsewhere: cpu another for" in check.detail
    passed = {
        mutation
        for mutation, test in mutants.items()
        if golden.compare(theirs, test._golden()).verdict is Verdict.PASS
    }
    assert passed == WITHIN_ROUNDING


def test_a_loss_that_is_no_number_is_outside_every_band(recorded):
    ours = recorded[0]._golden()
    for loss in (float("nan"), ours.loss + 1):
        check = golden.compare(elsewhere(ours), replace(ours, loss=loss))
        assert (check.verdict, check.value) == (Verdict.FAIL, "output")


def test_what_is_caught_without_a_source_is_as_documented(mutants):
    """docs/explanation/runner.md has this count, and the names of those that are not."""
    caught = {name for name, test in mutants.items() if not test.report(test.directory).ok}
    assert len(caught) == CAUGHT_ALONE
    assert set(MUTATIONS) - caught == {
        "one mantissa bit", "through f8", "norms of a layer swapped", "two experts swapped",
        "an exponent bit",
    }  # fmt: skip


def test_nothing_is_recorded_of_a_damaged_model_and_no_file_is_replaced(run, recorded, tmp_path):
    test = run(zero_expert)
    test.record(tmp_path / "golden.json")
    assert test._more.pop().detail == "not recorded: a check said no"
    assert not (tmp_path / "golden.json").exists()
    sound, path = recorded
    before = path.read_bytes()
    with pytest.raises(OutputExists):
        sound.record(path)
    assert path.read_bytes() == before


def test_the_file_says_what_was_run_and_where(recorded):
    test, path = recorded
    table = json.loads(path.read_text())
    assert (table["schema"], table["version"]) == ("moetool.golden", 2)
    assert (table["text"], table["n_tokens"], table["dtype"]) == ("tiny-mixtral", 910, "bfloat16")
    assert table["fingerprint"]["torch"] == torch.__version__
    assert table["fingerprint"]["threads"] == "1"
    assert parse(path.read_bytes(), "it") == test._golden()


@pytest.mark.parametrize(
    ("field", "value"),
    [("dtype", "float32"), ("text", "english"), ("n_tokens", 128)],
)
def test_another_run_is_refused_before_it_is_run(recorded, tmp_path, field, value):
    test, path = recorded
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(Refused) as refused:
        test.read_golden(other)
    (finding,) = refused.value.findings
    assert str(value) in finding


def test_another_geometry_is_refused_and_other_ids_are_a_finding(recorded, tmp_path):
    test, path = recorded
    table = json.loads(path.read_text())
    other = tmp_path / "other.json"
    table["geometry"]["hidden_dim"] = 512
    other.write_text(json.dumps(table))
    with pytest.raises(Refused) as refused:
        test.read_golden(other)
    assert refused.value.findings == ("hidden_dim: 256, recorded: 512",)
    check = golden.compare(replace(test._golden(), tokens="0" * 32), test._golden())
    assert (check.verdict, check.detail) == (Verdict.FAIL, "other token ids for tiny-mixtral.txt")


HOSTILE = {
    "empty": lambda _: b"",
    "no object": lambda _: b"[]",
    "deep": lambda _: b'{"a":' * 100_000,
    "a report": lambda t: {**t, "schema": "moetool.smoke-test"},
    "a later version": lambda t: {**t, "version": 3},
    "a loss of NaN": lambda t: {**t, "loss": float("nan")},
    "a loss of infinity": lambda t: {**t, "loss": float("inf")},
    "a loss of text": lambda t: {**t, "loss": "0.5"},
    "a truth for a count": lambda t: {**t, "n_tokens": True},
    "a negative count": lambda t: {**t, "n_tokens": -1},
    "an unknown type": lambda t: {**t, "dtype": "int8"},
    "layers that are none": lambda t: {**t, "layers": {}},
    "a layer that is none": lambda t: {**t, "layers": [1, 2, 3, 4]},
    "too few layers": lambda t: {**t, "layers": t["layers"][:3]},
    "a load of other length": lambda t: {**t, "layers": [{**t["layers"][0], "load": [1]}] * 4},
    "a load of fractions": lambda t: {**t, "layers": [{**t["layers"][0], "load": [0.5] * 8}] * 4},
    "no geometry": lambda t: {**t, "geometry": None},
    "no fingerprint": lambda t: {k: v for k, v in t.items() if k != "fingerprint"},
    "an endless name": lambda t: {**t, "fingerprint": {**t["fingerprint"], "cpu": "x" * 10_000}},
    "a key twice": lambda t: json.dumps(t).replace('{"schema"', '{"loss": 0.1, "schema"').encode(),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_malformed_file_is_refused(recorded, case):
    """Each is made of the sound file by one change."""
    table = json.loads(recorded[1].read_text())
    made = HOSTILE[case](table)
    raw = made if isinstance(made, bytes) else json.dumps(made).encode()
    with pytest.raises(BadHeader):
        parse(raw, "it")
