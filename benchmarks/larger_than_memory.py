"""smoke-test of a file four times as large as the memory it may use, beside reading the file.

    python benchmarks/larger_than_memory.py --where DIR [--limit 3GB] [--layers 4] [--rounds 3]
                                            [--disk 500MB] [--transformers]

A raw checkpoint with the true layer shapes of 8x7B is written below DIR, which must be on a disk.
Everything measured runs in a cgroup of its own with the limit (cgroup v1 or v2, which must let us
make one): a sequential read of the same bytes, then ``moetool smoke-test`` of the text alone, each
from a cold cache. The bytes that the process took from the disk are the kernel's count
(/proc/PID/io). ``--disk`` lets the group read no more than that in a second: the disk of another
machine, where this one's is quicker than its cores. ``--transformers`` loads an HF copy with
accelerate's disk offload and runs the same number of tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from convert import forget, make_apart, make_raw

READ = """
import sys
with open(sys.argv[1], "rb", buffering=0) as file:
    while file.read(1 << 20):
        pass
"""
OFFLOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(
    sys.argv[1], dtype=torch.bfloat16, offload_folder=sys.argv[2], offload_state_dict=True,
    device_map={"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu",
                "model.rotary_emb": "cpu", "model.layers": "disk"},
)
with torch.inference_mode():
    model(torch.arange(int(sys.argv[3]))[None] % 700)
"""


@dataclass(frozen=True)
class Run:
    """What a command took: seconds, bytes from the disk, its cgroup's peak, its own report."""

    seconds: float
    nbytes_read: int
    peak_nbytes: int
    printed: str
    killed: bool


class Group:
    """A cgroup with a limit, and one for what it may read, where the version has them apart."""

    def __init__(self, limit: int, disk: int | None, where: Path) -> None:
        v1 = Path("/sys/fs/cgroup/memory")
        self._v1 = v1.is_dir()
        name = f"moetool-{os.getpid()}"
        self.folder = (v1 if self._v1 else v1.parent) / name
        reading = v1.parent / "blkio" / name if self._v1 else self.folder
        self._folders = [self.folder, *([reading] if disk and self._v1 else [])]
        for folder in self._folders:
            folder.mkdir()
        memory = "memory.limit_in_bytes" if self._v1 else "memory.max"
        (self.folder / memory).write_text(str(limit))
        if disk and self._v1:
            (reading / "blkio.throttle.read_bps_device").write_text(f"{device(where)} {disk}")
        elif disk:
            (reading / "io.max").write_text(f"{device(where)} rbps={disk}")

    def run(self, command: list[str]) -> Run:
        """Run a command inside, and count what it reads, its children's reads too."""
        if self._v1:
            (self.folder / "memory.max_usage_in_bytes").write_text("0")
        join = "".join(f"echo $$ > {folder}/cgroup.procs; " for folder in self._folders)
        wrapped = ["sh", "-c", join + 'exec "$@"', "sh", *command]
        began = time.perf_counter()
        process = subprocess.Popen(wrapped, stdout=subprocess.PIPE, text=True)
        printed = process.stdout.read()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # /proc/PID is still there
        seconds = time.perf_counter() - began
        lines = Path(f"/proc/{process.pid}/io").read_text().splitlines()
        fields = dict(line.split(": ") for line in lines)
        killed = process.wait() == -9  # by the limit
        if process.returncode not in {0, 3, -9}:  # random weights are worse than chance: 3
            sys.exit(f"{command} ended with {process.returncode}")
        name = "memory.max_usage_in_bytes" if self._v1 else "memory.peak"
        peak = int((self.folder / name).read_text())
        return Run(seconds, int(fields["read_bytes"]), peak, printed, killed)

    def close(self) -> None:
        """Take the groups away."""
        for folder in self._folders:
            folder.rmdir()


def device(where: Path) -> str:
    """The number of the disk that a folder is on; a partition has no limit of its own."""
    number = where.stat().st_dev
    entry = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    whole = entry.parent if (entry / "partition").exists() else entry
    return (whole / "dev").read_text().strip()


def make_hf(raw: Path, out: Path) -> None:
    """Convert for the peer."""
    subprocess.run([sys.executable, "-m", "moetool", "convert", str(raw), "--out", str(out), "-q",
                    "--no-readback", "--no-certificate"], check=True)  # fmt: skip


def main() -> None:
    """Print one line for each run, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--where", type=Path, required=True)
    parser.add_argument("--limit", default="3GB")
    parser.add_argument("--memory", default="1500MB")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--disk")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--transformers", action="store_true")
    options = parser.parse_args()
    from moetool.cli.options import parse_size

    limit = parse_size(options.limit, "--limit")
    with tempfile.TemporaryDirectory(dir=options.where) as name:
        raw = Path(name) / "raw"
        make_apart(make_raw, raw, options.layers)
        weights = raw / "consolidated.00.pth"
        nbytes = weights.stat().st_size
        print(f"{nbytes / 1e9:.2f} GB under {limit / 1e9:.2f} GB, {nbytes / limit:.1f} times")
        smoke = [sys.executable, "-m", "moetool", "smoke-test", str(raw), "--quick", "--json",
                 "--max-tokens", "0", "--memory", options.memory]  # fmt: skip
        disk = parse_size(options.disk, "--disk")
        group = Group(limit, disk, raw)
        rows = []
        try:
            for _ in range(options.rounds):
                forget(weights)
                plain = group.run([sys.executable, "-c", READ, str(weights)])
                forget(weights)
                ours = group.run(smoke)
                figures = json.loads(ours.printed)["figures"]
                row = (
                    plain.seconds, ours.seconds, ours.seconds / plain.seconds,
                    ours.nbytes_read / nbytes, figures["memory"]["anonymous"] / 1e9,
                    ours.peak_nbytes / 1e9,
                )  # fmt: skip
                rows.append(row)
                print(told(row), flush=True)
            print("medians\n" + told(tuple(map(statistics.median, zip(*rows, strict=True)))))
            if options.transformers:
                beside(group, Path(name), raw, figures["text_tokens"])
        finally:
            group.close()


def beside(group: Group, folder: Path, raw: Path, n_tokens: int) -> None:
    """The peer: its extra disk, and its time."""
    hf, offload = folder / "hf", folder / "offload"
    make_hf(raw, hf)
    shutil.rmtree(raw)
    for path in hf.glob("*.safetensors"):
        forget(path)
    run = group.run([sys.executable, "-c", OFFLOAD, str(hf), str(offload), str(n_tokens)])
    if run.killed:
        print(f"transformers, disk offload: killed by the limit after {run.seconds:.1f} s")
        return
    extra = sum(path.stat().st_size for path in offload.rglob("*") if path.is_file())
    print(f"transformers, disk offload: {run.seconds:.1f} s, {extra / 1e9:.1f} GB more on the "
          f"disk, peak {run.peak_nbytes / 1e9:.2f} GB")  # fmt: skip


def told(row: tuple[float, ...]) -> str:
    """One row of the table."""
    plain, ours, ratio, again, anonymous, peak = row
    return (
        f"read {plain:6.1f} s   smoke-test {ours:6.1f} s   {ratio:5.2f} x   "
        f"bytes read {again:5.2f} x   anonymous {anonymous:5.2f} GB   group's peak {peak:5.2f} GB"
    )


if __name__ == "__main__":
    main()
