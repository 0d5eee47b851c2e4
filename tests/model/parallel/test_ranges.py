"""Layers over ranks, and where torchrun has put a process."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest

from moetool.errors import UsageFault
from moetool.model.parallel.ranges import split_layers
from moetool.model.parallel.world import World, find_world

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
            "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}  # fmt: skip


def test_the_largest_mixtral_on_four_and_eight_ranks():
    """56 layers of 5 GB, embeddings and output of 0.4 GB."""
    four = split_layers([498] * 56, 4, 39, 39)
    assert four == [range(14), range(14, 28), range(28, 42), range(42, 56)]
    assert [len(layers) for layers in split_layers([498] * 56, 8, 39, 39)] == [7] * 8


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4, 7])
def test_no_other_cut_has_a_less_full_rank(n_ranks):
    sizes, before, behind = [5, 1, 9, 2, 2, 7, 3], 4, 6
    found = split_layers(sizes, n_ranks, before, behind)
    assert [layer for layers in found for layer in layers] == list(range(7))
    assert all(found)

    def fullest(stops):
        edges = [0, *stops, 7]
        parts = [sum(sizes[a:b]) for a, b in pairwise(edges)]
        parts[0] += before
        parts[-1] += behind
        return max(parts)

    best = min(fullest(stops) for stops in combinations(range(1, 7), n_ranks - 1))
    assert fullest([layers.stop for layers in found[:-1]]) == best


def test_equal_layers_are_cut_evenly():
    assert [len(layers) for layers in split_layers([1] * 7, 3)] == [2, 2, 3]


def test_more_ranks_than_layers_are_refused():
    with pytest.raises(UsageFault, match="5 ranks for 4 layers"):
        split_layers([1] * 4, 5)


def test_a_process_knows_its_place_or_is_alone():
    assert find_world(TORCHRUN) == World(5, 8, 1, 4, "10.0.0.1", 29500)
    assert find_world({}) is None
    assert find_world({**TORCHRUN, "WORLD_SIZE": "1"}) is None


def test_half_an_environment_is_refused():
    with pytest.raises(UsageFault, match=r"WORLD_SIZE is 2, and RANK, .*MASTER_PORT not set"):
        find_world({"WORLD_SIZE": "2"})
    with pytest.raises(UsageFault, match="malformed"):
        find_world({**TORCHRUN, "RANK": "first"})
