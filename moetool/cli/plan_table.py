"""A conversion's plan for people: `moetool convert --dry-run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.cli.console import Column, Console, duration, size

if TYPE_CHECKING:
    from moetool.convert.dry_run.outlook import Estimate, PlanReport, StepGroup
    from moetool.convert.execute.room import Room

_MOST_FILES = 24  # listed one by one; of more, the first and the last


def render_plan(console: Console, report: PlanReport, title: str) -> None:
    """Print the steps collapsed by layer, the files, and what they take."""
    console.table(
        [Column("target"), Column("count", right=True), Column("type"), Column("shape"),
         Column("from"), Column("by"), Column("copied", right=True),
         Column("computed", right=True)],
        [_row(group) for group in report.layers],
    )  # fmt: skip
    console.line()
    console.table([Column("file"), Column("size", right=True)], _files(report))
    console.line()
    console.line(f"would convert {title}")
    share = report.copied_nbytes / max(report.nbytes, 1)
    types = "kept" if report.keeps_types else "cast where shown"
    n_files = f"{len(report.files)} file{'s' if len(report.files) > 1 else ''}"
    console.facts(
        [
            ("tensors", f"{report.n_tensors} in {n_files}, {size(report.nbytes)}, types {types}"),
            ("copied", f"{size(report.copied_nbytes)} byte for byte ({share:.1%})"),
            ("computed", size(report.transformed_nbytes)),
            ("memory", f"{size(report.peak_nbytes)} of weights at most"),
            ("disk", _room(report.room)),
            ("time", _time(report.estimate)),
            *(("to come", gap) for gap in report.gaps),
            *(("assumed", text) for text in report.assumed),
            *(("note", text) for text in report.notes),
        ]
    )
    if report.gaps:
        console.hint("the source is not complete: the plan is for when it is")


def _row(group: StepGroup) -> tuple[object, ...]:
    by = " and ".join(group.ops) or "copy"
    if group.n_parts > 1:
        by += f", {group.n_parts} parts each"
    return (group.target, f"x{group.n_tensors}", group.dtype, list(group.shape), group.source, by,
            size(group.copied_nbytes), size(group.transformed_nbytes))  # fmt: skip


def _files(report: PlanReport) -> list[tuple[str, str]]:
    rows = [(name, size(nbytes)) for name, nbytes in report.files.items()]
    if len(rows) <= _MOST_FILES:
        return rows
    largest = size(max(report.files.values()))
    return [rows[0], (f"… {len(rows) - 2} more", f"≤ {largest}"), rows[-1]]


def _room(room: Room) -> str:
    short = f": {size(room.short_nbytes)} too little" if room.short_nbytes else ""
    return f"{size(room.needed_nbytes)} needed, {size(room.free_nbytes)} free{short}"


def _time(estimate: Estimate) -> str:
    speeds = estimate.speeds
    seen = [
        f"{word} {size(rate)}/s"
        for word, rate in (("reads", speeds.read), ("hashes", speeds.hashed),
                           ("writes", speeds.written))
        if rate
    ]  # fmt: skip
    told = f"a probe of {speeds.seconds:.1f} s: {', '.join(seen) or 'nothing could be measured'}"
    if estimate.seconds is None:
        return f"not known ({told})"
    return f"about {duration(estimate.seconds)}, an estimate from {told}"
