"""Hostile tokenizer.model files."""

from __future__ import annotations

import pytest

from moetool.formats.sentencepiece import read_vocabulary

UNKNOWN = b"\x0a\x09\x0a\x05<unk>\x18\x02"


def _piece(text: bytes) -> bytes:
    size = len(text)
    return b"\x0a" + bytes([size + 2]) + b"\x0a" + bytes([size]) + text


BOMBS = {
    "a piece of 7 MB": lambda: b"\x0a\xc5\x9f\xab\x03\x0a\xc0\x9f\xab\x03" + b"a" * 7_000_000,
    "empty pieces": lambda: b"\x0a\x00" * 4_000_000,
    "pieces": lambda: UNKNOWN + b"".join(_piece(b"%06d" % i) for i in range(700_000)),
    "pieces below the count": lambda: b"".join(_piece(b"%07d" % i) for i in range(299_999)),
    "lengths of 2**63": lambda: b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    "unknown fields": lambda: b"\xa0\x06\x00" * 2_700_000,
    "groups": lambda: b"\x0b" * 8_000_000,
    "9 MB": lambda: bytes(9_000_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_time_and_room(tmp_path, judge, name):
    """Within 5 s and 150 MB; the library below 0.2.2 dies of the first."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(BOMBS[name]())
    judge(path)


def test_mutants_of_a_vocabulary_are_read_or_refused(survive):
    """2,000 damaged files."""
    special = b"\x0a\x0e\x0a\x03<s>\x15\x00\x00\x00\x00\x18\x03" + b"\x0a\x08\x0a\x04</s>\x18\x03"
    good = UNKNOWN + special.replace(b"\x0a\x0e", b"\x0a\x0c") + _piece(b"the") + _piece(b"of")
    good += b"\x12\x02\x18\x02" + b"\x1a\x02\x20\x00"
    assert read_vocabulary(good).bos_id == 1
    assert survive(good, read_vocabulary)["refused"] > 500
