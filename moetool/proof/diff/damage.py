"""What happened to the tensors that differ, named and told once for all layers and experts it hit.

Three sources, in this order: what the values have in common (traits), where A has the very same
values (digests), and in which order B has them (rearranged). A tensor may have several: a flipped
bit can make a NaN. What none of them explains has changed values, and has numbers only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.arch.schema import Role, Slot
from moetool.proof.diff.rearranged import TRANSPOSED, W2_SWAPPED, find_way
from moetool.proof.diff.report import Damage
from moetool.proof.diff.traits import BF16, BIT, F16, NAN, TRUNCATED, ZEROED, Trait

if TYPE_CHECKING:
    from moetool.proof.canonical import Weights
    from moetool.proof.diff.experts import ExpertOrder
    from moetool.proof.identity import Leaf

GATE_UP_SWAPPED, LAYER_MOVED, EXPERT_MOVED, MOVED = (
    "gate-up-swapped", "layer-moved", "experts-moved", "moved",
)  # fmt: skip
ROUTER_MOVED = "router-moved"
MOST_DETAILS = 10
MOST_ROLES = 6  # named one by one
_WORDS = {
    BIT: "one bit is flipped",
    NAN: "values are NaN in {side} and not in {other}",
    ZEROED: "values are zero in {side} and not in {other}",
    F16: "{side} is {other} cast through f16",
    BF16: "{side} is {other} cast through bf16, which rounded it",
    TRUNCATED: "{side} is {other} truncated to bf16: the lower half of each f32 is cut off",
}
_SETTLES = {BIT, ZEROED, F16, BF16, TRUNCATED}  # each of them explains every value that differs


@dataclass(frozen=True, slots=True)
class Finding:
    """One damage of one tensor; findings of equal ``kind`` and ``text`` are told together."""

    kind: str
    text: str
    slot: Slot
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Detective:
    """Both checkpoints with the leaves of all their tensors."""

    a: Weights
    b: Weights
    left: Mapping[Slot, Leaf]
    right: Mapping[Slot, Leaf]
    places: Mapping[tuple[str, str], tuple[Slot, ...]]

    def explain(self, home: Slot, slot: Slot, traits: Iterable[Trait]) -> Iterator[Finding]:
        """Yield what happened to ``slot`` of B, which should be ``home`` of A and differs."""
        found = [*traits]
        casts = [trait for trait in found if trait.kind in {F16, BF16, TRUNCATED}]
        for trait in found:
            other = "A" if trait.side == "B" else "B"
            text = _WORDS[trait.kind].format(side=trait.side, other=other)
            yield Finding(trait.kind, text, slot, trait.detail)
            if trait in casts:
                return
        if _SETTLES & {trait.kind for trait in found}:
            return
        elsewhere = self._elsewhere(home, slot)
        if elsewhere:
            yield elsewhere
            return
        way = find_way(self.a, self.b, self.left[home], self.right[slot])
        if way:
            kind = "w2-transposed" if (way.kind, slot.role) == (TRANSPOSED, Role.W2) else way.kind
            yield Finding(kind, _named(slot, way.kind, way.words), slot)

    def _elsewhere(self, home: Slot, slot: Slot) -> Finding | None:
        """Where A has the very values that B has here."""
        held = self.places.get(_key(self.right[slot]), ())
        numel = self.b.info(slot).numel
        alike = [place for place in held if self.a.info(place).numel == numel]
        if not alike:
            return None
        place = min(alike, key=lambda other: _farness(home, other))
        if (place.layer, place.expert) == (home.layer, home.expert):
            return self._other_role(home, slot, place)
        if (place.role, place.layer) == (home.role, home.layer):
            text = f"{slot.role.value} of one expert holds that of another"
            return Finding(EXPERT_MOVED, text, slot, f"{slot} holds that of expert {place.expert}")
        if (place.role, place.expert) == (home.role, home.expert):
            assert place.layer is not None
            assert slot.layer is not None
            shift = place.layer - slot.layer
            text = f"layer l of B holds what layer l{shift:+d} of A has"
            return Finding(LAYER_MOVED, text, slot)
        return Finding(MOVED, "a tensor holds another one of A", slot, f"{slot} holds A's {place}")

    def _other_role(self, home: Slot, slot: Slot, place: Slot) -> Finding:
        """Another matrix of the same expert or layer."""
        back = self.right.get(Slot(place.role, slot.layer, slot.expert))
        swapped = back is not None and _key(back) == _key(self.left[home])
        pair = " and ".join(sorted((slot.role.value, place.role.value)))
        if not swapped:
            text = f"{slot.role.value} holds what {place.role.value} has in A"
            return Finding(MOVED, text, slot)
        if {slot.role, place.role} == {Role.W1, Role.W3}:
            return Finding(GATE_UP_SWAPPED, f"{pair} (gate and up) are swapped", slot)
        kind = W2_SWAPPED if Role.W2 in {slot.role, place.role} else MOVED
        return Finding(kind, f"{pair} are swapped, their bytes as they were", slot)


def settle_casts(traits: list[list[Trait]]) -> list[list[Trait]]:
    """Of several casts that would explain a tensor, keep the one that explains most tensors.

    Where it explains more than one, a tensor in which it changed a single bit has no flipped one.
    """
    casts = Counter(
        trait for found in traits for trait in found if trait.kind in {F16, BF16, TRUNCATED}
    )

    def chosen(found: list[Trait]) -> list[Trait]:
        best = max(
            (trait for trait in found if trait in casts), key=casts.__getitem__, default=None
        )
        common = best is not None and casts[best] > 1
        return [
            trait
            for trait in found
            if trait == best or not (trait in casts or (common and trait.kind == BIT))
        ]

    return [chosen(found) for found in traits]


def detective(
    a: Weights, b: Weights, left: Mapping[Slot, Leaf], right: Mapping[Slot, Leaf]
) -> Detective:
    """Look up digests of A by content."""
    places: dict[tuple[str, str], tuple[Slot, ...]] = {}
    for slot, leaf in left.items():
        places[_key(leaf)] = (*places.get(_key(leaf), ()), slot)
    return Detective(a, b, left, right, places)


def order_words(order: ExpertOrder) -> tuple[str, str] | None:
    """Kind and text of what happened to the order of a layer's experts; None if it is no damage."""
    if order.moved and not order.harmless:
        turned = f", rotated by {order.rotation}" if order.rotation else ""
        rows = "stayed" if order.router == "stays" else "are in neither order"
        return (
            EXPERT_MOVED,
            f"the experts are in another order{turned}, and the router's rows {rows}",
        )
    if not order.moved and order.router == "other":
        return ROUTER_MOVED, "the router's rows are in another order, and the experts stayed"
    return None


def by_order(orders: Iterable[ExpertOrder]) -> dict[tuple[int, ...], list[int]]:
    """The layers that share an order of experts."""
    layers: dict[tuple[int, ...], list[int]] = {}
    for order in orders:
        layers.setdefault(order.order, []).append(order.layer)
    return layers


def tell(findings: Iterable[Finding], orders: Iterable[ExpertOrder]) -> tuple[Damage, ...]:
    """Tell equal findings once; a layer whose experts moved needs no word for each of them."""
    told = [*_tell_orders(orders)]
    moved = {layer for damage in told if damage.kind == EXPERT_MOVED for layer in damage.layers}
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        if finding.kind != EXPERT_MOVED or finding.slot.layer not in moved:
            groups.setdefault((finding.kind, finding.text), []).append(finding)
    for (kind, text), found in groups.items():
        details = [
            f"{finding.slot}: {finding.detail}" if finding.kind in _WORDS else finding.detail
            for finding in found
            if finding.detail
        ]
        told.append(_damage(kind, text, [finding.slot for finding in found], details))
    return tuple(told)


def _tell_orders(orders: Iterable[ExpertOrder]) -> Iterator[Damage]:
    groups: dict[tuple[str, str], list[ExpertOrder]] = {}
    for order in orders:
        words = order_words(order)
        if words:
            groups.setdefault(words, []).append(order)
    for (kind, text), found in groups.items():
        details = [
            f"layers {spans(layers)}: experts of A in the order of B: {' '.join(map(str, order))}"
            for order, layers in by_order(found).items()
            if kind == EXPERT_MOVED
        ]
        yield _damage(kind, text, [Slot(Role.ROUTER, order.layer) for order in found], details)


def _damage(kind: str, text: str, slots: list[Slot], details: list[str]) -> Damage:
    layers = tuple(sorted({slot.layer for slot in slots if slot.layer is not None}))
    experts = tuple(sorted({slot.expert for slot in slots if slot.expert is not None}))
    named = dict.fromkeys(slot.role.value for slot in slots)
    roles = " ".join(named) if len(named) <= MOST_ROLES else f"{len(named)} roles"
    where = [f"layers {spans(layers)}"] if layers else []
    where += [f"experts {spans(experts)}"] if experts else []
    return Damage(
        kind, text, ", ".join([*where, roles]), layers, experts, len(slots),
        tuple(details[:MOST_DETAILS]),
    )  # fmt: skip


def spans(numbers: Iterable[int]) -> str:
    """Numbers as ranges: ``0-3 5 7-9``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number, number])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _key(leaf: Leaf) -> tuple[str, str]:
    return leaf.dtype, leaf.xxh3_128


def _farness(slot: Slot, other: Slot) -> tuple[int, int, int]:
    """A matrix of the same expert is nearest, then another expert, then another layer."""
    layers = abs((slot.layer or 0) - (other.layer or 0))
    experts = abs((slot.expert or 0) - (other.expert or 0))
    if layers and experts:
        layers += 1_000
    return layers, experts, int(slot.role is not other.role)


def _named(slot: Slot, kind: str, words: str) -> str:
    return f"{slot.role.value} {words}" if kind == TRANSPOSED else words
