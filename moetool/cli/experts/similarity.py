"""`moetool experts similarity`: which experts are alike, in one checkpoint or between two."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from moetool.cli.console import Column, Console
from moetool.cli.options import JsonOption, PathArgument, QuietOption, must_exist, resolve
from moetool.cli.running import be_patient

if TYPE_CHECKING:
    from moetool.experts.similarity import LayerSimilarity


@dataclass(frozen=True, slots=True)
class SimilarityReport:
    """Cosines of each layer, and with ``against`` the matches."""

    schema: ClassVar[str] = "moetool.experts.similarity"
    version: ClassVar[int] = 1

    path: str
    against: str | None
    layers: tuple[LayerSimilarity, ...]

    @property
    def ok(self) -> bool:
        """A likeness is no verdict."""
        return True


def similarity(
    path: PathArgument = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Another checkpoint: which expert of it is which", show_default=False),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare experts by their weights: within each layer, or with those of another checkpoint.

    Any layouts and types; the other checkpoint may have its experts in another order, or fewer.
    """
    console = Console(json, quiet)
    where = resolve(path, console)
    must_exist(against)
    be_patient()
    from moetool.experts.similarity import across, within
    from moetool.proof.canonical import open_weights

    with ExitStack() as stack:
        ours = stack.enter_context(open_weights(where))
        theirs = stack.enter_context(open_weights(against)) if against else None
        update = stack.enter_context(console.progress("similarity", None))

        def tell(done: int, total: int) -> None:
            update(done, f"{done} of {total} layers")

        layers = across(ours, theirs, tell) if theirs else within(ours, tell)
    report = SimilarityReport(str(where), str(against) if against else None, layers)
    console.result(report, lambda: _render(console, report))


def _render(console: Console, report: SimilarityReport) -> None:
    if report.against:
        columns = [Column("layer", right=True), Column("expert of the first in the other's order"),
                   Column("least like", right=True), Column("router rows", right=True),
                   Column("")]  # fmt: skip
        console.table(columns, [_matched(layer) for layer in report.layers])
        return
    for layer in report.layers:
        n = len(layer.cosines)
        pairs = [(layer.cosines[i][j], i, j) for i in range(n) for j in range(i + 1, n)]
        cosine, i, j = max(pairs, default=(0.0, 0, 0))
        mean = sum(pair[0] for pair in pairs) / max(len(pairs), 1)
        console.line(
            f"layer {layer.layer}: experts {i} and {j} are most alike, cosine {cosine:.4f}; "
            f"mean of all pairs {mean:.4f}"
        )
    if len(report.layers) == 1 or len(report.layers[0].cosines) <= 16:  # noqa: PLR2004  # fits
        console.line()
        for layer in report.layers:
            titles = ["layer " + str(layer.layer), *map(str, range(len(layer.cosines)))]
            rows = [[str(i), *(f"{value:.3f}" for value in row)]
                    for i, row in enumerate(layer.cosines)]  # fmt: skip
            console.table([Column(title, right=True) for title in titles], rows)
            console.line()


def _matched(layer: LayerSimilarity) -> list[str]:
    ordered = sorted(layer.matches, key=lambda match: match.b)
    strange = [match for match in ordered if not match.alike]
    moved = any(match.a != match.b for match in ordered)
    said = "other experts" if strange else "reordered or fewer" if moved else "the same order"
    return [
        str(layer.layer),
        " ".join("-" if not match.alike else str(match.a) for match in ordered),
        f"{min((match.cosine for match in ordered), default=0):.4f}",
        f"{min((match.router for match in ordered), default=0):.4f}",
        said,
    ]
