"""Four ways to multiply, one result; and the choice between them."""

from __future__ import annotations

import pytest
import torch

from moetool.model import kernels
from moetool.model.kernels import Choice, chosen_for, linear, widened
from moetool.model.smoke.fingerprint import take


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
@pytest.mark.parametrize(
    "choice",
    [Choice(), Choice(mv=False), Choice(widened_from=2), Choice(widened_from=9, compiled_to=2)],
)
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


class Loops:
    """Stands for compiled loops where only clocks decide."""

    @staticmethod
    def takes(_matrix):
        return True


@pytest.mark.parametrize(
    ("loops", "seconds", "expected"),
    [  # mv, linear; one row; one row packed; 16 rows by linear, tiled; 64 rows
        (None, [1, 1, 1, 6, 1, 1, 1, 1], Choice(packed=False)),
        (None, [1, 1, 1, 1.2, 1.2, 1, 1.2, 1], Choice()),
        (None, [1, 2, 1, 1, 5, 1], Choice(widened_from=16)),
        (None, [2, 1, 1, 1, 1, 1, 5, 1], Choice(mv=False, widened_from=64)),
        # mv, linear; one row, by torch and compiled, 8 rows, 64; the same packed; 16 rows, 64
        (Loops, [1, 1, 1, 1, 9, 5, 6, 6, 6, 0.5, 6, 5.9, 5, 1], Choice(True, 16, 8, 1)),
        (Loops, [1, 1, 1, 1.2, 6, 2, 6, 5.9, 5, 1], Choice(True, 16, 0, 1, packed=False)),
        (Loops, [1, 1, 1, 1.05, *[2, 1] * 6], Choice(True, 64, 64, 64)),
        (Loops, [1, 1, 1, 1.05, *[2, 1] * 5, 1.2, 1], Choice(True, None, 64, 64)),
    ],
)
def test_the_choice_is_the_quicker_way(monkeypatch, loops, seconds, expected):
    """With clocks that say so; a way that is a little quicker changes nothing."""
    clock = iter(seconds)
    monkeypatch.setattr(kernels, "_compiled", lambda: loops)
    monkeypatch.setattr(
        kernels, "_seconds", lambda _matrices, *products: [next(clock) for _ in products]
    )
    monkeypatch.setattr(kernels, "_SETTLED", {})
    assert chosen_for(torch.bfloat16) == expected
    assert not list(clock)


def test_trying_is_quick_and_is_done_once(monkeypatch):
    """The trial itself runs; a second product asks nobody."""
    monkeypatch.setattr(kernels, "_SETTLED", {})
    first = chosen_for(torch.bfloat16)
    monkeypatch.setattr(kernels, "_seconds", None)
    assert chosen_for(torch.bfloat16) is first
    assert "for one row" in str(first)


def test_processes_settle_on_what_all_of_them_can_do(monkeypatch):
    """The first one's choice, but for compiled loops that another one has not."""
    monkeypatch.setattr(kernels, "_SETTLED", {})
    first = Choice(widened_from=7, compiled_to=8, packed_to=8)
    kernels.settle(torch.bfloat16, [first, first])
    assert chosen_for(torch.bfloat16) == first
    kernels.settle(torch.bfloat16, [first, Choice(mv=False, packed_to=1)])
    assert chosen_for(torch.bfloat16) == Choice(widened_from=7, packed_to=1)


def test_without_numba_nothing_is_compiled(choose, monkeypatch):
    monkeypatch.setattr(kernels, "are_compiled", lambda: False)
    choose(Choice(compiled_to=2))
    kernels._compiled.cache_clear()
    x, w = pair(1, torch.bfloat16)
    assert torch.equal(linear(x, w), torch.mv(w, x[0])[None])
    kernels._compiled.cache_clear()


def test_small_products_are_not_worth_a_trial(monkeypatch):
    monkeypatch.setattr(kernels, "chosen_for", None)
    x, w = pair(3, torch.bfloat16)
    assert linear(x, w).shape == (3, 80)


def test_what_a_golden_file_is_equal_under_names_how_small_products_are_computed(small_args):
    def products(dtype):
        return take(small_args, dtype, torch.device("cpu")).products

    assert products(torch.bfloat16) == f"small ones: {kernels.SMALL}"
    assert kernels.SMALL.widened_from
    assert products(torch.float32) == ""
