"""The command that makes the figures on a GPU runs here too, at a toy size."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_benchmark_runs_and_its_engines_agree():
    script = Path(__file__).parents[3] / "benchmarks" / "gpu.py"
    toy = "--device cpu --geometry tiny --layers 1 --prompt 40 --tokens 9 --rounds 1"
    done = subprocess.run(
        [sys.executable, script, *toy.split(), "--skip", "transformers"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("tok/s decode") == 2  # bf16 and int8
    ways = [line.split(":")[0] for line in done.stdout.splitlines() if line.endswith("agrees")]
    assert len(ways) == 4
