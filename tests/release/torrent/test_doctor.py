"""The doctor: each cause from what can be seen, each remedy once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moetool.release.torrent.doctor import _CASES, Doctor, Remedy, diagnose, findings
from moetool.release.torrent.watch import Sample

NOBODY = Sample(0, trackers=2, answered=1, dht_nodes=0)
PAIR = Sample(0, peers=2)

SEEN = [
    (
        replace(PAIR, wants_metadata=True, metadata_nbytes=99_000_000),
        "metadata-too-large",
        "the metadata has 99000000 bytes, more than the 31457280 that are taken",
        None,
    ),
    (
        replace(NOBODY, known=1, proxy_error="Connection refused"),
        "proxy",
        "the proxy does not serve us (Connection refused)",
        None,
    ),
    (
        replace(PAIR, failing=12, fails=3, seeds=2),
        "bad-pieces",
        "piece 12 came 3 times and was wrong each time: 2 peers, 2 of them seeds",
        Remedy.SINGLE,
    ),
    (
        replace(NOBODY, banned=2, known=2),
        "all-banned",
        "2 peers sent bad pieces and are banned",
        Remedy.QUESTION,
    ),
    (
        replace(NOBODY, known=3, poor=3),
        "nothing-new",
        "had none of the pieces that lack: 0 peers",
        None,
    ),
    (
        replace(NOBODY, known=3, refused="Connection refused"),
        "unreachable",
        "3 peers known, none can be reached (Connection refused): 0 peers",
        Remedy.UTP,
    ),
    (
        replace(NOBODY, answered=0, tracker_errors=(("udp://a:1", "timed out"),)),
        "no-tracker",
        "no tracker answered (timed out): 0 peers, 0 of 2 trackers answered, 0 DHT nodes",
        None,
    ),
    (
        replace(NOBODY, web_seed_faults=("http://a/x: it does not serve ranges",)),
        "web-seeds",
        "the web seed http://a/x: it does not serve ranges",
        Remedy.LEAVE_OUT,
    ),
    (Sample(0), "nobody", "nobody is known who has it: 0 peers, no trackers, DHT is off", None),
    (
        replace(PAIR, wants_metadata=True, without_metadata=2),
        "no-metadata",
        "who is here does not have the metadata either",
        None,
    ),
    (replace(PAIR, wants_metadata=True), "metadata", "does not send the metadata", None),
    (
        replace(PAIR, availability=0.97, lacking=(12, 40)),
        "incomplete",
        "nobody has 2 pieces (12, 40), together they hold 97% of one copy: 2 peers, 0 of them",
        None,
    ),
    (replace(PAIR, seeds=2, choking=2), "choked", "we wait in their queue", None),
    (
        replace(PAIR, peers=1, seeds=1, availability=1.0),
        "silent",
        "connected and send nothing: 1 peer, 1 of them seeds",
        None,
    ),
]


@pytest.mark.parametrize(("sample", "cause", "words", "remedy"), SEEN, ids=[s[1] for s in SEEN])
def test_the_cause_is_told_in_one_line_with_what_may_help(sample, cause, words, remedy):
    found = diagnose(sample)
    assert (found.cause, found.remedy) == (cause, remedy)
    assert words in found.words
    assert "\n" not in found.words


def test_every_row_of_the_table_has_its_case_here():
    assert [case.cause for case in _CASES] == [cause for _, cause, _, _ in SEEN]


def test_every_cause_comes_with_what_a_person_can_do():
    for sample, *_ in SEEN:
        assert len(diagnose(sample).advice) > 20


def test_a_swarm_that_seeds_is_never_called_incomplete():
    assert diagnose(replace(PAIR, seeds=1, availability=0.5)).cause == "silent"


def test_each_cause_is_told_once_and_not_at_once():
    doctor = Doctor(patience_s=30)
    first, second = diagnose(NOBODY), diagnose(PAIR)
    assert doctor.speak(first, 9) == ""
    assert doctor.speak(first, 10).startswith("nothing comes: nobody is known")
    assert doctor.speak(first, 11) == ""
    assert "send nothing" in doctor.speak(second, 12)


def test_utp_is_allowed_once_and_only_where_it_may_help():
    doctor, unreachable = Doctor(patience_s=30), diagnose(replace(NOBODY, known=1))
    assert not doctor.wants_utp(unreachable, 19)
    assert not doctor.wants_utp(diagnose(NOBODY), 20)
    assert doctor.wants_utp(unreachable, 20)
    assert "uTP" in doctor.use(Remedy.UTP)
    assert not doctor.wants_utp(unreachable, 40)
    assert doctor.use(Remedy.UTP) == ""


def test_an_error_lists_who_said_what_and_what_was_tried():
    doctor = Doctor(patience_s=30)
    doctor.use(Remedy.QUESTION)
    sample = replace(
        NOBODY,
        banned=1,
        tracker_errors=(("udp://a:1/x", "timed out"), ("http://b/y", "not registered")),
        web_seed_faults=("http://c/: gone",),
    )
    assert findings(sample, doctor) == (
        "cause: all-banned",
        "tracker udp://a:1/x: timed out",
        "tracker http://b/y: not registered",
        "web seed http://c/: gone",
        f"tried: {Remedy.QUESTION.value}",
    )
