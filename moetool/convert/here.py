"""Whether all that is about to be read is here: of a partial release, some was never fetched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from moetool.arch.summary import collapse
from moetool.errors import NotFetched
from moetool.files.partial import find_partial
from moetool.formats import FileCheckpoint

if TYPE_CHECKING:
    from moetool.convert.plan import Step
    from moetool.tensors import Checkpoint

_MOST_NAMED = 8  # tensors that are asked for by their names; of more, all the rest is


def is_here(checkpoint: Checkpoint, step: Step) -> bool:
    """Whether every byte that a step reads was fetched; what is in no file has no holes."""
    return not isinstance(checkpoint, FileCheckpoint) or all(
        checkpoint.holds(part.source, *part.byte_range) for part in step.parts
    )


def require_here(checkpoint: Checkpoint, steps: Iterable[Step]) -> None:
    """Refuse, before anything is read or written, what would need bytes that are not here.

    Raises:
        NotFetched: with the tensors, and the command that fetches them.
    """
    needed = list(steps)
    lacking = [step for step in needed if not is_here(checkpoint, step)]
    if not lacking or not isinstance(checkpoint, FileCheckpoint):
        return
    stored = dict.fromkeys(
        part.source
        for step in lacking
        for part in step.parts
        if not checkpoint.holds(part.source, *part.byte_range)
    )
    rest = [name for name in checkpoint.catalog.extents if not checkpoint.holds(name)]
    by_name = len(stored) < len(rest) and len(stored) <= _MOST_NAMED
    groups = collapse(checkpoint.catalog.tensors[name] for name in stored)
    partial = find_partial(checkpoint.files[0])
    assert partial is not None  # it is what the file knows its holes by
    raise NotFetched(
        f"{len(lacking)} of {len(needed)} tensors that are needed were not fetched",
        where=str(checkpoint.path),
        hint=partial.command(list(stored) if by_name else ()),
        findings=tuple(f"not here: {group.name} x{group.count}" for group in groups),
    )
