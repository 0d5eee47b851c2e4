"""An upload that was cut in parts: every command gives what it gives of the whole."""

from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from moetool.files.joined import on_disk
from moetool.formats import open_checkpoint
from moetool.release.provenance import Origin, write_origin
from moetool.release.torrent.metainfo import read_torrent
from moetool.release.torrent.serve import seed
from tests.cli.conftest import torrent_of

WEIGHTS = "consolidated.00.pth"
COUNT = 12


def cut(folder: Path) -> None:
    """Cut the weights in parts, each a byte or so longer than an even share would be."""
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    marks = [len(content) * n // COUNT + (n % 3 if 0 < n < COUNT else 0) for n in range(COUNT + 1)]
    for number, (start, stop) in enumerate(pairwise(marks)):
        (folder / f"{WEIGHTS}-split{number}").write_bytes(content[start:stop])


@pytest.fixture
def in_parts(published, tmp_path):
    """A copy of the release in parts; the RELEASE file in it speaks of the whole."""
    folder = shutil.copytree(published.folder, tmp_path / "parts" / "small-moe")
    cut(folder)
    return folder


@pytest.fixture
def parts_torrent(in_parts):
    """A torrent that lists the parts, sorted by letters, so pieces run from -split1 to -split10."""
    path = in_parts.with_name("parts.torrent")
    path.write_bytes(torrent_of(in_parts))
    return path


@pytest.fixture(params=["no torrent", "of the whole", "of the parts"])
def torrent_words(request, published, parts_torrent):
    return {
        "no torrent": [],
        "of the whole": ["--torrent", published.torrent],
        "of the parts": ["--torrent", parts_torrent],
    }[request.param]


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def flip(folder, tensor="layers.1.feed_forward.experts.2.w2.weight", row=3):
    """Flip a bit in a row of a tensor, in whatever part it lies; 40 columns of two bytes."""
    with open_checkpoint(folder) as checkpoint:
        extent = checkpoint.catalog.extents[tensor]
    at = type(extent)(extent.path, extent.offset + row * 80, 1)
    (place,) = on_disk(at)
    data = bytearray(place.path.read_bytes())
    data[place.offset] ^= 1
    place.path.write_bytes(data)
    return place.path


def test_digests_of_the_whole_and_of_the_parts_both_count(moetool, in_parts, torrent_words):
    before = names(in_parts)
    done = moetool("verify", in_parts, *torrent_words, "--json", check=0)
    report = json.loads(done.stdout)
    (weights,) = [f for f in report["files"] if Path(f["path"]).name == WEIGHTS]
    assert weights["word"] == "MATCH"
    assert not [f for f in report["files"] if "split" in f["path"]]
    by = {cover["algorithm"]: cover for cover in weights["coverage"]}
    assert {"md5", "crc32"} <= set(by)
    for cover in by.values():
        assert cover["claims"] == cover["matched"]
    if torrent_words:
        assert report["verdict"] == "MATCH"
        pieces = read_torrent(torrent_words[1].read_bytes()).pieces
        assert by["sha1"]["claims"] <= len(pieces) // 20
    assert names(in_parts) == before


def test_a_flipped_byte_in_a_part_is_named_by_tensor_and_row(moetool, in_parts, torrent_words):
    flip(in_parts)
    done = moetool("verify", in_parts, *torrent_words, check=3)
    assert re.search(
        rf"damaged: {WEIGHTS} bytes \d+-\d+: layers\.1 expert 2 w2 rows? .*experts\.2\.w2",
        done.stdout,
    )


def test_any_name_of_it_may_be_given(moetool, in_parts):
    shown = {
        moetool("inspect", path, check=0).stdout.split("\n", 1)[1]
        for path in (in_parts / WEIGHTS, in_parts / f"{WEIGHTS}-split10")
    }
    assert len(shown) == 1
    assert moetool("inspect", cwd=in_parts, check=0).stdout


def test_reports_are_those_of_the_whole(moetool, published, in_parts):
    def told(*words):
        """The document, but for what depends on where it lies and how long it took."""
        table = json.loads(moetool(*words, "--json", check=0).stdout)
        return {key: value for key, value in table.items() if key not in {"path", "seconds"}}

    assert told("inspect", in_parts) == told("inspect", published.folder)
    assert told("identity", in_parts)["root"] == told("identity", published.folder)["root"]
    assert moetool("scan", in_parts, check=0).stdout == moetool(
        "scan", published.folder, check=0
    ).stdout.replace(str(published.folder), str(in_parts))
    moetool("diff", published.folder / WEIGHTS, in_parts / WEIGHTS, check=0)


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_a_conversion_of_parts_is_that_of_the_whole(moetool, published, in_parts, tmp_path, kind):
    before = names(in_parts)
    for source, out in ((published.folder, "a"), (in_parts, "b")):
        (source / "tokenizer.model").unlink()
        moetool("convert", source, "--to", kind, "--out", f"{out}/model", check=0)
    one, two = (tmp_path / out / "model" for out in "ab")
    made = {path.name for path in one.iterdir()}
    assert made == {path.name for path in two.iterdir()}
    # These two hold the times and names of the source's files.
    for name in made - {"moetool-manifest.json", "moetool-certificate.json"}:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert names(in_parts) == [name for name in before if name != "tokenizer.model"]
    moetool("certify", in_parts, two, check=0)
    moetool("certify", in_parts / WEIGHTS, two, check=0)
    moetool("convert", in_parts, "--to", "safetensors", "--dry-run", check=0)


def test_a_dry_run_of_parts_that_are_still_coming(moetool, in_parts, parts_torrent, tmp_path):
    """The torrent promises the parts; the plan is that of the whole."""
    (in_parts / "tokenizer.model").unlink()
    whole = json.loads(
        moetool("convert", in_parts, "--to", "safetensors", "--dry-run", "--json", check=0).stdout
    )
    meta = read_torrent(parts_torrent.read_bytes())
    write_origin(in_parts, meta, Origin(meta.name, meta.hashes, "magnet:?"))
    for number in (3, 10):
        (in_parts / f"{WEIGHTS}-split{number}").unlink()
    coming = json.loads(
        moetool("convert", in_parts, "--to", "safetensors", "--dry-run", "--json", check=0).stdout
    )
    assert coming["gaps"] == [f"'{WEIGHTS}' is missing"]
    assert coming["files"].keys() == whole["files"].keys()
    for number in (3, 10):
        with (in_parts / f"{WEIGHTS}-split{number}").open("wb") as file:
            file.truncate(meta.file_sizes(in_parts)[in_parts / f"{WEIGHTS}-split{number}"])
    holes = json.loads(
        moetool("convert", in_parts, "--to", "safetensors", "--dry-run", "--json", check=0).stdout
    )
    size = sum(path.stat().st_size for path in in_parts.glob("*-split*"))
    assert re.fullmatch(
        rf"{WEIGHTS} is being fetched: [\d,]+ of {size:,} bytes are here", holes["gaps"][0]
    )


@pytest.mark.parametrize("command", ["verify", "inspect", "identity", "scan"])
def test_what_is_missing_is_said_by_every_command(moetool, in_parts, command):
    (in_parts / f"{WEIGHTS}-split4").unlink()
    for path in (in_parts, in_parts / WEIGHTS, in_parts / f"{WEIGHTS}-split0"):
        done = moetool(command, path, check=4)
        assert f"missing: {WEIGHTS}-split4" in done.stderr
        assert "hint:" in done.stderr


def test_a_last_part_that_is_missing_is_found_by_the_digest(moetool, in_parts):
    """Nothing but a digest, or the zip's own directory at the end, can know that it was there."""
    (in_parts / f"{WEIGHTS}-split11").unlink()
    done = moetool("verify", in_parts, check=3)
    assert f"MISMATCH  {WEIGHTS} bytes" in done.stdout
    moetool("inspect", in_parts, check=4)


def test_two_uploads_in_one_folder_are_refused(moetool, in_parts):
    for number in range(2):
        (in_parts / f"consolidated.safetensors-split{number}").write_bytes(b"x")
    assert "more than one checkpoint" in moetool("inspect", in_parts, check=4).stderr


def test_a_torrent_of_parts_is_fetched_and_proven_as_the_whole(
    moetool, in_parts, parts_torrent, tmp_path
):
    with seed(parts_torrent, in_parts) as seeder:
        done = moetool(
            "fetch", parts_torrent, "--peer", seeder.peer, "--no-dht", "--out", "got", "--json",
            check=0,
        )  # fmt: skip
    report = json.loads(done.stdout)["verification"]
    (weights,) = [f for f in report["files"] if Path(f["path"]).name == WEIGHTS]
    assert weights["path"] == str(tmp_path / "got" / WEIGHTS)
    assert {cover["reference"].partition(" ")[0] for cover in weights["coverage"]} == {
        "torrent", "RELEASE",
    }  # fmt: skip
    assert report["verdict"] == "MATCH"
    assert not (tmp_path / "got" / WEIGHTS).exists()
    moetool("certify", "got", "got", check=0)


@pytest.mark.parametrize("copy", ["whole", "parts", "the whole's file"])
@pytest.mark.parametrize("listed", ["whole", "parts"])
def test_a_bad_part_is_healed_in_place(
    moetool, published, in_parts, parts_torrent, tmp_path, copy, listed
):
    """A torrent of either form, a copy of either form: one piece is written, into the part."""
    good = shutil.copytree(in_parts, tmp_path / "good" / "small-moe")
    part = flip(in_parts)
    before = {path.name: path.stat().st_mtime_ns for path in in_parts.iterdir()}
    other = {"whole": published.folder, "parts": good,
             "the whole's file": published.folder / WEIGHTS}[copy]  # fmt: skip
    torrent = published.torrent if listed == "whole" else parts_torrent
    done = moetool("repair", in_parts, "--torrent", torrent, "--from", other, "--offline", check=0)
    assert "layers.1 expert 2 w2 row 3" in done.stdout
    for path in good.iterdir():
        assert (in_parts / path.name).read_bytes() == path.read_bytes()
    changed = {p.name for p in in_parts.iterdir() if before.get(p.name) != p.stat().st_mtime_ns}
    assert changed == {part.name}


def test_parts_of_another_length_are_not_repaired(moetool, published, in_parts):
    """Which of them lacks the byte cannot be known."""
    part = in_parts / f"{WEIGHTS}-split2"
    part.write_bytes(part.read_bytes()[:-1])
    words = ["repair", in_parts, "--torrent", published.torrent, "--from", published.folder]
    before = {path.name: path.read_bytes() for path in in_parts.iterdir()}
    assert "its parts hold" in moetool(*words, "--offline", check=4).stderr
    assert before == {path.name: path.read_bytes() for path in in_parts.iterdir()}


def test_parts_are_published_as_the_files_that_they_are(moetool, in_parts, tmp_path):
    (in_parts / "RELEASE").unlink()
    moetool("publish", in_parts, check=0)
    assert f"{WEIGHTS}-split10" in (in_parts / "RELEASE").read_text(encoding="utf-8")
    moetool("verify", in_parts, check=0)
    flip(in_parts)
    assert "layers.1 expert 2 w2" in moetool("verify", in_parts, check=3).stdout


def test_the_runner_speaks_from_parts_as_from_the_whole(moetool, tiny_release, tmp_path):
    """Text, loss and smoke test of the trained tiny release, read from twelve parts."""
    folder = shutil.copytree(tiny_release, tmp_path / "tiny-mixtral-8x1m")
    cut(folder)
    words = ["--prompt", "Once upon a time", "--max-tokens", "8", "--device", "cpu"]
    said = [moetool("generate", path, *words, check=0).stdout for path in (folder, tiny_release)]
    assert said[0] == said[1]
    moetool("smoke-test", folder / WEIGHTS, "--quick", "--device", "cpu", check=0)
    assert not (folder / WEIGHTS).exists()
