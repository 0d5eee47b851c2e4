"""What `prune` and `permute` share: where and as what to write, and the steps of writing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Console, size
from moetool.cli.options import parse_size
from moetool.errors import OutputExists

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moetool.convert.execute.run import Manner
    from moetool.convert.job import ConvertReport, Job, Source
    from moetool.convert.targets import Target
    from moetool.experts.selection import Kept
    from moetool.tensors import DType

StorageOption = Annotated[str, typer.Option("--store", help="Storage type: keep, bf16, f16, f32")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be written, and write nothing")
]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where and as what an output is written."""

    target: Target
    out: Path
    dtype: DType | None
    max_shard_nbytes: int | None


def wanted(
    source: Path, ending: str, to: str | None, layout: str | None, out: Path | None,
    max_shard_size: str | None, store: str,
) -> Wanted:  # fmt: skip
    """Read the options; a folder that is not named stands beside the source."""
    from moetool.convert.targets import find_dtype, find_target

    folder = source if source.is_dir() else source.parent
    beside = folder.resolve().with_name(f"{folder.resolve().name}-{ending}")
    return Wanted(
        find_target(to, layout), (out or beside).absolute(), find_dtype(store),
        parse_size(max_shard_size, "--max-shard-size"),
    )  # fmt: skip


def refuse_existing(out: Path, *, force: bool) -> None:
    """Refuse before the work what would be refused behind it.

    Raises:
        OutputExists: the output is there.
    """
    if not force and (out.exists() or out.is_symlink()):
        raise OutputExists(
            "the output is there already",
            where=str(out),
            hint="--force moves it aside, or give another --out",
        )


def prepared(
    source: Source, kept: Kept, wanted: Wanted, measured: Mapping[str, object] | None = None
) -> Job:
    """The conversion of what was chosen."""
    from moetool.experts.rewrite import prepare_selection

    return prepare_selection(
        source, kept, wanted.target, wanted.out, dtype=wanted.dtype,
        max_shard_nbytes=wanted.max_shard_nbytes, measured=measured,
    )  # fmt: skip


def manner(*, force: bool, restart: bool, again: str) -> Manner:
    """How it is run."""
    from moetool.convert.execute.run import Manner

    return Manner(force=force, restart=restart, again=again)


def write(console: Console, title: str, job: Job, how: Manner) -> ConvertReport:
    """Write, and compare what was written with what was chosen."""
    from dataclasses import replace

    from moetool.experts.rewrite import Comparer, run_selection

    for note in job.notes:
        console.warn(note)
    with console.progress(title, 2 * job.plan.nbytes + job.plan.read_nbytes) as update:

        def compared(done: int, note: str) -> None:
            update(job.plan.nbytes + done, note)

        return run_selection(job, update, replace(how, certify=Comparer(job, compared)))


def planned(job: Job) -> dict[str, int]:
    """The weight files that would be written, with the bytes of their tensors."""
    return {shard.file_name: shard.nbytes for shard in job.plan.shards}


def told_files(files: Mapping[str, int]) -> str:
    """Files in a line: how many, and how large."""
    return f"{len(files)} file{'s' * (len(files) != 1)}, {size(sum(files.values()))}"
