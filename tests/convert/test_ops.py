"""Ops agree with the published formulas, undo each other, and infer the shapes they give."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from moetool.convert.ops import Cast, Halve, Interleave, Transpose, inverse, simplify
from moetool.convert.plan import Part, Step
from moetool.convert.stream import stream, to_torch
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


def test_cast_rounds_as_torch_does():
    """bf16 is rounded to nearest even, not cut."""
    matrix = torch.randn(7, 5)
    assert torch.equal(apply(matrix, [Cast(DType.F32, DType.BF16)]), matrix.to(torch.bfloat16))
