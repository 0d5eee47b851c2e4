"""What a start costs: --help, and inspect of the true 93.4 GB geometry, in CPU seconds and RSS.

    python benchmarks/startup.py [--rounds 5]

Beside ours in the same run: a bare python, `import torch`, and torch.load(mmap=True) of the file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

LIMITS = {"moetool --help": 0.20, "moetool inspect (93.4 GB)": 0.35}

TORCH_LOAD = """
import mmap, sys, torch
torch.serialization.set_default_mmap_options(mmap.MAP_SHARED)
torch.load(sys.argv[1], mmap=True, weights_only=True, map_location="cpu")
"""


def cost(command: list[str]) -> tuple[float, int]:
    """CPU seconds and peak resident bytes of a command."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder) / "full"
        moetool = [sys.executable, "-m", "moetool"]
        cost([*moetool, "tiny", str(full), "--geometry", "8x7b"])
        commands = {
            "bare python": [sys.executable, "-c", "pass"],
            "moetool --help": [*moetool, "--help"],
            "moetool inspect (93.4 GB)": [*moetool, "inspect", str(full)],
            "import torch": [sys.executable, "-c", "import torch"],
            "torch.load mmap (93.4 GB)": [
                sys.executable, "-c", TORCH_LOAD, str(full / "consolidated.00.pth"),
            ],
        }  # fmt: skip
        costs: dict[str, list[tuple[float, int]]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                costs[name].append(cost(command))
    print(f"{'command':<28}{'CPU s':>8}{'RSS MB':>9}{'limit':>8}")
    for name, found in costs.items():
        cpu = statistics.median(c for c, _ in found)
        rss = statistics.median(r for _, r in found) / 1e6
        print(f"{name:<28}{cpu:>8.3f}{rss:>9.1f}{LIMITS.get(name, ''):>8}")


if __name__ == "__main__":
    main()
