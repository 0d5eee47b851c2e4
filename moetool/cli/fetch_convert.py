"""`moetool fetch --convert`: what is fetched is converted while it comes."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Console, safe
from moetool.errors import UsageFault

if TYPE_CHECKING:
    from moetool.convert.arriving.companion import Wish
    from moetool.convert.arriving.fetch import FetchConvertReport
    from moetool.release.publish.taken import TakenPieces
    from moetool.release.source import Source
    from moetool.release.torrent.profile import SwarmOptions

ConvertOption = Annotated[
    str | None,
    typer.Option(
        "--convert",
        metavar="FORMAT",
        help="Convert while fetching, to safetensors, gguf or pth; see moetool convert",
        show_default=False,
    ),
]
ConvertOutOption = Annotated[
    Path | None,
    typer.Option(
        help="The folder of the conversion; left out: beside the raw one", show_default=False
    ),
]
KeepOption = Annotated[
    bool,
    typer.Option(
        "--keep/--no-keep",
        help="With --convert: leave the raw files, or give each piece back to the disk once what "
        "was made of it is there (Linux)",
    ),
]
LayoutOption = Annotated[
    str | None,
    typer.Option(help="With --convert: the layout, as of moetool convert", show_default=False),
]
DtypeOption = Annotated[
    str, typer.Option(help="With --convert: the storage type, as of moetool convert")
]
ShardSizeOption = Annotated[
    str | None,
    typer.Option(help="With --convert: largest file, as 5GB (decimal units)", show_default=False),
]
CertificateOption = Annotated[
    bool,
    typer.Option(
        "--certificate/--no-certificate",
        help="With --convert: compare both, value by value, before the output gets its name, as "
        "moetool convert does; reads both once more",
    ),
]
PublishOption = Annotated[
    bool,
    typer.Option(
        "--publish",
        help="With --convert: make the .torrent and the link of the output, hashed while it is "
        "written; see moetool publish",
    ),
]


@dataclass(frozen=True, slots=True)
class ConvertWords:
    """What the command line says of the conversion."""

    to: str | None
    out: Path | None
    keep: bool
    layout: str | None
    dtype: str
    max_shard_size: str | None
    certificate: bool
    publish: bool

    def given(self) -> dict[str, bool]:
        """The options that were given, by their names."""
        names = {"to": "convert", "out": "convert_out", "keep": "no_keep"}
        return {
            names.get(field.name, field.name): True
            for field in fields(self)
            if getattr(self, field.name) != getattr(_UNSAID, field.name)
        }

    def wish(self) -> Wish | None:
        """What to do while fetching; None where nothing is.

        Raises:
            UsageFault: options of a conversion without one, or such that cannot be meant.
        """
        if self.to is None:
            if self.given():
                raise UsageFault(
                    "--convert-out, --no-keep, --layout, --dtype, --max-shard-size, --certificate "
                    "and --publish say how to convert",
                    hint="add --convert safetensors or --convert gguf",
                )
            return None
        if self.certificate and not self.keep:
            raise UsageFault(
                "--certificate compares the output with the raw files, and --no-keep leaves none",
                hint="leave out one of them; the manifest has the digests of what was read",
            )
        from moetool.cli.convert import preparer
        from moetool.cli.options import typed_command
        from moetool.cli.quantising import read_recipe
        from moetool.convert.arriving.companion import Wish

        recipe = read_recipe(self.dtype, None, None, None, None, pure=False)
        target, prepared = preparer(self.to, self.layout, self.dtype, self.max_shard_size, recipe)
        wish = Wish(prepared, target.convention, self.out, self.keep, again=typed_command())
        if not self.certificate:
            return wish
        from moetool.proof.certificate.issue import Certifier

        return replace(wish, certifier=partial(Certifier, cold=False))


_UNSAID = ConvertWords(
    None, None, keep=True, layout=None, dtype="keep", max_shard_size=None, certificate=False,
    publish=False,
)  # fmt: skip


def run(
    console: Console,
    source: Source,
    out: Path | None,
    wish: Wish,
    options: SwarmOptions,
    *,
    publish: bool,
) -> FetchConvertReport:
    """Fetch and convert, with the progress of both; and publish the output if that is wanted."""
    from moetool.cli.stages import stages, told_how_to_go_on
    from moetool.convert.arriving.fetch import fetch_and_convert

    if not wish.keep:
        console.note("the raw files will not stay (--no-keep); nobody is given pieces meanwhile")
    taken: list[TakenPieces] = []
    if publish:
        wish = replace(wish, take=partial(_begin, taken))
    with told_how_to_go_on(), stages(console) as on_progress:
        report = fetch_and_convert(source, out, wish, options, on_progress=on_progress)
    return _published(console, report, taken[-1]) if publish else report


def _begin(taken: list[TakenPieces], nbytes: int) -> TakenPieces:
    """Begin the digests of an output's pieces, and leave them with who will publish it."""
    from moetool.release.publish.taken import TakenPieces

    taken.append(TakenPieces(nbytes))
    return taken[-1]


def _published(
    console: Console, report: FetchConvertReport, taken: TakenPieces
) -> FetchConvertReport:
    from moetool.cli.publish import Publication

    made = report.converted
    published = Publication((), (), force=False).run(console, made.out, taken)
    return replace(report, converted=replace(made, published=published))


def render(console: Console, report: FetchConvertReport) -> None:
    """Print both reports, and how to show that they are the same model."""
    from moetool.cli.convert import _render as render_converted
    from moetool.cli.fetch import _render as render_fetched

    render_fetched(console, report.fetched)
    made = report.converted
    console.line()
    title = f"{made.source_layout} -> {made.layout} ({made.file_format}) in {made.out}"
    render_converted(console, made, safe(title))
    for note in made.notes:
        console.warn(note)
    if not report.kept:
        console.line("the raw files were given back to the disk piece by piece; none is left")
    elif made.certificate is None:
        words = ["moetool", "certify", str(report.fetched.path), str(made.out)]
        console.hint(f"{shlex.join(words)} compares the values of both")
