"""Arithmetic on byte ranges, against sets of single bytes."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from moetool.extents import length, subtract, union
from moetool.release.verify.coverage import suspects, tally

RANGES = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 12)).map(lambda pair: (pair[0], sum(pair))),
    max_size=8,
)


def _bytes(ranges):
    return {at for start, stop in ranges for at in range(start, stop)}


@given(RANGES)
def test_union_is_disjoint_and_the_same_bytes(ranges):
    merged = union(ranges)
    assert _bytes(merged) == _bytes(ranges)
    assert length(merged) == len(_bytes(ranges))
    assert all(a[1] < b[0] for a, b in itertools.pairwise(merged))


@given(RANGES, RANGES)
def test_subtract_is_the_difference_of_bytes(ranges, holes):
    left = subtract(ranges, holes)
    assert _bytes(left) == _bytes(ranges) - _bytes(holes)
    assert length(left) == len(_bytes(left))


@given(RANGES, st.sets(st.integers(0, 52), min_size=1))
def test_every_failing_range_holds_a_suspect_and_no_good_byte_is_one(ranges, bad):
    """Ranges are judged by the truth, as digests would judge them."""
    spans = [span for span in ranges if span[0] < span[1]]
    failing = [span for span in spans if _bytes([span]) & bad]
    passing = [span for span in spans if not _bytes([span]) & bad]
    found = _bytes(suspects(failing, passing))
    assert not found & _bytes(passing)
    assert all(found & _bytes([span]) for span in failing)


def test_a_piece_and_a_storage_narrow_each_other_down():
    pieces = [(0, 100), (100, 200), (200, 300)]
    storages = [(0, 90), (90, 150), (150, 300)]
    failing = [pieces[0], storages[1], (0, 300)]
    passing = [*pieces[1:], storages[0], storages[2]]
    assert suspects(failing, passing) == [(90, 100)]


def test_references_that_contradict_each_other_leave_all_under_suspicion():
    assert suspects([(0, 300)], [(0, 150), (150, 300)]) == [(0, 300)]


@given(RANGES, RANGES, RANGES)
def test_the_four_words_sum_to_the_file(bad, unread, good):
    found = tally(60, bad=bad, unread=unread, good=good)
    assert found.match + found.mismatch + found.unreadable + found.not_covered == 60
    assert found.mismatch == len(_bytes(bad))
