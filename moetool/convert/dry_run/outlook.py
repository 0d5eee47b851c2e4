"""What a conversion would do, before it does it: the report of a dry run.

Everything but the time is computed: steps and files from headers, the room from the file system.
The time is an estimate from half a second of reading and writing; see probe.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from moetool.arch.summary import ranges
from moetool.convert.dry_run.exact_size import file_sizes
from moetool.convert.dry_run.probe import Speeds, estimate_s, measure, quantising_s
from moetool.convert.execute.folder import work_folder
from moetool.convert.execute.room import Room, room_for

if TYPE_CHECKING:
    from moetool.convert.dry_run.unfinished import Survey
    from moetool.convert.job import Job
    from moetool.convert.ops import Op
    from moetool.convert.plan import Shard, Step


@dataclass(frozen=True, slots=True)
class StepGroup:
    """Steps that differ only in layer and expert, with what they do."""

    target: str
    n_tensors: int
    dtype: str
    shape: tuple[int, ...]
    source: str
    n_parts: int
    ops: tuple[str, ...]
    copied_nbytes: int
    transformed_nbytes: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """The time that a conversion would take, and the speeds it was computed from."""

    seconds: float | None
    speeds: Speeds


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What a conversion would do.

    ``gaps`` say what of the source is not here yet, ``assumed`` what was taken for granted for it.
    ``layers`` is the plan collapsed by layer and expert, ``shards`` all of it, step by step.
    """

    schema: ClassVar[str] = "moetool.plan"
    version: ClassVar[int] = 1

    source: Path
    source_layout: str
    out: Path
    layout: str
    file_format: str
    dtype: str
    keeps_types: bool
    gaps: tuple[str, ...]
    assumed: tuple[str, ...]
    notes: tuple[str, ...]
    n_tensors: int
    nbytes: int
    copied_nbytes: int
    transformed_nbytes: int
    peak_nbytes: int
    room: Room
    estimate: Estimate
    files: Mapping[str, int]
    layers: tuple[StepGroup, ...]
    shards: tuple[Mapping[str, Any], ...]

    @property
    def ok(self) -> bool:
        """True when there is room; that a part of the source is still to come is no fault."""
        return not self.room.short_nbytes


def foresee(job: Job, survey: Survey, *, readback: bool, certificate: bool = False) -> PlanReport:
    """Say what a job would do; nothing is written but the probe's file, which has no name."""
    plan = job.plan
    speeds = measure(tuple(job.source.checkpoint.catalog.extents.values()), job.out)
    n_again = plan.read_nbytes * certificate + plan.nbytes * max(readback, certificate)
    seconds = estimate_s(speeds, plan.read_nbytes, plan.nbytes, n_again)
    seconds = max(seconds, quantising_s(plan)) if seconds is not None else None
    return PlanReport(
        source=job.source.path,
        source_layout=job.source.recognized.convention.name,
        out=job.out,
        layout=job.target.convention,
        file_format=job.target.file_format,
        dtype=plan.main_dtype.label,
        keeps_types=not any(part.cast for step in plan.steps for part in step.parts),
        gaps=survey.gaps,
        assumed=survey.assumed,
        notes=(*job.notes, *_in_the_way(job.out)),
        n_tensors=len(plan.steps),
        nbytes=plan.nbytes,
        copied_nbytes=plan.copied_nbytes,
        transformed_nbytes=plan.transformed_nbytes,
        peak_nbytes=plan.peak_nbytes,
        room=room_for(job.out, plan.nbytes),
        estimate=Estimate(seconds, speeds),
        files=file_sizes(job),
        layers=collapse_steps(plan.steps),
        shards=tuple(map(_shard, plan.shards)),
    )


def _in_the_way(out: Path) -> tuple[str, ...]:
    """What a conversion would stop at, or go on from."""
    if out.exists() or out.is_symlink():
        return ("the output is there already: give another --out, or --force moves it aside",)
    if work_folder(out).is_dir():
        return (f"{work_folder(out).name} is there: a conversion goes on, or says what differs",)
    return ()


def collapse_steps(steps: Iterable[Step]) -> tuple[StepGroup, ...]:
    """Group steps that do the same for another layer or expert."""
    groups: dict[tuple[object, ...], list[Step]] = {}
    for step in steps:
        kinds = tuple(dict.fromkeys((_alike(p.source), p.ops) for p in step.parts))
        key = (_alike(step.target.name), step.target.dtype, step.target.shape, kinds,
               len(step.parts))  # fmt: skip
        groups.setdefault(key, []).append(step)
    return tuple(map(_group, groups.values()))


def _alike(name: str) -> str:
    """A name without its indices: those of layer and expert stand between dots."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "#", name)


def _group(steps: list[Step]) -> StepGroup:
    first = steps[0]
    sources: dict[str, list[str]] = {}
    for step in steps:
        for part in step.parts:
            sources.setdefault(_alike(part.source), []).append(part.source)
    copied = sum(part.nbytes for step in steps for part in step.parts if not part.ops)
    return StepGroup(
        target=ranges([step.target.name for step in steps]),
        n_tensors=len(steps),
        dtype=first.target.dtype.label,
        shape=first.target.shape,
        source=", ".join(map(ranges, sources.values())),
        n_parts=len(first.parts),
        ops=tuple(dict.fromkeys(op.words for part in first.parts for op in part.ops)),
        copied_nbytes=copied,
        transformed_nbytes=sum(step.target.nbytes for step in steps) - copied,
    )


def _shard(shard: Shard) -> Mapping[str, Any]:
    steps = [
        {
            "target": step.target,
            "nbytes": step.target.nbytes,
            "parts": [
                {
                    "source": part.source,
                    "rows": [part.start, part.stop],
                    "columns": part.columns,
                    "dtype": part.dtype,
                    "nbytes": part.nbytes,
                    "ops": list(map(_op, part.ops)),
                }
                for part in step.parts
            ],
        }
        for step in shard.steps
    ]
    return {"file_name": shard.file_name, "nbytes": shard.nbytes, "steps": steps}


def _op(op: Op) -> dict[str, object]:
    return {"op": type(op).__name__.lower(), **asdict(op)}
