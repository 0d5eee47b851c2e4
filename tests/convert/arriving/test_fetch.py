"""What is converted while it comes is, byte for byte, what a conversion afterwards makes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

import pytest

from moetool.convert.arriving.fetch import Keeping, fetch_and_convert
from moetool.convert.execute.journal import read_journal
from moetool.convert.execute.manifest import MANIFEST
from moetool.errors import (
    DigestMismatch,
    NoRoomOnDisk,
    OutputExists,
    Stalled,
    SystemFault,
)
from moetool.proof.certificate.issue import Certifier
from moetool.release import last_fetched
from moetool.release.publish.run import plan
from moetool.release.publish.taken import TakenPieces
from moetool.release.source import resolve_source
from moetool.release.torrent.profile import SwarmOptions
from moetool.release.torrent.serve import seed
from moetool.release.verify.hashing import read_digests
from moetool.release.verify.settle import Word
from tests.convert.arriving.conftest import contents, wish
from tests.release.conftest import raw_seed, v1_torrent


@pytest.mark.parametrize("to", ["safetensors", "gguf"])
@pytest.mark.parametrize("keep", [True, False], ids=["keep", "no-keep"])
def test_the_bytes_are_those_of_a_conversion_afterwards(
    fixture, both, afterwards, tmp_path, to, keep
):
    raw, out = tmp_path / "raw", tmp_path / "made"
    with seed(fixture.torrent, fixture.directory) as peer:
        report = both([peer], raw, wish(to, out, keep=keep))
    made, kept = contents(out), raw.exists()
    assert kept == keep
    assert not (tmp_path / "raw.partial").exists()
    assert report.fetched.verification.verdict is Word.MATCH
    assert last_fetched() == (raw if keep else out)
    out.rename(tmp_path / "live")
    expected = afterwards(raw if keep else fixture.directory, to, out)
    # The manifest says what is known of the source: without the raw files that is less.
    described, ours = json.loads(expected.pop(MANIFEST)), json.loads(made.pop(MANIFEST))
    assert made == expected
    assert ours["plan_id"] == described["plan_id"]
    assert ours["tensors"] == described["tensors"]
    if keep:
        assert ours == described
    assert ours["source"]["info_hashes"] == list(report.fetched.info_hashes)


def test_an_output_that_is_not_the_raw_model_does_not_get_its_name(fixture, both, tmp_path):
    """A byte is flipped on the disk behind the conversion: the certificate's pass meets it."""

    def certifier(source, checkpoint, progress):
        real = Certifier(source, checkpoint, progress, cold=False)

        def spoilt(work):
            path = max(work.glob("*.gguf"))
            content = bytearray(path.read_bytes())
            content[-1000] ^= 1
            path.write_bytes(content)
            return real(work)

        return spoilt

    raw, out = tmp_path / "raw", tmp_path / "made"
    with (
        seed(fixture.torrent, fixture.directory) as peer,
        pytest.raises(DigestMismatch, match="not the source's model"),
    ):
        both([peer], raw, wish("gguf", out, certifier=certifier))
    assert raw.exists()
    assert not out.exists()


@pytest.mark.parametrize("keep", [True, False], ids=["keep", "no-keep"])
def test_the_pieces_of_a_torrent_are_hashed_while_the_output_is_written(
    fixture, both, tmp_path, keep
):
    kept, out = [], tmp_path / "made"

    def take(nbytes):
        kept.append(TakenPieces(nbytes))
        return kept[-1]

    with seed(fixture.torrent, fixture.directory) as peer:
        both([peer], tmp_path / "raw", wish("gguf", out, keep=keep, take=take))
    (taken,) = kept
    known = taken.known(plan(out, write_release=False))
    assert all(read_digests([want])[want] == found for want, found in known.items())
    hashed = [extent for want in known if want.algorithm == "sha1" for extent in want.extents]
    weights = max(out.glob("*.gguf"))
    assert {extent.path for extent in hashed} == {weights}
    assert sum(extent.nbytes for extent in hashed) == weights.stat().st_size


def test_a_file_is_finished_long_before_the_last_piece_has_come(fixture, both, tmp_path):
    seen = []

    def look(progress):
        if progress.stage == "download":
            seen.append((progress.pieces_done, progress.note,
                         len(list((tmp_path / "made.partial").glob("*.safetensors")))))  # fmt: skip

    with seed(fixture.torrent, fixture.directory) as peer:
        both([peer], tmp_path / "raw", wish("safetensors", tmp_path / "made"), look,
             max_down=4_000_000)  # fmt: skip
    n_pieces = 230  # in 4 s; a machine with much else to do is late by as much as it likes
    first = next(done for done, _, files in seen if files)
    assert first < 0.7 * n_pieces
    assert any(files >= 4 for done, _, files in seen if done < n_pieces)
    assert any("converted" in note for _, note, _ in seen)


@pytest.mark.parametrize("covered", [True, False])
def test_a_digest_of_the_release_is_taken_on_the_way_or_said_not_to_be(
    fixture, both, tmp_path, monkeypatch, covered
):
    """In the order of the file its md5 can be known; else no word pretends that it was."""
    # Two layers: the steps are far from the order of the file. With 32 they are near it.
    monkeypatch.setattr("moetool.convert.arriving.reads._FILE_ORDER_COSTS", 2 if covered else 20)
    raw, out = tmp_path / "raw", tmp_path / "made"
    with seed(fixture.torrent, fixture.directory) as peer:
        report = both([peer], raw, wish("safetensors", out, keep=False))
    trust = report.fetched.verification.trust
    of_weights = next(line for line in trust if line.startswith("content  MATCH  consolidated"))
    assert ("md5 1/1 (RELEASE)" in of_weights) == covered
    assert any("md5 of RELEASE NOT COVERED" in line for line in trust) != covered
    recorded = json.loads((out / MANIFEST).read_bytes())["source"]["files"]
    assert ("sha256" in recorded["consolidated.00.pth"]) == covered


def _allocated(folder):
    with_holes = 0
    for where, _, names in os.walk(folder):  # passes over folders that go meanwhile
        for name in names:
            with suppress(FileNotFoundError):
                with_holes += Path(where, name).stat().st_blocks * 512
    return with_holes


def test_without_the_raw_files_little_more_than_the_output_is_ever_on_the_disk(
    fixture, both, tmp_path
):
    peak, over = 0, threading.Event()

    def watch():
        nonlocal peak
        while not over.wait(0.01):
            peak = max(peak, _allocated(tmp_path))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with seed(fixture.torrent, fixture.directory) as peer:
            both([peer], tmp_path / "raw", wish("safetensors", tmp_path / "made", keep=False))
    finally:
        over.set()
        watcher.join()
    raw = sum(path.stat().st_size for path in fixture.directory.iterdir())
    assert raw < peak < 1.45 * raw  # both together would be 2.0


RUN = """
import sys
from pathlib import Path
from moetool.convert.arriving.fetch import fetch_and_convert
from moetool.release.source import resolve_source
from moetool.release.torrent.profile import SwarmOptions
from tests.convert.arriving.conftest import wish
torrent, raw, out, port, keep = sys.argv[1:]
options = SwarmOptions(peers=(("127.0.0.1", int(port)),), dht=False, max_down=4_000_000)
wanted = wish("safetensors", Path(out), keep=keep == "1")
fetch_and_convert(resolve_source(torrent), Path(raw), wanted, options,
      on_progress=lambda p: print(p.stage, p.pieces_done, flush=True))
"""


@pytest.mark.parametrize(("keep", "files"), [(True, 1), (False, 3)], ids=["keep", "no-keep"])
def test_after_kill_9_it_goes_on_and_little_is_fetched_again(
    fixture, both, afterwards, tmp_path, keep, files
):
    """Pieces that were given back to the disk are not fetched again, and those here are kept."""
    raw, out = tmp_path / "raw", tmp_path / "made"
    with seed(fixture.torrent, fixture.directory) as peer:
        words = [sys.executable, "-c", RUN, str(fixture.torrent), str(raw), str(out),
                 str(peer.port), str(int(keep))]  # fmt: skip
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
            done = 0
            for line in child.stdout:
                stage, pieces = line.split()
                done = int(pieces) if stage == "download" else done
                if len(read_journal(tmp_path / "made.partial").shards) >= files:
                    break
            child.send_signal(signal.SIGKILL)
        assert child.returncode == -signal.SIGKILL
        assert 20 < done < 200
        report = both([peer], raw, wish("safetensors", out, keep=keep))
    assert report.converted.resumed_nbytes > files * 1_500_000
    assert report.fetched.payload <= (230 - done + 24) * 65_536
    made, expected = contents(out), afterwards(fixture.directory, "safetensors", tmp_path / "later")
    del made[MANIFEST], expected[MANIFEST]
    assert made == expected


def test_files_that_nobody_reads_come_too_however_small_the_window(fixture, afterwards, tmp_path):
    folder, out = tmp_path / "published" / "more", tmp_path / "made"
    shutil.copytree(fixture.directory, folder)
    (folder / "unread.safetensors").write_bytes(os.urandom(2_000_000))
    torrent = tmp_path / "more.torrent"
    torrent.write_bytes(v1_torrent(folder))
    with seed(torrent, folder) as peer:
        options = SwarmOptions(peers=((peer.host, peer.port),), dht=False, stall_timeout_s=20)
        report = fetch_and_convert(
            resolve_source(str(torrent)), tmp_path / "raw",
            wish("gguf", out, keep=False, ahead_nbytes=1_000_000), options,
        )  # fmt: skip
    assert report.fetched.payload >= 16_900_000
    made = contents(out)["made.gguf"]
    out.rename(tmp_path / "live")
    assert made == afterwards(fixture.directory, "gguf", out)["made.gguf"]


@pytest.fixture
def rotten(fixture, tmp_path):
    """The same files, with every piece of the weights wrong."""
    copy = tmp_path / "evil" / fixture.directory.name
    shutil.copytree(fixture.directory, copy)
    weights = copy / "consolidated.00.pth"
    content = bytearray(weights.read_bytes())
    content[::5000] = bytes(byte ^ 0x55 for byte in content[::5000])
    weights.write_bytes(content)
    return copy


def test_a_seeder_of_bad_pieces_gets_no_byte_into_the_output(
    fixture, both, afterwards, rotten, tmp_path
):
    out, data = tmp_path / "made", fixture.torrent.read_bytes()
    with (
        raw_seed(data, rotten, disable_hash_checks=True) as corrupt,
        seed(fixture.torrent, fixture.directory) as good,
    ):
        both([corrupt, good], tmp_path / "raw", wish("gguf", out), rejoin_after_s=1.0)
    made = contents(out)["made.gguf"]
    out.rename(tmp_path / "live")
    assert made == afterwards(fixture.directory, "gguf", out)["made.gguf"]


def test_bad_pieces_alone_end_both_without_an_output(fixture, both, rotten, tmp_path):
    data = fixture.torrent.read_bytes()
    with (
        raw_seed(data, rotten, disable_hash_checks=True) as corrupt,
        pytest.raises(Stalled),
    ):
        both([corrupt], tmp_path / "raw", wish("gguf", tmp_path / "made"), stall_timeout_s=2.0)
    assert not (tmp_path / "made").exists()
    assert not list((tmp_path / "made.partial").glob("*.gguf*"))


def test_bytes_that_turn_bad_on_the_disk_spoil_the_conversion_and_not_the_fetch(
    fixture, both, tmp_path, monkeypatch
):
    """What was hashed when it came reads otherwise in the last pass: nothing made of it is kept."""
    download, damaged = Keeping._download, []

    def then_damage(job, swarm, have):
        outcome = download(job, swarm, have)
        if not damaged:
            until = time.monotonic() + 20
            while job.companion.note() != "100% converted" and time.monotonic() < until:
                time.sleep(0.02)
            with (job.partial / "consolidated.00.pth").open("r+b") as file:
                file.seek(7_000_000)
                damaged.append(file.write(b"\0not these"))
        return outcome

    monkeypatch.setattr(Keeping, "_download", then_damage)
    with (
        seed(fixture.torrent, fixture.directory) as peer,
        pytest.raises(DigestMismatch, match="hashed when they came"),
    ):
        both([peer], tmp_path / "raw", wish("gguf", tmp_path / "made"))
    weights = "consolidated.00.pth"
    assert (tmp_path / "raw" / weights).read_bytes() == (fixture.directory / weights).read_bytes()
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "made.partial" / "journal.jsonl").exists()


def test_what_is_here_whole_is_converted_without_a_peer(fixture, both, tmp_path):
    raw = tmp_path / "raw"
    with seed(fixture.torrent, fixture.directory) as peer:
        both([peer], raw, wish("gguf", tmp_path / "first"))
    report = both([], raw, wish("gguf", tmp_path / "second"))
    assert report.fetched.already_complete
    assert (tmp_path / "second" / "second.gguf").exists()
    with pytest.raises(OutputExists, match="raw"):
        both([], raw, wish("gguf", tmp_path / "third", keep=False))
    with pytest.raises(OutputExists, match="second"):
        both([], raw, wish("gguf", tmp_path / "second"))
    assert raw.exists()


def test_a_disk_that_gives_nothing_back_is_refused_before_a_byte_comes(
    fixture, both, tmp_path, monkeypatch
):
    monkeypatch.setattr("moetool.release.live.holes._punch", lambda *_: errno.EOPNOTSUPP)
    with (
        seed(fixture.torrent, fixture.directory) as peer,
        pytest.raises(SystemFault, match="cannot give back"),
    ):
        both([peer], tmp_path / "raw", wish("gguf", tmp_path / "made", keep=False))
    assert not list((tmp_path / "raw.partial").glob("*.pth"))


def test_the_room_is_that_of_both_and_less_without_the_raw_files(
    fixture, both, tmp_path, monkeypatch
):
    nbytes = sum(path.stat().st_size for path in fixture.directory.iterdir())
    free = nbytes + (64 << 20) + 10_000_000
    usage = namedtuple("usage", "total used free")  # noqa: PYI024
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free, 0, free))
    with seed(fixture.torrent, fixture.directory) as peer:
        with pytest.raises(NoRoomOnDisk, match="download and the conversion"):
            both([peer], tmp_path / "raw", wish("safetensors", tmp_path / "made"),
                 max_down=2_000_000)  # fmt: skip
        assert not (tmp_path / "made.partial").exists()
        both([peer], tmp_path / "raw", wish("safetensors", tmp_path / "made", keep=False))
    assert (tmp_path / "made").exists()


def test_ctrl_c_ends_both_soon_and_says_how_to_go_on(fixture, tmp_path):
    with seed(fixture.torrent, fixture.directory) as peer:
        words = ["fetch", str(fixture.torrent), "--out", "raw", "--convert", "safetensors",
                 "--max-shard-size", "2MB", "--peer", peer.peer, "--no-dht",
                 "--max-down", "2"]  # fmt: skip
        with subprocess.Popen(
            [sys.executable, "-m", "moetool", *words], cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as child:  # fmt: skip
            until = time.monotonic() + 20
            while not list(tmp_path.glob("raw-hf.partial/*.tmp")):
                assert time.monotonic() < until
                time.sleep(0.05)
            began = time.monotonic()
            child.send_signal(signal.SIGINT)
            _, told = child.communicate(timeout=20)
    assert child.returncode == 130, told
    assert time.monotonic() - began < 5
    assert "run again to go on: moetool fetch" in told
    assert "Traceback" not in told
    assert sorted(os.listdir(tmp_path)) == ["raw-hf.partial", "raw.partial"]
