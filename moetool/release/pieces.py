"""The pieces of a torrent as they lie in a folder, and which of them are not as promised.

v1       SHA-1 over the bytes, which may run from one file into the next
hybrid   the same; zeros that pad a file to whole pieces are hashed and never lie on disk
v2       SHA-256 trees by file; the last piece of a longer file is filled up with zero leaves

Unlike `metainfo.claims`, which leave to the root of a file what a digest of bytes alone cannot
say, every piece can be judged here by itself: it has the number by which the swarm knows it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.errors import HostileTorrent, ReadFailed, Refused, TruncatedFile
from moetool.extents import Digest, Extent
from moetool.files import open_raw
from moetool.release.torrent.merkle import lifted, piece_height, root_of_layer
from moetool.release.torrent.metainfo import piece_parts
from moetool.release.torrent.selection import absent_pieces
from moetool.release.verify.digests import HASHES
from moetool.release.verify.hashing import BLOCK_NBYTES, Wanted, read_digests

if TYPE_CHECKING:
    from moetool.files import File
    from moetool.release.torrent.metainfo import Metainfo, Part, TorrentFile
    from moetool.release.verify.digests import Hash


HEAD_NBYTES, TAIL_NBYTES = 8 << 20, 1 << 20
"""How much of a file is its ends: a GGUF begins with the vocabulary, a .pth ends with a list."""
END_SHARE = 16  # of a small file this part of it, at the most


@dataclass(frozen=True, slots=True)
class Piece:
    """Piece ``index`` of a torrent: what is hashed, one part after another, and the digest.

    ``height`` is that of the v2 tree of a whole piece; None where the tree ends with the bytes.
    """

    index: int
    parts: tuple[Part, ...]
    digest: Digest
    height: int | None = None

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The bytes on disk."""
        return tuple(part for part in self.parts if isinstance(part, Extent))

    @property
    def nbytes(self) -> int:
        """The number of bytes on disk."""
        return sum(extent.nbytes for extent in self.extents)

    @property
    def is_plain(self) -> bool:
        """Whether its digest is that of the bytes on disk alone."""
        return self.height is None and len(self.extents) == len(self.parts)

    def matches(self, blocks: Sequence[bytes]) -> bool:
        """Whether these are its bytes: a block for each extent."""
        hasher = HASHES[self.digest.algorithm]()
        left = iter(blocks)
        for part in self.parts:
            hasher.update(memoryview(next(left) if isinstance(part, Extent) else bytes(part)))
        return self._is(hasher)

    def is_right(self, buffer: memoryview) -> bool:
        """Whether its bytes lie where they should, read a buffer at a time.

        Raises:
            Refused: no regular file.
        """
        hasher = HASHES[self.digest.algorithm]()
        try:
            for part in self.parts:
                if not isinstance(part, Extent):
                    hasher.update(memoryview(bytes(part)))
                    continue
                with open_raw(part.path) as file:
                    for content in read_through(file, part.offset, part.end, buffer):
                        hasher.update(content)
        except (ReadFailed, TruncatedFile):
            return False
        return self._is(hasher)

    def _is(self, hasher: Hash) -> bool:
        found = hasher.hexdigest()
        if self.height is not None:
            found = lifted(bytes.fromhex(found), self.nbytes, self.height).hex()
        return found == self.digest.hex


def ends_of(meta: Metainfo) -> dict[str, frozenset[int]]:
    """By path the pieces at both ends of every file: a header lies there, whatever the format."""
    ends, at = {}, 0
    for file in meta.files:
        at = file.offset if meta.pieces else -(-at // meta.piece_length) * meta.piece_length
        if file.nbytes and not file.pad and not file.absent:
            share = file.nbytes // END_SHARE
            head, tail = min(HEAD_NBYTES, share), min(TAIL_NBYTES, share)
            last = at + file.nbytes - 1
            runs = ((at, at + head), (last - tail, last))
            ends[file.path] = frozenset(
                index
                for start, stop in runs
                for index in range(start // meta.piece_length, stop // meta.piece_length + 1)
            )
        at += file.nbytes  # in v2 alone each file begins a piece
    return ends


def pieces_of(meta: Metainfo, folder: Path) -> list[Piece]:
    """Every piece that has bytes on disk, in the order of the torrent.

    Raises:
        Refused: a v2 torrent without the digests of its pieces (a magnet link gives none).
        HostileTorrent: these are not those that the info-hash stands for.
    """
    found = _v1_pieces(meta, folder) if meta.pieces else _v2_pieces(meta, folder)
    return [piece for piece in found if piece.extents]


class PieceMap:
    """The pieces of a torrent in a folder by number, and which of them hold a range of a file.

    Raises:
        Refused, HostileTorrent: see `pieces_of`.
    """

    def __init__(self, meta: Metainfo, folder: Path) -> None:
        self.pieces = {piece.index: piece for piece in pieces_of(meta, folder)}
        self._starts: dict[Path, list[int]] = {}  # offsets in a file, ascending
        self._indices: dict[Path, list[int]] = {}  # of the pieces that begin there
        for piece in self.pieces.values():
            for extent in piece.extents:
                self._starts.setdefault(extent.path, []).append(extent.offset)
                self._indices.setdefault(extent.path, []).append(piece.index)

    def covering(self, path: Path, offset: int, nbytes: int) -> list[int]:
        """The pieces that hold a range of a file; none where it is empty."""
        if nbytes <= 0:
            return []
        starts = self._starts[path]
        first, last = bisect_right(starts, offset) - 1, bisect_right(starts, offset + nbytes - 1)
        return self._indices[path][first:last]


def cut(path: Path, nbytes: int, piece_length: int) -> list[Extent]:
    """A file by itself, cut into pieces; the last one is what is left."""
    starts = range(0, nbytes, piece_length)
    return [Extent(path, at, min(piece_length, nbytes - at)) for at in starts]


def count_pieces(meta: Metainfo) -> int:
    """The pieces as the swarm counts them, those of padding alone included."""
    if meta.pieces:
        return len(meta.pieces) // hashlib.sha1(usedforsecurity=False).digest_size
    return sum(-(-file.nbytes // meta.piece_length) for file in meta.files)


def find_bad(
    pieces: Sequence[Piece], on_bytes: Callable[[int], None] = lambda _: None
) -> list[Piece]:
    """Hash pieces where they lie, in threads; those that are missing, wrong or unreadable.

    Args:
        pieces: the pieces to judge.
        on_bytes: called with the bytes read since the last call, from any thread.

    Raises:
        Refused: a path is no regular file.
    """
    plain = {
        piece.index: Wanted(piece.extents, piece.digest.algorithm)
        for piece in pieces
        if piece.is_plain
    }
    found = read_digests(plain.values(), on_bytes=on_bytes, opened=open_raw)
    bad = []
    buffer = memoryview(bytearray(BLOCK_NBYTES))
    for piece in pieces:
        if piece.is_plain:
            is_good = found[plain[piece.index]].hex == piece.digest.hex
        else:
            is_good = piece.is_right(buffer)
            on_bytes(piece.nbytes)
        if not is_good:
            bad.append(piece)
    return bad


def read_through(file: File, start: int, stop: int, buffer: memoryview) -> Iterator[memoryview]:
    """The bytes ``start:stop`` of a file, as many at a time as ``buffer`` holds.

    Raises:
        ReadFailed: the machine said no.
        TruncatedFile: the file ends before.
    """
    while start < stop:
        got = file.pread_into(buffer[: stop - start], start)
        if not got:
            raise TruncatedFile(
                f"ends at byte {start}, expected {stop - start} more", where=str(file.path)
            )
        yield buffer[:got]
        start += got


def read_extent(extent: Extent) -> bytes | None:
    """The bytes of an extent; None where they are not to be had.

    Raises:
        Refused: no regular file.
    """
    try:
        with open_raw(extent.path) as file:
            return file.pread(extent.offset, extent.nbytes)
    except (ReadFailed, TruncatedFile):
        return None


def _v1_pieces(meta: Metainfo, folder: Path) -> Iterator[Piece]:
    size = hashlib.sha1(usedforsecurity=False).digest_size
    unknown = absent_pieces(meta)
    for index, parts in enumerate(piece_parts(meta, folder)):
        if index in unknown:
            continue
        digest = Digest("sha1", meta.pieces[size * index : size * (index + 1)].hex())
        yield Piece(index, parts, digest)


def _v2_pieces(meta: Metainfo, folder: Path) -> Iterator[Piece]:
    layers, index = dict(meta.piece_layers), 0
    height = piece_height(meta.piece_length)
    for file in meta.files:
        is_long = file.nbytes > meta.piece_length
        roots = _roots(file, layers, meta.piece_length)
        # Where nothing is known of a file, neither is of its pieces.
        extents = cut(folder / file.path, file.nbytes, meta.piece_length) if roots else []
        if file.absent:
            index += -(-file.nbytes // meta.piece_length)
            continue
        for extent, root in zip(extents, roots, strict=True):
            lift = height if is_long and extent.nbytes < meta.piece_length else None
            yield Piece(index, (extent,), Digest("sha256-merkle", root.hex()), lift)
            index += 1


def _roots(file: TorrentFile, layers: dict[bytes, bytes], piece_length: int) -> list[bytes]:
    """The root of each piece of a file; they are judged, for they stand outside the info dict."""
    if not file.nbytes or file.root is None:
        return []
    if file.nbytes <= piece_length:
        return [file.root]
    size = hashlib.sha256().digest_size
    layer = layers.get(file.root)
    if layer is None:
        raise Refused(
            "the torrent does not say what its single pieces are (no piece layers)",
            where=file.path,
            hint="give the .torrent file with --torrent; or fetch again into the same folder",
        )
    roots = [layer[at : at + size] for at in range(0, len(layer), size)]
    count = -(-file.nbytes // piece_length)
    if len(roots) != count or root_of_layer(roots, piece_length) != file.root:
        raise HostileTorrent("the piece layers are not those of the file's root", where=file.path)
    return roots
