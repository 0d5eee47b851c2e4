"""What a look into a torrent costs: inspect of the true 93.4 GB release, from one loopback seeder.

    python benchmarks/inspect_remote.py [--where DIR] [--rounds 3] [--piece-mib 2 4 16]

The release is a sparse file; only its pieces that hold data are hashed, the others are zeros and
share one hash. Printed: wall seconds of the whole command, bytes that came, pieces.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from moetool.release.fixture import find_fixture
from moetool.release.magnet import Magnet, format_magnet
from moetool.release.torrent.bencode import encode
from moetool.release.torrent.metainfo import read_torrent
from moetool.release.torrent.serve import seed

BAR_S, BAR_NBYTES = 5.0, 16e6


def data_ranges(path: Path) -> list[tuple[int, int]]:
    """Where a sparse file holds data."""
    found, at, end = [], 0, path.stat().st_size
    with path.open("rb") as file:
        while at < end:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: a hole up to the end
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, at))
    return found


def sparse_torrent(folder: Path, piece_nbytes: int) -> bytes:
    """A v1 torrent of a folder; a piece without data costs nothing."""
    files = [(path, path.stat().st_size) for path in sorted(folder.iterdir())]
    total = sum(nbytes for _, nbytes in files)
    count = -(-total // piece_nbytes)
    touched: set[int] = set()
    offset = 0
    for path, nbytes in files:
        for start, stop in data_ranges(path):
            touched.update(
                range((offset + start) // piece_nbytes, (offset + stop - 1) // piece_nbytes + 1)
            )
        offset += nbytes
    hashes = [hashlib.sha1(bytes(piece_nbytes)).digest()] * count
    for index in touched | {count - 1}:
        hashes[index] = hashlib.sha1(stream(files, index * piece_nbytes, piece_nbytes)).digest()
    info = {
        b"name": folder.name.encode(),
        b"piece length": piece_nbytes,
        b"files": [{b"length": n, b"path": [path.name.encode()]} for path, n in files],
        b"pieces": b"".join(hashes),
    }
    return encode({b"info": info})


def stream(files: list[tuple[Path, int]], offset: int, nbytes: int) -> bytes:
    """Bytes of all files, one behind the other."""
    parts = []
    for path, size in files:
        if offset < size and nbytes > 0:
            with path.open("rb") as file:
                parts.append(os.pread(file.fileno(), min(nbytes, size - offset), offset))
            nbytes -= len(parts[-1])
        offset = max(0, offset - size)
    return b"".join(parts)


def main() -> None:
    """Print a line for each piece size and source."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--where", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--piece-mib", type=int, nargs="+", default=[2, 4, 16])
    args = parser.parse_args()
    moetool = [sys.executable, "-m", "moetool"]
    print(f"{'source':<10}{'piece':>8}{'wall s':>9}{'MB came':>10}{'pieces':>8}   bars: 5 s, 16 MB")
    with tempfile.TemporaryDirectory(dir=args.where) as name:
        folder = Path(name) / "mixtral-8x7b"
        subprocess.run([*moetool, "tiny", str(folder), "--geometry", "8x7b", "-q"], check=True)
        shutil.copy(find_fixture().directory / "tokenizer.model", folder)
        (folder / "RELEASE").write_text("no digests: the weights are holes\n", encoding="utf-8")
        for mib in args.piece_mib:
            torrent = Path(name) / f"{mib}.torrent"
            torrent.write_bytes(sparse_torrent(folder, mib << 20))
            meta = read_torrent(torrent.read_bytes())
            magnet = format_magnet(Magnet(meta.info_hash, name=meta.name))
            with seed(torrent, folder) as seeder:
                for source in (str(torrent), magnet):
                    words = ["inspect", source, "--peer", seeder.peer, "--no-dht", "--json", "-q"]
                    walls, remote = [], {}
                    for _ in range(args.rounds):
                        began = time.perf_counter()
                        done = subprocess.run([*moetool, *words], capture_output=True, check=True)
                        walls.append(time.perf_counter() - began)
                        remote = json.loads(done.stdout)["remote"]
                    kind = "magnet" if source is magnet else ".torrent"
                    print(
                        f"{kind:<10}{mib:>4} MiB{statistics.median(walls):>9.2f}"
                        f"{remote['received_nbytes'] / 1e6:>10.2f}{remote['pieces_received']:>8}"
                    )


if __name__ == "__main__":
    main()
