"""JSON objects from strangers."""

from __future__ import annotations

import pytest

from moetool.errors import BadHeader
from moetool.formats.strict_json import MAX_NBYTES, read_object


def test_an_object_is_read():
    """As json reads it."""
    raw = '{"a":[1,2.5,null,true,"ü"],"b":{"c":{}}}'.encode()
    assert read_object(raw, "f") == {"a": [1, 2.5, None, True, "ü"], "b": {"c": {}}}


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "not valid JSON"),
        (b"[]", "holds a list"),
        (b'"a"', "holds a str"),
        (b'{"a":1} x', "not valid JSON"),
        (b'{"a":"\xff"}', "not valid JSON"),
        (b'{"a":"\n"}', "not valid JSON"),
        ('{"a":1}'.encode("utf-16"), "not valid JSON"),
        (b'{"a":1,"b":2,"a":3}', "'a' is there twice"),
        (b'{"x":[{"\\u0061":1,"a":3}]}', "'a' is there twice"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b"{" + b" " * MAX_NBYTES + b"}", "too large"),
        (b'{"a":[' + b"1," * 600_000 + b"1]}", "too large"),
    ],
)
def test_everything_else_is_refused(raw, what):
    """Doubled keys however they are spelled, other encodings, depth, size."""
    with pytest.raises(BadHeader, match=what):
        read_object(raw, "f")
