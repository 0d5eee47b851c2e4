"""A link that selects files (BEP 53): those come and are proven, of the others nothing stays."""

from __future__ import annotations

import shutil

import pytest

from moetool.errors import UsageFault
from moetool.release.fetch import fetch
from moetool.release.magnet import Magnet, format_magnet, parse
from moetool.release.pieces import find_bad, pieces_of
from moetool.release.provenance import read_origin, read_recorded_torrent
from moetool.release.publish.seeding import find_torrent
from moetool.release.repair.run import repair
from moetool.release.repair.subject import find_source
from moetool.release.source import resolve_source
from moetool.release.torrent.selection import absent_pieces, select, wanted_pieces
from moetool.release.torrent.serve import seed
from moetool.release.verify.settle import Word
from tests.release.conftest import torrent_by_libtorrent

# RELEASE, consolidated.00.pth, params.json, tokenizer.model: in this order, numbers 0 to 3.
ALL = {"RELEASE", "consolidated.00.pth", "params.json", "tokenizer.model"}


def names_in(folder):
    return {path.name for path in folder.iterdir()} - {".moetool"}


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("0", ((0, 0),)),
        ("0,2-4", ((0, 0), (2, 4))),
        ("0%2C2-4", ((0, 0), (2, 4))),
        ("4-2,x,-1,1-,7", ((7, 7),)),
        ("", ()),
    ],
)
def test_a_selection_is_read_and_written(text, runs):
    magnet = parse(f"magnet:?xt=urn:btih:{'ab' * 20}&so={text}")
    assert magnet.selected == runs
    assert parse(format_magnet(magnet)) == magnet


def test_which_pieces_are_wanted_and_which_cannot_be_judged(release):
    chosen = select(release.meta, {"params.json"})
    assert wanted_pieces(chosen) == {45}
    assert 45 in absent_pieces(chosen)
    assert wanted_pieces(release.meta) == set(range(49))
    assert absent_pieces(release.meta) == set()
    assert select(chosen, None) == release.meta


def test_only_what_is_selected_comes(release, options, tmp_path):
    out, told = tmp_path / "out", []
    with seed(release.torrent, release.folder) as peer:
        report = fetch(
            resolve_source(f"{release.magnet}&so=0,3"), out, options(peer),
            on_progress=lambda now: told.append(now.told) if now.told else None,
        )  # fmt: skip
    assert names_in(out) == {"RELEASE", "tokenizer.model"}
    for name in names_in(out):
        assert (out / name).read_bytes() == (release.folder / name).read_bytes()
    assert report.selected == ("RELEASE", "tokenizer.model")
    assert report.payload < release.meta.nbytes / 4
    words = {file.path.name: file.word for file in report.verification.files}
    assert words["tokenizer.model"] is Word.MATCH  # by the md5 of RELEASE
    assert words["RELEASE"] is Word.NOT_COVERED  # it shares its piece with weights
    assert told[0] == "2 of 4 files are selected: RELEASE, tokenizer.model"
    assert read_origin(out).selected == ("RELEASE", "tokenizer.model")


def test_a_second_run_needs_no_network_and_more_can_be_asked_for(release, options, tmp_path):
    out = tmp_path / "out"
    with seed(release.torrent, release.folder) as peer:
        fetch(resolve_source(f"{release.magnet}&so=3"), out, options(peer))
    assert fetch(resolve_source(f"{release.magnet}&so=3"), out, options()).already_complete
    with seed(release.torrent, release.folder) as peer:
        wider = fetch(resolve_source(f"{release.magnet}&so=2"), out, options(peer))
        assert names_in(out) == {"params.json", "tokenizer.model"}
        assert wider.pieces_kept >= 2  # of the tokenizer's three
        fetch(resolve_source(release.magnet), out, options(peer))
    assert release.same_as(out)
    assert read_origin(out).selected is None
    fetch(resolve_source(f"{release.magnet}&so=2"), out, options())
    assert names_in(out) == ALL  # what was fetched whole stays whole


def test_damage_of_what_was_selected_is_found_and_mended(release, options, tmp_path):
    out = tmp_path / "out"
    with seed(release.torrent, release.folder) as peer:
        fetch(resolve_source(f"{release.magnet}&so=1"), out, options(peer))
        assert names_in(out) == {"consolidated.00.pth"}
        weights = out / "consolidated.00.pth"
        content = bytearray(weights.read_bytes())
        content[700_000] ^= 1
        weights.write_bytes(content)
        meta = read_recorded_torrent(out)
        assert len(find_bad(pieces_of(meta, out))) == 1
        report = repair(out, find_source(out, None), options=options(peer))
    assert report.ok
    assert len(report.bad) == 1
    assert names_in(out) == {"consolidated.00.pth"}
    assert weights.read_bytes() == (release.folder / weights.name).read_bytes()


@pytest.mark.parametrize("kind", ["v2", "hybrid"])
def test_pieces_that_end_with_their_file_are_all_proven(release, options, tmp_path, kind):
    torrent, out = tmp_path / "v2.torrent", tmp_path / "out"
    torrent.write_bytes(torrent_by_libtorrent(release.folder, kind))
    meta = resolve_source(str(torrent)).meta
    number = [file.path for file in meta.files].index("tokenizer.model")
    link = format_magnet(
        Magnet(meta.info_hash, meta.info_hash_v2, meta.name, selected=((number, number),))
    )
    with seed(torrent, release.folder) as peer:
        report = fetch(resolve_source(link), out, options(peer))
    assert names_in(out) == {"tokenizer.model"}
    assert report.verification.verdict is Word.MATCH
    name = "tokenizer.model"
    assert (out / name).read_bytes() == (release.folder / name).read_bytes()


def test_a_selection_of_nothing_and_a_part_that_is_to_be_seeded(release, options, tmp_path):
    out = tmp_path / "out"
    with seed(release.torrent, release.folder) as peer:
        with pytest.raises(UsageFault, match="selects none of the 4 files"):
            fetch(resolve_source(f"{release.magnet}&so=9"), out, options(peer))
        assert not out.exists()
        fetch(resolve_source(f"{release.magnet}&so=3"), out, options(peer))
    with pytest.raises(UsageFault, match="only some files"):
        find_torrent(out, None)


def test_what_an_interrupted_run_left_is_kept(release, options, tmp_path):
    """Files of another run, as kill -9 leaves them, with a part file of libtorrent's."""
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    with seed(release.torrent, release.folder) as peer:
        fetch(resolve_source(f"{release.magnet}&so=1"), out, options(peer))
        out.rename(partial)
        (partial / f".{release.meta.info_hash}.parts").write_bytes(b"\0" * 100)
        report = fetch(resolve_source(f"{release.magnet}&so=1"), out, options(peer))
    assert names_in(out) == {"consolidated.00.pth"}
    assert (report.pieces, report.pieces_kept) == (46, 44)  # two reach into other files
    assert report.payload <= 3 * release.meta.piece_length


def test_verify_and_inspect_know_of_the_selection(moetool, release, options, tmp_path):
    out = tmp_path / "out"
    with seed(release.torrent, release.folder) as peer:
        fetch(resolve_source(f"{release.magnet}&so=3"), out, options(peer))
    moetool("verify", out, check=0)
    shutil.copy(release.folder / "RELEASE", out)
    moetool("verify", out, check=0)
    (out / "tokenizer.model").write_bytes(b"other")
    moetool("verify", out, check=3)
    done = moetool("fetch", f"{release.magnet}&so=3", "--convert", "gguf", check=2)
    assert "hint: leave out --convert" in done.stderr
    moetool("fetch", f"{release.magnet}&so=3", "--only", "router", check=2)
