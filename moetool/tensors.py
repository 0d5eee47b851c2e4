"""Named tensors as data: what a format's header says, before any weight is read.

A `Catalog` is pure data: it can be printed, compared and planned with while no file is open. A
`Checkpoint` adds the bytes. Shapes are row-major, outermost dimension first, whatever the format
writes on disk.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from moetool.extents import Claim, Extent

Buffer = bytes | bytearray | memoryview


class DType(Enum):
    """A storage type: label, elements per block, bytes per block.

    ``nbytes = numel * type_size // block_size`` for plain and quantised types alike. The label is
    part of the value: enum members with equal values would become aliases of each other.
    Quantised rows: ggml-org/llama.cpp: ggml/src/ggml-common.h (block structs).
    """

    F64 = ("f64", 1, 8)
    F32 = ("f32", 1, 4)
    F16 = ("f16", 1, 2)
    BF16 = ("bf16", 1, 2)
    F8_E4M3 = ("f8_e4m3", 1, 1)
    F8_E5M2 = ("f8_e5m2", 1, 1)
    I64 = ("i64", 1, 8)
    I32 = ("i32", 1, 4)
    I16 = ("i16", 1, 2)
    I8 = ("i8", 1, 1)
    U8 = ("u8", 1, 1)
    BOOL = ("bool", 1, 1)
    Q4_0 = ("q4_0", 32, 18)
    Q4_1 = ("q4_1", 32, 20)
    Q5_0 = ("q5_0", 32, 22)
    Q5_1 = ("q5_1", 32, 24)
    Q8_0 = ("q8_0", 32, 34)
    Q8_1 = ("q8_1", 32, 36)
    Q2_K = ("q2_k", 256, 84)
    Q3_K = ("q3_k", 256, 110)
    Q4_K = ("q4_k", 256, 144)
    Q5_K = ("q5_k", 256, 176)
    Q6_K = ("q6_k", 256, 210)
    Q8_K = ("q8_k", 256, 292)
    IQ2_XXS = ("iq2_xxs", 256, 66)
    IQ2_XS = ("iq2_xs", 256, 74)
    IQ3_XXS = ("iq3_xxs", 256, 98)
    IQ1_S = ("iq1_s", 256, 50)
    IQ4_NL = ("iq4_nl", 32, 18)
    IQ3_S = ("iq3_s", 256, 110)
    IQ2_S = ("iq2_s", 256, 82)
    IQ4_XS = ("iq4_xs", 256, 136)
    IQ1_M = ("iq1_m", 256, 56)
    TQ1_0 = ("tq1_0", 256, 54)
    TQ2_0 = ("tq2_0", 256, 66)
    MXFP4 = ("mxfp4", 32, 17)

    def __init__(self, label: str, block_size: int, type_size: int) -> None:
        self.label = label
        self.block_size = block_size
        self.type_size = type_size

    def nbytes(self, numel: int) -> int:
        """The bytes that ``numel`` elements take; ``numel`` must fill whole blocks."""
        return numel * self.type_size // self.block_size


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, storage type and shape of one stored tensor."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of the stored form."""
        return self.dtype.nbytes(self.numel)

    @property
    def row_nbytes(self) -> int:
        """The bytes of a row, which is the last axis; a row of a vector is one value."""
        columns = self.shape[-1] if len(self.shape) > 1 else 1
        return max(self.dtype.nbytes(columns), 1)  # a quantised vector's value has less than a byte


@dataclass(frozen=True, slots=True)
class Catalog:
    """What a checkpoint's headers say: tensors, where their bytes lie, metadata, claims.

    ``metadata`` holds the format's own key-values as read (GGUF keys, safetensors
    ``__metadata__``). ``claims`` holds the checks that the format itself carries (zip CRC-32s).
    """

    format: str
    tensors: Mapping[str, TensorInfo]
    extents: Mapping[str, Extent]
    metadata: Mapping[str, object] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors together."""
        return sum(info.nbytes for info in self.tensors.values())


def main_dtype(tensors: Iterable[TensorInfo]) -> DType:
    """The type in which most bytes are stored."""
    nbytes: Counter[DType] = Counter()
    for info in tensors:
        nbytes[info.dtype] += info.nbytes
    return nbytes.most_common(1)[0][0]


class Checkpoint(Protocol):
    """Named tensors whose bytes can be read lazily, a range at a time."""

    @property
    def catalog(self) -> Catalog:
        """What is in it."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Buffer:
        """Read bytes ``start:stop`` of the stored form of a tensor (row-major)."""
        ...


class Sink(Protocol):
    """A file being written whose tensors were all announced when it was made."""

    def write(self, name: str, chunks: Iterable[Buffer]) -> None:
        """Write the bytes of one announced tensor, in the announced order."""
        ...

    def close(self) -> None:
        """Finish the file: everything written, flushed and synced."""
        ...
