"""What the weights of each expert are like, without a text: norms, spectra, who is dead or double.

    norm         of all three matrices together (Frobenius); rms of each matrix beside it
    spectrum     the largest singular values of each matrix, by block power iteration: a few columns
                 are multiplied by M and its transpose again and again (Halko, Martinsson and Tropp,
                 arXiv 0909.4061, algorithm 4.4)
    stable rank  norm² / largest singular value²: how many directions carry the matrix
    dead         a matrix or the router's row of zeros, or far smaller than those of its siblings
    double       two experts of a layer that point the same way (cosine of all three matrices)

Norms and cosines come of one pass over the file, a few rows of all experts of a layer at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from moetool.arch.schema import Role, Slot
from moetool.errors import UsageFault
from moetool.experts.lockstep import cosines, products, whole
from moetool.proof.diff.experts import EXPERT_ROLES

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.model.evaluate import Progress
    from moetool.proof.canonical import Weights

ROUNDS = 12  # of the power iteration; each one squares what separates two singular values
FEW = 4  # columns beside those asked for, so that the last one asked for settles too
DEAD = 1e-3  # of the median sibling's norm
DOUBLE = 0.98  # cosine; unrelated matrices of this size are near 0


@dataclass(frozen=True, slots=True)
class MatrixStats:
    """One matrix of an expert; ``spectrum`` has the largest singular values, largest first."""

    rms: float | None
    spectrum: tuple[float, ...]
    stable_rank: float | None


@dataclass(frozen=True, slots=True)
class ExpertStats:
    """One expert; ``dead`` says why it is, and is empty for one that lives.

    A norm is None where a value is NaN or infinite.
    """

    layer: int
    expert: int
    norm: float | None
    router_norm: float | None
    matrices: Mapping[str, MatrixStats]
    dead: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Double:
    """Two experts of a layer that are nearly one."""

    layer: int
    one: int
    other: int
    cosine: float


@dataclass(frozen=True, slots=True)
class Stats:
    """All experts, layer by layer, and the pairs that are double."""

    experts: tuple[ExpertStats, ...]
    doubles: tuple[Double, ...]


def look(
    weights: Weights, n_values: int = 0, progress: Progress = lambda _done, _total: None
) -> Stats:
    """Measure every expert; ``n_values`` singular values of each matrix, none where it is 0.

    Raises:
        UsageFault: the model is dense.
        ReadFailed, TruncatedFile: the machine could not read.
    """
    args = weights.recognized.args
    if not args.n_experts:
        raise UsageFault(
            "a dense model has no experts",
            hint="give a mixture of experts; moetool inspect says what a checkpoint is",
        )
    experts: list[ExpertStats] = []
    doubles: list[Double] = []
    for layer in range(args.n_layers):
        sides = [(weights, expert) for expert in range(args.n_experts)]
        gram = {role: products(sides, role, layer) for role in EXPERT_ROLES}
        experts += _layer(weights, layer, gram, n_values)
        doubles += _doubles(layer, sum(gram.values(), torch.zeros(())))
        progress(layer + 1, args.n_layers)
    return Stats(tuple(experts), tuple(doubles))


def _layer(
    weights: Weights, layer: int, gram: Mapping[Role, Tensor], n_values: int
) -> list[ExpertStats]:
    router_norm_E = torch.linalg.vector_norm(whole(weights, Slot(Role.ROUTER, layer)), dim=1)
    norm_RE = {role: found.diagonal().clamp(min=0).sqrt() for role, found in gram.items()}
    found = []
    for expert in range(len(router_norm_E)):
        norms = {role: float(norm_E[expert]) for role, norm_E in norm_RE.items()}
        found.append(
            ExpertStats(
                layer=layer,
                expert=expert,
                norm=_finite(math.hypot(*norms.values())),
                router_norm=_finite(float(router_norm_E[expert])),
                matrices={
                    role.value: _matrix(weights, Slot(role, layer, expert), norm, n_values)
                    for role, norm in norms.items()
                },
                dead=tuple(_dead(expert, norm_RE, router_norm_E)),
            )
        )
    return found


def _matrix(weights: Weights, slot: Slot, norm: float, n_values: int) -> MatrixStats:
    rms = _finite(norm / math.sqrt(weights.info(slot).numel))
    if not n_values or rms is None:
        return MatrixStats(rms, (), None)
    spectrum = leading(whole(weights, slot), n_values)
    rank = (norm / spectrum[0]) ** 2 if spectrum[0] else None
    return MatrixStats(rms, spectrum, rank)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def leading(matrix: Tensor, n_values: int) -> tuple[float, ...]:
    """The largest singular values of a matrix, largest first.

    The start is drawn from a fixed seed, so the same matrix gives the same numbers.
    """
    n_columns = min(n_values + FEW, *matrix.shape)
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(matrix.shape[1], n_columns, generator=generator)
    for _ in range(ROUNDS):
        columns = torch.linalg.qr(matrix.T @ (matrix @ columns)).Q
    values = torch.linalg.svdvals(matrix @ columns)
    return tuple(values[:n_values].tolist())


def _dead(expert: int, norm_RE: Mapping[Role, Tensor], router_norm_E: Tensor) -> list[str]:
    reasons = []
    named = {role.value: norm_E for role, norm_E in norm_RE.items()}
    for name, norm_E in {**named, "router row": router_norm_E}.items():
        norm, usual = float(norm_E[expert]), float(norm_E.median())
        if not math.isfinite(norm):
            reasons.append(f"{name} is not finite")
        elif norm == 0:
            reasons.append(f"{name} is zero")
        elif norm < DEAD * usual:
            reasons.append(f"{name} is {norm / usual:.1e} of its siblings'")
    return reasons


def _doubles(layer: int, gram_EE: Tensor) -> list[Double]:
    cosine_EE = cosines(gram_EE).tolist()
    return [
        Double(layer, one, other, cosine)
        for one, row in enumerate(cosine_EE)
        for other, cosine in enumerate(row)
        if one < other and cosine >= DOUBLE
    ]
