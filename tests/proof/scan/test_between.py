"""What comparing tensors shows: experts, routers, layers, storage types."""

from __future__ import annotations

import pytest
import torch

from moetool.proof.scan import Severity
from moetool.tensors import DType

PATH = "layers.{}.feed_forward.experts.{}.{}.weight"
ROUTER = "layers.1.feed_forward.gate.weight"
W1 = PATH.format(2, 1, "w1")
WARNING, ERROR, NOTE = Severity.WARNING, Severity.ERROR, Severity.NOTE


def told(report):
    return [(found.code, found.severity, found.tensor) for found in report.findings]


def test_an_expert_of_zeros_is_dead(look):
    names = [PATH.format(2, 1, w) for w in ("w1", "w2", "w3")]
    report = look({name: lambda v: v.zero_() for name in names})
    assert told(report).count(("dead-expert", ERROR, names[0])) == 1
    assert [code for code, *_ in told(report)].count("zero-tensor") == 3
    assert {(found.layer, found.expert) for found in report.findings} == {(2, 1)}


def test_one_zero_matrix_is_enough_to_be_dead(look):
    name = PATH.format(0, 2, "w2")
    (dead,) = [f for f in look({name: lambda v: v.zero_()}).findings if f.code == "dead-expert"]
    assert dead.reason == "w2 of this expert is zero: its output is always zero"


def test_a_zero_row_of_the_router_names_the_expert(look):
    report = look({ROUTER: lambda v: v[2].zero_()})
    assert ("dead-router-row", ERROR, ROUTER) in told(report)
    assert all(found.rows == (2, 2) for found in report.findings)


def test_equal_rows_of_a_router_are_an_error(look):
    report = look({ROUTER: lambda v: v[2].copy_(v[0])})
    assert told(report) == [("twin-router-rows", ERROR, ROUTER)]
    assert "experts 0 and 2" in report.findings[0].reason


def test_an_expert_written_twice_is_one_finding(look, raw):
    def copy_of(name):
        data = torch.frombuffer(bytearray(raw.data[name]), dtype=torch.bfloat16)
        return lambda values: values.copy_(data.view(values.shape))

    names = {w: (PATH.format(3, 0, w), PATH.format(3, 2, w)) for w in ("w1", "w2", "w3")}
    report = look({later: copy_of(first) for first, later in names.values()})
    assert told(report) == [("duplicate-experts", ERROR, PATH.format(3, 2, "w1"))]
    assert report.findings[0].reason == "the whole expert equals expert 0 of layer 3"

    first, later = names["w3"]
    report = look({later: copy_of(first)})
    assert told(report) == [("duplicate-tensor", ERROR, later)]
    assert report.findings[0].reason == "equals layers.3 expert 0 w3, value for value"


@pytest.mark.parametrize(("factor", "severity"), [(8, WARNING), (1 / 8, WARNING), (128, ERROR)])
def test_a_scaled_matrix_is_found_among_layers_and_experts(look, factor, severity):
    report = look({W1: lambda v: v.mul_(factor)})
    assert ("scale-outlier", severity, W1) in told(report)
    assert {found.tensor for found in report.findings} == {W1}


def test_half_a_model_of_two_layers_is_told_by_the_rest(look, raw):
    from moetool.proof.scan.between import Look, look_between
    from moetool.proof.scan.subjects import find_subject

    items = [item for item in find_subject(raw).items if item.slot.layer in {0, 1}]
    wrong = "layers.0.attention.wq.weight"
    looks = [
        Look(item, -1.0 if item.info.name == wrong else -5.0, False, item.info.name.encode(), None)
        for item in items
        if len(item.info.shape) > 1
    ]
    assert [(f.code, f.tensor) for f in look_between(looks)] == [("scale-outlier", wrong)]


def test_a_norm_unlike_those_of_other_layers_is_a_warning(look):
    name = "layers.3.attention_norm.weight"
    assert told(look({name: lambda v: v.mul_(100)})) == [("norm-outlier", WARNING, name)]


def test_mixed_types_of_a_role_are_a_warning(look):
    name = "layers.3.attention.wo.weight"
    report = look(dtypes={name: DType.F16})
    assert ("mixed-types", WARNING, name) in told(report)
    assert "3 bf16, 1 f16" in report.findings[0].reason


def test_widened_values_are_a_note_for_each_role(look, raw):
    report = look(dtypes=dict.fromkeys(raw.catalog.tensors, DType.F32))
    assert {found.code for found in report.findings} == {"narrow-values"}
    assert report.counts == {"error": 0, "warning": 0, "note": 10}
    assert "fits bf16, though stored as f32; so do all 12 tensors" in str(report.findings)


def test_one_matrix_that_went_through_f16_is_a_warning(look):
    name = "layers.3.attention.wo.weight"  # [512, 96]: large enough to hold small values

    def round_trip(values):
        values.copy_((values * 2**-6).half())

    def smaller(values):
        values.mul_(2**-6)

    others = {f"layers.{n}.attention.wo.weight": smaller for n in range(3)}
    report = look({**others, name: round_trip})
    assert told(report) == [("narrow-values", WARNING, name)]
    assert "3 siblings do not" in report.findings[0].reason


def test_too_few_telling_values_say_nothing(look):
    """The router has no value where f16 rounds, so it may have been f16 or not."""
    assert told(look({ROUTER: lambda v: v.copy_(v.clamp(0.01, 1).half())})) == []
