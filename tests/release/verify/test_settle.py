"""Claims are settled honestly: four words, every byte counted, damage found where it is."""

from __future__ import annotations

import hashlib
import json
import random

import pytest

from moetool.errors import InTheWay, ReadFailed
from moetool.extents import Claim, Digest, Extent, LocalFile
from moetool.release.manifest import list_claims
from moetool.release.torrent.metainfo import claims
from moetool.release.verify.references import references, trust_lines
from moetool.release.verify.settle import Word, settle
from moetool.reports import to_json


@pytest.fixture
def check(release):
    def run(**more):
        found = references(release.folder, release.meta, release_md5=release.release_md5)
        return settle(found, release.meta.file_sizes(release.folder), **more)

    return run


def _words(report):
    return {file.path.name: file.word.value for file in report.files}


def test_an_honest_folder_matches_by_every_reference(check, release):
    report = check()
    assert report.verdict is Word.MATCH
    assert report.ok
    covers = {(c.reference.split()[0], c.algorithm) for f in report.files for c in f.coverage}
    assert covers == {("torrent", "sha1"), ("RELEASE", "md5"), ("post", "md5")}
    for file in report.files:
        data = file.path.read_bytes()
        recorded = {digest.algorithm: digest.hex for digest in file.digests}
        assert recorded["sha256"] == hashlib.sha256(data).hexdigest()
        assert set(recorded) == {"sha256", "xxh3_128"}


def test_any_flipped_bit_is_found_in_the_right_file_and_place(check, release):
    bits = random.Random(7)
    files = [file for file in release.meta.files if file.nbytes]
    for _ in range(40):
        file = bits.choice(files)
        path, at = release.folder / file.path, bits.randrange(file.nbytes)
        good = path.read_bytes()
        data = bytearray(good)
        data[at] ^= 1 << bits.randrange(8)
        path.write_bytes(data)
        report = check(record=())
        path.write_bytes(good)
        assert report.verdict is Word.MISMATCH
        hits = [e for f in report.files for e in f.damage if e.path == path]
        assert any(extent.offset <= at < extent.end for extent in hits)
        assert all(extent.nbytes <= release.meta.piece_length for extent in hits)


def test_a_missing_file_is_a_mismatch_and_the_list_still_covers_its_neighbours(check, release):
    (release.folder / "params.json").unlink()
    report = check()
    assert _words(report) == {
        "RELEASE": "MATCH",
        "consolidated.00.pth": "MATCH",
        "params.json": "MISMATCH",
        "tokenizer.model": "MATCH",
    }
    assert "missing" in report.files[2].notes[0]


def test_without_a_list_the_border_beside_a_missing_file_is_not_covered(release):
    (release.folder / "params.json").unlink()
    found = claims(release.meta, release.folder)
    words = _words(settle(found, release.meta.file_sizes(release.folder)))
    assert words == {
        "RELEASE": "MATCH",
        "consolidated.00.pth": "NOT COVERED",
        "params.json": "MISMATCH",
        "tokenizer.model": "NOT COVERED",
    }


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"x", lambda _: b""])
def test_a_file_of_another_size_is_a_mismatch(check, release, change):
    path = release.folder / "tokenizer.model"
    path.write_bytes(change(path.read_bytes()))
    report = check()
    assert _words(report)["tokenizer.model"] == "MISMATCH"
    assert any("expected 100003 bytes" in note for f in report.files for note in f.notes)


def test_an_unreadable_range_does_not_stop_the_other_files(check, release, monkeypatch):
    good = LocalFile.pread_into

    def failing(self, buffer, offset):
        if self.path.name == "consolidated.00.pth" and offset:
            raise ReadFailed("EIO while reading at byte 1048576")
        return good(self, buffer, offset)

    monkeypatch.setattr(LocalFile, "pread_into", failing)
    report = check()
    assert report.verdict is Word.UNREADABLE
    words = _words(report)
    assert words["consolidated.00.pth"] == "UNREADABLE"
    assert words["RELEASE"] == "MATCH"
    file = next(file for file in report.files if file.path.name == "consolidated.00.pth")
    assert 0 < file.tally.match < file.nbytes
    assert file.tally.match + file.tally.unreadable + file.tally.not_covered == file.nbytes


def test_a_mismatch_counts_more_than_what_cannot_be_read(check, release, monkeypatch):
    (release.folder / "RELEASE").write_text("changed")

    def failing(self, buffer, offset):
        raise ReadFailed("EIO")

    monkeypatch.setattr(LocalFile, "pread_into", failing)
    assert check().verdict is Word.MISMATCH


def test_a_file_that_changes_while_it_is_read_is_no_result(check, release):
    path = release.folder / "consolidated.00.pth"

    def touch(_done, _total):
        path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(InTheWay, match="changed"):
        check(on_progress=touch)


def test_what_a_file_says_of_itself_proves_no_origin(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"content")
    digest = Digest("sha1", hashlib.sha1(b"content").hexdigest())
    own = Claim((Extent(path, 0, 7),), digest, "zip CRC-32#x")
    report = settle([], {path: None}, self_claims=[own])
    assert report.verdict is Word.NOT_COVERED
    assert report.ok
    path.write_bytes(b"c0ntent")
    report = settle([], {path: None}, self_claims=[own])
    assert report.verdict is Word.MISMATCH
    assert report.unsettled[0].found == hashlib.sha1(b"c0ntent").hexdigest()


def test_references_that_contradict_each_other_are_not_smoothed_over(release):
    """The pieces match and the list does not: nobody can say which one is right."""
    text = (release.folder / "RELEASE").read_text("utf-8")
    sizes = release.meta.file_sizes(release.folder)
    wrong = [
        Claim(claim.extents, Digest("md5", "0" * 32), "RELEASE")
        for claim in list_claims(release.folder, sizes)
    ]
    report = settle([*claims(release.meta, release.folder), *wrong], sizes)
    assert "tokenizer.model" in text
    assert _words(report)["tokenizer.model"] == "MISMATCH"
    assert {item.reference for item in report.unsettled} == {"RELEASE"}


def test_an_empty_file_is_what_was_promised(tmp_path):
    path = tmp_path / "empty"
    path.touch()
    assert settle([], {path: 0}).verdict is Word.MATCH
    assert settle([], {path: 5}).verdict is Word.MISMATCH


def test_the_report_is_one_json_document_whose_bytes_sum_up(check):
    document = json.loads(to_json(check()))
    assert (document["schema"], document["version"], document["ok"]) == ("moetool.verify", 1, True)
    for file in document["files"]:
        assert sum(file["tally"].values()) == file["nbytes"]


def test_the_words_on_trust_promise_nothing_that_was_not_checked(check, release):
    lines = trust_lines(check(), release.meta, None)
    text = "\n".join(lines)
    assert "origin   UNPROVEN" in text
    assert "params.json is covered by the torrent only, not by RELEASE" in text
    for word in ("safe", "authentic", "signed", "verified"):
        assert word not in text.lower()
