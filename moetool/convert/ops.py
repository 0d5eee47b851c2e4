"""What can happen to a matrix between two conventions: frozen, printable, they infer shapes.

    Transpose   [R, C] -> [C, R]
    Halve       rotary pairs: interleaved rows (0 1)(2 3)… -> halves (0 H/2)(1 H/2+1)… of each head
    Interleave  the inverse of Halve
    Cast        the same values in another storage type

Halve is the published `permute`: ``w.view(n, H // 2, 2, C).transpose(1, 2)`` for ``n`` heads of H
rows (huggingface/transformers 4.36: convert_mixtral_weights_to_hf.py); Interleave undoes it
(ggml-org/llama.cpp: conversion/llama.py). Both only reorder rows, so they are exact in any dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moetool.tensors import DType

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Transpose:
    """Swap rows and columns."""

    @property
    def words(self) -> str:
        """What it does, for people."""
        return "transpose"

    def infer(self, shape: Shape) -> Shape:
        """The shape after it."""
        return shape[::-1]


@dataclass(frozen=True, slots=True)
class Halve:
    """Reorder the rows of each head from interleaved pairs to halves."""

    n_heads: int

    @property
    def words(self) -> str:
        """What it does, for people."""
        return f"pairs to halves in {self.n_heads} heads"

    def infer(self, shape: Shape) -> Shape:
        """The shape after it, which is the shape before it."""
        return shape

    def order(self, head_rows: int) -> list[int]:
        """For each row of a head after it, the row before it: 0 2 4 … 1 3 5 …."""
        return [*range(0, head_rows, 2), *range(1, head_rows, 2)]


@dataclass(frozen=True, slots=True)
class Interleave:
    """Reorder the rows of each head from halves to interleaved pairs."""

    n_heads: int

    @property
    def words(self) -> str:
        """What it does, for people."""
        return f"halves to pairs in {self.n_heads} heads"

    def infer(self, shape: Shape) -> Shape:
        """The shape after it, which is the shape before it."""
        return shape

    def order(self, head_rows: int) -> list[int]:
        """For each row of a head after it, the row before it: 0 H/2 1 H/2+1 …."""
        half = head_rows // 2
        return [row for pair in range(half) for row in (pair, half + pair)]


@dataclass(frozen=True, slots=True)
class Cast:
    """Store the same values in another type; ``exact`` where none of them may change."""

    source: DType
    target: DType
    exact: bool = False

    @property
    def words(self) -> str:
        """What it does, for people."""
        return str(self)

    def __str__(self) -> str:
        return f"{self.source.label} to {self.target.label}" + (" exactly" if self.exact else "")

    def infer(self, shape: Shape) -> Shape:
        """The shape after it, which is the shape before it."""
        return shape


Reorder = Halve | Interleave
Move = Transpose | Halve | Interleave
Op = Move | Cast


def inverse(op: Op) -> Op:
    """The op that undoes ``op``."""
    match op:
        case Transpose():
            return op
        case Halve(n_heads):
            return Interleave(n_heads)
        case Interleave(n_heads):
            return Halve(n_heads)
        case Cast(source, target, exact):
            return Cast(target, source, exact)


def simplify(ops: list[Op]) -> tuple[Op, ...]:
    """Drop neighbours that undo each other; equal layouts leave nothing, that is a byte copy.

    A cast is never dropped against its way back: what it rounded off does not return.
    """
    kept: list[Op] = []
    for op in ops:
        if kept and not isinstance(op, Cast) and kept[-1] == inverse(op):
            kept.pop()
        else:
            kept.append(op)
    return tuple(kept)
