"""`moetool eval`: loss on a text, the distance to another model, the cost of fewer experts."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from moetool.cli.console import Column, Console
from moetool.cli.options import JsonOption, QuietOption, refuse_absent
from moetool.cli.parallel import ParallelOption, ranks, tell_ranks
from moetool.cli.running import (
    ComputeOption,
    DeviceOption,
    MemoryOption,
    Running,
    pace,
    read_text,
    running,
    say_outlook,
)
from moetool.errors import Refused, UsageFault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moetool.model.evaluate import Scores
    from moetool.model.mixtral import Transformer
    from moetool.model.parallel.shared import RankMemory

DEFAULT_WINDOW = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """The scores of one setting: experts for each token, of one model or of two."""

    n_experts_per_tok: int
    scores: Scores


@dataclass(frozen=True, slots=True)
class EvalReport:
    """Everything that was scored; losses are nats a token."""

    schema: ClassVar[str] = "moetool.eval"
    version: ClassVar[int] = 1

    path: str
    against: str | None
    text: str
    n_tokens: int
    window: int
    device: str
    dtype: str
    rows: tuple[Row, ...]
    ranks: tuple[RankMemory, ...]

    @property
    def ok(self) -> bool:
        """Scores are no verdict."""
        return True


def evaluate(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The checkpoint to score")],
    text: Annotated[Path, typer.Option("--text", metavar="FILE", help="A text, as UTF-8")],
    against: Annotated[
        Path | None,
        typer.Option(help="Another checkpoint: how far it is from this one", show_default=False),
    ] = None,
    top_k: Annotated[
        str | None,
        typer.Option(
            help="Experts for each token, as 1..4 or 2; left out: as trained", show_default=False
        ),
    ] = None,
    window: Annotated[int, typer.Option(min=2, help="Tokens read for themselves")] = DEFAULT_WINDOW,
    max_tokens: Annotated[
        int | None, typer.Option(min=2, help="Stop after so many tokens", show_default=False)
    ] = None,
    device: DeviceOption = "auto",
    dtype: ComputeOption = "keep",
    memory: MemoryOption = None,
    parallel: ParallelOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score a text: loss per token and perplexity, in windows that are read each for itself.

    With --against: KL divergence and how often the best next token is the same. With --top-k: what
    fewer or more experts for each token cost.
    """
    console = Console(json, quiet)
    with ExitStack() as opened:
        together = opened.enter_context(ranks(parallel, device, console))
        for given in (path, text, *([against] if against else [])):
            refuse_absent(given)
        content = read_text(text)

        def enter(where: Path) -> Running:
            return opened.enter_context(running(where, device, dtype, memory, together))

        model = enter(path)
        other = enter(against) if against else None
        tokens = model.speaking().encode(content)[:max_tokens]
        if other:
            _refuse_other_words(model, other)
        window = min(window, model.recognized.args.max_seq_len)
        from moetool.model.device import spelled
        from moetool.model.evaluate import TOGETHER

        n_rows = min(len(tokens), max(TOGETHER, window))
        for opened_model in filter(None, (model, other)):
            say_outlook(console, opened_model.model, n_rows, n_rows, window)
        rows = tuple(_rows(console, model, other, tokens, window, top_k))
        report = EvalReport(
            str(path), str(against) if against else None, str(text), len(tokens), window,
            str(model.weights.device), spelled(model.weights.dtype), rows,
            tell_ranks(console, model.model, *([other.model] if other else [])),
        )  # fmt: skip
    console.result(report, lambda: _render(console, report))


def _rows(
    console: Console, model: Running, other: Running | None, tokens: list[int], window: int,
    top_k: str | None,
) -> Iterator[Row]:  # fmt: skip
    from moetool.model.evaluate import evaluate as scored
    from moetool.model.evaluate import with_experts

    trained = model.recognized.args.n_experts_per_tok

    def chosen(opened: Running, k: int) -> Transformer:
        return opened.model if k == trained else with_experts(opened.model, k)

    for k in parse_range(top_k, trained):
        with console.progress(f"top {k}", None) as update:
            scores = scored(
                chosen(model, k), tokens, window, chosen(other, k) if other else None,
                lambda done, total: update(done, f"{done} of {total} tokens"),
            )  # fmt: skip
        yield Row(k, scores)


def parse_range(text: str | None, trained: int) -> range:
    """Read 1..4 or 2.

    Raises:
        UsageFault: it is neither.
    """
    if text is None:
        return range(trained, trained + 1)
    first, _, last = text.partition("..")
    try:
        found = range(int(first), int(last or first) + 1)
    except ValueError:
        found = range(0)
    if not found or found[0] < 1:
        raise UsageFault(f"--top-k {text!r} is no range of experts", hint="write it as 1..4, or 2")
    return found


def _refuse_other_words(model: Running, other: Running) -> None:
    """The same tokens must mean the same to both.

    Raises:
        Refused: the vocabularies have different sizes.
    """
    ours, theirs = model.recognized.args.vocab_size, other.recognized.args.vocab_size
    if ours != theirs:
        raise Refused(
            f"has {theirs} tokens in its vocabulary, the first has {ours}",
            where=str(other.checkpoint.path),
            hint="compare checkpoints of one vocabulary; moetool diff says what else differs",
        )


def _render(console: Console, report: EvalReport) -> None:
    columns = [Column("experts", right=True), Column("loss", right=True), Column("±", right=True),
               Column("perplexity", right=True)]  # fmt: skip
    if report.against:
        columns += [Column(name, right=True) for name in
                    ("other's loss", "KL", "largest KL", "same top", "largest Δlogit")]  # fmt: skip
    rows = []
    for row in report.rows:
        found, other, apart = row.scores.score, row.scores.other, row.scores.distance
        cells = [f"{row.n_experts_per_tok}", f"{found.loss:.4f}", f"{found.error:.4f}",
                 f"{found.perplexity:.3f}"]  # fmt: skip
        if other and apart:
            logit = "0, bit for bit" if apart.identical else f"{apart.max_logit:.3g}"
            cells += [f"{other.loss:.4f}", f"{apart.kl:.2e}", f"{apart.kl_max:.2e}",
                      f"{apart.same_top:.2%}", logit]  # fmt: skip
        rows.append(cells)
    console.table(columns, rows)
    console.line()
    found = report.rows[0].scores.score
    console.line(
        f"{pace(report.n_tokens, found.seconds)} in windows of {report.window}, "
        f"on {report.device} in {report.dtype}; loss in nats a token"
    )
