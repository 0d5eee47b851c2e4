"""`moetool verify` as a user meets it: which file, bytes and expert, and what is proven."""

from __future__ import annotations

import json
import os
import re

import pytest

from moetool.formats import open_checkpoint
from moetool.release.fetch import fetch
from moetool.release.source import resolve_source
from moetool.release.torrent.profile import SwarmOptions
from moetool.release.torrent.serve import seed


def _flip(path, at):
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_every_reference_is_used_in_one_pass(moetool, published):
    done = moetool("verify", published.folder, "--release-md5", published.release_md5, check=0)
    for words in ("sha1", "RELEASE", "zip CRC-32", "post", "origin   UNPROVEN"):
        assert words in done.stdout
    assert re.search(r"^MATCH  4 files", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("spelled", ["publisher/small-moe", "./publisher/../publisher/small-moe"])
def test_a_flipped_bit_names_file_range_and_the_expert(moetool, published, spelled):
    weights = published.folder / "consolidated.00.pth"
    with open_checkpoint(published.folder) as checkpoint:
        name = next(name for name in checkpoint.catalog.tensors if "experts.1.w2" in name)
        extent = checkpoint.catalog.extents[name]
    _flip(weights, extent.offset + extent.nbytes // 2)
    done = moetool("verify", spelled, check=3)
    assert "consolidated.00.pth" in done.stdout
    assert f"({name})" in done.stdout
    assert re.search(r"damaged: consolidated\.00\.pth bytes \d+-\d+: .*expert 1 w2 rows? \d+",
                     done.stdout)  # fmt: skip


def test_the_document_has_expected_and_found(moetool, published):
    _flip(published.folder / "tokenizer.model", 5000)
    document = json.loads(moetool("verify", published.folder, "--json", check=3).stdout)
    assert (document["schema"], document["ok"], document["verdict"]) == (
        "moetool.verify", False, "MISMATCH",
    )  # fmt: skip
    wrong = document["unsettled"][0]
    assert wrong["expected"] != wrong["found"]
    assert any("tokenizer.model bytes" in line for line in document["damaged"])


def test_without_a_reference_nothing_is_called_a_match(moetool, published):
    published.torrent.unlink()
    (published.folder / "RELEASE").unlink()
    done = moetool("verify", published.folder, check=0)
    assert re.search(r"^NOT COVERED  3 files", done.stdout, re.MULTILINE)
    assert "not covered by a publisher's reference" in done.stdout


def test_a_damaged_zip_directory_is_a_mismatch_where_a_reference_knows_better(moetool, published):
    weights = published.folder / "consolidated.00.pth"
    _flip(weights, weights.stat().st_size - 4)
    moetool("verify", published.folder, check=3)
    published.torrent.unlink()
    (published.folder / "RELEASE").unlink()
    moetool("verify", published.folder, check=4)


def test_one_file_is_judged_alone(moetool, published):
    document = json.loads(
        moetool("verify", published.folder / "tokenizer.model", "--json", check=0).stdout
    )
    assert [file["word"] for file in document["files"]] == ["MATCH"]


def test_a_torrent_can_be_given(moetool, published, tmp_path):
    other = tmp_path / "elsewhere.torrent"
    published.torrent.rename(other)
    (published.folder / "params.json").unlink()
    done = moetool("verify", published.folder, "--torrent", other, check=3)
    assert "missing" in done.stdout


def test_a_pipe_is_refused_and_not_waited_for(moetool, published):
    os.mkfifo(published.folder / "pipe")
    moetool("verify", published.folder, check=4)


def test_a_hostile_name_is_printed_harmlessly(moetool, published):
    (published.folder / "\x1b[2Jx\u202e.txt").write_text("x")
    done = moetool("verify", published.folder, check=0)
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout


def test_a_source_that_is_not_ours_is_not_written_to(moetool, published):
    before = sorted(os.listdir(published.folder))
    moetool("verify", published.folder, check=0)
    assert sorted(os.listdir(published.folder)) == before


@pytest.fixture
def fetched(published, tmp_path):
    with seed(published.torrent, published.folder) as seeder:
        options = SwarmOptions(peers=((seeder.host, seeder.port),), dht=False)
        return fetch(resolve_source(str(published.torrent)), tmp_path / "got", options).path


def test_a_fetched_folder_knows_its_torrent_and_keeps_the_record(moetool, fetched):
    record = fetched / ".moetool" / "digests.json"
    record.unlink()
    done = moetool("verify", fetched, check=0)
    assert re.search(r"^MATCH  4 files", done.stdout, re.MULTILINE)
    digests = json.loads(record.read_text())["files"]
    assert len(digests) == 4
    assert all(len(entry["sha256"]) == 64 for entry in digests.values())
