"""`moetool scan`: is what lies in a valid container plausible as the weights of a model?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Column, Console, safe, size
from moetool.cli.options import JsonOption, PathArgument, QuietOption, resolve
from moetool.errors import Mismatch

if TYPE_CHECKING:
    from moetool.proof.scan.findings import Finding
    from moetool.proof.scan.scan import ScanReport

MAX_LINES = 40
MAX_NAMES = 3


def scan(
    path: PathArgument = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count like errors")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Look at every value for what no training leaves behind, and name tensor, row and reason.

    NaN, zeros, strays among rows and siblings, dead or doubled experts, traces of casts.
    """
    from moetool.formats import open_checkpoint
    from moetool.proof.scan.scan import scan as look

    console = Console(json, quiet)
    with (
        open_checkpoint(resolve(path, console)) as checkpoint,
        console.progress("scan", checkpoint.catalog.nbytes) as update,
    ):
        report = look(checkpoint, strict=strict, progress=update)
    console.result(report, lambda: _render(console, report))
    if not report.ok:
        raise typer.Exit(Mismatch.exit_code)


def _render(console: Console, report: ScanReport) -> None:
    if report.reason:
        console.line(f"not recognised: {safe(report.reason)}", "yellow")
        console.line("tensors have their stored names; nothing that needs a role is looked at\n")
    shown = report.findings[:MAX_LINES]
    if shown:
        columns = [Column(title) for title in ("found", "code", "tensor", "where", "why")]
        console.table(columns, [_row(found) for found in shown])
        left = len(report.findings) - len(shown)
        if left:
            console.line(f"… {left:,} more with --json")
        console.line()
    for group in report.not_covered:
        names = ", ".join(group.names[:MAX_NAMES]) + (" …" * (group.n_tensors > MAX_NAMES))
        what = ", ".join(filter(None, (group.dtype, group.reason)))
        console.line(
            f"NOT COVERED  {what}: {group.n_tensors} tensors, "
            f"{size(group.nbytes)}, {group.share:.1%} of all bytes ({safe(names)})",
            "yellow",
        )
    _summary(console, report)


def _summary(console: Console, report: ScanReport) -> None:
    counts = report.counts
    words = [f"{number} {word}" + "s" * (number != 1) for word, number in counts.items()]
    looked_at = f"{report.n_tensors} tensors, {size(report.nbytes)} looked at"
    missed = sum(group.n_tensors for group in report.not_covered)
    rest = f"; {missed} tensors NOT COVERED" if missed else ""
    style = "red" if not report.ok else "yellow" if counts["warning"] or missed else "green"
    console.line(f"{', '.join(words)}  in {looked_at}{rest}", style)
    console.line("plausible values may still be wrong ones: only a digest tells (moetool verify)")


def _row(found: Finding) -> tuple[str, ...]:
    stored = f" (stored in {found.stored})" if found.stored else ""
    return found.severity.value, found.code, found.tensor + stored, found.place, found.reason
