"""The product of a row of a matrix and one of activations, and the threads that share loops of it.

A row of the matrix is a run of blocks of 32 weights, as they are stored:

    f32    128 bytes    32 values
    bf16    64 bytes    32 values: the upper halves of float32s
    q8_0    34 bytes    a float16 scale, then 32 int8

A block is widened in registers, multiplied with its part of the row and summed in float32, in eight
lanes. That is written in LLVM's own vectors: from a plain loop over q8_0 LLVM makes code that is
bound by arithmetic. The order of a sum depends neither on threads nor on how memory is aligned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numba
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

BLOCK = 32  # weights
LANES = 8
OUTPUTS, ROWS = 2, 4  # of a tile: what 16 registers of eight lanes can sum
AHEAD = 1024  # bytes: asked for before they are needed; a CPU's own guess ends with a page
TAKERS = 64  # who take strips; of more threads than that memory knows nothing
THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # at most
TRIPLE, _CPU, FEATURES = cpu_target.target_context.codegen().magic_tuple()
# Without an instruction for it LLVM calls a function that numba has not, and the process ends.
HAS_HALVES = "+f16c" in FEATURES or not TRIPLE.startswith(("x86", "i386", "i686"))
FUSED = ("contract",)  # a product and the sum it goes to may be rounded once
FLOAT, HALF = ir.FloatType(), ir.HalfType()
BYTE, SHORT, INT = ir.IntType(8), ir.IntType(16), ir.IntType(32)
_ONE_AT_A_TIME = Lock()  # of numba's ways to share work over threads one aborts the process


def _lanes(kind: ir.Type) -> ir.VectorType:
    return ir.VectorType(kind, LANES)


def _at(builder: ir.IRBuilder, base: ir.Value, offset: int, kind: ir.Type) -> ir.Value:
    """What lies so many bytes behind an address; blocks of 34 bytes are not aligned."""
    place = builder.gep(base, [ir.Constant(INT, offset)])
    return builder.load(builder.bitcast(place, kind.as_pointer()), align=1)


def _spread(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """One value in every lane."""
    nothing = ir.Constant(_lanes(value.type), ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(INT, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(_lanes(INT), [0] * LANES))


def _f32(builder: ir.IRBuilder, block: ir.Value, number: int) -> ir.Value:
    """Eight weights of a block: a router's."""
    return _at(builder, block, 4 * number, _lanes(FLOAT))


def _bf16(builder: ir.IRBuilder, block: ir.Value, number: int) -> ir.Value:
    """Eight weights of a block."""
    upper = builder.zext(_at(builder, block, 2 * number, _lanes(SHORT)), _lanes(INT))
    bits = builder.shl(upper, ir.Constant(_lanes(INT), [16] * LANES))
    return builder.bitcast(bits, _lanes(FLOAT))


def _q8_0(builder: ir.IRBuilder, block: ir.Value, number: int) -> ir.Value:
    """Eight weights of a block, before their scale."""
    whole = builder.sext(_at(builder, block, 2 + number, _lanes(BYTE)), _lanes(INT))
    return builder.sitofp(whole, _lanes(FLOAT))


def _scale(builder: ir.IRBuilder, block: ir.Value) -> ir.Value:
    # Spread before it is widened: a lone float16 is put into whatever was in a register before,
    # and then waits for that.
    stored = _spread(builder, _at(builder, block, 0, SHORT))
    return builder.fpext(builder.bitcast(stored, _lanes(HALF)), _lanes(FLOAT))


def _dot(
    nbytes: int, weights: Callable[..., ir.Value], scale: Callable[..., ir.Value] | None = None
) -> Any:  # noqa: ANN401  # a function for numba, which has no type for those
    """The product of a row of blocks of ``nbytes`` and one of activations."""

    def emit(_context: object, builder: ir.IRBuilder, _signature: object, args: Any) -> ir.Value:  # noqa: ANN401
        w, x = (builder.inttoptr(address, BYTE.as_pointer()) for address in args[:2])
        nothing = ir.Constant(_lanes(FLOAT), [0.0] * LANES)
        total = cgutils.alloca_once_value(builder, nothing)  # type: ignore[no-untyped-call]
        with cgutils.for_range(builder, args[2]) as loop:
            size = loop.index.type
            block = builder.gep(w, [builder.mul(loop.index, ir.Constant(size, nbytes))])
            beside = builder.gep(x, [builder.mul(loop.index, ir.Constant(size, BLOCK * 4))])
            _prefetch(builder, block)
            sums = nothing
            for number in range(0, BLOCK, LANES):
                some = _at(builder, beside, 4 * number, _lanes(FLOAT))
                addend = builder.fmul(weights(builder, block, number), some, flags=FUSED)
                sums = builder.fadd(sums, addend, flags=FUSED) if number else addend
            if scale:
                sums = builder.fmul(scale(builder, block), sums, flags=FUSED)
            builder.store(builder.fadd(builder.load(total), sums, flags=FUSED), total)
        lanes = builder.load(total)
        found = ir.Constant(FLOAT, 0.0)
        for lane in range(LANES):
            found = builder.fadd(found, builder.extract_element(lanes, ir.Constant(INT, lane)))
        return found

    def dot(_typing: object, w: object, x: object, n_blocks: object) -> Any:  # noqa: ANN401, ARG001
        return types.float32(types.intp, types.intp, types.intp), emit

    return intrinsic(dot)


def _tile(
    nbytes: int, weights: Callable[..., ir.Value], scale: Callable[..., ir.Value] | None = None
) -> Any:  # noqa: ANN401
    """Add the products of `OUTPUTS` rows of blocks and `ROWS` of activations to what is there.

    Each weight that was widened is used for all rows, each activation for all outputs, and the sums
    stay in registers: bound by arithmetic, as a product of two float32 matrices is.
    """

    def emit(_context: object, builder: ir.IRBuilder, _signature: object, args: Any) -> ir.Value:  # noqa: ANN401
        w, x, y = (builder.inttoptr(args[i], BYTE.as_pointer()) for i in (0, 2, 4))
        nothing = ir.Constant(_lanes(FLOAT), [0.0] * LANES)
        places = [(o, t) for o in range(OUTPUTS) for t in range(ROWS)]
        totals = {at: cgutils.alloca_once_value(builder, nothing) for at in places}  # type: ignore[no-untyped-call]
        with cgutils.for_range(builder, args[6]) as loop:
            blocks = _every(builder, w, args[1], loop.index, nbytes, OUTPUTS)
            beside = _every(builder, x, args[3], loop.index, BLOCK * 4, ROWS)
            for block in blocks:
                _prefetch(builder, block)
            scales = [scale(builder, block) for block in blocks] if scale else []
            for number in range(0, BLOCK, LANES):
                wide = [weights(builder, block, number) for block in blocks]
                if scales:  # exact: 11 bits times 8
                    wide = [builder.fmul(*pair) for pair in zip(wide, scales, strict=True)]
                some = [_at(builder, row, 4 * number, _lanes(FLOAT)) for row in beside]
                for o, t in places:
                    addend = builder.fmul(wide[o], some[t], flags=FUSED)
                    total = builder.fadd(builder.load(totals[o, t]), addend, flags=FUSED)
                    builder.store(total, totals[o, t])
        for o, t in places:
            row = builder.gep(y, [builder.mul(args[5], ir.Constant(args[5].type, t))])
            place = builder.gep(row, [ir.Constant(INT, 4 * o)])
            place = builder.bitcast(place, FLOAT.as_pointer())
            found = _sum(builder, builder.load(totals[o, t]))
            builder.store(builder.fadd(builder.load(place), found), place)
        return _context.get_dummy_value()  # type: ignore[attr-defined]

    def tile(
        _typing: object, w: object, w_nbytes: object, x: object, x_nbytes: object, y: object,  # noqa: ARG001
        y_nbytes: object, n_blocks: object,  # noqa: ARG001
    ) -> Any:  # fmt: skip  # noqa: ANN401
        return types.void(*(types.intp,) * 7), emit

    return intrinsic(tile)


def _every(
    builder: ir.IRBuilder, base: ir.Value, apart: ir.Value, index: ir.Value, nbytes: int, n: int
) -> list[ir.Value]:
    """Where the block of that index begins in each of n rows."""
    offset = builder.mul(index, ir.Constant(index.type, nbytes))
    return [
        builder.gep(base, [builder.add(offset, builder.mul(apart, ir.Constant(apart.type, row)))])
        for row in range(n)
    ]


def _sum(builder: ir.IRBuilder, lanes: ir.Value) -> ir.Value:
    """All lanes of a vector, halves first."""
    n = LANES
    while n > 1:
        n //= 2
        both = [
            builder.shuffle_vector(lanes, lanes, ir.Constant(ir.VectorType(INT, n), which))
            for which in (list(range(n)), list(range(n, 2 * n)))
        ]
        lanes = builder.fadd(*both)
    return builder.extract_element(lanes, ir.Constant(INT, 0))


def _prefetch(builder: ir.IRBuilder, block: ir.Value) -> None:
    kind = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), INT, INT, INT])
    function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module, kind, "llvm.prefetch.p0i8"
    )
    read, into_all, data = (ir.Constant(INT, number) for number in (0, 3, 1))
    ahead = builder.gep(block, [ir.Constant(INT, AHEAD)])
    builder.call(function, [ahead, read, into_all, data])


def _take() -> Any:  # noqa: ANN401
    def emit(_context: object, builder: ir.IRBuilder, _signature: object, args: Any) -> ir.Value:  # noqa: ANN401
        place = builder.inttoptr(args[0], args[0].type.as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(args[0].type, 1), "monotonic")

    def take(_typing: object, counter: object) -> Any:  # noqa: ANN401, ARG001
        return types.intp(types.intp), emit

    return intrinsic(take)


# Each takes the addresses of the first block and of the activations, and the number of blocks.
dot_f32 = _dot(4 * BLOCK, _f32)
dot_bf16 = _dot(2 * BLOCK, _bf16)
dot_q8_0 = _dot(2 + BLOCK, _q8_0, _scale)
# Of the address of a count: the number of the next strip of work. Threads that take strips until
# there are no more end together, where one that was given its half in advance may have half a core.
take = _take()
# The address of the first row's first block and the bytes from row to row, of weights, activations
# and results; the number of blocks.
tile_bf16 = _tile(2 * BLOCK, _bf16)
tile_q8_0 = _tile(2 + BLOCK, _q8_0, _scale)


@contextmanager
def threads() -> Iterator[None]:
    """Share loops over as many threads as torch has."""
    with _ONE_AT_A_TIME:
        numba.set_num_threads(min(torch.get_num_threads(), THREADS))
        yield
