"""What tensors mean: roles, how a convention stores them, and where that puts every weight.

A **Convention** is a table: for each **Role** the name pattern and the layout in which it is
stored. The canonical form of a weight is the raw Mistral one: ``[out, in]``, one matrix for each
expert, rotary pairs interleaved. A **Slot** is one canonical tensor of one model; a **Cell** is
where a convention keeps it:

    hf-fused  model.layers.3.mlp.experts.gate_up_proj  [E, 2*hidden_dim, dim] seen as rows
              ┌ rows 0 .. F    expert 0 w1 ┐
              │ rows F .. 2F   expert 0 w3 │   F = hidden_dim
              │ rows 2F .. 3F  expert 1 w1 │
              └ …                          ┘

`expand` turns a table and hyperparameters into all stored tensors with their cells. Everything
else (recognition, shape checks, conversion plans, the runner, the diff) works on that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moetool.arch.args import ModelArgs


class Role(Enum):
    """What a weight is for. "gate" is two things in this field; here: router, and w1."""

    TOK_EMBEDDINGS = "tok_embeddings"
    ATTENTION_NORM = "attention_norm"
    WQ = "wq"
    WK = "wk"
    WV = "wv"
    WO = "wo"
    FFN_NORM = "ffn_norm"
    ROUTER = "router"
    W1 = "w1"
    W2 = "w2"
    W3 = "w3"
    NORM = "norm"
    OUTPUT = "output"

    # There is one object for each. Enum's own hash is a call into Python, and roles are keys of
    # every table: it took a third of the time to lay a model out.
    __hash__ = object.__hash__

    @property
    def per_layer(self) -> bool:
        """True when every layer has one."""
        return self not in {Role.TOK_EMBEDDINGS, Role.NORM, Role.OUTPUT}

    @property
    def per_expert(self) -> bool:
        """True when every expert of a layer has one; a dense layer has one of each."""
        return self in {Role.W1, Role.W2, Role.W3}

    @property
    def is_norm(self) -> bool:
        """True for the RMSNorm weights, the only one-dimensional tensors."""
        return self in {Role.ATTENTION_NORM, Role.FFN_NORM, Role.NORM}


class RopeLayout(Enum):
    """Which rows of wq and wk a rotary pair takes within a head of H rows."""

    INTERLEAVED = "interleaved"  # (0, 1), (2, 3), …
    HALVES = "halves"  # (0, H/2), (1, H/2 + 1), …


class ExpertLayout(Enum):
    """How the experts of a layer share stored tensors."""

    SEPARATE = "separate"  # one tensor for each expert
    STACKED = "stacked"  # [E, rows, columns]
    ROWS = "rows"  # [E * rows, columns]


@dataclass(frozen=True, slots=True)
class Stored:
    """How a convention stores one role.

    ``transposed``: each matrix lies as ``[in, out]``. ``part``: (index, count) of a matrix that
    several roles share along its rows. ``full_precision``: stored as f32 whatever the rest is.
    """

    pattern: str
    rope: RopeLayout | None = None
    experts: ExpertLayout = ExpertLayout.SEPARATE
    transposed: bool = False
    part: tuple[int, int] = (0, 1)
    full_precision: bool = False

    def name(self, layer: int | None, expert: int | None) -> str:
        """The stored name for a layer and an expert."""
        return self.pattern.format(layer=layer, expert=expert)

    def regex(self) -> re.Pattern[str]:
        """What a name of this pattern looks like; indices are digits without leading zeros."""
        text = re.escape(self.pattern)
        for key in ("layer", "expert"):
            text = text.replace(rf"\{{{key}\}}", rf"(?P<{key}>0|[1-9][0-9]{{0,3}})", 1)
        return re.compile(text)


@dataclass(frozen=True, slots=True)
class Convention:
    """A table of names and layouts; ``file_format`` is what it is usually written as."""

    name: str
    title: str
    file_format: str
    stored: Mapping[Role, Stored]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A family of models that share roles, shapes and maths; the raw convention comes first."""

    name: str
    title: str
    conventions: tuple[Convention, ...]

    @property
    def raw(self) -> Convention:
        """The convention whose layout is the canonical one."""
        return self.conventions[0]

    def convention(self, name: str) -> Convention:
        """The convention of that name; KeyError when there is none."""
        return {convention.name: convention for convention in self.conventions}[name]


@dataclass(frozen=True, slots=True)
class Slot:
    """One canonical tensor of a model; ``layer`` and ``expert`` are None where there is none."""

    role: Role
    layer: int | None = None
    expert: int | None = None

    def __str__(self) -> str:
        layer = "" if self.layer is None else f"layers.{self.layer} "
        expert = "" if self.expert is None else f"expert {self.expert} "
        return f"{layer}{expert}{self.role.value}"


@dataclass(frozen=True, slots=True)
class Cell:
    """Where a stored tensor, seen as ``[rows, columns]``, keeps one canonical tensor."""

    slot: Slot
    start: int
    stop: int
    rope: RopeLayout | None
    transposed: bool


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as a convention stores it: its shape and the cells that fill it, in row order."""

    name: str
    shape: tuple[int, ...]
    cells: tuple[Cell, ...]
    full_precision: bool

    @property
    def columns(self) -> int:
        """The row length when the tensor is seen as ``[rows, columns]``; 1 for a vector."""
        return self.shape[-1] if len(self.shape) > 1 else 1


def slots(args: ModelArgs) -> list[Slot]:
    """All canonical tensors of a model, in the order of the raw release.

    A model without experts has no router, and one w1 w2 w3 in every layer.
    """
    layers: list[Slot] = []
    for layer in range(args.n_layers):
        for role in Role:
            if role.per_expert and args.n_experts:
                layers += [Slot(role, layer, expert) for expert in range(args.n_experts)]
            elif role.per_layer and (role is not Role.ROUTER or args.n_experts):
                layers.append(Slot(role, layer))
    return [Slot(Role.TOK_EMBEDDINGS), *layers, Slot(Role.NORM), Slot(Role.OUTPUT)]


def expand(convention: Convention, args: ModelArgs) -> dict[str, StoredTensor]:
    """Lay a model out by a convention: every stored tensor with its shape and cells."""
    cells: dict[str, list[Cell]] = {}
    kinds: dict[str, Stored] = {}
    for slot in slots(args):
        stored = convention.stored[slot.role]
        name = stored.name(slot.layer, slot.expert)
        cells.setdefault(name, []).append(_cell(slot, stored, args))
        kinds[name] = stored
    return {
        name: StoredTensor(
            name=name,
            shape=_stored_shape(found, kinds[name], args),
            cells=tuple(sorted(found, key=lambda cell: cell.start)),
            full_precision=kinds[name].full_precision,
        )
        for name, found in cells.items()
    }


def _cell(slot: Slot, stored: Stored, args: ModelArgs) -> Cell:
    rows = _block_shape(slot.role, stored, args)[0]
    index, count = stored.part
    stacked = stored.experts is not ExpertLayout.SEPARATE and slot.expert is not None
    block = (slot.expert or 0) * count + index if stacked else index
    return Cell(slot, block * rows, (block + 1) * rows, stored.rope, stored.transposed)


def _block_shape(role: Role, stored: Stored, args: ModelArgs) -> tuple[int, ...]:
    """The stored shape of one canonical tensor."""
    shape = args.shape(role)
    return shape[::-1] if stored.transposed else shape


def _stored_shape(found: list[Cell], stored: Stored, args: ModelArgs) -> tuple[int, ...]:
    block = _block_shape(found[0].slot.role, stored, args)
    rows = sum(cell.stop - cell.start for cell in found)
    if stored.experts is ExpertLayout.STACKED:
        return (args.n_experts, rows // args.n_experts, *block[1:])
    return (rows, *block[1:])
