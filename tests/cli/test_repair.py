"""`moetool repair` as a user meets it: what was healed, what it cost, how it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moetool.cli.app import run as run_command
from moetool.formats import open_checkpoint
from moetool.release.torrent.serve import seed
from tests.privileges import without_privileges

WEIGHTS = "consolidated.00.pth"


def _flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def damaged(published, tmp_path):
    """A copy with one byte of an expert flipped; its torrent lies beside it."""
    folder = shutil.copytree(published.folder, tmp_path / "mine" / "small-moe")
    shutil.copy(published.torrent, folder.with_name("small-moe.torrent"))
    with open_checkpoint(folder) as checkpoint:
        name = next(name for name in checkpoint.catalog.tensors if "1.feed_forward.experts.2.w2" in
                    name)  # fmt: skip
        extent = checkpoint.catalog.extents[name]
    _flip(folder / WEIGHTS, extent.offset + 3 * 80)  # 40 columns of two bytes: row 3
    return folder


@pytest.fixture
def repair(capsys):
    """Run the command in this process: exit code, stdout and stderr."""

    def start(*words, check):
        code = run_command(["repair", *map(str, words)])
        shown = capsys.readouterr()
        assert code == check, shown
        return shown

    return start


def same(folder, published):
    return all(
        (folder / path.name).read_bytes() == path.read_bytes()
        for path in published.folder.iterdir()
    )


def test_the_healed_row_of_the_expert_is_named(repair, damaged, published):
    shown = repair(damaged, "--from", published.folder, "--offline", check=0)
    assert "healed from the copy" in shown.out
    assert re.search(
        rf"healed: {WEIGHTS} bytes (\d+)-\1: layers\.1 expert 2 w2 row 3 \(layers\.1", shown.out
    )
    assert re.search(r"MATCH  .*: 1 of \d+ pieces healed; 0 B came over the network", shown.out)
    assert same(damaged, published)
    again = repair(damaged, "--from", published.folder, check=0)
    assert "nothing written" in again.out


def test_json_from_the_swarm(repair, damaged, published):
    with seed(published.torrent, published.folder) as seeder:
        shown = repair(damaged, "--peer", seeder.peer, "--no-dht", "--json", check=0)
    document = json.loads(shown.out)
    assert (document["schema"], document["version"], document["ok"]) == ("moetool.repair", 1, True)
    assert [piece["healed_by"] for piece in document["bad"]] == ["swarm"]
    assert 0 < document["payload"] <= 2 * published.meta.piece_length
    assert "expert 2 w2 row 3" in document["named"][0]
    assert same(damaged, published)


def test_a_dry_run_is_3_and_changes_nothing(repair, damaged):
    before = (damaged / WEIGHTS).read_bytes()
    shown = repair(damaged, "--dry-run", check=3)
    assert "would come from the swarm" in shown.out
    assert "16.00 KiB to fetch" in shown.out
    assert "expert 2 w2" in shown.out
    assert (damaged / WEIGHTS).read_bytes() == before
    assert sorted(os.listdir(damaged)) == sorted(path.name for path in damaged.iterdir())
    assert not (damaged / ".moetool").exists()


def test_a_copy_that_is_bad_at_the_same_place_is_3(repair, damaged, published, tmp_path):
    other = shutil.copytree(damaged, tmp_path / "other")
    shown = repair(damaged, "--from", other, "--offline", check=3)
    assert f"1 bad pieces are not right in {other} either" in shown.out
    assert "1 of 1 bad pieces are bad still" in shown.out
    document = json.loads(repair(damaged, "--from", other, "--offline", "--json", check=3).out)
    assert not document["ok"]


def test_a_copy_of_another_release_is_3(repair, damaged, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / WEIGHTS).write_bytes(bytes(200_000))
    shown = repair(damaged, "--from", other, "--offline", check=3)
    assert "it is another release" in shown.err
    assert "hint: leave --from out" in shown.err


def test_no_peer_is_6_and_says_what_was_healed(repair, damaged):
    shown = repair(damaged, "--no-dht", "--timeout", "0.2", check=6)
    assert "0 peers, no trackers, DHT is off" in shown.err
    assert "0 of 1 bad pieces were healed before" in shown.err


def test_what_cannot_be_meant_is_2(repair, damaged, tmp_path):
    repair(damaged, "--offline", check=2)
    repair(damaged, "--from", tmp_path / "nowhere", check=2)
    repair(damaged, "--torrent", "missing.torrent", check=2)
    repair(damaged, "--peer", "localhost", check=2)
    damaged.with_name("small-moe.torrent").unlink()
    assert "--torrent" in repair(damaged, check=2).err


def test_a_folder_that_holds_something_else_is_3(repair, published, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "RELEASE").write_text("mine")
    repair(tmp_path / "thesis", "--torrent", published.torrent, "--no-dht", check=3)
    assert (tmp_path / "thesis" / "RELEASE").read_text() == "mine"


def test_the_output_of_a_conversion_is_refused_with_the_way_out(repair, tmp_path):
    (tmp_path / "moetool-manifest.json").touch()
    assert "hint: convert again" in repair(tmp_path, check=4).err


def test_what_cannot_be_written_is_5_and_says_which(damaged, published):
    (damaged / WEIGHTS).chmod(0o444)
    damaged.chmod(0o555)
    words = [sys.executable, "-m", "moetool", "repair", str(damaged), "--from",
             str(published.folder), "--offline"]  # fmt: skip
    done = subprocess.run([*without_privileges(), *words], capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip
    damaged.chmod(0o755)
    assert done.returncode == 5, done
    assert f"  - {damaged}\n" in done.stderr
    assert f"  - {damaged / WEIGHTS}\n" in done.stderr
    assert "chmod u+w" in done.stderr
    assert not (damaged / ".moetool").exists()


def test_an_interruption_tells_how_to_go_on(damaged):
    words = ["repair", str(damaged), "--no-dht", "--timeout", "30"]
    with subprocess.Popen([sys.executable, "-m", "moetool", *words], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as child:  # fmt: skip
        until = time.monotonic() + 20
        while not (damaged / ".moetool" / "repair" / WEIGHTS).exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.2)
        child.send_signal(signal.SIGTERM)
        _, told = child.communicate(timeout=20)
    assert child.returncode == 143, told
    assert f"moetool repair {damaged} --no-dht" in told
    assert Path(damaged / ".moetool").is_dir()  # what came is there for the next run
