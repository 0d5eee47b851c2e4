"""Memory that is used again, and only when nobody looks at it any more."""

from __future__ import annotations

import torch

from moetool.model.load import open_weights
from moetool.model.rooms import Rooms


def test_a_room_is_used_again_when_its_last_view_is_gone():
    rooms = Rooms(10_000)
    first = rooms.take(4096).fill_(1)
    view, place = first.view(torch.bfloat16)[3:], first.data_ptr()
    del first
    second = rooms.take(4096).fill_(2)
    assert second.data_ptr() != place
    assert (view.view(torch.uint8) == 1).all()
    del view
    assert rooms.take(4096).data_ptr() == place
    assert rooms.nbytes == 2 * 4096


def test_unused_rooms_of_other_sizes_make_way():
    rooms = Rooms(10_000)
    kept = rooms.take(4000)
    rooms.take(5000)
    assert rooms.nbytes == 9000
    other = rooms.take(3000)
    assert rooms.nbytes == len(kept) + len(other)


def test_what_is_in_use_is_never_taken_away():
    """Even where that is more than there should be."""
    rooms = Rooms(4096)
    held = [rooms.take(4096).fill_(i) for i in range(3)]
    assert [int(each[0]) for each in held] == [0, 1, 2]
    assert rooms.nbytes == 3 * 4096
    held.clear()
    rooms.take(5000)
    assert rooms.nbytes == 5000


def test_weights_that_do_not_fit_come_and_go_in_the_same_memory(in_layout, recognized, odd_args):
    """Three passes over all tensors: their values stay right, and memory stays below the budget."""
    checkpoint, _ = in_layout("mistral", odd_args)
    known = recognized("mistral")
    budget = checkpoint.catalog.nbytes // 2
    whole = open_weights(checkpoint, known, torch.device("cpu"))
    small = open_weights(checkpoint, known, torch.device("cpu"), budget=budget)
    for _ in range(3):
        for name in small.steps:
            assert torch.equal(small[name], whole[name])
    assert 0 < small._rooms.nbytes <= budget
    assert whole._rooms.nbytes == 0
    small.close()
    whole.close()
