"""Piece layers made from the files themselves: a magnet link brings the info dict without them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.errors import DigestMismatch
from moetool.release.pieces import cut
from moetool.release.torrent.merkle import lifted, piece_height, root_of_layer
from moetool.release.verify.hashing import Wanted, read_digests

if TYPE_CHECKING:
    from moetool.release.torrent.metainfo import Metainfo


def with_layers(
    meta: Metainfo, folder: Path, on_bytes: Callable[[int], None] = lambda _: None
) -> Metainfo:
    """A torrent with the piece layers of every file; what is there already is kept.

    Args:
        meta: the torrent.
        folder: its files, complete.
        on_bytes: called with the bytes read since the last call, from any thread.

    Raises:
        DigestMismatch: a file whose pieces nothing else tells apart has another root.
    """
    layers = dict(meta.piece_layers)
    lacking = [
        file
        for file in meta.files
        if file.root and file.nbytes > meta.piece_length and file.root not in layers
    ]
    wanted = {
        file.path: [
            Wanted((extent,), "sha256-merkle")
            for extent in cut(folder / file.path, file.nbytes, meta.piece_length)
        ]
        for file in lacking
    }
    found = read_digests((want for wants in wanted.values() for want in wants), on_bytes=on_bytes)
    wrong = []
    for file in lacking:
        nodes = [bytes.fromhex(found[want].hex) for want in wanted[file.path]]
        last = wanted[file.path][-1].extents[0].nbytes
        nodes[-1] = lifted(nodes[-1], last, piece_height(meta.piece_length))
        if all(nodes) and root_of_layer(nodes, meta.piece_length) == file.root:
            layers[file.root] = b"".join(nodes)
        else:
            wrong.append(f"{file.path} has another root")
    if wrong and not meta.pieces:  # else the SHA-1 of each piece will say which are wrong
        raise DigestMismatch(
            "is not what the torrent promises", where=str(folder), findings=tuple(wrong)
        )
    return replace(meta, piece_layers=tuple(sorted(layers.items())))
