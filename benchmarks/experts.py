"""What watching and ablating cost beside scoring the same text: one run, as ratios of CPU time.

python benchmarks/experts.py [--layers 2] [--tokens 512]

A checkpoint of true 8x7B layers with random weights is written to a temporary folder (2.9 GB a
layer). Each command is its own process; the bar is `moetool eval` on the same tokens.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from moetool.convert.job import prepare
from moetool.convert.synthetic import GEOMETRIES, random_source
from moetool.convert.targets import find_target
from moetool.release.fixture import find_fixture


def cost(words: list[str]) -> tuple[float, int]:
    """CPU seconds and peak resident bytes of a command."""
    command = [sys.executable, "-m", "moetool", *words, "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def make(folder: Path, n_layers: int) -> None:
    """Write the checkpoint, in a process of its own: a child's peak counts its parent's size."""
    args = replace(GEOMETRIES["8x7b"], n_layers=n_layers, vocab_size=768)
    tokenizer = (find_fixture().directory / "tokenizer.model").read_bytes()
    prepare(random_source(args, 0, tokenizer), find_target("pth", None), folder).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--where", default=None)
    given = parser.parse_args()
    release = find_fixture()
    with tempfile.TemporaryDirectory(dir=given.where) as folder:
        model = Path(folder) / "model"
        maker = multiprocessing.get_context("spawn").Process(
            target=make, args=(model, given.layers)
        )
        maker.start()
        maker.join()
        text = Path(folder) / "text.txt"
        text.write_text((release.torrent.parent / "smoke_text.txt").read_text() * 4)
        read = ["--text", str(text), "--max-tokens", str(given.tokens), "--device", "cpu"]
        commands = {
            "eval": ["eval", str(model), *read],
            "route": ["route", str(model), *read],
            "saliency, cost of 8": ["experts", "ablate", str(model), *read, "--top-k", "none"],
            f"… of all {8 * given.layers}": [
                "experts", "ablate", str(model), *read, "--top-k", "none", "--all",
            ],
            "stats, no spectra": ["experts", "stats", str(model), "--spectra", "0"],
            "stats, 4 values": ["experts", "stats", str(model), "--spectra", "4"],
        }  # fmt: skip
        print(f"{given.layers} layers of 8x7B, {given.tokens} tokens, {os.cpu_count()} cores")
        scored = 0.0
        for name, words in commands.items():
            seconds, peak = cost(words)
            scored = scored or seconds
            print(f"{name:>22}  {seconds:7.1f} s CPU  {seconds / scored:6.2f} of eval  "
                  f"{peak / 2**30:5.2f} GiB", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
