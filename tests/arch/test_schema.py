"""Tables expand to stored tensors whose cells tile them exactly."""

import math

import pytest

from moetool.arch.mistral import DENSE
from moetool.arch.mixtral import HF_FUSED, MISTRAL_PACKED, MIXTRAL
from moetool.arch.schema import Role, Slot, expand, slots

NAMES = [(MIXTRAL, convention.name) for convention in MIXTRAL.conventions]
NAMES += [(DENSE, convention.name) for convention in DENSE.conventions]
each_layout = pytest.mark.parametrize(("family", "name"), NAMES)


@pytest.fixture
def args(family, small_args, dense_args):
    """Hyperparameters of the family."""
    return dense_args if family is DENSE else small_args


@each_layout
def test_cells_tile_every_stored_tensor(family, name, args):
    """The cells of a tensor follow one another from row 0 to the last row."""
    for stored in expand(family.convention(name), args).values():
        rows = math.prod(stored.shape) // stored.columns
        edges = [0, *(cell.stop for cell in stored.cells)]
        assert edges[-1] == rows
        assert [cell.start for cell in stored.cells] == edges[:-1]


@each_layout
def test_every_slot_is_stored_once(family, name, args):
    """No canonical tensor is missing from a convention or held twice."""
    held = [
        cell.slot
        for stored in expand(family.convention(name), args).values()
        for cell in stored.cells
    ]
    assert len(held) == len(set(held))
    assert set(held) == set(slots(args))


@each_layout
def test_every_name_matches_only_its_own_pattern(family, name, args):
    """A stored name leads back to exactly the roles that it holds."""
    convention = family.convention(name)
    for stored in expand(convention, args).values():
        roles = {r for r, s in convention.stored.items() if s.regex().fullmatch(stored.name)}
        assert roles == {cell.slot.role for cell in stored.cells}


def test_fused_experts_put_w1_before_w3(small_args):
    """transformers 5: gate_up_proj is [E, 2 * hidden_dim, dim], w1 first."""
    fused = expand(HF_FUSED, small_args)["model.layers.1.mlp.experts.gate_up_proj"]
    assert fused.shape == (3, 80, 24)
    assert [cell.slot for cell in fused.cells[:3]] == [
        Slot(Role.W1, 1, 0),
        Slot(Role.W3, 1, 0),
        Slot(Role.W1, 1, 1),
    ]


def test_packed_w2_is_transposed_by_expert(small_args):
    """The packed upload holds each expert's w2 as [hidden_dim, dim]."""
    packed = expand(MISTRAL_PACKED, small_args)["layers.0.block_sparse_moe.w2"]
    assert packed.shape == (3 * 40, 24)
    assert all(cell.transposed for cell in packed.cells)


def test_a_dense_layer_has_no_router_and_no_expert_index(dense_args):
    """Mistral-7B as published: nine tensors for each layer and three beside them."""
    names = expand(DENSE.raw, dense_args)
    assert len(names) == 9 * dense_args.n_layers + 3
    assert names["layers.1.feed_forward.w2.weight"].cells[0].slot == Slot(Role.W2, 1)
    assert str(Slot(Role.W2, 1)) == "layers.1 w2"


def test_a_slot_is_named_for_people():
    """A finding says layer, expert and matrix."""
    assert str(Slot(Role.W2, 3, 5)) == "layers.3 expert 5 w2"
    assert str(Slot(Role.OUTPUT)) == "output"
