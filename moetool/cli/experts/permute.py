"""`moetool experts permute`: the same model with its experts in another order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from moetool.cli.certify import render_certificate
from moetool.cli.console import Column, Console
from moetool.cli.convert import (
    ForceOption,
    FormatOption,
    LayoutOption,
    OutOption,
    RestartOption,
    ShardSizeOption,
)
from moetool.cli.experts.writing import (
    DryRunOption,
    StorageOption,
    manner,
    planned,
    prepared,
    refuse_existing,
    told_files,
    wanted,
)
from moetool.cli.options import (
    JsonOption,
    PathArgument,
    QuietOption,
    again_with,
    must_exist,
    resolve,
)
from moetool.cli.running import be_patient
from moetool.errors import UsageFault

if TYPE_CHECKING:
    from moetool.convert.execute.run import Manner
    from moetool.convert.job import Job, Source
    from moetool.experts.selection import Kept
    from moetool.formats import FileCheckpoint


@dataclass(frozen=True, slots=True)
class PermuteReport:
    """The new order, and the certificate that it is the same model."""

    schema: ClassVar[str] = "moetool.experts.permute"
    version: ClassVar[int] = 1

    path: str
    out: str
    layout: str
    file_format: str
    written: bool
    order: Kept
    files: dict[str, int]
    certificate: object

    @property
    def ok(self) -> bool:
        """What was written was shown to be the same model."""
        return True


OrderOption = Annotated[
    list[str] | None,
    typer.Option(
        help="All experts of a layer in their new order, as 3:1,0,2 or all:1,0,2; may be repeated",
        show_default=False,
    ),
]
LikeOption = Annotated[
    Path | None,
    typer.Option(
        metavar="OTHER", help="As their matches stand in another checkpoint", show_default=False
    ),
]
SeedOption = Annotated[
    int | None, typer.Option(help="A random order, drawn from this", show_default=False)
]


def permute(
    path: PathArgument = None,
    order: OrderOption = None,
    like: LikeOption = None,
    seed: SeedOption = None,
    to: FormatOption = None,
    layout: LayoutOption = None,
    out: OutOption = None,
    max_shard_size: ShardSizeOption = None,
    store: StorageOption = "keep",
    force: ForceOption = False,
    restart: RestartOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a checkpoint with its experts in another order, router rows with them.

    It computes the same. A certificate says so, with the source's root in any order.
    """
    from moetool.convert.job import open_source
    from moetool.formats import open_checkpoint

    console = Console(json, quiet)
    if sum(given is not None for given in (order or None, like, seed)) != 1:
        raise UsageFault(
            "give one of --order, --like and --seed", hint="--order all:1,0,2,3,4,5,6,7"
        )
    must_exist(like)
    where = resolve(path, console)
    be_patient()
    asked = wanted(where, "reordered", to, layout, out, max_shard_size, store)
    refuse_existing(asked.out, force=force or dry_run)
    again = again_with(
        "experts permute", where, asked.out, order=order, like=like.absolute() if like else None,
        seed=seed, to=to, layout=layout, max_shard_size=max_shard_size, store=store, force=force,
        json=json, quiet=quiet,
    )  # fmt: skip
    with open_checkpoint(where) as checkpoint:
        source = open_source(checkpoint)
        chosen = _order(console, where, source, tuple(order or ()), like, seed)
        job = prepared(source, chosen, asked, {"operation": "permute"})
        how = manner(force=force, restart=restart, again=again)
        files, found = (
            (planned(job), None) if dry_run else _write(console, job, source, checkpoint, how)
        )
        report = PermuteReport(
            str(where), str(asked.out), asked.target.convention, asked.target.file_format,
            not dry_run, chosen, files, found,
        )  # fmt: skip
    console.result(report, lambda: _render(console, report))


def _order(
    console: Console, where: Path, source: Source, order: tuple[str, ...], like: Path | None,
    seed: int | None,
) -> Kept:  # fmt: skip
    """For each layer all experts in their new order; a layer that is not named stays.

    Raises:
        UsageFault: a layer's order leaves experts out.
    """
    import random

    from moetool.experts.rewrite import parse_experts

    args = source.recognized.args
    every = tuple(range(args.n_experts))
    if like:
        return _like(console, where, like)
    if seed is not None:
        draw = random.Random(seed)  # noqa: S311  # an order is no secret
        return tuple(tuple(draw.sample(every, len(every))) for _ in range(args.n_layers))
    named = parse_experts(order, args.n_layers, "--order")
    short = [f"layer {layer}: {experts}" for layer, experts in named.items()
             if sorted(experts) != list(every)]  # fmt: skip
    if short:
        raise UsageFault(
            f"an order names each of the {args.n_experts} experts once",
            findings=tuple(short),
            hint="moetool experts prune takes experts out",
        )
    return tuple(named.get(layer, every) for layer in range(args.n_layers))


def _like(console: Console, where: Path, like: Path) -> Kept:
    from moetool.experts.similarity import across, order_like
    from moetool.proof.canonical import open_weights

    with (
        open_weights(where) as ours,
        open_weights(like) as theirs,
        console.progress("match", None) as update,
    ):
        layers = across(ours, theirs, lambda done, total: update(done, f"{done} of {total} layers"))
    return order_like(layers)


def _write(
    console: Console, job: Job, source: Source, checkpoint: FileCheckpoint, how: Manner
) -> tuple[dict[str, int], object]:
    """Write, and certify against the source itself: renumbered, and nothing else."""
    from moetool.experts.rewrite import run_selection
    from moetool.proof.certificate.issue import Certifier

    for note in job.notes:
        console.warn(note)
    with console.progress("permute", 2 * job.plan.nbytes + job.plan.read_nbytes) as update:
        certifier = Certifier(source, checkpoint, update, cold=False)
        done = run_selection(job, update, replace(how, certify=certifier))
    return dict(done.files), certifier.certificate


def _render(console: Console, report: PermuteReport) -> None:
    from moetool.proof.certificate.certificate import Certificate

    rows = [(layer, " ".join(map(str, experts))) for layer, experts in enumerate(report.order)]
    console.table([Column("layer", right=True), Column("old numbers in the new order")], rows)
    console.line()
    console.facts([
        ("written" if report.written else "would be", told_files(report.files)),
        ("in", f"{report.out} ({report.layout}, {report.file_format})"),
    ])  # fmt: skip
    if isinstance(report.certificate, Certificate):
        console.line()
        render_certificate(console, report.certificate)
