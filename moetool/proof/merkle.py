"""Many digests -> one root, by the tree of RFC 6962 section 2.1 (Certificate Transparency).

A leaf is SHA-256(00 | data), a node SHA-256(01 | left | right), and the left side of a split has
the largest power of two of leaves that is smaller than all. The two prefixes keep a node from being
taken for a leaf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def root(leaves: Sequence[bytes]) -> str:
    """The root over the data of all leaves, in this order, as hex digits."""
    return _node([hashlib.sha256(b"\x00" + data).digest() for data in leaves]).hex()


def _node(hashes: Sequence[bytes]) -> bytes:
    if not hashes:
        return hashlib.sha256().digest()
    if len(hashes) == 1:
        return hashes[0]
    split = 1 << (len(hashes) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + _node(hashes[:split]) + _node(hashes[split:])).digest()
