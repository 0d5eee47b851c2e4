"""`moetool generate`: continue a text."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from moetool.cli.console import Console, duration
from moetool.cli.options import JsonOption, PathArgument, QuietOption, resolve
from moetool.cli.parallel import ParallelOption, once, ranks, tell_ranks
from moetool.cli.running import (
    ComputeOption,
    DeviceOption,
    MemoryOption,
    Running,
    pace,
    running,
    say_outlook,
    sizes,
    spoken,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moetool.model.device import Memory
    from moetool.model.generate import Pace, Sampling
    from moetool.model.parallel.shared import RankMemory


@dataclass(frozen=True, slots=True)
class GenerateReport:
    """What was written and how fast; ``stopped`` is length, end (of the text) or stop."""

    schema: ClassVar[str] = "moetool.generate"
    version: ClassVar[int] = 1

    prompt: str
    text: str
    tokens: tuple[int, ...]
    stopped: str
    prompt_tokens: int
    first_token_seconds: float
    new_tokens: int
    new_seconds: float
    weights_nbytes_read: int
    memory: Memory
    ranks: tuple[RankMemory, ...]

    @property
    def ok(self) -> bool:
        """It was written."""
        return True


def generate(
    path: PathArgument = None,
    prompt: Annotated[
        str, typer.Option(help="Continue this text; - reads it from standard input")
    ] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the best token")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Draw from the best tokens of this share")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from so many tokens; 0: all")] = 0,
    seed: Annotated[int, typer.Option(help="For temperatures above 0")] = 0,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="End before this text; may be given more than once", show_default=False),
    ] = None,
    device: DeviceOption = "auto",
    dtype: ComputeOption = "keep",
    memory: MemoryOption = None,
    parallel: ParallelOption = None,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="On a GPU: graphs and expert slots, not the reference's bits"),
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Continue a text, token by token; pace and memory are told on stderr.

    The text alone is on stdout. A model that does not fit into memory runs all the same: its
    weights are read as they are needed.
    """
    console = Console(json, quiet)
    with (
        ranks(parallel, device, console) as together,
        running(resolve(path, console), device, dtype, memory, together, fast=fast) as opened,
    ):
        from moetool.model.generate import Pace, Sampling

        text = once(together, sys.stdin.read) if prompt == "-" else prompt
        chosen, measured = Sampling(temperature, top_p, top_k, seed), Pace()
        writer = Writer(opened, text, tuple(stop or ()))
        say_outlook(console, opened.model, *writer.extent(max_tokens))
        for piece in writer.write(max_tokens, chosen, measured):
            if console.human:
                console.write(spoken(piece))
        console.line()
        report = _report(writer, text, measured, tell_ranks(console, opened.model))
    console.note(
        f"first token after {duration(report.first_token_seconds)} "
        f"({pace(report.prompt_tokens, report.first_token_seconds)}), then "
        f"{pace(report.new_tokens, report.new_seconds)}; {sizes(report.memory)}"
    )
    console.result(report, lambda: None)


def _report(
    writer: Writer, prompt: str, measured: Pace, ranks: tuple[RankMemory, ...]
) -> GenerateReport:
    from moetool.model.device import MemoryWatch

    weights = writer.opened.weights
    return GenerateReport(
        prompt, writer.text, tuple(writer.tokens), writer.stopped, measured.prompt_tokens,
        measured.prompt_seconds, measured.new_tokens, measured.new_seconds, weights.nbytes_read,
        MemoryWatch().peak(weights.device), ranks,
    )  # fmt: skip


class Writer:
    """Text as it becomes certain, up to a stop text; what could begin one is held back."""

    def __init__(self, opened: Running, prompt: str, stops: tuple[str, ...]) -> None:
        self.opened, self._stops = opened, tuple(filter(None, stops))
        self._tokenizer = opened.speaking()
        self._prompt = self._tokenizer.encode(prompt)
        self.text, self.tokens, self.stopped = "", list[int](), "length"
        self._shown = 0

    def extent(self, max_tokens: int) -> tuple[int, int]:
        """The positions of the whole text, and the rows of its largest pass."""
        return len(self._prompt) + max_tokens, len(self._prompt)

    def write(self, max_tokens: int, sampling: Sampling, measured: Pace) -> Iterator[str]:
        """Yield what is certain; `text`, `tokens` and `stopped` say what it came to."""
        from moetool.model.generate import generate as continued

        stream = self._tokenizer.stream(self._prompt)
        ends = frozenset({self._tokenizer.eos})
        for token in continued(
            self.opened.model, self._prompt, max_tokens,
            sampling=sampling, stop=ends, pace=measured,
        ):  # fmt: skip
            self.tokens.append(token)
            self.text += stream.push(token)
            if self._cut():
                break
            yield from self._certain()
        else:
            self.stopped = "length" if len(self.tokens) == max_tokens else "end"
            self.text += stream.flush()
            self._cut()
        yield self.text[self._shown :]

    def _certain(self) -> Iterator[str]:
        longest = max(map(len, self._stops), default=1)
        sure = len(self.text) - longest + 1
        if sure > self._shown:
            piece, self._shown = self.text[self._shown : sure], sure
            yield piece

    def _cut(self) -> bool:
        """Cut the text before the first stop text, if there is one."""
        found = [at for at in map(self.text.find, self._stops) if at >= 0]
        if not found:
            return False
        self.text, self.stopped = self.text[: min(found)], "stop"
        return True
