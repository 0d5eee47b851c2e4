"""convert beside what users have: llama.cpp's converter, and a load and save with transformers.

    python benchmarks/convert_peers.py --llama-cpp PATH/TO/llama.cpp [--layers 1] [--where /dev/shm]

The same weights, true 8x7B layer shapes, as safetensors (hf) and as the raw .pth. Ours goes from
the .pth to each target directly; llama.cpp's converter needs the Hugging Face copy first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

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


def run(name: str, command: list[str], nbytes: int, environment: dict[str, str]) -> None:
    """Time a command and print one row of the table."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **environment}
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            log.seek(0)
            sys.exit(log.read().decode(errors="replace")[-2000:])
    wall, cpu = time.perf_counter() - began, usage.ru_utime + usage.ru_stime
    each = 1e9 / nbytes
    print(f"{name:<44}{wall:8.1f} s{cpu * each:8.2f} CPU s/GB{usage.ru_maxrss / 1e3:9.0f} MB RSS")


def main() -> None:
    """Print one row for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-cpp", type=Path, help="a checkout of llama.cpp")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--where", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.where) as name:
        folder = Path(name)
        making = get_context("spawn").Process(target=make, args=(folder, options.layers))
        making.start()
        making.join()
        nbytes = (folder / "raw" / "consolidated.00.pth").stat().st_size
        print(f"{nbytes / 1e9:.2f} GB, {options.layers} layers")
        moetool = [sys.executable, "-m", "moetool", "convert", str(folder / "raw"), "--quiet"]
        hf, gguf = folder / "ours-hf", folder / "ours-gguf"
        run("moetool .pth -> safetensors", [*moetool, "--out", str(hf)], nbytes, {})
        shutil.rmtree(hf)
        run("moetool .pth -> gguf", [*moetool, "--to", "gguf", "--out", str(gguf)], nbytes, {})
        shutil.rmtree(gguf)
        if options.llama_cpp:
            script = options.llama_cpp / "convert_hf_to_gguf.py"
            words = [str(script), str(folder / "hf"), "--outfile", str(folder / "theirs.gguf")]
            own = {"PYTHONPATH": str(options.llama_cpp / "gguf-py")}
            run("llama.cpp safetensors -> gguf", [sys.executable, *words, "--outtype", "bf16"],
                nbytes, own)  # fmt: skip
            (folder / "theirs.gguf").unlink()
        words = ["-c", TRANSFORMERS, str(folder / "hf"), str(folder / "theirs")]
        run("transformers load and save", [sys.executable, *words], nbytes, {"HF_HUB_OFFLINE": "1"})


if __name__ == "__main__":
    main()
