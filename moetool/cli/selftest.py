"""`moetool selftest`: are the other commands to be believed? Faults go in, and must come out."""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from moetool.cli.console import Column, Console, duration, safe
from moetool.cli.options import JsonOption, QuietOption
from moetool.errors import CheckFailed, Interrupted, UsageFault

if TYPE_CHECKING:
    from moetool.proof.selftest import Detector, Fault, SelftestReport, Trial

_INTERRUPTED = (130, 143)
INTERVAL_S = 5.0  # between lines of progress
NAMED_WIDTH = 100  # characters of a naming line that the table shows; --json has all
COMMANDS = {
    "verify": ("verify", "{subject}", "--quiet"),
    "inspect": ("inspect", "{subject}", "--quiet"),
    "diff": ("diff", "{good}", "{subject}", "--quiet"),
    "scan": ("scan", "{subject}", "--quiet"),
    "smoke-test": ("smoke-test", "{subject}", "--device", "cpu", "--max-tokens", "0", "--quiet"),
}


@dataclass(frozen=True, slots=True)
class FaultList:
    """The faults that there are."""

    schema: ClassVar[str] = "moetool.selftest-list"
    version: ClassVar[int] = 1

    faults: tuple[dict[str, object], ...]

    @property
    def ok(self) -> bool:
        """A list says nothing of a check."""
        return True


def selftest(
    only: Annotated[
        list[str] | None,
        typer.Option(help="Put in this fault only; may be given again", show_default=False),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the faults, put none in")] = False,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder for the copies, 200 MB; left out: a temporary one"),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Put known faults into copies of a tiny release; verify, inspect, diff … must catch them all.

    The sound copies go first and must raise no alarm. Exit code 3 when a fault is missed.
    """
    # Before torch is loaded, as smoke-test does.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from moetool.proof.selftest import selftest as run_selftest
    from moetool.proof.selftest.release import Bench
    from moetool.release.fixture import find_fixture

    console = Console(json, quiet)
    faults = _chosen(only or ())
    if list_:
        _print_list(console, faults)
        return
    with _workplace(work) as folder:
        console.note(f"making the sound copies in {safe(folder)}")
        bench = Bench(folder, find_fixture())
        report = run_selftest(
            bench, faults, _detectors(), _progress(console, len(bench.subjects) + len(faults))
        )
    console.result(report, lambda: _render(console, report))
    if not report.ok:
        raise typer.Exit(CheckFailed.exit_code)


def _chosen(names: Sequence[str]) -> tuple[Fault, ...]:
    from moetool.proof.selftest import FAULTS

    known = {fault.name for fault in FAULTS}
    for name in names:
        if name not in known:
            raise UsageFault(f"no fault {name!r}", hint="moetool selftest --list")
    return tuple(fault for fault in FAULTS if not names or fault.name in names)


def _print_list(console: Console, faults: Sequence[Fault]) -> None:
    rows = [(f.name, f.kind.value, " ".join(f.expected), f.what) for f in faults]
    listed = FaultList(
        tuple(
            {"name": f.name, "kind": f.kind.value, "what": f.what, "expected": dict(f.expected)}
            for f in faults
        )
    )
    columns = [Column("fault"), Column("kind"), Column("must be caught by"), Column("what is done")]
    console.result(listed, lambda: console.table(columns, rows))


@contextmanager
def _workplace(given: Path | None) -> Iterator[Path]:
    """A folder of our own that is gone afterwards, inside the one that was given."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="moetool-selftest-", dir=given) as folder:
        yield Path(folder)


def _detectors() -> dict[str, Detector]:
    return {name: _detector(words) for name, words in COMMANDS.items()}


def _detector(words: Sequence[str]) -> Detector:
    """A command line as a user would type it, run in this process."""
    from moetool.proof.selftest import Outcome

    def look(subject: Path, good: Path) -> Outcome:
        code, text = _run([word.format(subject=subject, good=good) for word in words])
        return Outcome(code, text)

    return look


def _run(argv: list[str]) -> tuple[int, str]:
    """Exit code and output of a command; both streams, for an error is named on stderr.

    Raises:
        Interrupted: the command was, and so is the whole.
    """
    from moetool.cli.app import run

    said = io.StringIO()
    with _plain_words(), redirect_stdout(said), redirect_stderr(said):
        code = run(argv)
    if code in _INTERRUPTED:
        raise Interrupted("interrupted", exit_code=code)
    return code, said.getvalue()


@contextmanager
def _plain_words() -> Iterator[None]:
    """Neither colours nor tracebacks: a line of code must not pass for a line that names."""
    before = {name: os.environ.pop(name, None) for name in ("FORCE_COLOR", "MOETOOL_DEBUG")}
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _progress(console: Console, total: int) -> Callable[[int, str], None]:
    """Say now and then how far it is."""
    last = time.monotonic()

    def tell(done: int, name: str) -> None:
        nonlocal last
        if time.monotonic() - last >= INTERVAL_S:
            last = time.monotonic()
            console.note(f"{done} of {total} done, now {name}")

    return tell


def _render(console: Console, report: SelftestReport) -> None:
    console.table(
        [Column("fault"), Column("kind"), Column("caught by"), Column("named how")],
        [
            (trial.fault, trial.kind.value, _catchers(trial), _short(trial))
            for trial in report.trials
        ],
    )
    console.line()
    for trial in (trial for trial in report.trials if not trial.ok):
        why = "; ".join(trial.lapses) or "no command caught it"
        console.line(f"MISSED  {trial.fault} ({trial.what}): {safe(why)}", "red")
    for subject in report.sound:
        for alarm in subject.alarms:
            console.line(f"FALSE ALARM  sound {subject.subject}: {safe(alarm)}", "red")
    console.line(_summary(report), "green" if report.ok else "red")


def _summary(report: SelftestReport) -> str:
    return (
        f"{'PASS' if report.ok else 'FAIL'}  {report.n_caught} of {len(report.trials)} faults "
        f"caught, {report.n_named} named, {len(report.missed)} missed; {report.n_false_alarms} "
        f"false alarms on {len(report.sound)} sound copies; {duration(report.seconds)}"
    )


def _catchers(trial: Trial) -> str:
    """Commands with their exit codes."""
    return " ".join(f"{name}:{trial.codes[name]}" for name in trial.caught_by) or "nobody"


def _short(trial: Trial) -> str:
    line = " ".join(trial.named.split()) or "not named"
    return line if len(line) <= NAMED_WIDTH else line[: NAMED_WIDTH - 1] + "…"
