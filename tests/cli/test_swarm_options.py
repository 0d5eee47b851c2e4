"""The options of the swarm: what they mean, and that all commands of the swarm take them alike."""

from __future__ import annotations

import pytest

from moetool.cli.options import typed_command
from moetool.cli.swarm_options import SwarmWords, proxy_of
from moetool.errors import UsageFault
from moetool.release.torrent.profile import Proxy, SwarmOptions, profile
from moetool.release.torrent.serve import seed
from tests.peers import Leecher
from tests.proxies import OUT, serving_proxy

NOWHERE = "magnet:?xt=urn:btih:" + "ab" * 20


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("socks5://127.0.0.1", Proxy("socks5", "127.0.0.1", 1080)),
        ("socks5h://tor.lan:9050", Proxy("socks5", "tor.lan", 9050)),
        ("http://proxy:3128/", Proxy("http", "proxy", 3128)),
        ("http://proxy", Proxy("http", "proxy", 8080)),
        ("socks5://me:p%40ss@[::1]:9", Proxy("socks5", "::1", 9, "me", "p@ss")),
    ],
)
def test_a_proxy_as_it_is_typed(url, proxy):
    assert proxy_of(url) == proxy


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:1080", "ftp://a:1", "https://a:1", "socks4://a:1", "socks5://", "socks5://a:99999",
     "socks5://a:0", "http://me:secret@a:1/path", "http://me:secret@a:1?x", "http://[::1"],
)  # fmt: skip
def test_what_is_no_proxy_is_refused_and_no_password_repeated(url):
    with pytest.raises(UsageFault) as caught:
        proxy_of(url)
    assert "secret" not in f"{caught.value} {caught.value.hint}"
    assert caught.value.hint


def test_the_words_become_options():
    words = SwarmWords(
        tracker=["udp://a:1/announce"], peer=["[::1]:5"], max_down=1.5, max_up=0.25, timeout=7,
        no_dht=True, encryption="require", ipv6=False, interface="tun0",
    )  # fmt: skip
    assert words.options(("http://w/",)) == SwarmOptions(
        peers=(("::1", 5),), trackers=("udp://a:1/announce",), web_seeds=("http://w/",),
        max_down=1_500_000, max_up=250_000, encryption="require", ipv6=False, interface="tun0",
        dht=False, metadata_timeout_s=7, stall_timeout_s=7,
    )  # fmt: skip


def test_nothing_is_asked_around_a_proxy():
    found = SwarmWords(proxy="socks5://a:1").options()
    assert not found.dht
    settings = profile(found)
    open_ways = ("enable_dht", "enable_lsd", "enable_upnp", "enable_natpmp", "enable_incoming_tcp",
                 "enable_incoming_utp", "enable_outgoing_utp")  # fmt: skip
    assert {name: settings[name] for name in open_ways} == dict.fromkeys(open_ways, False)
    ways = ("proxy_peer_connections", "proxy_tracker_connections", "proxy_hostnames")
    assert all(settings[name] for name in ways)


@pytest.mark.parametrize(
    ("words", "listening"),
    [
        ({}, "0.0.0.0:0,[::]:0"),
        ({"ipv6": False}, "0.0.0.0:0"),
        ({"interface": "tun0", "port": 7}, "tun0:7"),
        ({"interface": "fe80::1"}, "[fe80::1]:0"),
    ],
)
def test_where_connections_begin(words, listening):
    settings = profile(SwarmWords(**words).options())
    assert settings["listen_interfaces"] == listening
    assert settings["outgoing_interfaces"] == words.get("interface", "")


@pytest.mark.parametrize("command", ["fetch", "inspect", "repair", "seed"])
@pytest.mark.parametrize(
    "words",
    [
        ["--proxy", "nonsense"],
        ["--encryption", "perhaps"],
        ["--interface", "no such"],
        ["--tracker", "ftp://a:1/"],
        ["--peer", "localhost"],
    ],
)
def test_what_cannot_be_meant_is_2(command, words, moetool, published):
    has_folder = command in {"repair", "seed"}
    source = published.folder if has_folder else NOWHERE
    more = ["--torrent", published.torrent] if has_folder else []
    moetool(command, source, *more, *words, check=2)


def test_what_contradicts_itself_is_2(moetool, published):
    done = moetool("fetch", NOWHERE, "--proxy", "socks5://a:1", "--port", "6881", check=2)
    assert "hint: leave out --port, or --proxy" in done.stderr
    moetool("inspect", published.folder, "--no-ipv6", check=2)
    moetool("inspect", "https://127.0.0.1/x.pth", "--proxy", "socks5://a:1", check=2)
    door = ["seed", published.folder, "--bind", "127.0.0.1"]
    for way in (["--proxy", "socks5://a:1"], ["--interface", "lo"]):
        assert "--bind opens a door" in moetool(*door, *way, check=2).stderr


def test_fetch_inspect_and_repair_go_through_a_proxy(moetool, published, tmp_path):
    weights = tmp_path / "here" / "consolidated.00.pth"
    with seed(published.torrent, published.folder) as seeder, serving_proxy("socks5") as proxy:
        way = ["--peer", seeder.peer, "--no-dht", "--proxy", f"socks5://127.0.0.1:{proxy.port}"]
        steps = [
            ["inspect", published.torrent, *way],
            ["fetch", published.torrent, "--out", "here", *way],
            ["repair", "here", *way],
        ]
        for words in steps:
            proxy.asked.clear()
            moetool(*words, check=0)
            assert set(proxy.asked) == {(seeder.host, seeder.port)}, words
            if words[0] == "fetch":
                content = bytearray(weights.read_bytes())
                content[9_000] ^= 1
                weights.write_bytes(content)
    assert weights.read_bytes() == (published.folder / weights.name).read_bytes()


def test_a_seed_goes_through_a_proxy(moetool, published, tmp_path):
    """It calls; who is called sees the proxy."""
    leecher = Leecher(published.torrent, tmp_path)
    with serving_proxy("socks5") as proxy:
        way = ["--proxy", f"socks5://127.0.0.1:{proxy.port}", "--peer", f"127.0.0.1:{leecher.port}"]
        limits = ["--no-dht", "--ratio", "0.9", "--time", "1"]
        told = moetool("seed", published.folder, *way, *limits, check=0)
    assert "the end by ratio" in told.stdout
    assert f"seeding {published.folder.name} at nowhere: peers are called through" in told.stderr
    assert leecher.met() == {OUT}


def test_the_command_to_run_again_does_not_repeat_a_password(monkeypatch):
    words = ["fetch", "a b", "--proxy", "socks5://me:s@e:cret@h:1", "--tracker", "http://h/x"]
    monkeypatch.setattr("sys.argv", ["moetool", *words])
    said = typed_command()
    assert said == "moetool fetch 'a b' --proxy 'socks5://me:…@h:1' --tracker http://h/x"
