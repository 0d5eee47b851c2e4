"""Quantising a raw .pth, beside llama_model_quantize and beside the detour that leads to it.

    python benchmarks/quantise.py [--layers 1] [--rounds 3] [--where /dev/shm] [--detour] [MIX ...]

ours     moetool convert raw --to gguf --dtype MIX     .pth, read, checked, quantised, hashed
llama    llama_model_quantize, 2 threads               from a bf16 GGUF that is there already
detour   raw -> Hugging Face safetensors -> bf16 GGUF -> llama_model_quantize

The first two steps of the detour are our own conversions, which are quicker than transformers' and
llama.cpp's. Read-back and certificate are off: no peer has them. Ratios are of one round, medians
over rounds; peak RSS of a peer counts the file that it maps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from convert import make_apart, make_raw, timed

LLAMA = """
import sys, llama_cpp
p = llama_cpp.llama_model_quantize_default_params()
p.ftype, p.nthread = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + sys.argv[3]), 2
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p))
"""


def convert(source: Path, out: Path, *options: str) -> list[str]:
    """Our command, without what peers do not do."""
    plain = ["--no-readback", "--no-certificate", "-q"]
    command = [sys.executable, "-m", "moetool", "convert", str(source), "--out", str(out)]
    return [*command, *plain, *options]


def llama(source: Path, out: Path, mix: str) -> list[str]:
    """The peer's command; it tells much on stderr."""
    words = [sys.executable, "-c", LLAMA, str(source), str(out), mix.upper()]
    return ["sh", "-c", 'exec "$@" 2>/dev/null', "sh", *words]


def run_round(folder: Path, mix: str, *, detour: bool) -> dict[str, tuple[float, float, int]]:
    """Wall seconds, CPU seconds and peak RSS of each way."""
    raw, out, whole = folder / "raw", folder / "out", folder / "whole"
    found = {"ours": timed(convert(raw, out, "--to", "gguf", "--dtype", mix), out)}
    found["llama"] = timed(llama(whole / "whole.gguf", folder / "l.gguf", mix), folder / "l.gguf")
    if detour:
        hf, made = folder / "hf", folder / "made"
        steps = [timed(convert(raw, hf)), timed(convert(hf, made, "--to", "gguf"))]
        steps.append(timed(llama(made / "made.gguf", out, mix), out))
        for path in (hf, made):
            timed(["rm", "-r", str(path)])
        found["detour"] = (
            sum(wall for wall, _, _ in steps), sum(cpu for _, cpu, _ in steps),
            max(rss for _, _, rss in steps),
        )  # fmt: skip
    return found


def main() -> None:
    """Print one line for each run, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mixes", nargs="*", metavar="MIX", default=["q8_0", "q4_k_m"])
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--where", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--detour", action="store_true")
    options = parser.parse_args()
    found: dict[tuple[str, str], list[tuple[float, float, float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=options.where) as name:
        folder = Path(name)
        make_apart(make_raw, folder / "raw", options.layers)
        n_weights = (folder / "raw" / "consolidated.00.pth").stat().st_size / 2e6
        timed(convert(folder / "raw", folder / "whole", "--to", "gguf"))
        print(f"{n_weights:.0f} million weights in {options.where}", flush=True)
        for mix in options.mixes:
            for _ in range(options.rounds):
                ways = run_round(folder, mix, detour=options.detour)
                for way, (wall, cpu, rss) in ways.items():
                    row = (wall, wall / ways["llama"][0], cpu, rss / 1e6)
                    found[mix, way].append(row)
                    print(told(mix, way, n_weights, row), flush=True)
    print("medians")
    for (mix, way), rows in found.items():
        print(told(mix, way, n_weights, tuple(map(statistics.median, zip(*rows, strict=True)))))


def told(mix: str, way: str, n_weights: float, row: tuple[float, ...]) -> str:
    """One row of the table."""
    wall, ratio, cpu, rss = row
    return (
        f"{mix:<8}{way:<8}{wall:7.2f} s{ratio:7.2f} x llama{n_weights / wall:8.1f} M/s"
        f"{cpu:8.1f} CPU s{rss:7.0f} MB RSS"
    )


if __name__ == "__main__":
    main()
