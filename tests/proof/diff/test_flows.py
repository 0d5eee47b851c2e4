"""Flows of bytes are cut and compared whatever the sizes in which they come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moetool.proof.diff import flows

BLOCKS = st.lists(st.binary(max_size=12), max_size=8)


@given(BLOCKS, st.integers(1, 9))
def test_cutting_loses_nothing(blocks, size):
    pieces = [*flows._cut(blocks, size)]
    assert b"".join(pieces) == b"".join(blocks)
    assert all(len(piece) == size for piece in pieces[:-1])
    assert all(0 < len(piece) <= size for piece in pieces[-1:])


@given(BLOCKS, BLOCKS)
def test_flows_are_the_same_where_their_bytes_are(left, right):
    left, right = ([block for block in blocks if block] for blocks in (left, right))
    expected = b"".join(left) == b"".join(right)
    assert flows.same(iter(left), iter(right)) == expected
    assert flows.same(iter(left), iter([b"".join(left)] if left else []))
