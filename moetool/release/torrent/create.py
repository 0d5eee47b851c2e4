"""A torrent from digests, hybrid or v1: info dict and .torrent, the same bytes whoever makes them.

    v1 stream   a.bin ▒▒▒ b.bin ▒ …    ▒ pad files: every file begins with a piece (BEP 47, BEP 52)
    v2 tree     {a.bin: {"": …}, b.bin: {"": …}}
    v1 alone    a.bin b.bin …           pieces run across files, as in the release of 2023

Files stand in the order of the tree, names compared as bytes; there is no date, no name of a tool
and no attribute of a file beside padding. The last file is padded too unless it is the only one, as
libtorrent does it: so both info-hashes are those that libtorrent's own create_torrent gives,
wherever that sorts alike (it puts ``sub-z`` before ``sub/x``, which is not the order of the tree).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moetool.release.torrent.bencode import Value, encode
from moetool.release.torrent.merkle import lifted, piece_height, root_of_layer
from moetool.release.torrent.metainfo import LEAF_NBYTES

MIN_PIECE, MAX_PIECE = LEAF_NBYTES, 64 << 20
MOST_PIECES = 4_000


@dataclass(frozen=True, slots=True)
class Content:
    """A file: path, size, and of each of its pieces the SHA-1 and the root of its own leaves.

    The SHA-1 of the last piece is that of the bytes and their `padding`; its root is that of the
    bytes alone.
    """

    parts: tuple[str, ...]
    nbytes: int
    sha1s: tuple[bytes, ...]
    roots: tuple[bytes, ...]


def choose_piece_length(nbytes: int) -> int:
    """The smallest power of two of which at most 4,000 hold the bytes, 16 KiB to 64 MiB.

    Above 64 MB and below 128 GiB that makes 2,000 to 4,000 pieces: more make the metadata heavy (a
    982 GB torrent in pieces of 256 KiB broke its clients: sqliteai/warp issue 24), fewer make a
    damaged byte dear.
    """
    length = MIN_PIECE
    while length < MAX_PIECE and nbytes > MOST_PIECES * length:
        length *= 2
    return length


def count_file_pieces(nbytes: int, piece_length: int) -> int:
    """The pieces of a file of its own; padding ends the last one."""
    return -(-nbytes // piece_length)


def padding(nbytes: int, piece_length: int, n_files: int) -> int:
    """The zeros behind a file up to the next piece; none where it is alone in its torrent."""
    return -nbytes % piece_length if n_files > 1 else 0


def in_order(paths: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Paths as a file tree sorts them: folder by folder, names as UTF-8 bytes."""
    return sorted(paths, key=lambda parts: [part.encode() for part in parts])


def blank(parts: tuple[str, ...], nbytes: int, piece_length: int) -> Content:
    """A file of which nothing is known but its size: lets a file list be judged beforehand."""
    count = count_file_pieces(nbytes, piece_length)
    return Content(parts, nbytes, (bytes(20),) * count, (bytes(32),) * count)


def info_dict(name: str, piece_length: int, files: Sequence[Content]) -> bytes:
    """The bencoded info dict of files that stand in the order of `in_order`."""
    listed: list[Value] = []
    for file in files:
        path: list[Value] = [part.encode() for part in file.parts]
        listed.append({b"length": file.nbytes, b"path": path})
        pad = padding(file.nbytes, piece_length, len(files))
        if pad:
            listed.append({b"attr": b"p", b"length": pad, b"path": [b".pad", b"%d" % pad]})
    return encode(
        {
            b"file tree": _tree(files, piece_length),
            b"files": listed,
            b"meta version": 2,
            b"name": name.encode(),
            b"piece length": piece_length,
            b"pieces": b"".join(sha1 for file in files for sha1 in file.sha1s),
        }
    )


def info_dict_v1(
    name: str, piece_length: int, files: Iterable[tuple[tuple[str, ...], int]], pieces: bytes
) -> bytes:
    """The bencoded info dict of BEP 3 alone; files are paths and sizes in their order."""
    listed: list[Value] = []
    for parts, nbytes in files:
        path: list[Value] = [part.encode() for part in parts]
        listed.append({b"length": nbytes, b"path": path})
    return encode(
        {
            b"files": listed,
            b"name": name.encode(),
            b"piece length": piece_length,
            b"pieces": pieces,
        }
    )


def piece_layers(files: Iterable[Content], piece_length: int) -> dict[bytes, Value]:
    """The layer of every file longer than a piece, by its root."""
    layers: dict[bytes, Value] = {}
    for file in files:
        if file.nbytes > piece_length:
            layer = _layer(file, piece_length)
            layers[root_of_layer(layer, piece_length)] = b"".join(layer)
    return layers


def torrent_file(
    info: bytes,
    layers: dict[bytes, Value] | None,
    trackers: Sequence[str] = (),
    web_seeds: Sequence[str] = (),
) -> bytes:
    """The .torrent file around an info dict; each tracker is a tier of its own (BEP 12).

    Args:
        info: the info dict.
        layers: as `piece_layers` gives them; None for a v1 torrent.
        trackers: in their order.
        web_seeds: addresses of the folder (BEP 19).
    """
    head: dict[bytes, Value] = {}
    if trackers:
        head[b"announce"] = trackers[0].encode()
        head[b"announce-list"] = [[url.encode()] for url in trackers]
    tail: dict[bytes, Value] = {} if layers is None else {b"piece layers": layers}
    if web_seeds:
        tail[b"url-list"] = [url.encode() for url in web_seeds]
    # The info dict goes in as it is, for its bytes are what the info-hash stands for.
    return encode(head)[:-1] + b"4:info" + info + encode(tail)[1:]


def _tree(files: Sequence[Content], piece_length: int) -> dict[bytes, Value]:
    root: dict[bytes, Value] = {}
    for file in files:
        folder = root
        for part in file.parts[:-1]:
            below = folder.setdefault(part.encode(), {})
            assert isinstance(below, dict)  # a file system holds no file that is a folder too
            folder = below
        leaf: dict[bytes, Value] = {b"length": file.nbytes}
        if file.nbytes:
            leaf[b"pieces root"] = root_of_layer(_layer(file, piece_length), piece_length)
        folder[file.parts[-1].encode()] = {b"": leaf}
    return root


def _layer(file: Content, piece_length: int) -> list[bytes]:
    """The roots of the pieces, the last one filled up where it is not the only one."""
    layer = list(file.roots)
    if len(layer) > 1:
        rest = file.nbytes - (len(layer) - 1) * piece_length
        layer[-1] = lifted(layer[-1], rest, piece_height(piece_length))
    assert all(len(node) == hashlib.sha256().digest_size for node in layer)
    return layer
