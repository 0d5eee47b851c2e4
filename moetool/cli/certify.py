"""`moetool certify`: whether an output, of whatever tool, is the model it should be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Console, safe
from moetool.cli.options import JsonOption, QuietOption, refuse_absent
from moetool.errors import Mismatch

if TYPE_CHECKING:
    from moetool.proof.certificate.certificate import Certificate

SignOption = Annotated[
    Path | None,
    typer.Option(
        "--sign",
        metavar="KEY",
        help="Sign the output's folder with an elliptic-curve private key (PEM)",
        show_default=False,
    ),
]
_STYLES = {
    "EQUAL": "green",
    "RENUMBERED": "green",
    "ROUNDED": "yellow",
    "QUANTISED": "yellow",
    "DIFFERENT": "red",
}


def certify(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="What it was made of")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The output, of whatever tool")],
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write it [default: beside the output]", show_default=False),
    ] = None,
    in_toto: Annotated[
        Path | None,
        typer.Option(help="Write it as an in-toto statement too", show_default=False),
    ] = None,
    sign: SignOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare an output with its source, value by value, and record what was shown.

    Both are read whole. EQUAL: the same values. RENUMBERED: the same, experts in another order.
    ROUNDED: each value is the nearest in the type that is stored, with the distance. QUANTISED:
    blocks are as near as their type usually comes. `moetool verify OUT` checks the record later.
    """
    from moetool.durable import write_durably
    from moetool.formats.output import refusals
    from moetool.proof.certificate.issue import certify as compare
    from moetool.proof.certificate.record import CERTIFICATE, write_record
    from moetool.proof.certificate.signature import require, sign_folder
    from moetool.proof.certificate.statement import statement

    console = Console(json, quiet)
    for path in (source, output):
        refuse_absent(path)
    folder = output if output.is_dir() else output.parent
    if sign:
        require(sign)
    with console.progress("certify", None) as update:
        found = compare(source, output, update)
    console.result(found, lambda: render_certificate(console, found))
    if not found.ok:
        console.hint(f"moetool diff {source} {output} says what differs; nothing was written")
        raise typer.Exit(Mismatch.exit_code)
    target = out or folder / CERTIFICATE
    with refusals(target):
        write_durably(target, write_record(found))
    console.note(f"written: {target}")
    if in_toto:
        with refusals(in_toto):
            write_durably(in_toto, statement(found))
        console.note(f"written: {in_toto}")
    if sign:
        console.note(f"signed: {sign_folder(folder, sign)}")


def render_certificate(console: Console, found: Certificate) -> None:
    """Print what was shown, a line for each link, and the verdict."""
    for line in found.lines():
        console.line(safe(line))
    console.line(f"\n{found.verdict.value}", _STYLES[found.verdict.value])
