"""A fetch alone, a fetch and a conversion after it, and `fetch --convert`: seconds and disk.

    python benchmarks/convert_while_fetching.py [--layers 4] [--to safetensors] [--mbps 0]
                                                [--where /dev/shm]

A synthetic release of 44 MB a layer is served by another process on the loopback address; with
--mbps the download is limited to so many MB per second, as a line would. Each figure is of whole
commands, start-up included. The disk's peak is sampled: allocated bytes of all that a run makes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from moetool.arch.args import ModelArgs
from moetool.convert.job import prepare
from moetool.convert.sidecars import read_tokenizer
from moetool.convert.synthetic import random_source
from moetool.convert.targets import find_target
from moetool.release.fixture import find_fixture
from moetool.release.torrent.bencode import encode

PIECE = 1 << 20
SERVE = """
import sys, time
from pathlib import Path
from moetool.release.torrent.serve import seed
with seed(Path(sys.argv[1]), Path(sys.argv[2])) as peer:
    print(peer.peer, flush=True)
    sys.stdin.read()
"""


def publish(where: Path, layers: int) -> tuple[Path, Path, int]:
    """A raw release of random weights with RELEASE, and its .torrent; gives its bytes too."""
    args = ModelArgs(
        dim=512, n_layers=layers, head_dim=64, hidden_dim=1792, n_heads=8, n_kv_heads=2,
        norm_eps=1e-5, vocab_size=768, n_experts=8, n_experts_per_tok=2,
    )  # fmt: skip
    folder = where / "published" / "synthetic"
    tokenizer = read_tokenizer(find_fixture().directory)
    prepare(random_source(args, 0, tokenizer), find_target("pth", "mistral"), folder).run()
    (folder / "moetool-manifest.json").unlink()
    md5 = hashlib.md5((folder / "consolidated.00.pth").read_bytes()).hexdigest()
    (folder / "RELEASE").write_text(f"{md5}  consolidated.00.pth\n")
    paths = sorted(folder.iterdir())
    stream = b"".join(path.read_bytes() for path in paths)
    info = {
        b"name": folder.name.encode(),
        b"piece length": PIECE,
        b"files": [{b"length": p.stat().st_size, b"path": [p.name.encode()]} for p in paths],
        b"pieces": b"".join(
            hashlib.sha1(stream[at : at + PIECE]).digest() for at in range(0, len(stream), PIECE)
        ),
    }
    torrent = folder.with_name("synthetic.torrent")
    torrent.write_bytes(encode({b"info": info}))
    return torrent, folder, len(stream)


def allocated(folder: Path) -> int:
    """The bytes that all files below a folder take on the disk."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except OSError:  # it went while it was looked at
            continue
    return total


def timed(where: Path, *commands: list[str]) -> tuple[float, int]:
    """Seconds of commands one after another, and the most bytes their folder held."""
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    peak, over = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.05):
            peak = max(peak, allocated(where))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    try:
        for words in commands:
            subprocess.run(
                [sys.executable, "-m", "moetool", *words, "--quiet"], cwd=where, check=True,
                stdout=subprocess.DEVNULL, env={**os.environ, "MOETOOL_HOME": str(where / "home")},
            )  # fmt: skip
    finally:
        seconds = time.perf_counter() - began
        over.set()
        watcher.join()
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--to", default="safetensors")
    parser.add_argument("--mbps", type=float, default=0.0, help="MB per second; 0: no limit")
    parser.add_argument("--where", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.where, prefix="moetool-bench-") as name:
        torrent, folder, nbytes = publish(Path(name), options.layers)
        serving = [sys.executable, "-c", SERVE, str(torrent), str(folder)]
        with subprocess.Popen(
            serving, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as seeder:
            peer = seeder.stdout.readline().strip()
            fetch = ["fetch", str(torrent), "--out", "raw", "--no-dht", "--peer", peer,
                     "--max-down", str(options.mbps)]  # fmt: skip
            to = ["--max-shard-size", "100MB"] if options.to == "safetensors" else []
            after = ["convert", "raw", "--to", options.to, "--out", "made", "--no-certificate", *to]
            live = [*fetch, "--convert", options.to, "--convert-out", "made", *to]
            work = Path(name) / "work"
            runs = {
                "fetch alone": timed(work, fetch),
                "fetch, then convert": timed(work, fetch, after),
                "fetch --convert": timed(work, live),
                "fetch --convert --no-keep": timed(work, [*live, "--no-keep"]),
            }
            seeder.stdin.close()
    limit = f"{options.mbps:g} MB/s" if options.mbps else "no limit"
    print(f"{nbytes / 1e6:.0f} MB, to {options.to}, {limit}, {os.cpu_count()} cores")
    alone = runs["fetch alone"][0]
    for label, (seconds, peak) in runs.items():
        print(f"{label:26} {seconds:7.2f} s  {seconds / alone:5.2f} x  peak {peak / nbytes:.2f} x")


if __name__ == "__main__":
    main()
