"""A checkpoint whose bytes are checked while they are read: the zip's CRC-32s, claim by claim.

torch never looks at them, so a bit that rots in a .pth would become part of a fresh, valid output.
A range that is read is noted with its CRC-32. Once ranges cover a member, in whatever order, files
or runs they were read, their CRCs are combined and compared with what the zip promises.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import xxhash
from zlib_ng import zlib_ng

from moetool.errors import DigestMismatch
from moetool.formats.pth_writer import crc32_combine

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.extents import ByteSource, Claim
    from moetool.tensors import Buffer, Catalog, Checkpoint

_CHUNK = 1 << 20  # bytes read at a time of what no tensor needs


@dataclass(frozen=True, slots=True)
class SourceRange:
    """Bytes ``start:stop`` of a source tensor, and their CRC-32."""

    tensor: str
    start: int
    stop: int
    crc32: int


class CheckedSource:
    """A `Checkpoint` that settles the CRC-32 claims of the one below it.

    ``sources`` are the open files, for the bytes of a member that no tensor needs.
    """

    def __init__(self, checkpoint: Checkpoint, sources: Mapping[Path, ByteSource]) -> None:
        self._checkpoint, self._sources = checkpoint, sources
        self.catalog: Catalog = checkpoint.catalog
        self._members = _Members(self.catalog)
        self._ranges: list[SourceRange] = []
        self._fingerprint: xxhash.xxh3_128 | None = None
        self._read: dict[Claim, list[tuple[int, int, int]]] = defaultdict(list)
        self.damaged: frozenset[str] = frozenset()  # tensors of the member that did not match

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Buffer:
        """Read bytes ``start:stop`` of the stored form of a tensor, and note them."""
        content = self.read_again(name, start, stop)
        if self._fingerprint is not None:
            self._fingerprint.update(content)
        return content

    def read_again(self, name: str, start: int = 0, stop: int | None = None) -> Buffer:
        """Read what this step has read before: checked again, and no part of its fingerprint."""
        content = self._checkpoint.read(name, start, stop)
        if self._members.of(name) is not None:
            self._note(name, start, content)
        return content

    def begin(self, *, fingerprint: bool) -> None:
        """Begin a step: what is read from now on counts for it."""
        self._ranges, self._fingerprint = [], xxhash.xxh3_128() if fingerprint else None

    def end(self) -> tuple[tuple[SourceRange, ...], str]:
        """End a step: the ranges that it read, settled, and the fingerprint if it was wanted.

        Raises:
            DigestMismatch: a member that is now wholly read is not what the zip promises.
        """
        self.settle(self._ranges)
        found = self._fingerprint.hexdigest() if self._fingerprint is not None else ""
        return tuple(self._ranges), found

    def settle(self, ranges: Iterable[SourceRange]) -> None:
        """Enter ranges, also of an earlier run, and settle the members that they complete."""
        for item in ranges:
            claim = self._members.of(item.tensor)
            if claim is None:
                continue
            offset = self.catalog.extents[item.tensor].offset
            read = self._read[claim]
            found = (offset + item.start, offset + item.stop, item.crc32)
            self._refuse_other(claim, read, found)
            read.append(found)
            member = claim.extents[0]
            if sum(stop - start for start, stop, _ in read) >= member.nbytes:
                crc, position = _joined(read, member.offset)
                if position == member.end:
                    self._compare(claim, crc)

    def settle_rest(self) -> None:
        """Read what no tensor needs of the members that were begun, and settle those too."""
        for claim in list(self._read):
            member = claim.extents[0]
            crc, position = _joined(self._read[claim], member.offset)
            while position < member.end:
                ahead = [start for start, _, _ in self._read[claim] if start > position]
                stop = min([*ahead, member.end, position + _CHUNK])
                content = self._sources[member.path].pread(position, stop - position)
                self._read[claim].append((position, stop, zlib_ng.crc32(content)))
                crc, position = _joined(self._read[claim], member.offset)
            self._compare(claim, crc)

    def _note(self, name: str, start: int, content: Buffer) -> None:
        last = self._ranges[-1] if self._ranges else None
        stop = start + memoryview(content).nbytes
        if last is not None and (last.tensor, last.stop) == (name, start):
            crc = zlib_ng.crc32(content, last.crc32)
            self._ranges[-1] = SourceRange(name, last.start, stop, crc)
        else:
            self._ranges.append(SourceRange(name, start, stop, zlib_ng.crc32(content)))

    def _refuse_other(
        self, claim: Claim, read: list[tuple[int, int, int]], found: tuple[int, int, int]
    ) -> None:
        """Refuse a range that was read before and was something else then.

        Raises:
            DigestMismatch: with the tensors that lie there.
        """
        if any(found[:2] == known[:2] and found[2] != known[2] for known in read):
            self._refuse(
                claim, f"has CRC-32 {found[2]:08x}, and had another when it was read before"
            )

    def _compare(self, claim: Claim, crc: int) -> None:
        if f"{crc:08x}" == claim.digest.hex:
            return
        self._refuse(claim, f"has CRC-32 {crc:08x}, the zip promises {claim.digest.hex}")

    def _refuse(self, claim: Claim, what: str) -> NoReturn:
        tensors = self._members.tensors(claim)
        self.damaged = frozenset(tensors)
        raise DigestMismatch(
            f"{', '.join(tensors[:4])} ({claim.reference.partition('#')[2]}) {what}",
            where=str(claim.extents[0].path),
            hint="the source is damaged; moetool verify says what else is, then fetch or copy it "
            "again",
        )


class _Members:
    """Which member of a zip each tensor lies in."""

    def __init__(self, catalog: Catalog) -> None:
        claims = sorted(
            (claim for claim in catalog.claims if claim.digest.algorithm == "crc32"),
            key=lambda claim: (claim.extents[0].path, claim.extents[0].offset),
        )
        starts = [(claim.extents[0].path, claim.extents[0].offset) for claim in claims]
        self._of: dict[str, Claim] = {}
        for name, extent in catalog.extents.items():
            index = bisect_right(starts, (extent.path, extent.offset)) - 1
            member = claims[index].extents[0] if index >= 0 else None
            if member and member.path == extent.path and extent.end <= member.end:
                self._of[name] = claims[index]

    def of(self, name: str) -> Claim | None:
        """The claim on the member that holds a tensor."""
        return self._of.get(name)

    def tensors(self, claim: Claim) -> list[str]:
        """The tensors that lie in a member."""
        return [name for name, held in self._of.items() if held == claim]


def _joined(read: list[tuple[int, int, int]], position: int) -> tuple[int, int]:
    """The CRC of the ranges that follow each other from a position on, and where they end.

    What was read twice (tensors that share bytes) is passed over.
    """
    crc = 0
    for start, stop, found in sorted(read):
        if start == position:
            crc, position = crc32_combine(crc, found, stop - start), stop
    return crc, position
