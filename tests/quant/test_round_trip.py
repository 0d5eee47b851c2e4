"""What is encoded comes back as near as its type usually comes, and exactly where it can."""

from __future__ import annotations

import pytest
import torch

from moetool.convert.quantised.distance import usual_rel_rms
from moetool.quant import DECODERS, ENCODERS, decode, encode
from moetool.tensors import DType

from .families import family

TYPES = sorted(ENCODERS, key=lambda dtype: dtype.label)
labelled = pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: dtype.label)
COLUMNS = 512


def there_and_back(x, dtype, importance=None):
    stored = encode(x, dtype, importance)
    assert stored.dtype is torch.uint8
    assert stored.shape == (len(x), dtype.nbytes(x.shape[1]))
    return decode(stored.flatten(), dtype).view(x.shape)


def rel_rms(x, y, weight=1.0):
    x, y = x.double(), y.double()
    return float(((y - x).square() * weight).sum() / (x.square() * weight).sum()) ** 0.5


def test_what_is_decoded_can_be_encoded():
    assert set(DECODERS) == set(ENCODERS)


@labelled
def test_normal_weights_come_back_as_near_as_is_said(dtype):
    """Not twice as near either: what a certificate allows is measured by it."""
    x = family("normal", 30, COLUMNS)
    found = rel_rms(x, there_and_back(x, dtype))
    assert 0.5 * usual_rel_rms(dtype) < found < 1.1 * usual_rel_rms(dtype)


@labelled
@pytest.mark.parametrize("name", ["bf16", "uniform", "negative", "sparse", "constant", "integers"])
def test_other_weights_come_back_nearly_as_near(dtype, name):
    x = family(name, 10, COLUMNS)
    assert rel_rms(x, there_and_back(x, dtype)) < 2 * usual_rel_rms(dtype)


@labelled
def test_a_scale_for_all_weights_changes_no_level(dtype):
    """By a power of two, which no rounding notices; q6_k's scales would be subnormal otherwise."""
    x = 50 * family("normal", 5, COLUMNS)
    assert torch.equal(there_and_back(x * 8, dtype), 8 * there_and_back(x, dtype))


@labelled
def test_zeros_stay_zeros(dtype):
    for name in ("zero", "negative zero"):
        assert not there_and_back(family(name, 2, COLUMNS), dtype).any()


@labelled
def test_importance_lessens_the_error_where_it_counts(dtype):
    """A tenth of the columns counts a hundred times as much."""
    if dtype in (DType.Q8_0, DType.MXFP4):
        pytest.skip("stored by the extremes alone, whatever the weights count")
    x = family("normal", 30, COLUMNS)
    weight = torch.where(torch.arange(COLUMNS) % 10 == 3, 100.0, 1.0)
    heavy = weight > 1
    without, given = (there_and_back(x, dtype, w)[:, heavy] for w in (None, weight))
    assert rel_rms(x[:, heavy], given) < 0.95 * rel_rms(x[:, heavy], without)


def dice(dtype):
    return torch.Generator().manual_seed(dtype.block_size * dtype.type_size)


def levels(dtype, shape, low, high):
    """Random levels, both ends and their neighbours among each group's, so that one scale fits."""
    q = torch.randint(low, high + 1, shape, generator=dice(dtype)).float()
    q[..., :4] = torch.tensor([low, high, low + 1, high - 1])
    return q


def one_scale(dtype, half, above):
    return lambda d: d * levels(dtype, (40, 32), -half, above)


def with_offset(dtype, high):
    return lambda d: d * (levels(dtype, (40, 32), 0, high) - 3)


def two_level(dtype, size, half, low):
    """Signed scales, the largest of which is ``low``, of groups in which the extreme is."""

    def make(d):
        scale = torch.randint(low + 1, -low, (40, 256 // size, 1), generator=dice(dtype)).float()
        scale[:, 3] = low
        return d * scale * levels(dtype, (40, 256 // size, size), -half, half - 1)

    return make


def two_level_with_minimum(dtype, size, high, most):
    def make(d):
        shape = (40, 256 // size, 1)
        scale = torch.randint(1, most, shape, generator=dice(dtype)).float()
        minimum = torch.randint(0, most, shape, generator=dice(dtype)).float()
        minimum = torch.minimum(minimum, scale * high)  # above zero no group begins
        scale[:, 2], minimum[:, 2] = most, most
        return d * scale * levels(dtype, (40, 256 // size, size), 0, high) - d * minimum

    return make


def floats(d):
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6])
    found = values[torch.randint(0, 15, (40, 32), generator=dice(DType.MXFP4))]
    found[:, 5] = 6
    return d * found


EXACT = {
    DType.Q8_0: one_scale(DType.Q8_0, 127, 127),
    DType.Q4_0: one_scale(DType.Q4_0, 8, 7),
    DType.Q5_0: one_scale(DType.Q5_0, 16, 15),
    DType.Q4_1: with_offset(DType.Q4_1, 15),
    DType.Q5_1: with_offset(DType.Q5_1, 31),
    DType.Q2_K: two_level_with_minimum(DType.Q2_K, 16, 3, 15),
    DType.Q3_K: two_level(DType.Q3_K, 16, 4, -32),
    DType.Q4_K: two_level_with_minimum(DType.Q4_K, 32, 15, 63),
    DType.Q5_K: two_level_with_minimum(DType.Q5_K, 32, 31, 63),
    DType.Q6_K: two_level(DType.Q6_K, 16, 32, -128),
    DType.MXFP4: floats,
}


@pytest.mark.parametrize("dtype", EXACT, ids=lambda dtype: dtype.label)
@pytest.mark.parametrize("d", [1.0, 2.0**-9, -(2.0**-5)])
def test_what_a_block_can_hold_comes_back_exactly(dtype, d):
    """Made of scales and levels by the formula alone, so a level in another's place is seen."""
    if d < 0 and dtype in (DType.Q4_1, DType.Q5_1, DType.Q2_K, DType.Q4_K, DType.Q5_K):
        d = 4.0  # scales of these are not negative
    x = EXACT[dtype](d).reshape(-1, dtype.block_size)
    assert torch.equal(there_and_back(x, dtype), x)
