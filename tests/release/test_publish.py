"""A folder becomes RELEASE, .torrent and magnet; libtorrent decides whether they are right."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import threading
import time
from dataclasses import replace

import libtorrent as lt
import pytest

from moetool.errors import (
    DigestMismatch,
    Interrupted,
    OutputExists,
    Refused,
    SystemFault,
    UsageFault,
)
from moetool.release.fetch import fetch
from moetool.release.magnet import format_magnet, parse
from moetool.release.manifest import parse_release_file
from moetool.release.pieces import find_bad, pieces_of
from moetool.release.publish import run as publish
from moetool.release.publish import seeding
from moetool.release.publish.listing import is_listable
from moetool.release.publish.run import Listing
from moetool.release.publish.seeding import SeedOptions
from moetool.release.source import resolve_source
from moetool.release.torrent.bencode import decode
from moetool.release.torrent.create import choose_piece_length
from moetool.release.torrent.layers import with_layers
from moetool.release.torrent.metainfo import read_torrent
from moetool.release.torrent.profile import Proxy, SwarmOptions
from tests.peers import Leecher
from tests.proxies import OUT, serving_proxy
from tests.release.conftest import torrent_by_libtorrent

KIB = 1024
# Sizes about a leaf of 16 KiB and a piece of 32 and 64 KiB; one file lies in a folder.
SIZES = {
    "RELEASE.txt": 1, "a.bin": 100 * KIB, "b": 16 * KIB, "c": 16 * KIB + 1, "d": 32 * KIB - 1,
    "e": 32 * KIB, "empty": 0, "f": 65 * KIB, "g": 64 * KIB, "shards/0.bin": 300_001,
}  # fmt: skip


@pytest.fixture
def make_folder(tmp_path):
    def make(sizes=SIZES, name="rel", below="work", order=sorted):
        folder = tmp_path / below / name
        for path in order(sizes):
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(random.Random(path).randbytes(sizes[path]))
        return folder

    return make


def published(folder, **options):
    return publish.run(publish.plan(folder, **options))


@pytest.mark.parametrize("piece_length", [16 * KIB, 32 * KIB, 64 * KIB, 1 << 20])
def test_both_info_hashes_are_those_of_libtorrents_own_torrent(make_folder, piece_length):
    report = published(make_folder(), piece_length=piece_length)
    theirs = torrent_by_libtorrent(report.folder, "canonical", piece_length)
    info = lt.load_torrent_buffer(theirs).ti
    assert report.info_hash == str(info.info_hashes().v1)
    assert report.info_hash_v2 == str(info.info_hashes().v2)
    assert report.pieces == info.num_pieces()
    ours = decode(report.torrent.read_bytes())
    assert ours[b"piece layers"] == decode(theirs)[b"piece layers"]


def test_one_file_and_a_file_of_whole_pieces_too(make_folder):
    for number, nbytes in enumerate([1, 32 * KIB, 32 * KIB + 1]):
        folder = make_folder({"only.bin": nbytes}, below=f"work{number}")
        report = published(folder, piece_length=32 * KIB, write_release=False)
        info = lt.load_torrent_buffer(torrent_by_libtorrent(folder, "canonical", 32 * KIB)).ti
        assert report.info_hash == str(info.info_hashes().v1)
        assert report.info_hash_v2 == str(info.info_hashes().v2)


@pytest.mark.parametrize("piece_length", [16 * KIB, 64 * KIB, 1 << 20])
def test_the_v1_form_is_that_of_libtorrent_too(make_folder, piece_length):
    """RELEASE is written between other files, in pieces that run across them."""
    folder = make_folder()
    report = published(folder, piece_length=piece_length, v1_only=True)
    assert report.release is Listing.WRITTEN
    theirs = torrent_by_libtorrent(folder, "v1", piece_length)
    info = lt.load_torrent_buffer(theirs).ti
    assert (report.info_hash, report.info_hash_v2) == (str(info.info_hashes().v1), None)
    assert report.pieces == info.num_pieces()
    assert published(folder, piece_length=piece_length, v1_only=True).is_new is False
    with pytest.raises(OutputExists):
        published(folder, piece_length=piece_length)
    (folder / "a.bin").write_bytes(b"changed")
    again = published(folder, piece_length=piece_length, v1_only=True, force=True)
    assert again.release is Listing.REPLACED
    theirs = torrent_by_libtorrent(folder, "v1", piece_length)
    assert again.info_hash == str(lt.load_torrent_buffer(theirs).ti.info_hashes().v1)


def libtorrent_checks(report, save_path):
    """Let libtorrent look at the files; which pieces it finds right."""
    off = dict.fromkeys(["enable_dht", "enable_lsd", "enable_upnp", "enable_natpmp"], False)
    session = lt.session({"listen_interfaces": "127.0.0.1:0", **off})
    adding = lt.load_torrent_file(str(report.torrent))
    adding.save_path = str(save_path)
    adding.flags = lt.torrent_flags.upload_mode | lt.torrent_flags.stop_when_ready
    handle = session.add_torrent(adding)
    until = time.monotonic() + 10
    while str(handle.status().state) not in {"seeding", "finished", "downloading"}:
        assert time.monotonic() < until
        session.wait_for_alert(50)
        session.pop_alerts()
    return list(handle.status().pieces)


def test_libtorrent_finds_every_piece_and_so_do_we(make_folder):
    """``sub-z`` and ``sub/x`` stand in the tree's order, which is not that of whole paths."""
    folder = make_folder({**SIZES, "sub-z": 40_000, "sub/x": 50_000}, order=lambda s: [*s][::-1])
    report = published(folder, piece_length=32 * KIB, trackers=["http://127.0.0.1:1/announce"],
                       web_seeds=["http://127.0.0.1:1/"])  # fmt: skip
    found = libtorrent_checks(report, folder.parent)
    assert len(found) == report.pieces
    assert all(found)
    meta = read_torrent(report.torrent.read_bytes())
    assert find_bad(pieces_of(meta, folder)) == []
    assert meta.file_sizes(folder) == {folder / path: size for path, size in report.files.items()}
    assert (meta.trackers, meta.web_seeds) == (
        ("http://127.0.0.1:1/announce",), ("http://127.0.0.1:1/",),
    )  # fmt: skip
    (folder / "f").write_bytes(bytes(65 * KIB))
    found = libtorrent_checks(report, folder.parent)
    assert len(find_bad(pieces_of(meta, folder))) == found.count(False) == 3


def test_two_people_get_the_same_bytes(make_folder):
    """Neither times, modes, the order of creation nor a second run make a difference."""
    first = published(make_folder(below="one"))
    folder = make_folder(below="two", order=lambda sizes: sorted(sizes, reverse=True))
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
        if path.is_file():
            path.chmod(0o700)
    second = published(folder)
    assert second.torrent.read_bytes() == first.torrent.read_bytes()
    assert second.magnet == first.magnet
    assert b"creat" not in first.torrent.read_bytes()
    again = published(folder)
    assert (again.is_new, again.release, again.magnet) == (False, Listing.KEPT, first.magnet)


def test_every_byte_is_read_once(make_folder):
    folder, read = make_folder(), []
    publish.run(publish.plan(folder), read.append)
    assert sum(read) == sum(SIZES.values())


@pytest.mark.parametrize(
    ("nbytes", "piece_length"),
    [
        (1, 16 * KIB),
        (4_000 * 16 * KIB, 16 * KIB),
        (4_000 * 16 * KIB + 1, 32 * KIB),
        (93_405_585_542, 32 << 20),  # consolidated.00.pth of Mixtral 8x7B has about so many
        (10**13, 64 << 20),
    ],
)
def test_the_piece_size_makes_2000_to_4000_pieces(nbytes, piece_length):
    assert choose_piece_length(nbytes) == piece_length


# --- RELEASE


def test_release_names_every_file_as_readers_find_it(make_folder):
    folder = make_folder({"weights.bin": 70_000, "my notes.txt": 9, "a/b.bin": 5})
    report = published(folder)
    text = (folder / "RELEASE").read_text("utf-8")
    listed = {file.path: file.digests[0].hex for file in parse_release_file(text)}
    assert listed == {
        path: hashlib.md5((folder / path).read_bytes()).hexdigest()
        for path in ("weights.bin", "a/b.bin")  # a name with a space cannot stand in a line
    }
    assert report.release is Listing.WRITTEN
    assert report.release_md5 == hashlib.md5(text.encode()).hexdigest()
    assert len({len(line) for line in text.splitlines()}) == 1
    assert not is_listable("*x")


def test_a_release_of_ones_own_is_kept_and_a_wrong_one_refused(make_folder):
    folder = make_folder({"a.bin": 70_000, "b.bin": 10})
    good = hashlib.md5((folder / "a.bin").read_bytes()).hexdigest()
    (folder / "RELEASE").write_text(f"drawn by hand\n{good}  a.bin\n")
    assert published(folder, force=True).release is Listing.KEPT
    (folder / "a.bin").write_bytes(bytes(70_000))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DigestMismatch) as caught:
        published(folder)
    assert good in caught.value.findings[0]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(OutputExists):
        published(folder, judge_lists=False)
    replaced = published(folder, force=True)
    assert replaced.release is Listing.REPLACED
    assert "drawn" not in (folder / "RELEASE").read_text("utf-8")
    assert published(folder).magnet == replaced.magnet


def test_no_release_writes_nothing_into_the_folder(make_folder):
    folder = make_folder({"a.bin": 70_000})
    report = published(folder, write_release=False)
    assert (report.release, report.files, report.release_md5) == (
        Listing.NONE, {"a.bin": 70_000}, None,
    )  # fmt: skip
    assert os.listdir(folder) == ["a.bin"]


# --- what is left out, and what is refused


def test_records_and_temporary_files_are_left_out(make_folder):
    clean = published(make_folder(below="one"))
    folder = make_folder(below="two")
    for path in (".moetool/release.json", ".cache/x/y", ".pad/77", "a.bin.aria2", "s.partial/f"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("no")
    report = published(folder)
    assert report.magnet == clean.magnet
    assert report.left_out == (".cache/", ".moetool/", ".pad/", "a.bin.aria2", "s.partial/")


def test_names_and_links_that_a_fetch_refuses_are_all_named(make_folder, tmp_path):
    folder = make_folder({"ok": 5})
    (folder / "link").symlink_to(folder / "ok")
    os.mkfifo(folder / "pipe")
    for name in (b"bad\xff", b"back\\slash", b"line\nbreak", b"long" * 61, "e\u0301".encode()):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            file.write(b"x")
    with pytest.raises(Refused) as caught:
        publish.plan(folder)
    text = "\n".join(caught.value.findings)
    assert len(caught.value.findings) == 7
    for words in ("'link' is a symbolic link", "'pipe' is neither", "is not UTF-8",
                  "path separator", "cannot be seen", "longer than 240", "NFC"):  # fmt: skip
        assert words in text
    assert not folder.with_name("rel.torrent").exists()


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("rel", {}, "holds no byte"),
        ("rel", {"empty": 0}, "holds no byte"),
        ("rel.partial", {"a": 1}, "not complete"),
        ("rel", {"a/Weights.bin": 1, "A/weights.bin": 1}, "same name"),
        ("rel", {"rel": 1}, "its own name"),
        ("mixtral-8x7b-32kseqlen", {"a": 1}, "not that of the release"),
        (" rel", {"a": 1}, "would refuse"),
    ],
)
def test_folders_that_cannot_be_published(make_folder, name, sizes, words):
    folder = make_folder(sizes, name=name)
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.raises(Refused, match=words):
        publish.plan(folder, write_release=False)


def test_another_torrent_is_in_the_way_before_anything_is_read(make_folder):
    folder = make_folder()
    first = published(folder)
    with pytest.raises(OutputExists):
        publish.plan(folder, trackers=["udp://127.0.0.1:1/announce"])
    second = published(folder, trackers=["udp://127.0.0.1:1/announce"], force=True)
    assert second.info_hash == first.info_hash
    first.torrent.write_bytes(b"not ours")
    with pytest.raises(OutputExists):
        publish.plan(folder)
    assert first.torrent.read_bytes() == b"not ours"


# --- seeding


@contextlib.contextmanager
def seeded(folder, torrent=None, *, host="127.0.0.1", ratio=None, time_s=20, **reach):
    """Seed in a thread; yields the magnet with our address, ends as Ctrl-C does."""
    told, done, outcome = threading.Event(), threading.Event(), []
    links = []

    def on_listening(magnet, _):
        links.append(magnet)
        told.set()

    def on_progress(_):
        if done.is_set():
            raise KeyboardInterrupt

    def run():
        try:
            meta, where = seeding.find_torrent(folder, torrent)
            options = SeedOptions(SwarmOptions(dht=False, **reach), host, ratio, time_s)
            outcome.append(seeding.seed(meta, where, options, on_listening=on_listening,
                                        on_progress=on_progress))  # fmt: skip
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # the test looks at it
            outcome.append(error)
        told.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert told.wait(15)
    if not links:
        raise outcome[0]
    yield links[0], outcome
    done.set()
    thread.join(15)


def address(magnet):
    host, _, port = parse(magnet).peers[0].rpartition(":")
    return host, int(port)


def test_what_we_seed_is_fetched_byte_for_byte(make_folder, options, tmp_path):
    """By the v2 hash alone; and seeding writes nothing."""
    report = published(make_folder(), piece_length=32 * KIB)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_mode) for p in report.folder.rglob("*")}
    with seeded(report.folder) as (magnet, outcome):
        link = format_magnet(replace(parse(magnet), peers=(), info_hash=None))
        swarm = replace(options(), peers=(address(magnet),))
        fetch(resolve_source(link), tmp_path / "copy", swarm)
    for path, nbytes in report.files.items():
        data = (tmp_path / "copy" / path).read_bytes()
        assert len(data) == nbytes
        assert data == (report.folder / path).read_bytes()
    assert isinstance(outcome[0], Interrupted)
    assert float(outcome[0].what.split()[-1]) >= 1
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_mode) for p in report.folder.rglob("*")}


def test_a_copy_that_came_by_a_link_alone_can_be_seeded(make_folder):
    """Its record has no piece layers, which peers of v2 ask for: they are made anew."""
    report = published(make_folder(), piece_length=32 * KIB)
    whole = read_torrent(report.torrent.read_bytes())
    record = report.folder / ".moetool" / "release.torrent"
    record.parent.mkdir()
    record.write_bytes(replace(whole, piece_layers=()).to_torrent())
    report.torrent.unlink()
    meta, folder = seeding.find_torrent(report.folder, None)
    assert meta.piece_layers == ()
    assert with_layers(meta, folder).piece_layers == tuple(sorted(whole.piece_layers))
    with seeded(folder, time_s=0) as (_, outcome):
        until = time.monotonic() + 10
        while not outcome:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert outcome[0].ended == "time"


def test_the_ratio_ends_it(make_folder, tmp_path):
    report = published(make_folder({"a.bin": 400_000}))
    leecher = Leecher(report.torrent, tmp_path)
    with seeded(report.folder, ratio=0.3) as (magnet, outcome):
        leecher.handle.connect_peer(address(magnet))
        until = time.monotonic() + 15
        while not outcome:
            assert time.monotonic() < until
            time.sleep(0.05)
    assert outcome[0].ended == "ratio"
    assert outcome[0].ratio >= 0.3
    assert outcome[0].uploaded == pytest.approx(outcome[0].ratio * report.nbytes, rel=1e-3)


def test_the_limit_is_that_of_the_torrent(make_folder, monkeypatch):
    """libtorrent gives 98 KB in the first two seconds of a limit: too long for a test to wait."""
    report, limits, wait = published(make_folder()), [], seeding._wait_until_complete
    monkeypatch.setattr(
        seeding,
        "_wait_until_complete",
        lambda stay: (wait(stay), limits.append(stay.handle.upload_limit())),
    )
    with seeded(report.folder, max_up=200_000, time_s=0):
        pass
    assert limits == [200_000]


def test_a_seed_behind_a_proxy_calls_and_is_not_called(make_folder, tmp_path):
    """Who is called sees the proxy alone; the link names no address, and no port is open."""
    report = published(make_folder({"a.bin": 400_000}))
    leecher = Leecher(report.torrent, tmp_path)
    with serving_proxy("socks5") as proxy:
        way = Proxy("socks5", "127.0.0.1", proxy.port)
        peers = (("127.0.0.1", leecher.port),)
        with seeded(report.folder, host=None, ratio=0.9, proxy=way, peers=peers) as (link, outcome):
            until = time.monotonic() + 15
            while not outcome:
                assert time.monotonic() < until
                time.sleep(0.05)
    assert outcome[0].ended == "ratio"
    assert leecher.met() == {OUT}
    assert set(proxy.asked) == set(peers)
    assert parse(link).peers == ()


def test_a_seed_is_set_up_as_a_fetch_is():
    reach = SwarmOptions(dht=False, encryption="require", ipv6=False, interface="127.0.0.1")
    with seeding._listening(SeedOptions(reach), ()) as (swarm, port):
        found = swarm.session.get_settings()
        assert (swarm.session.listen_port(), found["listen_interfaces"]) == (port, "127.0.0.1:0")
        assert (found["outgoing_interfaces"], found["in_enc_policy"]) == ("127.0.0.1", 0)
        assert SeedOptions(reach).where(port) == f"127.0.0.1:{port}"


def test_what_does_not_match_is_named_and_not_seeded(make_folder):
    report = published(make_folder(), piece_length=32 * KIB)
    data = bytearray((report.folder / "shards" / "0.bin").read_bytes())
    data[-1] ^= 1
    data[0] ^= 1
    (report.folder / "shards" / "0.bin").write_bytes(data)
    with pytest.raises(DigestMismatch) as caught, seeded(report.folder):
        pass
    (fault,) = caught.value.findings
    assert fault.startswith("shards/0.bin: 2 pieces are wrong: ")
    (report.folder / "b").unlink()
    with open(report.folder / "c", "ab") as file:
        file.write(b"!")
    with pytest.raises(DigestMismatch) as caught, seeded(report.folder):
        pass
    assert caught.value.findings == ("b is not there", "c: 16386 bytes, not 16385")


def test_a_port_in_use_is_told_before_anything_is_read(make_folder):
    report = published(make_folder({"a.bin": 10}))
    with seeded(report.folder) as (magnet, _):
        (report.folder / "a.bin").write_bytes(b"wrong data")
        with (
            pytest.raises(SystemFault, match="port"),
            seeded(report.folder, port=address(magnet)[1]),
        ):
            pass


def test_which_torrent_is_seeded(make_folder, tmp_path):
    report = published(make_folder())
    copy = tmp_path / "elsewhere"
    shutil.copytree(report.folder, copy)
    with pytest.raises(UsageFault, match="no torrent"):
        seeding.find_torrent(copy, None)
    meta, folder = seeding.find_torrent(copy, report.torrent)
    assert (meta.info_hash, folder) == (report.info_hash, copy)
    (copy / ".moetool").mkdir()
    other = published(make_folder({"x": 5}, below="other"))
    shutil.copy(other.torrent, copy / ".moetool" / "release.torrent")
    assert seeding.find_torrent(copy, None)[0].info_hash == other.info_hash
    shutil.copy(report.torrent, tmp_path / "elsewhere.torrent")
    with pytest.raises(UsageFault, match="two torrents"):
        seeding.find_torrent(copy, None)
