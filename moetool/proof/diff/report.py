"""The result of a comparison as data: what differs, by how much, where, and what happened to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from moetool.arch.schema import Role

if TYPE_CHECKING:
    from moetool.arch.schema import Slot
    from moetool.proof.canonical import Weights
    from moetool.proof.diff.experts import ExpertOrder
    from moetool.proof.diff.numbers import Numbers
    from moetool.proof.diff.structure import Structure

EQUAL, RENUMBERED, WITHIN, DIFFERENT = "EQUAL", "RENUMBERED", "WITHIN TOLERANCE", "DIFFERENT"
NOT_COVERED = "NOT COVERED"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two checkpoints."""

    path: Path
    layout: str
    file_format: str
    dtypes: tuple[str, ...]
    n_layers: int
    n_experts: int
    n_tensors: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """A tensor whose values differ, named as in the raw release.

    ``other`` is the tensor of B that it was compared with, where experts are renumbered. Distances
    that are not finite are None, and ``finite`` is false. ``beyond``: more than was tolerated.
    ``damage`` are the kinds of damage that were recognised in it.
    """

    name: str
    slot: Slot
    other: Slot | None
    shape: tuple[int, ...]
    numel: int
    differing: int
    finite: bool
    max_abs: float | None
    rel_rms: float | None
    cosine: float
    max_ulp: int
    first_row: int | None
    nan_a: int
    nan_b: int
    inf_a: int
    inf_b: int
    beyond: bool
    damage: tuple[str, ...]

    @property
    def severity(self) -> float:
        """What the worst are sorted by: the relative RMS, inf where it is not finite."""
        return math.inf if self.rel_rms is None else self.rel_rms


@dataclass(frozen=True, slots=True)
class RoleGroup:
    """All tensors of a role that were compared; the worst of them by relative RMS."""

    role: str
    n_tensors: int
    n_differing: int
    n_beyond: int
    worst: str | None
    worst_rel_rms: float | None


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that happened to B as seen from A, recognised exactly.

    ``text`` says what, ``where`` in which layers and experts; ``details`` name rows and bits, the
    first few of them.
    """

    kind: str
    text: str
    where: str
    layers: tuple[int, ...]
    experts: tuple[int, ...]
    n_tensors: int
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DiffReport:
    """Two checkpoints compared. ``tensors`` has the worst first.

    ``sign_only`` counts tensors that differ only in what no comparison sees: the sign of zeros, the
    payload of NaNs. ``verdict`` is EQUAL, RENUMBERED, WITHIN TOLERANCE or DIFFERENT; NOT COVERED
    where nothing speaks against one of the first three, and some tensors were never fetched.
    """

    schema: ClassVar[str] = "moetool.diff"
    version: ClassVar[int] = 1

    a: Side
    b: Side
    verdict: str
    tolerance: float
    exact_order: bool
    structure: Structure
    damage: tuple[Damage, ...]
    experts: tuple[ExpertOrder, ...]
    roles: tuple[RoleGroup, ...]
    tensors: tuple[TensorDifference, ...]
    n_compared: int
    sign_only: int
    nbytes: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether B is A, as far as was asked: in any order of experts unless the exact one."""
        if self.exact_order and any(order.moved for order in self.experts):
            return False
        return self.verdict != DIFFERENT


def difference(
    name: str, slot: Slot, other: Slot, shape: tuple[int, ...], numbers: Numbers, tolerance: float
) -> TensorDifference:
    """The numbers of a tensor as they are reported, without the damage."""
    finite = math.isfinite(numbers.rel_rms) and math.isfinite(numbers.max_abs)
    return TensorDifference(
        name=name,
        slot=slot,
        other=None if other == slot else other,
        shape=shape,
        numel=numbers.numel,
        differing=numbers.differing,
        finite=finite,
        max_abs=numbers.max_abs if math.isfinite(numbers.max_abs) else None,
        rel_rms=numbers.rel_rms if math.isfinite(numbers.rel_rms) else None,
        cosine=numbers.cosine,
        max_ulp=numbers.max_ulp,
        first_row=numbers.first_row,
        nan_a=numbers.nan_a,
        nan_b=numbers.nan_b,
        inf_a=numbers.inf_a,
        inf_b=numbers.inf_b,
        beyond=not tolerance or numbers.rel_rms > tolerance,
        damage=(),
    )


def verdict(
    structure: Structure, tensors: tuple[TensorDifference, ...], experts: tuple[ExpertOrder, ...]
) -> str:
    """One word for everything."""
    if not structure.same or any(tensor.beyond for tensor in tensors):
        return DIFFERENT
    if structure.absent:
        return NOT_COVERED
    if any(order.moved for order in experts):
        return RENUMBERED
    return WITHIN if tensors else EQUAL


def role_groups(slots: Sequence[Slot], worst: Sequence[TensorDifference]) -> Iterator[RoleGroup]:
    """Sum up each role; ``worst`` has the worst tensor first."""
    for role in Role:
        n = sum(slot.role is role for slot in slots)
        found = [tensor for tensor in worst if tensor.slot.role is role]
        if n:
            yield RoleGroup(
                role=role.value,
                n_tensors=n,
                n_differing=len(found),
                n_beyond=sum(tensor.beyond for tensor in found),
                worst=found[0].name if found else None,
                worst_rel_rms=found[0].rel_rms if found else 0.0,
            )


def side(weights: Weights) -> Side:
    """What one of the two is."""
    args, infos = weights.recognized.args, [step.target for step in weights.steps.values()]
    return Side(
        path=weights.path,
        layout=weights.recognized.convention.name,
        file_format=weights.checkpoint.catalog.format,
        dtypes=tuple(sorted({info.dtype.label for info in infos})),
        n_layers=args.n_layers,
        n_experts=args.n_experts,
        n_tensors=len(infos),
        nbytes=weights.nbytes,
    )
