"""What a checkpoint is, in numbers: parameters, bytes, memory, and a table that fits a screen.

Everything is computed from headers and hyperparameters; no weight is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from moetool.arch.recognize import Recognized, recognize
from moetool.errors import UnknownConvention
from moetool.tensors import Catalog, DType, TensorInfo

if TYPE_CHECKING:
    from moetool.arch.args import ModelArgs

# Bytes for each weight when a model runs: bf16, and llama.cpp's q8_0 and q4_0 blocks.
RUN_DTYPES = (DType.BF16, DType.Q8_0, DType.Q4_0)


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors that differ only in layer and expert: ``layers.0-31.attention.wq.weight``."""

    name: str
    count: int
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class RoleBytes:
    """What one role takes, over all layers and experts."""

    role: str
    dtypes: tuple[str, ...]
    n_params: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """What a recognised model is and needs."""

    architecture: str
    convention: str
    convention_title: str
    args: Mapping[str, Any]
    n_params: int
    n_params_active: int
    n_params_expert: int
    n_params_shared: int
    n_experts: int
    n_experts_per_tok: int
    max_seq_len: int
    context: int
    kv_cache_nbytes: int
    run_nbytes: Mapping[str, int]
    roles: tuple[RoleBytes, ...]


@dataclass(frozen=True, slots=True)
class Presence:
    """What of a release is here that was fetched in part; the rest is NOT COVERED.

    ``only`` are the selectors of the fetches so far. ``held_nbytes`` of the ``nbytes`` of all files
    are here. ``here``, ``in_part`` and ``absent`` have every tensor once; ``in_part_nbytes`` are
    those that are here of the second. ``rest`` is the command that fetches all others.
    """

    only: tuple[str, ...]
    held_nbytes: int
    nbytes: int
    here: tuple[TensorGroup, ...]
    in_part: tuple[TensorGroup, ...]
    in_part_nbytes: int
    absent: tuple[TensorGroup, ...]
    rest: str


@dataclass(frozen=True, slots=True)
class InspectReport:
    """What a checkpoint is; ``model`` is None, and ``reason`` says why, where it is not known.

    ``presence`` is None where the files are whole, or are not on this machine.
    """

    schema: ClassVar[str] = "moetool.inspect"
    version: ClassVar[int] = 1

    path: Path
    format: str
    files: Mapping[str, int]
    side_files: tuple[str, ...]
    n_tensors: int
    nbytes: int
    model: ModelSummary | None
    reason: str | None
    groups: tuple[TensorGroup, ...]
    tensors: tuple[TensorInfo, ...]
    presence: Presence | None

    @property
    def ok(self) -> bool:
        """True when the model is known."""
        return self.model is not None


SIDE_FILES = (
    "RELEASE", "params.json", "config.json", "generation_config.json", "tokenizer.model",
    "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip


def summarize(
    catalog: Catalog,
    directory: Path,
    path: Path,
    files: Mapping[str, int],
    *,
    context: int | None = None,
    tensors: bool = False,
    presence: Presence | None = None,
) -> InspectReport:
    """Describe a checkpoint; ``context`` in tokens for the KV cache, ``tensors`` lists them all.

    Raises:
        InconsistentCheckpoint: the names are known, but tensors and hyperparameters disagree.
    """
    model, reason = None, None
    try:
        model = _model(catalog, recognize(catalog, directory), context)
    except UnknownConvention as error:
        reason = str(error)
    return InspectReport(
        path=path,
        format=catalog.format,
        files=files,
        side_files=tuple(name for name in SIDE_FILES if (directory / name).is_file()),
        n_tensors=len(catalog.tensors),
        nbytes=catalog.nbytes,
        model=model,
        reason=reason,
        groups=collapse(catalog.tensors.values()),
        tensors=tuple(catalog.tensors.values()) if tensors else (),
        presence=presence,
    )


def collapse(tensors: Iterable[TensorInfo]) -> tuple[TensorGroup, ...]:
    """Group tensors whose names differ in numbers only and whose type and shape are equal.

    A group has every tensor that its name stands for: where some lack, there are more groups.
    """
    groups: dict[tuple[str, DType, tuple[int, ...]], list[TensorInfo]] = {}
    for info in tensors:
        key = (re.sub(r"\d+", "#", info.name), info.dtype, info.shape)
        groups.setdefault(key, []).append(info)
    products = [(key, part) for key, found in groups.items() for part in _products(found)]
    return tuple(
        TensorGroup(
            name=ranges([info.name for info in found]),
            count=len(found),
            dtype=dtype.label,
            shape=shape,
            nbytes=sum(info.nbytes for info in found),
        )
        for (_, dtype, shape), found in products
    )


def _products(infos: list[TensorInfo]) -> Iterator[list[TensorInfo]]:
    """Split tensors so that each part has all combinations of the numbers in its names."""
    by_numbers = {tuple(re.findall(r"\d+", info.name)): info for info in infos}
    for columns in _combinations(frozenset(by_numbers)):
        yield [
            info
            for numbers, info in by_numbers.items()
            if all(map(frozenset.__contains__, columns, numbers))
        ]


def _combinations(rows: frozenset[tuple[str, ...]]) -> list[list[frozenset[str]]]:
    """Rows of numbers as products: for each, the numbers that every column takes."""
    if not rows or not next(iter(rows)):
        return [[]]
    tails: dict[str, set[tuple[str, ...]]] = {}
    for first, *rest in rows:
        tails.setdefault(first, set()).add(tuple(rest))
    alike: dict[frozenset[tuple[str, ...]], set[str]] = {}
    for first in sorted(tails, key=int):
        alike.setdefault(frozenset(tails[first]), set()).add(first)
    return [
        [frozenset(firsts), *rest] for tail, firsts in alike.items() for rest in _combinations(tail)
    ]


def ranges(names: list[str]) -> str:
    """One name for several that differ in numbers: each becomes the range it runs through."""
    columns = zip(*(re.split(r"(\d+)", name) for name in names), strict=True)
    return "".join(
        _range({int(text) for text in column}) if index % 2 and len(set(column)) > 1 else column[0]
        for index, column in enumerate(columns)
    )


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    whole = len(numbers) == high - low + 1
    return f"{low}-{high}" if whole else "{" + ",".join(map(str, sorted(numbers))) + "}"


def _model(catalog: Catalog, recognized: Recognized, context: int | None) -> ModelSummary:
    args = recognized.args
    n_tokens = context or args.max_seq_len
    return ModelSummary(
        architecture=recognized.architecture.title,
        convention=recognized.convention.name,
        convention_title=recognized.convention.title,
        args=asdict(args),
        n_params=args.n_params,
        n_params_active=args.n_params_active,
        n_params_expert=args.n_layers * args.n_params_expert_layer if args.n_experts else 0,
        n_params_shared=args.n_params_shared,
        n_experts=args.n_experts,
        n_experts_per_tok=args.n_experts_per_tok,
        max_seq_len=args.max_seq_len,
        context=n_tokens,
        kv_cache_nbytes=args.kv_cache_nbytes(n_tokens),
        run_nbytes={
            dtype.label: _run_nbytes(args, dtype) + args.kv_cache_nbytes(n_tokens)
            for dtype in RUN_DTYPES
        },
        roles=_roles(catalog, recognized),
    )


def _run_nbytes(args: ModelArgs, dtype: DType) -> int:
    return -(-args.n_params * dtype.type_size // dtype.block_size)


def _roles(catalog: Catalog, recognized: Recognized) -> tuple[RoleBytes, ...]:
    """Bytes by role; a stored tensor that holds several roles is split by its rows."""
    params: dict[str, int] = {}
    nbytes: dict[str, int] = {}
    dtypes: dict[str, dict[str, None]] = {}
    for name, stored in recognized.layout.items():
        dtype = catalog.tensors[name].dtype
        for cell in stored.cells:
            role, numel = cell.slot.role.value, (cell.stop - cell.start) * stored.columns
            params[role] = params.get(role, 0) + numel
            nbytes[role] = nbytes.get(role, 0) + dtype.nbytes(numel)
            dtypes.setdefault(role, {})[dtype.label] = None
    return tuple(
        RoleBytes(role, tuple(dtypes[role]), params[role], nbytes[role]) for role in params
    )
