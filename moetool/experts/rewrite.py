"""A checkpoint with fewer experts, or with the same in another order, written like any conversion.

What is written is the selection, in any layout: durable, resumable, with a manifest that says which
experts were kept and what that was measured to cost. At the end the output is read back and
compared, value by value, before it gets its name. A pruned model is another model than its source,
so it has no certificate of being the same; one with its experts renumbered is the same, and has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from moetool.convert.here import require_here
from moetool.convert.job import prepare
from moetool.errors import DigestMismatch, UsageFault
from moetool.experts.selection import Selection, select
from moetool.formats import FileCheckpoint
from moetool.proof.canonical import open_weights, see
from moetool.proof.certificate.comparison import Verdict, compare
from moetool.proof.identity import identify

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.arch.recognize import Recognized
    from moetool.convert.execute.folder import Progress
    from moetool.convert.execute.run import Manner
    from moetool.convert.job import ConvertReport, Job, Source
    from moetool.convert.targets import Target
    from moetool.experts.masked import Masked
    from moetool.experts.selection import Kept
    from moetool.tensors import DType


def prepare_selection(
    source: Source,
    kept: Kept,
    target: Target,
    out: Path,
    *,
    dtype: DType | None = None,
    max_shard_nbytes: int | None = None,
    measured: Mapping[str, object] | None = None,
) -> Job:
    """Prepare the conversion of a source with the experts in ``kept``.

    Raises:
        UsageFault: experts that cannot be chosen, or what `moetool.convert.job.prepare` refuses.
        Refused: a tensor is stored in a type that cannot be rearranged or cast.
    """
    assert isinstance(source.checkpoint, FileCheckpoint)
    selection, seen = select(source.checkpoint, source.recognized, kept)
    chosen = replace(source, checkpoint=selection, recognized=seen)
    job = prepare(chosen, target, out, max_shard_nbytes, dtype=dtype)
    edit = {"experts": [list(experts) for experts in kept]}
    return replace(job, edit=edit, measured=dict(measured or {}))


def run_selection(job: Job, progress: Progress, manner: Manner) -> ConvertReport:
    """Write what `prepare_selection` prepared, or go on writing it.

    Raises:
        NotFetched: it is a part of a release, and lacks some of it.
        DigestMismatch: the source is damaged where it is read.
        InTheWay, NoRoomOnDisk, LossyCast, Interrupted: as `moetool.convert.job.Job.run`.
    """
    assert isinstance(job.source.checkpoint, Selection)
    require_here(job.source.checkpoint, job.plan.steps)
    job.source.checkpoint.check_gathered()
    return job.run(progress, manner)


class Comparer:
    """Compares a finished output with the selection it was made of; nothing is written beside."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self._job, self._progress = job, progress

    def __call__(self, work: Path) -> dict[str, bytes]:
        """Read both whole.

        Raises:
            DigestMismatch: a tensor of the output has other values than it should.
        """
        selection, recognized = self._job.source.checkpoint, self._job.source.recognized
        assert isinstance(selection, Selection)
        weights = see(selection, recognized)
        before = identify(weights, progress=self._progress)
        with open_weights(work) as written:
            after = identify(written, like=before, progress=self._progress)
            found = compare(weights, written, before, after)
        if found.verdict is Verdict.DIFFERENT:
            changed = [bound.name for bound in found.bounds if not bound.rounded]
            raise DigestMismatch(
                "what was written is not what was chosen",
                findings=(*found.reasons, *(f"{name} has other values" for name in changed)),
                hint="the disk, the memory or moetool is not sound: run the same command again, "
                "and report it if it says the same",
            )
        return {}


def masked_by(recognized: Recognized, kept: Kept) -> Masked:
    """The experts that are not kept, by layer, where there are some."""
    every = frozenset(range(recognized.args.n_experts))
    gone = {layer: every - set(experts) for layer, experts in enumerate(kept)}
    return {layer: experts for layer, experts in gone.items() if experts}


def parse_experts(words: tuple[str, ...], n_layers: int, option: str) -> dict[int, tuple[int, ...]]:
    """Read ``3:0,5`` and ``all:1``: experts by layer, in the order given; they add up.

    Raises:
        UsageFault: it is written otherwise, or names a layer that is not there.
    """
    found: dict[int, tuple[int, ...]] = {}
    for word in words:
        layer, _, experts = word.partition(":")
        try:
            numbers = tuple(int(number) for number in experts.split(","))
            layers = range(n_layers) if layer == "all" else (int(layer),)
        except ValueError:
            raise UsageFault(
                f"{option} {word!r} names no experts",
                hint="write it as LAYER:EXPERT,EXPERT or all:EXPERT, such as 3:0,5",
            ) from None
        for each in layers:
            if not 0 <= each < n_layers:
                raise UsageFault(
                    f"{option} {word!r}: there is no layer {each}, there are {n_layers}",
                    hint="moetool inspect says how many layers there are",
                )
            found[each] = (*found.get(each, ()), *numbers)
    return found
