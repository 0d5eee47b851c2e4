"""One conversion from end to end: what is there, what is wanted, the plan, the files.

`prepare` decides everything and reads no weight; `Job.run` writes. A dry run is a job that is
prepared and printed.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from moetool.arch.recognize import Recognized, recognize
from moetool.arch.schema import expand
from moetool.convert.casts import CastAccount, CastReport
from moetool.convert.chat_template import GGUF_KEY, read_chat_template
from moetool.convert.execute.folder import Progress, work_folder
from moetool.convert.execute.identity import files_of, identify
from moetool.convert.execute.journal import Past, read_journal
from moetool.convert.execute.room import require_room
from moetool.convert.execute.run import Manner, Order, run
from moetool.convert.here import require_here
from moetool.convert.plan import Plan, Shard, Step, assign_shards, derive_steps, spread_shards
from moetool.convert.sidecars import headers, missing_vocabulary, read_tokenizer, sidecars
from moetool.convert.targets import find_convention
from moetool.errors import LossyCast, Refused, UsageFault
from moetool.formats import FileCheckpoint, can_hold

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moetool.arch.schema import StoredTensor
    from moetool.convert.quantised.recipe import Recipe
    from moetool.convert.targets import Target
    from moetool.release.publish.run import PublishReport
    from moetool.tensors import Checkpoint, DType


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What was written; ``notes`` say what a user may miss in it.

    ``certificate`` is what `moetool.proof` showed of it, and ``published`` its torrent, where these
    were asked for.
    """

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
    casts: CastReport | None = None
    resumed_nbytes: int = 0
    notes: tuple[str, ...] = ()
    certificate: object = None
    published: PublishReport | None = None

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
    chat_template: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A prepared conversion.

    ``edit``: what was changed in the model before, which decides the output; ``measured``: what is
    known of that change. The manifest has both.
    """

    source: Source
    target: Target
    plan: Plan
    out: Path
    allow_overflow: bool = False
    max_shard_nbytes: int | None = None
    recipe: Recipe | None = None
    edit: Mapping[str, object] = field(default_factory=dict)
    measured: Mapping[str, object] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the output will lack that its readers want, or have that nobody asked for."""
        source, args = self.source, self.source.recognized.args
        found = missing_vocabulary(
            self.target.side_files, source.tokenizer, source.checkpoint.catalog.metadata
        )
        layout = _layout(source, self.target) if self.recipe else {}
        recipe = self.recipe.notes(layout, args) if self.recipe else ()
        return (*((found,) if found else ()), *recipe)

    @property
    def headers(self) -> list[Mapping[str, object]]:
        """What each file carries beside its tensors.

        Raises:
            InconsistentCheckpoint: the tokenizer is another model's.
        """
        template = self.source.chat_template
        return headers(
            self.target.file_format,
            self.source.recognized.args,
            self.plan,
            self.out.name,
            self.source.tokenizer,
            self.source.checkpoint.catalog.metadata,
            ({GGUF_KEY: ("str", template)} if template is not None else {})
            | (self.recipe.metadata() if self.recipe else {}),
        )

    def run(
        self, progress: Progress = lambda _done, _note: None, manner: Manner | None = None
    ) -> ConvertReport:
        """Write the files, or go on writing them; see `moetool.convert.execute.run`.

        Raises:
            NotFetched, NoRoomOnDisk: before the first byte.
            InTheWay: the output is there, being written, or begun from another source or plan.
            LossyCast: values that may not change would.
            DigestMismatch: the source is damaged.
            Interrupted: with what is kept.
        """
        require_here(self.source.checkpoint, self.plan.steps)
        manner = manner or Manner()
        if manner.force and self.out.resolve() in self.source.path.resolve().parents:
            raise UsageFault("holds the source, and would be moved aside", where=str(self.out))
        if not (manner.restart or self.allow_overflow):
            _refuse_allowed_before(work_folder(self.out))
        notes = self.notes  # an importance matrix of another model is refused here
        importance = self.recipe.importance(self.plan) if self.recipe else {}
        casts = CastAccount(self.allow_overflow, importance)
        began = time.monotonic()
        require_room(self.out, self.plan.nbytes)
        written = run(self._order(), manner, casts, progress)
        return ConvertReport(
            source=self.source.path,
            source_layout=self.source.recognized.convention.name,
            out=self.out,
            layout=self.target.convention,
            file_format=self.target.file_format,
            files=written.files,
            n_tensors=len(self.plan.steps),
            nbytes=self.plan.nbytes,
            copied_nbytes=self.plan.copied_nbytes,
            peak_nbytes=self.plan.peak_nbytes,
            seconds=time.monotonic() - began,
            casts=casts.report(),
            resumed_nbytes=written.resumed_nbytes,
            notes=notes,
        )

    def _order(self) -> Order:
        """Everything that decides the output, and the name of it all."""
        args, tokenizer = self.source.recognized.args, self.source.tokenizer
        checkpoint, file_headers = self.source.checkpoint, self.headers
        side_files = sidecars(
            self.target.side_files, args, self.plan, tokenizer, self.source.chat_template
        )
        found = files_of(checkpoint)
        work = identify(
            checkpoint.catalog, found, self.plan, file_headers, side_files, self._options()
        )
        return Order(
            checkpoint, self.source.path.name, self.plan, file_headers, side_files, work, self.out,
            self.measured,
        )  # fmt: skip

    def past(self) -> Past:
        """What the journal of an earlier run of this very work claims; nothing of any other."""
        found = read_journal(work_folder(self.out))
        same = found.work is not None and found.work.plan_id == self._order().work.plan_id
        return found if same else Past()

    def _options(self) -> dict[str, object]:
        """What was asked for, in the words of the command line.

        ``--allow-overflow`` is not among it: what was written without it is the same with it, so
        a refused conversion goes on when it is allowed.
        """
        return {
            "to": self.target.file_format,
            "layout": self.target.convention,
            "dtype": self.plan.main_dtype.label,
            "max_shard_nbytes": self.max_shard_nbytes,
            **(self.recipe.options() if self.recipe else {}),
            **self.edit,
        }


def open_source(checkpoint: FileCheckpoint) -> Source:
    """Recognise an opened checkpoint and read its tokenizer.

    Raises:
        ArchError: it is not a model that is known, or is inconsistent.
    """
    recognized = recognize(checkpoint.catalog, checkpoint.directory)
    directory = checkpoint.directory
    template = read_chat_template(directory, checkpoint.catalog.metadata)
    return Source(checkpoint, recognized, checkpoint.path, read_tokenizer(directory), template)


def prepare(
    source: Source,
    target: Target,
    out: Path,
    max_shard_nbytes: int | None = None,
    *,
    dtype: DType | None = None,
    allow_overflow: bool = False,
    recipe: Recipe | None = None,
) -> Job:
    """Compute the plan; no weight is read. ``dtype`` None keeps the source's types.

    ``recipe``: which type each tensor of a GGUF gets, instead of one for all.

    Raises:
        UsageFault: ``out`` is the source or lies inside it, the model has no such layout, or the
            files would be too many to be named.
        Refused: a tensor is stored in a type that cannot be rearranged or cast, or that the
            target's format has no name for.
    """
    out = out.absolute()
    if source.path.resolve() in (out.resolve(), *out.resolve().parents):
        raise UsageFault(
            "the output would lie inside the source", where=str(out), hint="give another --out"
        )
    recognized, layout = source.recognized, _layout(source, target)
    steps = derive_steps(
        source.checkpoint.catalog,
        recognized.layout,
        layout,
        recognized.args,
        dtype=dtype,
        restore=True,
        types=recipe.types(target, layout, recognized.args) if recipe else None,
    )
    _refuse_unholdable(steps, target.file_format)
    largest = max_shard_nbytes or target.max_shard_nbytes
    plan = Plan(_shards(steps, target, out.name, largest))
    return Job(source, target, plan, out, allow_overflow, largest, recipe)


def _layout(source: Source, target: Target) -> dict[str, StoredTensor]:
    """The tensors of a target.

    Raises:
        UsageFault: the model has no such layout.
    """
    recognized = source.recognized
    return expand(find_convention(recognized.architecture, target), recognized.args)


def _shards(
    steps: tuple[Step, ...], target: Target, name: str, largest: int | None
) -> tuple[Shard, ...]:
    """The files of a target: up to a size, or as many as its readers expect.

    Raises:
        UsageFault: more files than the names of the target can number.
    """
    numbered = target.numbered.replace("{name}", name)
    if largest is None and target.n_files > 1:
        return spread_shards(steps, numbered, target.n_files)
    shards = assign_shards(steps, target.single.replace("{name}", name), numbered, largest)
    if len(shards) > target.most_files:
        raise UsageFault(
            f"{len(shards)} files, and names like {shards[0].file_name} number "
            f"{target.most_files} at most",
            hint="give a larger --max-shard-size",
        )
    return shards


def _refuse_unholdable(steps: tuple[Step, ...], file_format: str) -> None:
    """Refuse types that a format cannot name, such as a GGUF's blocks in safetensors.

    Raises:
        Refused: with the types and how many tensors have them.
    """
    kinds = Counter(step.target.dtype for step in steps)
    strange = {kind: n for kind, n in kinds.items() if not can_hold(file_format, kind)}
    if strange:
        found = ", ".join(f"{n} of {kind.label}" for kind, n in strange.items())
        raise Refused(
            f"a {file_format} file has no such types: {found} ({len(steps)} tensors in all)",
            hint="convert the checkpoint that it was made from (f32, f16 or bf16), or write a GGUF",
        )


def _refuse_allowed_before(work: Path) -> None:
    """Refuse to go on with files in which an earlier run was allowed to write inf.

    Raises:
        LossyCast: with the tensor.
    """
    past = read_journal(work)
    marks = [mark for held in past.marks.values() for mark in held]
    tensors = [tensor for mark in marks for tensor in mark.tensors]
    tensors += [tensor for record in past.shards.values() for tensor in record.tensors]
    for tensor in tensors:
        if tensor.cast and tensor.cast.count.overflowed:
            raise LossyCast(
                f"an earlier run wrote {tensor.cast.count.overflowed:,} values as inf",
                where=tensor.name,
                hint="--allow-overflow goes on, --restart begins anew",
            )
