"""Uploads in parts, and torrents with v2 hashes, are converted while they come like any other."""

from __future__ import annotations

import json

import pytest

from moetool.convert.arriving.fetch import fetch_and_convert
from moetool.convert.execute.manifest import MANIFEST
from moetool.errors import Interrupted
from moetool.release.source import resolve_source
from moetool.release.torrent.profile import SwarmOptions
from moetool.release.torrent.serve import seed
from moetool.release.verify.settle import Word
from tests.convert.arriving.conftest import contents, wish
from tests.release.only.conftest import other_form

FORMS = ["parts", "shards", "hybrid", "v2"]
KEEP = pytest.mark.parametrize("keep", [True, False], ids=["keep", "no-keep"])


@pytest.fixture
def come(tmp_path):
    """Fetch a release from its seeder and convert it meanwhile."""

    def run(published, wanted, on_progress=lambda _: None, **more):
        with seed(published.torrent, published.folder) as peer:
            options = SwarmOptions(peers=((peer.host, peer.port),), dht=False,
                                   **{"stall_timeout_s": 20, **more})  # fmt: skip
            source = resolve_source(str(published.torrent))
            return fetch_and_convert(
                source, tmp_path / "raw", wanted, options, on_progress=on_progress
            )

    return run


@KEEP
@pytest.mark.parametrize("form", FORMS)
def test_the_bytes_are_those_of_a_conversion_afterwards(form, keep, come, afterwards, tmp_path):
    published, out = other_form(tmp_path, form), tmp_path / "made"
    report = come(published, wish("gguf", out, keep=keep))
    assert report.fetched.verification.verdict is Word.MATCH
    assert (tmp_path / "raw").exists() == keep
    made = contents(out)
    out.rename(tmp_path / "live")
    expected = afterwards(tmp_path / "raw" if keep else published.folder, "gguf", out)
    described, ours = json.loads(expected.pop(MANIFEST)), json.loads(made.pop(MANIFEST))
    assert made == expected
    assert ours["plan_id"] == described["plan_id"]
    assert ours["tensors"] == described["tensors"]


@KEEP
@pytest.mark.parametrize("form", ["parts", "hybrid", "v2"])
def test_stopped_in_the_middle_it_goes_on(form, keep, come, afterwards, tmp_path):
    """What was used and given back does not come again: the torrent's hashes tell what is here."""
    published, out = other_form(tmp_path, form), tmp_path / "made"

    def stop(progress):
        if progress.stage == "download" and progress.pieces_done > 120:
            raise KeyboardInterrupt

    wanted = wish("gguf", out, keep=keep)
    with pytest.raises(Interrupted):
        come(published, wanted, stop, max_down=6_000_000)
    report = come(published, wanted)
    made = contents(out)
    out.rename(tmp_path / "live")
    expected = afterwards(published.folder, "gguf", out)
    assert made["made.gguf"] == expected["made.gguf"]
    assert report.fetched.payload < 0.75 * sum(file.nbytes for file in published.meta.files)
