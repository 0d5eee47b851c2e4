"""Values in the narrowest type that holds them all: what a lossless widening does not change.

    bf16   the upper half of an f32       held where the lower 16 bits of each f32 are zero
    f16    11 significant bits            held where going there and back gives the same f32
    f32                                   held where going there and back gives the same f64
    f64

They are tried in this order. -0 is not 0. The payload of a NaN is part of the value: it moves
between bf16 and f32 with the other bits, and no NaN is held by f16, where payloads lie elsewhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from moetool.convert.casts import widen_f16
from moetool.convert.stream import to_bytes, torch_dtype
from moetool.tensors import DType

if TYPE_CHECKING:
    import torch

    from moetool.tensors import Buffer

NARROWEST_FIRST = (DType.BF16, DType.F16, DType.F32, DType.F64)
_FEW = 1 << 19  # bytes: below, importing torch would take longer than doing without it


class NotHeldError(Exception):
    """A value has no equal in the narrower type."""


def in_type(blocks: Iterable[Buffer], stored: DType, wanted: DType) -> Iterator[Buffer]:
    """Yield the values of ``blocks`` in another type, each with its exact equal.

    ``blocks`` hold whole values.

    Raises:
        NotHeldError: a value has no equal there.
    """
    for block in blocks:
        if stored is wanted is not DType.F16 or not block:
            yield block
        elif (stored, wanted) == (DType.F32, DType.BF16):
            yield _upper_halves(block)
        else:
            yield _converted(block, stored, wanted)


def _upper_halves(block: Buffer) -> Buffer:
    """F32 to bf16; a norm or a router of a GGUF need not wait for torch."""
    if len(block) > _FEW:
        return _converted(block, DType.F32, DType.BF16)
    raw = bytes(block)
    if raw[0::4].strip(b"\0") or raw[1::4].strip(b"\0"):
        raise NotHeldError
    narrow = bytearray(len(raw) // 2)
    narrow[0::2], narrow[1::2] = raw[2::4], raw[3::4]
    return narrow


def _converted(block: Buffer, stored: DType, wanted: DType) -> Buffer:
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        values = torch.frombuffer(block, dtype=torch_dtype(stored))
    if wanted is DType.F16:  # also of f16 itself: what holds a NaN is told by its f32
        narrow = values.to(torch.float16)
        if bool(narrow.isnan().any()) or not _same(narrow.to(values.dtype), values):
            raise NotHeldError
        return block if stored is DType.F16 else to_bytes(narrow)
    single = widen_f16(values) if stored is DType.F16 else values.to(torch.float32)
    if stored is DType.F64 and wanted is not DType.F64 and not _same(single.double(), values):
        raise NotHeldError
    if wanted is DType.BF16:
        bits = single.view(torch.int32)
        if int(bits.bitwise_and(0xFFFF).max()):
            raise NotHeldError
        return to_bytes(bits.bitwise_right_shift(16).to(torch.int16))
    return to_bytes(single if wanted is DType.F32 else single.double())


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Bit for bit: -0 differs from 0, and a NaN equals itself."""
    import torch

    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[left.itemsize]
    return bool(torch.equal(left.view(bits), right.view(bits)))
