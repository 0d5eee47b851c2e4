"""`moetool experts prune`: a checkpoint with fewer experts in each layer, and what that costs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from moetool.cli.console import Column, Console, count, duration
from moetool.cli.convert import (
    ForceOption,
    FormatOption,
    LayoutOption,
    OutOption,
    RestartOption,
    ShardSizeOption,
)
from moetool.cli.experts.ablate import DEFAULT_WINDOW, Bench, MaxTokensOption, WindowOption
from moetool.cli.experts.writing import (
    DryRunOption,
    StorageOption,
    manner,
    planned,
    prepared,
    refuse_existing,
    told_files,
    wanted,
    write,
)
from moetool.cli.options import (
    JsonOption,
    PathArgument,
    QuietOption,
    again_with,
    must_exist,
    resolve,
)
from moetool.cli.running import ComputeOption, DeviceOption, MemoryOption, read_text, running
from moetool.errors import UsageFault

if TYPE_CHECKING:
    from moetool.convert.job import ConvertReport, Job, Source
    from moetool.experts.selection import Kept


LOSS = "loss"
CRITERIA = ("reap", "norm", "mass", "frequency", LOSS)


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured on a text: the loss before, after, and the difference with its error."""

    text: str
    text_sha256: str
    n_tokens: int
    window: int
    dtype: str
    loss: float
    pruned_loss: float
    delta: float
    error: float


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What was kept and written; ``files`` are those that would be where ``written`` is false."""

    schema: ClassVar[str] = "moetool.experts.prune"
    version: ClassVar[int] = 1

    path: str
    out: str
    layout: str
    file_format: str
    written: bool
    kept: Kept
    n_experts: int
    by: str
    n_params: int
    n_params_before: int
    files: dict[str, int]
    measured: Measured | None
    seconds: float
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """What was written was compared with what was chosen."""
        return True


KeepOption = Annotated[
    int | None, typer.Option(min=1, help="Experts to keep in each layer", show_default=False)
]
DropOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Take these out, as 3:0,5 or all:1; may be repeated; with --keep the rest goes by "
        "saliency",
        show_default=False,
    ),
]
TextOption = Annotated[
    Path | None,
    typer.Option(
        "--text", metavar="FILE", help="What saliency and Δloss are measured on", show_default=False
    ),
]
ByOption = Annotated[
    str,
    typer.Option(
        help="What decides: reap, norm, mass, frequency, or loss: the exact cost of losing each "
        "expert alone"
    ),
]


def prune(
    path: PathArgument = None,
    keep: KeepOption = None,
    drop: DropOption = None,
    text: TextOption = None,
    by: ByOption = "reap",
    window: WindowOption = DEFAULT_WINDOW,
    max_tokens: MaxTokensOption = None,
    to: FormatOption = None,
    layout: LayoutOption = None,
    out: OutOption = None,
    max_shard_size: ShardSizeOption = None,
    store: StorageOption = "keep",
    force: ForceOption = False,
    restart: RestartOption = False,
    dry_run: DryRunOption = False,
    device: DeviceOption = "auto",
    dtype: ComputeOption = "keep",
    memory: MemoryOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a checkpoint with fewer experts in each layer; router rows go with them.

    By saliency on a text, by a list, or both. The cost on that text is measured before the weights
    are written, and is in the manifest. Any layout and format; after an interruption the same
    command goes on.
    """
    console = Console(json, quiet)
    must_exist(text)
    _refuse_undecided(keep, drop, text, by)
    where = resolve(path, console)
    asked = wanted(where, f"{keep or 'fewer'}-experts", to, layout, out, max_shard_size, store)
    refuse_existing(asked.out, force=force or dry_run)
    again = again_with(
        "experts prune", where, asked.out, keep=keep, drop=drop,
        text=text.absolute() if text else None, by=by, window=window, max_tokens=max_tokens, to=to,
        layout=layout, max_shard_size=max_shard_size, store=store, force=force, device=device,
        dtype=dtype, memory=memory, json=json, quiet=quiet,
    )  # fmt: skip
    with ExitStack() as stack:
        source, bench = _opened(stack, console, where, text, (device, dtype, memory),
                                (window, max_tokens))  # fmt: skip
        kept = _kept(bench, source, keep, tuple(drop or ()), by)
        measured = _measure(bench, source, kept, text) if bench and text else None
        decided = by if keep else "list"
        job = prepared(source, kept, asked, _manifest(measured, decided))
        how = manner(force=force, restart=restart, again=again)
        done = None if dry_run else write(console, "prune", job, how)
        report = _report(where, source, job, done, (kept, decided, measured))
    console.result(report, lambda: _render(console, report))


def _report(
    where: Path, source: Source, job: Job, done: ConvertReport | None,
    chosen: tuple[Kept, str, Measured | None],
) -> PruneReport:  # fmt: skip
    kept, by, measured = chosen
    before, after = source.recognized.args, job.source.recognized.args
    return PruneReport(
        path=str(where),
        out=str(job.out),
        layout=job.target.convention,
        file_format=job.target.file_format,
        written=done is not None,
        kept=kept,
        n_experts=before.n_experts,
        by=by,
        n_params=after.n_params,
        n_params_before=before.n_params,
        files=dict(done.files) if done else planned(job),
        measured=measured,
        seconds=done.seconds if done else 0.0,
        notes=job.notes,
    )


def _refuse_undecided(keep: int | None, drop: list[str] | None, text: Path | None, by: str) -> None:
    """Refuse what does not say which experts go.

    Raises:
        UsageFault: neither a number nor a list, or a number without a text to judge by.
    """
    if by not in CRITERIA:
        raise UsageFault(f"no criterion {by!r}", hint=f"--by {', '.join(CRITERIA)}")
    if keep is None and not drop:
        raise UsageFault(
            "say how many experts to keep, or which to drop",
            hint="--keep 6 --text FILE, or --drop all:3,5",
        )
    if keep is not None and text is None:
        raise UsageFault(
            "--keep chooses by saliency, which is measured on a text",
            hint="add --text FILE, or name the experts with --drop",
        )


def _opened(
    stack: ExitStack, console: Console, where: Path, text: Path | None,
    how: tuple[str, str, str | None], read: tuple[int, int | None],
) -> tuple[Source, Bench | None]:  # fmt: skip
    """The source, and where there is a text, the model to measure with."""
    from moetool.convert.job import open_source
    from moetool.formats import open_checkpoint

    if text is None:
        checkpoint = stack.enter_context(open_checkpoint(where))
        return open_source(checkpoint), None
    content = read_text(text)
    opened = stack.enter_context(running(where, *how))
    return open_source(opened.checkpoint), Bench(console, opened, content, *read)


def _kept(
    bench: Bench | None, source: Source, keep: int | None, drop: tuple[str, ...], by: str
) -> Kept:
    """The experts that stay, in their order: those not dropped, the best of them where counted."""
    from moetool.experts.rewrite import parse_experts

    args = source.recognized.args
    dropped = parse_experts(drop, args.n_layers, "--drop")
    left = tuple(
        tuple(e for e in range(args.n_experts) if e not in dropped.get(layer, ()))
        for layer in range(args.n_layers)
    )
    strange = [
        f"layer {layer} has no expert {expert}"
        for layer, experts in dropped.items()
        for expert in experts
        if not 0 <= expert < args.n_experts
    ]
    if strange:
        raise UsageFault(
            "--drop names experts that are not there",
            findings=tuple(strange),
            hint=f"there are {args.n_experts} in each layer, counted from 0",
        )
    most = min(map(len, left))
    if keep is not None and not args.n_experts_per_tok <= keep <= most:
        raise UsageFault(
            f"--keep {keep}: a token needs {args.n_experts_per_tok} experts, and {most} are there",
            hint=f"keep {args.n_experts_per_tok} to {most}",
        )
    if keep is None or bench is None:
        return left
    from moetool.experts.saliency import keep_best  # with torch, which a list does without

    worth = _worth(bench, left, by)
    return keep_best({place: worth[place] for place in worth if place[1] in left[place[0]]}, keep)


def _worth(bench: Bench, left: Kept, by: str) -> dict[tuple[int, int], float]:
    """What each expert is worth, by layer and expert."""
    if by != LOSS:
        return {(one.layer, one.expert): one.by(by) for one in bench.saliency()}
    places = [(layer, expert) for layer, experts in enumerate(left) for expert in experts]
    costs = bench.costs("ablate", [{layer: frozenset({expert})} for layer, expert in places])
    return {place: cost.delta for place, cost in zip(places, costs.cuts, strict=True)}


def _measure(bench: Bench, source: Source, kept: Kept, text: Path) -> Measured:
    """The cost of all that goes, together."""
    import hashlib

    from moetool.experts.rewrite import masked_by
    from moetool.experts.selection import refuse_impossible
    from moetool.model.device import spelled

    refuse_impossible(source.recognized, kept)
    costs = bench.costs("Δloss", [masked_by(source.recognized, kept)])
    (cost,) = costs.cuts
    return Measured(
        text.name, hashlib.sha256(text.read_bytes()).hexdigest(), len(bench.tokens), bench.window,
        spelled(bench.model.weights.dtype), costs.loss, costs.loss + cost.delta, cost.delta,
        cost.error,
    )  # fmt: skip


def _manifest(measured: Measured | None, by: str) -> dict[str, Any]:
    """What the manifest says beside the list of experts."""
    from moetool.reports import plain

    return {"operation": "prune", "by": by, "delta_loss": plain(measured) if measured else None}


def _render(console: Console, report: PruneReport) -> None:
    rows = [(layer, " ".join(map(str, experts)),
             " ".join(str(e) for e in range(report.n_experts) if e not in experts))
            for layer, experts in enumerate(report.kept)]  # fmt: skip
    console.table([Column("layer", right=True), Column("kept"), Column("taken out")], rows)
    console.line()
    console.facts([
        ("parameters", f"{count(report.n_params)}, before {count(report.n_params_before)}"),
        ("chosen by", report.by),
        ("written" if report.written else "would be", told_files(report.files)),
        ("in", f"{report.out} ({report.layout}, {report.file_format})"),
    ])  # fmt: skip
    found = report.measured
    if found:
        console.line(
            f"loss {found.loss:.4f} before, {found.pruned_loss:.4f} after: {found.delta:+.4f} ± "
            f"{found.error:.4f} nats a token, on {found.n_tokens} tokens in {found.dtype}"
        )
    else:
        console.line("what it costs was not measured: give --text FILE", "yellow")
    if report.written:
        console.line(
            f"written in {duration(report.seconds)}, compared with what was chosen", "green"
        )
