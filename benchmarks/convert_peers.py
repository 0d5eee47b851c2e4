"""convert beside what users have: llama.cpp's converter, and a load and save with transformers.

    python benchmarks/convert_peers.py --llama-cpp PATH/TO/llama.cpp [--layers 1] [--rounds 3]
        [--where /dev/shm]

The same weights, true 8x7B layer shapes, as safetensors (hf) and as the raw .pth. Ours goes from
the .pth to each target directly, everything hashed, read back or not (the others do neither);
llama.cpp's converter needs the Hugging Face copy first. Each round runs all of them once; the
medians come last.
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
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from convert import make_apart

TRANSFORMERS = """
import sys, torch
from transformers import MixtralForCausalLM
model = MixtralForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
model.save_pretrained(sys.argv[2], max_shard_size="5GB")
"""


def make(folder: Path, n_layers: int) -> None:
    """Write the same random weights as raw .pth and as safetensors (hf)."""
    from moetool.convert.job import prepare
    from moetool.convert.sidecars import read_tokenizer
    from moetool.convert.synthetic import GEOMETRIES, random_source
    from moetool.convert.targets import find_target
    from moetool.release.fixture import find_fixture

    args = replace(GEOMETRIES["8x7b"], n_layers=n_layers)
    source = random_source(args, 0, read_tokenizer(find_fixture().directory))
    prepare(source, find_target("pth", "mistral"), folder / "raw").run()
    prepare(source, find_target("safetensors", "hf"), folder / "hf").run()


def run(command: list[str], made: Path, environment: dict[str, str]) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds and peak resident bytes of a command; what it made is removed."""
    os.sync()
    began = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **environment}
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            log.seek(0)
            sys.exit(log.read().decode(errors="replace")[-2000:])
    wall = time.perf_counter() - began
    shutil.rmtree(made) if made.is_dir() else made.unlink()
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def commands(
    folder: Path, llama_cpp: Path | None
) -> dict[str, tuple[list[str], Path, dict[str, str]]]:
    """What a round runs: name, command, what it makes, and its environment."""
    ours, hf, theirs = folder / "ours", folder / "hf", folder / "theirs"
    moetool = [sys.executable, "-m", "moetool", "convert", str(folder / "raw"), "--quiet"]
    moetool += ["--out", str(ours)]
    found: dict[str, tuple[list[str], Path, dict[str, str]]] = {}
    for target in ("safetensors", "gguf"):
        made_by_us = [*moetool, "--to", target, "--no-certificate"]
        found[f"moetool .pth -> {target}, read back"] = (made_by_us, ours, {})
        found[f"moetool .pth -> {target}"] = ([*made_by_us, "--no-readback"], ours, {})
    if llama_cpp:
        made = folder / "theirs.gguf"
        script = [sys.executable, str(llama_cpp / "convert_hf_to_gguf.py"), str(hf)]
        script += ["--outfile", str(made), "--outtype", "bf16"]
        own = {"PYTHONPATH": str(llama_cpp / "gguf-py")}
        found["llama.cpp safetensors -> gguf"] = (script, made, own)
    saving = [sys.executable, "-c", TRANSFORMERS, str(hf), str(theirs)]
    found["transformers load and save"] = (saving, theirs, {"HF_HUB_OFFLINE": "1"})
    return found


def main() -> None:
    """Print one row for each run, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-cpp", type=Path, help="a checkout of llama.cpp")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--where", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=options.where) as name:
        folder = Path(name)
        make_apart(make, folder, options.layers)
        gigabytes = (folder / "raw" / "consolidated.00.pth").stat().st_size / 1e9
        print(f"{gigabytes:.2f} GB, {options.layers} layers", flush=True)
        for _ in range(options.rounds):
            for kind, (command, made, environment) in commands(folder, options.llama_cpp).items():
                found[kind].append(run(command, made, environment))
                print(told(kind, found[kind][-1], gigabytes), flush=True)
    print("medians")
    for kind, rows in found.items():
        print(told(kind, tuple(map(statistics.median, zip(*rows, strict=True))), gigabytes))


def told(kind: str, row: tuple[float, ...], gigabytes: float) -> str:
    """One row of the table."""
    wall, cpu, rss = row
    return f"{kind:<34}{wall:8.1f} s{cpu / gigabytes:8.2f} CPU s/GB{rss / 1e6:9.0f} MB RSS"


if __name__ == "__main__":
    main()
