"""One conversion from end to end: what is there, what is wanted, the plan, the files.

`prepare` decides everything and reads no weight; `Job.run` writes. A dry run is a job that is
prepared and printed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from moetool.arch.recognize import Recognized, recognize
from moetool.arch.schema import expand
from moetool.convert.execute import (
    Progress,
    check_written,
    output_directory,
    require_room,
    write_plan,
)
from moetool.convert.plan import Plan, assign_shards, derive_steps
from moetool.convert.sidecars import headers, read_tokenizer, sidecars
from moetool.errors import UsageFault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moetool.convert.targets import Target
    from moetool.formats import FileCheckpoint
    from moetool.tensors import Checkpoint


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What was written, or with ``dry_run`` what would be."""

    schema: ClassVar[str] = "moetool.convert"
    version: ClassVar[int] = 1

    source: Path
    source_layout: str
    out: Path
    layout: str
    file_format: str
    files: Mapping[str, int]
    n_tensors: int
    nbytes: int
    copied_nbytes: int
    peak_nbytes: int
    seconds: float
    dry_run: bool

    @property
    def ok(self) -> bool:
        """A conversion that ends has ended well."""
        return True


@dataclass(frozen=True, slots=True)
class Source:
    """What is converted: the weights, what they mean, and the tokenizer beside them."""

    checkpoint: Checkpoint
    recognized: Recognized
    path: Path
    tokenizer: bytes | None


@dataclass(frozen=True, slots=True)
class Job:
    """A prepared conversion."""

    source: Source
    target: Target
    plan: Plan
    out: Path

    def report(self, files: Mapping[str, int], seconds: float, *, dry_run: bool) -> ConvertReport:
        """Say what this job writes."""
        return ConvertReport(
            source=self.source.path,
            source_layout=self.source.recognized.convention.name,
            out=self.out,
            layout=self.target.convention,
            file_format=self.target.file_format,
            files=files,
            n_tensors=len(self.plan.steps),
            nbytes=self.plan.nbytes,
            copied_nbytes=self.plan.copied_nbytes,
            peak_nbytes=self.plan.peak_nbytes,
            seconds=seconds,
            dry_run=dry_run,
        )

    def dry_run(self) -> ConvertReport:
        """Report what would be written; file sizes are those of the tensors alone."""
        files = {shard.file_name: shard.nbytes for shard in self.plan.shards}
        return self.report(files, 0.0, dry_run=True)

    def run(self, progress: Progress = lambda _done, _note: None) -> ConvertReport:
        """Write the files; see `moetool.convert.execute` for what an interruption leaves.

        Raises:
            NoRoomOnDisk: before the first byte.
            OutputExists, LockHeld: the output is there or being written.
        """
        began = time.monotonic()
        require_room(self.out, self.plan.nbytes)
        args, tokenizer = self.source.recognized.args, self.source.tokenizer
        with output_directory(self.out) as work:
            write_plan(
                self.source.checkpoint,
                self.plan,
                work,
                headers(self.target.file_format, args, self.plan, self.out.name, tokenizer),
                sidecars(self.target.side_files, args, self.plan, tokenizer),
                progress,
            )
            check_written(self.plan, work)
            files = {path.name: path.stat().st_size for path in sorted(work.iterdir())}
        files.pop("lock", None)
        return self.report(files, time.monotonic() - began, dry_run=False)


def open_source(checkpoint: FileCheckpoint) -> Source:
    """Recognise an opened checkpoint and read its tokenizer.

    Raises:
        ArchError: it is not a model that is known, or is inconsistent.
    """
    recognized = recognize(checkpoint.catalog, checkpoint.directory)
    return Source(checkpoint, recognized, checkpoint.path, read_tokenizer(checkpoint.directory))


def default_out(checkpoint: FileCheckpoint, target: Target) -> Path:
    """The folder beside the source that a conversion makes when none is named."""
    source = checkpoint.directory.resolve()
    return source.parent / f"{source.name}-{target.convention}"


def prepare(source: Source, target: Target, out: Path, max_shard_nbytes: int | None = None) -> Job:
    """Compute the plan; no weight is read.

    Raises:
        UsageFault: ``out`` is the source or lies inside it.
    """
    out = out.absolute()
    if source.path.resolve() in (out.resolve(), *out.resolve().parents):
        raise UsageFault(
            "the output would lie inside the source", where=str(out), hint="give another --out"
        )
    recognized = source.recognized
    convention = recognized.architecture.convention(target.convention)
    steps = derive_steps(
        source.checkpoint.catalog,
        recognized.layout,
        expand(convention, recognized.args),
        recognized.args,
    )
    shards = assign_shards(
        steps,
        target.single.replace("{name}", out.name),
        target.numbered.replace("{name}", out.name),
        max_shard_nbytes or target.max_shard_nbytes,
    )
    return Job(source, target, Plan(shards), out)
