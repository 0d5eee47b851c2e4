"""`moetool publish` and `moetool seed` as a user meets them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from moetool.cli.app import run
from moetool.release.magnet import parse


@pytest.fixture
def release(published):
    """Files of a raw release, without RELEASE and .torrent."""
    published.torrent.unlink()
    (published.folder / "RELEASE").unlink()
    return published.folder


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Run a command that must end well, in this process; what it printed."""
    monkeypatch.chdir(tmp_path)

    def here(*words):
        capsys.readouterr()
        code = run([str(word) for word in words])
        told = capsys.readouterr()
        assert code == 0, told.err
        return told.out

    return here


@contextlib.contextmanager
def seeding(cwd, *words):
    """A seed in its own process; yields it and its magnet."""
    command = [sys.executable, "-m", "moetool", "seed", *map(str, words)]
    with subprocess.Popen(
        [*command, "--bind", "127.0.0.1", "--no-dht", "--time", "1"], cwd=cwd,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        try:
            yield child, child.stdout.readline().strip()
        finally:
            child.kill()


def test_from_a_folder_to_a_copy_of_it(moetool, here, release, tmp_path):
    told = here("publish", release)
    magnet = next(line for line in told.splitlines() if line.startswith("magnet:"))
    md5 = re.search(r"^RELEASE ([0-9a-f]{32})$", told, re.MULTILINE)[1]
    verified = here("verify", release)
    assert "md5 1/1, RELEASE" in verified
    assert "NOT COVERED" not in verified
    with seeding(tmp_path, release) as (child, link):
        assert link.startswith(magnet)
        (peer,) = parse(link).peers
        moetool("fetch", f"{magnet}\n\nRELEASE {md5}", "--peer", peer, "--no-dht", check=0)
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=20)
    assert child.returncode == 130
    assert "bytes were given, ratio 1." in told
    assert f"moetool seed {release}" in told
    assert "Traceback" not in told
    for path in release.iterdir():
        assert (tmp_path / "small-moe" / path.name).read_bytes() == path.read_bytes()


def test_json_is_one_document_and_nothing_is_written_twice(here, release):
    plan = json.loads(here("publish", release, "--dry-run", "--json"))
    assert (plan["info_hash"], plan["release"]) == (None, "written")
    assert not release.with_name("small-moe.torrent").exists()
    first = json.loads(here("publish", release, "--json"))
    assert (first["schema"], first["ok"], first["is_new"]) == ("moetool.publish", True, True)
    assert (first["files"], first["pieces"]) == (plan["files"], plan["pieces"])
    second = json.loads(here("publish", release, "--json"))
    assert (second["is_new"], second["release"]) == (False, "kept")
    assert second["magnet"] == first["magnet"]
    words = ["seed", release, "--bind", "127.0.0.1", "--no-dht", "--time", "0", "--json"]
    seeded = json.loads(here(*words))
    assert (seeded["schema"], seeded["ended"], seeded["uploaded"]) == ("moetool.seed", "time", 0)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["publish", "missing"], 2),
        (["publish", "empty"], 4),
        (["publish", "links"], 4),
        (["publish", "publisher/small-moe", "--piece-size", "3MiB"], 2),
        (["publish", "publisher/small-moe", "--piece-size", "8KiB"], 2),
        (["publish", "publisher/small-moe", "--tracker", "ftp://a:1/"], 2),
        (["publish", "publisher/small-moe", "--web-seed", "http://a/?x=1"], 2),
        (["seed", "publisher/small-moe"], 2),
        (["seed", "publisher/small-moe", "--bind", "localhost"], 2),
    ],
)
def test_what_is_refused_leaves_nothing(words, code, release, here, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a").symlink_to("b")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    assert run(words) == code
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert "error: " in capsys.readouterr().err


def test_what_is_there_and_what_is_wrong(release, here, capsys):
    """7 for another .torrent, 3 for a list or pieces that say otherwise."""
    words = ["publish", str(release), "--piece-size", "16KiB", "--web-seed", "http://127.0.0.1:1/x"]
    assert "ws=http%3A%2F%2F127.0.0.1%3A1%2Fx%2F" in here(*words)
    assert run([*words, "--tracker", "udp://127.0.0.1:1/announce"]) == 7
    (release / "params.json").write_text("{}")
    assert run([*words, "--force", "--dry-run"]) == 0
    assert run([*words[:2], "--no-release"]) == 7
    capsys.readouterr()
    assert run(["seed", str(release), "--bind", "127.0.0.1", "--no-dht"]) == 3
    assert "params.json: 2 bytes, not" in capsys.readouterr().err
    shutil.copy(release / "RELEASE", release / "checklist.chk")
    assert run([*words, "--force"]) == 3  # a checklist of somebody else's is not ours to make anew
    assert "checklist.chk: params.json has" in capsys.readouterr().err
    os.unlink(release / "checklist.chk")
    assert re.search(r"RELEASE +replaced", here(*words, "--force"))


def test_a_conversion_is_published_as_it_is(here, tmp_path):
    """Its manifest says what a RELEASE would, and covers the folder as it stands."""
    here("tiny", "converted", "--layout", "hf")
    files = sorted(os.listdir(tmp_path / "converted"))
    assert "moetool-manifest.json" in files
    assert re.search(r"RELEASE +none", here("publish", "converted"))
    assert sorted(os.listdir(tmp_path / "converted")) == files
    assert "sha256-merkle" in here("verify", "converted")


def test_a_conversion_is_published_as_it_is_written(moetool, here, tmp_path):
    """The .torrent is that of `publish` afterwards; only what lies beside the weights is read."""
    moetool("tiny", "raw", check=0)
    tracker = ["--tracker", "udp://127.0.0.1:9/announce"]
    report = json.loads(here("convert", "raw", "--out", "out", "--publish", *tracker, "--json"))
    published = report["published"]
    weights = published["files"]["model.safetensors"]
    assert published["read_nbytes"] == published["nbytes"] - weights
    made = (tmp_path / "out.torrent").read_bytes()
    (tmp_path / "out.torrent").unlink()
    again = json.loads(here("publish", "out", *tracker, "--json"))
    assert (tmp_path / "out.torrent").read_bytes() == made
    assert again["magnet"] == published["magnet"]
    assert again["read_nbytes"] == again["nbytes"]


def test_words_of_publishing_without_it_are_refused(moetool):
    moetool("tiny", "raw", check=0)
    told = moetool("convert", "raw", "--tracker", "udp://127.0.0.1:9/announce", check=2).stderr
    assert "add --publish" in told
