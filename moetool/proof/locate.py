"""Byte range -> tensor, layer, expert, matrix, rows.

A torrent knows pieces, a zip knows members, a disk knows sectors; a person wants to know which
expert is hit. What lies in no tensor is named by what it is: the file's own header or directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.errors import ArchError, FormatError

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.arch.schema import Cell, StoredTensor
    from moetool.extents import Extent
    from moetool.tensors import Catalog, TensorInfo


@dataclass(frozen=True, slots=True)
class Location:
    """Rows ``start:stop`` of one matrix of one tensor; ``what`` names it for people.

    ``tensor`` is None for bytes that belong to the file and to no tensor.
    """

    tensor: str | None
    what: str
    start: int = 0
    stop: int = 0

    def describe(self) -> str:
        """One line: ``layers.3 expert 5 w2 rows 40-95 (layers.3.feed_forward…)``."""
        if self.tensor is None:
            return self.what
        rows = (
            f"row {self.start}"
            if self.stop - self.start == 1
            else (f"rows {self.start}-{self.stop - 1}")
        )
        return f"{self.what} {rows}" + (f" ({self.tensor})" if self.what != self.tensor else "")


def locate(catalog: Catalog, directory: Path, extent: Extent) -> list[Location]:
    """Name everything that a byte range of a checkpoint's file touches, in file order.

    Rows are those of the stored matrix. Where the model is not recognised, tensors keep their
    stored names.
    """
    from moetool.arch.recognize import recognize

    layout: Mapping[str, StoredTensor] = {}
    with suppress(ArchError, FormatError):  # a damaged side file must not hide the tensor's name
        layout = recognize(catalog, directory).layout
    return locate_in(catalog, layout, extent)


def locate_in(
    catalog: Catalog, layout: Mapping[str, StoredTensor], extent: Extent
) -> list[Location]:
    """Like `locate`, with the layout at hand."""
    touched = sorted(
        (where.offset, name)
        for name, where in catalog.extents.items()
        if where.path == extent.path and where.offset < extent.end and extent.offset < where.end
    )
    found: list[Location] = []
    covered = 0
    for _, name in touched:
        where, info = catalog.extents[name], catalog.tensors[name]
        first = max(extent.offset, where.offset) - where.offset
        last = min(extent.end, where.end) - where.offset
        covered += last - first
        found += _rows(info, layout.get(name), first, last)
    if covered < extent.nbytes:
        found.append(Location(None, f"{extent.path.name}: header, directory or padding"))
    return found


def _rows(info: TensorInfo, stored: StoredTensor | None, first: int, last: int) -> list[Location]:
    """The matrices of a tensor that its bytes ``first:last`` touch."""
    start, stop = first // info.row_nbytes, -(-last // info.row_nbytes)
    if stored is None:
        return [Location(info.name, info.name, start, stop)]
    return [_clip(info.name, cell, start, stop) for cell in stored.cells if _hit(cell, start, stop)]


def _hit(cell: Cell, start: int, stop: int) -> bool:
    return cell.start < stop and start < cell.stop


def _clip(name: str, cell: Cell, start: int, stop: int) -> Location:
    first, last = max(cell.start, start) - cell.start, min(cell.stop, stop) - cell.start
    return Location(name, str(cell.slot), first, last)
