"""The vocabulary in a tokenizer.model: a protobuf, read without the sentencepiece library.

    ModelProto 1 pieces: repeated {1 piece, 2 score, 3 type}
               2 trainer_spec: {3 model_type, 35 byte_fallback, 45 46 47 48 unk bos eos pad piece}
               3 normalizer_spec: {2 charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces,
                                   5 escape_whitespaces}

Enough to convert a vocabulary, and to refuse the files that crash the library before 0.2.2 (pieces
of 100 kB, google/sentencepiece issues 1263 and 1308). Source: google/sentencepiece:
src/sentencepiece_model.proto, src/model_interface.cc.
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from moetool.errors import BadHeader, TruncatedFile
from moetool.formats.rules import check_count, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL_TYPES: Final = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
PIECE_TYPES: Final = {
    1: "normal",
    2: "unknown",
    3: "control",
    4: "user_defined",
    5: "unused",
    6: "byte",
}

_MORE: Final = 0x80  # the bit of a byte that says that the number goes on
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of ModelProto
# name -> field of the trainer's spec that spells the piece, its default, the type it must have
_SPECIALS: Final = {
    "unk_id": (45, "<unk>", "unknown"),
    "bos_id": (46, "<s>", "control"),
    "eos_id": (47, "</s>", "control"),
    "pad_id": (48, "<pad>", "control"),
}
_FLOAT: Final = struct.Struct("<f")
_BYTE_PIECES: Final = frozenset(f"<0x{byte:02X}>" for byte in range(256))

_WHERE: Final = "tokenizer.model"
_MAX_FILE: Final = 8 << 20  # Gemma's has 4 MB, Mistral's half a MB
_MAX_PIECES: Final = 300_000
_MAX_PIECE: Final = 1024  # bytes
_MAX_FIELDS: Final = 4 * _MAX_PIECES  # in all messages; a piece has three

Field = int | bytes


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Pieces by id, and what the trainer and the normaliser were told.

    An id of -1 means there is no such piece, as in the library.
    """

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[str, ...]
    model_type: str
    byte_fallback: bool
    unk_id: int
    bos_id: int
    eos_id: int
    pad_id: int
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    has_charsmap: bool


def read_vocabulary(raw: bytes) -> Vocabulary:
    """Read the bytes of a tokenizer.model.

    Raises:
        BadHeader: not such a file, or one whose pieces contradict each other.
        TruncatedFile: it ends in the middle of a field.
    """
    check_count(len(raw), "bytes", _WHERE, _MAX_FILE)
    messages: list[bytes] = []
    parts: dict[int, dict[int, Field]] = {_TRAINER: {}, _NORMALIZER: {}}
    counter = itertools.count(1)
    for number, value in _fields(raw, counter):
        if number == _PIECE and isinstance(value, bytes):
            messages.append(value)
            check_count(len(messages), "pieces", _WHERE, _MAX_PIECES)
        elif number in parts and isinstance(value, bytes):
            parts[number].update(_fields(value, counter))
    entries = [
        _piece(dict(_fields(message, counter)), index) for index, message in enumerate(messages)
    ]
    trainer, normalizer = parts[_TRAINER], parts[_NORMALIZER]
    vocabulary = Vocabulary(
        pieces=tuple(piece for piece, _, _ in entries),
        scores=tuple(score for _, score, _ in entries),
        types=tuple(kind for _, _, kind in entries),
        model_type=_model_type(trainer),
        byte_fallback=bool(trainer.get(35, 0)),
        **_special_ids(trainer, {piece: (i, kind) for i, (piece, _, kind) in enumerate(entries)}),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
        has_charsmap=bool(normalizer.get(2)),
    )
    _check_pieces(vocabulary)
    return vocabulary


def _piece(fields: dict[int, Field], index: int) -> tuple[str, float, str]:
    raw, score, kind = fields.get(1), fields.get(2, b"\0\0\0\0"), fields.get(3, 1)
    if (
        isinstance(raw, bytes) and 0 < len(raw) <= _MAX_PIECE and b"\0" not in raw
        and isinstance(score, bytes) and len(score) == 4  # noqa: PLR2004
        and isinstance(kind, int) and kind in PIECE_TYPES
    ):  # fmt: skip
        (value,) = _FLOAT.unpack(score)
        if math.isfinite(value):
            return _utf8(raw), value, PIECE_TYPES[kind]
    raise BadHeader(
        f"piece {index} is empty, longer than {_MAX_PIECE} bytes, of an unknown type, or has no "
        "finite score",
        where=_WHERE,
    )


def _model_type(trainer: dict[int, Field]) -> str:
    number = trainer.get(3, 1)
    if not isinstance(number, int) or number not in MODEL_TYPES:
        raise BadHeader(f"model_type is {shown(number)}", where=_WHERE)
    return MODEL_TYPES[number]


def _special_ids(trainer: dict[int, Field], known: dict[str, tuple[int, str]]) -> dict[str, int]:
    """The ids of unk, bos, eos and pad, found as the library finds them: by their pieces.

    The ids that the trainer was given (fields 40 to 43) are not consulted by the library either.
    """
    ids = {}
    for key, (number, default, kind) in _SPECIALS.items():
        value = trainer.get(number, default.encode())
        piece = _utf8(value) if isinstance(value, bytes) else ""
        index, found = known.get(piece, (-1, kind))
        ids[key] = index if found == kind else -1
    return ids


def _check_pieces(vocabulary: Vocabulary) -> None:
    """Rules of the library's loader: no piece twice, one unknown, bytes spelled as bytes."""
    pieces, types = vocabulary.pieces, vocabulary.types
    byte_pieces = {piece for piece, kind in zip(pieces, types, strict=True) if kind == "byte"}
    wrong = {
        "there is no piece": not pieces,
        "a piece is there twice": len(set(pieces)) != len(pieces),
        "there is not exactly one unknown piece": types.count("unknown") != 1,
        "the unknown piece is not the one it is said to be": vocabulary.unk_id < 0,
        "a byte piece is not spelled <0x00> to <0xFF>": not byte_pieces <= _BYTE_PIECES,
        "byte_fallback lacks byte pieces": (
            vocabulary.byte_fallback and byte_pieces != _BYTE_PIECES
        ),
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise BadHeader(what, where=_WHERE)


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise BadHeader(f"text {shown(raw[:40])} is not UTF-8", where=_WHERE) from None


def _fields(message: bytes, counter: Iterator[int]) -> Iterator[tuple[int, Field]]:
    """The fields of a protobuf message: number and value; fixed ones stay bytes.

    Of a field that must come once the last one counts, as protobuf has it. ``counter`` counts the
    fields of all messages: 8 MB can hold millions, and each costs a microsecond.
    """
    position, end = 0, len(message)
    while position < end:
        if next(counter) > _MAX_FIELDS:
            raise BadHeader(f"more than {_MAX_FIELDS} fields", where=_WHERE)
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        match wire:
            case 0:
                value, position = _varint(message, position)
                yield number, value
                continue
            case 2:
                nbytes, position = _varint(message, position)
            case 1 | 5:
                nbytes = 8 if wire == 1 else 4
            case _:
                raise BadHeader(f"wire type {wire} at byte {position}", where=_WHERE)
        if number == 0 or position + nbytes > end:
            raise TruncatedFile(f"a field ends beyond byte {end}", where=_WHERE)
        yield number, message[position : position + nbytes]
        position += nbytes


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A number of 7 bits per byte, at most ten bytes; and the position behind it."""
    if position < len(message) and message[position] < _MORE:  # nearly all of them
        return message[position], position + 1
    value = 0
    for shift, byte in enumerate(message[position : position + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < _MORE:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position + shift + 1
    raise TruncatedFile(f"a number without an end at byte {position}", where=_WHERE)
