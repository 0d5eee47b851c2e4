"""Quantising in threads: the same bytes whatever their number, and every error measured."""

from __future__ import annotations

import json
import math

import pytest
import torch

from moetool.convert.execute.manifest import MANIFEST
from moetool.convert.execute.run import Manner
from moetool.convert.job import open_source, prepare
from moetool.convert.quantised import rows
from moetool.convert.quantised.mixes import Quantization, parse_overrides
from moetool.convert.quantised.recipe import Recipe
from moetool.convert.stream import to_bytes
from moetool.convert.synthetic import RandomCheckpoint, random_source
from moetool.convert.targets import find_target
from moetool.errors import LossyCast, PlanChanged, Refused
from moetool.formats import open_checkpoint
from moetool.quant import decode
from moetool.tensors import DType

GGUF = ("gguf", None)
W2 = "layers.1.feed_forward.experts.{}.w2.weight"
EACH_TENSOR = Manner(mark_nbytes=1)


def recipe(mix="q4_k_m", *overrides):
    return Recipe(Quantization(mix, parse_overrides(overrides)))


@pytest.fixture
def small_args(small_args, changed_args):
    return changed_args(small_args, dim=256, head_dim=64, hidden_dim=256)


@pytest.fixture(autouse=True)
def _in_many_pieces(monkeypatch):
    """32 rows at a time: as many pieces of a matrix as a large one has."""
    monkeypatch.setattr(rows, "QUANTISED_NUMEL", 32 * 256)


@pytest.fixture
def changed(small_args, tmp_path):
    """Convert random weights of which some are others, ``{tensor: {index: value}}``."""

    class Changed(RandomCheckpoint):
        def _make(self, name):
            values = torch.frombuffer(bytearray(super()._make(name)), dtype=torch.bfloat16)
            for at, value in self.changes.get(name, {}).items():
                values[at] = value
            return to_bytes(values)

    def make(changes, mix="q4_k_m"):
        source = random_source(small_args, 0, None)
        source.checkpoint.__class__ = Changed
        source.checkpoint.changes = changes
        return prepare(source, find_target(*GGUF), tmp_path / "out", recipe=recipe(mix)).run()

    return make


def test_the_number_of_threads_changes_no_byte(convert, monkeypatch, contents, tmp_path):
    """Of the weights, the digests and the measured error."""
    reports = []
    for n in (1, 5):
        monkeypatch.setattr(rows, "QUANTISERS", n)
        reports.append(convert(GGUF, out=f"{n}/out", recipe=recipe()))
    assert contents(tmp_path / "1" / "out") == contents(tmp_path / "5" / "out")
    assert reports[0].casts == reports[1].casts


def test_the_size_of_a_piece_changes_no_weight(convert, monkeypatch, tmp_path):
    convert(GGUF, out="small/out", recipe=recipe())
    monkeypatch.setattr(rows, "QUANTISED_NUMEL", 1 << 20)
    convert(GGUF, out="large/out", recipe=recipe())
    small, large = ((tmp_path / name / "out" / "out.gguf").read_bytes()
                    for name in ("small", "large"))  # fmt: skip
    assert small == large


def test_nan_and_infinity_are_refused_with_their_number(changed, tmp_path):
    """Of all pieces of all experts of the tensor; nothing has the output's name."""
    changes = {
        W2.format(0): {5: math.nan, 60_000: math.nan, 60_001: math.inf},
        W2.format(2): {0: -math.inf, 7: math.nan, 65_535: math.nan},
    }
    with pytest.raises(LossyCast, match=r"4 weights are NaN and 2 infinite") as refused:
        changed(changes)
    assert refused.value.where == "blk.1.ffn_down_exps.weight"
    assert refused.value.exit_code == 4
    assert "scan" in refused.value.hint
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "out.partial").glob("*.gguf"))


@pytest.mark.parametrize(
    ("mix", "value", "number"),
    [("q8_0", 1e30, 32), ("q8_0", -9e6, 32), ("q4_0", 1e6, 32), ("q4_k_m", 1e30, 1),
     ("q2_k", 1e30, 1)],
)  # fmt: skip
def test_weights_beyond_what_a_scale_reaches_are_refused(changed, tmp_path, mix, value, number):
    """llama.cpp writes blocks of infinity, or of zeros where its search overflows first."""
    changes = {W2.format(1): {300: value, 300 + 256 * 100: value}}
    with pytest.raises(LossyCast, match=f"{2 * number} weights are beyond q") as refused:
        changed(changes, mix)
    assert refused.value.where == "blk.1.ffn_down_exps.weight"
    assert not (tmp_path / "out").exists()


def test_what_a_scale_just_reaches_is_stored(changed, tmp_path):
    report = changed({W2.format(1): {300: 8e6}}, "q8_0")
    (role,) = [role for role in report.casts.quantised if "ffn_down" in role.tensors]
    assert 1 < role.max_abs < 8e6 / 127


def errors(x, y):
    """Relative RMS, largest error and cosine, by their formulas in float64."""
    x, y = x.double().flatten(), y.double().flatten()
    off = y - x
    return (
        float(off.square().sum() / x.square().sum()) ** 0.5,
        float(off.abs().max()),
        float(x @ y / (x.norm() * y.norm())),
    )


def read_values(folder):
    """All tensors of a checkpoint as float32, blocks decoded."""
    with open_checkpoint(folder) as checkpoint:
        found = {}
        for name, info in checkpoint.catalog.tensors.items():
            raw = torch.frombuffer(bytearray(checkpoint.read(name)), dtype=torch.uint8)
            if info.dtype.block_size > 1:
                found[name] = decode(raw, info.dtype)
            else:
                plain = {DType.F32: torch.float32, DType.BF16: torch.bfloat16}[info.dtype]
                found[name] = raw.view(plain).float()
        return found


@pytest.mark.parametrize("mix", ["q4_k_m", "q8_0"])
def test_the_reported_error_is_the_error(convert, tmp_path, mix):
    """By role and type, the worst tensor of each, and every tensor in the manifest."""
    convert(GGUF, out="plain/out")
    casts = convert(GGUF, recipe=recipe(mix)).casts
    before, after = read_values(tmp_path / "plain" / "out"), read_values(tmp_path / "out")
    table = json.loads((tmp_path / "out" / MANIFEST).read_text())["tensors"]
    numbers = {name: errors(before[name], after[name]) for name in before}
    close = {"rel": 1e-5}
    for name, (rel_rms, max_abs, cosine) in numbers.items():
        cast = table[name].get("cast") or {}
        if DType[table[name]["dtype"].upper()].block_size == 1:
            assert "rel_rms" not in cast
            continue
        assert cast["from"] == "bf16"
        assert cast["to"] == table[name]["dtype"]
        assert cast["numel"] == before[name].numel()
        assert cast["rel_rms"] == pytest.approx(rel_rms, **close)
        assert cast["max_abs"] == pytest.approx(max_abs, **close)
        assert cast["cosine"] == pytest.approx(cosine, **close)
    told = 0
    for role in casts.quantised:
        pattern = role.tensors.split("#")
        members = [name for name in numbers if table[name]["dtype"] == role.dtype
                   and name.startswith(pattern[0]) and name.endswith(pattern[-1])]  # fmt: skip
        told += len(members)
        assert role.n_tensors == len(members)
        x, y = (torch.cat([values[name] for name in members]) for values in (before, after))
        found = (role.rel_rms, role.max_abs, role.cosine)
        assert found == pytest.approx(errors(x, y), **close)
        assert role.worst == max(members, key=lambda name: numbers[name][0])
        assert role.worst_rel_rms == pytest.approx(numbers[role.worst][0], **close)
    assert told == sum("rel_rms" in (entry.get("cast") or {}) for entry in table.values())


def test_stopped_and_run_again_it_is_the_same_file_and_report(
    convert, failing_after, stop, contents, tmp_path
):
    """The errors of what an earlier run wrote come out of the journal."""
    whole = convert(GGUF, out="whole/out", recipe=recipe())
    with pytest.raises(stop):
        convert(GGUF, EACH_TENSOR, failing_after(14, stop()), recipe=recipe())
    again = convert(GGUF, EACH_TENSOR, recipe=recipe())
    assert again.resumed_nbytes > 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole" / "out")
    assert sorted(again.casts.quantised, key=str) == sorted(whole.casts.quantised, key=str)
    assert again.casts.total == whole.casts.total


def test_another_mix_does_not_go_on_with_it(convert, failing_after, stop):
    """What was begun is named, and stays."""
    with pytest.raises(stop):
        convert(GGUF, EACH_TENSOR, failing_after(12, stop()), recipe=recipe())
    with pytest.raises(PlanChanged) as refused:
        convert(GGUF, EACH_TENSOR, recipe=recipe("q4_k_s"))
    assert any("q4_k_m" in finding for finding in refused.value.findings)
    assert convert(GGUF, EACH_TENSOR, recipe=recipe()).resumed_nbytes > 0


@pytest.fixture
def quantised(convert, tmp_path):
    """A quantised GGUF as the source of a conversion."""
    convert(GGUF, out="source", recipe=recipe("q8_0"))

    def make(asked, out="again"):
        with open_checkpoint(tmp_path / "source") as checkpoint:
            source = open_source(checkpoint)
            return prepare(source, find_target(*GGUF), tmp_path / out, recipe=asked).run()

    return make


def test_nothing_is_quantised_twice(quantised, tmp_path):
    """Blocks of another type are refused: what was lost is not known any more."""
    with pytest.raises(Refused, match="q8_0 already, and would be quantised twice"):
        quantised(recipe("q4_k_m"))
    assert not list(tmp_path.glob("again*"))


def test_blocks_of_the_same_type_are_copied(quantised, tmp_path):
    report = quantised(recipe("q8_0"))
    assert report.copied_nbytes == report.nbytes
    assert report.casts is None
    with open_checkpoint(tmp_path / "source") as a, open_checkpoint(tmp_path / "again") as b:
        assert a.catalog.tensors == b.catalog.tensors
        assert all(bytes(a.read(name)) == bytes(b.read(name)) for name in a.catalog.tensors)
