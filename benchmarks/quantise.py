"""Quantising a raw .pth, beside llama_model_quantize and beside the detour that leads to it.

    python benchmarks/quantise.py [--layers 1] [--rounds 3] [--where /dev/shm] [MIX ...]
                                  [--detour [--converter llama.cpp/convert_hf_to_gguf.py]]

ours     moetool convert raw --to gguf --dtype MIX     .pth, read, checked, quantised, hashed
llama    llama_model_quantize, 2 threads               from a bf16 GGUF that is there already
detour   raw -> Hugging Face safetensors -> bf16 GGUF -> llama_model_quantize

The first step of the detour is our own conversion: transformers' script of old reads another layout
than the torrent's. The second is llama.cpp's converter where it is given, else ours, which is
quicker. Read-back and certificate are off: no peer has them. Ratios are of one round, medians over
rounds; peak RSS of a peer counts the file that it maps. One line tells what our command takes for
the tiny release: Python, torch and numba are loaded. 8x7B has 27 times the weights of
one layer, and loads them once as well.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from convert import make_apart, make_raw, timed

from moetool.release.fixture import find_fixture

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
    """The peer's command."""
    return quiet([sys.executable, "-c", LLAMA, str(source), str(out), mix.upper()])


def quiet(command: list[str]) -> list[str]:
    """The same command, whose stderr nobody reads."""
    return ["sh", "-c", 'exec "$@" 2>/dev/null', "sh", *command]


def run_round(
    folder: Path, mix: str, converter: Path | None, *, detour: bool
) -> dict[str, tuple[float, float, int]]:
    """Wall seconds, CPU seconds and peak RSS of each way."""
    raw, out, whole = folder / "raw", folder / "out", folder / "whole"
    found = {"ours": timed(convert(raw, out, "--to", "gguf", "--dtype", mix), out)}
    found["llama"] = timed(llama(whole / "whole.gguf", folder / "l.gguf", mix), folder / "l.gguf")
    if detour:
        hf, made = folder / "hf", folder / "made"
        steps, whole = [timed(convert(raw, hf))], made / "made.gguf"
        if converter:
            made.mkdir()
            names = [str(hf), "--outtype", "bf16", "--outfile", str(whole)]
            steps.append(timed(quiet([sys.executable, str(converter), *names])))
        else:
            steps.append(timed(convert(hf, made, "--to", "gguf")))
        shutil.rmtree(hf)
        steps.append(timed(llama(whole, out, mix), out))
        shutil.rmtree(made)
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
    parser.add_argument("--converter", type=Path, help="llama.cpp's, for the detour")
    options = parser.parse_args()
    found: dict[tuple[str, str], list[tuple[float, float, float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=options.where) as name:
        folder = Path(name)
        make_apart(make_raw, folder / "raw", options.layers)
        n_weights = (folder / "raw" / "consolidated.00.pth").stat().st_size / 2e6
        timed(convert(folder / "raw", folder / "whole", "--to", "gguf"))
        print(f"{n_weights:.0f} million weights in {options.where}", flush=True)
        tiny = convert(find_fixture().directory, folder / "tiny", "--to", "gguf", "--dtype", "q8_0")
        start = statistics.median(timed(tiny, folder / "tiny")[0] for _ in range(options.rounds))
        print(f"{start:.2f} s for the tiny release", flush=True)
        for mix in options.mixes:
            for _ in range(options.rounds):
                ways = run_round(folder, mix, options.converter, detour=options.detour)
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
