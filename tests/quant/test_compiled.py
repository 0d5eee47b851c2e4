"""The compiled loops and the plain functions give the same bits, whatever the weights are."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch

from moetool.quant import compare, decode, encode, fits, quicker, spreads
from moetool.quant.fits import IMPORTANCE_GRID, Grid
from moetool.quant.importance import weigh
from moetool.tensors import DType

from .families import NAMES, all_families, family, family_of

needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
ROWS, COLUMNS = 3, 512

SPREADS = {
    "by_extreme": [(8,), (16,)],
    "by_range": [(15,), (31,)],
}
GRIDS = [
    (3, Grid(-0.5, 0.1, 15), True), (15, Grid(-1.0, 0.1, 20), False),
    (31, Grid(-0.5, 0.1, 15), False), (3, IMPORTANCE_GRID, False), (15, IMPORTANCE_GRID, False),
    (31, IMPORTANCE_GRID, False),
]  # fmt: skip


def both(function, *args, **kwargs):
    """What the plain function and its twin give for the same arguments."""
    from moetool.quant import compiled

    twin = getattr(compiled, function.__name__)
    return function.__wrapped__(*args, **kwargs), twin(*args, **kwargs)


def assert_same(plain, twin, groups_a_family):
    """Equal bits of each result; what differs is told by the family that it came from."""
    plain, twin = (found if isinstance(found, tuple) else (found,) for found in (plain, twin))
    assert len(plain) == len(twin)
    for ours, theirs in zip(plain, twin, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        left, right = (found.contiguous().view(torch.uint8).view((*found.shape, -1))
                       for found in (ours, theirs))  # fmt: skip
        wrong = (left != right).any(-1)
        if wrong.any():
            columns = wrong.any(0) if wrong.ndim > 1 else wrong
            names = {family_of(int(at), groups_a_family) for at in columns.nonzero().flatten()}
            pytest.fail(f"{int(wrong.sum())} values differ, in {sorted(names, key=NAMES.index)}")


def side_by_side(size):
    """Groups of every family, ``[size, groups]``; and how many of them a family has."""
    x = all_families(ROWS, COLUMNS).view(-1, size).T.contiguous()
    return x, ROWS * COLUMNS // size


def importances(x):
    """What an error may count: something else for each weight, the same, and often nothing."""
    dice = torch.Generator().manual_seed(5)
    some = torch.rand(x.shape, generator=dice) ** 3
    return [some, torch.ones_like(x), torch.where(some < 0.1, 0.0, some)]


def test_every_twin_is_tried_here():
    pytest.importorskip("numba", reason="it compiles the twins")
    from moetool.quant import compiled

    found = {
        name for module in (compare, fits, spreads) for name, member in vars(module).items()
        if hasattr(member, "__wrapped__")
    }  # fmt: skip
    tried = {"by_largest", "signed", "refined", "with_minimum", "stored_levels", "sums_of"}
    assert found == set(compiled.__all__) == {*SPREADS, *tried}


@needs_numba
@pytest.mark.parametrize("name", SPREADS)
def test_spreads(name):
    blocks = all_families(ROWS, COLUMNS).view(-1, 32)
    for args in SPREADS[name]:
        plain, twin = both(getattr(spreads, name), blocks, *args)
        groups = ROWS * COLUMNS // 32
        assert_same((plain[0].T, *plain[1:]), (twin[0].T, *twin[1:]), groups)


@needs_numba
@pytest.mark.parametrize("n_blocks", [None, 1, 127, 128, 129])
def test_by_largest(n_blocks):
    blocks = all_families(ROWS, COLUMNS).view(-1, 32)[:n_blocks]
    plain, twin = both(spreads.by_largest, blocks)
    assert_same(plain.T, twin.T, ROWS * COLUMNS // 32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_weights", [32, 1024, 5024])
@pytest.mark.parametrize("dtype", [DType.Q8_0, DType.Q4_0])
def test_sums(name, n_weights, dtype):
    """Those of float64, whatever the weights; the largest difference to the bit."""
    x = family(name, 10, COLUMNS).flatten()[:n_weights]
    stored = encode(x[None], dtype).flatten()
    off = decode(stored, dtype) - x
    expected = [float(a.double() @ b.double()) for a, b in ((x, x), (off, off), (off, x))]
    *sums, largest = compare.compared(x, stored, dtype)
    if off.isfinite().all():  # scales of huge weights are infinite
        scale = math.sqrt(expected[0] * expected[1])
        assert sums == pytest.approx(expected, rel=1e-5, abs=max(1e-37, 1e-6 * scale))
        assert largest == float(off.abs().max())
    else:
        assert not math.isfinite(largest)


@needs_numba
@pytest.mark.parametrize("dtype", [DType.Q8_0, DType.Q4_0])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_sums_of_what_is_no_number_are_none(wrong, dtype):
    x = torch.ones(5024)
    stored = encode(x[None], dtype).flatten()
    stored.view(-1, dtype.type_size)[131, :2] = torch.tensor([wrong]).half().view(torch.uint8)
    for found in (*both(compare.sums_of, x, stored, dtype), compare.compared(x, stored, dtype)):
        assert not math.isfinite(found[-1])


@needs_numba
@pytest.mark.parametrize(("half", "size"), [(4, 16), (8, 32), (16, 32), (32, 16)])
def test_signed(half, size):
    x, groups = side_by_side(size)
    for w in (None, *importances(x)):
        assert_same(*both(fits.signed, x, half, w), groups)


@needs_numba
def test_refined():
    x, groups = side_by_side(16)
    assert_same(*both(fits.refined, x, 4), groups)


@needs_numba
@pytest.mark.parametrize(("levels", "grid", "absolute"), GRIDS)
def test_with_minimum(levels, grid, absolute):
    size = 16 if levels == 3 else 32
    x, groups = side_by_side(size)
    for w in [x.abs(), weigh(x.T, importances(x)[0].T, 2).T, importances(x)[2]]:
        assert_same(*both(fits.with_minimum, x, w, levels, grid, absolute=absolute), groups)


@needs_numba
@pytest.mark.parametrize(("half", "levels"), [(0, 3), (0, 15), (0, 31), (4, 7), (32, 63)])
def test_stored_levels(half, levels):
    """Scales that fit, that are far off, zero or of either sign; with and without a minimum."""
    x, groups = side_by_side(16)
    dice = torch.Generator().manual_seed(6)
    q = torch.randint(0, levels + 1, x.shape, generator=dice, dtype=torch.uint8)
    factor = torch.randn(x.shape[1], generator=dice)
    scale = (x.abs().amax(0) / levels * factor).half().float()
    scale[::5] = 0
    for minimum in (None, x.amin(0).neg().clamp(min=0).half().float()):
        assert_same(*both(fits.stored_levels, x, q, scale, minimum, half, levels), groups)


@needs_numba
@pytest.mark.parametrize("n_groups", [1, 127, 128, 129, 300])
def test_any_number_of_groups(n_groups):
    """Tiles of 128, and what is left of them; a compiled loop reads none of its neighbours."""
    x = family("normal", 10, COLUMNS).reshape(16, -1)[:, :n_groups].contiguous()
    assert_same(*both(fits.signed, x, 32), 10**6)
    assert_same(*both(fits.refined, x, 4), 10**6)
    assert_same(*both(fits.with_minimum, x, x.abs(), 3, GRIDS[0][1], absolute=True), 10**6)
    assert_same(*both(fits.with_minimum, x, x * x, 15, IMPORTANCE_GRID), 10**6)


@needs_numba
def test_the_plain_way_is_taken_where_numba_is_not(monkeypatch):
    """And the bytes of a row are the same either way."""
    rows = family("heavy-tailed", 2, COLUMNS)
    before = {dtype: encode(rows, dtype) for dtype in (DType.Q8_0, DType.Q4_K, DType.Q3_K)}
    monkeypatch.setattr(quicker, "are_compiled", lambda: False)
    monkeypatch.setattr("moetool.quant.compiled.by_largest", None)
    for dtype, stored in before.items():
        assert torch.equal(encode(rows, dtype), stored)
