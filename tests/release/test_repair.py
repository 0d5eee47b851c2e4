"""Bad pieces are replaced, from a copy or the swarm, and nothing else is written."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from moetool.errors import (
    DigestMismatch,
    HostileTorrent,
    LockHeld,
    Mismatch,
    NoRoomOnDisk,
    Refused,
    Stalled,
    UsageFault,
)
from moetool.release import pieces
from moetool.release.provenance import Origin, locked, write_origin
from moetool.release.repair import mend
from moetool.release.repair import run as repair_run
from moetool.release.repair.mend import differing
from moetool.release.repair.run import repair
from moetool.release.repair.subject import find_source
from moetool.release.source import resolve_source
from moetool.release.torrent.bencode import decode, encode
from moetool.release.torrent.metainfo import read_torrent
from moetool.release.torrent.serve import Seed, seed
from tests.release.conftest import torrent_by_libtorrent

WEIGHTS = "consolidated.00.pth"
MIDDLE = 700_000


def flip(path, *places):
    data = bytearray(path.read_bytes())
    for at in places or (MIDDLE,):
        data[at] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:MIDDLE])


def zero(path):
    path.write_bytes(path.read_bytes()[:MIDDLE] + bytes(path.stat().st_size - MIDDLE))


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"more")


def remove(path):
    path.unlink()


def state(folder):
    """Bytes and times of everything in a folder."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def ours(release, tmp_path):
    """A download that nobody recorded, to be damaged; the publisher's folder stays whole."""
    return shutil.copytree(release.folder, tmp_path / "mine" / "tiny")


@pytest.fixture
def run(release, ours, options):
    def start(*seeds, **more):
        more.setdefault("offline", not seeds)
        stall = more.pop("stall", 20)
        found = more.pop("source", resolve_source(str(release.torrent)))
        return repair(ours, found, options=options(*seeds, stall_timeout_s=stall), **more)

    return start


def test_a_whole_folder_is_read_and_nothing_in_it_changes(run, ours, release):
    os.chmod(ours, 0o555)
    before, at = state(ours), ours.stat().st_mtime_ns
    report = run(other=release.folder)
    assert report.ok
    assert (report.bad, report.sizes, report.payload) == ((), (), 0)
    assert state(ours) == before
    assert ours.stat().st_mtime_ns == at


def test_a_flipped_byte_costs_one_piece_from_the_copy(run, ours, release):
    flip(ours / WEIGHTS)
    before = state(ours)
    report = run(other=release.folder)
    assert report.ok
    assert release.same_as(ours)
    (piece,) = report.bad
    assert piece.healed_by == "copy"
    assert [(e.path.name, e.offset, e.nbytes) for e in piece.extents] == [(WEIGHTS, MIDDLE, 1)]
    after = state(ours)
    assert {name for name in after if after[name][0] != before[name][0]} == {WEIGHTS}
    assert sorted(after) == sorted(before)  # no lock, no scratch


def test_a_flipped_byte_costs_at_most_two_pieces_from_the_swarm(run, ours, release):
    flip(ours / WEIGHTS)
    before = state(ours)
    with seed(release.torrent, release.folder) as peer:
        report = run(peer)
    assert report.ok
    assert release.same_as(ours)
    assert [piece.healed_by for piece in report.bad] == ["swarm"]
    assert 0 < report.payload <= 2 * release.meta.piece_length
    after = state(ours)
    assert {name for name in after if after[name][0] != before[name][0]} == {WEIGHTS}
    assert sorted(after) == sorted(before)


@pytest.mark.parametrize("damage", [cut, zero, lengthen, remove])
def test_files_that_are_cut_zeroed_missing_or_too_long(damage, run, ours, release):
    damage(ours / WEIGHTS)
    (ours / "params.json").unlink()
    report = run(other=release.folder)
    assert report.ok
    assert release.same_as(ours)
    found = {odd.path.name: odd.found for odd in report.sizes}
    assert found["params.json"] is None
    assert (WEIGHTS in found) == (damage is not zero)


def test_only_the_file_that_is_wrong_is_written_where_a_piece_runs_across_files(run, ours, release):
    flip(ours / "RELEASE", 3)  # the first piece goes on into the weights
    before = (ours / WEIGHTS).stat().st_mtime_ns
    report = run(other=release.folder)
    assert release.same_as(ours)
    assert [extent.path.name for piece in report.bad for extent in piece.extents] == ["RELEASE"]
    assert (ours / WEIGHTS).stat().st_mtime_ns == before


def test_one_file_can_be_the_copy_whatever_its_name(run, ours, release, tmp_path):
    flip(ours / WEIGHTS, 5, MIDDLE)  # the first lies in a piece that begins in RELEASE
    other = shutil.copy(release.folder / WEIGHTS, tmp_path / "backup.bin")
    assert run(other=type(ours)(other)).ok
    assert release.same_as(ours)


def test_a_copy_with_the_same_bad_piece_is_told_and_the_swarm_has_it(run, ours, release, tmp_path):
    flip(ours / WEIGHTS, MIDDLE, 900_000)
    other = shutil.copytree(release.folder, tmp_path / "other")
    flip(other / WEIGHTS, 900_001)
    report = run(other=other)
    assert not report.ok
    assert report.left == 1
    assert sorted(str(piece.healed_by) for piece in report.bad) == ["None", "copy"]
    assert "1 bad pieces are not right" in report.notes[0]
    assert "(27)" in report.notes[0]
    assert (ours / WEIGHTS).read_bytes()[MIDDLE] == (release.folder / WEIGHTS).read_bytes()[MIDDLE]
    with seed(release.torrent, release.folder) as peer:
        report = run(peer, other=other)
    assert report.ok
    assert [piece.healed_by for piece in report.bad] == ["swarm"]
    assert release.same_as(ours)


def test_no_wrong_byte_of_a_copy_is_ever_written(run, ours, release, tmp_path):
    flip(ours / WEIGHTS)
    other = shutil.copytree(release.folder, tmp_path / "other")
    flip(other / WEIGHTS, MIDDLE + 1)
    before = state(ours)
    assert run(other=other).left == 1
    assert state(ours) == before


def test_a_copy_of_another_release_is_refused_before_anything_is_written(run, ours, make_release):
    flip(ours / WEIGHTS)
    before = state(ours)
    with pytest.raises(Mismatch, match="another release"):
        run(other=make_release(name="other", seed=5).folder)
    assert state(ours) == before


def test_a_copy_that_is_none_is_refused(run, ours, tmp_path):
    flip(ours / WEIGHTS)
    (tmp_path / "empty").mkdir()
    for other, words in {
        tmp_path / "nowhere": "no such", tmp_path / "empty": "no file of the release",
        ours: "what is to be repaired",
    }.items():  # fmt: skip
        with pytest.raises(UsageFault, match=words):
            run(other=other)


def test_a_folder_of_something_else_is_not_overwritten(run, ours, release, make_release):
    shutil.rmtree(ours)
    shutil.copytree(make_release(name="other", seed=5, nbytes=900_000).folder, ours)
    before = state(ours)
    with pytest.raises(Mismatch, match="nothing in it is of 'tiny'"):
        run(other=release.folder)
    assert state(ours) == before


def test_a_dry_run_says_it_and_writes_nothing(run, ours, release, tmp_path):
    flip(ours / WEIGHTS, MIDDLE, 900_000)
    other = shutil.copytree(release.folder, tmp_path / "other")
    flip(other / WEIGHTS, 900_000)
    before = state(ours)
    report = run(other=other, dry_run=True, offline=False)
    assert not report.ok
    assert [piece.healed_by for piece in report.bad] == ["copy", "swarm"]
    assert report.to_fetch == release.meta.piece_length
    assert report.payload == 0
    assert state(ours) == before


CHILD = """
import os, signal, sys
from pathlib import Path
from moetool.release.repair import mend
from moetool.release.repair.run import repair
from moetool.release.source import resolve_source
folder, torrent, other, after = sys.argv[1:]
mend.GROUP_NBYTES = 1
write, left = os.pwrite, int(after)
def dying(handle, data, at):
    global left
    left -= 1
    if left < 0:
        write(handle, data[:len(data) // 2], at)
        os.kill(os.getpid(), signal.SIGKILL)
    return write(handle, data, at)
os.pwrite = dying
repair(Path(folder), resolve_source(torrent), other=Path(other), offline=True)
"""


@pytest.mark.parametrize("after", [0, 7])
def test_after_kill_9_a_second_run_finishes(after, run, ours, release):
    zero(ours / WEIGHTS)
    words = [sys.executable, "-c", CHILD, str(ours), str(release.torrent), str(release.folder)]
    done = subprocess.run([*words, str(after)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not release.same_as(ours)
    report = run(other=release.folder)
    assert report.ok
    assert len(report.bad) == 25 - after
    assert release.same_as(ours)
    assert not (ours / ".moetool").exists()


def test_what_the_swarm_gave_before_a_stop_is_not_fetched_again(run, ours, release, monkeypatch):
    flip(ours / WEIGHTS)

    def stop(*_):
        raise KeyboardInterrupt

    with seed(release.torrent, release.folder) as peer:
        with monkeypatch.context() as patch, pytest.raises(BaseException, match="healed stays"):
            patch.setattr(mend.Mender, "mend", stop)
            run(peer)
        assert (ours / ".moetool" / "repair").is_dir()
    report = run()
    assert report.ok
    assert report.payload == 0
    assert release.same_as(ours)
    assert not (ours / ".moetool").exists()


def test_a_seeder_that_lies_leaves_the_files_as_they_are(run, ours, release, seeders, tmp_path):
    flip(ours / WEIGHTS)
    evil = shutil.copytree(release.folder, tmp_path / "evil" / "tiny")
    flip(evil / WEIGHTS, MIDDLE + 1)
    before = (ours / WEIGHTS).read_bytes()
    with (
        seeders(release.torrent.read_bytes(), evil, disable_hash_checks=True) as peer,
        pytest.raises(Stalled, match="bad pieces") as caught,
    ):
        run(peer, stall=1)
    assert "0 of 1 bad pieces were healed" in caught.value.findings[0]
    assert (ours / WEIGHTS).read_bytes() == before


def test_nobody_gets_a_hole_for_a_piece(run, ours, release, tmp_path):
    """What is fetched goes into files that are holes elsewhere, and other peers ask for that."""
    import libtorrent as lt

    flip(ours / WEIGHTS)
    params = lt.session_params()
    params.settings = {
        "listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False,
        "enable_upnp": False, "enable_natpmp": False, "alert_mask": lt.alert_category.all,
    }  # fmt: skip
    session = lt.session(params)
    adding = lt.load_torrent_buffer(release.torrent.read_bytes())
    adding.save_path = str(tmp_path / "asking")
    adding.flags &= ~lt.torrent_flags.auto_managed & ~lt.torrent_flags.paused
    handle = session.add_torrent(adding)
    while not session.is_listening():
        session.wait_for_alert(50)
    asking = Seed("127.0.0.1", session.listen_port())
    with pytest.raises(Stalled):
        run(asking, stall=1.2)
    kinds = {type(alert).__name__ for alert in session.pop_alerts()}
    assert "incoming_connection_alert" in kinds
    assert handle.status().total_payload_download == 0


def test_a_magnet_and_the_record_of_a_fetch_say_what_it_should_be(release, options, tmp_path):
    out = shutil.copytree(release.folder, tmp_path / "out")
    write_origin(out, release.meta, Origin("tiny", release.meta.hashes, release.magnet))
    records = state(out / ".moetool")
    flip(out / WEIGHTS)
    assert find_source(out, release.magnet).meta == release.meta
    assert repair(out, find_source(out, None), other=release.folder, offline=True).ok
    assert release.same_as(out)
    assert state(out / ".moetool") == records
    with seed(release.torrent, release.folder) as peer:
        bare = shutil.copytree(release.folder, tmp_path / "bare" / "x")
        cut(bare / WEIGHTS)  # the metadata come from the swarm as well
        assert repair(bare, find_source(bare, release.magnet), options=options(peer)).ok
        assert release.same_as(bare)
    with pytest.raises(UsageFault, match="is not here"):
        repair(bare, find_source(bare, release.magnet), other=out, offline=True)
    with pytest.raises(UsageFault, match="nothing says"):
        find_source(bare, None)


@pytest.fixture
def web_seed(release):
    """An HTTP server with byte ranges (BEP 19) that counts what it sends."""
    sent = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            data = (release.folder.parent / self.path.lstrip("/")).read_bytes()
            low, high = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
            body = data[low : high + 1]
            sent.append(len(body))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {low}-{high}/{len(data)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", sent
    server.shutdown()
    server.server_close()


def test_a_web_seed_of_the_torrent_gives_the_piece(release, ours, options, web_seed, tmp_path):
    url, sent = web_seed
    torrent = tmp_path / "web.torrent"
    fields = decode(release.torrent.read_bytes())
    torrent.write_bytes(encode({**fields, b"url-list": [url.encode(), b"ftp://127.0.0.1/"]}))
    source = resolve_source(str(torrent))
    assert source.magnet.web_seeds == (url,)
    flip(ours / WEIGHTS)
    report = repair(ours, source, options=options(web_seeds=source.magnet.web_seeds))
    assert report.ok
    assert release.same_as(ours)
    assert sum(sent) <= 2 * release.meta.piece_length


@pytest.mark.parametrize("kind", ["v2", "hybrid"])
def test_v2_and_hybrid_torrents(release, ours, run, kind, tmp_path):
    torrent = tmp_path / "v2.torrent"
    torrent.write_bytes(torrent_by_libtorrent(release.folder, kind))
    source = resolve_source(str(torrent))
    size = (ours / WEIGHTS).stat().st_size
    assert pieces.find_bad(pieces.pieces_of(source.meta, ours)) == []
    flip(ours / WEIGHTS, MIDDLE, size - 1)  # the last piece is padded, or a smaller tree
    flip(ours / "params.json", 4)
    report = run(other=release.folder, source=source)
    assert report.ok
    assert len(report.bad) == 3
    assert release.same_as(ours)
    if kind == "v2":
        _layers_are_judged(source, ours)
        return
    flip(ours / WEIGHTS, size - 1)
    with seed(torrent, release.folder) as peer:
        report = run(peer, source=source)
    assert [piece.healed_by for piece in report.bad] == ["swarm"]
    assert release.same_as(ours)


def _layers_are_judged(source, ours):
    """They stand outside of what the info-hash covers; and a magnet brings none."""
    info = source.meta.info
    layers = {root: bytes([roots[0] ^ 1]) + roots[1:] for root, roots in source.meta.piece_layers}
    changed = b"d4:info" + info + b"12:piece layers" + encode(layers) + b"e"
    with pytest.raises(HostileTorrent, match="piece layers"):
        pieces.pieces_of(read_torrent(changed), ours)
    with pytest.raises(Refused, match="no piece layers"):
        pieces.pieces_of(read_torrent(b"d4:info" + info + b"e"), ours)


def test_a_link_is_not_followed_to_be_written(run, ours, release, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (ours / WEIGHTS).rename(elsewhere)
    flip(elsewhere)
    (ours / WEIGHTS).symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    with pytest.raises(Refused, match="symbolic link"):
        run(other=release.folder)
    assert elsewhere.read_bytes() == before


def test_a_second_repair_of_the_same_folder_names_the_first(run, ours, release):
    flip(ours / WEIGHTS)
    with locked(ours), pytest.raises(LockHeld, match=str(os.getpid())):
        run(other=release.folder)


def test_too_little_room_is_refused_before_the_first_byte(run, ours, release, monkeypatch):
    remove(ours / WEIGHTS)
    monkeypatch.setattr("moetool.release.repair.run.bytes_free", lambda _: 1000)
    with pytest.raises(NoRoomOnDisk, match="1000 are free"):
        run(other=release.folder)
    assert sorted(os.listdir(ours)) == ["RELEASE", "params.json", "tokenizer.model"]


@pytest.mark.parametrize(("number", "error"), [(28, NoRoomOnDisk), (5, Exception)])
def test_a_disk_that_says_no_ends_it_and_the_next_run_goes_on(
    number, error, run, ours, release, monkeypatch
):
    zero(ours / WEIGHTS)
    write, left = os.pwrite, 5

    def failing(*words):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(number, os.strerror(number))
        return write(*words)

    with monkeypatch.context() as patch, pytest.raises(error, match=WEIGHTS):
        patch.setattr(os, "pwrite", failing)
        run(other=release.folder)
    assert run(other=release.folder).ok
    assert release.same_as(ours)


def test_a_write_that_does_not_arrive_is_noticed(run, ours, release, monkeypatch):
    flip(ours / WEIGHTS)
    monkeypatch.setattr(os, "pwrite", lambda _handle, data, _at: len(data))
    with pytest.raises(DigestMismatch, match="read back"):
        run(other=release.folder)


def test_a_cut_and_a_missing_file_from_the_swarm_in_batches(run, ours, release, monkeypatch):
    cut(ours / WEIGHTS)
    remove(ours / "params.json")
    monkeypatch.setattr(repair_run, "BATCH_NBYTES", 20 * release.meta.piece_length)
    with seed(release.torrent, release.folder) as peer:
        report = run(peer)
    assert report.ok
    assert release.same_as(ours)
    assert report.payload <= (len(report.bad) + 2) * release.meta.piece_length


def test_where_two_blocks_differ():
    old = bytes(20_000)
    new = bytearray(old)
    assert differing(old, bytes(new)) == []
    assert differing(None, bytes(new)) == [(0, 20_000)]
    new[100] = new[4095] = new[4096] = new[19_999] = 1
    assert differing(old, bytes(new)) == [(100, 4097), (19_999, 20_000)]


def test_a_kill_between_the_last_piece_and_the_end_leaves_nothing_for_ever(run, ours, release):
    (ours / ".moetool" / "repair").mkdir(parents=True)
    (ours / ".moetool" / "repair" / WEIGHTS).touch()
    assert run(other=release.folder).ok
    with contextlib.suppress(FileNotFoundError):
        assert os.listdir(ours / ".moetool") == []
