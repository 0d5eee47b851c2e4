"""Put right pieces in the place of wrong ones, from files that hold the same bytes elsewhere.

A piece is read from the copy, hashed, and only then written where it belongs; what is equal
already is not touched. A group is synced, dropped from the cache, read again and hashed again
before anybody calls it healed. So a kill at any moment leaves pieces that are right, and pieces
that are as wrong as before.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moetool.durable import sync_folder
from moetool.errors import DigestMismatch, NoRoomOnDisk, SystemFault
from moetool.extents import Extent, Range, drop_from_cache, union
from moetool.files.joined import on_disk
from moetool.release.pieces import Piece, find_bad, read_extent

GROUP_NBYTES = 256 << 20  # written before it is synced and read back
BLOCK_NBYTES = 4096  # what is compared at a time
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Copy:
    """Files that may hold the bytes of others: ``places`` says where the copy of each begins."""

    name: str
    places: Mapping[Path, tuple[Path, int]]

    def read(self, piece: Piece) -> list[bytes] | None:
        """The bytes of a piece, a block for each extent, if the copy has them right.

        Where a piece runs across files and one of these is bad or absent in the copy, its own
        neighbours are taken for that part: the digest says whether the whole is right.

        Raises:
            Refused: a file of the copy is no regular file.
        """
        extents = piece.extents
        if not any(extent.path in self.places for extent in extents):
            return None
        theirs = [self._read(extent) for extent in extents]
        ours = [read_extent(extent) for extent in extents] if len(extents) > 1 else theirs
        for blocks in _mixtures(theirs, ours):
            if piece.matches(blocks):
                return blocks
        return None

    def has(self, piece: Piece) -> bool:
        """Whether the copy has all of a piece right, without help from its neighbours."""
        blocks = [self._read(extent) for extent in piece.extents]
        whole = [block for block in blocks if block is not None]
        return len(whole) == len(blocks) and piece.matches(whole)

    def _read(self, extent: Extent) -> bytes | None:
        if extent.path not in self.places:
            return None
        path, start = self.places[extent.path]
        return read_extent(Extent(path, start + extent.offset, extent.nbytes))


def _mixtures(
    theirs: Sequence[bytes | None], ours: Sequence[bytes | None]
) -> Iterator[list[bytes]]:
    """All from the copy; then one part from it and the rest from here, and the other way round."""
    count = len(theirs)
    picks = [set(range(count))]
    if count > 1:
        picks += [{at} for at in range(count)] + [set(range(count)) - {at} for at in range(count)]
    for picked in picks:
        blocks = [theirs[at] if at in picked else ours[at] for at in range(count)]
        whole = [block for block in blocks if block is not None]
        if len(whole) == count:
            yield whole


@dataclass(frozen=True, slots=True)
class Healed:
    """A piece that is right now, and the bytes of it that were not before."""

    piece: Piece
    changed: tuple[Extent, ...]


@dataclass(slots=True)
class Mender:
    """Writes pieces in place; ``on_healed`` is told of each one that was read back right."""

    on_healed: Callable[[Healed], None]
    _open: dict[Path, int] = field(default_factory=dict)
    _made: set[Path] = field(default_factory=set)

    def mend(
        self,
        bad: Sequence[Piece],
        copy: Copy,
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> list[Piece]:
        """Take from a copy what it has right; the pieces that it does not have.

        Raises:
            NoRoomOnDisk, SystemFault: a file cannot be written.
            DigestMismatch: what was written does not read back as it was written.
        """
        left: list[Piece] = []
        group: list[Healed] = []
        try:
            for piece in bad:
                blocks = copy.read(piece)
                on_bytes(piece.nbytes)
                if blocks is None:
                    left.append(piece)
                    continue
                group.append(Healed(piece, self._write(piece, blocks)))
                if sum(item.piece.nbytes for item in group) >= GROUP_NBYTES:
                    self._settle(group)
                    group = []
            self._settle(group)
        finally:
            self._close()
        return left

    def _write(self, piece: Piece, blocks: Sequence[bytes]) -> tuple[Extent, ...]:
        """Write the parts of a piece that differ from what lies there; the bytes that did."""
        changed: list[Extent] = []
        for extent, block in zip(piece.extents, blocks, strict=True):
            at = 0
            for place in on_disk(extent):
                new = block[at : at + place.nbytes]
                spans = differing(read_extent(place), new)
                for low, high in spans:
                    changed.append(Extent(extent.path, extent.offset + at + low, high - low))
                if spans:
                    self._put(place, new)
                at += place.nbytes
        return tuple(changed)

    def _put(self, place: Extent, block: bytes) -> None:
        try:
            if place.path not in self._open:
                self._open[place.path] = open_for_writing(place.path, self._made)
            done = 0
            while done < place.nbytes:  # one pwrite takes at most 2 GiB on Linux
                rest = memoryview(block)[done:]
                done += os.pwrite(self._open[place.path], rest, place.offset + done)
        except OSError as error:
            raise cannot_write(error, place.path) from error

    def _settle(self, group: Sequence[Healed]) -> None:
        """Sync what was written, read it back from the disk, and only then call it healed."""
        for path, handle in self._open.items():
            try:
                os.fsync(handle)
            except OSError as error:
                raise cannot_write(error, path) from error
        self._close()
        for folder in self._made:
            sync_folder(folder)
        self._made.clear()
        for item in group:
            for extent in item.piece.extents:
                for place in on_disk(extent):
                    drop_from_cache(place)
        wrong = find_bad([item.piece for item in group])
        for item in group:
            if item.piece not in wrong:
                self.on_healed(item)
        if wrong:
            raise DigestMismatch(
                f"{len(wrong)} pieces do not read back as they were written",
                where=str(wrong[0].extents[0].path),
                hint="the disk or the memory of this machine is not to be trusted: look at dmesg",
                findings=tuple(f"piece {piece.index}" for piece in wrong),
            )

    def _close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


def open_for_writing(path: Path, made: set[Path]) -> int:
    """A descriptor of a file that is made if it is missing; its folder is then noted in ``made``.

    Raises:
        OSError: also where the name is a link, which could lead anywhere.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        missing = path.parent
        while not missing.exists():
            made.add(missing := missing.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        made.add(path.parent)
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)


def set_size(path: Path, nbytes: int, made: set[Path]) -> None:
    """Cut or lengthen a file durably; see `open_for_writing`."""
    handle = open_for_writing(path, made)
    try:
        os.ftruncate(handle, nbytes)
        os.fsync(handle)
    finally:
        os.close(handle)


def cannot_write(error: OSError, path: Path) -> SystemFault:
    """The error for a file that cannot be written."""
    what = error.strerror or str(error)
    if error.errno in _FULL:
        hint = "free some room and run the same command again; what is healed stays"
        return NoRoomOnDisk(f"no room: {what}", where=str(path), hint=hint)
    hint = "make it writable and run the same command again, or repair a copy of the folder"
    return SystemFault(f"cannot be written: {what}", where=str(path), hint=hint)


def differing(old: bytes | None, new: bytes) -> list[Range]:
    """Where two blocks of one length differ, in ranges a few kilobytes apart at the least.

    Without old bytes all of it does.
    """
    if old is None:
        return [(0, len(new))]
    if old == new:
        return []
    one, other = memoryview(old), memoryview(new)
    ranges = [
        (at, min(at + BLOCK_NBYTES, len(new)))
        for at in range(0, len(new), BLOCK_NBYTES)
        if one[at : at + BLOCK_NBYTES] != other[at : at + BLOCK_NBYTES]
    ]
    return [_narrowed(one, other, low, high) for low, high in union(ranges)]


def _narrowed(one: memoryview, other: memoryview, low: int, high: int) -> Range:
    """The first and the last difference in a range that has one."""
    while one[low] == other[low]:
        low += 1
    while one[high - 1] == other[high - 1]:
        high -= 1
    return low, high
