"""`moetool convert`: another layout or format, computed from two tables and streamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.certify import render_certificate
from moetool.cli.console import Column, Console, duration, size
from moetool.cli.options import (
    JsonOption,
    PathArgument,
    QuietOption,
    again_with,
    parse_size,
    resolve,
)
from moetool.cli.plan_table import render_plan
from moetool.cli.publish import (
    TrackerOption,
    WebSeedOption,
    publication_of,
    render_published,
)
from moetool.cli.quantising import (
    EmbeddingTypeOption,
    ImatrixOption,
    OutputTypeOption,
    PureOption,
    TensorTypeOption,
    read_recipe,
    render_errors,
)
from moetool.errors import NoRoomOnDisk

if TYPE_CHECKING:
    from moetool.cli.publish import Publication
    from moetool.convert.casts import CastReport
    from moetool.convert.execute.run import Manner
    from moetool.convert.job import ConvertReport, Job, Source
    from moetool.convert.quantised.recipe import Recipe
    from moetool.convert.targets import Target
    from moetool.formats import FileCheckpoint

_PARTIAL = ".partial"  # behind the name of a folder that a fetch has not finished


FormatOption = Annotated[
    str | None,
    typer.Option(
        "--to",
        help="File format: safetensors, pth or gguf; left out: the layout's usual one, safetensors",
        show_default=False,
    ),
]
LayoutOption = Annotated[
    str | None,
    typer.Option(
        help="hf, hf-fused, mistral, mistral-packed, gguf, gguf-split; left out: the format's "
        "usual one",
        show_default=False,
    ),
]
OutOption = Annotated[Path | None, typer.Option(help="Folder to make; left out: beside the source")]
ShardSizeOption = Annotated[
    str | None, typer.Option(help="Largest file, as 5GB or 500MB (decimal units)")
]
DtypeOption = Annotated[
    str,
    typer.Option(
        help="Storage type: keep, bf16, f16, f32; for a GGUF also a mix of llama-quantize's, such "
        "as q8_0 or q4_k_m; what changes is counted and measured"
    ),
]
OverflowOption = Annotated[
    bool,
    typer.Option("--allow-overflow", help="Let values beyond the type's range become inf"),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Move an output that is there to OUT.old-N")
]
RestartOption = Annotated[
    bool, typer.Option("--restart", help="Begin anew, whatever an earlier run has done")
]
ReadbackOption = Annotated[
    bool, typer.Option("--readback/--no-readback", help="Read each file back from the disk")
]
CertificateOption = Annotated[
    bool,
    typer.Option(
        "--certificate/--no-certificate",
        help="Compare the output with its source, value by value, before it gets its name",
    ),
]
PublishOption = Annotated[
    bool,
    typer.Option(
        "--publish",
        help="Make the .torrent and the link of the output, hashed while it is written; see "
        "moetool publish",
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Print the plan, write nothing; the source need not be complete"
    ),
]


def convert(
    path: PathArgument = None,
    to: FormatOption = None,
    layout: LayoutOption = None,
    out: OutOption = None,
    max_shard_size: ShardSizeOption = None,
    dtype: DtypeOption = "keep",
    imatrix: ImatrixOption = None,
    tensor_type: TensorTypeOption = None,
    output_type: OutputTypeOption = None,
    embedding_type: EmbeddingTypeOption = None,
    pure: PureOption = False,
    allow_overflow: OverflowOption = False,
    force: ForceOption = False,
    restart: RestartOption = False,
    readback: ReadbackOption = True,
    certificate: CertificateOption = True,
    publish: PublishOption = False,
    tracker: TrackerOption = None,
    web_seed: WebSeedOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Convert to another layout or format, bit-exact; or quantise to the very bits of llama.cpp.

    The work is computed from two tables and streamed. Nothing is cast unasked; the source is not
    touched; the output has its name only when it is complete and was shown to be the same model.
    After an interruption the same command goes on.
    """
    from moetool.convert.execute.run import Manner
    from moetool.convert.job import open_source
    from moetool.formats import open_checkpoint

    console = Console(json, quiet)
    recipe = read_recipe(dtype, imatrix, tensor_type, output_type, embedding_type, pure=pure)
    target, prepare = preparer(to, layout, dtype, max_shard_size, recipe, allow_overflow)
    publication = publication_of(publish, tracker, web_seed, force=force)

    def prepared(source: Source, folder: Path) -> Job:
        return prepare(source, out or _beside(folder, target.convention))

    if dry_run:
        _show_plan(console, _fetched_or_coming(path), prepared, readback=readback,
                   certificate=certificate)  # fmt: skip
        return
    source = resolve(path, console)
    with open_checkpoint(source) as checkpoint:
        job = prepared(open_source(checkpoint), checkpoint.directory)
        again = again_with(
            "convert", source, job.out, to=to, layout=layout, max_shard_size=max_shard_size,
            dtype=dtype, imatrix=imatrix, tensor_type=tensor_type, output_type=output_type,
            embedding_type=embedding_type, pure=pure, allow_overflow=allow_overflow, force=force,
            no_readback=not readback, no_certificate=not certificate, publish=publish,
            tracker=tracker, web_seed=web_seed, json=json, quiet=quiet,
        )  # fmt: skip
        manner = Manner(force=force, restart=restart, readback=readback, again=again)
        report = _run(console, job, checkpoint, manner, publication, certificate=certificate)
    console.result(report, lambda: _render(console, report, _title(job)))


def preparer(
    to: str | None,
    layout: str | None,
    dtype: str,
    max_shard_size: str | None,
    recipe: Recipe | None,
    allow_overflow: bool = False,
) -> tuple[Target, Callable[[Source, Path], Job]]:
    """What is made, and what gives the job for a source and the folder to make, of these words.

    Raises:
        UsageFault: there is no such format, layout, type or size.
    """
    from moetool.convert.job import prepare
    from moetool.convert.targets import find_dtype, find_target

    target = find_target(to, layout)
    storage = None if recipe else find_dtype(dtype)
    largest = parse_size(max_shard_size, "--max-shard-size")

    def prepared(source: Source, out: Path) -> Job:
        return prepare(source, target, out, largest, dtype=storage, allow_overflow=allow_overflow,
                       recipe=recipe)  # fmt: skip

    return target, prepared


def _run(
    console: Console,
    job: Job,
    checkpoint: FileCheckpoint,
    manner: Manner,
    publication: Publication | None,
    *,
    certificate: bool,
) -> ConvertReport:
    """Convert, and publish where that is wanted."""
    from moetool.release.publish.taken import TakenPieces

    if publication is None:
        return _convert(console, job, checkpoint, manner, certificate=certificate)
    taken = TakenPieces(job.plan.nbytes)
    manner = replace(manner, taken=taken)
    report = _convert(console, job, checkpoint, manner, certificate=certificate)
    return replace(report, published=publication.run(console, job.out, taken))


def _convert(
    console: Console, job: Job, checkpoint: FileCheckpoint, manner: Manner, *, certificate: bool
) -> ConvertReport:
    """Convert, with the certificate at the end where it is wanted."""
    from moetool.proof.certificate.issue import Certifier

    console.note(f"{_title(job)}: {size(job.plan.nbytes)}")
    for note in job.notes:
        console.warn(note)
    if certificate and (strange := job.plan.unreadable):
        certificate = False
        console.note(f"no certificate: {', '.join(strange)} blocks are not decoded here")
    passing = job.plan.nbytes + job.plan.certified_nbytes * certificate
    with console.progress("convert", passing) as update:
        if not certificate:
            return job.run(update, manner)
        certifier = Certifier(job.source, checkpoint, update, cold=not manner.readback)
        report = job.run(update, replace(manner, certify=certifier))
    return replace(report, certificate=certifier.certificate)


def _show_plan(
    console: Console,
    path: Path | None,
    prepared: Callable[[Source, Path], Job],
    *,
    readback: bool,
    certificate: bool,
) -> None:
    """Print what would be done, also of a source that is not complete.

    Raises:
        Exit: with the code of a full disk, where there is not room enough.
    """
    from moetool.convert.dry_run.outlook import foresee
    from moetool.convert.dry_run.unfinished import survey

    source = resolve(path, console)
    found = survey(source)
    job = prepared(found.source, source if source.is_dir() else source.parent)
    report = foresee(job, found, readback=readback, certificate=certificate)
    console.result(report, lambda: render_plan(console, report, _title(job)))
    if not report.ok:
        console.hint(f"free {report.room.short_nbytes:,} bytes, or give another place with --out")
        raise typer.Exit(NoRoomOnDisk.exit_code)


def _beside(folder: Path, layout: str) -> Path:
    """The folder beside the source that a conversion makes when none is named."""
    name = folder.resolve().name.removesuffix(_PARTIAL)
    return folder.resolve().with_name(f"{name}-{layout}")


def _fetched_or_coming(path: Path | None) -> Path | None:
    """The path, or the folder in which a fetch that has not ended gathers what will be there."""
    coming = path.with_name(path.name + _PARTIAL) if path and path.name else None
    return coming if path and coming and coming.is_dir() and not path.exists() else path


def _title(job: Job) -> str:
    """From what to what, and where."""
    return (
        f"{job.source.recognized.convention.name} -> {job.target.convention} "
        f"({job.target.file_format}) in {job.out}"
    )


def _render(console: Console, report: ConvertReport, title: str) -> None:
    from moetool.proof.certificate.certificate import Certificate

    console.table(
        [Column("file"), Column("size", right=True)],
        [(name, size(nbytes)) for name, nbytes in report.files.items()],
    )
    copied = report.copied_nbytes / report.nbytes
    console.line()
    console.line(title)
    console.line(
        f"{report.n_tensors} tensors, {size(report.nbytes)}, {copied:.1%} copied byte for byte, "
        f"{size(report.peak_nbytes)} of weights in memory at most"
    )
    if report.casts and report.casts.n_tensors:
        _render_casts(console, report.casts)
    if report.casts:
        render_errors(console, report.casts)
    rate = size(max(report.nbytes - report.resumed_nbytes, 0) / max(report.seconds, 1e-9))
    if report.resumed_nbytes:
        console.line(f"{size(report.resumed_nbytes)} were there from an earlier run")
    console.line(f"written in {duration(report.seconds)} ({rate}/s)", "green")
    if isinstance(report.certificate, Certificate):
        console.line()
        render_certificate(console, report.certificate)
    if report.published:
        console.line()
        render_published(console, report.published)


def _render_casts(console: Console, casts: CastReport) -> None:
    """What the casts did to the values, and which tensors were changed most."""
    total = casts.total
    console.line(
        f"{casts.n_tensors} tensors cast: {total.numel:,} values, {total.rounded:,} rounded, "
        f"{total.underflowed:,} underflowed to 0, {total.overflowed:,} overflowed to inf, "
        f"{total.nan:,} NaN",
        "yellow" if total.overflowed or total.nan else None,
    )
    if casts.worst:
        console.table(
            [Column("look at these first"), Column("cast"), Column("rounded", right=True),
             Column("to 0", right=True), Column("to inf", right=True), Column("NaN", right=True)],
            [(cast.name, f"{cast.source} to {cast.target}", f"{cast.count.rounded:,}",
              f"{cast.count.underflowed:,}", f"{cast.count.overflowed:,}", f"{cast.count.nan:,}")
             for cast in casts.worst],
        )  # fmt: skip
