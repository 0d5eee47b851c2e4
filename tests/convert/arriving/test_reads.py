"""The order of pieces, and what may go: decisions on numbers alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from moetool.convert.arriving.reads import Behind, StepReads, piece_order
from moetool.extents import Extent


def test_the_order_of_the_file_is_kept_where_it_delays_little():
    steps = [[n] for n in range(100)]
    steps[3], steps[5] = steps[5], steps[3]
    order = piece_order(steps)
    assert order.pieces == tuple(range(100))
    assert order.lag == 2  # two pieces are here before their turn while step 3 waits for piece 5


def test_elsewhere_the_steps_decide():
    steps = [[0], [99], *([n] for n in range(1, 99))]
    order = piece_order(steps)
    assert order.pieces[:3] == (0, 99, 1)
    assert sorted(order.pieces) == list(range(100))
    assert order.lag == 0


def test_nothing_to_read_is_an_order_too():
    assert piece_order([]).pieces == ()


@dataclass
class Cut:
    extents: tuple


@dataclass
class Here:
    """Pieces of ten bytes of one file, all of them here but ``missing``."""

    path: object
    n: int
    missing: set = field(default_factory=set)

    @property
    def pieces(self):
        return {i: Cut((Extent(self.path, 10 * i, 10),)) for i in range(self.n)}

    def covering(self, _path, offset, nbytes):
        return list(range(offset // 10, -(-(offset + nbytes) // 10))) if nbytes else []

    def has(self, index):
        return index not in self.missing


def _steps(path, ranges, here):
    return [
        StepReads(name, (Extent(path, start, stop - start),),
                  tuple(here.covering(path, start, stop - start)))
        for name, (start, stop) in ranges.items()
    ]  # fmt: skip


def test_a_piece_goes_when_all_its_readers_are_sealed_and_only_what_they_read(tmp_path):
    here, gone = Here(tmp_path, 5), []
    steps = _steps(tmp_path, {"a": (2, 14), "b": (14, 33), "c": (33, 38)}, here)
    behind = Behind(steps, here, kept={0}, give_back=gone.append)
    behind.sealed(["a"])
    assert gone == []  # piece 0 is kept, piece 1 is read by b too
    behind.sealed(["a", "b"])  # told twice is as told once
    assert gone == [[Extent(tmp_path, 10, 10)], [Extent(tmp_path, 20, 10)]]
    assert behind.unread() == [3, 4]
    behind.sealed(["c"])
    assert gone[2:] == [[Extent(tmp_path, 30, 8)]]  # bytes 38 and 39 were nobody's


def test_a_piece_that_is_not_here_is_not_touched(tmp_path):
    here, gone = Here(tmp_path, 2, missing={1}), []
    behind = Behind(_steps(tmp_path, {"a": (0, 20)}, here), here, (), gone.append)
    behind.sealed(["a"])
    assert gone == [[Extent(tmp_path, 0, 10)]]
