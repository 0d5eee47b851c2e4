"""convert at true 8x7B layer shapes, beside `cp` of the same bytes and the floor of the hashes.

    python benchmarks/convert.py [--layers 1] [--rounds 3] [--where /dev/shm] [--cold] [KIND ...]

Each round runs cp (with a sync), the floor (benchmarks/floor.py) and every kind of conversion once,
one after the other, all hashes on; read-back and certificate only where a kind names them. Ratios
are of one round, the medians over rounds. ``--cold`` drops the source from the system's cache
before each of them. On a disk, name a folder of it.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

KINDS = {
    "hf": [],
    "hf, read back": ["--readback"],
    "mistral": ["--layout", "mistral"],
    "gguf bf16": ["--to", "gguf"],
    "gguf bf16, read back": ["--to", "gguf", "--readback"],
    "hf, certified": ["--certificate"],
    "hf, as by default": ["--readback", "--certificate"],
    "hf f16": ["--dtype", "f16", "--allow-overflow"],
}


def timed(command: list[str], made: Path | None = None) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds and peak resident bytes of a command; what it made is removed."""
    os.sync()  # what the one before left unwritten must not be paid for by this one
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    wall = time.perf_counter() - began
    if made is not None:
        shutil.rmtree(made) if made.is_dir() else made.unlink()
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def make_raw(out: Path, n_layers: int) -> None:
    """Write a raw checkpoint of random weights with the true shapes of 8x7B."""
    from moetool.convert.job import prepare
    from moetool.convert.sidecars import read_tokenizer
    from moetool.convert.synthetic import GEOMETRIES, random_source
    from moetool.convert.targets import find_target
    from moetool.release.fixture import find_fixture

    args = replace(GEOMETRIES["8x7b"], n_layers=n_layers)
    source = random_source(args, 0, read_tokenizer(find_fixture().directory))
    prepare(source, find_target("pth", "mistral"), out).run()


def make_apart(make: Callable[..., None], *args: object) -> None:
    """Make something in a process of its own: what this one holds counts as its children's peak."""
    making = get_context("spawn").Process(target=make, args=args)
    making.start()
    making.join()


def forget(path: Path) -> None:
    """Drop a file from the system's cache."""
    handle = os.open(path, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def commands(folder: Path, kinds: list[str]) -> dict[str, tuple[list[str], Path]]:
    """What a round runs: name, command, and what it makes."""
    raw, copy, out = folder / "raw", folder / "copy", folder / "out"
    weights, floor = raw / "consolidated.00.pth", Path(__file__).with_name("floor.py")
    convert = [sys.executable, "-m", "moetool", "convert", str(raw), "--out", str(out), "-q"]
    return {
        "cp + sync": (["sh", "-c", f"cp -r {raw} {copy} && sync -f {copy}"], copy),
        "floor": ([sys.executable, str(floor), str(weights), str(copy)], copy),
        **{
            kind: ([*convert, "--no-readback", "--no-certificate", *KINDS[kind]], out)
            for kind in kinds
        },
    }  # fmt: skip


def main() -> None:
    """Print one line for each run, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", default=list(KINDS))
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--where", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float, float, float, int]]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=options.where) as name:
        folder = Path(name)
        make_apart(make_raw, folder / "raw", options.layers)
        weights = folder / "raw" / "consolidated.00.pth"
        gigabytes = weights.stat().st_size / 1e9
        print(f"{gigabytes:.2f} GB, {options.layers} layers, in {options.where}", flush=True)
        for _ in range(options.rounds):
            of_cp = of_floor = math.nan
            for kind, (command, made) in commands(folder, options.kinds).items():
                if options.cold:
                    forget(weights)
                wall, cpu, rss = timed(command, made)
                of_cp = wall if kind == "cp + sync" else of_cp
                of_floor = wall if kind == "floor" else of_floor
                row = (wall, wall / of_cp, wall / of_floor, cpu / gigabytes, rss)
                found[kind].append(row)
                print(told(kind, row), flush=True)
    print("medians")
    for kind, rows in found.items():
        print(told(kind, tuple(map(statistics.median, zip(*rows, strict=True)))))


def told(kind: str, row: tuple[float, ...]) -> str:
    """One row of the table."""
    wall, of_cp, of_floor, cpu, rss = row
    return (
        f"{kind:<22}{wall:7.2f} s{of_cp:7.2f} x cp{of_floor:7.2f} x floor"
        f"{cpu:7.2f} CPU s/GB{rss / 1e6:6.0f} MB RSS"
    )


if __name__ == "__main__":
    main()
