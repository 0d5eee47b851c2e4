"""What a fetch leaves behind can be read again, and damage to it does no harm."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from moetool.errors import HostileTorrent, LockHeld
from moetool.release.provenance import (
    Origin,
    last_fetched,
    locked,
    read_origin,
    read_recorded_torrent,
    remember_last,
    write_origin,
)

HOLD = """
import sys, time
from pathlib import Path
from moetool.release.provenance import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_record_is_read_as_it_was_written(release, tmp_path):
    origin = Origin("tiny", release.meta.hashes, release.magnet, "0" * 32, "2026-01-01T00:00:00")
    write_origin(tmp_path, release.meta, origin)
    assert read_origin(tmp_path) == origin
    assert read_recorded_torrent(tmp_path).pieces == release.meta.pieces


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"info_hashes": 5}', '{"x": 1}'])
def test_a_damaged_record_is_no_record(tmp_path, text):
    (tmp_path / ".moetool").mkdir()
    (tmp_path / ".moetool" / "release.json").write_text(text)
    assert read_origin(tmp_path) is None


def test_a_recorded_torrent_that_somebody_changed_is_judged_again(release, tmp_path):
    write_origin(tmp_path, release.meta, Origin("tiny", release.meta.hashes, release.magnet))
    path = tmp_path / ".moetool" / "release.torrent"
    path.write_bytes(path.read_bytes().replace(b"11:params.json", b"11:../ams.json"))
    with pytest.raises(HostileTorrent):
        read_recorded_torrent(tmp_path)


def test_a_lock_names_its_owner_and_dies_with_it(tmp_path):
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        child.stdout.readline()
        with pytest.raises(LockHeld, match=str(child.pid)) as caught, locked(tmp_path):
            pass
        assert caught.value.exit_code == 7
        child.kill()
    with locked(tmp_path):
        assert (tmp_path / ".moetool" / "lock").read_text() == str(os.getpid())


def test_the_release_fetched_last_is_remembered_while_it_is_there(tmp_path):
    assert last_fetched() is None
    folder = tmp_path / "release"
    folder.mkdir()
    remember_last(folder)
    assert last_fetched() == folder
    folder.rmdir()
    assert last_fetched() is None
