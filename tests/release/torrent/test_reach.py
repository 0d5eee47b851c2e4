"""How the swarm is reached: through a proxy, encrypted, over IPv6, from one interface."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from moetool.errors import Interrupted, MetadataTimeout, Stalled
from moetool.release.fetch import fetch
from moetool.release.source import resolve_source
from moetool.release.torrent.doctor import Remedy
from moetool.release.torrent.download import Stay
from moetool.release.torrent.profile import Proxy
from moetool.release.torrent.session import Swarm
from tests.proxies import OUT, serving_proxy
from tests.web_seed import serving_web_seed

QUICK = {"stall_timeout_s": 4, "metadata_timeout_s": 4}


@contextlib.contextmanager
def watched(peer):
    """Who is connected to a seeder, and by which flags, as it sees them itself."""
    seen, done = {}, threading.Event()

    def look():
        while not done.wait(0.01):
            for other in peer.handle.get_peer_info():
                seen[other.ip[0]] = seen.get(other.ip[0], 0) | other.flags

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def udp_ear():
    """A UDP port that only listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear:
        ear.bind(("127.0.0.1", 0))
        ear.setblocking(False)
        heard = []

        def take():
            with contextlib.suppress(BlockingIOError):
                while True:
                    heard.append(ear.recvfrom(2048))

        ear_port = ear.getsockname()[1]
        yield ear_port, heard
        take()


@pytest.mark.parametrize("kind", ["socks5", "http"])
def test_all_goes_through_a_proxy(kind, release, seeders, options, tracker, tmp_path):
    """Peers, trackers and the names of trackers; the seeder sees the proxy and nobody else."""
    data, out = release.torrent.read_bytes(), tmp_path / "out"
    name = "tracker.invalid"
    link = f"{release.magnet}&tr=http%3A%2F%2F{name}%3A{tracker.server_port}%2Fannounce"
    with (
        seeders(data, release.folder, upload_limit=1_000_000) as peer,
        serving_proxy(kind, names={name: "127.0.0.1"}) as proxy,
        watched(peer) as seen,
    ):
        tracker.peers.append((peer.host, peer.port))
        swarm = options(proxy=Proxy(kind, "127.0.0.1", proxy.port))
        report = fetch(resolve_source(link), out, swarm)
    assert release.same_as(out)
    assert report.payload >= release.meta.nbytes
    assert set(seen) == {OUT}
    assert {(name, tracker.server_port), (peer.host, peer.port)} <= set(proxy.asked)


@pytest.mark.parametrize("kind", ["socks5", "http"])
def test_web_seeds_go_through_a_proxy_too(kind, release, options, tmp_path):
    """Also our own question, whether it serves ranges, does not go around: it is not asked."""
    with serving_web_seed(release.folder.parent) as server, serving_proxy(kind) as proxy:
        way = Proxy(kind, "127.0.0.1", proxy.port)
        swarm = options(web_seeds=(server.url,), proxy=way)
        fetch(resolve_source(str(release.torrent)), tmp_path / "out", swarm)
    assert release.same_as(tmp_path / "out")
    assert server.clients == {OUT}


@pytest.mark.parametrize("kind", ["socks5", "http"])
def test_nothing_goes_around_a_proxy_that_carries_no_udp(kind, release, options, tmp_path):
    """Neither to a tracker that speaks UDP, nor by uTP to a peer, nor to the DHT."""
    with udp_ear() as (port, heard), serving_proxy(kind) as proxy:
        link = f"{release.magnet}&tr=udp%3A%2F%2F127.0.0.1%3A{port}%2Fannounce"
        swarm = options(
            SimpleNamespace(host="127.0.0.1", port=port),
            proxy=Proxy(kind, "127.0.0.1", proxy.port),
            rejoin_after_s=0.5,
            **QUICK,
        )
        with pytest.raises(MetadataTimeout, match="all through the proxy") as caught:
            fetch(resolve_source(link), tmp_path / "out", swarm)
        assert "1 peer known, none can be reached" in caught.value.what
        assert proxy.asked
    assert heard == []


def test_a_proxy_that_carries_udp_is_used_for_it(release, seeders, options, told, tmp_path):
    """A peer that is reached by uTP only is reached, and sees the proxy."""
    data = release.torrent.read_bytes()
    with (
        seeders(data, release.folder, enable_incoming_tcp=False) as peer,
        serving_proxy("socks5", udp=True) as proxy,
        watched(peer) as seen,
    ):
        way = Proxy("socks5", "127.0.0.1", proxy.port)
        swarm = options(peer, proxy=way, rejoin_after_s=1.5)
        fetch(resolve_source(str(release.torrent)), tmp_path / "out", swarm, on_progress=told)
    assert release.same_as(tmp_path / "out")
    assert set(seen) == {OUT}
    assert proxy.asked_udp == {(peer.host, peer.port)}
    assert f"tried: {Remedy.UTP.value}" in told.lines


def test_a_tracker_that_speaks_udp_is_asked_through_the_proxy(release, options, tmp_path):
    """Its name too; the first question comes before the proxy is ready, and is asked again."""
    name = "tracker.invalid"
    with udp_ear() as (port, heard), serving_proxy("socks5", udp=True,
                                                   names={name: "127.0.0.1"}) as proxy:  # fmt: skip
        link = f"{release.magnet}&tr=udp%3A%2F%2F{name}%3A{port}%2Fannounce"

        def until_it_was(_):
            if proxy.asked_udp:
                raise KeyboardInterrupt

        swarm = options(proxy=Proxy("socks5", "127.0.0.1", proxy.port))
        with pytest.raises(Interrupted):
            fetch(resolve_source(link), tmp_path / "out", swarm, on_progress=until_it_was)
    assert {host for _, (host, _) in heard} == {OUT}
    assert proxy.asked_udp == {(name, port)}


def test_without_a_proxy_the_same_is_heard(release, options, tmp_path):
    """The ear of the test before hears: else its silence would mean nothing."""
    with udp_ear() as (port, heard):
        link = f"{release.magnet}&tr=udp%3A%2F%2F127.0.0.1%3A{port}%2Fannounce"
        with pytest.raises(MetadataTimeout):
            fetch(resolve_source(link), tmp_path / "out", options(metadata_timeout_s=1.5))
    assert heard


@pytest.mark.parametrize(("password", "served"), [("right", True), ("wrong", False)])
def test_a_proxy_that_wants_a_password(password, served, release, seeders, options, tmp_path):
    data, source = release.torrent.read_bytes(), resolve_source(str(release.torrent))
    with (
        seeders(data, release.folder) as peer,
        serving_proxy("socks5", login=("me", "right")) as proxy,
    ):
        way = Proxy("socks5", "127.0.0.1", proxy.port, "me", password)
        swarm = options(peer, proxy=way, **QUICK)
        if served:
            fetch(source, tmp_path / "out", swarm)
            assert release.same_as(tmp_path / "out")
        else:
            with pytest.raises(Stalled, match="the proxy does not serve us") as caught:
                fetch(source, tmp_path / "out", swarm)
            assert password not in str(caught.value)
    assert password not in repr(way)


def test_a_proxy_that_is_not_there_is_named(release, seeders, options, tmp_path):
    data = release.torrent.read_bytes()
    with seeders(data, release.folder) as peer, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        way = Proxy("socks5", "127.0.0.1", closed.getsockname()[1])
        with pytest.raises(Stalled, match=r"the proxy does not serve us \(Connection refused\)"):
            fetch(
                resolve_source(str(release.torrent)), tmp_path / "out",
                options(peer, proxy=way, **QUICK),
            )  # fmt: skip


FORCED = {"in_enc_policy": 0, "out_enc_policy": 0, "allowed_enc_level": 2}
PLAIN = {"in_enc_policy": 2, "out_enc_policy": 2}
RC4 = 1 << 19  # peer_info: rc4_encrypted


@pytest.mark.parametrize(
    ("theirs", "ours", "comes"),
    [
        (FORCED, "require", True),
        (FORCED, "allow", True),
        (FORCED, "off", False),
        (PLAIN, "allow", True),
        (PLAIN, "off", True),
        (PLAIN, "require", False),
    ],
)
def test_encryption(theirs, ours, comes, release, seeders, options, tmp_path):
    data, out = release.torrent.read_bytes(), tmp_path / "out"
    with (
        seeders(data, release.folder, upload_limit=2_000_000, **theirs) as peer,
        watched(peer) as seen,
    ):
        ending = contextlib.nullcontext() if comes else pytest.raises(Stalled)
        with ending:
            fetch(
                resolve_source(str(release.torrent)), out,
                options(peer, encryption=ours, stall_timeout_s=5 if comes else 2),
            )  # fmt: skip
    assert out.exists() is comes
    if comes:
        assert bool(seen["127.0.0.1"] & RC4) is (theirs is FORCED)


def _has_ipv6():
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.skipif(not _has_ipv6(), reason="UNTESTED: this machine has no ::1")
@pytest.mark.parametrize("ipv6", [True, False])
def test_ipv6_can_be_used_and_left_out(ipv6, release, seeders, options, tmp_path):
    data, out = release.torrent.read_bytes(), tmp_path / "out"
    with seeders(data, release.folder, listen_interfaces="[::1]:0") as peer:
        there = SimpleNamespace(host="::1", port=peer.port)
        ending = contextlib.nullcontext() if ipv6 else pytest.raises(MetadataTimeout)
        with ending:
            fetch(
                resolve_source(release.magnet), out,
                options(there, ipv6=ipv6, metadata_timeout_s=9 if ipv6 else 1.5),
            )  # fmt: skip
    assert out.exists() is ipv6


def test_one_interface_only(release, seeders, options, tmp_path):
    """Linux has all of 127/8 on one interface: by its address is seen from where we came."""
    data = release.torrent.read_bytes()
    with (
        seeders(data, release.folder, upload_limit=2_000_000) as peer,
        watched(peer) as seen,
    ):
        fetch(
            resolve_source(str(release.torrent)), tmp_path / "out",
            options(peer, interface="127.0.0.3"),
        )  # fmt: skip
    assert release.same_as(tmp_path / "out")
    assert set(seen) == {"127.0.0.3"}


def test_rates_are_limited_for_the_own_network_too(release, options, tmp_path):
    """The limits of a session do not hold for private addresses; those of a torrent do."""
    with Swarm(options(max_down=700_000, max_up=300_000)) as swarm:
        stay = Stay(swarm, release.meta, tmp_path, lambda _: None)
        stay.join(())
        assert (stay.handle.download_limit(), stay.handle.upload_limit()) == (700_000, 300_000)


def test_a_limit_is_kept(make_release, seeders, options, tmp_path):
    release = make_release(nbytes=2_000_000)
    with seeders(release.torrent.read_bytes(), release.folder) as peer:
        began = time.monotonic()
        fetch(
            resolve_source(str(release.torrent)), tmp_path / "out",
            options(peer, max_down=1_000_000),
        )  # fmt: skip
    assert time.monotonic() - began > 0.8  # by itself a tenth of it
