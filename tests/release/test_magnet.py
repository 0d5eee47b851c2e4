"""A link as the web leaves it, and the same link as it was meant."""

from __future__ import annotations

import base64
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.errors import BadMagnet
from moetool.release.magnet import (
    Magnet,
    Outcome,
    fill_lost,
    find,
    format_magnet,
    is_peer,
    is_tracker,
    parse,
)
from moetool.release.manifest import find_release, known_releases, known_slugs

HASH = "5546272da9065eddeb6fcd7ffddeef5b75be79a7"
BASE32 = base64.b32encode(bytes.fromhex(HASH)).decode()
HOSTS = ("opentracker.i2p.rocks:6969", "tracker.openbittorrent.com:80")
TRACKERS = (f"udp://{HOSTS[0]}/announce", f"http://{HOSTS[1]}/announce")
CLEAN = (
    f"magnet:?xt=urn:btih:{HASH}&dn=mixtral-8x7b-32kseqlen"
    "&tr=udp%3A%2F%2Fopentracker.i2p.rocks%3A6969%2Fannounce"
    "&tr=http%3A%2F%2Ftracker.openbittorrent.com%3A80%2Fannounce"
)
SLUGS = {"AAAAbbbb01": "opentracker.i2p.rocks", "g0m9cEUz0T": "tracker.openbittorrent.com"}


def form_a(link):
    """What the site shows: the host, linked together with the two hex digits before it."""
    return re.sub(r"%2F%2F", "%2F%http://2F", link)


def form_b(link):
    for slug, host in SLUGS.items():
        link = link.replace(f"%2F%2F{host}", f"%2F%https://t.co/{slug}")
    return link


def form_c(link):
    return re.sub(r"%2F%2F([^%]+)", r"%2F%http://2f\1/", link)


def form_d(link):
    return re.sub(r"(?i)%3A%2F%2F([^%]+)%3A", r"%3a%2f-tp%3a%2f%2f2F\1%3a", link)


@pytest.mark.parametrize("mangle", [form_a, form_b, form_c, form_d])
def test_every_mangled_form_gives_back_both_trackers(mangle):
    pasted = mangle(CLEAN)
    assert pasted != CLEAN
    magnet, repairs = find(pasted, slugs=SLUGS)
    assert magnet == Magnet(HASH, None, "mixtral-8x7b-32kseqlen", TRACKERS)
    assert [entry.outcome for entry in repairs.trackers] == [Outcome.REPAIRED] * 2
    assert [entry.tracker for entry in repairs.trackers] == list(TRACKERS)


def test_a_clean_link_needs_no_repairs():
    magnet, repairs = find(CLEAN)
    assert magnet.trackers == TRACKERS
    assert not repairs


@pytest.mark.parametrize(
    "around",
    [
        "{}\n\nRELEASE a6bbd9affe0c2725c1b7410d66833e24",
        "{} RELEASE a6bbd9affe0c2725c1b7410d66833e24",
        "New model!\n  {}\r\nRELEASE: A6BBD9AFFE0C2725C1B7410D66833E24 https://x.com/a?s=20&t=1",
        "<a href='{}'>link</a> RELEASE a6bbd9affe0c2725c1b7410d66833e24",
        "([magnet]({})) RELEASE a6bbd9affe0c2725c1b7410d66833e24",
        "\u200b{}\u2060 RELEASE a6bbd9affe0c2725c1b7410d66833e24",
    ],
)
def test_text_around_the_link_is_left_aside_and_its_digest_is_kept(around):
    magnet, repairs = find(around.format(form_a(CLEAN)))
    assert (magnet.info_hash, magnet.trackers) == (HASH, TRACKERS)
    assert repairs.release_md5 == "a6bbd9affe0c2725c1b7410d66833e24"


@pytest.mark.parametrize(
    "pasted",
    [
        CLEAN.replace("&", "&amp;"),
        CLEAN.replace("&", "&amp;amp;"),
        CLEAN.replace("magnet:", "MAGNET:"),
        CLEAN.replace("&tr=", "&\n  tr="),
        CLEAN.replace("tr=", "tr=\n"),
        CLEAN.replace("%3A80", "%3A\n80"),
        CLEAN.replace("%2F%2F", "%252F%252F").replace("%3A", "%253A"),
        CLEAN.replace("tr=", "tr.1="),
        CLEAN.replace(HASH, HASH[:20] + "\n" + HASH[20:]),
        CLEAN.replace(HASH, BASE32),
        CLEAN.replace("urn:btih:", "urn%3Abtih%3A"),
        CLEAN.replace(HASH, f"{HASH[:10]}\u200b{HASH[10:]}"),
    ],
)
def test_what_pages_do_to_links_is_undone(pasted):
    assert parse(pasted) == parse(CLEAN)


def test_a_tracker_behind_an_unknown_short_link_is_lost_and_is_named():
    magnet, repairs = find(form_b(CLEAN))
    assert magnet.trackers == ()
    assert [entry.outcome for entry in repairs.trackers] == [Outcome.LOST] * 2
    assert "t.co/g0m9cEUz0T" in repairs.trackers[1].pasted


def test_lost_trackers_are_replaced_from_the_known_release():
    magnet, repairs = find(form_b(CLEAN), slugs=known_slugs())
    release = find_release("mixtral-8x7b-32kseqlen")
    magnet, repairs = fill_lost(magnet, repairs, release.trackers)
    assert set(magnet.trackers) == set(TRACKERS)
    assert [entry.outcome for entry in repairs.trackers] == [Outcome.REPLACED, Outcome.REPAIRED]


@pytest.mark.parametrize("release", known_releases(), ids=lambda release: release.name)
def test_the_links_of_known_releases_survive_form_a(release):
    link = format_magnet(Magnet(release.info_hash, None, release.name, release.trackers))
    assert parse(form_a(link)).trackers == release.trackers


@pytest.mark.parametrize(
    ("text", "v1", "v2"),
    [
        (HASH.upper(), HASH, None),
        (f"  the hash is {HASH}, look", HASH, None),
        (BASE32, HASH, None),
        ("1220" + "ab" * 32, None, "ab" * 32),
        (f"magnet:?xt=urn:btmh:1220{'cd' * 32}", None, "cd" * 32),
        (f"magnet:?xt=urn:btih:{HASH}&xt=urn:btmh:1220{'cd' * 32}", HASH, "cd" * 32),
    ],
)
def test_an_info_hash_is_enough(text, v1, v2):
    magnet = parse(text)
    assert (magnet.info_hash, magnet.info_hash_v2) == (v1, v2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "magnet:?dn=no-hash",
        f"magnet:?xt=urn:btih:{HASH[:39]}",
        f"magnet:?xt=urn:btih:{HASH}0",
        f"magnet:?xt=urn:btih:{HASH[:39]}g",
        f"magnet:?xt=urn:btmh:1220{'cd' * 31}",
        f"magnet:?xt=urn:sha1:{HASH}",
        f"{HASH} or {HASH[::-1]}",
        "a6bbd9affe0c2725c1b7410d66833e24",
    ],
)
def test_a_hash_that_lacks_digits_is_never_guessed(text):
    with pytest.raises(BadMagnet) as caught:
        find(text)
    assert caught.value.exit_code == 2
    assert caught.value.hint


@pytest.mark.parametrize("tail", ["announce…", "annou…", "announce...", "…"])
def test_a_tracker_cut_by_an_ellipsis_is_completed(tail):
    magnet, repairs = find(f"magnet:?xt=urn:btih:{HASH}&tr=http://a.example:80/{tail}")
    assert magnet.trackers == ("http://a.example:80/announce",)
    assert repairs.trackers[0].outcome is Outcome.REPAIRED


@pytest.mark.parametrize(
    "url",
    ["ftp://a:1/announce", "http://user:pass@a/announce", "udp://a/announce", "udp://:1/x",
     "http://a b/", "http://a:99999/", "file:///etc/passwd", "wss://a/", "http://a\u202e/"],
)  # fmt: skip
def test_no_other_scheme_and_no_credentials_make_a_tracker(url):
    assert not is_tracker(url)


@pytest.mark.parametrize(
    ("text", "good"),
    [("1.2.3.4:80", True), ("[::1]:80", True), ("::1:80", False), ("a.example:80", False),
     ("1.2.3.4:0", False), ("1.2.3.4:65536", False), ("1.2.3.4", False), ("[1.2.3.4]:1", False)],
)  # fmt: skip
def test_a_peer_is_a_numeric_address_and_a_port(text, good):
    assert is_peer(text) is good


NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40)
HEX = st.sampled_from("0123456789abcdef")
LABEL = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8)
HOST = st.lists(LABEL, min_size=1, max_size=3).map(".".join)
TRACKER = st.builds(
    "{}://{}:{}/{}".format,
    st.sampled_from(["udp", "http", "https"]),
    HOST,
    st.integers(1, 65535),
    st.text(string.ascii_letters + string.digits + "?=&%+/_-", max_size=12),
)
PEER = st.builds("{}:{}".format, st.ip_addresses(v=4), st.integers(1, 65535))


@given(
    st.builds(
        Magnet,
        st.text(HEX, min_size=40, max_size=40),
        st.none() | st.text(HEX, min_size=64, max_size=64),
        st.none() | NAMES,
        st.lists(TRACKER, max_size=3, unique=True).map(tuple),
        st.lists(TRACKER, max_size=2).map(tuple),
        st.lists(PEER, max_size=2).map(tuple),
    )
)
def test_parse_gives_back_what_format_wrote(magnet):
    assert parse(format_magnet(magnet)) == magnet
    assert parse(f"see {format_magnet(magnet)} RELEASE soon") == magnet
