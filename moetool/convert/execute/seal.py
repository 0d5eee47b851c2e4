"""JSON that carries its own digest: the last line is the SHA-256 of all lines before it.

It finds accidents. Who changes the text can change the line as well: against that, sign.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moetool.errors import BadHeader, DigestMismatch, ReadFailed
from moetool.formats import strict_json

if TYPE_CHECKING:
    from pathlib import Path


def sealed(table: Mapping[str, object], key: str) -> bytes:
    """Write an object as JSON whose last entry, ``key``, is the SHA-256 of the text before it."""
    text = json.dumps(table, indent=1, ensure_ascii=True)
    head = (text.removesuffix("\n}") + ",").encode()
    return head + _opening(key) + _closing(head)


def read_sealed(path: Path, key: str) -> dict[str, Any] | None:
    """Read an object as `sealed` wrote it; None where there is no such file.

    Raises:
        DigestMismatch: it is not as it was written.
        BadHeader: it is none, or too large.
        ReadFailed: the machine could not read it.
    """
    if not path.is_file():
        return None
    where = str(path)
    if path.stat().st_size > strict_json.MAX_NBYTES:
        raise BadHeader("too large for what it should be", where=where)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ReadFailed(error.strerror or "cannot be read", where=where) from error
    head, _, tail = raw.rpartition(_opening(key))
    if tail != _closing(head):
        raise DigestMismatch(
            "is not as it was written: its last line is the SHA-256 of the others",
            where=where,
            hint="nothing here can be checked against it; convert again, or move it away and "
            "verify what the files say of themselves",
        )
    return strict_json.read_object(raw, where)


def _opening(key: str) -> bytes:
    return f'\n "{key}": "'.encode()


def _closing(head: bytes) -> bytes:
    return (hashlib.sha256(head).hexdigest() + '"\n}\n').encode()
