"""JSON objects from strangers: no doubled keys, no depth, and no more than a header needs.

``json.loads`` keeps the last of two equal keys, and other readers keep the first; a text of 16 MB
of brackets costs it a gigabyte. Both are refused here before and while it parses.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from moetool.errors import BadHeader
from moetool.formats.rules import MAX_TENSORS, shown

MAX_NBYTES = 16 << 20
# Brackets and commas; a tensor of a safetensors header has eight.
_MAX_TOKENS = 9 * MAX_TENSORS


def read_object(raw: bytes, where: str) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        BadHeader: not JSON, not an object, a key twice, or beyond the limits.
    """
    tokens = sum(map(raw.count, (b"{", b"[", b",")))
    if len(raw) > MAX_NBYTES or tokens > _MAX_TOKENS:
        raise BadHeader(f"a JSON text of {len(raw)} bytes, {tokens} items: too large", where=where)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            [(doubled, _)] = Counter(key for key, _ in pairs).most_common(1)
            raise BadHeader(f"the key {shown(doubled)} is there twice", where=where)
        return found

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # bad UTF-8 and bad JSON are ValueErrors
        reason = "nested too deep" if isinstance(error, RecursionError) else shown(str(error))
        raise BadHeader(f"not valid JSON: {reason}", where=where) from None
    if not isinstance(value, dict):
        raise BadHeader(f"JSON holds a {type(value).__name__}, not an object", where=where)
    return value
