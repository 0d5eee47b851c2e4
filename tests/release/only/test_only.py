"""A part of a release: what was asked for comes, nothing else, and nothing twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from moetool.errors import (
    BadHeader,
    Interrupted,
    NoRoomOnDisk,
    NotFetched,
    OutputExists,
    Refused,
    Stalled,
    UsageFault,
)
from moetool.files.partial import RECORD, find_partial, is_partial
from moetool.formats import open_checkpoint
from moetool.proof.scan.scan import scan
from moetool.release import last_fetched
from moetool.release.only import fetch_only
from moetool.release.provenance import read_origin
from moetool.release.publish.run import plan
from moetool.release.publish.seeding import check
from moetool.release.repair.run import repair
from moetool.release.source import resolve_source
from moetool.release.torrent.profile import SwarmOptions
from moetool.release.torrent.serve import seed
from moetool.release.verify.settle import Word
from tests.release.only.conftest import PIECE, differing, other_form


def test_one_expert_comes_and_little_else(swarm, tiny, tmp_path):
    out = tmp_path / "part"
    report = swarm(tiny, out, "experts.2")
    names = differing(out, tiny)
    assert {name for name in names if "experts" in name} == {
        f"layers.{n}.feed_forward.experts.2.w{w}.weight" for n in range(4) for w in (1, 2, 3)
    }
    with open_checkpoint(tiny.folder) as whole:
        wanted = sum(whole.catalog.tensors[name].nbytes for name in names if "experts" in name)
    # Two runs of three tensors share no piece; each run may begin and end within one.
    assert wanted <= report.held_nbytes <= wanted + (2 * 4 + 5) * PIECE
    assert report.fetched.payload == report.held_nbytes
    assert (report.only, report.nbytes) == (("experts.2",), tiny.meta.nbytes)
    assert report.fetched.verification.verdict is Word.NOT_COVERED
    assert report.ok
    for name in ("RELEASE", "params.json", "tokenizer.model"):
        assert (out / name).read_bytes() == (tiny.folder / name).read_bytes()
    weights = out / "consolidated.00.pth"
    assert weights.stat().st_size == (tiny.folder / weights.name).stat().st_size
    assert weights.stat().st_blocks * 512 < 2 * wanted  # the rest is a hole
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [".moetool", *(path.name for path in tiny.folder.iterdir())]
    )
    assert not (tmp_path / "part.partial").exists()
    assert last_fetched() == out
    assert read_origin(out).fetched_at


def test_headers_around_what_was_fetched_are_here_and_read(swarm, tiny, tmp_path):
    """Of a .pth, the place of a tensor is told twice; one that lies is seen where it counts."""
    out, name = tmp_path / "part", "layers.2.feed_forward.experts.6.w2.weight"
    swarm(tiny, out, name)
    with open_checkpoint(out) as part:
        for extent in part.headers_of(name):
            assert part.sources[extent.path].holds(extent.offset, extent.nbytes)
        extent = part.catalog.extents[name]
    content = extent.path.read_bytes()
    start = content.rindex(b"PK\x03\x04", 0, extent.offset)
    _flip(extent.path, start + 8)  # of the header, the method of compression
    with pytest.raises(BadHeader, match="local header"):
        open_checkpoint(out)


def test_the_same_again_fetches_nothing_and_another_adds(swarm, tiny, tmp_path):
    out = tmp_path / "part"
    first = swarm(tiny, out, "layers.1.experts.0-1", "router")
    again = swarm(tiny, out, "router", "layers.1.experts.0-1")
    assert again.fetched.payload == 0
    assert again.fetched.pieces_kept * PIECE >= first.held_nbytes
    assert again.only == ("layers.1.experts.0-1", "router")
    more = swarm(tiny, out, "layers.1.experts.1-2")
    assert more.only == (*again.only, "layers.1.experts.1-2")
    assert more.fetched.payload == more.held_nbytes - first.held_nbytes
    assert 0 < more.fetched.payload <= 4 * 131_072 + 2 * PIECE
    names = differing(out, tiny)
    assert {n for n in names if "experts" in n} >= {
        f"layers.1.feed_forward.experts.{e}.w{w}.weight" for e in range(3) for w in (1, 2, 3)
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part"]
    assert sorted(path.name for path in (out / ".moetool").iterdir()) == [
        "digests.json", RECORD, "release.json", "release.torrent",
    ]  # fmt: skip


def test_without_only_it_becomes_whole(swarm, tiny, tmp_path):
    out = tmp_path / "part"
    part = swarm(tiny, out, "layers.0")
    whole = swarm(tiny, out)
    assert whole.payload == tiny.meta.nbytes - part.held_nbytes
    assert whole.verification.verdict is Word.MATCH
    assert not is_partial(out)
    assert differing(out, tiny) == _all_names(tiny)
    assert swarm(tiny, out).already_complete
    assert swarm(tiny, out, "layers.0").rest is None


def test_all_that_there_is_needs_no_record(swarm, tiny, tmp_path):
    out = tmp_path / "part"
    swarm(tiny, out, "layers.0-3", "embeddings")
    assert is_partial(out)
    report = swarm(tiny, out, "*")
    assert (report.rest, report.held_nbytes) == (None, tiny.meta.nbytes)
    assert report.fetched.verification.verdict is Word.MATCH
    assert not is_partial(out)


def _all_names(published):
    with open_checkpoint(published.folder) as whole:
        return set(whole.catalog.tensors)


def test_the_tokenizer_alone_costs_headers_and_small_files(swarm, tiny, tmp_path):
    report = swarm(tiny, tmp_path / "part", "tokenizer")
    assert report.held_nbytes <= 5 * PIECE
    with open_checkpoint(tmp_path / "part") as part, pytest.raises(NotFetched):
        part.read("layers.2.attention.wq.weight")


def test_what_names_nothing_is_told_and_the_headers_are_kept(swarm, tiny, tmp_path):
    with pytest.raises(UsageFault) as caught:
        swarm(tiny, tmp_path / "part", "router", "experts.8")
    assert any("experts 0-7" in line for line in caught.value.findings)
    assert [path.name for path in tmp_path.iterdir()] == ["part.partial"]
    report = swarm(tiny, tmp_path / "part", "router")
    assert report.fetched.pieces_kept >= 3
    assert not (tmp_path / "part.partial").exists()


def test_a_fetch_that_was_interrupted_may_go_on_as_a_part(swarm, tiny, tmp_path):
    """What is there already counts, whoever fetched it; and the other way round."""
    stop = _stopper(lambda progress: progress.pieces_done > 60)
    with pytest.raises(Interrupted):
        swarm(tiny, tmp_path / "part", on_progress=stop, max_down=8_000_000)
    report = swarm(tiny, tmp_path / "part", "norms")
    assert report.fetched.pieces_kept > 40
    assert report.held_nbytes - report.fetched.payload > 40 * PIECE
    differing(tmp_path / "part", tiny)
    swarm(tiny, tmp_path / "part")
    assert differing(tmp_path / "part", tiny) == _all_names(tiny)


def _stopper(when):
    def stop(progress):
        if progress.stage == "download" and when(progress):
            raise KeyboardInterrupt

    return stop


def test_an_interrupted_completion_leaves_a_record_and_goes_on(swarm, tiny, tmp_path):
    """At no moment is there a file with holes and no record."""
    out = tmp_path / "part"
    swarm(tiny, out, "layers.0")
    stop = _stopper(lambda progress: progress.pieces_done > 90)
    with pytest.raises(Interrupted):
        swarm(tiny, out, on_progress=stop, max_down=8_000_000)
    assert is_partial(tmp_path / "part.partial")
    assert not out.exists()
    with open_checkpoint(tmp_path / "part.partial") as part, pytest.raises(NotFetched):
        part.read("layers.3.attention.wq.weight")
    whole = swarm(tiny, out)
    assert whole.pieces_kept > 80
    assert not is_partial(out)


def test_a_piece_that_turned_bad_is_fetched_again_and_no_other(swarm, tiny, tmp_path):
    out = tmp_path / "part"
    swarm(tiny, out, "layers.2.experts.5")
    with open_checkpoint(out) as part:
        extent = part.catalog.extents["layers.2.feed_forward.experts.5.w2.weight"]
    _flip(extent.path, extent.offset + 1000)
    report = swarm(tiny, out, "layers.2.experts.5")
    assert report.fetched.payload == PIECE
    assert "layers.2.feed_forward.experts.5.w2.weight" in differing(out, tiny)


def _flip(path, at):
    content = bytearray(path.read_bytes()[at : at + 1])
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([content[0] ^ 0x10]))


def test_a_damaged_record_refuses_reading_and_is_made_anew(swarm, tiny, tmp_path):
    out = tmp_path / "part"
    swarm(tiny, out, "router")
    (out / ".moetool" / RECORD).write_bytes(b"{}")
    with pytest.raises(Refused, match="cannot be understood"):
        open_checkpoint(out)
    report = swarm(tiny, out, "router")
    assert report.fetched.payload == 0
    assert report.only == ("router",)
    assert differing(out, tiny)


def test_files_that_went_are_fetched_again(swarm, tiny, tmp_path):
    out = tmp_path / "part"
    swarm(tiny, out, "router")
    (out / "tokenizer.model").unlink()
    swarm(tiny, out, "router")
    assert (out / "tokenizer.model").read_bytes() == (tiny.folder / "tokenizer.model").read_bytes()


def test_too_little_room_is_refused_before_the_weights_come(swarm, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("moetool.release.only.bytes_free", lambda _: 1_000_000)
    with pytest.raises(NoRoomOnDisk, match="1000000 are free"):
        swarm(tiny, tmp_path / "part", "experts")
    assert not (tmp_path / "part").exists()
    swarm(tiny, tmp_path / "part", "norms")  # which fit


def test_a_folder_of_somebody_else_is_not_touched(swarm, tiny, tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "mine").write_text("mine")
    with pytest.raises(OutputExists):
        swarm(tiny, tmp_path / "part", "router")
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["mine"]


def test_when_no_peer_is_there_the_download_ends_and_says_why(tiny, tmp_path):
    from moetool.cli.fetch_only import wish_for

    options = SwarmOptions(dht=False, stall_timeout_s=1.0)
    source = resolve_source(str(tiny.torrent))
    source = replace(source, magnet=replace(source.magnet, trackers=()))
    with pytest.raises(Stalled, match="0 peers"):
        fetch_only(source, tmp_path / "part", wish_for(["router"]), options)


RUN = """
import sys
from pathlib import Path
from moetool.cli.fetch_only import wish_for
from moetool.release.only import fetch_only
from moetool.release.source import resolve_source
from moetool.release.torrent.profile import SwarmOptions
torrent, out, port, *only = sys.argv[1:]
options = SwarmOptions(peers=(("127.0.0.1", int(port)),), dht=False, max_down=4_000_000)
fetch_only(resolve_source(torrent), Path(out), wish_for(only), options,
           on_progress=lambda p: p.stage == "download" and print(p.pieces_done, flush=True))
"""


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "added"])
def test_after_kill_9_it_goes_on_and_little_is_fetched_again(swarm, tiny, tmp_path, fresh):
    """Killed twice; what was right on the disk is kept, whatever the record says."""
    out, chosen, random_ = tmp_path / "part", "layers.0-2", random.Random(fresh)
    before = 0 if fresh else swarm(tiny, out, "layers.3.experts.0").held_nbytes
    done = 0
    with seed(tiny.torrent, tiny.folder) as peer:
        words = [sys.executable, "-c", RUN, tiny.torrent, out, str(peer.port), chosen]
        for _ in range(2):
            goal = done + random_.randint(20, 40)
            with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
                for line in child.stdout:
                    done = int(line)
                    if done >= goal:
                        break
                child.send_signal(signal.SIGKILL)
            assert child.returncode == -signal.SIGKILL
            if not fresh:  # what was there before can be read while more is added
                with open_checkpoint(out) as part:
                    part.read("layers.3.feed_forward.experts.0.w1.weight")
    report = swarm(tiny, out, chosen)
    assert 40 <= done < 150
    assert report.fetched.payload <= report.held_nbytes - done * PIECE + 3 * PIECE
    assert report.held_nbytes - before > 150 * PIECE
    assert len(differing(out, tiny)) >= 3 * 31


def test_a_part_is_neither_seeded_nor_published(swarm, tiny, tmp_path):
    out = tmp_path / "part"
    swarm(tiny, out, "router")
    with pytest.raises(NotFetched, match="seeding needs all"):
        check(tiny.meta, out)
    with pytest.raises(NotFetched, match="publishing needs all"):
        plan(out)


def test_repair_mends_what_was_fetched_and_fetches_no_more(swarm, tiny, tmp_path):
    out = tmp_path / "part"
    swarm(tiny, out, "layers.1.experts.3")
    held = find_partial(out).held_nbytes
    name = "layers.1.feed_forward.experts.3.w1.weight"
    with open_checkpoint(out) as part:
        extent = part.catalog.extents[name]
    source = resolve_source(str(tiny.torrent))
    assert repair(out, source, other=tiny.folder, offline=True).bad == ()
    _flip(extent.path, extent.offset + 70_000)
    report = repair(out, source, other=tiny.folder, offline=True)
    assert [bad.healed_by for bad in report.bad] == ["copy"]
    assert report.ok
    assert find_partial(out).held_nbytes == held
    assert name in differing(out, tiny)


DEEP = "weights/8x1m"
FORMS = {
    "gguf": ("experts.1", 4 * 3),
    "shards": ("layers.0.experts.0-3", 4 * 3),
    "packed": ("layers.0-1.router", 2),
    "parts": ("layers.1.experts", 8 * 3),
    "hybrid": ("experts.7", 4 * 3),
    "v2": ("experts.0", 4 * 3),
    "deep": ("layers.3.experts.4-7", 4 * 3),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_release(swarm, tmp_path, form):
    """Stacked experts, shards, packed rows, cut uploads; v1, hybrid and v2 torrents."""
    published, out = other_form(tmp_path, form), tmp_path / "part"
    only, n_tensors = FORMS[form]
    report = swarm(published, out, only)
    if form == "deep":  # the weights lie in a folder of the release, the record in its own
        assert is_partial(out)
        published, out = replace(published, folder=published.folder / DEEP), out / DEEP
    names = differing(out, published)
    if form == "gguf":  # an expert is a range of rows: no stacked tensor is here whole
        _assert_only_rows_of_expert_1(out, published)
    elif form != "packed":
        assert len([name for name in names if ".experts." in name]) == n_tensors
    assert report.fetched.payload <= report.held_nbytes + PIECE
    assert report.held_nbytes < 0.45 * report.nbytes
    if form == "shards":
        holds = {path.name: path.stat().st_blocks * 512 for path in out.glob("*.safetensors")}
        assert sum(nbytes > 3 * PIECE for nbytes in holds.values()) <= 2  # the others: headers
    if form == "deep":
        return
    again = swarm(published, out, only)
    assert again.fetched.payload == 0
    whole = swarm(published, out)
    assert whole.verification.verdict is Word.MATCH
    assert whole.payload <= report.nbytes - report.held_nbytes + 2 * PIECE
    assert differing(out, published) == _all_names(published)


def _assert_only_rows_of_expert_1(out, published):
    name = "blk.2.ffn_down_exps.weight"
    with open_checkpoint(out) as part, open_checkpoint(published.folder) as whole:
        each = whole.catalog.tensors[name].nbytes // 8
        assert part.read(name, each, 2 * each) == whole.read(name, each, 2 * each)
        assert not part.holds(name)
        with pytest.raises(NotFetched):
            part.read(name, 3 * each, 4 * each)
        assert scan(part).n_tensors == 4 * 3  # w1 w2 w3 of the expert in four layers


def test_a_v2_link_without_piece_digests_is_refused_before_a_file_exists(swarm, tmp_path):
    published = other_form(tmp_path, "v2")
    bare = read_without_layers(published)
    with pytest.raises(Refused, match="does not say what its single pieces are"):
        swarm(bare, tmp_path / "part", "router")
    assert not (tmp_path / "part").exists()
    assert not list((tmp_path / "part.partial").glob("*.pth"))


def read_without_layers(published):
    from moetool.release.torrent.bencode import decode, encode

    outer = decode(published.torrent.read_bytes())
    del outer[b"piece layers"]
    bare = published.torrent.with_name("bare.torrent")
    bare.write_bytes(encode(outer))
    return replace(published, torrent=bare)
