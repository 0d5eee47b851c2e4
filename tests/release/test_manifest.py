"""RELEASE boxes, checksum lists, and the releases that are bundled."""

from __future__ import annotations

import hashlib
import re
import shutil

import pytest

from moetool.errors import HostileTorrent, Refused, UsageFault
from moetool.extents import Digest
from moetool.release.magnet import is_tracker
from moetool.release.manifest import (
    by_info_hash,
    check_listing,
    find_release,
    known_claims,
    known_releases,
    list_claims,
    parse_release_file,
    post_claim,
)

A, B = "1faa9bc9b20fcfe81fcd4eb7166a79e6", "37974873eb68a7ab30c4912fc36264ae"
BOX = f"""
 ╓────────────────────────────────────────────────────────────────────────────╖
 ║                               ·· md5sum ··                                 ║
 ║                                                                            ║
 ║        {A}  consolidated.00.pth               ║
 ║        {B}  tokenizer.model                   ║
 ╙────────────────────────────────────────────────────────────────────────────╜
"""


@pytest.mark.parametrize(
    "text",
    [
        BOX,
        BOX.replace("\n", "\r\n"),
        f"{A}  consolidated.00.pth\n{B}  tokenizer.model\n",
        f"{A.upper()} *consolidated.00.pth\n{B} *./tokenizer.model",
        f"credits to all\n{A}  consolidated.00.pth\n{A}  consolidated.00.pth\n{B}\ttokenizer.model",
        f"deadbeef is none, {'0' * 40} is SHA-1\n{A}  consolidated.00.pth\n{B}  tokenizer.model",
        BOX.encode("cp437", errors="replace").decode(errors="replace"),
    ],
)
def test_boxes_and_lists_say_the_same(text):
    assert {file.path: file.digests for file in parse_release_file(text)} == {
        "consolidated.00.pth": (Digest("md5", A),),
        "tokenizer.model": (Digest("md5", B),),
    }


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/../../b"])
def test_a_list_cannot_speak_of_files_outside_its_folder(name):
    with pytest.raises(Refused, match="outside"):
        parse_release_file(f"{A}  {name}")


def test_a_list_cannot_give_two_digests_for_one_file():
    with pytest.raises(Refused, match="two digests"):
        parse_release_file(f"{A}  x\n{B}  x")


@pytest.mark.parametrize("release", known_releases(), ids=lambda release: release.name)
def test_what_is_recorded_of_a_known_release_is_well_formed(release):
    assert re.fullmatch(r"[0-9a-f]{40}", release.info_hash)
    assert release.trackers
    assert all(is_tracker(url) for url in release.trackers)
    assert release.release_md5 is None or re.fullmatch(r"[0-9a-f]{32}", release.release_md5)
    lengths = {"md5": 32, "sha1": 40, "sha256": 64}
    for file in release.files:
        assert all(len(digest.hex) == lengths[digest.algorithm] for digest in file.digests)
    assert by_info_hash(release.info_hash) == release
    assert find_release(release.name.upper()) == release


def test_the_three_releases_of_the_posts_are_known():
    names = {release.name for release in known_releases()}
    assert {"mixtral-8x7b-32kseqlen", "mixtral-8x22b", "mistral-7B-v0.1"} <= names


def test_the_recorded_tokenizer_is_the_published_one(tmp_path):
    """mistral-common carries the release's tokenizer: the record's digests can be tried on it."""
    package = pytest.importorskip("mistral_common")
    name = "tokenizer.model.v1"
    source = next(path / "data" / name for path in map(type(tmp_path), package.__path__))
    path = tmp_path / "tokenizer.model"
    shutil.copy(source, path)
    release = find_release("mixtral-8x7b-32kseqlen")
    found = list(known_claims(release, tmp_path, {path: path.stat().st_size}))
    assert {claim.digest.algorithm for claim in found} == {"md5", "sha256"}
    for claim in found:
        data = path.read_bytes()
        assert len(data) == release.files[-1].nbytes
        assert hashlib.new(claim.digest.algorithm, data).hexdigest() == claim.digest.hex


def test_an_unknown_name_lists_what_is_known():
    with pytest.raises(UsageFault) as caught:
        find_release("gpt-5")
    assert "mixtral-8x7b-32kseqlen" in caught.value.hint


def test_a_file_list_that_is_not_the_recorded_one_is_refused_with_all_differences():
    release = find_release("mixtral-8x7b-32kseqlen")
    good = {"RELEASE": 1, "consolidated.00.pth": 2, "params.json": 3, "tokenizer.model": 493_443}
    check_listing(release, good)
    bad = {**good, "tokenizer.model": 5, "evil.sh": 1}
    del bad["RELEASE"]
    with pytest.raises(HostileTorrent) as caught:
        check_listing(release, bad)
    assert len(caught.value.findings) == 3


def test_claims_of_a_folder_come_from_its_list_and_from_the_post(release):
    sizes = release.meta.file_sizes(release.folder)
    listed = list(list_claims(release.folder, sizes))
    assert {claim.extents[0].path.name for claim in listed} == {
        "consolidated.00.pth", "tokenizer.model",
    }  # fmt: skip
    (post,) = post_claim(release.folder, sizes, release.release_md5)
    assert post.extents[0].path.name == "RELEASE"
    assert post.digest.hex == hashlib.md5(post.extents[0].path.read_bytes()).hexdigest()
