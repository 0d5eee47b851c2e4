"""`moetool experts extract`: one expert of one layer as named tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from moetool.cli.console import Column, Console, safe, size
from moetool.cli.options import JsonOption, PathArgument, QuietOption, resolve
from moetool.cli.page import check_target

if TYPE_CHECKING:
    from moetool.tensors import TensorInfo


@dataclass(frozen=True, slots=True)
class ExtractReport:
    """The tensors that were written, and what they are not."""

    schema: ClassVar[str] = "moetool.experts.extract"
    version: ClassVar[int] = 1

    path: str
    out: str
    layer: int
    expert: int
    tensors: tuple[TensorInfo, ...]
    note: str

    @property
    def ok(self) -> bool:
        """It was written."""
        return True


def extract(
    layer: Annotated[int, typer.Option(min=0, help="The layer, from 0")],
    expert: Annotated[int, typer.Option(min=0, help="The expert, from 0")],
    path: PathArgument = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="FILE.safetensors; left out: layer-L-expert-E here",
                     show_default=False),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Write one expert of one layer as a safetensors file of five tensors, for study.

    It is no model, and the file says so.
    """
    console = Console(json, quiet)
    target = out or Path(f"layer-{layer}-expert-{expert}.safetensors")
    check_target(target, (".safetensors",))
    where = resolve(path, console)
    from moetool.experts.extract import NOTE
    from moetool.experts.extract import extract as extracted
    from moetool.proof.canonical import open_weights

    with open_weights(where, part=True) as weights:
        infos = extracted(weights, layer, expert, target)
        note = NOTE.format(n=weights.recognized.args.n_experts, layer=layer)
    report = ExtractReport(str(where), str(target), layer, expert, infos, note)
    console.result(report, lambda: _render(console, report))


def _render(console: Console, report: ExtractReport) -> None:
    columns = [Column("tensor"), Column("type"), Column("shape"), Column("size", right=True)]
    rows = [(info.name, info.dtype.label, "x".join(map(str, info.shape)), size(info.nbytes))
            for info in report.tensors]  # fmt: skip
    console.table(columns, rows)
    console.line()
    console.line(f"written: {safe(report.out)}")
    console.line(report.note, "yellow")
