"""Registers the commands and maps what went wrong to exit codes; commands contain no `try`.

0 done, every check said yes    4 refused: malformed, hostile or unsupported input
1 internal error, a bug         5 system: disk, permission, I/O, memory, device
2 usage                         6 network: no peers, timeout
3 mismatch: the data is wrong   7 in the way: output exists, lock held
130 / 143 interrupted
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from moetool import __version__
from moetool.cli import (
    certify,
    demo,
    diff,
    experts,
    fetch,
    generate,
    identity,
    imatrix,
    inspect,
    publish,
    releases,
    repair,
    route,
    scan,
    seed,
    selftest,
    serve,
    smoke_test,
    tiny,
    verify,
)
from moetool.cli import convert as convert_command
from moetool.cli import eval as eval_command
from moetool.cli.console import Console
from moetool.errors import Interrupted, MoetoolError, NoRoomOnDisk, SystemFault, UsageFault

USAGE = 2
_AGAIN = "run the same command again"
_POLITE = (signal.SIGINT, signal.SIGTERM)
BROKEN_PIPE = 141  # as the shell reports a SIGPIPE

app = typer.Typer(
    name="moetool",
    help="From the public post of a mixture-of-experts checkpoint to weights you can prove and run",
    epilog="Start with: moetool demo",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("fetch")(fetch.fetch)
app.command("releases")(releases.releases)
app.command("verify")(verify.verify)
app.command("repair")(repair.repair)
app.command("publish")(publish.publish)
app.command("seed")(seed.seed)
app.command("inspect")(inspect.inspect)
app.command("convert")(convert_command.convert)
app.command("diff")(diff.diff)
app.command("scan")(scan.scan)
app.command("selftest")(selftest.selftest)
app.command("identity")(identity.identity)
app.command("certify")(certify.certify)
app.command("smoke-test")(smoke_test.smoke_test)
app.command("generate")(generate.generate)
app.command("serve")(serve.serve)
app.command("eval")(eval_command.evaluate)
app.command("route")(route.route)
app.add_typer(experts.app)
app.command("imatrix")(imatrix.imatrix)
app.command("tiny")(tiny.tiny)
app.command("demo")(demo.demo)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"moetool {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit"
    ),
) -> None:
    pass


def run(argv: list[str]) -> int:
    """Run a command line and return its exit code; whatever fails says what to do next."""
    console = Console(json="--json" in argv, events="--events" in argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name must not kill its own report
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # torch asks, we do not
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        code = _invoke(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has left; python would complain again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except MoetoolError as error:
        return _report(console, error)
    except KeyboardInterrupt:
        return _report(console, Interrupted("interrupted", hint=_AGAIN))
    except OSError as error:
        return _report(console, _system_fault(error))
    except Exception as error:  # noqa: BLE001  # the one place where a bug of ours becomes words
        hint = "please report it; MOETOOL_DEBUG=1 shows the traceback"
        return _report(console, MoetoolError(f"internal error: {error!r}", hint=hint))
    if code == USAGE and (console.json or console.events):
        console.error(UsageFault("the command line is wrong, see stderr"))
    return code


@functools.cache
def _commands() -> Callable[..., object]:
    """All commands with their options, made of the functions' signatures once and not per call."""
    return typer.main.get_command(app)


def _invoke(argv: list[str]) -> int:
    try:
        _commands()(args=argv, prog_name="moetool")
    except SystemExit as leaving:
        if leaving.code == Interrupted.exit_code:  # typer makes Ctrl-C an exit without a word
            raise Interrupted("interrupted", hint=_AGAIN) from leaving
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


def _report(console: Console, error: MoetoolError) -> int:
    if os.environ.get("MOETOOL_DEBUG"):
        import traceback

        traceback.print_exc()
    with _undisturbed():
        console.error(error)
    return error.exit_code


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no signal break in on the last words: everything is decided by now."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _POLITE}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _system_fault(error: OSError) -> SystemFault:
    where = str(error.filename) if error.filename else None
    what = error.strerror or str(error)
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoRoomOnDisk(what, where=where, hint="free some room and run the same command again")
    shut = error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}
    hint = "make it writable, or choose another place" if shut else _AGAIN
    return SystemFault(what, where=where, hint=hint)


def _on_sigterm(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted("terminated", exit_code=128 + signal.SIGTERM)
