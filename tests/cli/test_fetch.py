"""`moetool fetch` as a user meets it: what it prints, how it ends, how it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from moetool.release.provenance import locked
from moetool.release.torrent.serve import seed
from tests.privileges import without_privileges

NOWHERE = "magnet:?xt=urn:btih:" + "ab" * 20


def test_a_post_becomes_a_folder(moetool, published, tmp_path):
    post = (
        f"New model!\n\n{published.magnet}&tr=udp%3A%2F%http://2Fa.invalid%3A1%2Fannounce\n\n"
        f"RELEASE {published.release_md5}"
    )
    with seed(published.torrent, published.folder) as seeder:
        done = moetool("fetch", post, "--peer", seeder.peer, "--no-dht", check=0)
    assert "tracker repaired" in done.stderr
    assert "udp://a.invalid:1/announce" in done.stderr
    assert f"MATCH  {tmp_path / 'small-moe'}" in done.stdout
    assert "md5 1/1 (post)" in done.stdout
    assert "origin   UNPROVEN" in done.stdout
    assert (tmp_path / "small-moe" / "RELEASE").read_bytes() == (
        published.folder / "RELEASE"
    ).read_bytes()
    assert "MATCH" in moetool("verify", check=0).stdout  # PATH left out: the release fetched last


def test_json_is_one_document_and_a_second_run_has_nothing_to_do(moetool, published):
    words = ["fetch", published.torrent, "--out", "here", "--no-dht", "--json"]
    with seed(published.torrent, published.folder) as seeder:
        first = json.loads(moetool(*words, "--peer", seeder.peer, check=0).stdout)
    assert (first["schema"], first["ok"], first["already_complete"]) == (
        "moetool.fetch", True, False,
    )  # fmt: skip
    second = json.loads(moetool(*words, check=0).stdout)
    assert second["already_complete"]
    assert second["verification"]["verdict"] == "MATCH"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["magnet:?xt=urn:btih:1234"], 2),
        (["no-such-release"], 2),
        (["missing.torrent"], 2),
        (["https://x.com/MistralAI/status/1"], 2),
        ([NOWHERE, "--peer", "localhost"], 2),
        ([NOWHERE, "--tracker", "ftp://a:1/"], 2),
        ([NOWHERE, "--release-md5", "12"], 2),
        ([NOWHERE, "--port", "70000"], 2),
        ([NOWHERE, "--order", "random"], 2),
        ([NOWHERE, "--order", "rarest", "--only", "router"], 2),
        (["hf:owner/name", "--order", "rarest"], 2),
    ],
)
def test_what_cannot_be_meant_is_2_and_leaves_nothing(words, code, moetool, tmp_path):
    moetool("fetch", *words, check=code)
    assert os.listdir(tmp_path) == []


def test_a_hostile_torrent_is_4_and_leaves_nothing(moetool, published, tmp_path):
    data = published.torrent.read_bytes().replace(b"7:RELEASE", b"7:../../x")
    (tmp_path / "evil.torrent").write_bytes(data)
    moetool("fetch", "evil.torrent", check=4)
    assert sorted(os.listdir(tmp_path)) == ["evil.torrent", "publisher"]


def test_no_peers_is_6_and_says_why(moetool):
    done = moetool("fetch", NOWHERE, "--no-dht", "--timeout", "1", check=6)
    assert "0 peers, no trackers, DHT is off" in done.stderr
    assert "hint:" in done.stderr


def test_a_stall_is_6_and_lists_what_was_found_and_tried(moetool, published):
    words = ["fetch", published.torrent, "--out", "here", "--no-dht", "--timeout", "1", "--json",
             "--tracker", "http://127.0.0.1:9/announce"]  # fmt: skip
    done = moetool(*words, check=6)
    assert "no tracker answered" in done.stderr
    assert "  - cause: no-tracker\n" in done.stderr
    document = json.loads(done.stdout)
    assert document["kind"] == "Stalled"
    assert document["findings"][0] == "cause: no-tracker"


def test_a_folder_that_cannot_be_written_is_5_and_leaves_nothing(published, tmp_path):
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o555)
    words = [sys.executable, "-m", "moetool", "fetch", published.torrent, "--out", shut / "here",
             "--no-dht"]  # fmt: skip
    done = subprocess.run([*without_privileges(), *words], capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip
    assert done.returncode == 5, done
    assert str(shut) in done.stderr
    assert "hint: make it writable" in done.stderr
    assert os.listdir(shut) == []


def test_a_second_fetch_of_the_folder_is_7(moetool, published, tmp_path):
    with locked(tmp_path / "here.partial"):
        done = moetool("fetch", published.torrent, "--out", "here", "--no-dht", check=7)
    assert str(os.getpid()) in done.stderr


def test_a_folder_that_is_in_the_way_is_7(moetool, published, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "thesis.tex").touch()
    moetool("fetch", published.torrent, "--out", "here", "--no-dht", check=7)


def test_a_digest_of_the_post_that_differs_is_3(moetool, published):
    with seed(published.torrent, published.folder) as seeder:
        done = moetool(
            "fetch", published.torrent, "--peer", seeder.peer, "--no-dht",
            "--release-md5", "0" * 32, check=3,
        )  # fmt: skip
    assert "post" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_ends_within_five_seconds_and_tells_how_to_go_on(
    number, code, published, tmp_path
):
    with seed(published.torrent, published.folder) as seeder:
        words = ["fetch", str(published.torrent), "--out", "here", "--peer", seeder.peer,
                 "--no-dht", "--max-down", "0.02"]  # fmt: skip
        with subprocess.Popen(
            [sys.executable, "-m", "moetool", *words], cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as child:  # fmt: skip
            until = time.monotonic() + 20
            while not (tmp_path / "here.partial" / ".moetool" / "release.json").exists():
                assert time.monotonic() < until
                time.sleep(0.05)
            time.sleep(0.5)
            began = time.monotonic()
            child.send_signal(number)
            _, told = child.communicate(timeout=20)
        assert time.monotonic() - began < 5
        assert child.returncode == code, told
        assert "Traceback" not in told
        assert f"moetool fetch {published.torrent} --out here" in told
    assert not (tmp_path / "here").exists()
