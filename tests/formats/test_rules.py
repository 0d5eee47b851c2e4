"""What every format's header must keep to."""

from __future__ import annotations

import pytest

from moetool.errors import BadHeader
from moetool.extents import Extent
from moetool.formats.rules import check_count, check_info, check_name, check_tiling, shown
from moetool.tensors import DType


@pytest.mark.parametrize("name", ["a", "layers.0.w1.weight", "größe \u2581", "x" * 512, "../../x"])
def test_a_printable_name_is_a_name(name):
    """A name is never a path, so it may look like one."""
    check_name(name, "f")


@pytest.mark.parametrize("name", ["", "x" * 513, "a\n", "\x1b[2J", "\u202e", "\ufeff", "\ud800"])
def test_other_names_are_refused_and_spelled_harmlessly(name):
    """Control, bidi, zero-width and surrogate characters."""
    with pytest.raises(BadHeader) as caught:
        check_name(name, "f")
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


def test_what_is_shown_has_an_end():
    """Ten million characters become 200."""
    assert len(shown("\x1b" * 10_000_000)) == 200


@pytest.mark.parametrize("shape", [(), (0,), (32,), (5, 64), (0, 0, 0), (1,) * 8])
def test_shapes_that_can_be(shape):
    """Scalars, empty tensors, eight dimensions."""
    dtype = DType.Q8_0 if shape and shape[-1] % 32 == 0 else DType.F32
    assert check_info("t", dtype, shape, "f").shape == shape


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (DType.F32, (1,) * 9),
        (DType.F32, (-1,)),
        (DType.F32, (0, 1 << 61)),
        (DType.F32, (1 << 31, 1 << 31)),
        (DType.Q8_0, (32, 1)),
        (DType.Q4_K, (255,)),
        (DType.Q4_K, ()),
    ],
)
def test_shapes_that_cannot(dtype, shape):
    """Too many, negative, overflowing beside a zero, or rows that end within a block."""
    with pytest.raises(BadHeader):
        check_info("t", dtype, shape, "f")


def test_counts_have_a_limit():
    """The limit itself is allowed."""
    check_count(5, "things", "f", 5)
    with pytest.raises(BadHeader, match="6 things, more than 5"):
        check_count(6, "things", "f", 5)


def test_tensors_tile_the_data(tmp_path):
    """In any order, with empty ones between; no hole, no overlap, no rest."""

    def tile(*ranges, end=10):
        extents = ((str(r), Extent(tmp_path, r[0], r[1] - r[0])) for r in ranges)
        check_tiling(extents, 2, end, "f")

    tile((6, 10), (2, 6), (6, 6))
    tile(end=2)
    for ranges in ([(2, 5), (6, 10)], [(2, 7), (6, 10)], [(2, 9)], [(2, 11)], [(1, 10)], []):
        with pytest.raises(BadHeader):
            tile(*ranges)
