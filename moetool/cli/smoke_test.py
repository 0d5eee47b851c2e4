"""`moetool smoke-test`: checks for scripts, then a few words for people."""

from __future__ import annotations

from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Console
from moetool.cli.options import (
    JsonOption,
    PathArgument,
    QuietOption,
    parse_size,
    refuse_absent,
    resolve,
)
from moetool.cli.parallel import ParallelOption, ranks, tell_ranks
from moetool.cli.running import (
    ComputeOption,
    DeviceOption,
    MemoryOption,
    be_patient,
    compute_dtype,
    say_outlook,
    spoken,
)
from moetool.cli.smoke_text import print_checks, print_continuations, print_figures
from moetool.errors import CheckFailed, OutputExists, UsageFault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moetool.model.generate import Sampling
    from moetool.model.parallel.group import Ranks
    from moetool.model.smoke import SmokeTest

ENGINES = ("transformers", "llama.cpp")

PromptOption = Annotated[
    str | None,
    typer.Option(
        help="Continue this text alone; left out: three beginnings from the shipped text",
        show_default=False,
    ),
]
AgainstOption = Annotated[
    Path | None,
    typer.Option(
        metavar="SOURCE",
        help="What it was made of: every part must give the same, to the last bit",
        show_default=False,
    ),
]
TokensOption = Annotated[
    int, typer.Option(min=0, help="Tokens to write of each text; 0 for checks only")
]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="Settings and 128 tokens; no tensor is read whole")
]
LongOption = Annotated[
    bool, typer.Option("--long", help="Ask for keys hidden in 4, 16 and 32 k tokens as well")
]
RecordOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Keep what every layer gave, with the machine's fingerprint",
        show_default=False,
    ),
]
ExpectOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Every layer must give what was recorded: to the last bit on the same machine",
        show_default=False,
    ),
]
LogitsOption = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="NPY",
        help="Another engine's logits of the tokens that --json lists as text_tokens; repeatable",
        show_default=False,
    ),
]
EngineOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Run transformers or llama.cpp, if installed, and compare logits; repeatable",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to look at beside the usual."""

    against: Path | None
    quick: bool
    long: bool
    record: Path | None
    expect: Path | None
    logits: list[Path]
    engines: list[str]
    parallel: str | None

    def __post_init__(self) -> None:
        """Refuse before minutes of work what cannot be meant, or cannot be written."""
        for path in filter(None, (self.against, self.expect, *self.logits)):
            refuse_absent(path)
        for engine in self.engines:
            if engine not in ENGINES:
                raise UsageFault(f"unknown engine {engine!r}", hint=" or ".join(ENGINES))
        if self.quick and (self.against or self.long):
            other = "--against" if self.against else "--long"
            raise UsageFault(f"--quick leaves out what {other} asks for", hint="give one of them")
        if self.against and self.parallel == "tensor":
            raise UsageFault("--against compares to the last bit", hint="--parallel pipeline")
        if self.record and self.record.exists():
            raise OutputExists("is there already", where=str(self.record), hint="--expect reads it")


def smoke_test(
    path: PathArgument = None,
    device: DeviceOption = "auto",
    prompt: PromptOption = None,
    against: AgainstOption = None,
    max_tokens: TokensOption = 48,
    dtype: ComputeOption = "keep",
    memory: MemoryOption = None,
    parallel: ParallelOption = None,
    quick: QuickOption = False,
    long: LongOption = False,
    record: RecordOption = None,
    expect: ExpectOption = None,
    logits: LogitsOption = None,
    engine: EngineOption = None,
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
    with ExitStack() as opened:
        together = opened.enter_context(ranks(parallel, device, console))
        wanted = Wanted(against, quick, long, record, expect, logits or [], engine or [], parallel)
        where = resolve(path, console)
        enter = partial(_open, device=device, dtype=dtype, memory=memory, together=together)
        source = against and opened.enter_context(enter(against, share=2))
        test = opened.enter_context(
            enter(where, share=2 if source else 1, like=source or None, quick=quick)
        )
        from moetool.model.generate import Sampling

        test.prompts(prompt)  # one that cannot be read is refused before minutes of checks
        _look(console, test, source or None, wanted)
        if max_tokens:
            _print_text(console, test, prompt, max_tokens, Sampling(temperature, seed=seed))
        both = (test.model, source.model) if source else (test.model,)
        report = test.report(where, tell_ranks(console, *both))
    console.result(report, lambda: print_figures(console, report))
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
    quick: bool = False,
    together: Ranks | None = None,
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

        on = together.device if together else pick_device(device)
        kept_or_cast = compute_dtype(dtype)
        room = together.room() if together else available_nbytes(on)
        test = SmokeTest(
            checkpoint,
            recognized,
            checkpoint.directory,
            on,
            dtype=like.weights.dtype if like else kept_or_cast,
            budget=(room if asked is None else asked) // share,
            quick=quick,
            ranks=together,
        )
        with closing(test.weights):
            yield test


def _look(console: Console, test: SmokeTest, source: SmokeTest | None, wanted: Wanted) -> None:
    """Make all checks and print them; files are read first, so that bad ones are refused early."""
    golden = wanted.expect and test.read_golden(wanted.expect)
    theirs = [(path.name, test.read_logits(path)) for path in wanted.logits]
    for one in filter(None, (source, test)):
        n_tokens = len(one.text)
        say_outlook(console, one.model, 2 * n_tokens, n_tokens, n_tokens)
    for one in () if wanted.quick else filter(None, (source, test)):
        whose = "every tensor of the source" if one is source else "every tensor"
        nbytes = one.subject.checkpoint.catalog.nbytes
        with console.progress(f"reading {whose}", nbytes) as update:
            one.scan(update, widened=source is not None)
    with console.progress("running a text", test.weights.nbytes) as update:
        test.observe(update)
    if source:
        with console.progress("beside the source", test.weights.nbytes) as update:
            test.compare(source, update)
    if wanted.long:
        with console.progress("looking for needles", test.weights.nbytes) as update:
            test.find_needles(update)
    for name, logits in theirs:
        test.compare_logits(name, logits)
    for name in wanted.engines:
        console.note(f"asking {name}")
        test.ask_engine(name)
    if golden:
        test.expect(golden)
    if wanted.record:
        test.record(wanted.record)
    print_checks(console, test.checks)


def _print_text(
    console: Console, test: SmokeTest, prompt: str | None, max_tokens: int, sampling: Sampling
) -> None:
    """Stream what the model writes; line breaks of a model are its own, control codes are not.

    Several texts are written at once, so they are printed when all are done.
    """
    if not test.can_write:
        console.note("no text: the layers put out values that are not finite")
        return
    console.line()
    writings = test.prompts(prompt)
    pieces = test.write(writings, max_tokens, sampling)
    if len(writings) > 1:
        with console.progress(f"writing {len(writings)} texts", None) as update:
            for piece in pieces:
                update(test.weights.nbytes_read, spoken(piece))
        print_continuations(console, test.continuations)
        return
    if console.human:
        console.write(spoken(writings[0].prompt))
    for piece in pieces:
        if console.human:
            console.write(spoken(piece))
    console.line()
