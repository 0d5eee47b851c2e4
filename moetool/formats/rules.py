"""What every format must keep to, whoever wrote it: printable names, sane shapes, bounded counts.

The limits are far above any real checkpoint (Mixtral 8x22B: 1,739 tensors, a header of 300 kB)
and low enough that a hostile header costs neither five seconds nor 150 MB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.errors import BadHeader
from moetool.tensors import DType, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moetool.extents import Extent

MAX_TENSORS = 65_536  # in one file
MAX_NAME = 512
MAX_RANK = 8
MAX_NBYTES = 1 << 60  # of one tensor, and of all of one file


def shown(name: object) -> str:
    """Spell a name that came out of a file so that it cannot harm a terminal."""
    return ascii(name)[:200]


def check_name(name: str, where: str) -> None:
    """Refuse a tensor name that cannot be printed as it is.

    Raises:
        BadHeader: empty, too long, or with control, bidi or surrogate characters.
    """
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise BadHeader(
            f"tensor name {shown(name)} is empty, longer than {MAX_NAME} or not printable",
            where=where,
        )


def check_info(name: str, dtype: DType, shape: tuple[int, ...], where: str) -> TensorInfo:
    """Make a `TensorInfo` of what a header says, if such a tensor can be.

    Raises:
        BadHeader: bad name, rank, dimension or size, or rows that break a quantisation block.
    """
    check_name(name, where)
    if len(shape) > MAX_RANK:
        raise BadHeader(f"tensor {shown(name)} has {len(shape)} dimensions", where=where)
    numel = 1
    for dimension in shape:
        # Zeros must not hide an absurd neighbour: [0, 2**63] overflows in other readers.
        if not 0 <= dimension <= MAX_NBYTES or numel * max(dimension, 1) > MAX_NBYTES:
            raise BadHeader(f"tensor {shown(name)} has an impossible shape", where=where)
        numel *= max(dimension, 1)
    row = shape[-1] if shape else 1
    if row % dtype.block_size:
        raise BadHeader(
            f"tensor {shown(name)}: rows of {row} do not fill {dtype.label} blocks of "
            f"{dtype.block_size}",
            where=where,
        )
    return TensorInfo(name, dtype, shape)


def check_count(count: int, what: str, where: str, limit: int = MAX_TENSORS) -> None:
    """Refuse a count that no real checkpoint comes near.

    Raises:
        BadHeader: more than ``limit``.
    """
    if count > limit:
        raise BadHeader(f"{count} {what}, more than {limit}", where=where)


def check_tiling(extents: Iterable[tuple[str, Extent]], start: int, end: int, where: str) -> None:
    """Refuse tensors that leave a hole in ``start:end``, overlap, or reach beyond it.

    Raises:
        BadHeader: the extents, in order of offset, do not meet each other exactly.
    """
    position = start
    for name, extent in sorted(extents, key=lambda item: (item[1].offset, item[1].end)):
        if extent.offset != position:
            kind = "a hole before" if extent.offset > position else "an overlap at"
            raise BadHeader(f"{kind} tensor {shown(name)}, byte {position}", where=where)
        position = extent.end
    if position != end:
        raise BadHeader(
            f"tensors end at byte {position}, the file at {end}",
            where=where,
            hint="fetch or copy the file again" if position > end else None,
        )
