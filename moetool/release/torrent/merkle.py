"""The SHA-256 trees of BEP 52 above their leaves: subtrees of zeros, and the sum of piece layers.

    root ── … ── piece layer ── … ── leaves of 16 KiB

A file of one piece or less has a tree that ends with its bytes; leaves that lack to a power of two
are zeros. In a longer file every piece is a subtree of one height, so the last piece, where the
bytes end within it, is filled up with zero leaves to that height.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from moetool.release.torrent.metainfo import LEAF_NBYTES


def piece_height(piece_length: int) -> int:
    """The levels of the tree of a whole piece, 0 for a piece of one leaf."""
    return (piece_length // LEAF_NBYTES - 1).bit_length()


def zero_tree(height: int) -> bytes:
    """The root of a tree all of whose leaf hashes are zero."""
    node = bytes(hashlib.sha256().digest_size)
    for _ in range(height):
        node = hashlib.sha256(node * 2).digest()
    return node


def lifted(root: bytes, nbytes: int, height: int) -> bytes:
    """The root of a tree of ``height`` that begins with ``nbytes`` bytes of a root of their own."""
    leaves = -(-nbytes // LEAF_NBYTES)
    for level in range((leaves - 1).bit_length(), height):
        root = hashlib.sha256(root + zero_tree(level)).digest()
    return root


def root_of_layer(layer: Sequence[bytes], piece_length: int) -> bytes:
    """The root of a file, from the roots of its pieces (one at least)."""
    level, filler = list(layer), zero_tree(piece_height(piece_length))
    while len(level) > 1:
        if len(level) % 2:
            level.append(filler)
        pairs = zip(level[::2], level[1::2], strict=True)
        level = [hashlib.sha256(left + right).digest() for left, right in pairs]
        filler = hashlib.sha256(filler * 2).digest()
    return level[0]
