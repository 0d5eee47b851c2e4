"""The vocabulary in a GGUF's key-values: what llama.cpp lets pass and then tokenises wrongly.

Scores that are missing or all alike, byte tokens that are not marked as bytes and arrays of unequal
length load without a word there (ggml-org/llama.cpp: src/llama-vocab.cpp) and give other token ids
than the model was trained with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from moetool.errors import InconsistentCheckpoint

_BYTE = 6  # ggml-org/llama.cpp: include/llama.h, enum llama_token_type
_SPELLED = re.compile(r"<0x[0-9A-F]{2}>")


def check_vocabulary(metadata: Mapping[str, object], vocab_size: int) -> None:
    """Refuse a sentencepiece vocabulary that would tokenise wrongly; none at all is no fault.

    Raises:
        InconsistentCheckpoint: with all findings.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if metadata.get("tokenizer.ggml.model") != "llama" or not isinstance(tokens, list):
        return
    findings = tuple(_findings(metadata, tokens, vocab_size))
    if findings:
        raise InconsistentCheckpoint(
            "the vocabulary in the GGUF would tokenise wrongly",
            findings=findings,
            hint="convert again from a checkpoint that has its tokenizer.model beside it",
        )


def _findings(
    metadata: Mapping[str, object], tokens: list[object], vocab_size: int
) -> Iterator[str]:
    if len(tokens) != vocab_size:
        yield f"{len(tokens)} tokens for a vocabulary of {vocab_size}"
    arrays = {}
    for key in ("scores", "token_type"):
        found = metadata.get(f"tokenizer.ggml.{key}")
        arrays[key] = found if isinstance(found, list) else []
        if len(arrays[key]) != len(tokens):
            yield f"{len(arrays[key])} entries of tokenizer.ggml.{key} for {len(tokens)} tokens"
    if len(tokens) > 1 and arrays["scores"] and len(set(arrays["scores"])) == 1:
        yield "all scores are alike, so merges have no order"
    spelled = {i for i, token in enumerate(tokens) if _SPELLED.fullmatch(str(token))}
    marked = {i for i, kind in enumerate(arrays["token_type"]) if kind == _BYTE}
    if spelled != marked and arrays["token_type"]:
        yield f"{len(spelled)} tokens are spelled as bytes, {len(spelled & marked)} marked as such"
