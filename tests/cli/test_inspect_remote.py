"""`moetool inspect` of what is not here: the same report, where it came from, and nothing kept."""

from __future__ import annotations

import http.server
import json
import os
import re
import tempfile
import threading

import pytest

from moetool.cli.app import run
from moetool.release.torrent.serve import seed

NOWHERE = "magnet:?xt=urn:btih:" + "ab" * 20


@pytest.fixture
def temporary(tmp_path):
    """The environment of a run, and the folder that must be empty after it."""
    place = tmp_path / "temporary"
    place.mkdir()
    yield {"TMPDIR": str(place)}
    assert os.listdir(place) == []


def test_a_post_is_inspected_as_the_folder_is(published, temporary, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", temporary["TMPDIR"])
    assert run(["inspect", str(published.folder), "--json"]) == 0
    here = json.loads(capsys.readouterr().out)
    post = f"New!\n\n{published.magnet}&tr=udp%3A%2F%http://2Fa.invalid%3A1%2Fannounce\n\nRELEASE"
    with seed(published.torrent, published.folder) as seeder:
        words = ["inspect", post, "--peer", seeder.peer, "--no-dht", "--json"]
        assert run(words) == 0
    done = capsys.readouterr()
    assert "tracker repaired" in done.err
    there = json.loads(done.out)
    remote = there.pop("remote")
    assert there == {**here, "path": "small-moe"}
    assert remote["kind"] == "torrent"
    assert remote["info_hashes"] == [published.meta.info_hash]
    assert remote["piece_nbytes"] == 16_384
    assert remote["pieces_received"] < remote["pieces"]
    assert remote["received_nbytes"] < published.meta.nbytes


def test_a_file_behind_an_address_is_inspected(moetool, published, temporary, capsys):
    """Text for people; what the server has beside the file is found."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            file = published.folder / self.path.lstrip("/")
            first, last = map(int, re.findall(r"\d+", self.headers["Range"]))
            if not file.is_file():
                self.send_error(404)
                return
            body = file.read_bytes()
            part = body[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{httpd.server_port}/consolidated.00.pth"
        shown = moetool("inspect", url, check=0, env=temporary).stdout
        (published.folder / "params.json").unlink()
        assert run(["inspect", url]) == 4
        httpd.shutdown()
    alone = capsys.readouterr().err
    assert f"from             {url}" in shown
    assert "3 requests" in shown
    assert "Mixtral" in shown
    assert "params.json" in shown
    assert "consolidated.00.pth: no params.json beside the weights" in alone
    assert "/tmp" not in alone


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([NOWHERE, "--no-dht", "--timeout", "0.3"], 6, "0 peers, no trackers, DHT is off"),
        (["https://127.0.0.1/some/folder/"], 2, "hint: give a file"),
        (["http://192.0.2.1/x.gguf"], 2, "--allow-http"),
        (["missing.torrent"], 2, "no such .torrent"),
        (["https://127.0.0.1/x.gguf", "--no-dht"], 2, "swarm"),
        ([".", "--no-dht"], 2, "is here"),
        (["no-such-folder"], 2, "no such file"),
    ],
)
def test_what_cannot_be_done_is_told(words, code, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["inspect", *words]) == code
    assert told in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
