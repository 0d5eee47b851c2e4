"""Is a tensor of B one of A's in another order? Each way that has happened is tried, exactly.

A way says which value of A each value of B would be, and gives the whole of it as a flow of bytes.
A few single values decide against most ways for the price of a few reads; what passes is held
against B byte for byte. So a name is never a guess.

    rotary order   wq and wk: the rows of each head, permuted once or twice, either way
    transposed     the bytes of the transposed matrix, read as if it were not; also of a w1 or w3
                   in the place of w2, and the reverse
    gate and up    the rows of w1 and w3 in turn, read as two halves; and the reverse
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from moetool.arch.schema import Role, RopeLayout, Slot
from moetool.convert.ops import Halve, Interleave
from moetool.proof.diff import flows
from moetool.tensors import DType

if TYPE_CHECKING:
    from moetool.proof.canonical import Weights
    from moetool.proof.identity import Leaf
    from moetool.tensors import Buffer

ROPE_MISSING, ROPE_DOUBLED = "rope-permute-missing", "rope-permute-doubled"
TRANSPOSED, W2_SWAPPED, GATE_UP_ORDER = "transposed", "w2-swapped", "gate-up-order"
_EXPERT_ROLES = (Role.W1, Role.W2, Role.W3)
_N_PROBES = 24
_BY_LABEL = {dtype.label: dtype for dtype in DType}


@dataclass(frozen=True, slots=True)
class Way:
    """One thing that may have happened to a tensor: ``kind``, and ``words`` for people.

    ``source`` gives the slot and the row-major index in A of each index in B.
    """

    kind: str
    words: str
    source: Callable[[int], tuple[Slot, int]]
    flow: Callable[[], Iterator[Buffer]]


def find_way(a: Weights, b: Weights, left: Leaf, right: Leaf) -> Way | None:
    """The way in which a tensor of B holds the values of A in another order; None if none does.

    ``left`` and ``right`` are the leaves of the tensor on either side.

    Raises:
        ReadFailed, TruncatedFile: the machine could not read, or a file has shrunk.
    """
    if len(right.shape) == 1:
        return None
    dtype = _BY_LABEL[right.dtype]
    for way in _ways(a, b, left.slot, dtype, alike=left.dtype == right.dtype):
        if _probed(a, b, right.slot, way) and _proved(b, right.slot, way, dtype):
            return way
    return None


def _ways(a: Weights, b: Weights, slot: Slot, dtype: DType, *, alike: bool) -> Iterator[Way]:
    """Everything that may have happened; ``alike``: both sides need the same type."""
    if alike:
        if slot.role in {Role.WQ, Role.WK}:
            yield from _rope(a, b, slot, dtype)
        yield _transposed(a, slot, slot, dtype)
        yield _turned_back(a, slot, dtype)
    if slot.role not in _EXPERT_ROLES:
        return
    numel = a.info(slot).numel
    for role in _EXPERT_ROLES:
        if Role.W2 in {role, slot.role} and role is not slot.role:
            other = Slot(role, slot.layer, slot.expert)
            if other in a.steps and a.info(other).numel == numel:
                yield _transposed(a, slot, other, dtype)
    if slot.role is not Role.W2 and a.info(slot).shape[0] % 2 == 0:
        yield from _gate_up(a, slot, dtype)


def _probed(a: Weights, b: Weights, slot: Slot, way: Way) -> bool:
    """Whether some values, spread over the tensor, are where they would be."""
    numel = b.info(slot).numel
    for probe in range(_N_PROBES):
        index = (probe * 2_654_435_761 + numel // 3) % numel  # spread as a multiplicative hash is
        found, expected = flows.value_at(b, slot, index), flows.value_at(a, *way.source(index))
        if found != expected and not (math.isnan(found) and math.isnan(expected)):
            return False
    return True


def _proved(b: Weights, slot: Slot, way: Way, dtype: DType) -> bool:
    """Whether the whole tensor is what it would be."""
    from moetool.proof.narrow import NotHeldError

    try:
        return flows.same(way.flow(), flows.plain(b, slot, dtype))
    except NotHeldError:  # a source that needs a wider type is not it
        return False


def _rope(a: Weights, b: Weights, slot: Slot, dtype: DType) -> Iterator[Way]:
    """The rows of each head in an order that a conversion gives them when it goes wrong.

    Where B stores halves and its canonical form looks like pairs from pairs, nobody made halves:
    the permute is missing. Where it looks like halves, somebody made them twice.
    """
    args = b.recognized.args
    rows, columns = a.info(slot).shape
    n_heads = args.heads(slot.role)
    head_rows = rows // n_heads
    stores_halves = b.recognized.convention.stored[slot.role].rope is RopeLayout.HALVES
    halve, back = Halve(n_heads).order(head_rows), Interleave(n_heads).order(head_rows)
    missing, doubled = (back, halve) if stores_halves else (halve, back)
    to, undo = ("halves", "pairs") if stores_halves else ("pairs", "halves")
    orders = (
        (ROPE_MISSING, f"the rotary permute from {undo} to {to} is missing", missing),
        (ROPE_DOUBLED, f"the rotary permute from {undo} to {to} was done twice", doubled),
        (
            ROPE_DOUBLED,
            f"the rotary permute from {undo} to {to} was done three times",
            [doubled[row] for row in doubled],
        ),
        (
            ROPE_MISSING,
            f"the rotary permute from {undo} to {to} is missing, and that back was done",
            [missing[row] for row in missing],
        ),
    )
    tried = [list(range(head_rows))]
    for kind, words, order in orders:
        if order in tried:
            continue
        tried.append(order)
        source = partial(_reordered_index, slot, columns, order)
        yield Way(kind, words, source, partial(flows.reordered, a, slot, dtype, order))


def _reordered_index(slot: Slot, columns: int, order: list[int], index: int) -> tuple[Slot, int]:
    row, column = divmod(index, columns)
    head, within = divmod(row, len(order))
    return slot, (head * len(order) + order[within]) * columns + column


def _transposed(a: Weights, slot: Slot, source: Slot, dtype: DType) -> Way:
    """The columns of a matrix of A, one after another, as the rows of B's."""
    rows, columns = a.info(source).shape
    if source == slot:
        kind, words = TRANSPOSED, "holds the bytes of the transposed matrix"
    else:
        pair = sorted((slot.role.value, source.role.value))
        kind, words = W2_SWAPPED, f"{pair[0]} and {pair[1]} are swapped, each transposed"

    def where(index: int) -> tuple[Slot, int]:
        column, row = divmod(index, rows)
        return source, row * columns + column

    return Way(kind, words, where, partial(flows.transposed, a, source, dtype))


def _turned_back(a: Weights, slot: Slot, dtype: DType) -> Way:
    """The other way round: A has the bytes of the transposed matrix, and B the matrix."""
    rows, columns = a.info(slot).shape

    def where(index: int) -> tuple[Slot, int]:
        row, column = divmod(index, columns)
        return slot, column * rows + row

    words = "holds the matrix, and A the bytes of the transposed one"
    return Way(TRANSPOSED, words, where, partial(flows.columns, a, slot, dtype, (columns, rows)))


def _gate_up(a: Weights, slot: Slot, dtype: DType) -> Iterator[Way]:
    """The order of a fused tensor's rows: gate, up, gate, up … or all of gate, then all of up."""
    w1, w3 = Slot(Role.W1, slot.layer, slot.expert), Slot(Role.W3, slot.layer, slot.expert)
    if w1 not in a.steps or w3 not in a.steps:
        return
    rows, columns = a.info(slot).shape
    second = slot.role is Role.W3
    half = range(rows // 2, rows) if second else range(rows // 2)

    def in_turn(index: int) -> tuple[Slot, int]:
        row, column = divmod(index, columns)
        return (w3 if row % 2 else w1), (half.start + row // 2) * columns + column

    def apart(index: int) -> tuple[Slot, int]:
        row, column = divmod(index, columns)
        row = 2 * row + second
        return (w1, row * columns + column) if row < rows else (w3, (row - rows) * columns + column)

    yield Way(
        GATE_UP_ORDER,
        "the rows of w1 and w3 (gate and up) come in turn and were read as two halves",
        in_turn,
        partial(flows.chosen_rows, a, ((w1, half), (w3, half)), dtype),
    )
    every = range(int(second), rows, 2)  # rows is even: w3 goes on as w1 ends
    yield Way(
        GATE_UP_ORDER,
        "w1 and w3 (gate and up) are two halves and were read as rows in turn",
        apart,
        partial(flows.rows_of_all, a, ((w1, every), (w3, every)), dtype),
    )
