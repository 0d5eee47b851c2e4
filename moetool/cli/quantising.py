"""What `moetool convert` is asked about quantised types, and what it tells of their error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Column, Console
from moetool.errors import UsageFault

if TYPE_CHECKING:
    from moetool.convert.casts import CastReport
    from moetool.convert.quantised.recipe import Recipe

ImatrixOption = Annotated[
    Path | None,
    typer.Option(help="Importance matrix, .gguf or .dat: what an error in each column counts"),
]
TensorTypeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="REGEX=TYPE", help="Type of the tensors whose GGUF name matches; may be repeated"
    ),
]
OutputTypeOption = Annotated[str | None, typer.Option(help="Type of output.weight")]
EmbeddingTypeOption = Annotated[str | None, typer.Option(help="Type of token_embd.weight")]
PureOption = Annotated[
    bool,
    typer.Option("--pure", help="The base type for all matrices, without exceptions"),
]


def read_recipe(
    dtype: str,
    imatrix: Path | None,
    tensor_types: list[str] | None,
    output_type: str | None,
    embedding_type: str | None,
    *,
    pure: bool,
) -> Recipe | None:
    """The recipe that the options name; None where ``dtype`` is no mix.

    Raises:
        UsageFault: an option that only a mix has, or one that is not understood.
        FormatError: the importance matrix is damaged.
    """
    from moetool.convert.quantised.mixes import MIXES, Quantization, find_type, parse_overrides
    from moetool.convert.quantised.recipe import Recipe
    from moetool.convert.targets import DTYPES
    from moetool.formats.imatrix import read_imatrix

    if dtype.lower() not in MIXES:
        if dtype not in DTYPES:
            raise UsageFault(f"no --dtype {dtype!r}", hint=f"one of {', '.join([*DTYPES, *MIXES])}")
        if imatrix or tensor_types or output_type or embedding_type or pure:
            raise UsageFault(
                "--imatrix, --tensor-type, --output-type, --embedding-type and --pure change a mix",
                hint="name one, as --dtype q4_k_m",
            )
        return None
    quantization = Quantization(
        dtype.lower(),
        parse_overrides(tensor_types or ()),
        pure,
        find_type(output_type) if output_type else None,
        find_type(embedding_type) if embedding_type else None,
        has_imatrix=imatrix is not None,
    )
    return Recipe(quantization, (read_imatrix(imatrix), imatrix) if imatrix else None)


def render_errors(console: Console, casts: CastReport) -> None:
    """The error of quantised tensors by role, and the worst tensor of each."""
    if not casts.quantised:
        return
    console.line()
    console.table(
        [Column("quantised"), Column("count", right=True), Column("type"),
         Column("relative RMS", right=True), Column("largest error", right=True),
         Column("cosine", right=True), Column("worst tensor"),
         Column("its relative RMS", right=True)],
        [(role.tensors, f"x{role.n_tensors}", role.dtype, f"{role.rel_rms:.5f}",
          f"{role.max_abs:.3g}", f"{role.cosine:.6f}", role.worst, f"{role.worst_rel_rms:.5f}")
         for role in casts.quantised],
    )  # fmt: skip
