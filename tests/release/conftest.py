"""A small release, and the peers that a test swarm needs, all on the loopback address."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from moetool.release.magnet import Magnet, format_magnet
from moetool.release.torrent.bencode import encode
from moetool.release.torrent.metainfo import Metainfo, read_torrent
from moetool.release.torrent.profile import SwarmOptions
from tests.tracker import serving_tracker

PIECE = 32_768

# A fetch in a process of its own, which can be killed.
FETCH = """
import sys
from pathlib import Path
from moetool.release.fetch import fetch
from moetool.release.source import resolve_source
from moetool.release.torrent.profile import SwarmOptions
source, out, port, limit = sys.argv[1:]
options = SwarmOptions(peers=(("127.0.0.1", int(port)),), dht=False, max_down=int(limit))
fetch(resolve_source(source), Path(out), options,
      on_progress=lambda p: print(p.stage, p.pieces_done, flush=True))
"""


@dataclass(frozen=True)
class SmallRelease:
    """A release in the exact form of the first Mixtral torrent, 1.6 MB in 50 pieces."""

    folder: Path
    torrent: Path
    meta: Metainfo
    release_md5: str

    @property
    def magnet(self):
        return format_magnet(Magnet(self.meta.info_hash, name=self.meta.name))

    def same_as(self, folder):
        return all(
            (folder / file.path).read_bytes() == (self.folder / file.path).read_bytes()
            for file in self.meta.files
            if not file.pad
        )


def v1_torrent(folder: Path, piece_length: int = PIECE) -> bytes:
    """A .torrent made independently of libtorrent, by the words of BEP 3."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    stream = b"".join(path.read_bytes() for path in paths)
    cuts = range(0, len(stream), piece_length)
    info = {
        b"name": folder.name.encode(),
        b"piece length": piece_length,
        b"files": [{b"length": p.stat().st_size, b"path": [p.name.encode()]} for p in paths],
        b"pieces": b"".join(hashlib.sha1(stream[i : i + piece_length]).digest() for i in cuts),
    }
    return encode({b"info": info})


def torrent_by_libtorrent(folder: Path, kind: str, piece_length: int = PIECE) -> bytes:
    """The .torrent that libtorrent makes of a folder; ``kind`` is a key of what stands below."""
    import libtorrent as lt

    of = lt.create_torrent
    kinds = {"v1": of.v1_only, "v2": of.v2_only, "hybrid": 0, "canonical": of.canonical_files}
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = [
        lt.create_file_entry(str(path.relative_to(folder.parent)), path.stat().st_size)
        for path in paths
    ]
    made = lt.create_torrent(entries, piece_length, kinds[kind])
    lt.set_piece_hashes(made, str(folder.parent))
    return lt.bencode(made.generate())


@pytest.fixture
def make_release(tmp_path):
    def make(name="tiny", seed=0, nbytes=1_500_000, piece_length=PIECE, kind=""):
        folder = tmp_path / "publisher" / name
        folder.mkdir(parents=True)
        bits = random.Random(seed)
        (folder / "consolidated.00.pth").write_bytes(bits.randbytes(nbytes))
        (folder / "tokenizer.model").write_bytes(bits.randbytes(100_003))
        (folder / "params.json").write_text('{"dim": 256}\n')
        lines = [
            f" ║  {hashlib.md5((folder / file).read_bytes()).hexdigest()}  {file}  ║"
            for file in ("consolidated.00.pth", "tokenizer.model")
        ]
        (folder / "RELEASE").write_text("\n".join([" ╓────╖", *lines, " ╙────╜"]), "utf-8")
        torrent = folder.with_name(f"{name}.torrent")
        torrent.write_bytes(
            torrent_by_libtorrent(folder, kind, piece_length)
            if kind
            else v1_torrent(folder, piece_length)
        )
        md5 = hashlib.md5((folder / "RELEASE").read_bytes()).hexdigest()
        return SmallRelease(folder, torrent, read_torrent(torrent.read_bytes()), md5)

    return make


@pytest.fixture
def release(make_release):
    return make_release()


@pytest.fixture
def options():
    """Short times, no DHT: nothing leaves this machine."""

    def make(*seeds, **more):
        peers = tuple((seed.host, seed.port) for seed in seeds)
        times = {"metadata_timeout_s": 20, "stall_timeout_s": 20, **more}
        return SwarmOptions(peers=peers, dht=False, **times)

    return make


@dataclass(frozen=True)
class Peer:
    host: str
    port: int
    session: object
    handle: object


@contextlib.contextmanager
def raw_seed(torrent: bytes, folder: Path, upload_limit: int = 0, **settings):
    """A seeder on libtorrent alone, which may be told to serve what its hashes forbid."""
    import libtorrent as lt

    params = lt.session_params()
    params.settings = {
        "listen_interfaces": "127.0.0.1:0",
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "allow_multiple_connections_per_ip": True,
        "unchoke_slots_limit": -1,
        **settings,
    }
    session = lt.session(params)
    adding = lt.load_torrent_buffer(torrent)
    adding.save_path = str(folder.parent)
    adding.flags = lt.torrent_flags.seed_mode | lt.torrent_flags.upload_mode
    adding.upload_limit = upload_limit
    handle = session.add_torrent(adding)
    while not session.is_listening():
        session.wait_for_alert(50)
        session.pop_alerts()
    yield Peer("127.0.0.1", session.listen_port(), session, handle)


@pytest.fixture
def seeders():
    return raw_seed


@pytest.fixture
def tracker():
    """An HTTP tracker that always names the given peers."""
    with serving_tracker(interval_s=60) as server:
        yield server


@pytest.fixture
def told():
    """The lines that were said once of what goes wrong."""
    lines = []

    def hear(progress):
        if progress.told and not progress.told.startswith("order: "):
            lines.append(progress.told)

    hear.lines = lines
    return hear


@pytest.fixture
def closed_port():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
