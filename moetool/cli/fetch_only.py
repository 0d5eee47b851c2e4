"""`moetool fetch --only`: a part of a release, chosen by what its tensors are."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Console, safe, size
from moetool.errors import UsageFault

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moetool.extents import Extent, LocalFile
    from moetool.release.only import FetchOnlyReport, Wish
    from moetool.release.source import Source
    from moetool.release.torrent.profile import SwarmOptions

OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="SELECTOR",
        help="Fetch just this: layers.0-3, experts.2, layers.0.experts.2, router, attention, "
        "norms, embeddings, output, tokenizer, or a pattern of tensor names; may be repeated",
        show_default=False,
    ),
]


def selectors_of(only: Sequence[str] | None, converting: object) -> tuple[str, ...]:
    """The selectors of the command line; none where all is to be fetched.

    Raises:
        UsageFault: an empty one, or a conversion at the same time.
    """
    from moetool.arch.select import split_selectors

    selectors = split_selectors(only or ())
    if selectors and converting is not None:
        raise UsageFault(
            "--only fetches a part, and a conversion needs all of a model",
            hint="leave one of the two out",
        )
    return selectors


def wish_for(only: Sequence[str]) -> Wish:
    """What selectors ask for: which bytes of the weight files, told by their headers."""
    from moetool.formats.directory import is_weight_file
    from moetool.release.only import Wish

    selectors = tuple(only)

    def choose(directory: Path, sources: Mapping[str, LocalFile]) -> list[Extent]:
        from moetool.arch.select import select
        from moetool.formats.arriving import open_arriving

        with open_arriving(directory, directory, sources) as checkpoint:
            spans = select(checkpoint.catalog, checkpoint.directory, selectors)
            places = [checkpoint.places(span.name, span.start, span.stop) for span in spans]
            headers = [checkpoint.headers_of(name) for name in {span.name for span in spans}]
            return [*chain(*places, *headers)]

    return Wish(selectors, choose, is_weight_file)


def run(
    console: Console, source: Source, out: Path | None, only: Sequence[str], options: SwarmOptions
) -> FetchOnlyReport:
    """Fetch what selectors name, with progress."""
    from moetool.cli.fetch import told_where_else
    from moetool.cli.stages import stages, told_how_to_go_on
    from moetool.release.only import fetch_only

    with told_how_to_go_on(), told_where_else(source), stages(console) as on_progress:
        return fetch_only(source, out, wish_for(only), options, on_progress=on_progress)


def render(console: Console, report: FetchOnlyReport) -> None:
    """Print the report of the fetch, what is here by it, and how to get the rest."""
    from moetool.cli.fetch import _render as render_fetched

    render_fetched(console, report.fetched)
    if report.rest is None:
        console.line("all of the release is here")
        return
    share = report.held_nbytes / max(1, report.nbytes)
    console.line(
        f"a part of the release is here: {size(report.held_nbytes)} of {size(report.nbytes)} "
        f"({share:.1%}), by {safe(', '.join(report.only))}"
    )
    console.line("what is not here is a hole: it is NOT COVERED, and refused where it is needed")
    console.line(f"all the rest: {safe(report.rest)}")
