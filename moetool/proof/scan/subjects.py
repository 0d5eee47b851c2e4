"""What can be looked at in a checkpoint: tensors of floats, each with its place in the model.

A recognised checkpoint is seen as the raw release has it, whatever its layout. One that is not
recognised is looked at by its stored names, with the checks that need no role. Tensors whose type
is not decoded, and those that were never fetched, are listed; the rest is looked at all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.arch.recognize import Recognized, recognize
from moetool.arch.schema import Role, Slot, expand
from moetool.convert.here import is_here
from moetool.convert.plan import FLOATS, READABLE, Part, Step, derive_steps
from moetool.errors import ArchError, FormatError
from moetool.tensors import DType

if TYPE_CHECKING:
    from moetool.formats import FileCheckpoint
    from moetool.tensors import Catalog, TensorInfo


@dataclass(frozen=True, slots=True)
class Item:
    """One tensor to look at: how to stream it, where it is stored, what it is for.

    ``slot`` is None where the model is not recognised. ``widened`` is True where the convention
    stores it as f32 whatever the rest is.
    """

    step: Step
    stored: str
    slot: Slot | None = None
    widened: bool = False

    @property
    def info(self) -> TensorInfo:
        """Name, shape and storage type."""
        return self.step.target

    @property
    def role(self) -> Role | None:
        """What it is for, if that is known."""
        return self.slot.role if self.slot else None

    @property
    def is_norm(self) -> bool:
        """True for the weights of a norm."""
        return self.slot is not None and self.slot.role.is_norm

    @property
    def is_token_table(self) -> bool:
        """True for the tables with a row for each token, some of which no text ever held."""
        role = self.role
        return role is not None and not role.per_layer and not role.is_norm


@dataclass(frozen=True, slots=True)
class NotCovered:
    """The tensors of one storage type whose values are not looked at, and their share of bytes.

    ``reason`` is empty where it is the type.
    """

    dtype: str
    n_tensors: int
    nbytes: int
    share: float
    names: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked at and what is not; ``reason`` says why a model is not recognised."""

    checkpoint: FileCheckpoint
    recognized: Recognized | None
    items: tuple[Item, ...]
    reason: str = ""
    absent: tuple[Item, ...] = ()

    @property
    def not_covered(self) -> tuple[NotCovered, ...]:
        """The rest, by storage type, most bytes first, and then what was never fetched."""
        groups: dict[DType, list[TensorInfo]] = {}
        for info in self.checkpoint.catalog.tensors.values():
            if info.dtype not in READABLE:
                groups.setdefault(info.dtype, []).append(info)
        total = max(1, self.checkpoint.catalog.nbytes)
        found = [_not_covered(dtype, infos, total) for dtype, infos in groups.items()]
        return (*sorted(found, key=lambda group: -group.nbytes), *_not_fetched(self.absent, total))


def find_subject(checkpoint: FileCheckpoint) -> Subject:
    """Say which tensors of an open checkpoint can be looked at."""
    catalog = checkpoint.catalog
    try:
        recognized = recognize(catalog, checkpoint.directory)
    except (ArchError, FormatError) as error:
        return _subject(checkpoint, None, _by_stored_name(catalog), str(error))
    return _subject(checkpoint, recognized, _by_role(catalog, recognized))


def _subject(
    checkpoint: FileCheckpoint,
    recognized: Recognized | None,
    items: Iterable[Item],
    reason: str = "",
) -> Subject:
    """Tell what is here from what was never fetched: zeros in a hole are no weights."""
    here: list[Item] = []
    absent: list[Item] = []
    for item in items:
        (here if is_here(checkpoint, item.step) else absent).append(item)
    return Subject(checkpoint, recognized, tuple(here), reason, tuple(absent))


def _by_role(catalog: Catalog, recognized: Recognized) -> Iterator[Item]:
    raw = expand(recognized.architecture.raw, recognized.args)
    holders = {cell.slot: held for held in recognized.layout.values() for cell in held.cells}
    slots = {name: stored.cells[0].slot for name, stored in raw.items()}
    readable = {
        name: stored
        for name, stored in raw.items()
        if catalog.tensors[holders[slots[name]].name].dtype in READABLE
    }
    steps = derive_steps(catalog, recognized.layout, readable, recognized.args, decoded=DType.F32)
    for step in steps:
        slot = slots[step.target.name]
        holder = holders[slot]
        yield Item(step, holder.name, slot, holder.full_precision)


def _by_stored_name(catalog: Catalog) -> Iterator[Item]:
    for info in catalog.tensors.values():
        if info.dtype in FLOATS and info.numel:
            columns = info.shape[-1] if info.shape else 1
            part = Part(info.name, 0, info.numel // columns, columns, info.dtype, ())
            yield Item(Step(info, (part,)), info.name)


def _not_fetched(items: Iterable[Item], total: int) -> Iterator[NotCovered]:
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.step.parts[0].dtype.label, []).append(item)
    for dtype, found in groups.items():
        nbytes = sum(part.nbytes for item in found for part in item.step.parts)
        names = tuple(item.info.name for item in found)
        yield NotCovered(dtype, len(found), nbytes, nbytes / total, names, "not fetched")


def _not_covered(dtype: DType, infos: list[TensorInfo], total: int) -> NotCovered:
    nbytes = sum(info.nbytes for info in infos)
    names = tuple(info.name for info in infos)
    return NotCovered(dtype.label, len(infos), nbytes, nbytes / total, names)
