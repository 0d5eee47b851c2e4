"""`moetool fetch --convert` as a user meets it."""

from __future__ import annotations

import json

import pytest

from moetool.proof.certificate.record import CERTIFICATE
from moetool.release.fixture import find_fixture
from moetool.release.torrent.metainfo import read_torrent
from moetool.release.torrent.serve import seed
from tests.convert.arriving.conftest import contents


@pytest.fixture
def fixture():
    return find_fixture()


def test_one_line_makes_both_folders_and_says_so(moetool, fixture, tmp_path):
    with seed(fixture.torrent, fixture.directory) as peer:
        done = moetool("fetch", fixture.torrent, "--out", "raw", "--convert", "gguf",
                       "--peer", peer.peer, "--no-dht", check=0)  # fmt: skip
    assert (tmp_path / "raw" / "consolidated.00.pth").exists()
    assert (tmp_path / "raw-gguf" / "raw-gguf.gguf").exists()
    assert "mistral -> gguf (gguf) in" in done.stdout
    assert "moetool certify" in done.stderr
    moetool("certify", "raw", "raw-gguf", check=0)


@pytest.mark.parametrize("here", [False, True], ids=["comes", "is here already"])
def test_with_a_certificate_it_is_what_convert_makes_to_the_last_byte(
    moetool, fixture, tmp_path, here
):
    words = ["--out", "raw", "--no-dht", "--peer"]
    with seed(fixture.torrent, fixture.directory) as peer:
        if here:
            moetool("fetch", fixture.torrent, *words, peer.peer, check=0)
        done = moetool("fetch", fixture.torrent, *words, peer.peer, "--convert", "safetensors",
                       "--convert-out", "hf", "--certificate", check=0)  # fmt: skip
    assert "EQUAL" in done.stdout
    assert "moetool certify" not in done.stderr
    made = contents(tmp_path / "hf")
    assert CERTIFICATE in made
    (tmp_path / "hf").rename(tmp_path / "live")
    moetool("convert", "raw", "--to", "safetensors", "--out", "hf", check=0)
    assert made == contents(tmp_path / "hf")


@pytest.mark.parametrize("keep", ["--keep", "--no-keep"])
def test_published_it_has_the_torrent_that_publish_makes_later(moetool, fixture, tmp_path, keep):
    with seed(fixture.torrent, fixture.directory) as peer:
        done = moetool("fetch", fixture.torrent, "--out", "raw", "--no-dht", "--peer", peer.peer,
                       "--convert", "safetensors", "--convert-out", "hf", keep, "--publish",
                       check=0)  # fmt: skip
    torrent = tmp_path / "hf.torrent"
    made = torrent.read_bytes()
    assert f"btih:{read_torrent(made).info_hash}" in done.stdout
    torrent.unlink()
    moetool("publish", "hf", "--no-release", check=0)
    assert torrent.read_bytes() == made


def test_without_the_raw_files_one_folder_remains_and_is_taken_next(moetool, fixture, tmp_path):
    with seed(fixture.torrent, fixture.directory) as peer:
        done = moetool("fetch", fixture.torrent, "--out", "raw", "--convert", "safetensors",
                       "--convert-out", "hf", "--no-keep", "--max-shard-size", "3MB", "--json",
                       "--peer", peer.peer, "--no-dht", check=0)  # fmt: skip
    report = json.loads(done.stdout)
    assert (report["schema"], report["ok"], report["kept"]) == (
        "moetool.fetch-convert",
        True,
        False,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]
    assert "hf" in moetool("inspect", check=0).stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--no-keep"], 2),
        (["--layout", "hf"], 2),
        (["--certificate"], 2),
        (["--publish"], 2),
        (["--convert", "gguf", "--certificate", "--no-keep"], 2),
        (["--convert", "onnx"], 2),
        (["--convert", "gguf", "--dtype", "f8"], 2),
        (["--convert", "safetensors", "--max-shard-size", "many"], 2),
    ],
)
def test_what_cannot_be_meant_is_2_and_leaves_nothing(moetool, fixture, tmp_path, words, code):
    moetool("fetch", fixture.torrent, "--out", "raw", "--no-dht", *words, check=code)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_there_is_7_before_a_peer_is_asked(moetool, fixture, tmp_path):
    (tmp_path / "raw-hf").mkdir()
    moetool("fetch", fixture.torrent, "--out", "raw", "--no-dht", "--convert", "safetensors",
            check=7)  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["raw-hf"]
