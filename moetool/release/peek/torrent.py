"""A torrent looked into before it is downloaded: bytes of its files, fetched as they are read.

Only the pieces that are asked for come, into a temporary folder that is removed at the end. Each
is hashed by us before a byte of it is believed. What is read, and where, is the readers' matter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.errors import DigestMismatch, Refused, TruncatedFile
from moetool.extents import LocalFile
from moetool.release.magnet import format_magnet
from moetool.release.pieces import PieceMap, find_bad
from moetool.release.source import Source, judge_metadata, reaching
from moetool.release.torrent.download import single_pieces
from moetool.release.torrent.metainfo import Metainfo, read_info
from moetool.release.torrent.session import Swarm

if TYPE_CHECKING:
    from moetool.release.torrent.profile import SwarmOptions
    from moetool.release.torrent.watch import Peer, Progress

MAX_NBYTES = 512 << 20
"""The most that looking may cost: no header is that long, but every piece comes whole."""


@dataclass(frozen=True, slots=True)
class TorrentOrigin:
    """Where a look came from and what it cost, in bytes.

    ``received_nbytes`` is all that came over the network, ``piece_nbytes`` the size of a piece,
    which is the least that can be had; ``banned`` are peers that were cut off after a bad piece.
    """

    kind: str
    link: str
    name: str
    info_hashes: tuple[str, ...]
    nbytes: int
    piece_nbytes: int
    pieces: int
    pieces_received: int
    received_nbytes: int
    banned: tuple[Peer, ...]


@dataclass(slots=True)
class PieceStore:
    """The pieces of a torrent in a folder, where they are put by ``get`` when they are needed."""

    meta: Metainfo
    folder: Path
    get: Callable[[Collection[int]], None]
    limit: int = MAX_NBYTES
    map: PieceMap = field(init=False)
    checked: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.map = PieceMap(self.meta, self.folder)

    def need(self, indices: Iterable[int]) -> None:
        """Have pieces fetched that are not here, and hash them.

        Raises:
            Refused: it would be more than the limit.
            DigestMismatch: what came is not what the torrent promises.
            NetworkFault, SystemFault: it does not come.
        """
        missing = sorted(set(indices) - self.checked)
        if not missing:
            return
        cost = (len(self.checked) + len(missing)) * self.meta.piece_length
        if cost > self.limit:
            raise Refused(
                f"the headers lie in pieces of {cost} bytes together, more than {self.limit} "
                f"(a piece has {self.meta.piece_length})",
                where=self.meta.name,
                hint="fetch it, and inspect what is here then",
            )
        self.get(missing)
        bad = find_bad([self.map.pieces[index] for index in missing])
        if bad:
            raise DigestMismatch(
                f"piece {bad[0].index} does not have the {bad[0].digest.algorithm} of the torrent",
                where=self.meta.name,
                hint="try again: what came was not written as it was received",
            )
        self.checked.update(missing)


@dataclass(frozen=True, slots=True)
class _TorrentFile:
    """A `ByteSource` on a file of a torrent."""

    store: PieceStore
    path: Path
    nbytes: int
    here: Path  # where its pieces are put

    def pread(self, offset: int, nbytes: int) -> bytes:
        """Read exactly ``nbytes`` at ``offset``; see `ByteSource.pread`, `PieceStore.need`."""
        if not 0 <= offset <= offset + nbytes <= self.nbytes:
            raise TruncatedFile(
                f"ends at byte {self.nbytes}, expected {nbytes} bytes at {offset}",
                where=str(self.path),
            )
        if not nbytes:
            return b""
        self.store.need(self.store.map.covering(self.here, offset, nbytes))
        with LocalFile(self.here) as file:
            return file.pread(offset, nbytes)


@dataclass(frozen=True, slots=True)
class TorrentFiles:
    """The files of one folder of a torrent, by their plain names."""

    store: PieceStore
    sources: Mapping[str, _TorrentFile]

    @property
    def names(self) -> Collection[str]:
        """The files that are there."""
        return self.sources.keys()

    def open(self, name: str) -> _TorrentFile | None:
        """A file; None where there is none of that name."""
        return self.sources.get(name)

    def expect(self, ranges: Iterable[tuple[str, slice]]) -> None:
        """Have the pieces of all these bytes fetched at once; see `PieceStore.need`."""
        wanted: set[int] = set()
        for name, part in ranges:
            source = self.sources[name]
            start, stop, _ = part.indices(source.nbytes)
            wanted.update(self.store.map.covering(source.here, start, stop - start))
        self.store.need(wanted)


@dataclass(slots=True)
class TorrentLook:
    """A torrent that is being looked into: its files, and the cost so far."""

    source: Source
    meta: Metainfo
    files: TorrentFiles
    _swarm: Swarm
    _took: Callable[[], tuple[Peer, ...]]

    def origin(self) -> TorrentOrigin:
        """Where it came from and what it cost so far."""
        return TorrentOrigin(
            kind="torrent",
            link=format_magnet(self.source.magnet),
            name=self.meta.name,
            info_hashes=self.meta.hashes,
            nbytes=self.meta.nbytes,
            piece_nbytes=self.meta.piece_length,
            pieces=len(self.files.store.map.pieces),
            pieces_received=len(self.files.store.checked),
            received_nbytes=self._swarm.received,
            banned=self._took(),
        )


@contextmanager
def look_into(
    source: Source,
    options: SwarmOptions,
    is_weights: Callable[[str], bool],
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Iterator[TorrentLook]:
    """Join the swarm of a torrent for single pieces; nothing is left on disk.

    ``is_weights`` tells by its name whether a file belongs to a checkpoint.

    Raises:
        HostileTorrent, Refused: refused before a byte of a file came.
        MetadataTimeout, Stalled: the swarm does not give it.
    """
    options = replace(reaching(source.magnet, options), gives=False)
    with tempfile.TemporaryDirectory(prefix="moetool-") as name, Swarm(options) as swarm:
        if source.meta is None:
            info = swarm.metadata(source.magnet, on_progress)
            source = judge_metadata(source, read_info(info))
        meta, folder = source.meta, Path(name)
        assert meta is not None  # judged just now, or before
        _refuse_without_layers(meta)
        stay = single_pieces(
            swarm,
            meta,
            folder,
            lambda now: on_progress(replace(now, stage="headers", bytes_total=0)),
        )
        store = PieceStore(meta, folder, stay.get)
        files = TorrentFiles(store, _in_one_folder(store, is_weights))
        yield TorrentLook(source, meta, files, swarm, lambda: stay.took().banned)


def _in_one_folder(store: PieceStore, is_weights: Callable[[str], bool]) -> dict[str, _TorrentFile]:
    """The files beside each other that hold the checkpoint, by name; the top folder goes first."""
    files = [file for file in store.meta.files if not file.pad]
    chosen = folder_of_weights(store.meta, is_weights)
    return {
        file.parts[-1]: _TorrentFile(
            store, Path(store.meta.name, *file.parts), file.nbytes, store.folder / file.path
        )
        for file in files
        if file.parts[:-1] == chosen
    }


def folder_of_weights(meta: Metainfo, is_weights: Callable[[str], bool]) -> tuple[str, ...]:
    """Which folder of a torrent holds the checkpoint; the top folder, which is (), goes first.

    Raises:
        Refused: several folders hold weights, and the top folder none.
    """
    files = [file for file in meta.files if not file.pad]
    above = sorted({file.parts[:-1] for file in files if is_weights(file.parts[-1])})
    if len(above) > 1 and above[0]:
        raise Refused(
            f"the torrent holds weights in {len(above)} folders",
            where=meta.name,
            hint="fetch it, and name the folder",
            findings=tuple(ascii("/".join(parts)) for parts in above[:40]),
        )
    return above[0] if above else ()


def _refuse_without_layers(meta: Metainfo) -> None:
    """A v2 info dict alone has one hash for each file; peers are not asked for the rest."""
    longest = max(file.nbytes for file in meta.files)
    if not meta.pieces and not meta.piece_layers and longest > meta.piece_length:
        raise Refused(
            "the link of a v2 torrent does not tell the digests of single pieces",
            where=meta.name,
            hint="give its .torrent file instead, or fetch it",
        )
