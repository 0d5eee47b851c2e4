"""`moetool diff`: are two checkpoints the same model, and if not, where and how do they differ?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Column, Console, duration, safe, size
from moetool.cli.diff_text import collapse_names, number, worst_row
from moetool.cli.options import JsonOption, QuietOption, refuse_absent
from moetool.errors import Mismatch, UsageFault

if TYPE_CHECKING:
    from moetool.proof.diff.report import DiffReport, Side

MAX_NAMES = 20  # collapsed names of tensors that only one side has
MAX_WORST = 10
STYLES = {
    "EQUAL": "green",
    "RENUMBERED": "green",
    "WITHIN TOLERANCE": "yellow",
    "DIFFERENT": "red",
    "NOT COVERED": "yellow",
}
MEANING = {
    "EQUAL": "the same values in every tensor",
    "RENUMBERED": "the same model, experts renumbered",
    "WITHIN TOLERANCE": "values differ, no tensor by more than was tolerated",
    "DIFFERENT": "not the same model",
    "NOT COVERED": "nothing differs in what is here, and not all of it is",
}


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="The checkpoint that is taken as right")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The checkpoint to compare with it")],
    tolerance: Annotated[
        float,
        typer.Option(min=0, help="Relative RMS up to which the values of a tensor may differ"),
    ] = 0.0,
    exact_order: Annotated[
        bool, typer.Option("--exact-order", help="Renumbered experts are a difference too")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page with a picture", show_default=False),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare two checkpoints in any layouts and formats: structure, experts, values, damage."""
    from moetool.cli.diff_page import page
    from moetool.durable import write_durably
    from moetool.proof.diff import compare, open_subject

    console = Console(json, quiet)
    for path in (a, b):
        refuse_absent(path)
    _check_page(html)
    with open_subject(a) as left, open_subject(b) as right:
        total = left.weights.nbytes + right.weights.nbytes
        with console.progress("diff", total) as update:
            report = compare(
                left, right, tolerance=tolerance, exact_order=exact_order, progress=update
            )
    if html:
        write_durably(html, page(report).encode())
        console.note(f"wrote {safe(html)}")
    console.result(report, lambda: _render(console, report))
    if not report.ok:
        raise typer.Exit(Mismatch.exit_code)


def _check_page(html: Path | None) -> None:
    """Refuse before the work what cannot be written after it, or would replace weights.

    Raises:
        UsageFault: the page has no name of a page, or no folder to be in.
    """
    if html and html.suffix not in {".html", ".htm"}:
        raise UsageFault("a page has a name that ends in .html", where=str(html))
    if html and (html.is_dir() or not html.absolute().parent.is_dir()):
        raise UsageFault("no such folder, or a folder itself", where=str(html))


def _render(console: Console, report: DiffReport) -> None:
    console.facts([("A", _side(report.a)), ("B", _side(report.b))])
    _structure(console, report)
    _roles(console, report)
    if report.experts or report.damage:
        console.line()
    _experts(console, report)
    for damage in report.damage:
        console.line(f"damage: {safe(damage.text)} ({safe(damage.where)})", "red")
        for detail in damage.details:
            console.line(f"  {safe(detail)}")
    _worst(console, report)
    word, time = report.verdict, duration(report.seconds)
    console.line(
        f"\n{word}  {MEANING[word]}: {report.n_compared} tensors compared, "
        f"{size(report.nbytes)} in {time}",
        STYLES[word],
    )


def _side(side: Side) -> str:
    types = "/".join(side.dtypes)
    return f"{side.path}  {side.layout}, {side.file_format}, {types}, {size(side.nbytes)}"


def _structure(console: Console, report: DiffReport) -> None:
    structure = report.structure
    if structure.settings:
        console.line()
        console.table(
            [Column("setting"), Column("A", right=True), Column("B", right=True), Column("")],
            [
                (s.name, s.a, s.b, "changes what is computed" if s.changes_maths else "")
                for s in structure.settings
            ],
        )
    for side, names in (("A", structure.only_a), ("B", structure.only_b)):
        lines = collapse_names(names)
        for line in lines[:MAX_NAMES]:
            console.line(f"only in {side}: {safe(line)}", "red")
        if len(lines) > MAX_NAMES:
            console.line(f"only in {side}: … and {len(lines) - MAX_NAMES} more, see --json")
    for line in collapse_names(structure.absent)[:MAX_NAMES]:
        console.line(f"NOT COVERED  not fetched: {safe(line)}", "yellow")
    for shape in structure.shapes[:MAX_NAMES]:
        words = f"  {shape.words}" if shape.words else ""
        console.line(
            safe(f"shape: {shape.name}  A {list(shape.a)}, B {list(shape.b)}{words}"), "red"
        )
    if len(structure.shapes) > MAX_NAMES:
        console.line(f"shape: … and {len(structure.shapes) - MAX_NAMES} more, see --json")
    for kind in structure.types:
        console.line(f"stored as {kind.a} in A and {kind.b} in B: {kind.n_tensors} tensors")


def _roles(console: Console, report: DiffReport) -> None:
    if not report.roles:
        return
    console.line()
    console.table(
        [
            Column("role"),
            Column("tensors", right=True),
            Column("differ", right=True),
            Column("worst relative RMS", right=True),
            Column("in"),
        ],
        [
            (
                group.role,
                group.n_tensors,
                group.n_differing,
                number(group.worst_rel_rms) if group.n_differing else "",
                group.worst or "",
            )
            for group in report.roles
        ],
    )
    if report.sign_only:
        console.line(f"{report.sign_only} tensors differ in the sign of zeros or in NaNs only")


def _experts(console: Console, report: DiffReport) -> None:
    """The orders that are harmless; the others are damage."""
    from moetool.proof.diff import by_order, spans

    renumbered = [order for order in report.experts if order.moved and order.harmless]
    for order, layers in by_order(renumbered).items():
        exact = all(found.by == "digest" for found in renumbered if found.layer in layers)
        how = "" if exact else ", matched by likeness"
        console.line(
            f"experts renumbered, the router's rows with them, in layers {spans(layers)}: "
            f"those of A in the order of B are {' '.join(map(str, order))}{how}",
            "yellow",
        )


def _worst(console: Console, report: DiffReport) -> None:
    if not report.tensors:
        return
    console.line()
    console.table(
        [
            Column("worst tensors"),
            Column("differ", right=True),
            Column("relative RMS", right=True),
            Column("largest", right=True),
            Column("cosine", right=True),
            Column("ulp", right=True),
            Column("first row", right=True),
            Column("damage"),
        ],
        [worst_row(tensor) for tensor in report.tensors[:MAX_WORST]],
    )
    if len(report.tensors) > MAX_WORST:
        console.line(f"… and {len(report.tensors) - MAX_WORST} more with --json")
