"""Each fault inside one tensor is found where it is, and nothing else is said."""

from __future__ import annotations

import math

import pytest
import torch

from moetool.proof.scan import Severity

W1 = "layers.2.feed_forward.experts.1.w1.weight"  # [40, 512]
W2 = "layers.2.feed_forward.experts.1.w2.weight"  # [512, 40]
NORM = "layers.1.ffn_norm.weight"
TABLE = "tok_embeddings.weight"  # [56, 512]
WARNING, ERROR, NOTE = Severity.WARNING, Severity.ERROR, Severity.NOTE


def put(row, column, value):
    def change(values):
        values[row, column] = value

    return change


def only(report):
    (found,) = report.findings
    return found


def seen(report):
    found = only(report)
    return found.code, found.severity, found.tensor, found.rows, found.column


def test_sound_weights_have_no_finding(look):
    assert look().findings == ()


@pytest.mark.parametrize("value", [math.nan, -math.nan])
def test_a_nan_is_named_by_row_and_column(look, value):
    report = look({W1: put(17, 300, value)})
    assert seen(report) == ("nan", ERROR, W1, (17, 17), 300)
    assert (only(report).layer, only(report).expert) == (2, 1)
    assert not report.ok


def test_several_nans_are_counted_and_the_first_is_named(look):
    found = only(look({W1: lambda v: v[5:7, 2:4].fill_(math.nan)}))
    assert (found.count, found.rows, found.column) == (4, (5, 5), 2)
    assert found.reason == "4 values are NaN"


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_infinity_is_told_from_a_nan(look, value):
    assert seen(look({W2: put(511, 39, value)})) == ("infinity", ERROR, W2, (511, 511), 39)


@pytest.mark.parametrize("value", [2e4, -3e38])
def test_a_huge_value_is_an_error_and_no_outlier_beside(look, value):
    found = only(look({W1: put(3, 4, value)}))
    assert (found.code, found.severity, found.rows, found.column) == (
        "huge-value", ERROR, (3, 3), 4,
    )  # fmt: skip


def test_a_row_of_zeros_is_an_error_where_it_switches_something_off(look):
    assert seen(look({W2: lambda v: v[9].zero_()})) == ("zero-rows", ERROR, W2, (9, 9), None)


def test_zero_rows_side_by_side_are_one_range(look):
    report = look({W1: lambda v: v[4:12].zero_()})
    assert (only(report).rows, only(report).count) == ((4, 11), 8)


def test_negative_zeros_are_zeros(look):
    assert only(look({W1: lambda v: v[4].fill_(-0.0)})).code == "zero-rows"


def test_zero_rows_of_a_token_table_are_a_note(look):
    report = look({TABLE: lambda v: v[50:].zero_()})
    assert seen(report) == ("zero-rows", NOTE, TABLE, (50, 55), None)
    assert report.ok


def test_a_range_of_zeros_inside_rows_is_found_with_its_column(look):
    report = look({W1: lambda v: v.view(-1)[512 * 6 + 256 : 512 * 8 + 128].zero_()})
    assert seen(report) == ("zero-range", ERROR, W1, (6, 8), 256)
    assert "896 values (1,792 bytes)" in only(report).reason


def test_many_ranges_are_summed_up(look):
    report = look({W2: lambda v: v[::4].zero_()})
    assert len(report.findings) == 9
    assert report.findings[-1].reason == "and 120 more places like these in this tensor"


@pytest.mark.parametrize("value", [0.25, -3.0])
def test_a_constant_row_is_found(look, value):
    assert seen(look({W1: lambda v: v[30].fill_(value)})) == (
        "constant-rows", ERROR, W1, (30, 30), None,
    )  # fmt: skip


def test_a_constant_tensor_is_found_once(look):
    assert seen(look({W1: lambda v: v.fill_(0.5)})) == ("constant-tensor", ERROR, W1, None, None)


def test_a_zero_norm_is_an_error_and_a_norm_of_twos_is_not(look):
    report = look({NORM: lambda v: v.zero_(), "norm.weight": lambda v: v.fill_(2)})
    assert seen(report) == ("zero-tensor", ERROR, NORM, None, None)


def test_a_value_far_beyond_its_row_is_found(look):
    report = look({W1: put(8, 77, 20.0)})
    assert seen(report) == ("value-outlier", WARNING, W1, (8, 8), 77)
    report = look({W1: put(8, 77, -2000.0)})
    assert seen(report) == ("value-outlier", ERROR, W1, (8, 8), 77)


def test_in_a_sparse_row_the_other_values_are_the_measure(look):
    def sparse(values):
        values[8, 100:] = 0
        values[8, 77] = 20

    codes = {found.code for found in look({W1: sparse}).findings}
    assert codes == {"value-outlier", "zero-range"}


def test_a_value_that_lost_an_exponent_bit_is_found(look):
    def flip(values):
        values.view(torch.int16)[11, 22] = 0x3C80 & ~0x2000  # 2**-6, less the bit of 2**64

    assert seen(look({W1: flip})) == ("tiny-value", WARNING, W1, (11, 11), 22)
    assert look({W1: flip}).ok


@pytest.mark.parametrize(("factor", "severity"), [(16, WARNING), (128, ERROR), (1 / 16, WARNING)])
def test_a_scaled_row_is_found_among_its_siblings(look, factor, severity):
    assert seen(look({W2: lambda v: v[100].mul_(factor)})) == (
        "row-outlier", severity, W2, (100, 100), None,
    )  # fmt: skip


def test_rows_of_foreign_data_are_one_range(look):
    found = only(look({W2: lambda v: v[100:140].mul_(32)}))
    assert (found.code, found.rows, found.count) == ("row-outlier", (100, 139), 40)


def test_a_faint_row_of_a_token_table_is_a_note(look):
    assert seen(look({TABLE: lambda v: v[7].mul_(2.0**-10)})) == (
        "row-outlier", NOTE, TABLE, (7, 7), None,
    )  # fmt: skip


def test_equal_rows_of_a_token_table_are_a_note(look):
    report = look({TABLE: lambda v: v[40].copy_(v[3])})
    assert seen(report) == ("duplicate-rows", NOTE, TABLE, (40, 40), None)
    assert only(report).reason == "equals row 3"


def test_a_negative_value_in_a_norm_is_a_warning(look):
    def negate(values):
        values[33] = -1

    report = look({NORM: negate})
    assert seen(report) == ("negative-norm", WARNING, NORM, (0, 0), 33)


def test_a_table_of_an_implausible_scale_is_a_warning(look):
    assert seen(look({TABLE: lambda v: v.mul_(1024)})) == (
        "implausible-scale", WARNING, TABLE, None, None,
    )  # fmt: skip
