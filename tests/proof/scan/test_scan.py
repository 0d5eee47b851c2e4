"""The scan as a whole: every layout, one read, what is unknown and what is not covered."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moetool.convert.job import open_source, prepare
from moetool.convert.targets import TARGETS
from moetool.formats import open_checkpoint
from moetool.proof.scan import Severity, measures, scan
from moetool.tensors import DType, TensorInfo

from .conftest import ARGS, edited

LAYOUTS = ("mistral-packed", "hf", "hf-fused")


@pytest.mark.parametrize(
    "target", TARGETS, ids=lambda target: f"{target.file_format}-{target.convention}"
)
def test_the_trained_release_is_clean_in_every_layout(tiny_release, tmp_path, target):
    with open_checkpoint(tiny_release) as checkpoint:
        prepare(open_source(checkpoint), target, tmp_path / "out").run()
    with open_checkpoint(tmp_path / "out") as checkpoint:
        report = scan(checkpoint)
    assert report.findings == ()
    assert (report.layout, report.n_tensors, report.not_covered) == (target.convention, 127, ())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fault_in_another_layout_has_both_names(laid_out, layout):
    held = laid_out(layout)
    endings = ("layers.1.attention.wo.weight", "layers.1.self_attn.o_proj.weight")
    stored = next(name for name in held.catalog.tensors if name.endswith(endings))

    def nan(values):
        values[3, 4] = float("nan")

    (found,) = scan(edited(held, {stored: nan})).findings
    assert found.tensor == "layers.1.attention.wo.weight"
    assert found.stored == ("" if stored == found.tensor else stored)
    assert (found.place, found.layer) == ("row 3 column 4", 1)


def test_a_fault_in_a_stacked_expert_is_named_within_it(laid_out):
    held = laid_out("hf-fused")
    stored = "model.layers.2.mlp.experts.gate_up_proj"  # [3, 80, 512]

    def zero(values):
        values[1, 45:47] = 0

    (found,) = scan(edited(held, {stored: zero})).findings
    assert (found.code, found.tensor, found.stored, found.rows) == (
        "zero-rows", "layers.2.feed_forward.experts.1.w3.weight", stored, (5, 6),
    )  # fmt: skip


def test_each_byte_is_read_once(raw):
    held = replace(raw, reads=[])
    report = scan(held)
    assert sum(stop - start for _, start, stop in held.reads) == raw.catalog.nbytes == report.nbytes


def test_pieces_do_not_change_what_is_found(look, monkeypatch):
    w1, w2 = (f"layers.2.feed_forward.experts.1.{w}.weight" for w in ("w1", "w2"))

    def nan(values):
        values[17, 31] = float("nan")

    def rows(values):
        values[20:25] *= 64
        values[100:300] = 0

    whole = look({w1: nan, w2: rows}).findings
    monkeypatch.setattr(measures, "PIECE", 1)
    assert look({w1: nan, w2: rows}).findings == whole
    assert len(whole) == 3


def test_findings_are_the_worst_first(look):
    names = [f"layers.{n}.attention.wo.weight" for n in range(4)]

    def nan(values):
        values[0, 0] = float("nan")

    report = look({names[0]: lambda v: v[7].mul_(16), names[3]: nan})
    assert [found.severity for found in report.findings] == [Severity.ERROR, Severity.WARNING]


def test_strict_makes_warnings_count(look, raw):
    held = edited(raw, {"layers.0.attention.wo.weight": lambda v: v[7].mul_(16)})
    assert scan(held).ok
    assert not scan(held, strict=True).ok
    assert scan(raw, strict=True).ok


def quantised(held, names):
    """Say that tensors are stored in a type that is not decoded."""
    infos = {
        name: TensorInfo(name, DType.IQ4_NL if name in names else info.dtype, info.shape)
        for name, info in held.catalog.tensors.items()
    }
    data = {name: bytes(info.nbytes) for name, info in infos.items() if name in names}
    return replace(held, catalog=replace(held.catalog, tensors=infos), data=held.data | data)


def test_types_that_are_not_decoded_are_listed_and_the_rest_is_scanned(laid_out):
    """The shares are of all bytes; nothing is said of the values that were not read."""
    held = laid_out("hf-fused")
    names = {name for name in held.catalog.tensors if "gate_up_proj" in name}

    def nan(values):
        values[3, 4] = float("nan")

    wrong = edited(held, {"model.layers.0.self_attn.o_proj.weight": nan})
    report = scan(quantised(wrong, names))
    assert [found.code for found in report.findings] == ["nan"]
    (group,) = report.not_covered
    assert (group.dtype, group.n_tensors, set(group.names)) == ("iq4_nl", ARGS.n_layers, names)
    total = report.nbytes + group.nbytes
    assert group.share == pytest.approx(group.nbytes / total)
    assert report.n_tensors == 3 + ARGS.n_layers * (7 + ARGS.n_experts)  # no w1, no w3


def test_an_unknown_model_is_scanned_by_stored_name(unknown):
    torch.manual_seed(0)
    fine, wrong = torch.randn(64, 200), torch.randn(3, 64, 200)
    wrong[1, 5, 7] = float("nan")
    wrong[2, 10] = 0
    wrong[2, 20] *= 100
    report = scan(unknown({"fine": fine, "wrong": wrong, "scalar": torch.zeros(())}))
    assert report.reason
    assert [(f.code, f.severity.value, f.tensor, f.place) for f in report.findings] == [
        ("nan", "error", "wrong", "row 69 column 7"),
        ("zero-rows", "warning", "wrong", "row 138"),
        ("row-outlier", "warning", "wrong", "row 148"),
        ("zero-tensor", "note", "scalar", ""),
    ]


def test_a_mask_of_an_unknown_model_is_no_error(unknown):
    mask = torch.full((32, 32), float("-inf")).triu(1)
    assert scan(unknown({"mask": mask})).ok


def test_integers_are_said_and_not_covered(unknown):
    report = scan(unknown({"ids": torch.zeros(10, 10, dtype=torch.int8)}))
    assert [found.code for found in report.findings] == ["integers"]
    assert (report.n_tensors, report.nbytes, report.not_covered[0].share) == (0, 0, 1.0)


@pytest.mark.parametrize("shape", [(300_001,), (2, 150_007), (1_100_000, 1)])
def test_extreme_shapes_are_measured_in_flat_rows(unknown, shape):
    """A row that no memory should hold, and rows without number: places are still those."""
    torch.manual_seed(0)
    values = torch.randn(shape)
    last = values.view(-1)
    last[-1] = float("nan")
    (found,) = scan(unknown({"x": values})).findings
    assert found.code == "nan"
    row, column = divmod(values.numel() - 1, shape[-1])
    assert (found.rows, found.column) == ((row, row), column)


@pytest.mark.parametrize("dtype", [DType.F64, DType.F32, DType.F16])
def test_every_float_type_is_read(look, raw, dtype):
    def nan(values):
        values[3, 4] = float("nan")

    report = look({"layers.0.attention.wo.weight": nan}, dict.fromkeys(raw.catalog.tensors, dtype))
    assert [f.place for f in report.findings if f.severity is Severity.ERROR] == ["row 3 column 4"]
    assert report.counts["warning"] == 0
