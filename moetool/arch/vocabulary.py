"""The vocabulary in a GGUF's key-values: what llama.cpp lets pass and then tokenises wrongly.

Scores that are missing or all alike, byte tokens that are not marked as bytes and arrays of unequal
length load without a word there (ggml-org/llama.cpp: src/llama-vocab.cpp) and give other token ids
than the model was trained with. Doubled tokens end the process. Checked of a GGUF that is read, and
of one that will be written before its first byte is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from moetool.errors import InconsistentCheckpoint

_BYTE = 6  # ggml-org/llama.cpp: include/llama.h, enum llama_token_type
_SPELLED = re.compile(r"<0x[0-9A-F]{2}>")


CONVERT_AGAIN = "convert again from a checkpoint that has its tokenizer.model beside it"


def check_vocabulary(
    metadata: Mapping[str, object], vocab_size: int, hint: str = CONVERT_AGAIN
) -> None:
    """Refuse a sentencepiece vocabulary that would tokenise wrongly; none at all is no fault.

    Raises:
        InconsistentCheckpoint: with all findings.
    """
    model, tokens = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "tokens"))
    if model not in {None, "llama"} or (model is None and tokens is None):
        return  # none, or not a sentencepiece one, which has no scores
    findings = tuple(_findings(metadata, tokens if isinstance(tokens, list) else [], vocab_size))
    if findings:
        raise InconsistentCheckpoint(
            "the vocabulary in the GGUF would tokenise wrongly",
            findings=findings,
            hint=hint,
        )


def _findings(
    metadata: Mapping[str, object], tokens: list[object], vocab_size: int
) -> Iterator[str]:
    if "tokenizer.ggml.model" not in metadata:
        yield "no tokenizer.ggml.model beside the tokens"
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
    n_doubled = len(tokens) - len(set(map(str, tokens)))
    if n_doubled:
        yield f"{n_doubled} tokens are there twice"
    for key in ("bos_token_id", "eos_token_id", "unknown_token_id"):
        token_id = metadata.get(f"tokenizer.ggml.{key}", 0)
        if not isinstance(token_id, int) or not 0 <= token_id < max(len(tokens), 1):
            yield f"{key} is {token_id} of {len(tokens)} tokens"
    spelled = {i for i, token in enumerate(tokens) if _SPELLED.fullmatch(str(token))}
    marked = {i for i, kind in enumerate(arrays["token_type"]) if kind == _BYTE}
    if spelled != marked and arrays["token_type"]:
        yield f"{len(spelled)} tokens are spelled as bytes, {len(spelled & marked)} marked as such"
