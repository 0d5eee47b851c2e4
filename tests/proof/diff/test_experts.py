"""Experts in another order: with the router's rows it is the same model, without them it is not."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from moetool.arch.schema import Role
from moetool.proof.diff import by_order
from moetool.proof.diff.assignment import assign

ROLES = (Role.W1, Role.W2, Role.W3)


def renumber(model, order, *, layers=(0, 1), experts=True, router=True):
    """Expert j becomes expert ``order[j]`` of before."""
    for layer in layers:
        if router:
            model.put(model.get(Role.ROUTER, layer)[list(order)].clone(), Role.ROUTER, layer)
        for role in ROLES if experts else ():
            held = [model.get(role, layer, expert).clone() for expert in order]
            for expert, value in enumerate(held):
                model.put(value, role, layer, expert)


@pytest.mark.parametrize("layout", ["mistral", "hf", "hf-fused", "gguf"])
def test_experts_renumbered_with_their_rows_are_the_same_model(written, diffed, layout):
    a, b = written("mistral"), written(layout, lambda model: renumber(model, (2, 0, 1)))
    report = diffed(a, b)
    assert report.ok
    assert (report.verdict, report.tensors, report.damage) == ("RENUMBERED", (), ())
    assert by_order(report.experts) == {(2, 0, 1): [0, 1]}
    assert {(order.by, order.router, order.exact) for order in report.experts} == {
        ("digest", "follows", True)
    }


def test_renumbered_experts_are_a_difference_where_the_order_counts(written, diffed):
    a, b = written("mistral"), written("hf", lambda model: renumber(model, (0, 2, 1), layers=[1]))
    report = diffed(a, b, exact_order=True)
    assert report.verdict == "RENUMBERED"
    assert not report.ok
    assert [order.layer for order in report.experts] == [1]


@pytest.mark.parametrize("layout", ["mistral", "hf", "hf-fused", "gguf"])
def test_experts_without_their_rows_are_damage(written, diffed, layout):
    b = written(layout, lambda model: renumber(model, (1, 2, 0), router=False))
    report = diffed(written("mistral"), b)
    assert report.verdict == "DIFFERENT"
    (damage,) = report.damage
    assert damage.kind == "experts-moved"
    expected = "the experts are in another order, rotated by 1, and the router's rows stayed"
    assert damage.text == expected
    assert damage.details == ("layers 0-1: experts of A in the order of B: 1 2 0",)
    assert all(tensor.damage == ("experts-moved",) for tensor in report.tensors)


def test_rows_without_their_experts_are_damage(written, diffed):
    b = written("hf", lambda model: renumber(model, (1, 0, 2), layers=[0], experts=False))
    (damage,) = diffed(written("mistral"), b).damage
    assert (damage.kind, damage.layers) == ("router-moved", (0,))
    assert damage.text == "the router's rows are in another order, and the experts stayed"


def test_rows_in_a_third_order_are_damage(written, diffed):
    def change(model):
        renumber(model, (1, 2, 0), layers=[0], router=False)
        renumber(model, (2, 1, 0), layers=[0], experts=False)

    (damage,) = diffed(written("mistral"), written("hf", change)).damage
    assert damage.text.endswith("and the router's rows are in neither order")


def test_one_matrix_of_the_experts_moved_alone(written, diffed):
    def change(model):
        held = [model.get(Role.W2, 0, expert).clone() for expert in (1, 2, 0)]
        for expert, value in enumerate(held):
            model.put(value, Role.W2, 0, expert)

    (damage,) = diffed(written("mistral"), written("hf", change)).damage
    assert damage.text == "w2 of one expert holds that of another"
    assert damage.details[0] == "layers.0 expert 0 w2 holds that of expert 1"


def test_experts_that_were_trained_and_renumbered_are_matched_by_likeness(written, diffed):
    def change(model):
        renumber(model, (2, 0, 1))
        for tensor in model.tensors.values():
            tensor.add_(torch.randn(tensor.shape, generator=torch.manual_seed(1)) * 0.01)

    report = diffed(written("mistral"), written("gguf", change))
    assert report.verdict == "DIFFERENT"
    assert by_order(report.experts) == {(2, 0, 1): [0, 1]}
    assert {order.by for order in report.experts} == {"likeness"}
    assert all(tensor.rel_rms < 0.2 for tensor in report.tensors)
    moved = next(t for t in report.tensors if str(t.slot) == "layers.0 expert 0 w1")
    assert str(moved.other) == "layers.0 expert 1 w1"
    assert diffed(written("mistral"), written("gguf", change), tolerance=0.2).ok


def test_two_models_that_share_nothing_are_not_matched(written, diffed):
    report = diffed(written("mistral"), written("hf", seed=1))
    assert report.experts == ()
    assert report.verdict == "DIFFERENT"
    # The norms are those of any such model.
    assert len(report.tensors) == 35 - 5


def test_a_renumbered_model_with_a_changed_row_of_the_router(written, diffed):
    """The row is found under its new number, and the rest of the router is in its place."""

    def change(model):
        renumber(model, (2, 0, 1))
        model.get(Role.ROUTER, 0)[0, 3] += 0.5

    report = diffed(written("mistral"), written("hf", change))
    (tensor,) = report.tensors
    assert (str(tensor.slot), tensor.differing, tensor.first_row) == ("layers.0 router", 1, 2)
    assert {(order.layer, order.router, order.exact) for order in report.experts} == {
        (0, "follows", False),
        (1, "follows", True),
    }


def test_assignment_costs_least():
    chance = random.Random(0)
    for n in range(1, 7):
        for _ in range(40):
            costs = [[chance.choice([0.5, chance.random()]) for _ in range(n)] for _ in range(n)]
            best = min(
                sum(costs[row][column] for row, column in enumerate(order))
                for order in itertools.permutations(range(n))
            )
            order = assign(costs)
            assert sorted(order) == list(range(n))
            assert sum(costs[row][order[row]] for row in range(n)) == pytest.approx(best)
