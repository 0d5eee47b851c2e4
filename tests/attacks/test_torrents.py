"""Hostile torrents: every one is refused before a file of it exists."""

from __future__ import annotations

import hashlib
import os
import random

import libtorrent as lt
import pytest

from moetool.errors import HostileTorrent
from moetool.release.fetch import fetch
from moetool.release.magnet import Magnet, format_magnet
from moetool.release.source import resolve_source
from moetool.release.torrent.bencode import encode
from moetool.release.torrent.metainfo import MAX_COMPONENT_NBYTES, read_info, read_torrent
from moetool.release.torrent.profile import SwarmOptions


def info_of(*paths, name=b"weights", **more):
    """An info dict of files of five bytes each; a path is a list of names."""
    entries = [{b"length": 5, b"path": list(path)} for path in paths]
    total = 5 * len(entries)
    pieces = b"".join(
        hashlib.sha1(bytes(min(16, total - at))).digest() for at in range(0, total, 16)
    )
    return {b"name": name, b"piece length": 16, b"pieces": pieces, b"files": entries, **more}


def with_file(**fields):
    """An info dict whose only file has further fields."""
    info = info_of([b"a"])
    info[b"files"][0] |= {key.replace("_", " ").encode(): value for key, value in fields.items()}
    return info


def v2_info(tree, piece_length=16_384):
    return {
        b"name": b"w", b"piece length": piece_length, b"meta version": 2, b"file tree": tree,
    }  # fmt: skip


def with_link():
    """A link that is otherwise in order: libtorrent would make it before the first byte comes."""
    info = info_of([b"a"])
    link = {b"attr": b"l", b"length": 0, b"path": [b"b"], b"symlink path": [b"a"]}
    info[b"files"].append(link)
    return info


LEAF = {b"": {b"length": 5, b"pieces root": bytes(32)}}

HOSTILE = {
    "up": info_of([b"..", b"..", b"etc", b"passwd"]),
    "up inside": info_of([b"a", b"..", b"b"]),
    "dot": info_of([b".", b"a"]),
    "slash": info_of([b"../../etc/passwd"]),
    "absolute": info_of([b"/etc/passwd"]),
    "backslash": info_of([b"..\\..\\boot.ini"]),
    "empty name": info_of([b"a", b""]),
    "empty path": info_of([]),
    "NUL": info_of([b"a\x00.pth"]),
    "newline": info_of([b"a\nb"]),
    "escape": info_of([b"a\x1b[2Jb"]),
    "right-to-left": info_of(["weights\u202ehtp.exe".encode()]),
    "zero width": info_of(["a\u200bb".encode()]),
    "byte order mark": info_of(["\ufeffa".encode()]),
    "not UTF-8": info_of([b"\xff\xfe"]),
    "decomposed": info_of(["e\u0301".encode()]),
    "trailing blank": info_of([b"a "]),
    "too long": info_of([b"a" * (MAX_COMPONENT_NBYTES + 1)]),
    "twice": info_of([b"a"], [b"a"]),
    "twice but for case": info_of([b"Weights.pth"], [b"weights.PTH"]),
    "file and folder": info_of([b"a"], [b"a", b"b"]),
    "file and folder but for case": info_of([b"A"], [b"a", b"b"]),
    "our records": info_of([b".moetool", b"release.json"]),
    "our records but for case": info_of([b".MoeTool", b"lock"]),
    "name up": info_of([b"a"], name=b".."),
    "name empty": info_of([b"a"], name=b""),
    "name with slash": info_of([b"a"], name=b"../x"),
    "name missing": {k: v for k, v in info_of([b"a"]).items() if k != b"name"},
    "link": with_file(attr=b"l", symlink_path=[b"/etc/passwd"]),
    "link inside": with_link(),
    "link without attribute": with_file(symlink_path=[b"x"]),
    "executable": with_file(attr=b"x"),
    "attribute of another kind": with_file(attr=5),
    "negative": with_file(length=-5),
    "huge": with_file(length=1 << 60),
    "no length": with_file(length=b"5"),
    "path of another kind": with_file(path=b"a"),
    "no files": info_of(),
    "too few pieces": {**info_of([b"a"]), b"pieces": b""},
    "too many pieces": {**info_of([b"a"]), b"pieces": bytes(40)},
    "half a hash": {**info_of([b"a"]), b"pieces": bytes(19)},
    "piece length 0": {**info_of([b"a"]), b"piece length": 0},
    "piece length negative": {**info_of([b"a"]), b"piece length": -16},
    "piece length missing": {k: v for k, v in info_of([b"a"]).items() if k != b"piece length"},
    "nothing at all": {},
    "v2 up": v2_info({b"..": {b"a": LEAF}}),
    "v2 slash": v2_info({b"a/b": LEAF}),
    "v2 empty folder": v2_info({b"a": {}}),
    "v2 file and folder": v2_info({b"a": {**LEAF, b"b": LEAF}}),
    "v2 without root": v2_info({b"a": {b"": {b"length": 5}}}),
    "v2 link": v2_info({b"a": {b"": {b"length": 5, b"pieces root": bytes(32), b"attr": b"l"}}}),
    "v2 odd piece length": v2_info({b"a": LEAF}, piece_length=20_000),
    "v2 twice but for case": v2_info({b"A": LEAF, b"a": LEAF}),
    "hybrid that disagrees": {**info_of([b"a"]), **v2_info({b"b": LEAF})},
}


@pytest.mark.parametrize("info", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_list_is_refused(info):
    with pytest.raises(HostileTorrent) as caught:
        read_torrent(encode({b"info": info}))
    assert caught.value.exit_code == 4
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("info", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_torrent_file_leaves_nothing_behind(info, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.torrent").write_bytes(encode({b"info": info}))
    with pytest.raises(HostileTorrent):
        fetch(resolve_source("x.torrent"), None, SwarmOptions(dht=False))
    assert os.listdir(tmp_path) == ["x.torrent"]


SERVED = ["up", "slash", "absolute", "right-to-left", "twice", "link inside", "executable"]


@pytest.mark.parametrize("kind", SERVED)
def test_hostile_metadata_from_a_peer_leaves_nothing_behind(kind, tmp_path, monkeypatch):
    """The info-hash is right and the peer serves just that info dict; still nothing is made."""
    monkeypatch.chdir(tmp_path)
    info = encode(HOSTILE[kind])
    params = lt.session_params()
    params.settings = {
        "listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False,
        "enable_upnp": False, "enable_natpmp": False,
    }  # fmt: skip
    peer = lt.session(params)
    adding = lt.load_torrent_buffer(b"d4:info" + info + b"e")
    adding.save_path = str(tmp_path / "peer")
    adding.flags = lt.torrent_flags.seed_mode | lt.torrent_flags.upload_mode
    peer.add_torrent(adding)
    while not peer.is_listening():
        peer.wait_for_alert(50)
        peer.pop_alerts()
    magnet = format_magnet(Magnet(hashlib.sha1(info).hexdigest(), name="weights"))
    options = SwarmOptions(
        peers=(("127.0.0.1", peer.listen_port()),), dht=False, metadata_timeout_s=20
    )
    with pytest.raises(HostileTorrent):
        fetch(resolve_source(magnet), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_ten_thousand_mutants_are_read_or_refused_and_nothing_else(tmp_path):
    """No mutation of a good torrent may end in another exception than a refusal."""
    good = encode({b"announce": b"udp://a:1", b"info": info_of([b"a"], [b"b", b"c"], [b"d"])})
    bits = random.Random(0)
    refused = 0
    for _ in range(10_000):
        data = bytearray(good)
        for _ in range(bits.randint(1, 4)):
            at = bits.randrange(len(data))
            match bits.randrange(3):
                case 0:
                    data[at] = bits.randrange(256)
                case 1:
                    del data[at : at + bits.randint(1, 5)]
                case _:
                    data[at:at] = bits.choice([b"d", b"l", b"i9e", b"e", b"9:", b"2:.."])
        try:
            meta = read_torrent(bytes(data))
        except HostileTorrent:
            refused += 1
        else:
            assert all(".." not in file.parts for file in meta.files)
    assert refused > 5000


def test_metadata_larger_than_the_limit_is_refused_at_once():
    with pytest.raises(HostileTorrent, match="at most"):
        read_info(bytes(31_457_281))


def test_padding_is_neither_written_nor_counted():
    info = info_of([b"a"], [b".pad", b"11"], [b"b"])
    info[b"files"][1][b"attr"] = b"p"
    meta = read_torrent(encode({b"info": info}))
    assert [file.path for file in meta.files if not file.pad] == ["a", "b"]
    assert meta.nbytes == 10
