"""Pieces that come: who waits, what is asked for, and that only hashed bytes are given out."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from moetool.errors import DigestMismatch, Stalled, TruncatedFile
from moetool.extents import Extent
from moetool.release.live import download, holes
from moetool.release.live.arrivals import Arrivals, LiveFile
from moetool.release.live.streams import Streams
from moetool.release.torrent.order import Chooser
from tests.release.conftest import PIECE


@pytest.fixture
def arrivals(release):
    return Arrivals(release.meta, release.folder)


def _weights(release, arrivals):
    path = release.folder / "consolidated.00.pth"
    return LiveFile(path, path.stat().st_size, arrivals)


def test_a_reader_waits_until_its_pieces_were_hashed(release, arrivals):
    """The bytes lie there all the time: being there is not enough."""
    file = _weights(release, arrivals)
    needed = arrivals.covering(file.path, 100_000, 50_000)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(file.pread, 100_000, 50_000)
        for index in needed[:-1]:
            arrivals.check(index)
        with pytest.raises(TimeoutError):
            reading.result(timeout=0.2)
        arrivals.check(needed[-1])
        assert reading.result(timeout=5) == file.path.read_bytes()[100_000:150_000]


def test_an_error_of_the_download_is_raised_where_somebody_waits(release, arrivals):
    file = _weights(release, arrivals)
    threading.Timer(0.1, arrivals.fail, [Stalled("no piece came")]).start()
    with pytest.raises(Stalled):
        file.pread(0, 10)


def test_beyond_the_promised_end_there_is_nothing_to_wait_for(release, arrivals):
    file = _weights(release, arrivals)
    with pytest.raises(TruncatedFile):
        file.pread(file.nbytes - 1, 2)


def test_what_is_waited_for_comes_first_and_no_more_than_the_window_is_asked_for(release):
    arrivals = Arrivals(release.meta, release.folder, ahead=4)
    assert set(arrivals.priorities()) == {0}
    arrivals.ask([30])
    arrivals.plan(range(20))
    found = arrivals.priorities()
    assert [i for i, number in enumerate(found) if number] == [0, 1, 2, 3, 30]
    arrivals.check(0)
    arrivals.ask([0])  # read, though nobody had to wait: the window moves on
    assert [i for i, n in enumerate(arrivals.priorities()) if n] == [0, 1, 2, 3, 4, 30]
    assert not arrivals.is_complete


def test_what_nobody_plans_comes_as_the_swarm_likes(release, arrivals):
    assert arrivals.follows_swarm
    arrivals.ask([7, 30])
    arrivals.check(7)
    found = arrivals.priorities()
    assert {number for index, number in enumerate(found) if index != 30} == {4}
    assert found[30] > 4
    arrivals.plan(range(49))
    assert not arrivals.follows_swarm


def test_a_piece_that_is_left_to_others_is_waited_for_no_longer(arrivals):
    arrivals.ask([7])
    for index in set(arrivals.pieces) - {7}:
        arrivals.check(index)
    assert not arrivals.is_complete
    arrivals.leave(7)
    assert arrivals.is_complete
    assert not arrivals.has(7)


def test_earlier_places_in_the_order_have_higher_priorities(release, arrivals):
    order = list(reversed(range(40)))
    arrivals.plan(order)
    found = [arrivals.priorities()[index] for index in order]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) > 2


@pytest.mark.parametrize("damage", [False, True])
def test_libtorrents_word_is_not_taken_for_a_piece(release, arrivals, monkeypatch, damage):
    monkeypatch.setattr(download, "_FIRST_LOOK_S", 0.001)
    path = release.folder / "consolidated.00.pth"
    if damage:
        content = bytearray(path.read_bytes())
        content[3 * PIECE] ^= 1
        path.write_bytes(content)
    loop = download._Loop(arrivals, None, None, lambda: None, Chooser(), leave_bad=False)
    index = arrivals.covering(path, 3 * PIECE, 1)[0]
    for _ in range(download._LOOKS):
        assert arrivals.n_closed == 0
        arrivals.go_on()
        loop._check(arrivals.pieces[index])
        if not damage:
            break
    assert arrivals.has(index) is not damage
    if damage:
        with pytest.raises(DigestMismatch, match=f"piece {index}"):
            arrivals.go_on()


def test_holes_take_whole_blocks_only_and_keep_the_size(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"\7" * 100_000)
    holes.refuse_without_holes(tmp_path)
    holes.punch([Extent(path, 5_000, 50_000)])
    content = path.read_bytes()
    assert len(content) == 100_000
    assert content[:8_192] == b"\7" * 8_192
    assert content[8_192:53_248] == bytes(45_056)
    assert content[53_248:] == b"\7" * 46_752
    assert os.listdir(tmp_path) == ["file"]


def test_a_stream_whose_bytes_went_before_their_turn_has_no_digest(release, arrivals):
    path = release.folder / "consolidated.00.pth"
    nbytes, content = path.stat().st_size, path.read_bytes()
    streams = Streams(arrivals, lambda: {path: ["md5"]})
    pieces = arrivals.covering(path, 0, nbytes)
    for index in pieces[1:]:
        arrivals.check(index)
    streams.finish()
    assert streams.digests(path) == {}
    streams.give_back([Extent(path, 10 * PIECE, PIECE)])
    arrivals.check(pieces[0])
    streams.finish()
    assert streams.digests(path) == {}
    streams.close()
    path.write_bytes(content)
    whole = Streams(arrivals, lambda: {path: ["md5"]})
    whole.finish()
    assert whole.digests(path)["md5"] in (release.folder / "RELEASE").read_text("utf-8")
    whole.close()


def test_of_what_nothing_is_known_yet_nothing_is_taken(release, arrivals):
    path, wish = release.folder / "tokenizer.model", []
    streams = Streams(arrivals, lambda: wish[0] if wish else None)
    for index in arrivals.pieces:
        arrivals.check(index)
        streams.nudge()
    assert streams.taken == {}
    wish.append({path: {"md5", "sha1"}})
    streams.finish()
    assert streams.digests(path)["sha1"] == hashlib.sha1(path.read_bytes()).hexdigest()
    assert {want.algorithm for want in streams.taken} == {"md5", "sha1"}
    streams.close()
