"""Sound weights with a wrong setting or a wrong tokenizer: no tensor shows it, all of them load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from moetool.arch.schema import Role
from moetool.errors import MoetoolError
from moetool.formats.sentencepiece import read_vocabulary
from moetool.proof.selftest.fault import Fault, written

if TYPE_CHECKING:
    from moetool.proof.selftest.model import Model


def _setting(**values: Any) -> Callable[[Model], None]:  # noqa: ANN401  # as replace has it
    def change(model: Model) -> None:
        model.args = replace(model.args, **values)

    return change


def _extra_row(model: Model) -> None:
    """One more token than the tokenizer has, consistently: the last row twice."""
    import torch

    tables = {slot: model[slot] for slot in model.slots(Role.TOK_EMBEDDINGS, Role.OUTPUT)}
    model.args = replace(model.args, vocab_size=model.args.vocab_size + 1)
    for slot, tensor in tables.items():
        model[slot] = torch.cat([tensor, tensor[-1:]])


def _other_tokenizer(model: Model) -> None:
    """A tokenizer in which pairs of pieces of one length have each other's ids."""
    raw = model.tokenizer or b""
    pieces = [piece.encode() for piece in read_vocabulary(raw).pieces[300:]]
    by_length: dict[int, list[bytes]] = {}
    for piece in pieces:
        by_length.setdefault(len(piece), []).append(piece)
    for alike in by_length.values():
        for one, other in zip(alike[0::2], alike[1::2], strict=False):
            raw = _swap_pieces(raw, one, other)
    model.tokenizer = raw


def _swap_pieces(raw: bytes, one: bytes, other: bytes) -> bytes:
    """Exchange two pieces of one length; a piece is field 1 of its entry, with its length."""
    first, second = (raw.find(b"\n" + bytes([len(piece)]) + piece) for piece in (one, other))
    if min(first, second) < 0:
        raise MoetoolError(f"the tokenizer has no pieces {one!r} and {other!r}")
    swapped = bytearray(raw)
    swapped[first + 2 : first + 2 + len(one)] = other
    swapped[second + 2 : second + 2 + len(other)] = one
    return bytes(swapped)


def _changes(name: str) -> str:
    """A line of diff's table of settings."""
    return rf"^{name} .*changes what is computed"


_hf, _gguf, _packed = (
    partial(written, subject) for subject in ("bare-hf", "bare-gguf", "bare-packed")
)

FAULTS: tuple[Fault, ...] = (
    _hf("rope-theta-wrong", "rope_theta 10000 in config.json", _setting(rope_theta=1e4),
        smoke_test=r"rope_theta +FAIL", diff=_changes("rope_theta")),
    _gguf("gguf-rope-theta-wrong", "rope.freq_base 10000 in a GGUF", _setting(rope_theta=1e4),
          smoke_test=r"rope_theta +FAIL", diff=_changes("rope_theta")),
    _hf("norm-eps-wrong", "rms_norm_eps 1e-6 in config.json", _setting(norm_eps=1e-6),
        smoke_test=r"norm_eps +FAIL", diff=_changes("norm_eps")),
    _hf("top-k-wrong", "one expert per token in config.json", _setting(n_experts_per_tok=1),
        smoke_test=r"n_experts_per_tok +FAIL", diff=_changes("n_experts_per_tok")),
    _packed("packed-top-k-wrong", "three experts per token in a packed params.json",
            _setting(n_experts_per_tok=3), smoke_test=r"n_experts_per_tok +FAIL",
            diff=_changes("n_experts_per_tok")),
    _hf("context-wrong", "max_position_embeddings 4096 in config.json", _setting(max_seq_len=4096),
        smoke_test=r"max_seq_len +FAIL"),
    _hf("window-wrong", "a sliding window of 512 in config.json", _setting(sliding_window=512),
        diff=_changes("sliding_window")),
    _hf("vocabulary-row-extra", "one row more than the tokenizer has pieces", _extra_row,
        smoke_test=r"vocabulary +FAIL", diff=r"shape: tok_embeddings\.weight .*1 extra row"),
    _hf("tokenizer-wrong", "the tokenizer of another model beside the weights", _other_tokenizer,
        smoke_test=r"tokenizer digest +FAIL"),
    _gguf("gguf-tokenizer-wrong", "the vocabulary of another model inside a GGUF",
          _other_tokenizer, smoke_test=r"loss band +FAIL"),
)  # fmt: skip
