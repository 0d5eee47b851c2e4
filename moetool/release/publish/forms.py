"""The two forms of a torrent: which digests they need of the files, and what is made of these.

hybrid   two digests of each piece of each file; padding makes every file begin with a piece
v1       SHA-1 of the stream of all files, for clients that read no other form

A RELEASE that is still to be written is not on disk: ``text`` holds its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.extents import Extent, LocalFile
from moetool.release.manifest import RELEASE_FILE
from moetool.release.pieces import cut
from moetool.release.torrent.bencode import Value
from moetool.release.torrent.create import (
    Content,
    info_dict,
    info_dict_v1,
    padding,
    piece_layers,
)
from moetool.release.verify.digests import HASHES
from moetool.release.verify.hashing import Computed, Wanted

if TYPE_CHECKING:
    from moetool.release.publish.files import Listed

Found = Mapping[Wanted, Computed]
Form = tuple[bytes, dict[bytes, Value] | None]  # info dict and piece layers


def hybrid_wanted(
    folder: Path, files: Sequence[Listed], piece_length: int, n_files: int
) -> Iterator[Wanted]:
    """The digests of what is on disk; ``n_files`` counts a RELEASE to be written too."""
    for file in files:
        for extent in cut(folder / file.path, file.nbytes, piece_length):
            yield Wanted((extent,), "sha1", padding(extent.nbytes, piece_length, n_files))
            yield Wanted((extent,), "sha256-merkle")


def hybrid(
    folder: Path, files: Sequence[Listed], piece_length: int, found: Found, text: bytes | None
) -> Form:
    """Info dict and piece layers; ``files`` are all, in order."""
    contents = []
    for file in files:
        if text is not None and file.path == RELEASE_FILE:
            contents.append(_content_of(text, piece_length, len(files)))
            continue
        wanted = list(hybrid_wanted(folder, [file], piece_length, len(files)))
        digests = [bytes.fromhex(found[want].hex) for want in wanted]
        contents.append(Content(file.parts, file.nbytes, tuple(digests[::2]), tuple(digests[1::2])))
    info = info_dict(folder.name, piece_length, contents)
    return info, piece_layers(contents, piece_length)


def v1_wanted(
    folder: Path, files: Sequence[Listed], piece_length: int, *, without_release: bool
) -> Iterator[Wanted]:
    """The digests of the pieces that are on disk as a whole."""
    for extents in _stream(folder, files, piece_length):
        if not (without_release and any(e.path == folder / RELEASE_FILE for e in extents)):
            yield Wanted(extents, "sha1")


def v1(
    folder: Path, files: Sequence[Listed], piece_length: int, found: Found, text: bytes | None
) -> Form:
    """Info dict; pieces that RELEASE is a part of are read here."""
    pieces = []
    for extents in _stream(folder, files, piece_length):
        want = Wanted(extents, "sha1")
        digest = found[want].hex if want in found else _across(extents, folder, text or b"")
        pieces.append(bytes.fromhex(digest))
    listed = ((file.parts, file.nbytes) for file in files)
    return info_dict_v1(folder.name, piece_length, listed, b"".join(pieces)), None


def hexdigest(algorithm: str, data: bytes) -> str:
    """A digest of bytes that are at hand."""
    hasher = HASHES[algorithm]()
    hasher.update(memoryview(data))
    return hasher.hexdigest()


def _stream(
    folder: Path, files: Sequence[Listed], piece_length: int
) -> Iterator[tuple[Extent, ...]]:
    """The files one after another, cut into pieces."""
    piece: list[Extent] = []
    room = piece_length
    for file in files:
        at = 0
        while at < file.nbytes:
            taken = min(room, file.nbytes - at)
            piece.append(Extent(folder / file.path, at, taken))
            at, room = at + taken, room - taken
            if not room:
                yield tuple(piece)
                piece, room = [], piece_length
    if piece:
        yield tuple(piece)


def _across(extents: tuple[Extent, ...], folder: Path, text: bytes) -> str:
    """The SHA-1 of a piece whose RELEASE part is in memory."""
    blocks = []
    for extent in extents:
        if extent.path == folder / RELEASE_FILE:
            blocks.append(text[extent.offset : extent.end])
            continue
        with LocalFile(extent.path) as file:
            blocks.append(file.pread(extent.offset, extent.nbytes))
    return hexdigest("sha1", b"".join(blocks))


def _content_of(data: bytes, piece_length: int, n_files: int) -> Content:
    """RELEASE, from what will be written."""
    cuts = [data[at : at + piece_length] for at in range(0, len(data), piece_length)]
    padded = [cut + bytes(padding(len(cut), piece_length, n_files)) for cut in cuts]
    sha1s = tuple(bytes.fromhex(hexdigest("sha1", cut)) for cut in padded)
    roots = tuple(bytes.fromhex(hexdigest("sha256-merkle", cut)) for cut in cuts)
    return Content((RELEASE_FILE,), len(data), sha1s, roots)
