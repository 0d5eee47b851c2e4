"""identity at true 8x7B layer shapes, beside what limits it: the disk, and SHA-256 on all cores.

    python benchmarks/identity.py [--layers 1] [--rounds 3] [--where /dev/shm] [LAYOUT ...]

Each round measures, one after the other: reading the raw file (cold where it is on a disk), SHA-256
of the same bytes by a thread for each core, and `moetool identity` of each layout, cold as well.
The share is that of the slower of the two limits; medians over rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from convert import forget, make_apart, make_raw, timed

LAYOUTS = {
    "mistral": [],
    "hf": ["--layout", "hf"],
    "mistral-packed": ["--to", "pth", "--layout", "mistral-packed"],
    "gguf": ["--to", "gguf"],
    "hf f32": ["--layout", "hf", "--dtype", "f32"],
}
PIECE = 1 << 20


def read(path: Path) -> float:
    """Seconds to read a file."""
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(4 << 20)
        while file.readinto(buffer):
            pass
    return time.perf_counter() - began


def sha256_of_as_much(nbytes: int) -> float:
    """Seconds to hash ``nbytes`` of memory in a core's cache, shared out to all cores."""
    n_cores = len(os.sched_getaffinity(0))
    piece = os.urandom(PIECE)

    def work(_: int) -> None:
        digest = hashlib.sha256()
        for _ in range(nbytes // PIECE // n_cores):
            digest.update(piece)

    began = time.perf_counter()
    with ThreadPoolExecutor(n_cores) as pool:
        list(pool.map(work, range(n_cores)))
    return time.perf_counter() - began


def main() -> None:
    """Print a line for each layout and round, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("layouts", nargs="*", metavar="LAYOUT", default=["mistral", "hf"])
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--where", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    found: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=options.where) as name:
        folder = Path(name)
        make_apart(make_raw, folder / "mistral", options.layers)
        for layout in options.layouts:
            if layout != "mistral":
                words = ["convert", str(folder / "mistral"), "--out", str(folder / layout), "-q",
                         "--no-readback", "--no-certificate", *LAYOUTS[layout]]  # fmt: skip
                subprocess.run([sys.executable, "-m", "moetool", *words], check=True,
                               stdout=subprocess.DEVNULL)  # fmt: skip
        weights = folder / "mistral" / "consolidated.00.pth"
        nbytes = weights.stat().st_size
        for _ in range(options.rounds):
            forget(weights)
            disk, hashing = read(weights), sha256_of_as_much(nbytes)
            print(f"read {nbytes / disk / 1e9:.2f} GB/s, sha256 {nbytes / hashing / 1e9:.2f} GB/s")
            for layout in options.layouts:
                files = [
                    path for path in (folder / layout).iterdir() if path.stat().st_size > PIECE
                ]
                for path in files:
                    forget(path)
                total = sum(path.stat().st_size for path in files)
                words = ["identity", str(folder / layout), "-q"]
                wall, cpu, rss = timed([sys.executable, "-m", "moetool", *words])
                limit = max(disk, hashing) * (total / nbytes)
                row = (wall, limit / wall, cpu / (total / 1e9), rss)
                found[layout].append(row)
                print(told(layout, row), flush=True)
    print("medians")
    for layout, rows in found.items():
        print(told(layout, tuple(map(statistics.median, zip(*rows, strict=True)))))


def told(layout: str, row: tuple[float, ...]) -> str:
    """One row of the table."""
    wall, share, cpu, rss = row
    return (
        f"{layout:<16}{wall:7.2f} s{share:8.0%} of the limit{cpu:7.2f} CPU s/GB"
        f"{rss / 1e6:6.0f} MB RSS"
    )


if __name__ == "__main__":
    main()
