"""Decode and prefill on a GPU at the full 8x7B geometry, beside transformers and the card's limits.

    python benchmarks/gpu.py [--layers 32] [--prompt 4096] [--tokens 128] [--rounds 5]
        [--skip bf16 int8 transformers]
    python benchmarks/gpu.py --device cpu --geometry tiny --prompt 64 --tokens 8 --rounds 2

Weights are random and made on the device; no file is read. Limits are measured in the same run:
bytes per second of a large sum and a large copy (the better is the ceiling), FLOP/s of a bf16
product of 8192 x 8192 matrices. Medians over rounds. Models are made one after the other, for no
two fit; bf16 needs 100 GB, int8 52: where one does not fit, skip it or take fewer layers.

Then this text goes through the tiny trained release, by the reference on the CPU and by the fast
engines on the device: they must agree by the teacher-forced rule, or the exit code is 3. The
second command tries the script itself, without a GPU.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from moetool.arch.mixtral import MIXTRAL
from moetool.arch.recognize import recognize
from moetool.arch.schema import expand
from moetool.convert.synthetic import GEOMETRIES
from moetool.formats import open_checkpoint
from moetool.model.fast.agreement import Agreement, Routes, agreement
from moetool.model.fast.copies import copies_for
from moetool.model.fast.decoder import Decoder
from moetool.model.fast.engine import offloaded
from moetool.model.fast.feed import Feed
from moetool.model.fast.rates import Rates, measure
from moetool.model.fast.resident import Resident
from moetool.model.fast.stacked import Read, stack
from moetool.model.generate import Pace, generate
from moetool.model.load import open_weights
from moetool.model.mixtral import Transformer
from moetool.model.tokenizer import open_tokenizer
from moetool.release.fixture import find_fixture

if TYPE_CHECKING:
    from moetool.arch.args import ModelArgs

BF16 = torch.bfloat16
DECODE_BAR, PREFILL_BAR = 0.70, 0.40
SHORT_PROMPT = 16


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device, rounds: int) -> float:
    """The median of rounds behind two that do not count."""
    found = []
    for _ in range(rounds + 2):
        synchronize(device)
        began = time.perf_counter()
        run()
        synchronize(device)
        found.append(time.perf_counter() - began)
    return statistics.median(found[2:])


def bandwidth(device: torch.device, nbytes: int, rounds: int) -> tuple[float, float]:
    """Bytes per second of a sum and of a copy, which both reads and writes."""
    source = torch.zeros(nbytes // 4, device=device)
    target = torch.empty_like(source)
    summed = source.nbytes / seconds(source.sum, device, rounds)
    return summed, 2 * source.nbytes / seconds(lambda: target.copy_(source), device, rounds)


def matrix_peak(device: torch.device, side: int, rounds: int) -> float:
    """FLOP/s of a bf16 product of random numbers: of zeros a card computes faster."""
    a, b = (torch.randn(side, side, device=device, dtype=BF16) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device, rounds)


def random_weights(args: ModelArgs, device: torch.device) -> Read:
    """Normal weights of variance 1 / fan-in, norms of one."""
    layout = expand(MIXTRAL.raw, args)
    generator = torch.Generator(device).manual_seed(0)

    def read(name: str) -> torch.Tensor:
        shape = layout[name].shape
        if len(shape) == 1:
            return torch.ones(shape, device=device, dtype=BF16)
        values = torch.randn(shape, device=device, dtype=BF16, generator=generator)
        return values.mul_(shape[-1] ** -0.5)

    return read


def nbytes_per_token(args: ModelArgs, itemsize: int = 2) -> int:
    """What a token reads: active weights, of the embedding one row; its cache is short."""
    return itemsize * (args.n_params_active - (args.vocab_size - 1) * args.dim)


def prefill_flops(args: ModelArgs, n_tokens: int) -> float:
    """Products of a prompt: two for each active weight and token, logits of the last one only."""
    matrices = args.n_params_active - 2 * args.vocab_size * args.dim
    attention = 2 * n_tokens**2 * args.n_heads * args.head_dim * args.n_layers  # half is masked
    return 2 * (matrices * n_tokens + args.vocab_size * args.dim) + attention


def ours(
    args: ModelArgs, options: argparse.Namespace, *, int8: bool = False
) -> tuple[float, float]:
    """Tokens per second of decode, read back as a user's are, and of prefill."""
    device = options.device
    model = Resident(args, stack(args, random_weights(args, device), int8=int8))
    prompt = torch.randint(args.vocab_size, (options.prompt,), device=device)
    few = prompt[:SHORT_PROMPT].tolist()

    def decode() -> float:
        pace = Pace()
        for _ in generate(model, few, options.tokens + 1, pace=pace):
            pass
        return pace.new_tokens / pace.new_seconds

    began = time.perf_counter()
    decode()
    print(f"first stream, with compiling and recording: {time.perf_counter() - began:.1f} s")
    decoded = statistics.median(decode() for _ in range(options.rounds))

    def prefill() -> None:
        model.logits(model.hidden(prompt, model.new_cache(options.prompt))[-1:])

    return decoded, options.prompt / seconds(prefill, device, options.rounds)


def transformers(args: ModelArgs, options: argparse.Namespace) -> tuple[float, float]:
    """The same of MixtralForCausalLM, as `generate` runs it by default."""
    from transformers import MixtralConfig, MixtralForCausalLM

    from moetool.arch.spelling import to_config_json

    device, config = options.device, MixtralConfig(**to_config_json(args, "bfloat16"))
    torch.set_default_dtype(BF16)
    with device:
        model = MixtralForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    prompt = torch.randint(args.vocab_size, (1, options.prompt), device=device)
    few = prompt[:, :SHORT_PROMPT]

    def run(n_tokens: int) -> None:
        length = {"min_new_tokens": n_tokens, "max_new_tokens": n_tokens, "pad_token_id": 0}
        model.generate(few, attention_mask=torch.ones_like(few), do_sample=False, **length)

    with torch.inference_mode():
        some, one = (seconds(lambda n=n: run(n), device, options.rounds)
                     for n in (options.tokens + 1, 1))  # fmt: skip
        prefill = seconds(lambda: model(prompt, logits_to_keep=1), device, options.rounds)
    return options.tokens / (some - one), options.prompt / prefill


def stepwise(model: Resident, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of each position by steps, whatever a step chooses."""
    cache = model.new_cache(len(tokens))
    decoder = Decoder(model, cache)
    decoder.prepare(2, len(tokens))
    rows = [model.forward(tokens[:1], cache)]
    decoder.begin(rows[0][-1])
    for token in tokens[1:]:
        decoder.token_1.copy_(token[None])
        decoder.advance()
        rows.append(decoder.logits_V.clone()[None])
    return torch.cat(rows)


def agreements(device: torch.device, n_tokens: int) -> dict[str, Agreement]:
    """The CPU's reference against each way of the device, on the same tokens in bf16."""
    with ExitStack() as opened:
        checkpoint = opened.enter_context(open_checkpoint(find_fixture().directory))
        recognized = recognize(checkpoint.catalog, checkpoint.directory)
        tokenizer = open_tokenizer(checkpoint.catalog, checkpoint.directory)
        assert tokenizer is not None
        args, tokens = recognized.args, torch.tensor(tokenizer.encode(str(__doc__))[:n_tokens])
        cpu = torch.device("cpu")
        host, there = (
            opened.enter_context(closing(open_weights(checkpoint, recognized, where)))
            for where in (cpu, device)
        )
        reference, routes = Transformer(args, host), (Routes(), Routes())
        right = reference.forward(tokens, reference.new_cache(len(tokens)), routes[0])
        fast, on_device = Resident(args, stack(args, there.__getitem__)), tokens.to(device)
        found = {
            "prompt": fast.forward(on_device, fast.new_cache(len(tokens)), routes[1]),
            "steps": stepwise(fast, on_device),
        }
        there.budget = there.nbytes - 9 * 2 * args.n_params_expert_layer  # nine do not fit
        for way, rates in (("copied", Rates(1, 0.5, 1)), ("on the CPU", Rates(1, 2, 1e30))):
            model = opened.enter_context(offloaded(args, there, host, rates))
            cache = model.new_cache(len(tokens))
            pieces = on_device.split([40, *[1] * (len(tokens) - 40)])
            found[way] = torch.cat([model.forward(piece, cache) for piece in pieces])
    print(f"{len(tokens)} tokens, the same experts in {routes[0].same(routes[1]):.2%}")
    return {way: agreement(right, logits, tokens) for way, logits in found.items()}


def told(name: str, decoded: float, prefilled: float, limits: tuple[float, float]) -> str:
    """One row: both figures and their shares of the limits."""
    return (
        f"{name:<14}{decoded:9.1f} tok/s decode {decoded / limits[0]:7.1%}"
        f"{prefilled:11.0f} tok/s prefill {prefilled / limits[1]:7.1%}"
    )


def main() -> None:
    """Print the limits, both models beside them, and the agreement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--geometry", choices=["8x7b", "8x22b", "tiny"], default="8x7b")
    parser.add_argument("--layers", type=int, help="fewer than the geometry has")
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip", nargs="*", choices=["bf16", "int8", "transformers"], default=[])
    options = parser.parse_args()
    device, args = options.device, GEOMETRIES[options.geometry]
    args = replace(args, n_layers=options.layers or args.n_layers)
    real = device.type == "cuda"
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name(device) if real else device}, "
          f"{args.n_layers} layers of {options.geometry}")  # fmt: skip
    summed, copied = bandwidth(device, (8 << 30) if real else (64 << 20), options.rounds)
    peak = matrix_peak(device, 8192 if real else 512, options.rounds)
    gc.collect()
    print(f"sum {summed / 1e9:.0f} GB/s, copy {copied / 1e9:.0f} GB/s (read and written), "
          f"matrix product {peak / 1e12:.1f} TFLOP/s")  # fmt: skip
    print(f"a token reads {nbytes_per_token(args) / 1e9:.2f} GB in bf16; "
          f"bars {DECODE_BAR:.0%} of the first and {PREFILL_BAR:.0%} of the last")  # fmt: skip
    engines = {
        "bf16": (2, ours),
        "transformers": (2, transformers),
        "int8": (1, partial(ours, int8=True)),
    }
    for name, (itemsize, engine) in engines.items():
        if name in options.skip:
            continue
        limits = (max(summed, copied) / nbytes_per_token(args, itemsize),
                  peak / prefill_flops(args, options.prompt) * options.prompt)  # fmt: skip
        print(told(name, *engine(args, options), limits), flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    feed = Feed(copies_for(device), BF16)
    rates = measure(feed, device, BF16, 4096 if real else 512)
    feed.close()
    print(f"to the device {rates.moved / 1e9:.1f} GB/s; CPU: {rates.multiplied / 1e9:.1f} GB/s for "
          f"one row, {rates.cpu_flops / 1e9:.0f} GFLOP/s for many")  # fmt: skip
    found = agreements(device, 256 if real else 64)
    for way, result in found.items():
        print(f"{way:<14}{result}: {'agrees' if result.holds else 'DOES NOT AGREE'}")
    sys.exit(0 if all(result.holds for result in found.values()) else 3)


if __name__ == "__main__":
    main()
