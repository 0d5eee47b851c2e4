"""`moetool experts ablate`: what each expert gives, and what losing it costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from moetool.cli.console import Column, Console
from moetool.cli.eval import parse_range
from moetool.cli.experts.stats import by_layer
from moetool.cli.heat_map import drawn, print_heat_map
from moetool.cli.options import JsonOption, PathArgument, QuietOption, must_exist, resolve
from moetool.cli.page import check_target, write_targets
from moetool.cli.running import (
    ComputeOption,
    DeviceOption,
    MemoryOption,
    Running,
    read_text,
    running,
    say_outlook,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moetool.experts.ablate import Costs
    from moetool.experts.masked import Masked
    from moetool.experts.saliency import ExpertSaliency

DEFAULT_WINDOW = 1024
FEWEST_RANKED = 3
NO_TOP_K = "none"

TextOption = Annotated[Path, typer.Option("--text", metavar="FILE", help="A text, as UTF-8")]
WindowOption = Annotated[int, typer.Option(min=2, help="Tokens read for themselves")]
MaxTokensOption = Annotated[
    int | None, typer.Option(min=2, help="Stop after so many tokens", show_default=False)
]


@dataclass(frozen=True, slots=True)
class ExactCost:
    """The loss without one expert less the loss with it, in nats a token, with its error."""

    layer: int
    expert: int
    delta: float
    error: float


@dataclass(frozen=True, slots=True)
class TopK:
    """The loss with another number of experts for each token."""

    n_experts_per_tok: int
    loss: float
    error: float


@dataclass(frozen=True, slots=True)
class AblateReport:
    """Saliency of all experts, the exact cost of some, and the loss against top-k.

    ``agreement``: Spearman's rank correlation of reap and exact cost, over those measured.
    """

    schema: ClassVar[str] = "moetool.experts.ablate"
    version: ClassVar[int] = 1

    path: str
    text: str
    n_tokens: int
    window: int
    n_layers: int
    n_experts: int
    loss: float
    saliency: tuple[ExpertSaliency, ...]
    exact: tuple[ExactCost, ...]
    agreement: float | None
    top_k: tuple[TopK, ...]
    device: str
    dtype: str

    @property
    def ok(self) -> bool:
        """A cost is no verdict."""
        return True


def ablate(
    text: TextOption,
    path: PathArgument = None,
    least: Annotated[
        int, typer.Option(min=0, help="Measure the cost of so many with the least saliency")
    ] = 4,
    most: Annotated[int, typer.Option(min=0, help="… and of so many with the most")] = 4,
    expert: Annotated[
        list[str] | None,
        typer.Option(help="… and of these, as 3:0,5 or all:1; may be repeated", show_default=False),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Measure the cost of every expert")] = False,
    top_k: Annotated[
        str, typer.Option(help="Loss with so many experts for each token, as 1..4; none: not")
    ] = "1..4",
    window: WindowOption = DEFAULT_WINDOW,
    max_tokens: MaxTokensOption = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page", show_default=False)
    ] = None,
    picture: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Write the saliency as .svg or .png", show_default=False),
    ] = None,
    device: DeviceOption = "auto",
    dtype: ComputeOption = "keep",
    memory: MemoryOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say what each expert gives on a text, and measure what losing some of them costs.

    One pass gives the saliency of all (router weight times output norm). The exact cost is the loss
    of the text read again from the layer that loses the expert.
    """
    console = Console(json, quiet)
    check_target(html, (".html", ".htm"))
    for each in picture or ():
        check_target(each, (".svg", ".png"))
    must_exist(text)
    if top_k != NO_TOP_K:
        parse_range(top_k, 1)  # before the work
    content, where = read_text(text), resolve(path, console)
    with running(where, device, dtype, memory) as opened:
        bench = Bench(console, opened, content, window, max_tokens)
        wanted = (least, most, tuple(expert or ()), every)
        report = _report(bench, where, text, wanted, top_k)
    _write(console, report, html, tuple(picture or ()))
    console.result(report, lambda: _render(console, report))


class Bench:
    """A model and the tokens that everything is measured on."""

    def __init__(
        self, console: Console, opened: Running, content: str, window: int, max_tokens: int | None
    ) -> None:
        self.console, self.opened, self.model = console, opened, opened.model
        self.tokens = opened.speaking().encode(content)[:max_tokens]
        self.window = min(window, opened.recognized.args.max_seq_len)
        from moetool.model.evaluate import TOGETHER

        n_rows = min(len(self.tokens), max(TOGETHER, self.window))
        say_outlook(console, self.model, n_rows, n_rows, self.window)

    def saliency(self) -> tuple[ExpertSaliency, ...]:
        """One pass over the text."""
        from moetool.experts.saliency import saliencies

        with self.console.progress("saliency", None) as update:
            return saliencies(
                self.model, self.tokens, self.window,
                lambda done, total: update(done, f"{done} of {total} tokens"),
            )  # fmt: skip

    def costs(self, title: str, cuts: Sequence[Masked]) -> Costs:
        """What losing the experts of each cut costs, exactly."""
        from moetool.experts.ablate import measure

        with self.console.progress(title, None) as update:
            return measure(
                self.model, self.tokens, self.window, cuts,
                lambda done, total: update(done, f"{done} of {total} layers"),
            )  # fmt: skip


def _report(
    bench: Bench, path: Path, text: Path, wanted: tuple[int, int, tuple[str, ...], bool], top_k: str
) -> AblateReport:
    from moetool.experts.masked import refuse_impossible
    from moetool.experts.rewrite import parse_experts
    from moetool.model.device import spelled

    args = bench.opened.recognized.args
    least, most, words, every = wanted
    named = parse_experts(words, args.n_layers, "--expert")
    for layer, experts in named.items():
        for expert in experts:
            refuse_impossible(bench.model, {layer: frozenset({expert})})
    saliency = bench.saliency()
    chosen = _chosen(saliency, least, most, named, every=every)
    costs = bench.costs("ablate", [{layer: frozenset({expert})} for layer, expert in chosen])
    exact = tuple(
        ExactCost(layer, expert, cost.delta, cost.error)
        for (layer, expert), cost in zip(chosen, costs.cuts, strict=True)
    )
    reap = {(one.layer, one.expert): one.reap for one in saliency}
    ranks = [(reap[one.layer, one.expert], one.delta) for one in exact]
    return AblateReport(
        str(path), str(text), len(bench.tokens), bench.window, args.n_layers, args.n_experts,
        costs.loss, saliency, exact, spearman(ranks), tuple(_losses(bench, top_k)),
        str(bench.model.weights.device), spelled(bench.model.weights.dtype),
    )  # fmt: skip


def _chosen(
    saliency: tuple[ExpertSaliency, ...], least: int, most: int,
    named: Mapping[int, tuple[int, ...]], *, every: bool,
) -> list[tuple[int, int]]:  # fmt: skip
    """The experts whose cost is measured, in the order of layers."""
    if every:
        return [(one.layer, one.expert) for one in saliency]
    ranked = sorted(saliency, key=lambda one: one.reap)
    picked = [*ranked[:least], *(ranked[-most:] if most else ())]
    wanted = {(one.layer, one.expert) for one in picked}
    wanted |= {(layer, expert) for layer, experts in named.items() for expert in experts}
    return sorted(wanted)


def _losses(bench: Bench, top_k: str) -> list[TopK]:
    """The loss for each k; the whole model's is among them where k is as trained."""
    from moetool.model.evaluate import evaluate, with_experts

    if top_k == NO_TOP_K:
        return []
    args, found = bench.opened.recognized.args, []
    for k in parse_range(top_k, args.n_experts_per_tok):
        if k > args.n_experts:
            break
        with bench.console.progress(f"top {k}", None) as update:
            score = evaluate(
                with_experts(bench.model, k), bench.tokens, bench.window,
                progress=lambda done, total: update(done, f"{done} of {total} tokens"),
            ).score  # fmt: skip
        found.append(TopK(k, score.loss, score.error))
    return found


def spearman(pairs: list[tuple[float, float]]) -> float | None:
    """The rank correlation of pairs; None of fewer than three, or where all are equal."""
    if len(pairs) < FEWEST_RANKED:
        return None
    ranks = [_ranks(list(values)) for values in zip(*pairs, strict=True)]
    mean = (len(pairs) + 1) / 2
    centred = [[rank - mean for rank in side] for side in ranks]
    squares = [sum(value * value for value in side) for side in centred]
    if not all(squares):
        return None
    both = sum(x * y for x, y in zip(*centred, strict=True))
    return float(both / (squares[0] * squares[1]) ** 0.5)


def _ranks(values: list[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def _write(
    console: Console, report: AblateReport, html: Path | None, pictures: tuple[Path, ...]
) -> None:
    from moetool.cli.experts.ablate_page import ablate_page

    values, layers = _reap(report), range(report.n_layers)
    files = [drawn(path, values, layers, "what each expert gives", "reap") for path in pictures]
    if html:
        files.append((html, ablate_page(report).encode()))
    write_targets(console, files)


def _reap(report: AblateReport) -> list[list[float]]:
    return by_layer(report.n_layers, report.n_experts, [one.reap for one in report.saliency])


def _render(console: Console, report: AblateReport) -> None:
    print_heat_map(console, _reap(report), range(report.n_layers),
                   "reap: mean of router weight x output norm", percent=False)  # fmt: skip
    unused = [f"{one.layer}:{one.expert}" for one in report.saliency if not one.n_tokens]
    if unused:
        console.line(f"no token came to {' '.join(unused)}", "yellow")
    console.line()
    if report.exact:
        found = {(one.layer, one.expert): one for one in report.saliency}
        columns = [Column(title, right=True) for title in
                   ("layer", "expert", "Δloss", "±", "reap", "norm", "tokens")]  # fmt: skip
        rows = []
        for cost in sorted(report.exact, key=lambda cost: cost.delta):
            one = found[cost.layer, cost.expert]
            rows.append([cost.layer, cost.expert, f"{cost.delta:+.4f}", f"{cost.error:.4f}",
                         f"{one.reap:.4g}", f"{one.norm:.4g}", f"{one.frequency:.1%}"])  # fmt: skip
        console.table(columns, rows)
        if report.agreement is not None:
            console.line(f"reap and the exact cost agree in rank by {report.agreement:+.2f}")
        console.line()
    if report.top_k:
        columns = [Column(title, right=True) for title in ("experts a token", "loss", "±")]
        console.table(columns, [[row.n_experts_per_tok, f"{row.loss:.4f}", f"{row.error:.4f}"]
                                for row in report.top_k])  # fmt: skip
        console.line()
    console.line(
        f"loss {report.loss:.4f} nats a token over {report.n_tokens} tokens in windows of "
        f"{report.window}, on {report.device} in {report.dtype}"
    )
