"""What each rank takes: its share, and not the whole."""

from __future__ import annotations

from moetool.model.device import Memory
from moetool.model.parallel.shared import WORKING_NBYTES, RankMemory, beyond_plan


def test_a_rank_takes_its_share_of_the_memory_and_no_more(by_ranks, large):
    n, whole = len(by_ranks), 2 * large[1].n_params
    assert whole > 200e6
    found = [rank["large"] for rank in by_ranks]
    assert sum(rank.planned for rank in found) == whole
    for rank in found:
        assert rank.held == rank.planned == rank.nbytes_read
        assert rank.planned < 1.02 * whole / n
        assert rank.taken < rank.planned + 0.15 * whole  # tensors that are being read, activations
    assert beyond_plan(found) == []


def test_a_rank_that_takes_more_is_named():
    def rank(number, held=100, peak=100):
        return RankMemory(number, "", 100, held, 100, 0, Memory(anonymous=peak))

    assert beyond_plan([rank(0), rank(1, held=101), rank(2, peak=101 + WORKING_NBYTES)]) == [1, 2]
    twice = [rank(2, peak=150 + WORKING_NBYTES)] * 2
    assert beyond_plan(twice) == []


def test_all_ranks_refuse_before_a_byte_is_read_where_one_has_no_room(by_ranks):
    for rank in by_ranks:
        what, findings, n_reads = rank["refused"]
        assert what == f"1 of {len(by_ranks)} ranks have no room for their share"
        assert len(findings) == 1
        assert findings[0].startswith("rank 0 (layers 0-")
        assert findings[0].endswith("bytes of weights, room for 1000")
        assert n_reads == 0
