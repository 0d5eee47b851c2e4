"""Bencoding, read strictly: what a second reader could take otherwise is refused (BEP 3).

    integer  i-42e            no leading zeros, no -0
    string   4:spam           length in bytes, then the bytes
    list     l4:spami1ee
    dict     d3:bari1e3:fooi2ee   keys are strings, sorted as bytes, each once

The info-hash is the digest of the info dict *as it stands in the file*, so `decode_with_spans`
says where the values of the outermost dictionary lie.
"""

from __future__ import annotations

import re

from moetool.errors import HostileTorrent

Value = int | bytes | list["Value"] | dict[bytes, "Value"]

# What libtorrent 2.1 takes by default (arvidn/libtorrent: include/libtorrent/torrent_info.hpp).
MAX_TOKENS = 3_000_000
MAX_DEPTH = 100

_INTEGER = re.compile(rb"i(0|-?[1-9][0-9]{0,18})e")
_LENGTH = re.compile(rb"(0|[1-9][0-9]{0,9}):")


def decode(data: bytes) -> Value:
    """Read one value that fills ``data`` to the last byte.

    Raises:
        HostileTorrent: the data is not canonical bencoding, too deep or of too many tokens.
    """
    reader = _Reader(data)
    value = reader.value(0)
    reader.expect_end()
    return value


def decode_with_spans(data: bytes) -> tuple[dict[bytes, Value], dict[bytes, bytes]]:
    """Read a dictionary; the second dictionary holds the raw bytes of each of its values."""
    reader = _Reader(data)
    if data[:1] != b"d":
        raise HostileTorrent("not a bencoded dictionary", hint="give a .torrent file")
    spans: dict[bytes, bytes] = {}
    value = reader.dictionary(0, spans)
    reader.expect_end()
    return value, spans


def encode(value: Value) -> bytes:
    """Write a value; dictionaries come out sorted."""
    match value:
        case int():
            return b"i%de" % value
        case bytes():
            return b"%d:%s" % (len(value), value)
        case list():
            return b"l%se" % b"".join(encode(item) for item in value)
        case dict():
            pairs = (encode(key) + encode(value[key]) for key in sorted(value))
            return b"d%se" % b"".join(pairs)


class _Reader:
    """A position in the data, and how much was read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.tokens = 0

    def value(self, depth: int) -> Value:
        self.tokens += 1
        if depth > MAX_DEPTH or self.tokens > MAX_TOKENS:
            raise self.refuse(f"more than {MAX_DEPTH} levels or {MAX_TOKENS} values")
        match self.data[self.at : self.at + 1]:
            case b"i":
                return self.integer()
            case b"l":
                return self.list(depth)
            case b"d":
                return self.dictionary(depth, None)
            case _:
                return self.string()

    def integer(self) -> int:
        found = _INTEGER.match(self.data, self.at)
        if found is None:
            raise self.refuse("malformed integer")
        self.at = found.end()
        return int(found[1])

    def string(self) -> bytes:
        found = _LENGTH.match(self.data, self.at)
        if found is None:
            raise self.refuse("expected a value")
        end = found.end() + int(found[1])
        if end > len(self.data):
            raise self.refuse("string ends behind the end of the data")
        self.at = end
        return self.data[found.end() : end]

    def list(self, depth: int) -> list[Value]:
        self.at += 1
        items = []
        while self.data[self.at : self.at + 1] != b"e":
            items.append(self.value(depth + 1))
        self.at += 1
        return items

    def dictionary(self, depth: int, spans: dict[bytes, bytes] | None) -> dict[bytes, Value]:
        self.at += 1
        pairs: dict[bytes, Value] = {}
        last = None
        while self.data[self.at : self.at + 1] != b"e":
            key = self.string()
            if last is not None and key <= last:
                raise self.refuse(f"key {key!r} repeated or out of order")
            start, last = self.at, key
            pairs[key] = self.value(depth + 1)
            if spans is not None:
                spans[key] = self.data[start : self.at]
        self.at += 1
        return pairs

    def expect_end(self) -> None:
        if self.at != len(self.data):
            raise self.refuse("bytes behind the end of the value")

    def refuse(self, what: str) -> HostileTorrent:
        return HostileTorrent(
            f"malformed bencoding at byte {self.at}: {what}", hint="get the torrent again"
        )
