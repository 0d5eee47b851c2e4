"""The means of attack: mutants of good files, and a judge with a watch and a scale."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from moetool.errors import DigestMismatch, Refused

# What the judge runs: open the file as inspect does, and say how that ended and what it cost.
_JUDGE = """
import json, re, sys, time
from pathlib import Path
from moetool.errors import MoetoolError
from moetool.formats import open_checkpoint
from moetool.formats.sentencepiece import read_vocabulary
path = Path(sys.argv[1])
started = time.process_time()
try:
    if path.suffix == ".model":
        read_vocabulary(path.read_bytes())
    else:
        open_checkpoint(path).close()
    code = 0
except MoetoolError as error:
    code = error.exit_code
    assert len(str(error)) < 2000 and str(error).isprintable(), str(error)
# Not ru_maxrss, which a child inherits from the process that forked it.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
loaded = [name for name in ("torch", "numpy", "pickle") if name in sys.modules]
print(json.dumps([code, time.process_time() - started, peak, loaded]))
"""


@pytest.fixture
def judge():
    """Open a hostile file in a process of its own: refused, within 5 s and 150 MB."""

    def refused(path):
        done = subprocess.run(
            [sys.executable, "-c", _JUDGE, str(path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        code, seconds, kilobytes, loaded = json.loads(done.stdout)
        assert code == 4
        assert seconds < 5
        assert kilobytes < 150_000
        assert loaded == []

    return refused


@pytest.fixture
def survive():
    """Read many seeded mutants of good bytes: each is read or refused, and none does else."""

    def all_of(good: bytes, read, count=2000):
        outcomes = {"read": 0, "refused": 0}
        for seed in range(count):
            try:
                read(_mutant(good, random.Random(seed)))
                outcomes["read"] += 1
            except (Refused, DigestMismatch):
                outcomes["refused"] += 1
        return outcomes

    return all_of


def _mutant(good: bytes, dice: random.Random) -> bytes:
    """One to four changes: a flip, a splice, a cut, a copy, or a number that is an edge case."""
    raw = bytearray(good)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(raw) + 1)
        match dice.randrange(6):
            case 0 if at < len(raw):
                raw[at] ^= 1 << dice.randrange(8)
            case 1:
                raw[at:at] = dice.randbytes(dice.randint(1, 9))
            case 2:
                del raw[at : at + dice.randint(1, 40)]
            case 3:
                raw[at:at] = raw[at : at + dice.randint(1, 40)]
            case 4:
                width = dice.choice((1, 2, 4, 8))
                edge = dice.choice((0, 1, (1 << 8 * width) - 1, 1 << (8 * width - 1)))
                raw[at : at + width] = edge.to_bytes(width, "little")
            case _:
                raw[at : at + 4] = dice.randbytes(4)
    return bytes(raw)
