"""What a torrent promises, compared with what libtorrent makes of the same bytes."""

from __future__ import annotations

from functools import partial

import libtorrent as lt
import pytest

from moetool.release.torrent.bencode import decode
from moetool.release.torrent.metainfo import (
    claims,
    piece_claims,
    piece_extents,
    read_info,
    read_torrent,
)
from moetool.release.verify.settle import Word, settle
from tests.release.conftest import torrent_by_libtorrent

KINDS = ("v1", "v2", "hybrid")


@pytest.fixture
def torrent_of(release):
    return partial(torrent_by_libtorrent, release.folder)


@pytest.mark.parametrize("kind", KINDS)
def test_hashes_and_files_are_those_that_libtorrent_reads(torrent_of, kind):
    data = torrent_of(kind)
    meta, other = read_torrent(data), lt.load_torrent_buffer(data).ti
    hashes = other.info_hashes()
    assert meta.info_hash == (str(hashes.v1) if hashes.has_v1() else None)
    assert meta.info_hash_v2 == (str(hashes.v2) if hashes.has_v2() else None)
    assert meta.piece_length == other.piece_length()
    layout = other.layout()
    pad = lt.file_flags_t.flag_pad_file
    found = {
        layout.file_path(i): layout.file_size(i)
        for i in range(layout.num_files())
        if not layout.file_flags(i) & pad
    }
    assert {f"tiny/{f.path}": f.nbytes for f in meta.files if not f.pad} == found
    assert lt.load_torrent_buffer(meta.to_torrent()).ti.info_hashes().get_best() == (
        hashes.get_best()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_of_an_honest_copy_is_covered_and_matches(torrent_of, release, kind):
    meta = read_torrent(torrent_of(kind))
    report = settle(claims(meta, release.folder), meta.file_sizes(release.folder))
    assert report.verdict is Word.MATCH
    assert sum(file.tally.match for file in report.files) == meta.nbytes == report.nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_one_wrong_bit_is_found_in_its_piece(torrent_of, release, kind):
    meta, path = read_torrent(torrent_of(kind)), release.folder / "consolidated.00.pth"
    data = bytearray(path.read_bytes())
    data[777_777] ^= 4
    path.write_bytes(data)
    report = settle(claims(meta, release.folder), meta.file_sizes(release.folder))
    damage = [extent for file in report.files for extent in file.damage]
    assert [extent.path for extent in damage] == [path]
    assert damage[0].offset <= 777_777 < damage[0].end
    assert damage[0].nbytes <= 32_768


def test_pieces_cut_the_stream_of_files_without_a_gap(release):
    meta = release.meta
    extents = [extent for piece in piece_extents(meta, release.folder) for extent in piece]
    sizes = meta.file_sizes(release.folder)
    reached = dict.fromkeys(sizes, 0)
    for extent in extents:
        assert extent.offset == reached[extent.path]
        reached[extent.path] = extent.end
    assert reached == sizes
    assert any(len(claim.extents) == 3 for claim in piece_claims(meta, release.folder))


def test_the_info_dict_from_peers_is_the_same_torrent(release):
    info = release.meta.info
    assert read_info(info).info_hash == release.meta.info_hash
    assert decode(info)[b"name"] == b"tiny"


def test_trackers_of_all_tiers_are_kept_once_each(release):
    data = release.torrent.read_bytes()
    head = b"d8:announce7:udp://a13:announce-listll7:udp://ael7:udp://bee"
    meta = read_torrent(head + data[1:])
    assert meta.trackers == ("udp://a", "udp://b")
