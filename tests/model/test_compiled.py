"""Compiled loops: the exact weights, float32 sums, the same bits on any number of threads."""

from __future__ import annotations

import pytest
import torch

from moetool.model import kernels
from moetool.model.kernels import Choice, linear, widened
from moetool.model.packed import Packed

pytest.importorskip("numba", reason="the numba extra is not installed")
compiled = kernels._compiled()


def rows(n_rows, n_in):
    return torch.randn(n_rows, n_in, generator=torch.Generator().manual_seed(n_rows))


def bf16(n_out, n_in):
    return torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(1)).bfloat16()


def packed(n_out, n_in):
    """Every int8, and float16 scales of both signs, of usual size and subnormal."""
    random = torch.Generator().manual_seed(2)
    blocks = torch.randint(256, (n_out * n_in // 32, 34), dtype=torch.uint8, generator=random)
    scales = torch.randn(len(blocks), 1, generator=random)
    scales[::3] *= 1e-6
    blocks[:, :2] = scales.half().view(torch.uint8)
    return Packed(blocks.view(n_out, -1))


def wide(matrix):
    return matrix.widen() if isinstance(matrix, Packed) else matrix.float()


@pytest.mark.parametrize("make", [bf16, packed])
@pytest.mark.parametrize("shape", [(1, 32), (7, 96), (130, 4096)])
@pytest.mark.parametrize("n_rows", [1, 3, 4, 9])
def test_products_are_float32_sums(make, shape, n_rows):
    x, matrix = rows(n_rows, shape[1]), make(*shape)
    w = wide(matrix).double()
    bound = x.double().abs() @ w.abs().T
    found = compiled.times(x, matrix)
    assert found.dtype == torch.float32
    assert ((found - x.double() @ w.T).abs() <= 1e-6 * bound).all()


@pytest.mark.parametrize("make", [bf16, packed])
def test_weights_are_exact(make):
    """Multiplied with one 1 among zeros each weight comes back, from its place, unrounded."""
    matrix = make(50, 64)
    assert torch.equal(compiled.times(torch.eye(64), matrix).T, wide(matrix))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_shows_in_its_own_row(value):
    matrix, blocks = bf16(9, 96), packed(9, 96)
    matrix[4, 95] = value
    blocks.data[4, 68:70] = torch.tensor([value], dtype=torch.float16).view(torch.uint8)
    for w in (matrix, blocks):
        found = compiled.times(torch.ones(1, 96), w)[0]
        assert (~found.isfinite()).nonzero().tolist() == [[4]]
    x = rows(2, 96)
    x[1, 40] = value
    for more in (x, torch.cat((x, x[:1], x[:1], x[:1]))):
        found = compiled.times(more, bf16(9, 96))
        assert found[[0, *range(2, len(more))]].isfinite().all()
        assert not found[1].isfinite().any()


def test_threads_change_no_bit():
    w = bf16(65, 4096)
    for x in (rows(2, 4096), rows(9, 4096)):
        torch.set_num_threads(1)
        once = compiled.times(x, w)
        torch.set_num_threads(2)
        assert torch.equal(compiled.times(x, w), once)


def test_rows_are_the_same_among_any_others():
    """A tile's rows do not touch each other, and what fills up the last tile is left out."""
    x, w = rows(9, 2080), bf16(35, 2080)
    found = compiled.times(x, w)
    assert found.shape == (9, 35)
    assert torch.equal(compiled.times(x[4:], w), found[4:])


def test_what_no_loop_takes_goes_the_usual_way(monkeypatch):
    """Columns that do not fill a block, rows that lie apart, another type."""
    monkeypatch.setattr(kernels, "LARGE_NUMEL", 0)
    monkeypatch.setattr(kernels, "chosen_for", lambda _dtype: Choice(compiled_to=8))
    taken = []
    monkeypatch.setattr(compiled, "times", lambda x, w: taken.append(w) or x @ w.float().T)
    for w in (bf16(5, 50), bf16(5, 64)[:, :32], bf16(5, 64).half()):
        x = rows(1, w.shape[1]).to(w.dtype)
        expected = x.double() @ w.double().T
        assert torch.allclose(linear(x, w).double(), expected, rtol=1e-2, atol=1e-2)
        assert torch.allclose(widened(x.float(), w).double(), expected, atol=1e-4)
    assert not taken
    for n_rows in (1, 8, 9):
        linear(rows(n_rows, 64).bfloat16(), bf16(5, 64))
    assert len(taken) == 2
