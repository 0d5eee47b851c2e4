"""Ops agree with the published formulas, undo each other, and infer the shapes they give."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moetool.convert import stream as streaming
from moetool.convert.ops import Cast, Halve, Interleave, Transpose, inverse, simplify
from moetool.convert.plan import Part, Step
from moetool.convert.stream import stream, to_torch, torch_dtype
from moetool.tensors import Catalog, DType, TensorInfo


def apply(matrix, ops, dtype=DType.F32):
    """Run ops through the real machinery on a matrix in memory."""

    class Held:
        catalog = Catalog("memory", {}, {})

        def read(self, _name, start=0, stop=None):
            return matrix.contiguous().view(torch.uint8).numpy().tobytes()[start:stop]

    shape = tuple(matrix.shape)
    part = Part("m", 0, shape[0], shape[1], dtype, tuple(ops))
    for op in ops:
        shape = op.infer(shape)
    target = ops[-1].target if ops and isinstance(ops[-1], Cast) else dtype
    step = Step(TensorInfo("t", target, shape), (part,))
    return to_torch(b"".join(stream(Held(), step)), target, shape)


sizes = st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(1, 9))


@given(sizes)
def test_halve_is_the_published_permute(size):
    """convert_mixtral_weights_to_hf.py: view(n, H // 2, 2, C).transpose(1, 2)."""
    heads, half, columns = size
    matrix = torch.randn(heads * half * 2, columns)
    published = matrix.view(heads, half, 2, columns).transpose(1, 2).reshape(-1, columns)
    assert torch.equal(apply(matrix, [Halve(heads)]), published)


@given(sizes)
def test_interleave_is_llama_cpps_permute(size):
    """conversion/llama.py: reshape(n, 2, H // 2, C).swapaxes(1, 2)."""
    heads, half, columns = size
    matrix = torch.randn(heads * half * 2, columns)
    published = matrix.reshape(heads, 2, half, columns).swapaxes(1, 2).reshape(-1, columns)
    assert torch.equal(apply(matrix, [Interleave(heads)]), published)


@given(sizes)
def test_every_op_is_undone_by_its_inverse(size):
    """Bytes reordered by rows, and matrices computed with torch, agree both ways."""
    heads, half, columns = size
    matrix = torch.randn(heads * half * 2, columns)
    for op in (Halve(heads), Interleave(heads), Transpose()):
        assert torch.equal(apply(apply(matrix, [op]), [inverse(op)]), matrix)
        assert torch.equal(apply(matrix, [op, Transpose()]), apply(matrix, [op]).T)


def test_what_undoes_itself_is_dropped():
    """Equal layouts leave no ops at all."""
    assert simplify([Transpose(), Interleave(4), Halve(4), Transpose()]) == ()
    assert simplify([Interleave(4), Halve(2)]) == (Interleave(4), Halve(2))


def test_a_cast_is_never_dropped_against_its_way_back():
    """Rounding does not come back."""
    there, back = Cast(DType.F32, DType.BF16), Cast(DType.BF16, DType.F32)
    assert simplify([there, back]) == (there, back)


ops = st.sampled_from([Halve(2), Halve(3), Interleave(2), Interleave(3), Transpose()])


@given(st.lists(ops, max_size=6))
def test_any_chain_is_undone_by_its_inverses_in_reverse(chain):
    """Nothing is left of a chain and its way back, and what is simplified computes the same."""
    assert simplify([*chain, *map(inverse, reversed(chain))]) == ()
    matrix = torch.randn(12, 12)
    expected = matrix
    for op in chain:
        expected = apply(expected, [op])
    assert torch.equal(apply(matrix, simplify(chain)), expected)


@given(sizes, st.sampled_from([DType.F16, DType.F32, DType.BF16]))
def test_a_cast_behind_any_move_casts_the_moved(size, target):
    """Laying out and casting are two stages; their order does not matter to a value."""
    heads, half, columns = size
    matrix = torch.randn(heads * half * 2, columns).to(torch.bfloat16)
    for moves in ([], [Halve(heads)], [Transpose()], [Interleave(heads), Transpose()]):
        cast = [Cast(DType.BF16, target)] if target is not DType.BF16 else []
        moved = apply(matrix, moves, DType.BF16)
        expected = moved.to(torch_dtype(target))
        assert torch.equal(apply(matrix, [*moves, *cast], DType.BF16), expected)


def test_ops_print_as_words():
    """A plan is read by people."""
    assert str(Cast(DType.BF16, DType.F16)) == "bf16 to f16"
    assert str(Cast(DType.F32, DType.BF16, exact=True)) == "f32 to bf16 exactly"
    assert [op.words for op in (Halve(4), Interleave(2), Transpose(), Cast(DType.F32, DType.F16))
            ] == ["pairs to halves in 4 heads", "halves to pairs in 2 heads", "transpose",
                  "f32 to f16"]  # fmt: skip


def test_cast_rounds_as_torch_does():
    """bf16 is rounded to nearest even, not cut."""
    matrix = torch.randn(7, 5)
    assert torch.equal(apply(matrix, [Cast(DType.F32, DType.BF16)]), matrix.to(torch.bfloat16))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 200), st.integers(2, 200))
def test_a_transpose_in_groups_of_columns_is_the_transpose(rows, columns, held, chunk):
    """However little of the matrix fits, its bytes are those of the whole turned at once."""
    matrix = torch.arange(rows * columns, dtype=torch.int16).view(torch.bfloat16)
    matrix = matrix.view(rows, columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "HELD_NBYTES", held)
        patch.setattr(streaming, "COPY_CHUNK", chunk)
        turned = apply(matrix, [Transpose()], DType.BF16)
    assert torch.equal(turned.view(torch.int16), matrix.T.contiguous().view(torch.int16))
