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
from moetool.convert.casts import CastAccount, CastReport
from moetool.convert.durable_run import Manner, Order, run
from moetool.convert.execute import Progress, require_room
from moetool.convert.identity import identify
from moetool.convert.plan import Plan, assign_shards, derive_steps
from moetool.convert.sidecars import headers, read_tokenizer, sidecars
from moetool.convert.targets import find_convention
from moetool.errors import UsageFault
from moetool.formats import FileCheckpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moetool.convert.targets import Target
    from moetool.tensors import Checkpoint, DType


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
    casts: CastReport | None = None
    resumed_nbytes: int = 0

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
    allow_overflow: bool = False
    max_shard_nbytes: int | None = None

    def report(
        self,
        files: Mapping[str, int],
        seconds: float,
        *,
        dry_run: bool,
        casts: CastReport | None = None,
        resumed_nbytes: int = 0,
    ) -> ConvertReport:
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
            casts=casts,
            resumed_nbytes=resumed_nbytes,
        )

    def dry_run(self) -> ConvertReport:
        """Report what would be written; file sizes are those of the tensors alone."""
        files = {shard.file_name: shard.nbytes for shard in self.plan.shards}
        return self.report(files, 0.0, dry_run=True)

    def run(
        self, progress: Progress = lambda _done, _note: None, manner: Manner | None = None
    ) -> ConvertReport:
        """Write the files, or go on writing them; see `moetool.convert.durable_run`.

        Raises:
            NoRoomOnDisk: before the first byte.
            InTheWay: the output is there, being written, or begun from another source or plan.
            LossyCast: values that may not change would.
            DigestMismatch: the source is damaged.
            Interrupted: with what is kept.
        """
        manner = manner or Manner()
        if manner.force and self.out.resolve() in self.source.path.resolve().parents:
            raise UsageFault("holds the source, and would be moved aside", where=str(self.out))
        casts = CastAccount(self.allow_overflow)
        began = time.monotonic()
        require_room(self.out, self.plan.nbytes)
        written = run(self._order(), manner, casts, progress)
        return self.report(
            written.files,
            time.monotonic() - began,
            dry_run=False,
            casts=casts.report(),
            resumed_nbytes=written.resumed_nbytes,
        )

    def _order(self) -> Order:
        """Everything that decides the output, and the name of it all."""
        args, tokenizer = self.source.recognized.args, self.source.tokenizer
        checkpoint = self.source.checkpoint
        file_headers = headers(
            self.target.file_format,
            args,
            self.plan,
            self.out.name,
            tokenizer,
            checkpoint.catalog.metadata,
        )
        side_files = sidecars(self.target.side_files, args, self.plan, tokenizer)
        files = checkpoint.files if isinstance(checkpoint, FileCheckpoint) else ()
        work = identify(
            checkpoint.catalog, files, self.plan, file_headers, side_files, self._options()
        )
        return Order(
            checkpoint, self.source.path.name, self.plan, file_headers, side_files, work, self.out
        )

    def _options(self) -> dict[str, object]:
        """What was asked for, in the words of the command line."""
        return {
            "to": self.target.file_format,
            "layout": self.target.convention,
            "dtype": self.plan.main_dtype.label,
            "max_shard_nbytes": self.max_shard_nbytes,
            "allow_overflow": self.allow_overflow,
        }


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


def prepare(
    source: Source,
    target: Target,
    out: Path,
    max_shard_nbytes: int | None = None,
    *,
    dtype: DType | None = None,
    allow_overflow: bool = False,
) -> Job:
    """Compute the plan; no weight is read. ``dtype`` None keeps the source's types.

    Raises:
        UsageFault: ``out`` is the source or lies inside it, or the model has no such layout.
        Refused: a tensor is stored in a type that cannot be rearranged or cast.
    """
    out = out.absolute()
    if source.path.resolve() in (out.resolve(), *out.resolve().parents):
        raise UsageFault(
            "the output would lie inside the source", where=str(out), hint="give another --out"
        )
    recognized = source.recognized
    convention = find_convention(recognized.architecture, target)
    steps = derive_steps(
        source.checkpoint.catalog,
        recognized.layout,
        expand(convention, recognized.args),
        recognized.args,
        dtype=dtype,
        restore=True,
    )
    largest = max_shard_nbytes or target.max_shard_nbytes
    shards = assign_shards(
        steps,
        target.single.replace("{name}", out.name),
        target.numbered.replace("{name}", out.name),
        largest,
    )
    return Job(source, target, Plan(shards), out, allow_overflow, largest)
