"""`moetool smoke-test`: checks for scripts, then a few words for people."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Column, Console, duration, size
from moetool.cli.options import JsonOption, PathArgument, QuietOption, parse_size, resolve
from moetool.cli.running import (
    ComputeOption,
    DeviceOption,
    MemoryOption,
    be_patient,
    compute_dtype,
    pace,
    say_how_held,
    sizes,
    spoken,
)
from moetool.errors import CheckFailed, UsageFault

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from moetool.model.generate import Sampling
    from moetool.model.smoke import LayerView, SmokeReport, SmokeTest

BLOCKS = " ▁▂▃▄▅▆▇█"  # a load of zero is a gap, twice the even share and more is full


def smoke_test(
    path: PathArgument = None,
    device: DeviceOption = "auto",
    prompt: Annotated[
        str | None, typer.Option(help="Continue this text; left out: one that suits the release")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="SOURCE",
            help="What it was made of: every part must give the same, to the last bit",
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=0, help="Tokens to write; 0 for checks only")] = 48,
    dtype: ComputeOption = "keep",
    memory: MemoryOption = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the best token")] = 0.0,
    seed: Annotated[int, typer.Option(help="For temperatures above 0")] = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check that a checkpoint, raw or converted, is sound and works, and let it say a few words.

    Exit code 3 when a check says no.
    """
    be_patient()
    console = Console(json=json, quiet=quiet)
    where = resolve(path, console)
    if against and not against.exists():
        raise UsageFault("no such file or folder", where=str(against))
    with ExitStack() as opened:
        source = against and opened.enter_context(_open(against, device, dtype, memory, share=2))
        test = opened.enter_context(
            _open(where, device, dtype, memory, share=2 if source else 1, like=source or None)
        )
        from moetool.model.generate import Sampling

        test.prompt(prompt)  # one that cannot be read is refused before minutes of checks
        _look(console, test, source or None)
        if max_tokens:
            _print_text(console, test, prompt, max_tokens, Sampling(temperature, seed=seed))
        report = test.report(where)
    console.result(report, lambda: _print_figures(console, report))
    if not report.ok:
        raise typer.Exit(CheckFailed.exit_code)


@contextmanager
def _open(
    where: Path,
    device: str,
    dtype: str,
    memory: str | None,
    *,
    share: int = 1,
    like: SmokeTest | None = None,
) -> Iterator[SmokeTest]:
    """Open and recognise first: what is malformed is refused before torch is loaded.

    ``share``: how many models share the memory; ``like``: one whose type to compute in.
    """
    from moetool.arch.recognize import recognize
    from moetool.formats import open_checkpoint

    asked = parse_size(memory, "--memory")
    with open_checkpoint(where) as checkpoint:
        recognized = recognize(checkpoint.catalog, checkpoint.directory)

        from moetool.model.device import available_nbytes, pick_device
        from moetool.model.smoke import SmokeTest

        on, kept_or_cast = pick_device(device), compute_dtype(dtype)
        budget = (available_nbytes(on) if asked is None else asked) // share
        yield SmokeTest(
            checkpoint,
            recognized,
            checkpoint.directory,
            on,
            dtype=like.weights.dtype if like else kept_or_cast,
            budget=budget,
        )


def _look(console: Console, test: SmokeTest, source: SmokeTest | None) -> None:
    for one in filter(None, (source, test)):
        whose = "every tensor of the source" if one is source else "every tensor"
        nbytes = one.subject.checkpoint.catalog.nbytes
        with console.progress(f"reading {whose}", nbytes) as update:
            one.scan(update, widened=source is not None)
    with console.progress("running a text", test.weights.nbytes) as update:
        test.observe(update)
    if source:
        with console.progress("beside the source", test.weights.nbytes) as update:
            test.compare(source, update)
    rows = [(check.level, check.name, check.verdict.value, check.detail) for check in test.checks]
    console.table([Column("level"), Column("check"), Column("verdict"), Column("seen")], rows)


def _print_text(
    console: Console, test: SmokeTest, prompt: str | None, max_tokens: int, sampling: Sampling
) -> None:
    """Stream what the model writes; line breaks of a model are its own, control codes are not."""
    if not test.can_write:
        console.note("no text: the layers put out values that are not finite")
        return
    say_how_held(console, test.weights, test.subject.recognized)
    console.line()
    if console.human:
        console.write(spoken(test.prompt(prompt)[0]))
    for piece in test.write(prompt, max_tokens, sampling):
        if console.human:
            console.write(spoken(piece))
    console.line()


def _print_figures(console: Console, report: SmokeReport) -> None:
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
    if not layers:
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
    return f"{size(nbytes)} in {duration(seconds)}, {nbytes / max(seconds, 1e-9) / 1e9:.2f} GB/s"
