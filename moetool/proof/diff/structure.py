"""What two checkpoints have, before a weight is read: tensors, shapes, types, settings.

Tensors are named as in the raw release, whatever either side calls them. Names that no table has
are listed as they are stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.arch.schema import Role, Slot
from moetool.arch.summary import collapse
from moetool.tensors import TensorInfo

if TYPE_CHECKING:
    from moetool.proof.canonical import Weights
    from moetool.proof.diff.subject import Subject

_BY_TOKEN = {Role.TOK_EMBEDDINGS, Role.OUTPUT}


@dataclass(frozen=True, slots=True)
class Setting:
    """A hyperparameter that differs; ``changes_maths`` where another function is computed."""

    name: str
    a: object
    b: object
    changes_maths: bool


@dataclass(frozen=True, slots=True)
class ShapeDifference:
    """A tensor that both have in different shapes; ``words`` say by what, where that is simple."""

    name: str
    slot: Slot
    a: tuple[int, ...]
    b: tuple[int, ...]
    words: str


@dataclass(frozen=True, slots=True)
class TypeDifference:
    """How many tensors one side stores in one type and the other in another: no difference yet."""

    a: str
    b: str
    n_tensors: int


@dataclass(frozen=True, slots=True)
class Structure:
    """What differs before any value.

    ``only_a`` and ``only_b`` are names, ``common`` the tensors that can be compared value by value.
    ``absent`` names those that were never fetched, of one side or of both.
    """

    settings: tuple[Setting, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    shapes: tuple[ShapeDifference, ...]
    types: tuple[TypeDifference, ...]
    common: tuple[Slot, ...]
    absent: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether both have the same tensors and compute the same function of them."""
        odd = any(setting.changes_maths for setting in self.settings)
        return not (odd or self.only_a or self.only_b or self.shapes)


def compare_structure(a: Subject, b: Subject) -> Structure:
    """Compare headers and hyperparameters; no weight is read."""
    left, right = a.weights, b.weights
    both = [slot for slot in left.steps if slot in right.steps]
    types = Counter(
        (left.info(slot).dtype.label, right.info(slot).dtype.label)
        for slot in both
        if left.info(slot).dtype is not right.info(slot).dtype
    )
    return Structure(
        settings=tuple(_settings(left, right)),
        only_a=tuple(_only(a, b)),
        only_b=tuple(_only(b, a)),
        shapes=tuple(_shapes(a, b, both)),
        types=tuple(TypeDifference(*labels, n) for labels, n in types.items()),
        common=tuple(slot for slot in both if left.info(slot).shape == right.info(slot).shape),
        absent=tuple(_absent(a, b)),
    )


def collapsed(names: Iterable[str], weights: Weights) -> list[tuple[str, int]]:
    """Names in which ranges of layers and experts are one line, with how many each stands for."""
    by_name = {step.target.name: step.target for step in weights.steps.values()}
    dtype = next(iter(by_name.values())).dtype
    infos = [by_name.get(name) or TensorInfo(name, dtype, ()) for name in names]
    return [(group.name, group.count) for group in collapse(infos)]


def _settings(a: Weights, b: Weights) -> Iterator[Setting]:
    left, right = a.recognized.args, b.recognized.args
    there, here = left.maths, right.maths
    for name in there:
        if there[name] != here[name]:
            field = name.removesuffix("_f32")
            yield Setting(field, getattr(left, field), getattr(right, field), changes_maths=True)
    if left.max_seq_len != right.max_seq_len:
        yield Setting("max_seq_len", left.max_seq_len, right.max_seq_len, changes_maths=False)


def _only(one: Subject, other: Subject) -> Iterator[str]:
    """What ``one`` has and ``other`` has not."""
    misfits = {misfit.slot for misfit in other.misfits}
    for slot, step in one.weights.steps.items():
        if slot not in other.weights.steps and slot not in misfits and slot not in other.absent:
            yield step.target.name
    there = set(other.unexpected)
    yield from (name for name in one.unexpected if name not in there)


def _absent(a: Subject, b: Subject) -> Iterator[str]:
    """The raw names of what is not known of a side, because it was never fetched."""
    unknown = dict.fromkeys([*a.absent, *b.absent])
    raw = a.weights.recognized.architecture.raw.stored
    yield from (raw[slot.role].name(slot.layer, slot.expert) for slot in unknown)


def _shapes(a: Subject, b: Subject, both: Iterable[Slot]) -> Iterator[ShapeDifference]:
    for slot in both:
        left, right = a.weights.info(slot), b.weights.info(slot)
        if left.shape != right.shape:
            words = _words(slot, left.shape, right.shape)
            yield ShapeDifference(left.name, slot, left.shape, right.shape, words)
    for misfit in a.misfits:
        yield ShapeDifference(
            misfit.name, misfit.slot, misfit.found, misfit.expected, "A does not fit its settings"
        )
    for misfit in b.misfits:
        yield ShapeDifference(
            misfit.name, misfit.slot, misfit.expected, misfit.found, "B does not fit its settings"
        )


def _words(slot: Slot, left: tuple[int, ...], right: tuple[int, ...]) -> str:
    """``B has 1 extra row``, where only the number of rows differs."""
    if left[1:] != right[1:] or len(left) != len(right):
        return "transposed" if left == right[::-1] else ""
    more = right[0] - left[0]
    rows = f"{abs(more)} extra row" + ("s" if abs(more) > 1 else "")
    kind = {**dict.fromkeys(_BY_TOKEN, " (tokens)"), Role.ROUTER: " (experts)"}.get(slot.role, "")
    return f"{'B' if more > 0 else 'A'} has {rows}{kind}"
