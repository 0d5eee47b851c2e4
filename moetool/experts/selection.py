"""A checkpoint seen with some of its experts, in any order: nothing is copied, everything reads it.

    layer 3 of A   experts 0 1 2 3 4 5 6 7      router rows 0 1 2 3 4 5 6 7
    kept (5 0 2)            │     │             the same three rows, in the same order
    layer 3 seen   experts 0 1 2                router rows 0 1 2

The router's rows go with the experts, and every layer keeps as many, for no format has room for
another count in each layer. What is seen is a checkpoint like any other, in the source's own layout
and types: the runner computes with it, the conversion writes it, the diff compares it. A tensor of
several experts (stacked, or as rows of one matrix) is read as ranges of the stored one; quantised
rows stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from moetool.arch.recognize import Recognized
from moetool.arch.schema import Role, Slot, expand
from moetool.convert.execute.checked_source import CheckedSource
from moetool.convert.plan import COPY_CHUNK
from moetool.errors import UsageFault
from moetool.extents import Extent
from moetool.formats import FileCheckpoint
from moetool.tensors import TensorInfo

if TYPE_CHECKING:
    from moetool.arch.schema import Cell, StoredTensor
    from moetool.extents import Claim
    from moetool.tensors import Catalog

Kept = tuple[tuple[int, ...], ...]
"""For each layer its experts, by their old numbers in their new order."""
Ranges = tuple[str, tuple[tuple[int, int], ...]]
"""A stored tensor, and byte ranges of it."""


class Selection(FileCheckpoint):
    """The files of another checkpoint, which stays open as long as this is read.

    The extent of a tensor that is gathered from several places begins where the first one does.
    """

    __slots__ = ("_ranges", "_whole")

    def __init__(self, whole: FileCheckpoint, catalog: Catalog, ranges: dict[str, Ranges]) -> None:
        super().__init__(whole.path, catalog, whole.sources, whole.directory, pinned=whole.pinned)
        self._whole, self._ranges = whole, ranges

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Read bytes ``start:stop`` of a tensor as it is seen here."""
        end = self.catalog.tensors[name].nbytes if stop is None else stop
        source = self._ranges[name][0]
        pieces = [self._whole.read(source, *piece) for piece in self._pieces(name, start, end)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes of a tensor from ``start`` on."""
        source = self._ranges[name][0]
        for first, last in self._pieces(name, start, start + len(buffer)):
            self._whole.read_into(source, first, buffer[: last - first])
            buffer = buffer[last - first :]

    def held(self, name: str, start: int = 0, stop: int | None = None) -> int:
        """How many bytes of a tensor, as it is seen here, are here."""
        end = self.catalog.tensors[name].nbytes if stop is None else stop
        source = self._ranges[name][0]
        return sum(self._whole.held(source, *piece) for piece in self._pieces(name, start, end))

    def holds(self, name: str, start: int = 0, stop: int | None = None) -> bool:
        """Whether bytes of a tensor, as it is seen here, are here, all of them."""
        end = self.catalog.tensors[name].nbytes if stop is None else stop
        return self.held(name, start, end) == end - start

    @property
    def gathered(self) -> list[str]:
        """The stored tensors of which tensors here are put together."""
        found = (source for source, pieces in self._ranges.values() if len(pieces) > 1)
        return list(dict.fromkeys(found))

    def check_gathered(self) -> None:
        """Settle what a .pth itself claims of stored tensors that are read in ranges only.

        A conversion settles the CRC-32 of whatever it reads whole. These it does not: in the raw
        layout they are the routers, in the packed one all experts, which are read once more.

        Raises:
            DigestMismatch: one is not what the zip promises.
        """
        if not self._whole.catalog.claims:
            return
        checked = CheckedSource(self._whole, self.sources)
        checked.begin(fingerprint=False)
        for name in self.gathered:
            nbytes = self._whole.catalog.tensors[name].nbytes
            for at in range(0, nbytes, COPY_CHUNK):
                checked.read(name, at, min(at + COPY_CHUNK, nbytes))
        checked.end()
        checked.settle_rest()

    def _pieces(self, name: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The stored ranges that bytes ``start:stop`` come from; of no bytes an empty one."""
        if start == stop:
            yield 0, 0
        at = 0
        for first, last in self._ranges[name][1]:
            low, high = max(start, at), min(stop, at + last - first)
            if low < high:
                yield first + low - at, first + high - at
            at += last - first


def select(
    checkpoint: FileCheckpoint, recognized: Recognized, kept: Kept
) -> tuple[Selection, Recognized]:
    """See a checkpoint with the experts in ``kept``.

    Raises:
        UsageFault: layers or experts that are not there, or are named twice; too few; another
            count in one layer than in the next.
    """
    refuse_impossible(recognized, kept)
    args = replace(recognized.args, n_experts=len(kept[0]))
    layout = expand(recognized.convention, args)
    seen = Recognized(recognized.architecture, recognized.convention, args, layout)
    places = {
        cell.slot: (stored, cell) for stored in recognized.layout.values() for cell in stored.cells
    }
    ranges, tensors, extents = {}, {}, {}
    whole = checkpoint.catalog
    for name, stored in layout.items():
        found = [_rows(cell, kept, places) for cell in stored.cells]
        source = found[0][0].name
        info = whole.tensors[source]
        row_nbytes = info.dtype.nbytes(stored.columns)
        rows = _merged([pair for _, pairs in found for pair in pairs])
        ranges[name] = source, tuple((a * row_nbytes, b * row_nbytes) for a, b in rows)
        tensors[name] = TensorInfo(name, info.dtype, stored.shape)
        placed = whole.extents[source]
        first = placed.offset + ranges[name][1][0][0]
        extents[name] = Extent(placed.path, first, tensors[name].nbytes)
    catalog = replace(whole, tensors=tensors, extents=extents)
    selection = Selection(checkpoint, catalog, ranges)
    selection.catalog = replace(catalog, claims=_untouched(whole, selection.gathered))
    return selection, seen


def _rows(
    cell: Cell, kept: Kept, places: dict[Slot, tuple[StoredTensor, Cell]]
) -> tuple[StoredTensor, list[tuple[int, int]]]:
    """The stored tensor that a cell is read from, and the rows of it."""
    slot = cell.slot
    if slot.role is Role.ROUTER:
        assert slot.layer is not None
        stored, place = places[slot]
        assert not place.transposed  # no convention does; rows are experts
        return stored, [(place.start + e, place.start + e + 1) for e in kept[slot.layer]]
    if slot.expert is not None:
        assert slot.layer is not None
        slot = Slot(slot.role, slot.layer, kept[slot.layer][slot.expert])
    stored, place = places[slot]
    return stored, [(place.start, place.stop)]


def _merged(rows: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges that follow each other."""
    merged = [rows[0]]
    for start, stop in rows[1:]:
        if start == merged[-1][1]:
            merged[-1] = merged[-1][0], stop
        else:
            merged.append((start, stop))
    return merged


def _untouched(catalog: Catalog, gathered: list[str]) -> tuple[Claim, ...]:
    """The claims on bytes of which no tensor is gathered: only those can be settled by reading."""
    places = [catalog.extents[name] for name in gathered]
    return tuple(
        claim
        for claim in catalog.claims
        if not any(
            place.path == extent.path and extent.offset <= place.offset < extent.end
            for extent in claim.extents
            for place in places
        )
    )


def refuse_impossible(recognized: Recognized, kept: Kept) -> None:
    """Refuse what no file can hold or no token can be routed in.

    Raises:
        UsageFault: with all that is wrong.
    """
    args = recognized.args
    findings = []
    if len(kept) != args.n_layers:
        findings.append(f"{len(kept)} layers are named, there are {args.n_layers}")
    counts = sorted({len(experts) for experts in kept})
    if len(counts) > 1:
        findings.append(
            f"layers would keep {' or '.join(map(str, counts))} experts; files have one count"
        )
    for layer, experts in enumerate(kept):
        strange = sorted(expert for expert in experts if not 0 <= expert < args.n_experts)
        findings += [f"layer {layer} has no expert {expert}" for expert in strange]
        if len(set(experts)) < len(experts):
            findings.append(f"layer {layer} names an expert twice")
    if counts and counts[0] < max(args.n_experts_per_tok, 1):
        findings.append(f"{counts[0]} experts are fewer than a token's {args.n_experts_per_tok}")
    if findings or not args.n_experts:
        raise UsageFault(
            "these experts cannot be chosen" if args.n_experts else "a dense model has no experts",
            findings=tuple(findings[:20]),
            hint="moetool inspect says how many layers and experts there are",
        )
