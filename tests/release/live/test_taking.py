"""A plain fetch: digests are taken while it comes, of what lies on the disk and is compared."""

from __future__ import annotations

import hashlib
import json

import pytest

from moetool.errors import DigestMismatch
from moetool.release.fetch import fetch
from moetool.release.live import download
from moetool.release.pieces import Piece
from moetool.release.source import resolve_source
from moetool.release.torrent.serve import seed
from moetool.release.verify import settle as module
from moetool.release.verify.digests import HASHES
from moetool.release.verify.settle import Word
from tests.release.conftest import v1_torrent


@pytest.fixture
def read_at_the_end(monkeypatch):
    """What the settlement had to read: the number of digests each time."""
    counts, read = [], module.read_digests

    def counting(wanted, **more):
        counts.append(len(list(wanted)))
        return read(wanted, **more)

    monkeypatch.setattr(module, "read_digests", counting)
    return counts


@pytest.mark.parametrize("order", ["auto", "sequential", "rarest"])
def test_at_the_end_nothing_is_left_to_read(release, options, tmp_path, read_at_the_end, order):
    out, told = tmp_path / "out", []
    with seed(release.torrent, release.folder) as peer:
        report = fetch(
            resolve_source(f"{release.magnet} RELEASE {release.release_md5}"), out,
            options(peer, order=order, max_down=1_000_000),  # so that it takes some looks
            on_progress=lambda now: told.append(now.told),
        )  # fmt: skip
    assert read_at_the_end == [0]
    assert release.same_as(out)
    covers = {
        (file.path.name, cover.reference.split()[0], cover.algorithm): cover.matched
        for file in report.verification.files
        for cover in file.coverage
    }
    assert covers["consolidated.00.pth", "RELEASE", "md5"] == 1
    assert covers["RELEASE", "post", "md5"] == 1
    assert covers["consolidated.00.pth", "torrent", "sha1"] == 46
    assert sum(line.startswith("order: ") for line in told) == 1


def test_a_complete_folder_is_read_whole(release, options, tmp_path, read_at_the_end):
    with seed(release.torrent, release.folder) as peer:
        fetch(resolve_source(release.magnet), tmp_path / "out", options(peer))
    fetch(resolve_source(release.magnet), tmp_path / "out", options())
    assert read_at_the_end == [0, len(release.meta.pieces) // 20 + 2]


def test_what_an_earlier_run_left_is_hashed_and_followed_too(
    release, options, tmp_path, read_at_the_end
):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    with seed(release.torrent, release.folder) as peer:
        fetch(resolve_source(release.magnet), out, options(peer))
        out.rename(partial)
        with (partial / "consolidated.00.pth").open("r+b") as file:
            file.seek(900_000)
            file.write(bytes(300_000))
        report = fetch(resolve_source(release.magnet), out, options(peer))
    assert release.same_as(out)
    assert 0 < report.pieces_kept < report.pieces
    assert read_at_the_end == [0, 0]


def test_no_digest_is_taken_that_nothing_is_compared_with(release, options, tmp_path, monkeypatch):
    bare = release.folder.parent / "bare" / "tiny"
    bare.mkdir(parents=True)
    (bare / "model.pth").write_bytes((release.folder / "consolidated.00.pth").read_bytes())
    torrent = tmp_path / "bare.torrent"
    torrent.write_bytes(v1_torrent(bare))
    for name in ("md5", "sha256", "xxh3_128"):
        monkeypatch.delitem(HASHES, name)
    with seed(torrent, bare) as peer:
        report = fetch(resolve_source(str(torrent)), tmp_path / "out", options(peer))
    assert report.verification.verdict is Word.MATCH
    record = json.loads((tmp_path / "out/.moetool/digests.json").read_text())
    assert record["files"]["model.pth"] == {"nbytes": 1_500_000, "word": "MATCH"}


def test_a_piece_that_the_disk_has_changed_is_fetched_again(
    release, options, tmp_path, monkeypatch
):
    """libtorrent has seen it right; we look at the file, and so does who settles."""
    monkeypatch.setattr(download, "_FIRST_LOOK_S", 0.001)
    rot, is_right = [20], Piece.is_right

    def rotting(piece, buffer):
        if piece.index in rot:
            place = piece.extents[0]
            with place.path.open("r+b") as file:
                file.seek(place.offset)
                content = file.read(place.nbytes)
                if any(content):  # it was written meanwhile
                    rot.remove(piece.index)
                    file.seek(place.offset)
                    file.write(bytes([content[0] ^ 1]))
        return is_right(piece, buffer)

    monkeypatch.setattr(Piece, "is_right", rotting)
    with seed(release.torrent, release.folder) as peer:
        report = fetch(resolve_source(release.magnet), tmp_path / "out", options(peer))
    assert rot == []
    assert release.same_as(tmp_path / "out")
    assert report.verification.verdict is Word.MATCH
    assert report.payload > release.meta.nbytes


def test_a_piece_that_is_not_there_yet_is_looked_at_again(release, options, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_FIRST_LOOK_S", 0.001)
    early, is_right = {3, 17, 48}, Piece.is_right

    def late(piece, buffer):
        if piece.index in early:
            early.remove(piece.index)
            return False
        return is_right(piece, buffer)

    monkeypatch.setattr(Piece, "is_right", late)
    with seed(release.torrent, release.folder) as peer:
        report = fetch(resolve_source(release.magnet), tmp_path / "out", options(peer))
    assert early == set()
    assert report.payload < release.meta.nbytes + release.meta.piece_length


@pytest.mark.parametrize("order", ["sequential", "rarest"])
def test_a_digest_of_the_list_that_differs_is_a_mismatch(release, options, tmp_path, order):
    listed = release.folder / "RELEASE"
    right = hashlib.md5((release.folder / "consolidated.00.pth").read_bytes()).hexdigest()
    listed.write_text(listed.read_text("utf-8").replace(right, "0" * 32), "utf-8")
    release.torrent.write_bytes(v1_torrent(release.folder))
    out, source = tmp_path / "out", resolve_source(str(release.torrent))
    with seed(release.torrent, release.folder) as peer, pytest.raises(DigestMismatch) as caught:
        fetch(source, out, options(peer, order=order))
    assert f"RELEASE: md5 is {right}, expected {'0' * 32}" in caught.value.findings
    assert not out.exists()
