"""Text and ids: there and back, piece by piece, from a file and from a GGUF."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path

import pytest

from moetool.errors import BadHeader, Refused, TruncatedFile
from moetool.model.tokenizer import Tokenizer, open_tokenizer
from moetool.tensors import Catalog

EMPTY = Catalog("pth", {}, {})
TEXTS = json.loads(
    (resources.files("moetool.model") / "texts" / "round_trips.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def tokenizer(tiny_release):
    return open_tokenizer(EMPTY, tiny_release)


@pytest.fixture(scope="module")
def gguf_metadata(tokenizer):
    """The key-values that llama.cpp's converter writes for a sentencepiece vocabulary."""
    pieces = tokenizer._pieces
    ids = range(tokenizer.n_words)

    def kind(index):
        named = (pieces.is_unknown, 2), (pieces.is_control, 3), (pieces.is_byte, 6)
        return next((number for is_kind, number in named if is_kind(index)), 1)

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [pieces.id_to_piece(index) for index in ids],
        "tokenizer.ggml.scores": [pieces.get_score(index) for index in ids],
        "tokenizer.ggml.token_type": [kind(index) for index in ids],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": True,
    }


def test_there_are_at_least_twenty_strings_to_go_round():
    assert len(set(TEXTS)) == len(TEXTS) >= 20


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_beginning_is_marked_once(tokenizer):
    assert tokenizer.encode("a b")[0] == tokenizer.bos == 1
    assert tokenizer.encode("a b")[1:] == tokenizer.encode("a b", bos=False)


def test_control_tokens_have_no_text_and_strangers_show(tokenizer):
    ids = tokenizer.encode("word")
    assert tokenizer.decode([*ids, tokenizer.eos]) == "word"
    assert tokenizer.decode([*ids, 10**6]) == "word�"


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_says_the_same_from_any_point_between_characters(tokenizer, text):
    ids = tokenizer.encode(text)
    for cut in range(1, len(ids)):
        before = tokenizer.decode(ids[:cut])
        if before.endswith("�"):
            continue  # inside a character: no prompt ends there
        stream = tokenizer.stream(ids[:cut])
        parts = [stream.push(token) for token in ids[cut:]]
        assert before + "".join(parts) + stream.flush() == text
        assert not any("�" in part for part in parts)


def test_a_stream_gives_back_what_never_became_a_character(tokenizer):
    """Three of a character's four bytes, then the end."""
    ids = tokenizer.encode("x🙂", bos=False)
    stream = tokenizer.stream([tokenizer.bos])
    parts = [stream.push(token) for token in ids[:-1]]
    assert "".join(parts) == "x"
    assert set(stream.flush()) == {"�"}


def test_bytes_that_can_be_no_character_do_not_stop_the_stream(tokenizer):
    byte = tokenizer._pieces.piece_to_id("<0xFF>")
    word = tokenizer.encode("word", bos=False)
    stream = tokenizer.stream([1])
    text = "".join(stream.push(token) for token in [byte] * 9 + word * 3) + stream.flush()
    assert text.count("�") == 9
    assert text.endswith("word word word")


def test_the_digest_is_that_of_the_file(tokenizer, tiny_release):
    raw = (tiny_release / "tokenizer.model").read_bytes()
    assert tokenizer.is_file
    assert tokenizer.digest("sha256") == hashlib.sha256(raw).hexdigest()


def test_a_gguf_vocabulary_is_the_same_tokenizer(tokenizer, gguf_metadata):
    inside = open_tokenizer(Catalog("gguf", {}, {}, gguf_metadata), Path("/nowhere"))
    assert not inside.is_file
    names = ("n_words", "bos", "eos", "unk")
    assert [getattr(inside, name) for name in names] == [getattr(tokenizer, name) for name in names]
    for text in TEXTS:
        assert inside.encode(text) == tokenizer.encode(text)
        assert inside.decode(inside.encode(text)) == text


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokenizer.ggml.model": "gpt2"},
        {"tokenizer.ggml.scores": [0.0]},
        {"tokenizer.ggml.token_type": []},
        {"tokenizer.ggml.tokens": []},
    ],
)
def test_another_kind_of_gguf_vocabulary_is_refused(gguf_metadata, wrong):
    with pytest.raises(Refused, match="not sentencepiece"):
        open_tokenizer(Catalog("gguf", {}, {}, {**gguf_metadata, **wrong}), Path("/nowhere"))


def test_no_tokenizer_is_none(tmp_path):
    assert open_tokenizer(EMPTY, tmp_path) is None


def test_a_torn_tokenizer_is_refused(tmp_path, tiny_release):
    raw = (tiny_release / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(raw[: len(raw) // 2])
    with pytest.raises((BadHeader, TruncatedFile)):
        open_tokenizer(EMPTY, tmp_path)


def test_something_else_under_the_name_is_refused():
    with pytest.raises(Refused):
        Tokenizer(b"not a protobuf at all", "tokenizer.model", is_file=True)
