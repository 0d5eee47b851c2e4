"""`moetool convert`: another layout or format, computed from two tables and streamed."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Column, Console, duration, size
from moetool.cli.options import JsonOption, PathArgument, QuietOption, resolve
from moetool.errors import UsageFault

if TYPE_CHECKING:
    from moetool.convert.casts import CastReport
    from moetool.convert.job import ConvertReport
    from moetool.convert.plan import Plan

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


LayoutOption = Annotated[
    str | None,
    typer.Option(
        help="hf, hf-fused, mistral, mistral-packed, gguf, gguf-split; else the usual one"
    ),
]
OutOption = Annotated[Path | None, typer.Option(help="Folder to make; left out: beside the source")]
ShardSizeOption = Annotated[
    str | None, typer.Option(help="Largest file, as 5GB or 500MB (decimal units)")
]
DtypeOption = Annotated[
    str, typer.Option(help="Storage type: keep, bf16, f16 or f32; changes are counted")
]
OverflowOption = Annotated[
    bool,
    typer.Option("--allow-overflow", help="Let values beyond the type's range become inf"),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Move an output that is there to OUT.old-N")
]
RestartOption = Annotated[
    bool, typer.Option("--restart", help="Begin anew, whatever an earlier run has done")
]
ReadbackOption = Annotated[
    bool, typer.Option("--readback/--no-readback", help="Read each file back from the disk")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the plan, write nothing")]


def convert(
    path: PathArgument = None,
    to: Annotated[
        str, typer.Option("--to", help="File format: safetensors, pth or gguf")
    ] = "safetensors",
    layout: LayoutOption = None,
    out: OutOption = None,
    max_shard_size: ShardSizeOption = None,
    dtype: DtypeOption = "keep",
    allow_overflow: OverflowOption = False,
    force: ForceOption = False,
    restart: RestartOption = False,
    readback: ReadbackOption = True,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Convert to another layout or format, bit-exact.

    The work is computed from two tables and streamed. Nothing is cast unasked; the source is not
    touched; the output has its name only when it is complete. After an interruption the same
    command goes on.
    """
    from moetool.convert.durable_run import Manner
    from moetool.convert.job import default_out, open_source, prepare
    from moetool.convert.targets import find_dtype, find_target
    from moetool.formats import open_checkpoint

    console = Console(json, quiet)
    target, storage = find_target(to, layout), find_dtype(dtype)
    source = resolve(path, console)
    with open_checkpoint(source) as checkpoint:
        job = prepare(
            open_source(checkpoint),
            target,
            out or default_out(checkpoint, target),
            _parse_size(max_shard_size),
            dtype=storage,
            allow_overflow=allow_overflow,
        )
        again = _again(source, job.out, to=to, layout=layout, max_shard_size=max_shard_size,
                       dtype=dtype, allow_overflow=allow_overflow, force=force,
                       no_readback=not readback, json=json, quiet=quiet)  # fmt: skip
        manner = Manner(force=force, restart=restart, readback=readback, again=again)
        if dry_run:
            report = job.dry_run()
        else:
            console.note(f"{_title(job.dry_run())}: {size(job.plan.nbytes)}")
            with console.progress("convert", job.plan.nbytes) as update:
                report = job.run(update, manner)
    console.result(report, lambda: _render(console, report, job.plan))


def _again(source: Path, out: Path, **options: object) -> str:
    """The command that goes on from any folder: as it was given, without --restart."""
    words = ["moetool", "convert", str(source.absolute()), "--out", str(out)]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        match value:
            case True:
                words.append(flag)
            case str():
                words += [flag, value]
    return shlex.join(words)


def _title(report: ConvertReport) -> str:
    """From what to what, and where."""
    return f"{report.source_layout} -> {report.layout} ({report.file_format}) in {report.out}"


def _parse_size(text: str | None) -> int | None:
    """Read 5GB, 500M or a plain number of bytes; decimal units, as the hub counts."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.strip().lower())
    nbytes = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if nbytes <= 0:
        raise UsageFault(f"--max-shard-size {text!r} is no size", hint="write it as 5GB or 500MB")
    return nbytes


def _render(console: Console, report: ConvertReport, plan: Plan) -> None:
    if report.dry_run:
        _render_plan(console, plan)
    console.table(
        [Column("file"), Column("size", right=True)],
        [(name, size(nbytes)) for name, nbytes in report.files.items()],
    )
    copied = report.copied_nbytes / report.nbytes
    console.line()
    console.line(_title(report))
    console.line(
        f"{report.n_tensors} tensors, {size(report.nbytes)}, {copied:.1%} copied byte for byte, "
        f"{size(report.peak_nbytes)} of weights in memory at most"
    )
    if report.casts:
        _render_casts(console, report.casts)
    if not report.dry_run:
        rate = size((report.nbytes - report.resumed_nbytes) / max(report.seconds, 1e-9))
        if report.resumed_nbytes:
            console.line(f"{size(report.resumed_nbytes)} were there from an earlier run")
        console.line(f"written in {duration(report.seconds)} ({rate}/s)", "green")


def _render_casts(console: Console, casts: CastReport) -> None:
    """What the casts did to the values, and which tensors were changed most."""
    total = casts.total
    console.line(
        f"{casts.n_tensors} tensors cast: {total.numel:,} values, {total.rounded:,} rounded, "
        f"{total.underflowed:,} underflowed to 0, {total.overflowed:,} overflowed to inf, "
        f"{total.nan:,} NaN",
        "yellow" if total.overflowed or total.nan else None,
    )
    if casts.worst:
        console.table(
            [Column("changed most"), Column("cast"), Column("rounded", right=True),
             Column("to 0", right=True), Column("to inf", right=True)],
            [(cast.name, f"{cast.source} to {cast.target}", f"{cast.count.rounded:,}",
              f"{cast.count.underflowed:,}", f"{cast.count.overflowed:,}") for cast in casts.worst],
        )  # fmt: skip


def _render_plan(console: Console, plan: Plan) -> None:
    """One row for each kind of step; repeated layers and experts are counted."""
    kinds: Counter[tuple[str, str, str, str]] = Counter()
    for step in plan.steps:
        target = re.sub(r"\d+", "N", step.target.name)
        source = re.sub(r"\d+", "N", step.parts[0].source)
        ops = ", ".join(str(op) for op in step.parts[0].ops) or "copy"
        parts = f"{len(step.parts)} x " if len(step.parts) > 1 else ""
        kinds[(target, parts + source, ops, str(list(step.target.shape)))] += 1
    console.table(
        [Column("target"), Column("tensors", right=True), Column("shape"), Column("from"),
         Column("by")],
        [(t, n, shape, source, ops) for (t, source, ops, shape), n in kinds.items()],
    )  # fmt: skip
    console.line()
