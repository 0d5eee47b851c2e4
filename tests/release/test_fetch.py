"""From a link to a folder: good ways, interrupted ways, bad peers, and what is in the way."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from moetool.errors import (
    DigestMismatch,
    HostileTorrent,
    LockHeld,
    MetadataTimeout,
    NoRoomOnDisk,
    OutputExists,
    Stalled,
)
from moetool.release import last_fetched
from moetool.release.fetch import fetch
from moetool.release.fixture import find_fixture
from moetool.release.magnet import Magnet, format_magnet
from moetool.release.pieces import ends_of
from moetool.release.provenance import locked
from moetool.release.source import resolve_source
from moetool.release.torrent.metainfo import TorrentFile
from moetool.release.torrent.serve import seed
from moetool.release.verify.settle import Word
from tests.peers import silent_peer
from tests.release.conftest import FETCH, torrent_by_libtorrent


def test_a_magnet_becomes_a_folder_whose_every_byte_was_hashed(release, options, tmp_path):
    out = tmp_path / "out"
    with seed(release.torrent, release.folder) as peer:
        report = fetch(resolve_source(release.magnet), out, options(peer))
    assert release.same_as(out)
    assert report.verification.verdict is Word.MATCH
    assert report.payload >= release.meta.nbytes
    assert not (tmp_path / "out.partial").exists()
    assert last_fetched() == out
    assert {path.name for path in out.iterdir()} == {
        ".moetool", "RELEASE", "consolidated.00.pth", "params.json", "tokenizer.model",
    }  # fmt: skip


def test_the_default_folder_is_the_name_in_the_torrent(release, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with seed(release.torrent, release.folder) as peer:
        report = fetch(resolve_source(str(release.torrent)), None, options(peer))
    assert report.path == tmp_path / "tiny"
    assert release.same_as(tmp_path / "tiny")


def test_a_record_of_the_origin_and_the_digests_is_left(release, options, tmp_path):
    out = tmp_path / "out"
    text = f"{release.magnet} RELEASE {release.release_md5}"
    with seed(release.torrent, release.folder) as peer:
        report = fetch(resolve_source(text), out, options(peer))
    record = json.loads((out / ".moetool/release.json").read_text())
    assert record["info_hashes"] == [release.meta.info_hash]
    assert record["release_md5"] == release.release_md5
    digests = json.loads((out / ".moetool/digests.json").read_text())["files"]
    assert set(digests) == {file.path for file in release.meta.files}
    assert any("post" in cover.reference for file in report.verification.files
               for cover in file.coverage)  # fmt: skip


def test_trackers_that_were_mangled_are_repaired_and_asked(release, options, tracker, tmp_path):
    """Only the tracker knows the seeder, and only the repaired link knows the tracker."""
    port = tracker.server_port
    mangled = [
        f"http%3A%2F%http://2F127.0.0.1%3A{port}%2Fannounce",
        f"http%3A%2F%http://2f127.0.0.1/%3A{port}%2Fannounce",
        f"http%3a%2f-tp%3a%2f%2f2F127.0.0.1%3a{port}%2fannounce",
    ]
    with seed(release.torrent, release.folder) as peer:
        tracker.peers.append((peer.host, peer.port))
        for number, form in enumerate(mangled):
            out = tmp_path / f"out{number}"
            report = fetch(resolve_source(f"{release.magnet}&tr={form}"), out, options())
            assert release.same_as(out)
            assert [entry.tracker for entry in report.repairs.trackers] == [tracker.url]
    assert len(tracker.asked) >= len(mangled)


def test_a_peer_that_the_link_names_is_called(release, options, tmp_path, monkeypatch):
    """x.pe; only for this test is the loopback address one of the open internet."""
    monkeypatch.setattr("moetool.release.source._may_be_called", lambda _address: True)
    with seed(release.torrent, release.folder) as peer:
        fetch(resolve_source(f"{release.magnet}&x.pe={peer.peer}"), tmp_path / "out", options())
    assert release.same_as(tmp_path / "out")


def test_a_link_does_not_make_us_knock_at_doors_of_our_own_network(release, options, tmp_path):
    with silent_peer(release.meta.info_hash) as service:
        link = f"{release.magnet}&x.pe={service.host}:{service.port}"
        with pytest.raises(MetadataTimeout, match="nobody is known"):
            fetch(resolve_source(link), tmp_path / "out", options(metadata_timeout_s=1.5))
        assert service.met == []


def test_a_complete_folder_is_hashed_and_left_alone(release, options, tmp_path):
    out = tmp_path / "out"
    with seed(release.torrent, release.folder) as peer:
        fetch(resolve_source(release.magnet), out, options(peer))
    again = fetch(resolve_source(release.magnet), out, options())  # nobody is there any more
    assert again.already_complete
    assert again.payload == 0
    assert not (tmp_path / "out.partial").exists()


def _flip(path):
    data = bytearray(path.read_bytes())
    data[700_000] ^= 1
    path.write_bytes(data)


def _zero(path):
    path.write_bytes(path.read_bytes()[:400_000] + bytes(path.stat().st_size - 400_000))


def _lengthen(path):
    path.write_bytes(path.read_bytes() + b"more")


@pytest.mark.parametrize(
    ("damage", "at_least"),
    [
        (_flip, 48),
        (_zero, 12),
        (_lengthen, 49),
        (lambda path: path.write_bytes(path.read_bytes()[:400_000]), 12),
        (lambda path: path.write_bytes(b""), 3),
        (lambda path: path.unlink(), 3),
    ],
    ids=["flipped", "zeroed", "longer", "truncated", "emptied", "gone"],
)
def test_only_damaged_pieces_are_fetched_again(release, options, tmp_path, damage, at_least):
    out = tmp_path / "out"
    with seed(release.torrent, release.folder) as peer:
        fetch(resolve_source(release.magnet), out, options(peer))
        damage(out / "consolidated.00.pth")
        report = fetch(resolve_source(release.magnet), out, options(peer))
    assert release.same_as(out)
    assert at_least <= report.pieces_kept <= report.pieces
    lost = report.pieces - report.pieces_kept
    assert report.payload <= lost * release.meta.piece_length
    assert not (tmp_path / "out.partial").exists()


def test_after_kill_9_verified_pieces_are_not_fetched_again(make_release, options, tmp_path):
    release, out = make_release(nbytes=6_000_000), tmp_path / "out"
    with seed(release.torrent, release.folder) as peer:
        words = [sys.executable, "-c", FETCH, release.magnet, str(out), str(peer.port), "1500000"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
            done = 0
            for line in child.stdout:
                stage, pieces = line.split()
                done = int(pieces) if stage == "download" else done
                if done > 60:
                    break
            child.send_signal(signal.SIGKILL)
        assert child.returncode == -signal.SIGKILL
        assert not out.exists()
        report = fetch(resolve_source(release.magnet), out, options(peer))
    assert release.same_as(out)
    assert report.pieces_kept >= 0.95 * done
    assert report.payload <= (report.pieces - report.pieces_kept + 1) * release.meta.piece_length


def _rotten_copy(release, folder):
    """The same files, with every piece of the weights wrong."""
    copy = folder / release.folder.name
    shutil.copytree(release.folder, copy)
    rotten = bytearray((copy / "consolidated.00.pth").read_bytes())
    rotten[::5000] = bytes(byte ^ 0x55 for byte in rotten[::5000])
    (copy / "consolidated.00.pth").write_bytes(rotten)
    return copy


def test_a_corrupt_and_a_dying_seeder_end_in_the_right_bytes(
    make_release, seeders, options, tmp_path
):
    """One peer serves bad pieces all the time; the other dies halfway and comes back later."""
    release, out = make_release(nbytes=4_000_000), tmp_path / "out"
    data, evil = release.torrent.read_bytes(), _rotten_copy(release, tmp_path / "evil")
    stages = []
    with (
        seeders(data, evil, disable_hash_checks=True) as corrupt,
        seeders(data, release.folder, upload_limit=1_000_000) as dying,
        contextlib.ExitStack() as later,
    ):

        def die_and_come_back():
            time.sleep(1.5)
            dying.session.remove_torrent(dying.handle)
            dying.session.apply_settings({"listen_interfaces": ""})
            time.sleep(2.0)
            stages.append("dead")
            here = {"listen_interfaces": f"127.0.0.1:{dying.port}"}
            later.enter_context(seeders(data, release.folder, **here))

        thread = threading.Thread(target=die_and_come_back)
        thread.start()
        swarm = options(corrupt, dying, rejoin_after_s=1.5, stall_timeout_s=60)
        report = fetch(resolve_source(release.magnet), out, swarm)
        thread.join()
    assert stages == ["dead"]
    assert release.same_as(out)
    assert report.verification.verdict is Word.MATCH
    assert (corrupt.host, corrupt.port) in report.banned
    assert report.payload > release.meta.nbytes  # what the corrupt one gave was thrown away


def test_a_seeder_that_lies_is_named_and_no_bad_byte_is_published(
    release, seeders, options, tmp_path
):
    evil, out = _rotten_copy(release, tmp_path / "evil"), tmp_path / "out"
    with seeders(release.torrent.read_bytes(), evil, disable_hash_checks=True) as corrupt:
        swarm, told = options(corrupt, rejoin_after_s=1, stall_timeout_s=6), []
        with pytest.raises(Stalled, match="bad pieces") as caught:
            fetch(
                resolve_source(release.magnet), out, swarm,
                on_progress=lambda now: told.append(now.told) if now.told else None,
            )  # fmt: skip
    assert not out.exists()
    assert "cause: all-banned" in caught.value.findings
    assert (
        told.count("tried: joined anew without the ban list; each banned peer is asked alone") == 1
    )


def test_without_peers_the_reason_is_told(release, options, tracker, tmp_path):
    """An info-hash that nobody has: silence is not an answer."""
    magnet = format_magnet(Magnet("ab" * 20, name="nobody", trackers=(tracker.url,)))
    with pytest.raises(MetadataTimeout, match="0 peers, 1 of 1 trackers answered, DHT is off"):
        fetch(resolve_source(magnet), tmp_path / "out", options(metadata_timeout_s=1.5))
    assert list(tmp_path.glob("out*")) == []


def test_when_the_last_peer_leaves_the_download_stalls_and_is_kept(
    make_release, seeders, options, tmp_path
):
    release, out = make_release(nbytes=4_000_000), tmp_path / "out"
    data = release.torrent.read_bytes()
    with seeders(data, release.folder, upload_limit=1_000_000) as peer:

        def leave_early(progress):
            if progress.pieces_done > 10 and peer.handle.is_valid():
                peer.session.remove_torrent(peer.handle)

        with pytest.raises(Stalled, match="0 peers"):
            fetch(
                resolve_source(str(release.torrent)), out, options(peer, stall_timeout_s=3),
                on_progress=leave_early,
            )  # fmt: skip
    assert not out.exists()
    with seed(release.torrent, release.folder) as peer:
        report = fetch(resolve_source(release.magnet), out, options(peer))
    assert release.same_as(out)
    assert report.pieces_kept > 10


def test_a_second_fetch_of_the_same_folder_names_the_first(release, options, tmp_path):
    out = tmp_path / "out"
    with locked(tmp_path / "out.partial"), pytest.raises(LockHeld, match=str(os.getpid())):
        fetch(resolve_source(str(release.torrent)), out, options())


def test_a_folder_of_somebody_else_is_not_touched(release, make_release, options, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(OutputExists):
        fetch(resolve_source(str(release.torrent)), out, options())
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    other = make_release(name="other", seed=1)
    with seed(other.torrent, other.folder) as peer:
        fetch(resolve_source(other.magnet), tmp_path / "another", options(peer))
    with pytest.raises(OutputExists, match="other"):
        fetch(resolve_source(str(release.torrent)), tmp_path / "another", options())
    assert other.same_as(tmp_path / "another")


def test_too_little_room_is_refused_before_the_first_byte(release, options, tmp_path, monkeypatch):
    monkeypatch.setattr("moetool.release.fetch.bytes_free", lambda _: release.meta.nbytes // 2)
    with pytest.raises(NoRoomOnDisk, match=str(release.meta.nbytes)):
        fetch(resolve_source(str(release.torrent)), tmp_path / "out", options())
    assert not (tmp_path / "out.partial" / "consolidated.00.pth").exists()


def test_a_file_that_cannot_grow_ends_the_download_within_seconds(release, options, tmp_path):
    """A full disk is one alert and then silence; to libtorrent a limit on sizes is the same."""
    with seed(release.torrent, release.folder) as peer:
        words = [sys.executable, "-c", FETCH, release.magnet, str(tmp_path / "out"),
                 str(peer.port), "0"]  # fmt: skip
        began = time.monotonic()
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=60, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)),
        )  # fmt: skip
    assert time.monotonic() - began < 15
    assert "NoRoomOnDisk" in done.stderr
    assert re.search(r"\d+ bytes are still to come", done.stderr)
    assert not (tmp_path / "out").exists()


def test_a_digest_of_the_post_that_differs_is_a_mismatch(release, options, tmp_path):
    out, text = tmp_path / "out", f"{release.magnet} RELEASE {'0' * 32}"
    with seed(release.torrent, release.folder) as peer, pytest.raises(DigestMismatch) as caught:
        fetch(resolve_source(text), out, options(peer))
    assert "post" in caught.value.findings[0]
    assert not out.exists()


def test_a_wrong_digest_does_not_take_a_complete_folder_back(release, options, tmp_path):
    out, text = tmp_path / "out", f"{release.magnet} RELEASE {'0' * 32}"
    with seed(release.torrent, release.folder) as peer:
        fetch(resolve_source(release.magnet), out, options(peer))
    with pytest.raises(DigestMismatch):
        fetch(resolve_source(text), out, options())
    assert release.same_as(out)


def test_a_torrent_under_the_name_of_a_known_release_is_refused(make_release, options, tmp_path):
    fake = make_release(name="mixtral-8x7b-32kseqlen")
    with pytest.raises(HostileTorrent, match="5546272d"):
        fetch(resolve_source(str(fake.torrent)), tmp_path / "out", options())


def test_the_ends_of_files_are_known_in_every_form_of_torrent(release):
    """v1 pieces run across files, those of v2 do not; padding has no ends."""
    length = release.meta.piece_length
    assert ends_of(release.meta) == {
        "RELEASE": {0}, "consolidated.00.pth": {0, 1, 2, 42, 43, 44, 45}, "params.json": {45},
        "tokenizer.model": {45, 48},
    }  # fmt: skip
    files = (TorrentFile(("a",), 0, length + 1), TorrentFile(("b",), length + 1, 5))
    v2 = replace(release.meta, pieces=b"", files=files)
    assert ends_of(v2) == {"a": {0, 1}, "b": {2}}
    padded = (files[0], TorrentFile((".pad", "1"), length + 1, length - 1, pad=True),
              TorrentFile(("b",), 2 * length, 5))  # fmt: skip
    assert ends_of(replace(release.meta, files=padded)) == {"a": {0, 1}, "b": {2}}


@pytest.mark.parametrize(
    ("kind", "link"),
    [("v2", "btmh"), ("hybrid", "both"), ("hybrid", "btih"), ("hybrid", "btmh")],
)
def test_v2_and_hybrid_torrents_are_fetched_and_proven(release, options, tmp_path, kind, link):
    torrent, out = tmp_path / "v2.torrent", tmp_path / "out"
    torrent.write_bytes(torrent_by_libtorrent(release.folder, kind))
    meta = resolve_source(str(torrent)).meta
    v1 = None if link == "btmh" else meta.info_hash
    v2 = None if link == "btih" else meta.info_hash_v2
    magnet = format_magnet(Magnet(v1, v2, meta.name))
    with seed(torrent, release.folder) as peer:
        fetch(resolve_source(magnet), out, options(peer))
        _flip(out / "consolidated.00.pth")
        report = fetch(resolve_source(magnet), out, options(peer))
    assert release.same_as(out)
    assert report.verification.verdict is Word.MATCH


@pytest.mark.parametrize("form", ["clean", "A", "B", "C", "D", "post"])
def test_the_trained_release_arrives_by_every_form_of_its_link(form, options, tmp_path):
    """The link as published, as four places mangle it, and as pasted with the text around it."""
    fixture, out = find_fixture(), tmp_path / "out"
    source = resolve_source(json.loads(fixture.magnets.read_text("utf-8"))[form])
    with seed(fixture.torrent, fixture.directory) as peer:
        report = fetch(source, out, options(peer))
    assert report.verification.verdict is Word.MATCH
    assert len(report.repairs.trackers) == (0 if form == "clean" else 2)
    assert all(entry.tracker for entry in report.repairs.trackers)
    for path in fixture.directory.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
