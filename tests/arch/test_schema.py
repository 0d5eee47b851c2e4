"""Tables expand to stored tensors whose cells tile them exactly."""

import math

import pytest

from moetool.arch.mixtral import HF_FUSED, MISTRAL_PACKED, MIXTRAL
from moetool.arch.schema import Role, Slot, expand, slots

NAMES = [convention.name for convention in MIXTRAL.conventions]


@pytest.mark.parametrize("name", NAMES)
def test_cells_tile_every_stored_tensor(name, small_args):
    """The cells of a tensor follow one another from row 0 to the last row."""
    for stored in expand(MIXTRAL.convention(name), small_args).values():
        rows = math.prod(stored.shape) // stored.columns
        edges = [0, *(cell.stop for cell in stored.cells)]
        assert edges[-1] == rows
        assert [cell.start for cell in stored.cells] == edges[:-1]


@pytest.mark.parametrize("name", NAMES)
def test_every_slot_is_stored_once(name, small_args):
    """No canonical tensor is missing from a convention or held twice."""
    held = [
        cell.slot
        for stored in expand(MIXTRAL.convention(name), small_args).values()
        for cell in stored.cells
    ]
    assert len(held) == len(set(held))
    assert set(held) == set(slots(small_args))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_matches_only_its_own_pattern(name, small_args):
    """A stored name leads back to exactly the roles that it holds."""
    convention = MIXTRAL.convention(name)
    for stored in expand(convention, small_args).values():
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


def test_a_slot_is_named_for_people():
    """A finding says layer, expert and matrix."""
    assert str(Slot(Role.W2, 3, 5)) == "layers.3 expert 5 w2"
    assert str(Slot(Role.OUTPUT)) == "output"
