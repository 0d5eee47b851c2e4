"""Swarms in which nothing moves: each is told apart from the others, in one line."""

from __future__ import annotations

import contextlib
import shutil
import socket
from types import SimpleNamespace

import pytest

from moetool.errors import MetadataTimeout, Stalled, SystemFault
from moetool.release.fetch import fetch
from moetool.release.magnet import Magnet, format_magnet
from moetool.release.source import resolve_source
from moetool.release.torrent import download
from moetool.release.torrent.doctor import Remedy
from moetool.release.torrent.download import Stay
from moetool.release.torrent.session import Swarm, look_closer
from moetool.release.torrent.watch import Sample
from tests.peers import silent_peer
from tests.web_seed import serving_web_seed


@pytest.fixture
def stalls(release, options, told, tmp_path):
    """Fetch what will not come; the error, and what was said before."""

    def run(*seeds, source=None, kind=Stalled, **more):
        times = {"rejoin_after_s": 1.5, "stall_timeout_s": 4, "metadata_timeout_s": 3, **more}
        where = resolve_source(source or str(release.torrent))
        with pytest.raises(kind) as caught:
            fetch(where, tmp_path / "out", options(*seeds, **times), on_progress=told)
        assert not (tmp_path / "out").exists()
        assert caught.value.hint
        return caught.value, told.lines

    return run


class _Heard(Exception):
    pass


@pytest.fixture
def heard(release, options, monkeypatch, tmp_path):
    """Fetch what will not come until some words are the reason, however long that takes."""
    monkeypatch.setattr(download, "NOTE_AFTER_S", 0.0)

    def run(words, *seeds, source=None):
        def hear(progress):
            if words in progress.note:
                raise _Heard

        # So that neither uTP is tried nor the end comes before the words.
        times = {"rejoin_after_s": 99, "stall_timeout_s": 60, "metadata_timeout_s": 60}
        where = resolve_source(source or str(release.torrent))
        with pytest.raises(_Heard):
            fetch(where, tmp_path / "out", options(*seeds, **times), on_progress=hear)

    return run


def test_a_dead_tracker(release, stalls, closed_port):
    url = f"http://127.0.0.1:{closed_port}/announce"
    source = f"{release.magnet}&tr=http%3A%2F%2F127.0.0.1%3A{closed_port}%2Fannounce"
    error, told = stalls(source=source, kind=MetadataTimeout)
    assert "no tracker answered (Connection refused): 0 peers, 0 of 1" in error.what
    assert error.findings == ("cause: no-tracker", f"tracker {url}: Connection refused")
    assert any(line.startswith("nothing comes: no tracker answered") for line in told)


def test_a_tracker_that_names_peers_that_are_not_there(stalls, tracker, closed_port):
    tracker.peers.append(("127.0.0.1", closed_port))
    error, told = stalls(trackers=(tracker.url,))
    assert "1 peer known, none can be reached (Connection refused)" in error.what
    assert "1 of 1 trackers answered" in error.what
    assert error.hint.startswith("open a port with --port")
    assert f"tried: {Remedy.UTP.value}" in error.findings
    assert f"tried: {Remedy.UTP.value}" in told


def test_a_peer_that_is_reached_by_utp_only_is_reached(release, seeders, options, told, tmp_path):
    data = release.torrent.read_bytes()
    with seeders(data, release.folder, enable_incoming_tcp=False) as peer:
        swarm = options(peer, rejoin_after_s=1.5)
        fetch(resolve_source(str(release.torrent)), tmp_path / "out", swarm, on_progress=told)
    assert release.same_as(tmp_path / "out")
    assert f"tried: {Remedy.UTP.value}" in told.lines


@contextlib.contextmanager
def _partial_seed(release, options, tmp_path, without, *, wants=True):
    """A peer that has all pieces but those."""
    folder = tmp_path / "copy" / release.folder.name
    shutil.copytree(release.folder, folder)
    with Swarm(options()) as swarm:
        here = {"listen_interfaces": "127.0.0.1:0", "enable_incoming_tcp": True}
        swarm.session.apply_settings(here)
        wanted = None if wants else [0] * 50
        stay = Stay(swarm, release.meta, folder, lambda _: None, wanted)
        stay.join([index not in without for index in range(50)])
        while not swarm.session.is_listening():
            swarm.session.wait_for_alert(20)
            swarm.session.pop_alerts()
        yield SimpleNamespace(host="127.0.0.1", port=swarm.session.listen_port())


def test_a_swarm_that_lacks_pieces(release, heard, options, tmp_path):
    with _partial_seed(release, options, tmp_path, without={12, 40}) as peer:
        heard("nobody has 2 pieces (12, 40), together they hold 96% of one copy: 1 peer", peer)
    assert (tmp_path / "out.partial").is_dir()  # the 48 others are kept


def test_a_peer_that_has_nothing_more_for_us(release, heard, options, tmp_path):
    """It does not want anything either: libtorrent hangs up, which is no fault of the line."""
    with _partial_seed(release, options, tmp_path, without={7}, wants=False) as peer:
        heard("1 peer came and had none of the pieces that lack: 0 peers", peer)


def test_metadata_that_is_too_large(release, heard):
    says = {b"m": {b"ut_metadata": 3}, b"metadata_size": 99_000_000}
    words = "the metadata has 99000000 bytes, more than the 31457280"
    with silent_peer(release.meta.info_hash, extended=says) as peer:
        heard(words, peer, source=release.magnet)


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ({b"m": {}}, "who is here does not have the metadata either: 1 peer"),
        ({b"m": {b"ut_metadata": 3}, b"metadata_size": 1000}, "does not send the metadata"),
    ],
)
def test_metadata_that_never_comes(release, heard, says, words):
    with silent_peer(release.meta.info_hash, extended=says) as peer:
        heard(words, peer, source=release.magnet)


@pytest.mark.parametrize(
    ("unchoke", "words"),
    [(True, "they are connected and send nothing"), (False, "we wait in their queue")],
)
def test_a_seeder_that_stalls(release, heard, unchoke, words):
    with silent_peer(release.meta.info_hash, n_pieces=49, unchoke=unchoke) as peer:
        heard(f"{words}: 1 peer, 1 of them seeds", peer)


def test_a_web_seed_that_ignores_ranges_is_left_out(make_release, stalls):
    release = make_release(name="long", nbytes=(16 << 20) + 9, piece_length=1 << 20)
    with serving_web_seed(release.folder.parent, ranges=False) as server:
        error, told = stalls(source=str(release.torrent), web_seeds=(server.url,))
    assert "the web seed http://127.0.0.1" in error.what
    assert "does not serve ranges" in error.what
    assert any(line.startswith("a web seed is left out: http://127.0.0.1") for line in told)
    assert ("/long/consolidated.00.pth", "bytes=0-0") in server.asked


def test_a_web_seed_with_other_files_is_left_out(make_release, release, stalls):
    other = make_release(name="other", nbytes=1_400_000)
    other.folder.rename(other.folder.with_name("served"))
    (other.folder.parent / "elsewhere").mkdir()
    other.folder.with_name("served").rename(other.folder.parent / "elsewhere" / "tiny")
    with serving_web_seed(other.folder.parent / "elsewhere") as server:
        error, _ = stalls(web_seeds=(server.url,))
    assert "has 1400000 bytes, the torrent says 1500000" in error.what


def test_a_web_seed_alone_is_enough_once_the_metadata_is_known(release, options, told, tmp_path):
    """BEP 19; a link alone does not do: no server tells the metadata."""
    with serving_web_seed(release.folder.parent) as server:
        swarm = options(web_seeds=(server.url,))
        fetch(resolve_source(str(release.torrent)), tmp_path / "out", swarm, on_progress=told)
    assert release.same_as(tmp_path / "out")
    assert told.lines == []
    assert all(asked for _, asked in server.asked)


def test_a_peer_of_another_torrent(release, heard):
    """It hangs up: known, and not reached."""
    with silent_peer("ab" * 20) as peer:
        heard("1 peer known, none can be reached", peer)


def test_a_port_in_use_is_named(release, options, tmp_path):
    with socket.create_server(("0.0.0.0", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(SystemFault, match=f"port {port}") as caught:
            fetch(resolve_source(release.magnet), tmp_path / "out", options(port=port))
    assert "--port" in caught.value.hint


def test_a_link_whose_hash_nobody_has(stalls):
    error, told = stalls(source=format_magnet(Magnet("cd" * 20)), kind=MetadataTimeout)
    assert "nobody is known who has it: 0 peers, no trackers, DHT is off" in error.what
    assert len(told) == 1


class _Counting:
    """A status whose list of pieces is made anew each time it is asked for, as libtorrent's is."""

    n_made = 0

    @property
    def pieces(self):
        self.n_made += 1
        return [index % 3 == 0 for index in range(20_000)]


class _Handle:
    def get_peer_info(self):
        return []

    def get_piece_priorities(self):
        return [index % 2 for index in range(20_000)]

    def piece_availability(self):
        return [index % 5 == 0 for index in range(20_000)]


def test_what_lacks_of_a_large_torrent_is_found_at_once():
    """The list of 20,000 pieces was made for each of them once: seconds at each silent look."""
    status, sample = _Counting(), Sample(now_s=0.0, peers=1, availability=0.2)
    lacking = look_closer(sample, _Handle(), status).lacking
    assert lacking == tuple(i for i in range(20_000) if i % 2 and i % 3 and i % 5)
    assert status.n_made == 1
