"""`moetool convert`: another layout or format, computed from two tables and streamed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Column, Console, duration, size
from moetool.cli.options import JsonOption, PathArgument, QuietOption, resolve
from moetool.errors import UsageFault

if TYPE_CHECKING:
    from moetool.convert.job import ConvertReport
    from moetool.convert.plan import Plan

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def convert(
    path: PathArgument = None,
    to: Annotated[
        str, typer.Option("--to", help="File format: safetensors, pth or gguf")
    ] = "safetensors",
    layout: Annotated[
        str | None,
        typer.Option(
            help="hf, hf-fused, mistral, mistral-packed, gguf, gguf-split; else the usual one"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to make; left out: beside the source")
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(help="Largest file, as 5GB or 500MB (decimal units)")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, write nothing")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Convert to another layout or format, bit-exact.

    The work is computed from two tables and streamed. Nothing is cast unasked; the source is not
    touched; the output has its name only when it is complete.
    """
    from moetool.convert.job import default_out, open_source, prepare
    from moetool.convert.targets import find_target
    from moetool.formats import open_checkpoint

    console = Console(json, quiet)
    target = find_target(to, layout)
    with open_checkpoint(resolve(path, console)) as checkpoint:
        job = prepare(
            open_source(checkpoint),
            target,
            out or default_out(checkpoint, target),
            _parse_size(max_shard_size),
        )
        if dry_run:
            report = job.dry_run()
        else:
            console.note(f"{_title(job.dry_run())}: {size(job.plan.nbytes)}")
            with console.progress("convert", job.plan.nbytes) as update:
                report = job.run(update)
    console.result(report, lambda: _render(console, report, job.plan))


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
    if not report.dry_run:
        rate = size(report.nbytes / max(report.seconds, 1e-9))
        console.line(f"written in {duration(report.seconds)} ({rate}/s)", "green")


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
