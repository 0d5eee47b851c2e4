"""`moetool fetch hf:OWNER/NAME` as a user meets it, and what other commands make of the folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from moetool.release.provenance import last_fetched
from tests.cli.test_parts import cut
from tests.release.hub.conftest import close, prepare
from tests.release.hub.fake import FakeHub, serving


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """A hub with a release in parts, as the mirrors of 2023 have it."""
    cut(published.folder)
    (published.folder / "tokenizer.model").unlink()  # it is none that convert would take
    files = {path.name: path.read_bytes() for path in sorted(published.folder.iterdir())}
    with serving(FakeHub({**files, "README.md": b"x"})) as fake:
        prepare(monkeypatch, tmp_path, fake.url)
        monkeypatch.setenv("HF_TOKEN", "hf_" + "k" * 34)
        yield fake
    close()


def test_a_repository_becomes_a_folder_that_every_command_takes(moetool, hub, tmp_path):
    done = moetool("fetch", "hf:somebody/small-moe", check=0)
    assert f"MATCH  {tmp_path / 'small-moe'}" in done.stdout
    assert f"hf:somebody/small-moe at commit {hub.commit}" in done.stdout
    assert "origin   UNPROVEN  no signature; trust rests on" in done.stdout
    assert "fetching 14 files of hf:somebody/small-moe" in done.stderr
    assert last_fetched() == tmp_path / "small-moe"
    again = moetool("verify", check=0).stdout
    assert "sha256 12/12, hub somebody/small-moe@c0ffee00" in again
    assert "git-blob 1/1" in again
    assert "MATCH  3 files" in again
    moetool("convert", "small-moe", "--to", "safetensors", "--out", "hf", check=0)
    source = json.loads((tmp_path / "hf" / "moetool-manifest.json").read_text())["source"]
    assert source["hub"] == {"repository": "somebody/small-moe", "commit": hub.commit}
    assert source["files"]["consolidated.00.pth"]["verified"] == "MATCH"
    assert f"somebody/small-moe, commit {hub.commit}" in moetool("verify", "hf", check=0).stdout
    moetool("convert", "small-moe", "--to", "gguf", "--out", "g", "--no-certificate", check=0)
    assert "came from hf:somebody/small-moe at commit" in moetool("verify", "g", check=0).stdout
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"kkkkkk" not in path.read_bytes()


def test_a_later_verify_names_what_is_wrong_or_missing(moetool, hub, tmp_path):
    moetool("fetch", "hf:somebody/small-moe", check=0)
    part = tmp_path / "small-moe" / "consolidated.00.pth-split7"
    good = part.read_bytes()
    part.write_bytes(
        good[:100] + b"\0" + good[101:] if good[100] else good[:100] + b"\1" + good[101:]
    )
    done = moetool("verify", "small-moe", check=3)
    assert "damaged: consolidated.00.pth bytes" in done.stdout
    assert "consolidated.00.pth-split7)" in done.stdout  # which of the hub's digests it was
    part.unlink()
    assert "consolidated.00.pth-split7" in moetool("verify", "small-moe", check=3).stdout
    done = moetool("fetch", "hf:somebody/small-moe", check=0)
    assert part.read_bytes() == good


def test_json_is_one_document_without_the_token(moetool, hub):
    done = moetool("fetch", "hf:somebody/small-moe@main", "--json", check=0)
    table = json.loads(done.stdout)
    assert (table["schema"], table["version"], table["ok"]) == ("moetool.fetch-hub", 1, True)
    assert (table["repository"], table["commit"], table["revision"]) == (
        "somebody/small-moe", hub.commit, "main",
    )  # fmt: skip
    assert table["verification"]["verdict"] == "MATCH"
    assert "kkkkkk" not in done.stdout + done.stderr


def test_a_flipped_byte_is_3_and_names_the_file(moetool, hub, tmp_path):
    hub.flipped = "consolidated.00.pth-split3"
    done = moetool("fetch", "hf:somebody/small-moe", "--json", check=3)
    error = json.loads(done.stdout)
    assert any("#consolidated.00.pth-split3: sha256" in text for text in error["findings"])
    assert "consolidated.00.pth-split3" in done.stderr
    assert not (tmp_path / "small-moe").exists()


def test_without_the_package_the_command_that_installs_it_is_told(moetool, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    done = moetool("fetch", "hf:somebody/small-moe", check=2)
    assert "pip install 'moetool[hub]'" in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [
        ["hf:somebody"],
        ["hf:a/b", "--tracker", "udp://a:1/x"],
        ["hf:a/b", "--convert", "gguf"],
        ["hf:a/b", "--no-keep"],
        ["hf:a/b", "--no-dht"],
        ["hf:a/b", "--max-down", "3"],
        ["hf:a/b", "--release-md5", "12"],
        ["mixtral-8x22b", "--include", "*.json"],
        ["https://huggingface.co/somebody/small-moe/tree/main"],
    ],
)
def test_what_cannot_be_meant_is_2_and_asks_nobody(moetool, hub, words):
    moetool("fetch", *words, check=2)
    assert hub.asked == []


def test_the_address_of_a_page_leads_to_the_name():
    from moetool.errors import BadMagnet
    from moetool.release.source import resolve_source

    with pytest.raises(BadMagnet) as caught:
        resolve_source("https://huggingface.co/somebody/small-moe/tree/main")
    assert caught.value.hint == "moetool fetch hf:somebody/small-moe"


def test_two_forms_are_told_with_the_words_that_choose(moetool, hub, tmp_path):
    hub.files["model.safetensors"] = b"x" * 1000
    done = moetool("fetch", "hf:somebody/small-moe", check=2)
    assert "--include 'consolidated.00.pth-split*'" in done.stderr
    words = ["fetch", "hf:somebody/small-moe", "--include", "consolidated.00.pth-split*"]
    moetool(*words, check=0)
    assert not (tmp_path / "small-moe" / "model.safetensors").exists()
    assert "--include" in moetool("fetch", "hf:somebody/small-moe", check=7).stderr


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(404, "RepoNotFound", "no such repository"), (403, "GatedRepo", "accept its terms at")],
)
def test_a_repository_that_is_not_to_be_had_is_6(moetool, hub, tmp_path, status, code, words):
    hub.status, hub.error_code = status, code
    done = moetool("fetch", "hf:somebody/small-moe", check=6)
    assert words in done.stderr
    assert "hint:" in done.stderr
    assert not (tmp_path / "small-moe.partial").exists()


def test_a_hub_that_falls_silent_is_6_and_a_dry_run_plans_meanwhile(moetool, hub):
    hub.silent = "consolidated.00.pth-split5"
    done = moetool("fetch", "hf:somebody/small-moe", check=6)
    assert "run the same command again" in done.stderr
    plan = json.loads(
        moetool(
            "convert", "small-moe", "--to", "safetensors", "--dry-run", "--json", check=0
        ).stdout
    )
    assert plan["gaps"] == ["'consolidated.00.pth' is missing"]
    hub.silent = None
    moetool("fetch", "hf:somebody/small-moe", check=0)


def test_a_process_that_is_terminated_keeps_what_came(moetool, tmp_path, monkeypatch):
    """143 in seconds, with the command; the next run asks for the rest alone."""
    weights = os.urandom(1 << 20) * 12
    with serving(FakeHub({"consolidated.00.pth": weights, "params.json": b"{}"})) as hub:
        prepare(monkeypatch, tmp_path, hub.url)
        hub.holds_after = 11 << 20
        words = ["fetch", "hf:somebody/small-moe", "--out", "here"]
        path = tmp_path / "here.partial" / "consolidated.00.pth"
        with subprocess.Popen(
            [sys.executable, "-m", "moetool", *words], cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as child:  # fmt: skip
            until = time.monotonic() + 60
            while not (path.exists() and path.stat().st_size):
                assert time.monotonic() < until, child.poll()
                time.sleep(0.05)
            child.send_signal(signal.SIGTERM)
            _, told = child.communicate(timeout=30)
        assert child.returncode == 143, told
        assert "Traceback" not in told
        assert "moetool fetch hf:somebody/small-moe --out here" in told
        here = path.stat().st_size
        assert 0 < here < len(weights)
        hub.held.set()
        hub.asked.clear()
        moetool(*words, check=0)
        assert hub.ranges == [f"bytes={here}-"]
        assert (tmp_path / "here" / "consolidated.00.pth").read_bytes() == weights
    close()
