"""Text <-> token ids, by sentencepiece, from tokenizer.model or from a GGUF's vocabulary.

The model files of Mistral's first releases are BPE with byte fallback: any text has ids, and ids
give the same text back. A dummy space is put before a text and taken off again when decoding, so
that pieces must never be decoded one by one: `TextStream` decodes a growing window instead.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from moetool.errors import BadHeader, ReadFailed, Refused
from moetool.formats.sentencepiece import read_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.tensors import Catalog

LARGEST = 64 << 20  # bytes; the largest published tokenizer.model has about 5 MB
UNKNOWN_TEXT = "\N{REPLACEMENT CHARACTER}"
LONGEST_CHARACTER = 4  # bytes in UTF-8, and so byte tokens
CONTEXT = 8  # tokens before a continuation that decide how it is decoded


class Tokenizer:
    """A sentencepiece model; ``origin`` says where it came from.

    ``is_file``: the bytes are those of a tokenizer.model, so that its digest means something.
    """

    def __init__(self, proto: bytes, origin: str, *, is_file: bool) -> None:
        from sentencepiece import SentencePieceProcessor

        read_vocabulary(proto)  # a hostile file is refused before native code sees it
        try:
            self._pieces = SentencePieceProcessor(model_proto=proto)
        except RuntimeError as error:
            raise BadHeader(f"sentencepiece cannot read it: {error}", where=origin) from error
        self.origin = origin
        self.is_file = is_file
        self._proto = proto
        self.n_words: int = self._pieces.vocab_size()
        self.bos: int = self._pieces.bos_id()
        self.eos: int = self._pieces.eos_id()
        self.unk: int = self._pieces.unk_id()

    @cached_property
    def longest(self) -> int:
        """The most characters that one token of a text stands for (Llama's: 16)."""
        return max(len(self._pieces.id_to_piece(token)) for token in range(self.n_words))

    @cached_property
    def control(self) -> dict[str, int]:
        """Tokens that no text has, by how they are spelled: ``<s>`` and ``</s>``."""
        pieces = self._pieces
        return {
            pieces.id_to_piece(token): token
            for token in range(self.n_words)
            if pieces.is_control(token)
        }

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Cut a text into token ids, with the mark of a beginning before them."""
        ids: list[int] = self._pieces.encode(text)
        return [self.bos, *ids] if bos and self.bos >= 0 else ids

    def decode(self, ids: Iterable[int]) -> str:
        """Join tokens to text; control tokens have none, ids beyond the vocabulary show as �."""
        parts: list[str] = []
        known: list[int] = []
        for token in ids:
            if 0 <= token < self.n_words:
                known.append(token)
            else:
                parts += [self._pieces.decode(known), UNKNOWN_TEXT]
                known = []
        return "".join([*parts, self._pieces.decode(known)])

    def piece(self, token: int) -> tuple[str, float, bool, bool]:
        """Text, score, and whether it is a control or a byte token."""
        pieces = self._pieces
        return (
            pieces.id_to_piece(token),
            pieces.get_score(token),
            pieces.is_control(token),
            pieces.is_byte(token),
        )

    def digest(self, algorithm: str) -> str:
        """The digest of the file's bytes, in hex."""
        return hashlib.new(algorithm, self._proto, usedforsecurity=False).hexdigest()

    def stream(self, prompt: Sequence[int]) -> TextStream:
        """Decode tokens that continue ``prompt`` one at a time."""
        return TextStream(self, prompt)


class TextStream:
    """Text of tokens as they come: what they add to the text of a few tokens before them.

    A character may be spread over several byte tokens: it is held back until it is whole.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._window = list(prompt[-CONTEXT:])
        self._shown = len(self._window)

    def push(self, token: int) -> str:
        """Take one token; return the text that is certain now."""
        self._window.append(token)
        text = self._added()
        if text.endswith(UNKNOWN_TEXT) and len(self._window) - self._shown < LONGEST_CHARACTER:
            return ""
        # The tokens just shown stay as the context in which the next ones are decoded.
        self._window = self._window[self._shown :] or self._window[-1:]
        self._shown = len(self._window)
        return text

    def flush(self) -> str:
        """Return what was held back, as it is."""
        text = self._added()
        self._shown = len(self._window)
        return text

    def _added(self) -> str:
        before = self._tokenizer.decode(self._window[: self._shown])
        return self._tokenizer.decode(self._window)[len(before) :]


def open_tokenizer(catalog: Catalog, directory: Path) -> Tokenizer | None:
    """Find a checkpoint's tokenizer: tokenizer.model beside it, or in the GGUF itself.

    Raises:
        Refused: there is one, and it is malformed or of a kind that is not supported.
    """
    path = directory / "tokenizer.model"
    if path.is_file():
        return Tokenizer(_read(path), path.name, is_file=True)
    if "tokenizer.ggml.tokens" in catalog.metadata:
        return Tokenizer(_proto_of_gguf(catalog.metadata), "the GGUF's vocabulary", is_file=False)
    return None


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST:
            raise Refused(f"larger than {LARGEST} bytes", where=str(path))
        return path.read_bytes()
    except OSError as error:
        raise ReadFailed(error.strerror or "cannot be read", where=str(path)) from error


# google/sentencepiece: src/sentencepiece_model.proto, numbers of the fields that matter here.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE, _KIND = 1, 2, 3
_MODEL_TYPE, _BYTE_FALLBACK = 3, 35
_SPECIAL = {"unknown": (45, 0), "bos": (46, 1), "eos": (47, 2)}  # field of its piece, usual id
_NAME, _DUMMY_PREFIX, _EXTRA_WHITESPACES = 1, 3, 4
_BPE = 2


def _proto_of_gguf(metadata: Mapping[str, Any]) -> bytes:
    """Write the vocabulary of a GGUF as the tokenizer.model that it was taken from."""
    fields = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    tokens, scores, kinds = (fields.get(key, ()) for key in ("tokens", "scores", "token_type"))
    same_length = len(tokens) == len(scores) == len(kinds) > 0
    if fields.get("model") != "llama" or not same_length:
        raise Refused(
            f"the GGUF's tokenizer {str(fields.get('model'))[:20]!r} is not sentencepiece's",
            hint="put the release's tokenizer.model beside the file",
        )
    pieces = b"".join(
        _message(
            _PIECES,
            _message(_PIECE, str(token).encode())
            + bytes([_SCORE << 3 | 5])
            + struct.pack("<f", score)
            + _number(_KIND, kind),
        )
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
    )
    trainer = _number(_MODEL_TYPE, _BPE) + _number(_BYTE_FALLBACK, 1)
    for name, (field, usual) in _SPECIAL.items():
        index = fields.get(f"{name}_token_id", usual)
        if isinstance(index, int) and 0 <= index < len(tokens):
            trainer += _message(field, str(tokens[index]).encode())
    prefix = fields.get("add_space_prefix", True)
    normalizer = _message(_NAME, b"identity") + _number(_DUMMY_PREFIX, int(bool(prefix)))
    normalizer += _number(_EXTRA_WHITESPACES, 0)
    return pieces + _message(_TRAINER, trainer) + _message(_NORMALIZER, normalizer)


def _message(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & (1 << 64) - 1)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:  # noqa: PLR2004  # seven bits a byte, the eighth says more to come
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
