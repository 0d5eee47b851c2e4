"""One record of what an output is: source, output, verdict, bounds, and the chain to the source.

Nothing in it depends on when or where it was made: the same source, output and version of the
program give the same record, byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from moetool import __version__
from moetool.proof.certificate.comparison import Bound, Comparison, Verdict

if TYPE_CHECKING:
    from moetool.proof.certificate.link import Link
    from moetool.proof.identity import Identity

WORST = 5  # bounds that the lines for people name


@dataclass(frozen=True, slots=True)
class Side:
    """One checkpoint: its roots (docs/reference/identity.md), and its files by name."""

    name: str
    layout: str
    file_format: str
    n_tensors: int
    root: str
    any_order_root: str
    fast_root: str
    maths_sha256: str
    files: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Certificate:
    """What an output was shown to be.

    ``parent_root`` is the root that a rounded output was made from, empty for an equal one.
    """

    schema: ClassVar[str] = "moetool.certificate"
    version: ClassVar[int] = 1

    tool: str
    verdict: Verdict
    source: Side
    output: Side
    parent_root: str
    bounds: tuple[Bound, ...]
    reasons: tuple[str, ...]
    chain: tuple[Link, ...]

    @property
    def ok(self) -> bool:
        """Whether it is the same model, but for rounding and quantising."""
        return self.verdict is not Verdict.DIFFERENT

    def lines(self) -> Iterator[str]:
        """What was shown, a line each; the first word says of what."""
        for link in self.chain:
            yield str(link)
        source, output, word = self.source, self.output, self.verdict.value
        yield f"source   root {source.root}  {source.n_tensors} tensors, {source.layout}"
        yield f"output   root {output.root}  {word}, {output.layout}"
        if self.verdict is Verdict.RENUMBERED:
            yield f"note     experts are numbered otherwise; in any order {output.any_order_root}"
        yield from (f"note     {reason}" for reason in self.reasons)
        worst = sorted(self.bounds, key=_severity)
        for bound in worst[:WORST]:
            yield f"bound    {_told(bound)}"
        if len(worst) > WORST:
            yield f"bound    {len(worst) - WORST} more tensors with smaller ones"


def _severity(bound: Bound) -> tuple[bool, float]:
    """What was not rounded comes first, then the largest distance."""
    return bound.rounded, -(math.inf if bound.rel_rms is None else bound.rel_rms)


def _told(bound: Bound) -> str:
    how = "rounded" if bound.rounded else "CHANGED"
    far = "some to infinity or NaN"
    if bound.max_abs is not None and bound.rel_rms is not None:
        far = f"at most {bound.max_abs:.3g}, relative RMS {bound.rel_rms:.3g}"
    return (
        f"{bound.name}  {bound.source_dtype} to {bound.output_dtype}, {how}: "
        f"{bound.differing:,} of {bound.numel:,} values, {far}"
    )


def certificate(
    comparison: Comparison,
    before: Identity,
    after: Identity,
    files: tuple[Mapping[str, Mapping[str, Any]], Mapping[str, Mapping[str, Any]]],
    chain: tuple[Link, ...],
) -> Certificate:
    """Put together what was found; ``files`` are those of the source and those of the output."""
    equal = comparison.verdict in {Verdict.EQUAL, Verdict.RENUMBERED}
    return Certificate(
        tool=f"moetool {__version__}",
        verdict=comparison.verdict,
        source=_side(before, before.path.name, files[0]),
        output=_side(after, "", files[1]),
        parent_root="" if equal else before.root,
        bounds=comparison.bounds,
        reasons=comparison.reasons,
        chain=chain,
    )


def _side(found: Identity, name: str, files: Mapping[str, Mapping[str, Any]]) -> Side:
    return Side(
        name=name,
        layout=found.layout,
        file_format=found.file_format,
        n_tensors=len(found.leaves),
        root=found.root,
        any_order_root=found.any_order_root,
        fast_root=found.fast_root,
        maths_sha256=found.maths_sha256,
        files=files,
    )
