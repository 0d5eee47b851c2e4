"""Weights that try a codec: usual ones, and those at which float32 arithmetic shows its edges."""

from __future__ import annotations

import functools

import torch


class Dice:
    """What families are made of, ``[rows, columns]`` each; the seed decides every bit."""

    def __init__(self, seed, rows, columns):
        random = torch.Generator().manual_seed(seed)
        self.normal = torch.randn((rows, columns), generator=random) * 0.02
        self.uniform = torch.rand((rows, columns), generator=random)
        self.rare = torch.rand((rows, columns), generator=random) < 0.3


def magnitude(power):
    return lambda dice: (dice.normal * 50 * 10.0**power).clamp(-3e38, 3e38)


def spread_out(values, n):
    return values[:, ::n].repeat_interleave(n, 1)


FAMILIES = {
    "normal": lambda dice: dice.normal,
    "bf16": lambda dice: dice.normal.bfloat16().float(),
    "heavy-tailed": lambda dice: dice.normal / (dice.uniform + 1e-6) ** 1.5,
    "uniform": lambda dice: dice.uniform,
    "negative": lambda dice: -dice.uniform,
    "sparse": lambda dice: torch.where(dice.rare, dice.normal, 0.0),
    "constant": lambda dice: spread_out(dice.normal, 64),
    # Equal extremes of both signs, and halves between two levels.
    "integers": lambda dice: (dice.normal * 100).round().clamp(-4, 4),
    "zero": lambda dice: torch.zeros_like(dice.normal),
    "negative zero": lambda dice: torch.full_like(dice.normal, -0.0),
    "negative zeros": lambda dice: torch.where(dice.rare, dice.normal, -0.0),
    # Zeros of both signs, for a weight keeps its sign.
    "groups of zeros": lambda dice: dice.normal * (spread_out(dice.uniform, 16) < 0.5),
    "many magnitudes": lambda dice: dice.normal * 10 ** (spread_out(dice.uniform, 32) * 46 - 40),
    **{f"1e{power}": magnitude(power) for power in (-10, -15, -20, -30, -38, -40, -44)},
    "3e-16": lambda dice: dice.normal * 50 * 3e-16,
    **{f"1e{power}": magnitude(power) for power in (4, 8, 15, 18, 25, 30, 36)},
}
NAMES = tuple(FAMILIES)


@functools.cache
def family(name: str, rows: int, columns: int) -> torch.Tensor:
    """Rows of one family, float32 ``[rows, columns]``; the same at each call."""
    return FAMILIES[name](Dice(NAMES.index(name), rows, columns)).contiguous()


@functools.cache
def all_families(rows: int, columns: int) -> torch.Tensor:
    """``rows`` of each family, one family behind the other; `family_of` names a row's."""
    return torch.cat([family(name, rows, columns) for name in NAMES])


def family_of(row: int, rows: int) -> str:
    """The name of the family from which a row of `all_families` is."""
    return NAMES[row // rows]
