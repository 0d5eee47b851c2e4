"""generate at CPU speed: prefill and decode beside transformers and llama.cpp, same random weights.

Arms that end in q8_0 run the GGUF that llama.cpp quantises to q8_0, ours with its blocks kept.

    python benchmarks/runner.py [--shape 791m|8x7b-layer] [--rounds 5] [--where /dev/shm] [ARM ...]

Each arm is a process that has loaded the model and waits. A round measures the bandwidth of
memory, then runs every arm once, one after the other: a prompt of 512 tokens, then 16 tokens one by
one. A share is that of the bandwidth measured just before: weights that a token needs, over time.
Medians over rounds. The vocabulary is that of the release (from mistral-common).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path

PROMPT, NEW = 512, 16
ARMS = (
    "moetool", "moetool q8_0",
    "transformers grouped_mm", "transformers eager",
    "llama.cpp", "llama.cpp q8_0",
)  # fmt: skip
Measured = tuple[Callable[[list[int]], object], Callable[[int], object]]


def shape(name: str):  # noqa: ANN201  # moetool is imported in the processes that need it
    """The hyperparameters of a benchmark."""
    from moetool.convert.synthetic import GEOMETRIES

    full = GEOMETRIES["8x7b"]
    if name == "8x7b-layer":
        return replace(full, n_layers=1)
    return replace(
        full, dim=1024, n_layers=8, head_dim=64, hidden_dim=3584, n_heads=16, n_kv_heads=4
    )


def make(folder: Path, name: str) -> None:
    """Write the model as HF safetensors and as bf16 GGUF."""
    from moetool.convert.job import prepare
    from moetool.convert.synthetic import random_source
    from moetool.convert.targets import find_target

    tokenizer = (resources.files("mistral_common") / "data" / "tokenizer.model.v1").read_bytes()
    for file_format, layout in (("safetensors", "hf"), ("gguf", "gguf")):
        source = random_source(shape(name), 0, tokenizer)
        prepare(source, find_target(file_format, layout), folder / file_format).run()


def quantise(folder: Path) -> None:
    """Make the q8_0 GGUF beside the bf16 one."""
    import llama_cpp

    (source,) = (folder / "gguf").glob("*.gguf")
    (folder / "q8_0").mkdir()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    files = (str(source).encode(), str(folder / "q8_0" / "model.gguf").encode())
    if llama_cpp.llama_model_quantize(*files, settings):
        sys.exit("llama.cpp did not quantise")


def moetool(folder: Path) -> Measured:
    """Ours: a prompt, and a token."""
    from moetool.cli.running import be_patient

    be_patient()
    import torch

    from moetool.arch.recognize import recognize
    from moetool.formats import open_checkpoint
    from moetool.model.load import open_weights
    from moetool.model.one_row import OneRow

    checkpoint = open_checkpoint(folder)
    known = recognize(checkpoint.catalog, checkpoint.directory)
    weights = open_weights(checkpoint, known, torch.device("cpu"))
    model = OneRow(known.args, weights)
    for layer_name in weights.steps:
        weights.matrix(layer_name)
    state = {}

    def prompt(tokens: list[int]) -> object:
        state["cache"] = model.new_cache(PROMPT + NEW)
        return model.logits(model.hidden(torch.tensor(tokens), state["cache"])[-1:])

    def token(one: int) -> object:
        return model.forward(torch.tensor([one]), state["cache"])

    return prompt, token


def transformers(folder: Path, experts: str) -> Measured:
    """transformers, with its static choice of how experts are computed."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "safetensors", dtype=torch.bfloat16)
    model.set_experts_implementation(experts)
    state = {}

    @torch.inference_mode()
    def prompt(tokens: list[int]) -> object:
        out = model(torch.tensor([tokens]), use_cache=True, logits_to_keep=1)
        state["past"] = out.past_key_values
        return out.logits

    @torch.inference_mode()
    def token(one: int) -> object:
        return model(torch.tensor([[one]]), past_key_values=state["past"], use_cache=True).logits

    return prompt, token


def llama_cpp(folder: Path) -> Measured:
    """llama.cpp on a GGUF, a thread on each core."""
    from llama_cpp import Llama

    (path,) = folder.glob("*.gguf")
    cores = os.cpu_count() or 1
    model = Llama(str(path), n_ctx=PROMPT + NEW, n_batch=PROMPT, n_ubatch=PROMPT,
                  n_threads=cores, n_threads_batch=cores, verbose=False)  # fmt: skip

    def prompt(tokens: list[int]) -> object:
        model.reset()
        return model.eval(tokens)

    return prompt, lambda one: model.eval([one])


def serve(folder: Path, arm: str) -> None:
    """Be an arm: load, then answer each line with the seconds of prompt and tokens."""
    name, _, detail = arm.partition(" ")
    prompt, token = {
        "moetool": lambda: moetool(folder / (detail or "safetensors")),
        "transformers": lambda: transformers(folder, detail),
        "llama.cpp": lambda: llama_cpp(folder / (detail or "gguf")),
    }[name]()
    print("ready", file=sys.stderr, flush=True)
    for line in sys.stdin:
        tokens = json.loads(line)
        began = time.perf_counter()
        prompt(tokens[:PROMPT])
        read = time.perf_counter()
        for one in tokens[PROMPT:]:
            token(one)
        done = time.perf_counter()
        print(json.dumps([read - began, done - read]), flush=True)


def bandwidth() -> float:
    """Bytes a second that this machine reads from memory, best of a few."""
    import torch

    block = torch.ones(1 << 28)
    best = 0.0
    for _ in range(4):
        began = time.perf_counter()
        block.sum()
        best = max(best, block.nbytes / (time.perf_counter() - began))
    return best


def main() -> None:
    """Print one line for each run, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arms", nargs="*", metavar="ARM", default=list(ARMS))
    parser.add_argument("--shape", choices=["791m", "8x7b-layer"], default="791m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--where", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # arms that wait must not spin for seconds
    if options.serve:
        serve(Path(options.serve[0]), options.serve[1])
        return
    args = shape(options.shape)
    n_used = args.n_params_active - args.vocab_size * args.dim  # of the embedding, one row
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=options.where) as name:
        make(Path(name), options.shape)
        if any(arm.endswith("q8_0") for arm in options.arms):
            quantise(Path(name))
        arms = {arm: start(name, arm) for arm in options.arms}
        tokens = [(7 * n * n + 11) % 31000 + 300 for n in range(PROMPT + NEW)]
        for number in range(options.rounds + 1):
            for arm, process in arms.items():
                limit = bandwidth()
                process.stdin.write(json.dumps(tokens) + "\n")
                process.stdin.flush()
                reading, writing = json.loads(process.stdout.readline())
                n_read = n_used * (34 / 32 if arm.endswith("q8_0") else 2)
                share = n_read * NEW / writing / limit
                row = (PROMPT / reading, NEW / writing, share)
                if number:  # the first round warms up, and is where ways are tried
                    found[arm].append(row)
                print(told(arm, row), f"  probe {limit / 1e9:.1f} GB/s", flush=True)
        for process in arms.values():
            process.stdin.close()
            process.wait()
    print(f"medians: {options.shape}, {n_used * 2 / 1e9:.2f} GB of bf16 a token")
    for arm, rows in found.items():
        print(told(arm, tuple(map(statistics.median, zip(*rows, strict=True)))))


def start(folder: str, arm: str) -> subprocess.Popen[str]:
    """Start an arm, and wait until it has loaded."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", folder, arm],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stderr:
        if line.strip() == "ready":
            return process
    sys.exit(f"{arm} did not start")


def told(arm: str, row: tuple[float, ...]) -> str:
    """One row of the table."""
    prefill, decode, share = row
    return (
        f"{arm:<26}{prefill:8.1f} prompt tok/s{decode:8.2f} tok/s{100 * share:6.0f} % of bandwidth"
    )


if __name__ == "__main__":
    main()
