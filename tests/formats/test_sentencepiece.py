"""The vocabulary of a tokenizer.model, from bytes built field by field."""

from __future__ import annotations

import struct

import pytest

from moetool.errors import BadHeader, FormatError, TruncatedFile
from moetool.formats.sentencepiece import read_vocabulary


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def piece(text, score=0.0, kind=1):
    return field(1, field(1, text) + field(2, score) + field(3, kind))


SPECIALS = piece("<unk>", 0.0, 2) + piece("<s>", 0.0, 3) + piece("</s>", 0.0, 3)
BYTES = b"".join(piece(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256))
BPE = field(2, field(3, 2) + field(35, 1))


def test_a_vocabulary_as_mistral_trains_it():
    """Pieces, scores, types, ids and the normaliser's flags."""
    normalizer = field(3, field(1, "identity") + field(4, 0))
    raw = SPECIALS + BYTES + piece("\u2581t", -1.5) + piece("user", 0.0, 4) + BPE + normalizer
    vocabulary = read_vocabulary(raw)
    assert vocabulary.pieces[259:] == ("\u2581t", "user")
    assert vocabulary.scores[259] == -1.5
    assert vocabulary.types[:4] == ("unknown", "control", "control", "byte")
    assert vocabulary.types[259:] == ("normal", "user_defined")
    assert (vocabulary.unk_id, vocabulary.bos_id, vocabulary.eos_id) == (0, 1, 2)
    assert vocabulary.pad_id == -1
    assert vocabulary.model_type == "bpe"
    assert vocabulary.byte_fallback
    assert vocabulary.add_dummy_prefix
    assert not vocabulary.remove_extra_whitespaces
    assert vocabulary.escape_whitespaces
    assert not vocabulary.has_charsmap


def test_defaults_are_those_of_the_schema():
    """What is not written is unigram, without byte fallback, with all whitespace rules."""
    vocabulary = read_vocabulary(SPECIALS + field(1, field(1, "a")))
    assert vocabulary.types[-1] == "normal"
    assert vocabulary.scores[-1] == 0.0
    assert vocabulary.model_type == "unigram"
    assert not vocabulary.byte_fallback
    assert vocabulary.remove_extra_whitespaces


def test_special_pieces_may_have_other_names():
    """The trainer's spec spells them; an id given there is not looked at, as in the library."""
    raw = piece("?", 0.0, 2) + piece("[B]", 0.0, 3) + piece("[P]", 0.0, 3) + piece("</s>", 0.0)
    spec = field(2, field(45, "?") + field(46, "[B]") + field(48, "[P]") + field(41, 7))
    vocabulary = read_vocabulary(raw + spec)
    assert (vocabulary.unk_id, vocabulary.bos_id, vocabulary.pad_id) == (0, 1, 2)
    assert vocabulary.eos_id == -1  # a normal piece of that name ends nothing


def test_a_charsmap_is_noticed():
    """A normaliser that rewrites text cannot be converted by its flags alone."""
    assert read_vocabulary(SPECIALS + field(3, field(2, b"\x01\x02"))).has_charsmap


def test_unknown_fields_are_passed_over():
    """Later versions add fields; every wire type is skipped by its length."""
    extra = field(99, 5) + field(98, b"xyz") + field(97, 1.0) + varint(96 << 3 | 1) + bytes(8)
    assert read_vocabulary(SPECIALS + extra + field(1, field(1, "a") + extra)).pieces[-1] == "a"


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "no piece"),
        (SPECIALS + piece(""), "piece 3 is empty"),
        (SPECIALS + field(1, field(2, 1.0)), "piece 3 is empty"),
        (SPECIALS + piece("a" * 100_000), "longer than 1024"),
        (SPECIALS + piece("a\0b"), "piece 3"),
        (SPECIALS + piece(b"\xff\xfe"), "not UTF-8"),
        (SPECIALS + piece("a", float("nan")), "no finite score"),
        (SPECIALS + piece("a", float("inf")), "no finite score"),
        (SPECIALS + piece("a", 0.0, 7), "unknown type"),
        (SPECIALS + piece("a", 0.0, 0), "unknown type"),
        (SPECIALS + field(1, field(1, "a") + field(2, b"")), "no finite score"),
        (SPECIALS + piece("a") + piece("a"), "a piece is there twice"),
        (piece("a"), "exactly one unknown"),
        (SPECIALS + piece("<unk2>", 0.0, 2), "exactly one unknown"),
        (piece("[UNK]", 0.0, 2), "not the one it is said to be"),
        (SPECIALS + piece("<0xgg>", 0.0, 6), "not spelled"),
        (SPECIALS + piece("<0xff>", 0.0, 6), "not spelled"),
        (SPECIALS + BPE, "lacks byte pieces"),
        (SPECIALS + field(2, field(3, 9)), "model_type is 9"),
        (SPECIALS + varint(1 << 3 | 3), "wire type 3"),
        (SPECIALS + varint(1 << 3 | 7), "wire type 7"),
        (bytes(9 << 20), "bytes, more than"),
        (piece("a") * 300_001, "pieces, more than"),
    ],
)
def test_vocabularies_that_contradict_are_refused(raw, what):
    """Among them those that crash the library below 0.2.2."""
    with pytest.raises(BadHeader, match=what):
        read_vocabulary(raw)


@pytest.mark.parametrize(
    "raw", [b"\x0a", b"\x0a\x05abc", b"\x80", b"\xff" * 20, b"\x0d\x00", b"\x02\x00"]
)
def test_a_field_that_does_not_end_is_called_cut(raw):
    """Lengths beyond the end, numbers without an end, field number zero."""
    with pytest.raises(TruncatedFile):
        read_vocabulary(raw)


def test_every_cut_of_a_vocabulary_is_refused_or_shorter():
    """A cut between two pieces loses pieces; any other is noticed."""
    whole = SPECIALS + piece("\u2581t", -1.5) + field(3, field(4, 0))
    for end in range(len(whole)):
        try:
            vocabulary = read_vocabulary(whole[:end])
        except FormatError:
            continue
        assert vocabulary.pieces == read_vocabulary(whole).pieces[: len(vocabulary.pieces)]
