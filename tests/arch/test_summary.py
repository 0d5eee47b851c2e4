"""Repeated tensors are collapsed to one line without losing any."""

from moetool.arch.summary import collapse
from moetool.tensors import DType, TensorInfo


def infos(*names, shape=(2, 3), dtype=DType.BF16):
    return [TensorInfo(name, dtype, shape) for name in names]


def test_numbers_become_ranges():
    """Each number in a name runs through its own range."""
    (group,) = collapse(infos(*(f"layers.{n}.experts.{e}.w" for n in range(3) for e in range(2))))
    assert (group.name, group.count, group.nbytes) == ("layers.0-2.experts.0-1.w", 6, 72)


def test_gaps_are_listed():
    """A range with holes is not shown as whole."""
    (group,) = collapse(infos("l.0.w", "l.1.w", "l.5.w"))
    assert group.name == "l.{0,1,5}.w"


def test_another_shape_or_type_is_another_line():
    """What differs is not hidden behind a common name."""
    found = collapse([*infos("l.0.w"), *infos("l.1.w", shape=(9,)),
                      *infos("l.2.w", dtype=DType.F32)])  # fmt: skip
    assert [group.name for group in found] == ["l.0.w", "l.1.w", "l.2.w"]


def test_a_single_name_stays_as_it_is():
    """Digits in the name of one tensor are no range."""
    (group,) = collapse(infos("blk.10.w1"))
    assert group.name == "blk.10.w1"
