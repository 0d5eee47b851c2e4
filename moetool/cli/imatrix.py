"""`moetool imatrix`: what each column of each weight meets on a text, for a quantiser to weigh."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from moetool.cli.console import Console
from moetool.cli.options import JsonOption, QuietOption, refuse_absent
from moetool.cli.running import (
    ComputeOption,
    DeviceOption,
    MemoryOption,
    Running,
    pace,
    read_text,
    running,
    say_outlook,
)
from moetool.errors import OutputExists, SystemFault, UsageFault

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.model.imatrix import Collector

DEFAULT_CHUNK = 512  # tokens, as llama-imatrix has it


@dataclass(frozen=True, slots=True)
class Expert:
    """One expert of one layer."""

    layer: int
    expert: int


@dataclass(frozen=True, slots=True)
class ImatrixReport:
    """What was read and written; ``n_left`` tokens at the end of the text fill no chunk."""

    schema: ClassVar[str] = "moetool.imatrix"
    version: ClassVar[int] = 1

    path: str
    text: str
    out: str
    n_tokens: int
    n_left: int
    chunk: int
    n_chunks: int
    n_entries: int
    never_activated: tuple[Expert, ...]
    device: str
    dtype: str
    seconds: float

    @property
    def ok(self) -> bool:
        """An expert that no token came to is told, and is no failure: a longer text may help."""
        return True


def imatrix(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The checkpoint to run")],
    text: Annotated[Path, typer.Option("--text", metavar="FILE", help="A text, as UTF-8")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="FILE.gguf, or FILE.dat in the older form")
    ],
    chunk: Annotated[
        int, typer.Option(min=2, help="Tokens of a chunk, read for itself")
    ] = DEFAULT_CHUNK,
    max_chunks: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many chunks", show_default=False)
    ] = None,
    process_output: Annotated[
        bool, typer.Option("--process-output", help="Gather for output.weight as well")
    ] = False,
    device: DeviceOption = "auto",
    dtype: ComputeOption = "keep",
    memory: MemoryOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make an importance matrix from a text, for a quantiser.

    Adds up squares of what every column of every matrix is multiplied with, in llama.cpp's format.
    Each expert has its own sums, over the tokens it got; experts that got none are listed.
    """
    console = Console(json, quiet)
    for given in (path, text):
        refuse_absent(given)
    _refuse_target(out)
    content = read_text(text).removesuffix("\n")  # as llama.cpp reads a file with -f
    with running(path, device, dtype, memory) as opened:
        from moetool.formats.imatrix import Imatrix, write_imatrix
        from moetool.model.device import spelled
        from moetool.model.imatrix import Collector, cut_in_chunks

        tokenizer = opened.speaking()
        tokens = tokenizer.encode(content)
        chunks = cut_in_chunks(tokens, chunk, tokenizer.bos)[:max_chunks]
        names = opened.recognized.architecture.convention("gguf")
        collector = Collector(names, opened.recognized.args.n_experts)
        seconds = _gather(console, opened, chunks, collector, with_output=process_output)
        entries = collector.entries()
        dataset = os.fsencode(text).decode("utf-8", "replace")
        write_imatrix(out, Imatrix(entries, (dataset,), len(chunks), chunk))
        n_tokens = len(chunks) * chunk
        report = ImatrixReport(
            str(path), str(text), str(out), n_tokens, len(tokens) - n_tokens, chunk, len(chunks),
            len(entries), tuple(Expert(*pair) for pair in collector.never_activated()),
            str(opened.weights.device), spelled(opened.weights.dtype), seconds,
        )  # fmt: skip
    console.result(report, lambda: _render(console, report))


def _refuse_target(out: Path) -> None:
    """Refuse before the work what could not be written after it.

    Raises:
        UsageFault: no form is called so, or there is no such folder.
        OutputExists: it is there.
        SystemFault: the folder takes no file of ours.
    """
    from moetool.formats.imatrix import SUFFIXES

    if out.suffix not in SUFFIXES:
        raise UsageFault(
            f"no form of it is called {out.suffix!r}",
            where=str(out),
            hint=f"end it in {' or '.join(SUFFIXES)}",
        )
    if out.exists() or out.is_symlink():
        raise OutputExists("is there already", where=str(out), hint="give another --out")
    if not out.parent.is_dir():
        raise UsageFault("no such folder", where=str(out.parent))
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise SystemFault("this folder cannot be written to", where=str(out.parent))


def _gather(
    console: Console, opened: Running, chunks: list[Tensor], collector: Collector, *,
    with_output: bool,
) -> float:  # fmt: skip
    """Run the chunks; give the seconds."""
    from moetool.model.evaluate import TOGETHER
    from moetool.model.imatrix import gather

    size = len(chunks[0])
    n_rows = min(len(chunks) * size, max(TOGETHER, size))
    say_outlook(console, opened.model, n_rows, n_rows)
    began = time.perf_counter()
    with console.progress("imatrix", None) as update:
        gather(
            opened.model, chunks, collector, with_output=with_output,
            progress=lambda done, total: update(done, f"{done} of {total} tokens"),
        )  # fmt: skip
    return time.perf_counter() - began


def _render(console: Console, report: ImatrixReport) -> None:
    left = f", {report.n_left} left over" if report.n_left else ""
    console.facts([
        ("written", report.out),
        ("entries", report.n_entries),
        ("chunks", f"{report.n_chunks} of {report.chunk} tokens{left}"),
        ("never activated", f"{len(report.never_activated)} experts"),
    ])  # fmt: skip
    layers: dict[int, list[int]] = {}
    for idle in report.never_activated:
        layers.setdefault(idle.layer, []).append(idle.expert)
    for layer, experts in layers.items():
        console.line(f"  layer {layer}: {', '.join(map(str, experts))}")
    if layers:
        console.warn("columns of experts that no token came to will all count the same")
        console.hint("a longer or more varied text reaches more of them")
    console.line(f"{pace(report.n_tokens, report.seconds)}, on {report.device} in {report.dtype}")
