"""Chunks of a stream regrouped into pieces of whole rows, to look at values row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moetool.tensors import Buffer


def whole_rows(chunks: Iterable[Buffer], row_nbytes: int, piece_nbytes: int) -> Iterator[bytearray]:
    """Yield pieces of whole rows, of at most ``piece_nbytes`` where a row is not longer.

    What is left at the end of the stream is the last piece, whole row or not.
    """
    wanted = max(piece_nbytes // row_nbytes, 1) * row_nbytes
    held = bytearray()
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        while len(held) + len(view) >= wanted:
            cut = wanted - len(held)
            held += view[:cut]
            view = view[cut:]
            yield held
            held = bytearray()
        held += view
    if held:
        yield held
