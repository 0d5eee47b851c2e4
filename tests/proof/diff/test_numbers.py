"""The distances of two tensors, against the same sums done plainly."""

from __future__ import annotations

import math

import pytest
import torch

from moetool.arch.schema import Role, Slot
from moetool.proof.canonical import open_weights
from moetool.proof.diff import compare_values, numbers

WQ = Slot(Role.WQ, 1)


@pytest.fixture
def measured():
    def run(a, b, slot=WQ, other=None):
        with open_weights(a) as left, open_weights(b) as right:
            return compare_values(left, right, slot, other)

    return run


def noisy(model):
    generator = torch.manual_seed(3)
    for tensor in model.tensors.values():
        tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.02)


@pytest.mark.parametrize("piece", [7, 1 << 16])
def test_distances_are_those_of_the_definitions(
    written, stored, measured, monkeypatch, halved, piece
):
    """Also where the two sides are cut at other places, and rows lie in another order."""
    monkeypatch.setattr(numbers, "PIECE_NUMEL", piece)
    monkeypatch.setattr("moetool.convert.stream.COPY_CHUNK", 48)
    found = measured(written("mistral"), written("hf", noisy))
    changed = stored("hf")
    noisy(changed)
    x = stored("mistral").get(Role.WQ, 1).double()
    x = halved(x, 4)  # both in halves: no distance depends on the order of rows
    y = changed.get(Role.WQ, 1).double()
    assert found.numel == 32 * 24
    assert found.differing == int((x != y).sum())
    assert found.max_abs == float((x - y).abs().max())
    assert found.rel_rms == pytest.approx(float((x - y).norm() / x.norm()))
    assert found.cosine == pytest.approx(float((x * y).sum() / x.norm() / y.norm()))
    assert found.first_row == 0


def test_equal_tensors_are_no_distance_apart(written, measured):
    found = measured(written("mistral"), written("hf-fused"))
    assert found.equal
    assert (found.max_abs, found.rel_rms, found.max_ulp, found.first_row) == (0, 0, 0, None)
    assert found.cosine == pytest.approx(1)


def test_a_step_of_the_narrower_type_is_one_ulp(written, measured):
    def up(model):
        view = model.get(Role.WO, 0)
        view.view(torch.int16)[5, 6] += 3

    def wide(model):
        up(model)
        for name, tensor in model.tensors.items():
            model.tensors[name] = tensor.float()

    for change in (up, wide):
        found = measured(written("mistral"), written("hf", change), Slot(Role.WO, 0))
        assert (found.differing, found.max_ulp, found.first_row) == (1, 3, 5)


def test_the_two_zeros_are_neighbours_and_equal(written, measured):
    def zero(sign):
        def change(model):
            model.get(Role.WO, 0).zero_()
            model.get(Role.WO, 0)[1, 1] = sign * 0.0

        return change

    found = measured(written("mistral", zero(1)), written("hf", zero(-1)), Slot(Role.WO, 0))
    assert found.equal
    assert (found.rel_rms, found.cosine) == (0, 1)


def test_zero_against_something_is_infinitely_far(written, measured):
    a = written("mistral", lambda model: model.get(Role.WO, 0).zero_())
    found = measured(a, written("hf"), Slot(Role.WO, 0))
    assert (found.rel_rms, found.cosine) == (math.inf, 0)
    assert math.isfinite(found.max_abs)


def test_nan_equals_nan_and_nothing_else(written, measured):
    def nan(*places):
        def change(model):
            for row in places:
                model.get(Role.WO, 0)[row, 2] = float("nan")

        return change

    same = measured(written("mistral", nan(3)), written("hf", nan(3)), Slot(Role.WO, 0))
    assert same.equal
    assert (same.nan_a, same.nan_b, same.rel_rms) == (1, 1, 0)
    other = measured(written("mistral", nan(3)), written("hf", nan(3, 9)), Slot(Role.WO, 0))
    assert (other.differing, other.nan_a, other.nan_b, other.first_row) == (1, 1, 2, 9)
    assert other.rel_rms == other.max_abs == math.inf
    assert other.cosine == pytest.approx(1)


def test_infinity_is_counted(written, measured):
    def change(model):
        model.get(Role.WO, 0)[4, 4] = float("-inf")

    found = measured(written("mistral"), written("gguf", change), Slot(Role.WO, 0))
    assert (found.inf_a, found.inf_b, found.max_abs, found.nan_b) == (0, 1, math.inf, 0)


def test_another_slot_may_be_compared_with(written, measured):
    def change(model):
        model.put(model.get(Role.W1, 0, 1).clone(), Role.W3, 1, 2)

    b = written("hf-fused", change)
    assert measured(written("mistral"), b, Slot(Role.W1, 0, 1), Slot(Role.W3, 1, 2)).equal


def test_tensors_of_other_sizes_are_refused(written, measured):
    with pytest.raises(ValueError, match="768 values against 384"):
        measured(written("mistral"), written("hf"), Slot(Role.WQ, 0), Slot(Role.WK, 0))


def test_pieces_are_bounded():
    pieces = [*numbers.paired(iter([torch.zeros(1 << 20)]), iter([torch.zeros(1 << 20)]))]
    assert {len(x) for x, _ in pieces} == {numbers.PIECE_NUMEL}
