"""Hostile links: no other scheme, no private address, no path, no hang."""

from __future__ import annotations

import contextlib
import random
import time

import pytest

from moetool.errors import BadMagnet
from moetool.release.magnet import find, parse
from moetool.release.source import public_peers, resolve_source

HASH = "ab" * 20
LINK = f"magnet:?xt=urn:btih:{HASH}"


@pytest.mark.parametrize(
    "tracker",
    [
        "file:///etc/passwd",
        "gopher://127.0.0.1:70/",
        "http://user:secret@example.org/announce",
        "http://example.org:0/announce",
        "udp://example.org/announce",
        "http://exa mple.org/",
        "http://example.org/\r\nHost: evil",
        "javascript:alert(1)",
        "//example.org/announce",
        "http://[::1",
        "http://ex\u0430mple.org/announce",
    ],
)
def test_a_tracker_that_is_no_plain_address_is_not_asked(tracker):
    from urllib.parse import quote

    magnet, repairs = find(f"{LINK}&tr={quote(tracker, safe='')}")
    assert magnet.trackers == ()
    assert len(repairs.trackers) == 1


def test_a_link_cannot_make_us_knock_in_our_own_network():
    peers = "&x.pe=127.0.0.1:22&x.pe=10.1.2.3:80&x.pe=[::ffff:192.168.0.1]:80&x.pe=localhost:22"
    assert public_peers(parse(LINK + peers)) == ()


def test_a_name_that_is_a_path_stays_a_name():
    magnet = parse(f"{LINK}&dn=..%2F..%2Fetc%2Fpasswd")
    assert magnet.name == "../../etc/passwd"  # shown, and never used as a path


@pytest.mark.parametrize(
    "text",
    [
        "magnet:?" * 20_000,
        LINK + "&tr=" + "%25" * 100_000,
        LINK + "&tr=x" * 50_000,
        "&amp;" * 100_000 + LINK,
        "&" + "amp;" * 50_000,
        LINK + "&tr=udp%3A%2F" + "%http://2F" * 20_000,
        LINK + " &" * 100_000,
        "a" * 1_000_000,
        "RELEASE " * 100_000,
        "5" * 500_000,
    ],
    ids=range(10),
)
def test_a_megabyte_of_nonsense_is_answered_within_seconds(text):
    began = time.process_time()
    with contextlib.suppress(BadMagnet):
        find(text)
    assert time.process_time() - began < 5


def test_mutants_of_a_link_are_read_or_refused_and_the_hash_is_never_changed():
    good = f"{LINK}&dn=mixtral&tr=udp%3A%2F%http://2Fa.example%3A1%2Fannounce RELEASE {'0' * 32}"
    bits = random.Random(1)
    for _ in range(5000):
        text = list(good)
        for _ in range(bits.randint(1, 6)):
            text[bits.randrange(len(text))] = bits.choice("%&=?: \n\x00\u202e\ud800ABCxyz019/.")
        try:
            magnet = parse("".join(text))
        except BadMagnet:
            continue
        assert magnet.info_hash in "".join("".join(text).lower().split()) or magnet.info_hash_v2


@pytest.mark.parametrize("text", ["\x00", "\x00.torrent", "a\x00b", "." * 5000, "/", "-rf", "~"])
def test_odd_arguments_are_usage_faults(text):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        resolve_source(text)
    assert getattr(caught.value, "exit_code", 1) == 2
