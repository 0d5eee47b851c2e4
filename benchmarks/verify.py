"""verify of a fetched folder, beside the hashes of the same bytes alone.

    python benchmarks/verify.py [--gib 1] [--where /dev/shm]

The floor is what one read and the digests that verify computes cost when each digest has its own
thread: RELEASE's MD5 of one file cannot be split, so on two cores it is the longest of them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import xxhash

CHUNK = 1 << 20


def floor(path: Path) -> dict[str, float]:
    """Seconds of each digest over the file, alone, one thread each, cached reads."""

    def run(update: object) -> float:
        began = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                update(chunk)  # type: ignore[operator]
        return time.perf_counter() - began

    digests = {
        "read": lambda _chunk: None,
        "crc32": zlib.crc32,
        "md5": hashlib.md5().update,
        "sha1": hashlib.sha1().update,
        "sha256": hashlib.sha256().update,
        "xxh3_128": xxhash.xxh3_128().update,
    }
    return {name: run(update) for name, update in digests.items()}


def main() -> None:
    """Print GB/s of the parts and of verify."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--where", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.where) as folder:
        path = Path(folder) / "consolidated.safetensors"
        make(path, int(options.gib * 1024) * CHUNK)
        nbytes = path.stat().st_size
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        (path.parent / "RELEASE").write_text(f"{digest}  {path.name}\n")
        for name, seconds in floor(path).items():
            print(f"{name:<10}{nbytes / 1e9 / seconds:6.2f} GB/s, one thread")
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "moetool", "verify", str(path.parent), "-q"],
            stdout=subprocess.DEVNULL,
        )
        _, _, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        cpu = usage.ru_utime + usage.ru_stime
        print(f"verify    {nbytes / 1e9 / wall:6.2f} GB/s, md5 sha256 xxh3_128 in one read, "
              f"{cpu / nbytes * 1e9:.2f} CPU s/GB, {usage.ru_maxrss / 1e3:.0f} MB RSS")  # fmt: skip


def make(path: Path, nbytes: int) -> None:
    """A valid safetensors file of one tensor of random bytes."""
    header = b'{"x":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (nbytes, nbytes)
    chunk = os.urandom(CHUNK)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(nbytes // CHUNK):
            file.write(chunk)


if __name__ == "__main__":
    main()
