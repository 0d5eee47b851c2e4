"""The chat template of a source, if it has one: the raw release has none, and none is made up.

It is in chat_template.jinja (transformers 5), in tokenizer_config.json under ``chat_template``, as
text or as a list of named ones of which "default" counts, or in a GGUF. It is a program that others
run: it is carried as it is, and never looked into (huggingface/transformers:
src/transformers/tokenization_utils_base.py; ggml-org/llama.cpp: conversion/base.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moetool.errors import BadHeader
from moetool.formats.strict_json import read_object

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LARGEST = 1 << 20  # bytes; the longest that are known have some 20,000
GGUF_KEY = "tokenizer.chat_template"


def read_chat_template(directory: Path, metadata: Mapping[str, object]) -> str | None:
    """The template in a checkpoint's own header, or beside it; None where there is none.

    Raises:
        BadHeader: tokenizer_config.json is not JSON, or a template is no text.
    """
    carried = metadata.get(GGUF_KEY)
    if isinstance(carried, str):
        return carried
    path = directory / "chat_template.jinja"
    if path.is_file() and path.stat().st_size <= LARGEST:
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise BadHeader("is not UTF-8", where=str(path)) from None
    return _of_config(directory / "tokenizer_config.json")


def _of_config(path: Path) -> str | None:
    if not path.is_file() or path.stat().st_size > LARGEST:
        return None
    found: Any = read_object(path.read_bytes(), str(path)).get("chat_template")
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None
