"""The order of the pieces: that of the files only where it harms nobody."""

from __future__ import annotations

import pytest

from moetool.release.torrent.order import Chooser


def _choose(chooser, now_s, **seen):
    return chooser.choose(now_s=now_s, **{"seeds": 0, "peers": 0, "copies": -1.0, **seen})


@pytest.mark.parametrize(
    ("seeds", "peers", "copies", "order", "told"),
    [
        (1, 1, 1.0, "sequential", "order: sequential, so that md5 follows; 1 seed"),
        (3, 3, 3.0, "sequential", "order: sequential, so that md5 follows; 3 seeds"),
        (1, 9, 1.4, "rarest", "order: rarest first; availability 1.40"),
        (0, 9, 0.97, "rarest", "order: rarest first; availability 0.97"),
        (2, 9, 5.5, "sequential", "order: sequential, so that md5 follows; availability 5.50"),
    ],
)
def test_what_is_seen_of_the_swarm_decides(seeds, peers, copies, order, told):
    chooser = Chooser()
    assert _choose(chooser, 0.0) == ""
    _choose(chooser, 0.5, peers=1, copies=0.0)  # one was just met and has said nothing
    assert chooser.order == ""
    assert _choose(chooser, 2.6, seeds=seeds, peers=peers, copies=copies) == told
    assert chooser.order == order
    assert _choose(chooser, 20.0, seeds=seeds, peers=peers, copies=copies) == ""


def test_it_changes_with_the_swarm_and_not_with_every_peer():
    chooser = Chooser()
    _choose(chooser, 0.0, seeds=1, peers=1, copies=1.0)
    assert _choose(chooser, 3.0, seeds=1, peers=2, copies=1.1) == ""
    assert _choose(chooser, 11.0, seeds=1, peers=2, copies=1.1).startswith("order: rarest first")
    assert _choose(chooser, 12.0, seeds=4, peers=9, copies=4.1) == ""
    assert _choose(chooser, 22.0, seeds=4, peers=9, copies=4.1).startswith("order: sequential")
    assert _choose(chooser, 99.0) == ""  # nobody is there any more: nothing is known
    assert chooser.order == "sequential"


def test_an_order_that_is_asked_for_is_told_once_and_stays():
    chooser = Chooser("rarest")
    assert _choose(chooser, 0.0) == "order: rarest first, as asked for"
    assert _choose(chooser, 60.0, seeds=5, peers=5, copies=5.0) == ""
    assert chooser.order == "rarest"
