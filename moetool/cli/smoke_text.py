"""What the terminal says of a smoke test: checks, load of the experts, continuations, figures."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from moetool.cli.console import Column, Console, duration, size
from moetool.cli.running import pace, sizes, spoken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moetool.model.smoke import Check, Continuation, LayerView, SmokeReport

BLOCKS = " ▁▂▃▄▅▆▇█"  # a load of zero is a gap, twice the even share and more is full


def print_checks(console: Console, checks: Sequence[Check]) -> None:
    """A line for each check."""
    rows = [(check.level, check.name, check.verdict.value, check.detail) for check in checks]
    console.table([Column("level"), Column("check"), Column("verdict"), Column("seen")], rows)


def print_continuations(console: Console, continuations: Sequence[Continuation]) -> None:
    """What the model made of each prompt, with how much choice the prompt left."""
    for each in continuations:
        choice = "" if each.entropy is None else f"  ({each.entropy:.1f} nats of choice)"
        console.line(f"{spoken(each.prompt)} …{choice}", "bold")
        console.line(f"  … {spoken(each.text.strip())}")
        console.line()


def print_figures(console: Console, report: SmokeReport) -> None:
    """Load, what was run and how fast, and the verdict at the end."""
    figures = report.figures
    geometry = f"geometry of {report.release}" if report.release else "no known geometry"
    held = "all held" if figures.weights_resident else "read again as needed"
    console.line()
    _print_load(console, report.layers)
    console.line()
    console.facts(
        [
            ("model", f"layout {report.layout} in {report.format}, {geometry}"),
            ("computed", f"on {report.device} in {report.dtype}"),
            ("weights", f"{size(figures.weights_nbytes)}, {held}"),
            ("scan", _rate(figures.scan_nbytes, figures.scan_seconds)),
            ("text", pace(figures.text_tokens, figures.text_seconds)),
            ("prompt", pace(figures.prompt_tokens, figures.prompt_seconds)),
            ("writing", pace(figures.new_tokens, figures.new_seconds)),
            ("peak memory", sizes(figures.memory)),
        ]
    )
    verdicts = Counter(check.verdict.value for check in report.checks)
    counts = ", ".join(f"{verdicts[word]} {word}" for word in ("PASS", "FAIL", "NOT COVERED"))
    console.line()
    console.line(f"{'PASS' if report.ok else 'FAIL'}: {counts}", "green" if report.ok else "red")


def _print_load(console: Console, layers: Sequence[LayerView]) -> None:
    """Tokens of the text by layer and expert, as a strip that reads without colour."""
    if not layers or not layers[0].load:
        return
    n_experts = len(layers[0].load)
    console.line(f"router load, experts 0-{n_experts - 1} from left to right")
    width = len(str(len(layers) - 1))
    for number, layer in enumerate(layers):
        console.line(f"  layer {number:>{width}}  |{strip(layer.load)}|  {layer.entropy:.2f} bits")


def strip(load: Sequence[int]) -> str:
    """One character for each expert; half height is the even share."""
    even = sum(load) / len(load) or 1
    top = len(BLOCKS) - 1
    # A load that is not zero must not look like zero.
    return "".join(
        BLOCKS[min(top, max(1, round(n / even / 2 * top)))] if n else BLOCKS[0] for n in load
    )


def _rate(nbytes: int, seconds: float) -> str:
    if not nbytes:
        return "nothing"
    return f"{size(nbytes)} in {duration(seconds)}, {nbytes / max(seconds, 1e-9) / 1e9:.2f} GB/s"
