"""An importance matrix: how large what a weight's columns are multiplied with usually is.

A quantiser that must lose bits loses them where it matters least: an error in a column counts by
the mean square of the activations that meet it. An entry holds, for each matrix of a tensor (one,
or one for each expert), the sum of squares of every input column and the number of tokens that it
was taken over. Sources: ggml-org/llama.cpp: tools/imatrix/imatrix.cpp, tools/quantize/quantize.cpp
(load_imatrix), src/llama-quant.cpp.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from moetool.errors import Refused
from moetool.formats.rules import shown

# The only tensor whose entry may have another size: llama.cpp's quantiser leaves it out as well.
_EMBEDDINGS = "token_embd.weight"


@dataclass(frozen=True, slots=True)
class Entry:
    """What was gathered for one tensor.

    ``sums``: float32, one value for each column, one matrix behind the other. ``counts``: tokens of
    each matrix. In the legacy form the sums are means times a number of calls, which is the only
    count, whatever the number of matrices.
    """

    sums: array[float]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Imatrix:
    """Entries by the GGUF name of their tensor.

    ``datasets``: the texts it was made from, as they were named then. ``chunk_size``: tokens of a
    chunk; 0 where the form does not say. ``legacy``: read from a .dat.
    """

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    legacy: bool = False

    def importance(self, name: str) -> array[float] | None:
        """What a quantiser weighs the columns of a tensor with; None for a tensor without an entry.

        Float32 ``[matrices * columns]``, to the bit what llama-quantize takes. An expert that no
        token came to has 1 for every column.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        if self.legacy:
            return _divided(entry.sums, entry.counts[0] or 1)
        columns = len(entry.sums) // len(entry.counts)
        values = array("f")
        for index, count in enumerate(entry.counts):
            row = entry.sums[index * columns : (index + 1) * columns]
            values += _divided(row, count) if count else array("f", [1.0]) * columns
        return values

    def never_activated(self, name: str) -> tuple[int, ...]:
        """The matrices of a tensor that no token came to; the legacy form does not tell."""
        entry = self.entries.get(name)
        if entry is None or self.legacy:
            return ()
        return tuple(index for index, count in enumerate(entry.counts) if not count)


def _divided(sums: array[float], count: int) -> array[float]:
    """Quotients as float32 has them: of two float32, float64 rounds to the very same bits."""
    divisor = array("f", [count])[0]
    return array("f", [value / divisor for value in sums])


def check_imatrix(
    imatrix: Imatrix, tensors: Mapping[str, tuple[int, int]], where: str
) -> tuple[str, ...]:
    """Compare an importance matrix with the weights that are to be quantised.

    ``tensors``: GGUF name -> number of matrices, columns. What comes back are notes: entries
    without a tensor, tensors without an entry, experts that no token came to.

    Raises:
        Refused: entries whose sizes are not the tensors'; all are listed.
    """
    misfits = []
    for name, (n_matrices, columns) in tensors.items():
        entry = imatrix.entries.get(name)
        if entry is None or name == _EMBEDDINGS:
            continue
        found = _shape(entry, legacy=imatrix.legacy)
        # One count for several matrices is a tensor that every token goes through.
        same_rows = len(entry.counts) in {1, n_matrices}
        if len(entry.sums) != n_matrices * columns or not same_rows:
            misfits.append(f"{name}: the tensor has {n_matrices} x {columns}, the entry {found}")
    if misfits:
        raise Refused(
            f"{len(misfits)} entries of the importance matrix do not fit the model",
            where=where,
            hint="it was made for another model: make one with moetool imatrix",
            findings=tuple(misfits),
        )
    return tuple(_notes(imatrix, tensors))


def _shape(entry: Entry, *, legacy: bool) -> str:
    n = len(entry.counts)
    return f"{len(entry.sums)} values" if legacy else f"{n} x {len(entry.sums) // n}"


def _notes(imatrix: Imatrix, tensors: Mapping[str, tuple[int, int]]) -> list[str]:
    notes = []
    strangers = [name for name in imatrix.entries if name not in tensors]
    if strangers:
        notes.append(f"{_listed(strangers)}: in the importance matrix and not in the model")
    without = [name for name in tensors if name not in imatrix.entries]
    if without:
        notes.append(f"{_listed(without)}: without an entry, so every column counts the same")
    for name in tensors:
        idle = imatrix.never_activated(name)
        if idle:
            experts = ", ".join(map(str, idle))
            notes.append(f"{name}: no token came to {experts}, so every column counts the same")
    return notes


def _listed(names: list[str]) -> str:
    """Names that may come from a hostile file; some of many."""
    some = ", ".join(shown(name)[1:-1] for name in names[:4])
    return some if len(names) <= 4 else f"{some} and {len(names) - 4} more"  # noqa: PLR2004  # as cut
