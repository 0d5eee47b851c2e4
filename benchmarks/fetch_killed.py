"""What `kill -9` at random times costs a fetch: bytes that came over a paced line more than once.

    PYTHONPATH=. python benchmarks/fetch_killed.py [--mib 1500] [--kills 20] [--peers 1 4 12]

Each peer has a line of its own; together they give ``--mbps``. Bytes are counted where the line
gives them, the protocol's words and what a kill finds on its way included.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from fetch import publish, seeding

from tests.lines import line_to

AWAY_S = 0.3  # until lines notice that who asked is gone


def main() -> None:
    """Print a row for each number of peers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1500)
    parser.add_argument("--mbps", type=float, default=100.0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--peers", type=int, nargs="*", default=[1, 4, 12])
    parser.add_argument("--where", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.where, prefix="moetool-bench-") as name:
        release = publish(Path(name), options.mib << 20)
        with seeding(release) as seeder:
            for n_peers in options.peers:
                with contextlib.ExitStack() as stack:
                    peer = SimpleNamespace(host="127.0.0.1", port=seeder.port)
                    rate = options.mbps * 1e6 / n_peers
                    lines = [
                        stack.enter_context(line_to(peer, bytes_s=rate)) for _ in range(n_peers)
                    ]
                    out = Path(name) / f"out-{n_peers}"
                    words = [sys.executable, "-m", "moetool", "fetch", "--json", "--no-dht"]
                    for line in lines:
                        words += ["--peer", f"127.0.0.1:{line.port}"]
                    killed(words, release, lines, out, options)


def killed(
    words: list[str],
    release: object,
    lines: list[object],
    out: Path,
    options: argparse.Namespace,
) -> None:
    """Kill a fetch at random times, let it end, and print what came twice."""
    env = {**os.environ, "MOETOOL_HOME": str(out.with_name("home"))}
    run = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": env}
    words = [*words, "--out", str(out), str(release.torrent)]
    mean_s = release.nbytes / (options.mbps * 1e6) / (options.kills + 1)
    moments, made = random.Random(0), 0
    for _ in range(options.kills):
        before, until_s = came(lines), time.monotonic() + 20
        with subprocess.Popen(words, **run) as child:
            while came(lines) == before and time.monotonic() < until_s:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 2) * mean_s)
            made += child.poll() is None
            child.kill()
        time.sleep(AWAY_S)
        if out.exists():
            break
    subprocess.run(words, check=True, **run)
    sent, name = came(lines), "consolidated.00.pth"
    assert filecmp.cmp(out / name, release.folder / "synthetic" / name, shallow=False)
    again = sent - release.nbytes
    print(
        f"{release.nbytes / 1e9:.2f} GB at {options.mbps:.0f} MB/s, {len(lines)} peers, "
        f"{made} kills: {again / 1e6 / made:.2f} MB a kill, {again / release.nbytes:.2%} in all",
        flush=True,
    )


def came(lines: list[object]) -> int:
    """The bytes that all lines have given so far."""
    return sum(line.nbytes for line in lines)


if __name__ == "__main__":
    main()
