"""convert .pth -> safetensors (hf) at true 8x7B layer shapes, beside `cp` of the same bytes.

    python benchmarks/convert.py [--layers 1] [--rounds 3] [--where /dev/shm]

Each round converts without and with reading back, then copies, one after the other; every hash is
on in both. The ratios are of one round, the medians over rounds. On a disk, name a folder of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path


def timed(command: list[str], made: Path) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds and peak resident bytes of a command; what it made is removed."""
    os.sync()  # what the one before left unwritten must not be paid for by this one
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    wall = time.perf_counter() - began
    shutil.rmtree(made)
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def make_raw(out: Path, n_layers: int) -> None:
    """Write a raw checkpoint of random weights with the true shapes of 8x7B."""
    from moetool.convert.job import prepare
    from moetool.convert.synthetic import GEOMETRIES, random_source
    from moetool.convert.targets import find_target

    args = replace(GEOMETRIES["8x7b"], n_layers=n_layers)
    prepare(random_source(args, 0, None), find_target("pth", "mistral"), out).run()


def main() -> None:
    """Print one line for each round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--where", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    ratios: dict[str, list[float]] = {"--no-readback": [], "--readback": []}
    with tempfile.TemporaryDirectory(dir=options.where) as folder:
        raw, out, copy = (Path(folder) / name for name in ("raw", "out", "copy"))
        # In its own process: what this one holds would count as the peak of its children.
        making = get_context("spawn").Process(target=make_raw, args=(raw, options.layers))
        making.start()
        making.join()
        nbytes = (raw / "consolidated.00.pth").stat().st_size
        print(f"{nbytes / 1e9:.2f} GB, {options.layers} layers, in {options.where}")
        for _ in range(options.rounds):
            figures = {flag: timed([*convert(raw, out), flag], out) for flag in ratios}
            peer, cpu, _ = timed(["sh", "-c", f"cp -r {raw} {copy} && sync -f {copy}"], copy)
            print(f"cp + sync       {peer:6.2f} s, {cpu / nbytes * 1e9:.2f} CPU s/GB")
            for flag, (ours, cpu, rss) in figures.items():
                ratios[flag].append(ours / peer)
                print(
                    f"{flag:<15} {ours:6.2f} s, {cpu / nbytes * 1e9:.2f} CPU s/GB, "
                    f"{rss / 1e6:.0f} MB RSS, {ours / peer:.2f} x cp"
                )
    for flag, found in ratios.items():
        print(f"median {flag} {statistics.median(found):.2f} x cp")


def convert(raw: Path, out: Path) -> list[str]:
    """The command, all hashes on."""
    return [sys.executable, "-m", "moetool", "convert", str(raw), "--out", str(out), "-q"]


if __name__ == "__main__":
    main()
