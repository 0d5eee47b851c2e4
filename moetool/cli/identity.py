"""`moetool identity`: one name for the values of a model, whatever file holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Column, Console, duration, safe, size
from moetool.cli.options import JsonOption, PathArgument, QuietOption, resolve
from moetool.errors import Mismatch, UsageFault

if TYPE_CHECKING:
    from moetool.proof.identity import Identity

_HEX = frozenset("0123456789abcdef")
_DIGITS = (32, 64)

ExpectOption = Annotated[
    str | None,
    typer.Option("--expect", help="Exit 3 unless one of the roots is this", show_default=False),
]


def identity(
    path: PathArgument = None,
    any_expert_order: Annotated[
        bool,
        typer.Option(
            "--any-expert-order",
            help="The root that renumbering experts with their router rows does not change",
        ),
    ] = False,
    fast: Annotated[
        bool, typer.Option("--fast", help="XXH3-128 only: tells accidents apart, proves nothing")
    ] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="Print every leaf")] = False,
    expect: ExpectOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Name the values of a model: the same root for every layout, format and lossless widening.

    Each weight is read once and hashed as the raw release would hold it; a changed value changes
    the root. docs/reference/identity.md has the definition.
    """
    from moetool.proof.canonical import open_weights
    from moetool.proof.identity import identify

    console = Console(json, quiet)
    wanted = _root(expect)
    with (
        open_weights(resolve(path, console)) as weights,
        console.progress("identity", weights.nbytes) as update,
    ):
        report = identify(weights, fast=fast, expected=wanted, progress=update)
    console.result(report, lambda: _render(console, report, any_expert_order, tensors))
    if not report.ok:
        console.note(f"expected {wanted}", "red")
        raise typer.Exit(Mismatch.exit_code)


def _root(text: str | None) -> str | None:
    """A root as it was printed.

    Raises:
        UsageFault: it is none.
    """
    if text is None:
        return None
    found = text.strip().lower().rpartition(":")[2]
    if len(found) not in _DIGITS or not set(found) <= _HEX:
        raise UsageFault(
            f"--expect {safe(text)!r} is no root", hint="64 hex digits, or the 32 of a fast root"
        )
    return found


def _render(console: Console, report: Identity, any_expert_order: bool, tensors: bool) -> None:
    if tensors:
        console.table(
            [Column("tensor"), Column("type"), Column("shape"), Column("digest")],
            [(leaf.name, leaf.dtype, "x".join(map(str, leaf.shape)), leaf.sha256 or leaf.xxh3_128)
             for leaf in report.leaves],
        )  # fmt: skip
        console.line()
    roots = [("root", report.root), ("root in any expert order", report.any_order_root)]
    if any_expert_order:
        roots.reverse()
    shown = [(name, f"sha256:{value}") for name, value in roots if value]
    shown += [("fast root", f"xxh3_128:{report.fast_root}"), ("maths", report.maths_sha256)]
    console.facts(shown)
    console.line()
    console.line(
        f"{report.layout} ({report.file_format}), {len(report.leaves)} tensors, "
        f"{size(report.nbytes)} in {duration(report.seconds)}",
        "green" if report.ok else "red",
    )
