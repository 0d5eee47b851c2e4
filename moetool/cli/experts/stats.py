"""`moetool experts stats`: norms and spectra of every expert, and who is dead or double."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from moetool.cli.console import Column, Console
from moetool.cli.heat_map import print_heat_map
from moetool.cli.options import JsonOption, PathArgument, QuietOption, resolve
from moetool.cli.running import be_patient

if TYPE_CHECKING:
    from moetool.experts.stats import Double, ExpertStats

MOST_LINES = 64
MATRICES = ("w1", "w2", "w3")


@dataclass(frozen=True, slots=True)
class StatsReport:
    """Every expert of every layer."""

    schema: ClassVar[str] = "moetool.experts.stats"
    version: ClassVar[int] = 1

    path: str
    n_layers: int
    n_experts: int
    experts: tuple[ExpertStats, ...]
    doubles: tuple[Double, ...]

    @property
    def ok(self) -> bool:
        """A dead expert is told, and is no failure: a model may have been published with it."""
        return True


def stats(
    path: PathArgument = None,
    spectra: Annotated[
        int, typer.Option(min=0, max=64, help="Singular values of each matrix; 0: none")
    ] = 4,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure the weights of each expert: norms, largest singular values, dead and double ones.

    No text is needed. Norms cost one pass over the file; each singular value costs time.
    """
    console = Console(json, quiet)
    where = resolve(path, console)
    be_patient()
    from moetool.experts.stats import look
    from moetool.proof.canonical import open_weights

    with open_weights(where) as weights, console.progress("stats", None) as update:
        args = weights.recognized.args
        found = look(
            weights, spectra, lambda done, total: update(done, f"{done} of {total} layers")
        )
    report = StatsReport(str(where), args.n_layers, args.n_experts, found.experts, found.doubles)
    console.result(report, lambda: _render(console, report))


def _render(console: Console, report: StatsReport) -> None:
    rows = by_layer(report.n_layers, report.n_experts, [one.norm or 0.0 for one in report.experts])
    print_heat_map(console, rows, range(report.n_layers), "norm", percent=False)
    console.line()
    columns = [Column(title, right=True) for title in ("layer", "expert", "norm", "router row")]
    columns += [Column(f"{name} {what}", right=True) for name in MATRICES
                for what in ("rms", "largest", "rank")]  # fmt: skip
    console.table([*columns, Column("")], [_cells(one) for one in report.experts[:MOST_LINES]])
    left = len(report.experts) - MOST_LINES
    if left > 0:
        console.line(f"… {left} more with --json")
    console.line()
    dead = [one for one in report.experts if one.dead]
    for one in dead:
        console.line(
            f"dead: layer {one.layer} expert {one.expert}: {'; '.join(one.dead)}", "yellow"
        )
    for pair in report.doubles:
        console.line(
            f"double: layer {pair.layer} experts {pair.one} and {pair.other}, cosine "
            f"{pair.cosine:.4f}", "yellow",
        )  # fmt: skip
    console.line(f"{len(report.experts)} experts, {len(dead)} dead, {len(report.doubles)} doubles")


def _cells(one: ExpertStats) -> list[str]:
    cells = [str(one.layer), str(one.expert), _shown(one.norm), _shown(one.router_norm)]
    for name in MATRICES:
        matrix = one.matrices[name]
        cells += [
            _shown(matrix.rms),
            f"{matrix.spectrum[0]:.4g}" if matrix.spectrum else "",
            "" if matrix.stable_rank is None else f"{matrix.stable_rank:.1f}",
        ]
    return [*cells, "dead" if one.dead else ""]


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def by_layer(n_layers: int, n_experts: int, values: list[float]) -> list[list[float]]:
    """Values in the order of layers and experts, a row for each layer."""
    return [values[layer * n_experts : (layer + 1) * n_experts] for layer in range(n_layers)]
