"""`moetool releases`: what is compiled in is shown whole, and can be pasted."""

from __future__ import annotations

import http.server
import json
import re
import threading

import pytest

from moetool.cli.fetch import seeds_of
from moetool.release import manifest, source
from moetool.release.magnet import Magnet, parse
from moetool.release.manifest import HubCopy, Release, known_releases
from moetool.release.source import Source, resolve_source
from moetool.release.torrent.serve import seed

NAMES = [release.name for release in known_releases()]


def test_the_list_has_a_line_for_each(moetool):
    lines = moetool("releases", check=0).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == NAMES
    assert (
        "hf:someone13574/mixtral-8x7b-32kseqlen" in lines[1 + NAMES.index("mixtral-8x7b-32kseqlen")]
    )


def test_the_document_is_one_and_complete(moetool):
    table = json.loads(moetool("releases", "--json", check=0).stdout)
    assert (table["schema"], table["version"], table["ok"]) == ("moetool.releases", 1, True)
    assert [entry["name"] for entry in table["releases"]] == NAMES
    for entry, release in zip(table["releases"], known_releases(), strict=True):
        assert tuple(entry["trackers"]) == release.trackers
        assert entry["release_md5"] == release.release_md5
        assert {f["path"] for f in entry["files"]} == {f.path for f in release.files}


@pytest.mark.parametrize("name", NAMES)
def test_all_of_one_with_a_link_to_paste(moetool, name):
    shown = moetool("releases", name.upper(), check=0).stdout
    (link,) = [line for line in shown.splitlines() if line.startswith("magnet:")]
    source = resolve_source(link)
    release = source.release
    assert release.name == name
    assert parse(link).trackers == release.trackers
    assert parse(link).web_seeds == release.web_seeds
    for text in (*release.trackers, *release.web_seeds, release.license or "not recorded"):
        assert text in shown
    for file in release.files:
        assert file.path in shown
        for digest in file.digests:
            assert f"{digest.algorithm} {digest.hex}" in shown
    for copy in release.hub:
        assert f"hf:{copy.repository}" in shown


def test_an_unknown_name_is_2(moetool):
    assert "mixtral-8x22b" in moetool("releases", "gpt-5", check=2).stderr


def test_sizes_are_summed_only_where_all_are_known(moetool):
    table = json.loads(moetool("releases", "tiny-mixtral-8x1m", "--json", check=0).stdout)
    (tiny,) = table["releases"]
    assert tiny["nbytes"] == sum(file["nbytes"] for file in tiny["files"])
    (large,) = json.loads(moetool("releases", NAMES[4], "--json", check=0).stdout)["releases"]
    assert large["name"] == "pixtral-12b-240910"
    assert large["nbytes"] is None


def test_what_is_recorded_keeps_its_form():
    """Addresses of folders for web seeds (BEP 19), OWNER/NAME for the hub, SPDX for licences."""
    for release in known_releases():
        assert all(re.fullmatch(r"https://[^ ]+/", url) for url in release.web_seeds)
        assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", copy.repository) for copy in release.hub)
        assert release.license in {None, "Apache-2.0"}


@pytest.fixture
def web_seed(published):
    """A web server with the folder of the release, by ranges (BEP 19), and how it misbehaves."""
    paths, faults = [], set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            if "lacks RELEASE" in faults and self.path.endswith("RELEASE"):
                return self.send_error(404)
            data = (published.folder.parent / self.path.lstrip("/")).read_bytes()
            if "has other bytes" in faults:
                data = bytes(byte ^ 1 for byte in data)
            low, high = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {low}-{high}/{len(data)}")
            self.send_header("Content-Length", str(high + 1 - low))
            self.end_headers()
            return self.wfile.write(data[low : high + 1])

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", paths, faults
    server.shutdown()
    server.server_close()


def know(monkeypatch, published, **more):
    """Let the small release be a known one."""
    known = Release(published.meta.name, published.meta.info_hash, **more)
    for module in (manifest, source):
        monkeypatch.setattr(module, "known_releases", lambda: (known,))


@pytest.mark.parametrize("fault", ["lacks RELEASE", "has other bytes", "is not there"])
def test_a_web_seed_that_is_no_good_does_not_keep_the_swarm_from_giving(
    moetool, published, web_seed, monkeypatch, fault
):
    """What a mirror of some files, of another release, or one that has gone looks like."""
    url, _, faults = web_seed
    faults.add(fault)
    know(monkeypatch, published, web_seeds=(url if fault in faults - {"is not there"} else CLOSED,))
    with seed(published.torrent, published.folder) as seeder:
        done = moetool("fetch", published.torrent, "--peer", seeder.peer, "--no-dht", check=0)
    assert done.stdout.startswith("MATCH")


CLOSED = "http://127.0.0.1:9/"


def test_the_web_seeds_of_a_known_release_are_used_unless_refused(
    moetool, published, web_seed, monkeypatch
):
    url, paths, _ = web_seed
    know(monkeypatch, published, web_seeds=(url,))
    words = ["fetch", published.torrent, "--no-dht", "--timeout", "2"]
    moetool(*words, "--no-web-seeds", check=6)
    assert paths == []
    done = moetool(*words, check=0)
    assert f"web seed {url}" in done.stderr
    assert {path.rpartition("/")[0] for path in paths} == {"/small-moe"}


def test_web_seeds_of_a_link_are_used_only_where_it_is_said():
    magnet = Magnet("0" * 40, web_seeds=("https://a.example/",))
    known = Release("x", "0" * 40, web_seeds=("https://b.example/",))
    assert seeds_of(Source(magnet), wanted=None) == ()
    assert seeds_of(Source(magnet), wanted=True) == ("https://a.example/",)
    both = Source(magnet, release=known)
    assert seeds_of(both, wanted=None) == ("https://b.example/",)
    assert set(seeds_of(both, wanted=True)) == {"https://a.example/", "https://b.example/"}
    assert seeds_of(both, wanted=False) == ()


def test_a_silent_swarm_ends_with_the_hub_copies(moetool, published, monkeypatch):
    know(monkeypatch, published, hub=(HubCopy("somebody/small-moe", "whole"),))
    done = moetool("fetch", published.meta.info_hash, "--no-dht", "--timeout", "0.5", check=6)
    assert "or moetool fetch hf:somebody/small-moe" in done.stderr


def test_a_web_seed_alone_with_other_bytes_is_named(moetool, published, web_seed, monkeypatch):
    url, _, faults = web_seed
    faults.add("has other bytes")
    know(monkeypatch, published, web_seeds=(url,))
    done = moetool("fetch", published.torrent, "--no-dht", "--timeout", "3", check=6)
    assert "sent bad pieces and is banned" in done.stderr
