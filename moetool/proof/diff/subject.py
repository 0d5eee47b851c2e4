"""One side of a comparison: what is there in canonical form, and what does not fit.

A checkpoint that lacks a tensor, has one too many or one of another shape is refused everywhere
else. Here it is what is asked about: the tensors that fit are compared, the others are listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moetool.arch.families import by_names
from moetool.arch.recognize import ARCHITECTURES, Recognized, match_names, read_args, recognize
from moetool.arch.schema import Slot, expand
from moetool.convert.here import is_here, require_here
from moetool.errors import InconsistentCheckpoint, UnknownConvention
from moetool.formats import open_checkpoint
from moetool.proof.canonical import Weights, see

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.formats import FileCheckpoint
    from moetool.tensors import Catalog

_MOST_STRANGERS = 4  # of the names, one in four; beyond, it is another family


@dataclass(frozen=True, slots=True)
class Misfit:
    """A stored tensor of a known name and another shape than the hyperparameters give."""

    name: str
    slot: Slot
    expected: tuple[int, ...]
    found: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Subject:
    """A checkpoint as far as it is understood.

    ``missing`` are canonical tensors that the hyperparameters promise; ``unexpected`` are stored
    names that no table has. All three are empty for a checkpoint that is recognised. ``absent``
    are tensors of a partial release that were never fetched: of them nothing is known.
    """

    weights: Weights
    missing: tuple[Slot, ...] = ()
    unexpected: tuple[str, ...] = ()
    misfits: tuple[Misfit, ...] = ()
    absent: tuple[Slot, ...] = ()


@contextmanager
def open_subject(path: Path) -> Iterator[Subject]:
    """Open a checkpoint for a comparison, also one of which tensors are missing or extra.

    Raises:
        Refused: it is not understood at all, or its values are stored in a type that is not
            decoded.
        NotFetched: nothing of it is here.
    """
    with open_checkpoint(path) as checkpoint:
        try:
            recognized = recognize(checkpoint.catalog, checkpoint.directory)
        except InconsistentCheckpoint as error:
            subject = _see_partly(checkpoint, (), error)
        except UnknownConvention as error:
            subject = _see_partly(checkpoint, _strangers(checkpoint.catalog), error)
        else:
            subject = Subject(see(checkpoint, recognized))
        yield _as_far_as_here(checkpoint, subject)


def _as_far_as_here(checkpoint: FileCheckpoint, subject: Subject) -> Subject:
    """The subject without the tensors of which bytes were never fetched."""
    steps = subject.weights.steps
    here = {slot: step for slot, step in steps.items() if is_here(checkpoint, step)}
    if not here:
        require_here(checkpoint, steps.values())
    absent = tuple(slot for slot in steps if slot not in here)
    return replace(subject, weights=replace(subject.weights, steps=here), absent=absent)


def _strangers(catalog: Catalog) -> tuple[str, ...]:
    """The names that the closest convention does not have."""
    names = tuple(catalog.tensors)
    tables = [
        [stored.regex() for stored in convention.stored.values()]
        for architecture in ARCHITECTURES
        for convention in architecture.conventions
    ]
    unknown = [
        tuple(name for name in names if not any(regex.fullmatch(name) for regex in table))
        for table in tables
    ]
    return min(unknown, key=len)


def _see_partly(
    checkpoint: FileCheckpoint,
    strangers: tuple[str, ...],
    error: InconsistentCheckpoint | UnknownConvention,
) -> Subject:
    """See what fits; what the error says stands where too little does."""
    catalog = checkpoint.catalog
    known = {name: info for name, info in catalog.tensors.items() if name not in strangers}
    if by_names(catalog.tensors) or len(strangers) * _MOST_STRANGERS > len(catalog.tensors):
        raise error
    found = _expected(replace(catalog, tensors=known), checkpoint.directory, error)
    layout = found.layout
    fitting = {n: s for n, s in layout.items() if n in known and known[n].shape == s.shape}
    if len(fitting) * 2 < len(layout):
        raise error
    absent = [name for name in layout if name not in known]
    return Subject(
        see(checkpoint, replace(found, layout=fitting)),
        missing=tuple(cell.slot for name in absent for cell in layout[name].cells),
        unexpected=strangers + tuple(name for name in known if name not in layout),
        misfits=tuple(
            Misfit(name, stored.cells[0].slot, stored.shape, known[name].shape)
            for name, stored in layout.items()
            if name in known and name not in fitting
        ),
    )


def _expected(
    catalog: Catalog, directory: Path, error: InconsistentCheckpoint | UnknownConvention
) -> Recognized:
    """What the settings promise, of names that are all known; another family is refused."""
    try:
        return recognize(catalog, directory)
    except InconsistentCheckpoint:
        architecture, convention = match_names(catalog.tensors)
    except UnknownConvention:
        raise error from None
    args = read_args(catalog, directory, raw=convention.name.startswith("mistral"))
    return Recognized(architecture, convention, args, expand(convention, args))
