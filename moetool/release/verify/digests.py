"""The digests that we compute, all with the two methods of hashlib's objects.

md5 sha1 sha256   hashlib          crc32            zlib-ng, as zip archives use it
xxh3_64 xxh3_128  xxhash           sha256-merkle    the tree of BEP 52
git-blob          the name that git gives to a file's content
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

import xxhash
from zlib_ng import zlib_ng

from moetool.release.torrent.metainfo import LEAF_NBYTES

if TYPE_CHECKING:
    from collections.abc import Callable


class Hash(Protocol):
    """What hashlib's objects do."""

    def update(self, data: memoryview, /) -> None:
        """Take the next bytes."""
        ...

    def hexdigest(self) -> str:
        """The digest of all bytes taken, in lower-case hex."""
        ...


class Crc32:
    """CRC-32 as zip archives use it."""

    __slots__ = ("_crc",)

    def __init__(self) -> None:
        self._crc = 0

    def update(self, data: memoryview, /) -> None:
        """Take the next bytes."""
        self._crc = zlib_ng.crc32(data, self._crc)

    def hexdigest(self) -> str:
        """The CRC in eight hex digits."""
        return f"{self._crc:08x}"


class Merkle:
    """The root of BEP 52's SHA-256 tree over leaves of 16 KiB, in memory of one path."""

    __slots__ = ("_filled", "_leaf", "_levels")

    def __init__(self) -> None:
        self._leaf = hashlib.sha256()
        self._filled = 0
        self._levels: list[bytes | None] = []

    def update(self, data: memoryview, /) -> None:
        """Take the next bytes."""
        while data:
            part = data[: LEAF_NBYTES - self._filled]
            self._leaf.update(part)
            self._filled += len(part)
            data = data[len(part) :]
            if self._filled == LEAF_NBYTES:
                self._carry(self._leaf.digest(), 0)
                self._leaf, self._filled = hashlib.sha256(), 0

    def hexdigest(self) -> str:
        """The root; leaves that lack to a power of two count as zeros."""
        if self._filled:
            self._carry(self._leaf.digest(), 0)
            self._filled = 0
        zeros, height = bytes(32), 0
        while height < len(self._levels) - 1:
            if self._levels[height] is not None:
                self._carry(zeros, height)
            zeros = hashlib.sha256(zeros + zeros).digest()
            height += 1
        return (self._levels[-1] or zeros).hex() if self._levels else zeros.hex()

    def _carry(self, node: bytes, height: int) -> None:
        """Add a node; two of one height become one of the next, like digits in a counter."""
        while height < len(self._levels) and (left := self._levels[height]) is not None:
            node, self._levels[height] = hashlib.sha256(left + node).digest(), None
            height += 1
        self._levels += [None] * (height + 1 - len(self._levels))
        self._levels[height] = node


class BlockHash:
    """Digests of blocks of one size, the last one of what is left; the bytes come in any cut."""

    __slots__ = ("_block_nbytes", "_done", "_hash", "_left", "_new")

    def __init__(self, new: Callable[[], Hash], block_nbytes: int) -> None:
        self._new, self._block_nbytes = new, block_nbytes
        self._hash, self._left = new(), block_nbytes
        self._done: list[str] = []

    def update(self, data: memoryview, /) -> None:
        """Take the next bytes."""
        while data:
            part = data[: self._left]
            self._hash.update(part)
            self._left -= len(part)
            data = data[len(part) :]
            if not self._left:
                self._next()

    def finish(self) -> tuple[str, ...]:
        """The digest of each block in lower-case hex, once all bytes were taken."""
        if self._left < self._block_nbytes:
            self._next()
        return tuple(self._done)

    def _next(self) -> None:
        self._done.append(self._hash.hexdigest())
        self._hash, self._left = self._new(), self._block_nbytes


class GitBlob:
    """SHA-1 over "blob SIZE", a zero byte and the content, which is held: the size comes first."""

    __slots__ = ("_content",)

    def __init__(self) -> None:
        self._content = bytearray()

    def update(self, data: memoryview, /) -> None:
        """Take the next bytes."""
        self._content += data

    def hexdigest(self) -> str:
        """The object id in 40 hex digits."""
        head = b"blob %d\0" % len(self._content)
        return hashlib.sha1(head + self._content, usedforsecurity=False).hexdigest()


HASHES: dict[str, Callable[[], Hash]] = {
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "sha256": hashlib.sha256,
    "crc32": Crc32,
    "xxh3_64": xxhash.xxh3_64,
    "xxh3_128": xxhash.xxh3_128,
    "sha256-merkle": Merkle,
    "git-blob": GitBlob,
}
