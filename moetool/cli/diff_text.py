"""What the terminal and the page of `moetool diff` say in the same words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moetool.proof.diff.report import TensorDifference


def collapse_names(names: tuple[str, ...]) -> list[str]:
    """Names that differ in numbers only are one line: ``layers.0-31.attention.wq.weight``."""
    from moetool.arch.summary import collapse
    from moetool.tensors import DType, TensorInfo

    groups = collapse(TensorInfo(name, DType.BF16, ()) for name in names)
    return [f"{group.name} ({group.count})" if group.count > 1 else group.name for group in groups]


def worst_row(tensor: TensorDifference) -> tuple[str, ...]:
    """A tensor's numbers as text, for the table and the page."""
    other = f" = {tensor.other} of B" if tensor.other else ""
    return (
        f"{tensor.name}{other}",
        f"{tensor.differing:,}/{tensor.numel:,}",
        number(tensor.rel_rms),
        number(tensor.max_abs),
        f"{tensor.cosine:.6f}",
        f"{tensor.max_ulp:,}",
        "" if tensor.first_row is None else str(tensor.first_row),
        " ".join(tensor.damage),
    )


def number(value: float | None) -> str:
    """A distance; one that is not finite comes from NaN or infinity on one side."""
    return "not finite" if value is None else f"{value:.3g}"
