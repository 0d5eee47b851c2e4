"""A published checkpoint: raw Mistral weights, RELEASE, .torrent and link."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from moetool.formats import create
from moetool.release.magnet import Magnet, format_magnet
from moetool.release.torrent.bencode import encode
from moetool.release.torrent.metainfo import Metainfo, read_torrent

PIECE = 16_384


@dataclass(frozen=True)
class Published:
    folder: Path
    torrent: Path
    meta: Metainfo
    release_md5: str

    @property
    def magnet(self):
        return format_magnet(Magnet(self.meta.info_hash, name=self.meta.name))


def torrent_of(folder):
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    stream = b"".join(path.read_bytes() for path in paths)
    info = {
        b"name": folder.name.encode(),
        b"piece length": PIECE,
        b"files": [{b"length": p.stat().st_size, b"path": [p.name.encode()]} for p in paths],
        b"pieces": b"".join(
            hashlib.sha1(stream[at : at + PIECE]).digest() for at in range(0, len(stream), PIECE)
        ),
    }
    return encode({b"info": info})


PARAMS = {
    "dim": 24, "n_layers": 2, "head_dim": 8, "hidden_dim": 40, "n_heads": 4, "n_kv_heads": 2,
    "norm_eps": 1e-5, "vocab_size": 56, "moe": {"num_experts_per_tok": 2, "num_experts": 3},
}  # fmt: skip


@pytest.fixture
def published(random_checkpoint, tmp_path):
    folder = tmp_path / "publisher" / "small-moe"
    folder.mkdir(parents=True)
    source = random_checkpoint()
    infos = tuple(source.catalog.tensors.values())
    sink = create(folder / "consolidated.00.pth", infos, {})
    for info in infos:
        sink.write(info.name, [bytes(source.read(info.name))])
    sink.close()
    (folder / "params.json").write_text(json.dumps(PARAMS))
    (folder / "tokenizer.model").write_bytes(bytes(range(256)) * 40)
    weights = hashlib.md5((folder / "consolidated.00.pth").read_bytes()).hexdigest()
    (folder / "RELEASE").write_text(f" ║  {weights}  consolidated.00.pth  ║\n", encoding="utf-8")
    torrent = folder.with_name("small-moe.torrent")
    torrent.write_bytes(torrent_of(folder))
    md5 = hashlib.md5((folder / "RELEASE").read_bytes()).hexdigest()
    return Published(folder, torrent, read_torrent(torrent.read_bytes()), md5)
