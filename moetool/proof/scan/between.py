"""What only a comparison shows: with the same role elsewhere, between the experts of a layer."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from moetool.arch.schema import Role
from moetool.proof.scan.findings import (
    FEWEST_SIBLINGS,
    N_SPREADS,
    NORM_REACH,
    PAIR_REACH,
    TENSOR_REACH,
    WIDEST_SPREAD,
    WILD_TENSOR,
    Finding,
    Severity,
    finding,
)
from moetool.proof.scan.robust import Centre, centre

if TYPE_CHECKING:
    from moetool.proof.scan.subjects import Item

_OF_EXPERT = tuple(role for role in Role if role.per_expert)


@dataclass(frozen=True, slots=True)
class Look:
    """What is kept of a tensor that was measured.

    ``scale`` is log2 of the root mean square of its median row, None where all is zero.
    ``narrower`` is a type that all values fit, None where nothing can be said. ``rows`` are
    digests of a router's rows, and ``zero_rows`` those that are zero.
    """

    item: Item
    scale: float | None
    constant: bool
    digest: bytes
    narrower: str | None
    rows: tuple[bytes, ...] = ()
    zero_rows: frozenset[int] = frozenset()


Siblings = dict[Role, list[Look]]


def look_between(looks: Sequence[Look]) -> Iterator[Finding]:
    """Yield what is found by comparing the tensors of a recognised model."""
    siblings: Siblings = {}
    for look in looks:
        if look.item.role is not None:
            siblings.setdefault(look.item.role, []).append(look)
    yield from _dead_experts(siblings)
    yield from _routers(siblings.get(Role.ROUTER, ()))
    yield from _duplicates(siblings)
    yield from _scales(siblings)
    for alike in siblings.values():
        yield from _types(alike)
        if not alike[0].item.is_norm:
            yield from _passages([look for look in alike if not look.item.widened])


def _experts(siblings: Siblings) -> dict[tuple[int | None, int], list[Look]]:
    """The matrices of each expert, by layer and number."""
    experts: dict[tuple[int | None, int], list[Look]] = defaultdict(list)
    for look in chain.from_iterable(siblings.get(role, ()) for role in _OF_EXPERT):
        slot = look.item.slot
        if slot is not None and slot.expert is not None:
            experts[slot.layer, slot.expert].append(look)
    return experts


def _dead_experts(siblings: Siblings) -> Iterator[Finding]:
    for looks in _experts(siblings).values():
        zero = [look.item for look in looks if look.scale is None and look.constant]
        if zero:
            names = ", ".join(item.role.value for item in zero if item.role)
            reason = f"{names} of this expert {'is' if len(zero) == 1 else 'are'} zero: its output"
            yield finding("dead-expert", Severity.ERROR, zero[0], f"{reason} is always zero")


def _routers(routers: Iterable[Look]) -> Iterator[Finding]:
    """Rows of a router that are zero, or that no token can tell from another."""
    for look in routers:
        for row in sorted(look.zero_rows):
            reason = f"the router knows nothing of expert {row}: its row is zero"
            yield finding("dead-router-row", Severity.ERROR, look.item, reason, rows=(row, row))
        first_with: dict[bytes, int] = {}
        for row, digest in enumerate(look.rows):
            twin = first_with.setdefault(digest, row)
            if twin != row and row not in look.zero_rows:
                reason = f"experts {twin} and {row} are always chosen alike: their rows are equal"
                yield finding("twin-router-rows", Severity.ERROR, look.item, reason,
                              rows=(row, row))  # fmt: skip


def _duplicates(siblings: Siblings) -> Iterator[Finding]:
    """Experts that are equal, and other matrices that lie there twice."""
    known: set[Item] = set()
    bundles: dict[tuple[bytes, ...], list[Look]] = {}
    for looks in _experts(siblings).values():
        if len(looks) < len(_OF_EXPERT) or any(look.constant for look in looks):
            continue
        twins = bundles.setdefault(tuple(look.digest for look in looks), looks)
        if twins is not looks:
            known |= {look.item for look in looks}
            reason = f"the whole expert equals {_expert(twins[0])}"
            yield finding("duplicate-experts", Severity.ERROR, looks[0].item, reason)
    for alike in siblings.values():
        first_with: dict[bytes, Look] = {}
        for look in alike:
            if look.constant or look.item.is_norm or look.item in known:
                continue
            twin = first_with.setdefault(look.digest, look)
            if twin is not look:
                reason = f"equals {twin.item.slot}, value for value"
                yield finding("duplicate-tensor", Severity.ERROR, look.item, reason)


def _expert(look: Look) -> str:
    slot = look.item.slot
    return f"expert {slot.expert} of layer {slot.layer}" if slot else look.item.info.name


def _scales(siblings: Siblings) -> Iterator[Finding]:
    """Tensors of another scale than the same role has elsewhere."""
    usual = [
        look.scale
        for look in chain.from_iterable(siblings.values())
        if look.scale is not None and not look.item.is_norm and not look.constant
    ]
    for alike in siblings.values():
        is_norm = alike[0].item.is_norm
        scales = {
            look.item: look.scale
            for look in alike
            if look.scale is not None and (is_norm or not look.constant)
        }
        if len(scales) < 2:  # noqa: PLR2004  # nothing to compare with
            continue
        middle, least = _middle(list(scales.values()), usual)
        reach = middle.reach(NORM_REACH if is_norm else least, N_SPREADS, WIDEST_SPREAD)
        for item, scale in scales.items():
            far = scale - middle.median
            if abs(far) >= reach:
                yield _stray_tensor(item, far, is_norm=is_norm)


def _middle(scales: list[float], usual: list[float]) -> tuple[Centre, float]:
    """Where the scales of a role lie, and how far from there is far.

    Of two or three nobody can say which is wrong: the one nearer to all others is believed.
    """
    if len(scales) >= FEWEST_SIBLINGS:
        return centre(scales), TENSOR_REACH
    believed = statistics.median(usual or scales)
    return Centre(min(scales, key=lambda scale: abs(scale - believed)), 0.0), PAIR_REACH


def _stray_tensor(item: Item, far: float, *, is_norm: bool) -> Finding:
    sure = abs(far) >= WILD_TENSOR and not is_norm
    word = "above" if far > 0 else "below"
    what = item.role.value if item.role else ""
    reason = f"its scale is {2 ** abs(far):.3g} times {word} what {what} has elsewhere"
    severity = Severity.ERROR if sure else Severity.WARNING
    return finding("norm-outlier" if is_norm else "scale-outlier", severity, item, reason)


def _types(alike: Sequence[Look]) -> Iterator[Finding]:
    """Storage types that are mixed inside one role."""
    counts = Counter(look.item.info.dtype for look in alike)
    if len(counts) > 1:
        rarest = min(counts, key=lambda dtype: counts[dtype])
        first = next(look.item for look in alike if look.item.info.dtype is rarest)
        mix = ", ".join(f"{count} {dtype.label}" for dtype, count in counts.most_common())
        reason = f"the tensors of this role are of mixed types: {mix}"
        yield finding("mixed-types", Severity.WARNING, first, reason, count=counts[rarest])


def _passages(alike: Sequence[Look]) -> Iterator[Finding]:
    """Values that went through a narrower type: all of a role, or a few among siblings."""
    told = [look for look in alike if look.narrower is not None]
    through = [look for look in told if look.narrower]
    if not through:
        return
    if len(through) == len(told):
        first = through[0]
        reason = f"{_told(first)}; so do all {len(told)} tensors of this role that can tell"
        yield finding("narrow-values", Severity.NOTE, first.item, reason, count=len(told))
        return
    if 2 * len(through) <= len(told):
        for look in through:
            reason = f"{_told(look)}, as {len(told) - len(through)} siblings do not"
            yield finding("narrow-values", Severity.WARNING, look.item, reason)
        return
    for look in told:
        if not look.narrower:
            reason = f"its values need {look.item.info.dtype.label}; {_told(through[0])} elsewhere"
            yield finding("narrow-values", Severity.WARNING, look.item, reason)


def _told(look: Look) -> str:
    return f"every value fits {look.narrower}, though stored as {look.item.info.dtype.label}"
