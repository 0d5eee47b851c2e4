"""What a torrent's info dict promises: files, pieces, digests; and which of them are refused.

    info v1   name, piece length, pieces = 20-byte SHA-1s, length | files [{length, path, attr}]
    info v2   name, piece length, meta version 2, file tree {name: {…: {"": {length, pieces root}}}}
    beside    announce, announce-list, url-list (BEP 19),
              piece layers {pieces root: 32-byte roots of the pieces}

BEP 3, 47 (attr, pad files), 52 (v2). The raw names are judged, not what a client makes of them:
a client that cleans ``../x`` into ``..x`` writes something else than the info-hash stands for.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from moetool.errors import HostileTorrent
from moetool.extents import Claim, Digest, Extent
from moetool.files.partial import OUR_FOLDER
from moetool.release.torrent.bencode import Value, decode, decode_with_spans, encode

MAX_INFO_NBYTES = 31_457_280  # what libtorrent takes from peers by default (max_metadata_size)
MAX_PIECES = 2_097_152
MAX_FILES = 100_000
MAX_NBYTES = 1 << 50
MAX_COMPONENT_NBYTES = 240  # longer ones are cut by libtorrent, and the cut name is another name
LEAF_NBYTES = 16_384  # BEP 52


Part = Extent | int  # bytes of a file, or so many zeros that lie nowhere


@dataclass(frozen=True, slots=True)
class TorrentFile:
    """A file of a torrent; ``offset`` counts in the stream of all files that v1 pieces cut.

    ``absent`` files were not selected (see `selection`): like padding they never lie on disk.
    """

    parts: tuple[str, ...]
    offset: int
    nbytes: int
    pad: bool = False
    root: bytes | None = None
    absent: bool = False

    @property
    def path(self) -> str:
        """The path below the release's folder, with slashes."""
        return "/".join(self.parts)


@dataclass(frozen=True, slots=True)
class Metainfo:
    """A torrent whose file list was judged; hashes in lower-case hex, None where it has no such."""

    name: str
    piece_length: int
    files: tuple[TorrentFile, ...]
    info_hash: str | None
    info_hash_v2: str | None
    info: bytes
    pieces: bytes = b""
    piece_layers: tuple[tuple[bytes, bytes], ...] = ()
    trackers: tuple[str, ...] = ()
    web_seeds: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """The bytes that will lie on disk; pad files never do."""
        return sum(self.file_sizes(Path()).values())

    @property
    def hashes(self) -> tuple[str, ...]:
        """Every info-hash it has, v1 first."""
        return tuple(text for text in (self.info_hash, self.info_hash_v2) if text)

    @property
    def reference(self) -> str:
        """How reports name it."""
        return f"torrent {self.hashes[0][:8]}"

    def file_sizes(self, folder: Path) -> dict[Path, int]:
        """The promised size of each file, with the paths below ``folder``."""
        here = (file for file in self.files if not file.pad and not file.absent)
        return {folder / file.path: file.nbytes for file in here}

    def to_torrent(self) -> bytes:
        """A .torrent file of the info dict as it was received, byte for byte."""
        layers = dict(self.piece_layers)
        tail = b"12:piece layers" + encode(dict(layers)) if layers else b""
        return b"d4:info" + self.info + tail + b"e"


def read_torrent(data: bytes) -> Metainfo:
    """Read a .torrent file.

    Raises:
        HostileTorrent: malformed, or its file list is refused (see `read_info`).
    """
    outer, spans = decode_with_spans(data)
    if b"info" not in spans:
        raise HostileTorrent("the torrent has no info dictionary", hint="give a .torrent file")
    meta = _read(spans[b"info"], _piece_layers(outer), _trackers(outer))
    return replace(meta, web_seeds=_web_seeds(outer))


def read_info(info: bytes) -> Metainfo:
    """Read the info dict that peers gave for a magnet.

    Raises:
        HostileTorrent: malformed; names that leave the folder, are absolute, not printable, too
            long or equal but for case; links, executables; sizes or pieces that do not fit.
    """
    return _read(info, (), ())


def claims(meta: Metainfo, folder: Path) -> Iterator[Claim]:
    """What the torrent says of the bytes below ``folder``: SHA-1 pieces, SHA-256 merkle roots.

    Pieces of a hybrid torrent that reach into padding have no bytes on disk for a part; they are
    left out, for the merkle root of the file covers the same bytes.
    """
    yield from piece_claims(meta, folder)
    layers = dict(meta.piece_layers)
    for file in meta.files:
        if file.root is None or file.nbytes == 0 or file.absent:
            continue
        path = folder / file.path
        for index, root in enumerate(_whole_piece_roots(file, layers, meta.piece_length)):
            extent = Extent(path, index * meta.piece_length, meta.piece_length)
            yield Claim((extent,), Digest("sha256-merkle", root.hex()), f"{meta.reference} v2")
        whole = Extent(path, 0, file.nbytes)
        yield Claim((whole,), Digest("sha256-merkle", file.root.hex()), f"{meta.reference} v2")


def piece_claims(meta: Metainfo, folder: Path) -> Iterator[Claim]:
    """The SHA-1 pieces alone, in order; a piece that reaches into padding is left out."""
    for index, extents in enumerate(piece_extents(meta, folder)):
        if extents:
            digest = Digest("sha1", meta.pieces[20 * index : 20 * index + 20].hex())
            yield Claim(extents, digest, f"{meta.reference}#{index}")


def piece_extents(meta: Metainfo, folder: Path) -> Iterator[tuple[Extent, ...]]:
    """The bytes of each v1 piece, in order; an empty tuple where padding is a part of it."""
    for parts in piece_parts(meta, folder):
        on_disk = tuple(part for part in parts if isinstance(part, Extent))
        yield on_disk if len(on_disk) == len(parts) else ()


def piece_parts(meta: Metainfo, folder: Path) -> Iterator[tuple[Part, ...]]:
    """What each v1 piece is made of, in order: the files one after another, cut into pieces."""
    total = sum(file.nbytes for file in meta.files)
    files = [file for file in meta.files if file.nbytes]
    first = 0
    for index in range(len(meta.pieces) // 20):
        start, stop = index * meta.piece_length, min((index + 1) * meta.piece_length, total)
        while files[first].offset + files[first].nbytes <= start:
            first += 1
        parts: list[Part] = []
        at = first
        while at < len(files) and files[at].offset < stop:
            file = files[at]
            low, high = max(start, file.offset), min(stop, file.offset + file.nbytes)
            on_disk = Extent(folder / file.path, low - file.offset, high - low)
            parts.append(high - low if file.pad or file.absent else on_disk)
            at += 1
        yield tuple(parts)


def _read(
    info: bytes, layers: tuple[tuple[bytes, bytes], ...], trackers: tuple[str, ...]
) -> Metainfo:
    if len(info) > MAX_INFO_NBYTES:
        raise HostileTorrent(f"metadata of {len(info)} bytes, at most {MAX_INFO_NBYTES} are taken")
    fields = decode(info)
    if not isinstance(fields, dict):
        raise HostileTorrent("the info dictionary is none")
    v1, v2 = b"pieces" in fields, b"file tree" in fields
    if not v1 and not v2:
        raise HostileTorrent("the torrent has neither pieces (v1) nor a file tree (v2)")
    name = _component(fields.get(b"name"))
    piece_length = _piece_length(fields.get(b"piece length"), power_of_two=v2)
    tree = tuple(_tree_files(fields[b"file tree"], ())) if v2 else ()
    files = _listed_files(fields, name, dict(tree)) if v1 else _in_stream(tree)
    _refuse_clashes(files)
    pieces = _pieces(fields, files, piece_length) if v1 else b""
    if v1 and v2:
        listed = {file.parts: (file.nbytes, file.root) for file in files if not file.pad}
        if listed != dict(tree):
            raise HostileTorrent("the v1 and the v2 file list of the torrent differ")
    return Metainfo(
        name=name,
        piece_length=piece_length,
        files=files,
        info_hash=hashlib.sha1(info).hexdigest() if v1 else None,  # noqa: S324  # BEP 3
        info_hash_v2=hashlib.sha256(info).hexdigest() if v2 else None,
        info=info,
        pieces=pieces,
        piece_layers=layers,
        trackers=trackers,
    )


def _listed_files(
    fields: dict[bytes, Value],
    name: str,
    roots: dict[tuple[str, ...], tuple[int, bytes | None]],
) -> tuple[TorrentFile, ...]:
    """The v1 file list with offsets; a single file is a list of one."""
    entries = fields.get(b"files", [{**fields, b"path": [name.encode()]}])
    if not isinstance(entries, list) or not entries or len(entries) > MAX_FILES:
        raise HostileTorrent("the torrent's file list is empty, too long or no list")
    files, offset = [], 0
    for entry in entries:
        if not isinstance(entry, dict):
            raise HostileTorrent("an entry of the torrent's file list is no dictionary")
        nbytes = _size(entry.get(b"length"))
        pad = b"p" in _attributes(entry)
        parts = _path(entry.get(b"path"), pad=pad)
        root = roots.get(parts, (0, None))[1]
        files.append(TorrentFile(parts, offset, nbytes, pad, None if pad else root))
        offset += nbytes
    return tuple(files)


def _tree_files(
    tree: Value, above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], tuple[int, bytes | None]]]:
    """Walk a v2 file tree: a directory's keys are names, a file's only key is the empty one."""
    if not isinstance(tree, dict) or (above and not tree):
        raise HostileTorrent("malformed file tree", where="/".join(above) or None)
    for raw, below in tree.items():
        parts = (*above, _component(raw))
        if not isinstance(below, dict) or b"" not in below:
            yield from _tree_files(below, parts)
            continue
        leaf = below[b""]
        if len(below) != 1 or not isinstance(leaf, dict):
            raise HostileTorrent("a file that is a folder too", where="/".join(parts))
        _attributes(leaf)
        nbytes, root = _size(leaf.get(b"length")), leaf.get(b"pieces root")
        if nbytes and not (isinstance(root, bytes) and len(root) == hashlib.sha256().digest_size):
            raise HostileTorrent("a file without a pieces root", where="/".join(parts))
        yield parts, (nbytes, root if isinstance(root, bytes) else None)


def _in_stream(
    tree: tuple[tuple[tuple[str, ...], tuple[int, bytes | None]], ...],
) -> tuple[TorrentFile, ...]:
    files, offset = [], 0
    for parts, (nbytes, root) in tree:
        files.append(TorrentFile(parts, offset, nbytes, root=root))
        offset += nbytes
    return tuple(files)


def _path(raw: Value | None, *, pad: bool) -> tuple[str, ...]:
    if not isinstance(raw, list) or not raw:
        raise HostileTorrent("a file of the torrent has no path")
    if pad:  # never written, and its customary name .pad/0 is nobody's concern
        return (".pad", *(repr(part) for part in raw))
    return tuple(_component(part) for part in raw)


def _component(raw: Value | None) -> str:
    """Judge one name of a path as it stands in the torrent."""
    if not isinstance(raw, bytes):
        raise HostileTorrent("a name in the torrent is no string")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise HostileTorrent("a name that is not UTF-8", where=ascii(raw)) from error
    reason = why_refused(text)
    if reason:
        hint = "the torrent is not what a publisher of weights makes: do not use it"
        raise HostileTorrent(f"a name that {reason}", where=ascii(text[:300]), hint=hint)
    return text


def why_refused(text: str) -> str | None:
    """Say what is wrong with one name of a path, None where it is taken."""
    nbytes = len(text.encode())
    faults = {
        "is empty or leaves its folder": text in {"", ".", ".."},
        "holds a path separator": "/" in text or "\\" in text,
        f"is longer than {MAX_COMPONENT_NBYTES} bytes": nbytes > MAX_COMPONENT_NBYTES,
        "holds characters that cannot be seen": not text.isprintable() or text != text.strip(),
        "is not in Unicode's composed form (NFC)": unicodedata.normalize("NFC", text) != text,
        f"belongs to moetool's own records ({OUR_FOLDER})": text.casefold() == OUR_FOLDER,
    }
    return next((fault for fault, found in faults.items() if found), None)


def _attributes(entry: dict[bytes, Value]) -> bytes:
    attributes = entry.get(b"attr", b"")
    if not isinstance(attributes, bytes):
        raise HostileTorrent("malformed file attributes")
    if b"l" in attributes or b"symlink path" in entry:
        raise HostileTorrent("the torrent holds a symbolic link", hint="do not use it")
    if b"x" in attributes:
        raise HostileTorrent("the torrent holds an executable file", hint="do not use it")
    return attributes


def _size(raw: Value | None) -> int:
    if not isinstance(raw, int) or not 0 <= raw <= MAX_NBYTES:
        raise HostileTorrent(f"a file of {ascii(raw)[:40]} bytes")
    return raw


def _piece_length(raw: Value | None, *, power_of_two: bool) -> int:
    if not isinstance(raw, int) or not 0 < raw <= 1 << 30:
        raise HostileTorrent(f"a piece length of {ascii(raw)[:40]}")
    if power_of_two and (raw < LEAF_NBYTES or raw & (raw - 1)):
        raise HostileTorrent(f"a piece length of {raw}, v2 asks for a power of two from 16 KiB")
    return raw


def _pieces(fields: dict[bytes, Value], files: tuple[TorrentFile, ...], piece_length: int) -> bytes:
    pieces, total = fields[b"pieces"], files[-1].offset + files[-1].nbytes
    count = -(-total // piece_length)
    if not isinstance(pieces, bytes) or len(pieces) != 20 * count or not 0 < count <= MAX_PIECES:
        held = len(pieces) / 20 if isinstance(pieces, bytes) else 0
        raise HostileTorrent(
            f"{held:g} piece hashes for {total} bytes in pieces of {piece_length}, "
            f"expected {count} (at most {MAX_PIECES})"
        )
    return pieces


def _refuse_clashes(files: tuple[TorrentFile, ...]) -> None:
    """Refuse equal paths, also those that a file system without case would make equal."""
    paths: set[tuple[str, ...]] = set()
    folders: set[tuple[str, ...]] = set()
    for file in files:
        if file.pad:
            continue
        folded = tuple(part.casefold() for part in file.parts)
        if folded in paths:
            raise HostileTorrent("two files of the same name", where=ascii(file.path))
        paths.add(folded)
        folders.update(folded[:depth] for depth in range(1, len(folded)))
    for clash in sorted(paths & folders):
        raise HostileTorrent("a file that is a folder too", where=ascii("/".join(clash)))


def _piece_layers(outer: dict[bytes, Value]) -> tuple[tuple[bytes, bytes], ...]:
    layers = outer.get(b"piece layers", {})
    if not isinstance(layers, dict):
        raise HostileTorrent("malformed piece layers")
    return tuple((root, roots) for root, roots in layers.items() if isinstance(roots, bytes))


def _whole_piece_roots(
    file: TorrentFile, layers: dict[bytes, bytes], piece_length: int
) -> Iterator[bytes]:
    """Roots of the pieces that the file fills.

    The last, partial one is a subtree padded with zeros and so has another digest than its bytes
    alone; what all others do not cover is settled by the root of the file.
    """
    roots = layers.get(file.root or b"", b"")
    for index in range(min(file.nbytes // piece_length, len(roots) // 32)):
        yield roots[32 * index : 32 * index + 32]


def _trackers(outer: dict[bytes, Value]) -> tuple[str, ...]:
    tiers = outer.get(b"announce-list", [])
    urls = (
        [url for tier in tiers if isinstance(tier, list) for url in tier]
        if isinstance(tiers, list)
        else []
    )
    texts = [
        url.decode("ascii", "replace")
        for url in [outer.get(b"announce"), *urls]
        if isinstance(url, bytes)
    ]
    return tuple(dict.fromkeys(texts))


def _web_seeds(outer: dict[bytes, Value]) -> tuple[str, ...]:
    """The addresses of BEP 19; a single one may stand there without a list."""
    listed = outer.get(b"url-list", [])
    urls = listed if isinstance(listed, list) else [listed]
    texts = [url.decode("ascii", "replace") for url in urls if isinstance(url, bytes)]
    return tuple(url for url in texts if url.startswith(("http://", "https://")))
