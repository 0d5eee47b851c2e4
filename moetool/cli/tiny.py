"""`moetool tiny`: a checkpoint to try things on, in any layout and format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from moetool.cli.console import Console, size
from moetool.cli.options import JsonOption, QuietOption
from moetool.errors import UsageFault

if TYPE_CHECKING:
    from moetool.convert.targets import Target


@dataclass(frozen=True, slots=True)
class TinyReport:
    """What was made."""

    schema: ClassVar[str] = "moetool.tiny"
    version: ClassVar[int] = 1

    out: Path
    layout: str
    file_format: str
    nbytes: int

    @property
    def ok(self) -> bool:
        """It was made."""
        return True


def tiny(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make")],
    layout: Annotated[
        str | None, typer.Option(help="mistral, mistral-packed, hf, hf-fused, gguf or gguf-split")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="File format: pth, safetensors or gguf")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides every random weight")] = 0,
    trained: Annotated[
        bool, typer.Option("--trained", help="The weights of the tiny trained release")
    ] = False,
    geometry: Annotated[
        str,
        typer.Option(
            help="tiny, tiny-dense; or 7b, 8x7b, 8x22b: true size, weights as holes (raw .pth)"
        ),
    ] = "tiny",
    max_shard_size: Annotated[
        int | None, typer.Option(min=1, help="Largest file in bytes", show_default=False)
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a checkpoint to try things on.

    Small, with random or trained weights, in any layout and format; or of full size, all headers
    real and all weights holes.
    """
    from moetool.convert.synthetic import GEOMETRIES
    from moetool.convert.targets import find_target

    console = Console(json, quiet)
    if geometry not in GEOMETRIES:
        raise UsageFault(f"no geometry {geometry!r}", hint=f"one of {', '.join(GEOMETRIES)}")
    if trained and geometry != "tiny":
        raise UsageFault("the trained weights have the geometry tiny")
    if geometry.startswith("tiny"):
        target = find_target(to or ("pth" if layout in {None, "mistral"} else None), layout)
        report = _small(out, target, geometry, None if trained else seed, max_shard_size)
    else:
        report = _full(out, layout, to, geometry)
    console.result(
        report,
        lambda: console.line(
            f"{report.out}: {report.layout}, {report.file_format}, {size(report.nbytes)}", "green"
        ),
    )


def _small(
    out: Path, target: Target, geometry: str, seed: int | None, max_nbytes: int | None
) -> TinyReport:
    """Random weights of a seed, or without one those of the trained release."""
    from moetool.convert.job import open_source, prepare
    from moetool.convert.sidecars import read_tokenizer
    from moetool.convert.synthetic import GEOMETRIES, random_source
    from moetool.formats import open_checkpoint
    from moetool.release.fixture import find_fixture

    fixture = find_fixture().directory
    if seed is None:
        with open_checkpoint(fixture) as checkpoint:
            made = prepare(open_source(checkpoint), target, out, max_nbytes).run()
    else:
        source = random_source(GEOMETRIES[geometry], seed, read_tokenizer(fixture))
        made = prepare(source, target, out, max_nbytes).run()
    return TinyReport(made.out, made.layout, made.file_format, sum(made.files.values()))


def _full(out: Path, layout: str | None, to: str | None, geometry: str) -> TinyReport:
    from moetool.convert.synthetic import GEOMETRIES, write_full_geometry

    if layout not in {None, "mistral"} or to not in {None, "pth"}:
        raise UsageFault("a full geometry is made as a raw .pth only")
    nbytes = write_full_geometry(GEOMETRIES[geometry], out)
    return TinyReport(out, "mistral", "pth", nbytes)
