"""Bencoding is read strictly, for two readings of one info dict would be two torrents."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.errors import HostileTorrent
from moetool.release.torrent.bencode import decode, decode_with_spans, encode

VALUES = st.recursive(
    st.integers(-(10**18), 10**18) | st.binary(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.binary(max_size=5), inner),
    max_leaves=20,
)


@given(VALUES)
def test_decode_gives_back_what_encode_wrote(value):
    assert decode(encode(value)) == value


@given(st.dictionaries(st.binary(max_size=5), VALUES, max_size=4))
def test_spans_are_the_raw_bytes_of_the_values(value):
    _, spans = decode_with_spans(encode(value))
    assert spans == {key: encode(item) for key, item in value.items()}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"i", b"i-0e", b"i01e", b"ie", b"i1", b"5:abc", b"05:abcde", b"-1:a", b"l", b"d", b"x",
        b"d1:b0:1:a0:e", b"d1:a0:1:a0:e", b"di1e0:e", b"d1:ae", b"i1ei2e", b"le ", b"i 1e",
        b"99999999999:a", b"l" * 5000, b"i" + b"9" * 5000 + b"e",
    ],
)  # fmt: skip
def test_malformed_data_is_refused(data):
    with pytest.raises(HostileTorrent, match="byte"):
        decode(data)


def test_a_torrent_that_is_no_dictionary_is_refused():
    with pytest.raises(HostileTorrent, match="dictionary"):
        decode_with_spans(b"le")
