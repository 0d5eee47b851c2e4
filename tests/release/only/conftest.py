"""Releases of every form behind a seeder, of which only a part is fetched."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from moetool.cli.fetch_only import wish_for
from moetool.convert.execute.run import Manner
from moetool.convert.job import open_source, prepare
from moetool.convert.targets import find_target
from moetool.formats import open_checkpoint
from moetool.release.fetch import fetch
from moetool.release.fixture import find_fixture
from moetool.release.only import fetch_only
from moetool.release.source import resolve_source
from moetool.release.torrent.metainfo import Metainfo, read_torrent
from moetool.release.torrent.profile import SwarmOptions
from moetool.release.torrent.serve import seed
from tests.release.conftest import torrent_by_libtorrent, v1_torrent

PIECE = 65_536


@dataclass(frozen=True)
class Published:
    """A folder of a checkpoint and its torrent."""

    folder: Path
    torrent: Path

    @property
    def meta(self) -> Metainfo:
        return read_torrent(self.torrent.read_bytes())


@pytest.fixture
def tiny():
    found = find_fixture()
    return Published(found.directory, found.torrent)


def other_form(tmp_path, form):
    """The trained tiny release in another format, in parts, or in another kind of torrent."""
    raw = find_fixture().directory
    folder = tmp_path / "publisher" / f"tiny-{form}"
    if form in {"gguf", "shards", "packed"}:
        target = find_target(*{"gguf": ("gguf", None), "shards": ("safetensors", "hf"),
                               "packed": ("pth", "mistral-packed")}[form])  # fmt: skip
        folder.parent.mkdir()
        with open_checkpoint(raw) as checkpoint:
            largest = 3_000_000 if form == "shards" else None
            job = prepare(open_source(checkpoint), target, folder, largest)
            job.run(manner=Manner(readback=False))
    elif form == "deep":
        shutil.copytree(raw, folder / "weights" / "8x1m")
        (folder / "README.md").write_text("A release in a folder of its own.")
    else:
        shutil.copytree(raw, folder)
    if form == "parts":
        weights = folder / "consolidated.00.pth"
        content = weights.read_bytes()
        weights.unlink()
        for number in range(4):
            cut = content[4_000_000 * number : 4_000_000 * (number + 1)]
            weights.with_name(f"{weights.name}-split{number}").write_bytes(cut)
    torrent = folder.with_name(folder.name + ".torrent")
    if form in {"hybrid", "v2", "deep"}:
        kind = "v1" if form == "deep" else form
        torrent.write_bytes(torrent_by_libtorrent(folder, kind, PIECE))
    else:
        torrent.write_bytes(v1_torrent(folder, PIECE))
    return Published(folder, torrent)


@pytest.fixture
def swarm():
    """Serve releases, and give what fetches them, a part or all, from there."""
    with contextlib.ExitStack() as served:
        peers: dict[Path, tuple[str, int]] = {}

        def run(published, out, *only, on_progress=lambda _: None, **more):
            if published.torrent not in peers:
                peer = served.enter_context(seed(published.torrent, published.folder))
                peers[published.torrent] = (peer.host, peer.port)
            reach = (peers[published.torrent],)
            options = SwarmOptions(peers=reach, dht=False, **{"stall_timeout_s": 20, **more})
            source = resolve_source(str(published.torrent))
            if not only:
                return fetch(source, out, options, on_progress=on_progress)
            wish = wish_for(only)
            return fetch_only(source, out, wish, options, on_progress=on_progress)

        yield run


def differing(out, published):
    """The tensors that can be read of a part; every one of them must be the publisher's."""
    from moetool.errors import NotFetched

    read = set()
    with open_checkpoint(out) as part, open_checkpoint(published.folder) as whole:
        assert part.catalog.tensors == whole.catalog.tensors
        for name in whole.catalog.tensors:
            try:
                content = part.read(name)
            except NotFetched:
                assert not part.holds(name)
                continue
            assert content == whole.read(name), name
            read.add(name)
    return read
