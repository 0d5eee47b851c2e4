"""A torrent looked into before it is downloaded: few bytes, each of them hashed, nothing kept."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import replace

import pytest

from moetool.errors import (
    DigestMismatch,
    HostileTorrent,
    Refused,
    Stalled,
    TruncatedFile,
)
from moetool.formats import open_checkpoint
from moetool.formats.directory import is_weight_file
from moetool.formats.remote import read_remote
from moetool.release.fixture import find_fixture
from moetool.release.magnet import Magnet, format_magnet
from moetool.release.peek.torrent import PieceStore, look_into
from moetool.release.source import resolve_source
from moetool.release.torrent.bencode import encode
from moetool.release.torrent.metainfo import read_torrent
from moetool.release.torrent.serve import seed
from tests.release.conftest import torrent_by_libtorrent


@pytest.fixture
def no_trace(tmp_path, monkeypatch):
    """Everything temporary goes here, and must be gone at the end."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert os.listdir(place) == []


@pytest.fixture(scope="module")
def tiny():
    return find_fixture()


@pytest.fixture(scope="module")
def tiny_magnet(tiny):
    meta = read_torrent(tiny.torrent.read_bytes())
    return format_magnet(Magnet(meta.info_hash, meta.info_hash_v2, name=meta.name))


def test_the_headers_come_and_little_else(tiny, tiny_magnet, options, tmp_path, no_trace):
    """The catalog is that of the file on disk, for a tenth of its bytes."""
    (tmp_path / "copies").mkdir()
    with (
        seed(tiny.torrent, tiny.directory) as peer,
        look_into(resolve_source(tiny_magnet), options(peer), is_weight_file) as look,
    ):
        found = read_remote(look.files, tmp_path / "copies")
        origin = look.origin()
    with open_checkpoint(tiny.directory) as local:
        weights = tiny.directory / "consolidated.00.pth"
        assert found.catalog.tensors == local.catalog.tensors
        assert found.files == {weights.name: weights.stat().st_size}
        places = {name: (e.offset, e.nbytes) for name, e in local.catalog.extents.items()}
        assert {n: (e.offset, e.nbytes) for n, e in found.catalog.extents.items()} == places
    assert found.catalog.claims == ()
    assert sorted(os.listdir(tmp_path / "copies")) == ["params.json"]
    assert (origin.name, origin.piece_nbytes) == (look.meta.name, look.meta.piece_length)
    assert 2 <= origin.pieces_received <= 6
    slack = 200_000  # metadata, and the words of the protocol
    assert origin.received_nbytes <= origin.pieces_received * origin.piece_nbytes + slack
    assert origin.received_nbytes < look.meta.nbytes / 5


def test_what_is_here_is_not_asked_for_again(release, options, tmp_path, no_trace):
    """A range costs the pieces that hold it, once."""
    with (
        seed(release.torrent, release.folder) as peer,
        look_into(resolve_source(str(release.torrent)), options(peer), is_weight_file) as look,
    ):
        source = look.files.open("consolidated.00.pth")
        data = (release.folder / "consolidated.00.pth").read_bytes()
        for offset, nbytes in [(0, 10), (32_000, 2000), (32_100, 5), (1_499_990, 10), (5, 0)]:
            assert source.pread(offset, nbytes) == data[offset : offset + nbytes]
        assert look.origin().pieces_received == 3
        with pytest.raises(TruncatedFile):
            source.pread(1_499_990, 11)
        assert look.files.open("no-such-file") is None
        with pytest.raises(TruncatedFile, match="no zip end record"):
            read_remote(look.files, tmp_path)


def _corrupt(release):
    """A copy of the release with bad bytes in every piece, to be served under its hashes."""
    folder = release.folder.parent / "bad" / release.folder.name
    folder.mkdir(parents=True)
    for file in release.folder.iterdir():
        data = bytearray(file.read_bytes())
        data[10::20_000] = bytes(len(data[10::20_000]))
        (folder / file.name).write_bytes(data)
    return folder


def test_a_peer_that_sends_bad_pieces_is_banned_and_the_good_one_asked(
    release, seeders, options, no_trace
):
    bad = _corrupt(release)
    torrent = release.torrent.read_bytes()
    with (
        seeders(torrent, bad, disable_hash_checks=True) as liar,
        seeders(torrent, release.folder, upload_limit=1_500_000) as honest,
        look_into(
            resolve_source(str(release.torrent)), options(liar, honest, rejoin_after_s=2),
            is_weight_file,
        ) as look,
    ):  # fmt: skip
        source = look.files.open("consolidated.00.pth")
        data = (release.folder / "consolidated.00.pth").read_bytes()
        assert source.pread(0, 100) == data[:100]
        assert source.pread(0, 300_000) == data[:300_000]
        assert (liar.host, liar.port) in look.origin().banned


def test_bad_pieces_alone_are_no_answer(release, seeders, options, no_trace):
    """With nobody else to ask it ends, and says that a peer was banned."""
    with (
        seeders(
            release.torrent.read_bytes(), _corrupt(release), disable_hash_checks=True
        ) as liar,
        look_into(
            resolve_source(str(release.torrent)), options(liar, stall_timeout_s=3),
            is_weight_file,
        ) as look,
    ):  # fmt: skip
        with pytest.raises(Stalled, match="banned"):
            look.files.open("consolidated.00.pth").pread(0, 10)
        assert look.origin().banned


def test_nobody_there_is_told(release, options, no_trace):
    with (
        look_into(
            resolve_source(str(release.torrent)), options(stall_timeout_s=0.3), is_weight_file
        ) as look,
        pytest.raises(Stalled, match="0 peers"),
    ):
        look.files.open("RELEASE").pread(0, 10)


def test_every_piece_is_hashed_by_us(release, tmp_path):
    """Whatever put it there: bytes of a piece with another digest are not believed."""

    def put(indices):
        for name in ("RELEASE", "consolidated.00.pth"):
            data = bytearray((release.folder / name).read_bytes())
            data[40_000:40_001] = b"?"
            (tmp_path / name).write_bytes(data)

    store = PieceStore(release.meta, tmp_path, put)
    offset = release.meta.files[1].offset
    with pytest.raises(DigestMismatch, match=f"piece {(offset + 40_000) // 32_768} "):
        store.need(range(4))
    assert not store.checked


def test_looking_has_a_limit(release, tmp_path):
    """Many large pieces are refused before any of them is asked for."""
    store = PieceStore(release.meta, tmp_path, lambda _: pytest.fail("asked"), limit=100_000)
    with pytest.raises(Refused, match="piece has 32768"):
        store.need(range(4))


def test_hostile_names_are_refused_before_a_piece_comes(release, options, tmp_path, no_trace):
    data = release.torrent.read_bytes().replace(b"7:RELEASE", b"7:../../x")
    (tmp_path / "evil.torrent").write_bytes(data)
    with pytest.raises(HostileTorrent):
        resolve_source(str(tmp_path / "evil.torrent"))


def _in_folders(*paths):
    data = b"x" * 40_000
    stream = data * len(paths)
    return encode({b"info": {
        b"name": b"many",
        b"piece length": 32_768,
        b"files": [{b"length": len(data), b"path": path.encode().split(b"/")} for path in paths],
        b"pieces": b"".join(
            hashlib.sha1(stream[at : at + 32_768]).digest() for at in range(0, len(stream), 32_768)
        ),
    }})  # fmt: skip


def test_weights_in_several_folders_are_refused_and_in_one_found(options, tmp_path, no_trace):
    torrent = tmp_path / "many.torrent"
    torrent.write_bytes(_in_folders("a/m.gguf", "b/m.gguf"))
    with pytest.raises(Refused, match="2 folders"), look_into(
        resolve_source(str(torrent)), options(), is_weight_file
    ):  # fmt: skip
        pass
    torrent.write_bytes(_in_folders("README.md", "a/m.gguf", "a/config.json"))
    with look_into(resolve_source(str(torrent)), options(), is_weight_file) as look:
        assert sorted(look.files.names) == ["config.json", "m.gguf"]


@pytest.mark.parametrize("version", ["v2", "hybrid"])
def test_pieces_of_v2_are_judged_by_their_own_trees(version, release, options, tmp_path, no_trace):
    made = tmp_path / "made.torrent"
    made.write_bytes(torrent_by_libtorrent(release.folder, version))
    with (
        seed(made, release.folder) as peer,
        look_into(resolve_source(str(made)), options(peer), is_weight_file) as look,
    ):
        assert bool(look.meta.pieces) is (version == "hybrid")
        for name, start, stop in [("consolidated.00.pth", -70_000, None), ("RELEASE", 0, 50)]:
            source = look.files.open(name)
            data = (release.folder / name).read_bytes()[start:stop]
            assert source.pread(start % source.nbytes, len(data)) == data


def test_a_v2_link_does_not_say_enough(release, options, no_trace):
    """Its info dict has one hash for a file; with the .torrent's layers pieces can be judged."""
    meta = release.meta
    files = tuple(replace(file, root=b"r" * 32) for file in meta.files)
    v2 = replace(meta, pieces=b"", info_hash=None, info_hash_v2="0" * 64, files=files)
    source = replace(resolve_source(release.magnet), meta=v2)
    with pytest.raises(Refused, match="v2"), look_into(source, options(), is_weight_file):
        pass
