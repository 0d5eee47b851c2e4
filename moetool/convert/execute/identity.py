"""Which work a conversion is: a digest of everything that decides its output, byte for byte.

The plan id covers what the source's headers say, all steps, file names, what the files carry
beside the tensors, the options and the version of the program. The same input and options have the
same id wherever they lie. Times are no part of it: they are kept beside it, to see that a source
is being changed while the work goes on or between two runs of it.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from moetool import __version__
from moetool.convert.execute.journal import SourceFile, Work
from moetool.errors import PlanChanged, SourceChanged
from moetool.files.joined import status_of
from moetool.formats import FileCheckpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from moetool.convert.plan import Plan, Step
    from moetool.tensors import Catalog, Checkpoint

_RESTART = "--restart throws away what was done and begins anew"


def identify(
    catalog: Catalog,
    found: tuple[SourceFile, ...],
    plan: Plan,
    headers: Sequence[Mapping[str, object]],
    side_files: Mapping[str, bytes],
    options: Mapping[str, object],
) -> Work:
    """Say which work this is; the files are looked at, not read."""
    whole = {
        "tool": __version__,
        "files": [[file.name, file.nbytes] for file in found],
        "source": _catalog(catalog),
        "shards": [[shard.file_name, list(map(_step, shard.steps))] for shard in plan.shards],
        "headers": list(headers),
        "side_files": {name: _sha256(content) for name, content in side_files.items()},
        "options": dict(options),
    }
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return Work(_sha256(text.encode()), found, options)


def refuse_other(past: Work, present: Work, where: Path) -> None:
    """Refuse to go on with work that is not this one.

    Raises:
        SourceChanged: the source's files differ from when it began.
        PlanChanged: options, or the version of the program, differ.
    """
    both = f"begun as plan {past.plan_id[:16]}, now it is {present.plan_id[:16]}"
    if past.files != present.files:
        raise SourceChanged(
            f"the source has changed since the work began ({both})",
            where=str(where),
            hint=_RESTART,
            findings=_differences(past.files, present.files),
        )
    if past.plan_id != present.plan_id:
        names = sorted({*past.options, *present.options})
        changed = [
            f"{name}: {past.options.get(name)}, now {present.options.get(name)}"
            for name in names
            if past.options.get(name) != present.options.get(name)
        ]
        raise PlanChanged(
            f"other work was begun here ({both})",
            where=str(where),
            hint=f"give the same options as before to go on, or another --out; {_RESTART}",
            findings=tuple(changed),
        )


def refuse_changed(work: Work, now: tuple[SourceFile, ...]) -> None:
    """Look at the source again.

    Raises:
        SourceChanged: a file is not what it was when the work began, so neither is the output.
    """
    if now != work.files:
        raise SourceChanged(
            f"the source has changed while it was converted (plan {work.plan_id[:16]})",
            hint=f"let nothing write to it; {_RESTART}",
            findings=_differences(work.files, now),
        )


def files_of(checkpoint: Checkpoint) -> tuple[SourceFile, ...]:
    """What a source's files are at the moment; none where the weights are made of numbers.

    Where every byte is compared with a publisher's digest, times are no part of what a file is.
    """
    if not isinstance(checkpoint, FileCheckpoint):
        return ()
    if checkpoint.pinned:
        held = checkpoint.sources.items()
        return tuple(SourceFile(path.name, source.nbytes, 0) for path, source in held)
    return found_files(checkpoint.files)


def found_files(files: Iterable[Path]) -> tuple[SourceFile, ...]:
    """What the source's files are at the moment; looked at, not read."""
    return tuple(_found(path) for path in files)


def _found(path: Path) -> SourceFile:
    status = status_of(path)
    if status is None:
        return SourceFile(path.name, 0, 0)
    return SourceFile(path.name, status.nbytes, status.mtime_ns)


def _differences(past: Sequence[SourceFile], present: Sequence[SourceFile]) -> tuple[str, ...]:
    before = {file.name: file for file in past}
    after = {file.name: file for file in present}
    return tuple(
        f"{name}: {_told(before.get(name))}, now {_told(after.get(name))}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    )


def _told(file: SourceFile | None) -> str:
    return f"{file.nbytes} bytes of time {file.mtime_ns}" if file else "not there"


def _catalog(catalog: Catalog) -> dict[str, Any]:
    return {
        "format": catalog.format,
        "tensors": [
            [info.name, info.dtype.label, list(info.shape)] for info in catalog.tensors.values()
        ],
        "extents": [
            [name, extent.path.name, extent.offset, extent.nbytes]
            for name, extent in catalog.extents.items()
        ],
        "claims": [[claim.reference, str(claim.digest)] for claim in catalog.claims],
    }


def _step(step: Step) -> list[Any]:
    target = step.target
    parts = [
        [
            part.source,
            part.start,
            part.stop,
            part.columns,
            part.dtype.label,
            list(map(str, part.ops)),
        ]
        for part in step.parts
    ]
    return [target.name, target.dtype.label, list(target.shape), parts]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
