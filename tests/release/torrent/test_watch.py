"""The watchdog's decisions, on a clock of its own."""

from __future__ import annotations

import pytest

from moetool.release.torrent.watch import Decision, Sample, Watchdog

GOOD, EVIL = ("10.0.0.1", 1), ("10.0.0.2", 2)


@pytest.fixture
def dog():
    return Watchdog(stall_timeout_s=100, rejoin_after_s=30)


def test_while_bytes_come_all_is_well(dog):
    for second in range(0, 300, 10):
        sample = Sample(now_s=second, done=second, payload=second)
        assert dog.judge(sample) is Decision.GO_ON


def test_silence_without_bans_is_borne_until_the_stall_timeout(dog):
    assert dog.judge(Sample(now_s=0, done=5, payload=5)) is Decision.GO_ON
    assert dog.judge(Sample(now_s=99, done=5, payload=5)) is Decision.GO_ON
    assert dog.judge(Sample(now_s=100, done=5, payload=5)) is Decision.GIVE_UP


def test_bytes_that_never_make_a_piece_are_a_stall_too(dog):
    decisions = [dog.judge(Sample(now_s=s, done=0, payload=s)) for s in range(0, 101, 10)]
    assert decisions[-1] is Decision.GIVE_UP


def test_a_good_seeder_that_was_banned_is_found_innocent(dog):
    """The bug of libtorrent 2.1.1: both peers of a bad piece are banned, and nothing comes."""
    dog.judge(Sample(now_s=0, done=5, payload=5))
    dog.ban(GOOD)
    dog.ban(EVIL)
    assert dog.judge(Sample(now_s=29, done=5, payload=5)) is Decision.GO_ON
    assert dog.judge(Sample(now_s=30, done=5, payload=5)) is Decision.QUESTION
    assert dog.next_suspect(30) == GOOD
    assert dog.judge(Sample(now_s=31, done=6, payload=1)) is Decision.GO_ON
    assert dog.judge(Sample(now_s=61, done=9, payload=9)) is Decision.GO_ON
    # It is good, but slow or gone: the other one gets its turn, and is found guilty.
    assert dog.judge(Sample(now_s=91, done=9, payload=9)) is Decision.QUESTION
    assert dog.next_suspect(91) == EVIL
    dog.hash_failed()
    assert dog.judge(Sample(now_s=92, done=9, payload=1)) is Decision.REJOIN
    dog.rejoined(92)
    assert dog.guilty == {EVIL}
    assert dog.judge(Sample(now_s=93, done=10, payload=2)) is Decision.GO_ON


def test_a_bad_piece_of_a_crowd_makes_nobody_guilty(dog):
    dog.hash_failed()
    dog.ban(GOOD)
    assert dog.guilty == set()
    assert dog.suspects == [GOOD]


def test_who_was_found_guilty_is_not_questioned_again(dog):
    dog.ban(EVIL)
    dog.judge(Sample(now_s=0))
    dog.next_suspect(0)
    dog.ban(EVIL)
    dog.rejoined(1)
    dog.ban(EVIL)
    assert dog.suspects == []
    assert dog.guilty == {EVIL}


def test_a_piece_that_fails_again_and_again_makes_each_peer_be_asked_alone(dog):
    """Nobody was banned, bytes come, and yet nothing is got: somebody spoils the piece."""
    dog.judge(Sample(now_s=0, done=5, payload=5))
    for times in (1, 2, 3):
        dog.hash_failed(times)
        assert dog.judge(Sample(now_s=9 * times, done=5, payload=5 + times)) is Decision.GO_ON
    # Blocks of the piece come anew, this time more of them: that is no piece that is right.
    assert dog.judge(Sample(now_s=30, done=7, payload=9)) is Decision.SINGLE
    assert dog.single([EVIL, GOOD], 30) == GOOD
    assert dog.banned == set()  # a suspicion of ours is no ban
    assert dog.judge(Sample(now_s=31, done=6, payload=1)) is Decision.GO_ON
    assert dog.judge(Sample(now_s=61, done=6, payload=1)) is Decision.QUESTION
    assert dog.next_suspect(61) == EVIL
    dog.hash_failed()
    assert dog.judge(Sample(now_s=62, done=6, payload=1)) is Decision.REJOIN
    dog.rejoined(62)
    assert dog.banned == {EVIL}
    for times in (1, 2, 3):
        dog.hash_failed(times)
    assert dog.judge(Sample(now_s=125, done=6, payload=2)) is Decision.GO_ON  # once is enough


def test_a_piece_that_came_right_at_last_is_forgotten(dog):
    dog.judge(Sample(now_s=0, done=5, payload=5))
    dog.hash_failed(3)
    dog.judge(Sample(now_s=1, pieces=1, done=6, payload=6))
    assert dog.judge(Sample(now_s=50, pieces=1, done=6, payload=99)) is Decision.GO_ON
