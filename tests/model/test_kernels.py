"""Three ways to multiply, one result; and the choice between them."""

from __future__ import annotations

import pytest
import torch

from moetool.model import kernels
from moetool.model.kernels import Choice, chosen_for, linear, widened


@pytest.fixture
def choose(monkeypatch):
    """Have every product follow a choice, however small it is."""

    def make(choice):
        monkeypatch.setattr(kernels, "LARGE_NUMEL", 0)
        monkeypatch.setattr(kernels, "chosen_for", lambda _dtype: choice)

    return make


def pair(n_rows, dtype, n_in=192, n_out=80):
    random = torch.Generator().manual_seed(n_rows)
    return (torch.randn(n, n_in, generator=random).to(dtype) for n in (n_rows, n_out))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_rows", [1, 2, 40])
@pytest.mark.parametrize("choice", [Choice(), Choice(mv=False), Choice(widened_from=2)])
def test_every_way_gives_the_product_rounded_once(choose, choice, n_rows, dtype):
    x, w = pair(n_rows, dtype)
    expected = x.double() @ w.double().T
    choose(choice)
    found = linear(x, w)
    assert found.dtype == dtype
    step = torch.finfo(dtype).eps
    assert ((found.double() - expected).abs() <= expected.abs() * step + 1e-4).all()


@pytest.mark.parametrize("n_rows", [1, 7])
def test_widened_is_float32_to_the_end(monkeypatch, n_rows):
    """Rows of the matrix that do not fill a tile, and products that 16 bits would round."""
    monkeypatch.setattr(kernels, "TILE_NBYTES", 192 * 4 * 7)
    x, w = pair(n_rows, torch.bfloat16)
    found = widened(x.float(), w)
    expected = x.double() @ w.double().T
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-4
    assert (found.bfloat16().double() - expected).abs().max() > 1e-2
    assert torch.equal(widened(x.float(), w.float()), widened(x.float(), w.float()))


def test_the_choice_is_the_quicker_way(monkeypatch):
    """With clocks that say so; a way that is a little quicker changes nothing."""
    for slow_linear, slow_mv, expected in [
        (1.0, 1.0, Choice()),
        (1.2, 1.0, Choice()),
        (5.0, 1.0, Choice(widened_from=16)),
        (1.0, 2.0, Choice(mv=False)),
    ]:
        seconds = iter([slow_mv, 1.0, slow_linear, 1.0, slow_linear, 1.0])
        monkeypatch.setattr(kernels, "_seconds", lambda *_args, seconds=seconds: next(seconds))
        monkeypatch.setattr(kernels, "_SETTLED", {})
        assert chosen_for(torch.bfloat16) == expected


def test_trying_is_quick_and_is_done_once(monkeypatch):
    """The trial itself runs; a second product asks nobody."""
    monkeypatch.setattr(kernels, "_SETTLED", {})
    first = chosen_for(torch.bfloat16)
    monkeypatch.setattr(kernels, "_seconds", None)
    assert chosen_for(torch.bfloat16) is first
    assert "for one row" in str(first)
    kernels.settle(torch.bfloat16, Choice(widened_from=7))
    assert chosen_for(torch.bfloat16) == Choice(widened_from=7)


def test_small_products_are_not_worth_a_trial(monkeypatch):
    monkeypatch.setattr(kernels, "chosen_for", None)
    x, w = pair(3, torch.bfloat16)
    assert linear(x, w).shape == (3, 80)
