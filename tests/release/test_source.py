"""A link, a file or a name: what is meant is found out, or the question is sent back."""

from __future__ import annotations

import pytest

from moetool.errors import BadMagnet, HostileTorrent, UsageFault
from moetool.release.magnet import Magnet, Outcome
from moetool.release.manifest import find_release
from moetool.release.source import public_peers, refuse_impostor, resolve_source

HASH = "5546272da9065eddeb6fcd7ffddeef5b75be79a7"


def test_a_known_name_brings_hash_trackers_and_the_digest_of_the_post():
    source = resolve_source("Mixtral-8x7B-32kseqlen")
    assert source.magnet.info_hash == HASH
    assert source.magnet.trackers == source.release.trackers
    assert source.release_md5 == "a6bbd9affe0c2725c1b7410d66833e24"


def test_a_bare_hash_of_a_known_release_gets_its_trackers():
    source = resolve_source(HASH)
    assert source.release == find_release("mixtral-8x7b-32kseqlen")
    assert source.magnet.trackers == source.release.trackers


def test_a_digest_that_was_pasted_counts_more_than_the_recorded_one():
    assert resolve_source(f"magnet:?xt=urn:btih:{HASH} RELEASE {'1' * 32}").release_md5 == "1" * 32


def test_trackers_that_are_lost_come_from_the_record():
    lost = f"magnet:?xt=urn:btih:{HASH}&tr=udp%3A%2F%https://t.co/ZZZZZZZZZZ%3A1%2Fannounce"
    source = resolve_source(lost)
    assert source.repairs.trackers[0].outcome is Outcome.REPLACED
    assert source.magnet.trackers == source.release.trackers[:1]


def test_a_torrent_file_needs_no_metadata(release):
    source = resolve_source(str(release.torrent))
    assert source.meta.hashes == release.meta.hashes
    assert source.magnet.name == "tiny"


@pytest.mark.parametrize(
    ("text", "kind"),
    [("nonsense.torrent", UsageFault), ("no-such-release", UsageFault),
     ("https://x.com/MistralAI/status/1", BadMagnet), ("two words", BadMagnet),
     ("magnet:?dn=x", BadMagnet)],
)  # fmt: skip
def test_what_cannot_be_meant_is_a_usage_fault_with_a_hint(text, kind):
    with pytest.raises(kind) as caught:
        resolve_source(text)
    assert caught.value.exit_code == 2


def test_peers_of_private_networks_are_not_taken_from_a_link():
    peers = ("127.0.0.1:1", "10.0.0.1:1", "192.168.1.1:1", "169.254.169.254:80", "[::1]:1",
             "[fe80::1]:1", "8.8.8.8:6881", "[2001:4860:4860::8888]:6881")  # fmt: skip
    assert public_peers(Magnet(HASH, peers=peers)) == (
        ("8.8.8.8", 6881), ("2001:4860:4860::8888", 6881),
    )  # fmt: skip


def test_the_name_of_a_known_release_is_not_for_others():
    with pytest.raises(HostileTorrent):
        resolve_source(f"magnet:?xt=urn:btih:{'0' * 40}&dn=MIXTRAL-8x22B")
    refuse_impostor("mixtral-8x22b", find_release("mixtral-8x22b"))
