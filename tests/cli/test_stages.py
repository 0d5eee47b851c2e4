"""What a fetch tells while it runs: a map of its pieces, headers that are here, events."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time

import pytest

from moetool.cli import stages as module
from moetool.cli.console import Console
from moetool.cli.pieces_map import as_hex, pieces_map
from moetool.cli.stages import stages
from moetool.release.fetch import fetch
from moetool.release.fixture import find_fixture
from moetool.release.provenance import Origin, write_origin
from moetool.release.source import resolve_source
from moetool.release.torrent.metainfo import read_torrent
from moetool.release.torrent.profile import SwarmOptions
from moetool.release.torrent.serve import seed
from moetool.release.torrent.watch import Progress

NOWHERE = "magnet:?xt=urn:btih:" + "ab" * 20


@pytest.mark.parametrize(
    ("have", "width", "shown"),
    [
        ([True, False, True], 80, "▕█ █▏"),
        ([False] * 4, 80, "▕    ▏"),
        ([True] * 40, 22, "▕████████████████████▏"),
        ([True] * 10 + [False] * 10, 12, "▕█████     ▏"),
        ([True] * 39 + [False], 12, "▕█████████▓▏"),  # not full while one lacks
        ([False] * 1999 + [True], 12, "▕         ░▏"),  # not empty while one is here
        ([], 80, ""),
        ([True] * 40, 5, ""),
    ],
)
def test_the_map_of_pieces(have, width, shown):
    assert pieces_map(have, width) == shown


def test_the_map_fits_every_width_and_shows_every_piece():
    for n_pieces in (1, 7, 50, 5000):
        for width in range(12, 200, 17):
            one = [False] * n_pieces
            one[n_pieces // 2] = True
            drawn = pieces_map(one, width, plain=True)
            assert len(drawn) <= width
            assert drawn.isascii()
            assert sum(cell in ".:+#" for cell in drawn[1:-1]) == 1


def test_pieces_for_programs():
    assert as_hex([True] + [False] * 8) == "8000"
    assert as_hex([]) == ""


def test_what_is_to_be_told_once_is_a_line_of_its_own(capsys):
    with stages(Console()) as show:
        show(Progress("download", told="nothing comes: \x1b[31mred"))
    assert capsys.readouterr().err == "nothing comes: \\u001b[31mred\n"


def test_words_of_others_are_made_printable(capsys, monkeypatch):
    monkeypatch.setattr("moetool.cli.console.PLAIN_INTERVAL_S", 0.0)
    with stages(Console()) as show:
        show(Progress("metadata", note="no tracker answered (\x1b]0;x\x07)"))
    assert "\x1b" not in capsys.readouterr().err


def _lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_events_are_json_and_nothing_else_is(moetool, published, monkeypatch):
    monkeypatch.setattr(module, "EVENT_INTERVAL_S", 0.0)
    words = ["fetch", published.torrent, "--out", "here", "--no-dht", "--events", "--json"]
    with seed(published.torrent, published.folder) as seeder:
        done = moetool(*words, "--peer", seeder.peer, check=0)
    events = _lines(done.stderr)
    assert {(e["schema"], e["version"]) for e in events} == {("moetool.event", 1)}
    assert [e["seconds"] for e in events] == sorted(e["seconds"] for e in events)
    progress = [e for e in events if e["event"] == "progress"]
    assert {"download", "verify"} <= {e["stage"] for e in progress}
    last = [e for e in progress if e["stage"] == "download"][-1]
    assert last["pieces_total"] == len(published.meta.pieces) // 20
    assert len(last["pieces"]) == 2 * -(-last["pieces_total"] // 8)
    assert any(e["event"] == "note" and "small-moe" in e["text"] for e in events)
    assert json.loads(done.stdout)["schema"] == "moetool.fetch"


@pytest.mark.parametrize(
    ("wish", "order", "told"),
    [
        ("auto", "sequential", "order: sequential, so that md5 follows; 1 seed"),
        ("rarest", "rarest", "order: rarest first, as asked for"),
    ],
)
def test_the_order_is_told_once_and_in_each_event(
    moetool, published, monkeypatch, wish, order, told
):
    monkeypatch.setattr(module, "EVENT_INTERVAL_S", 0.0)
    words = ["fetch", published.torrent, "--out", "here", "--no-dht", "--events", "--order", wish]
    with seed(published.torrent, published.folder) as seeder:
        events = _lines(moetool(*words, "--peer", seeder.peer, "--max-down", "0.1", check=0).stderr)
    assert [e["text"] for e in events if e.get("text", "").startswith("order: ")] == [told]
    orders = [e["order"] for e in events if e["event"] == "progress" and e["stage"] == "download"]
    assert set(orders) <= {"", order}
    assert orders[-1] == order


def test_an_error_is_an_event_too(moetool):
    words = ["fetch", NOWHERE, "--no-dht", "--timeout", "1", "--events"]
    events = _lines(moetool(*words, check=6).stderr)
    assert [e["event"] for e in events][-1] == "error"
    assert (events[-1]["code"], events[-1]["kind"]) == (6, "MetadataTimeout")
    assert events[-1]["findings"] == ["cause: nobody"]
    assert any(e["event"] == "progress" and e["cause"] == "nobody" for e in events)
    assert _lines(moetool("fetch", "nonsense.torrent", "--events").stderr)[-1]["code"] == 2


def test_headers_come_first_and_can_be_looked_into(tmp_path, monkeypatch, capsys, moetool):
    """The file is inspected as soon as it is said, long before it is complete."""
    monkeypatch.setattr(module, "TRY_INTERVAL_S", 0.0)
    fixture = find_fixture()
    n_pieces = len(read_torrent(fixture.torrent.read_bytes()).pieces) // 20
    weights = tmp_path / "here.partial" / "consolidated.00.pth"
    looks = []
    with seed(fixture.torrent, fixture.directory) as seeder, stages(Console()) as show:

        def hear(progress):
            show(progress)
            if not looks and f"moetool inspect {weights}" in capsys.readouterr().err:
                looks.append((moetool("inspect", weights, "--json", check=0), progress))

        swarm = SwarmOptions(peers=((seeder.host, seeder.port),), dht=False, max_down=4_000_000)
        fetch(resolve_source(str(fixture.torrent)), tmp_path / "here", swarm, on_progress=hear)
    done, progress = looks[0]
    assert progress.pieces_done < n_pieces * 0.7
    assert "has not ended" in done.stderr
    seen, whole = json.loads(done.stdout), moetool("inspect", fixture.directory, "--json").stdout
    assert seen["n_tensors"] == json.loads(whole)["n_tensors"]
    assert seen["model"] == json.loads(whole)["model"]


def test_headers_that_have_not_come_are_4_with_the_way_on(moetool, published, tmp_path):
    partial = tmp_path / "here.partial"
    shutil.copytree(published.folder, partial)
    write_origin(partial, published.meta, Origin("x", published.meta.hashes, "", None, None))
    moetool("inspect", partial, check=0)
    with (partial / "consolidated.00.pth").open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(bytes(1000))
    done = moetool("inspect", partial, check=4)
    assert "the fetch has not brought its headers yet" in done.stderr


def test_a_terminal_shows_the_map_and_stdout_stays_clean(tmp_path):
    ours, theirs = os.openpty()
    fixture = find_fixture()
    words = [sys.executable, "-m", "moetool", "fetch", fixture.torrent, "--out", "here",
             "--no-dht", "--max-down", "8"]  # fmt: skip
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
    drawn, until = b"", time.monotonic() + 60
    with seed(fixture.torrent, fixture.directory) as seeder:
        child = subprocess.Popen([*words, "--peer", seeder.peer], cwd=tmp_path, env=env,
                                 stdout=subprocess.PIPE, stderr=theirs)  # fmt: skip
        os.close(theirs)
        while time.monotonic() < until:
            if not select.select([ours], [], [], 0.5)[0]:
                continue
            try:
                drawn += os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
        out, _ = child.communicate(timeout=20)
        os.close(ours)
    assert child.returncode == 0, drawn.decode()
    text = drawn.decode()
    assert "▕" in text
    assert "█" in text
    assert "pieces" in text
    assert "▕" not in out.decode()
    assert "MATCH" in out.decode()
