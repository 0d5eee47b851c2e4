"""Typed access to the fields of a side file or of GGUF key-values; complaints name the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moetool.errors import InconsistentCheckpoint, UnknownConvention


class Fields:
    """Typed access to a JSON object or GGUF metadata; every complaint names the field."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data, self.where = data, where
        self.assumed: list[str] = []

    def integer(self, key: str) -> int:
        """A whole number that must be there."""
        value = self.data.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(key, "an integer")
        return value

    def number(self, key: str) -> float:
        """A number that must be there."""
        value = self.data.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(key, "a number")
        return float(value)

    def optional(self, key: str) -> bool:
        """True when the field is there and not null."""
        return self.data.get(key) is not None

    def integer_or(self, key: str, field: str, fallback: int) -> int:
        """A whole number, or what a rule supplies, which is noted under ``field``."""
        if self.optional(key):
            return self.integer(key)
        self.assumed.append(field)
        return fallback

    def number_or(self, key: str, field: str, fallback: float) -> float:
        """A number, or what a rule supplies, which is noted under ``field``."""
        if self.optional(key):
            return self.number(key)
        self.assumed.append(field)
        return fallback

    def window(self, key: str = "sliding_window") -> int | None:
        """The sliding window; None where there is none.

        Raises:
            UnknownConvention: a list, one window for each layer, as mistral-inference also takes.
        """
        if isinstance(self.data.get(key), list):
            raise UnknownConvention(
                f"{key} is a list: windows that differ between layers, as Ministral has",
                where=self.where,
            )
        return self.integer(key) if self.optional(key) else None

    def _wrong(self, key: str, expected: str) -> InconsistentCheckpoint:
        found = repr(self.data[key])[:80] if key in self.data else "nothing"
        return InconsistentCheckpoint(f"{key}: expected {expected}, got {found}", where=self.where)


def refuse_partial_rotation(
    rotated: object, head_dim: object, where: str, key: str = "rotary_dim"
) -> None:
    """Refuse heads of which a part is rotated, or whose values are of another width.

    Raises:
        UnknownConvention: the same weights are another function then.
    """
    if rotated is not None and head_dim is not None and rotated != head_dim:
        raise UnknownConvention(
            f"{key} {str(rotated)[:40]!r} of heads of {head_dim}: Mistral rotates whole heads",
            where=where,
        )


def short_decimal(value: float) -> float:
    """Undo the widening of an f32: 9.999999747378752e-06 was published as 1e-05."""
    return float(f"{value:.7g}")
