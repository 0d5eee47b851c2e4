"""The trained tiny release behind a seeder, fetched and converted in one go."""

from __future__ import annotations

import pytest

from moetool.convert.arriving.companion import Wish
from moetool.convert.arriving.fetch import fetch_and_convert
from moetool.convert.execute.run import Manner
from moetool.convert.job import open_source, prepare
from moetool.convert.targets import find_target
from moetool.formats import open_checkpoint
from moetool.release.fixture import find_fixture
from moetool.release.source import resolve_source
from moetool.release.torrent.profile import SwarmOptions

SHARD = 2_000_000  # bytes: eight files of safetensors


@pytest.fixture
def fixture():
    return find_fixture()


def wish(to, out, layout=None, **more):
    target = find_target(to, layout)
    largest = SHARD if to == "safetensors" else None
    return Wish(
        lambda source, folder: prepare(source, target, folder, largest),
        target.convention, out,
        **{"ahead_nbytes": 3 << 20, "mark_nbytes": 500_000, "readback": False, **more},
    )  # fmt: skip


@pytest.fixture
def both(fixture):
    """Fetch from peers into ``raw`` and convert meanwhile."""

    def run(peers, raw, wanted, on_progress=lambda _: None, **more):
        reach = tuple((peer.host, peer.port) for peer in peers)
        options = SwarmOptions(peers=reach, dht=False, **{"stall_timeout_s": 20, **more})
        source = resolve_source(str(fixture.torrent))
        return fetch_and_convert(source, raw, wanted, options, on_progress=on_progress)

    return run


@pytest.fixture
def afterwards():
    """Convert what was fetched, the usual way."""

    def run(raw, to, out, layout=None):
        target = find_target(to, layout)
        with open_checkpoint(raw) as checkpoint:
            largest = SHARD if to == "safetensors" else None
            job = prepare(open_source(checkpoint), target, out, largest)
            job.run(manner=Manner(readback=False))
        return contents(out)

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
