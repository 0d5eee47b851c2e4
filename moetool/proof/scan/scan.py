"""The scan of a checkpoint: every tensor of floats read once, in threads -> ScanReport."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from moetool.arch.schema import Role
from moetool.convert.stream import on_one_thread, stream
from moetool.proof.canonical import in_threads
from moetool.proof.scan.between import Look, look_between
from moetool.proof.scan.findings import Finding, Severity
from moetool.proof.scan.measures import Measures, measure, row_width
from moetool.proof.scan.subjects import NotCovered, Subject, find_subject
from moetool.proof.scan.within import look_within

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.formats import FileCheckpoint
    from moetool.proof.scan.subjects import Item

WORKING_NBYTES = 20 << 20  # of one thread: a piece, its f32, and what malloc keeps of them
INTEGERS = {"i64", "i32", "i16", "i8", "u8", "bool"}


@dataclass(frozen=True, slots=True)
class ScanReport:
    """What was looked at, what was found in it, and what was not looked at.

    ``findings`` are the worst first, then in the order of the model. ``layout`` is empty and
    ``reason`` says why where the model is not recognised. ``nbytes`` are the bytes that were
    looked at.
    """

    schema: ClassVar[str] = "moetool.scan"
    version: ClassVar[int] = 1

    path: Path
    file_format: str
    layout: str
    reason: str
    findings: tuple[Finding, ...]
    n_tensors: int
    nbytes: int
    not_covered: tuple[NotCovered, ...]
    seconds: float
    strict: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing was found that counts: errors, and with ``strict`` warnings."""
        counting = {Severity.ERROR, Severity.WARNING} if self.strict else {Severity.ERROR}
        return not any(found.severity in counting for found in self.findings)

    @property
    def counts(self) -> dict[str, int]:
        """How many findings there are of each severity."""
        counts = Counter(found.severity for found in self.findings)
        return {severity.value: counts[severity] for severity in Severity}


def scan(
    checkpoint: FileCheckpoint,
    *,
    strict: bool = False,
    progress: Callable[[int, str], None] = lambda _done, _note: None,
) -> ScanReport:
    """Look at all values of an open checkpoint, reading each byte of its tensors once.

    Raises:
        ReadFailed, TruncatedFile: the machine could not read, or the file has shrunk.
    """
    began = time.monotonic()
    subject = find_subject(checkpoint)
    found: list[Finding] = []
    looks: list[Look] = []
    done = 0
    with on_one_thread():
        steps = [item.step for item in subject.items]
        for item, (look, within) in in_threads(
            lambda item: _look(checkpoint, item),
            subject.items,
            steps,
            working_nbytes=WORKING_NBYTES,
        ):
            looks.append(look)
            found += within
            done += item.info.nbytes
            progress(done, item.info.name)
    found += [*look_between(looks), *_integers(subject)]
    order = {item.info.name: at for at, item in enumerate(subject.items)}
    severities = list(Severity)
    found.sort(key=lambda one: (severities.index(one.severity), order.get(one.tensor, len(order))))
    recognized = subject.recognized
    return ScanReport(
        path=checkpoint.path,
        file_format=checkpoint.catalog.format,
        layout=recognized.convention.name if recognized else "",
        reason=subject.reason,
        findings=tuple(found),
        n_tensors=len(subject.items),
        nbytes=done,
        not_covered=subject.not_covered,
        seconds=time.monotonic() - began,
        strict=strict,
    )


def _look(checkpoint: FileCheckpoint, item: Item) -> tuple[Look, list[Finding]]:
    """Measure one tensor, say what it shows alone, and keep what comparing needs."""
    as_they_are = item.info.shape[-1:] == (row_width(item.info.shape),)
    digest_rows = as_they_are and (item.role is Role.ROUTER or item.is_token_table)
    measures = measure(item, stream(checkpoint, item.step), digest_rows=digest_rows)
    return _kept(measures), list(look_within(measures))


def _kept(measures: Measures) -> Look:
    is_router = measures.item.role is Role.ROUTER
    zero = measures.scales.isinf().nonzero()[:, 0].tolist() if is_router else []
    settled = measures.passage.settled
    return Look(
        item=measures.item,
        scale=measures.scale,
        constant=measures.constant is not None,
        digest=measures.digest,
        narrower=measures.passage.narrower if settled else None,
        rows=tuple(measures.row_digests) if is_router else (),
        zero_rows=frozenset(zero),
    )


def _integers(subject: Subject) -> Iterator[Finding]:
    """Weights stored as integers: no float type and no quantisation that is known."""
    known = subject.recognized is not None
    for group in subject.not_covered:
        if group.dtype in INTEGERS:
            yield Finding(
                "integers",
                Severity.WARNING if known else Severity.NOTE,
                group.names[0],
                f"stored as {group.dtype}, which holds no weights as they are; not looked at",
                count=group.n_tensors,
            )
