"""Options that several commands share, and the PATH that may be left out."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.errors import UsageFault
from moetool.files.joined import parts_of, whole_name

if TYPE_CHECKING:
    from moetool.cli.console import Console

PathArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[PATH]",
        help="A checkpoint: a folder or a file. Left out: the current folder if it holds one, "
        "else the release fetched last",
        show_default=False,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print exactly one JSON document on stdout")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes")]

_PASSWORD = re.compile(r"(://[^/@:]*:)[^/]*@")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_WEIGHTS = ("*.pth", "*.pt", "*.safetensors", "*.safetensors.index.json", "*.gguf")


def typed_command() -> str:
    """The command as it was typed, to be run again; a password in an address is not repeated."""
    words = (_PASSWORD.sub(r"\1…@", word) for word in sys.argv[1:])
    return f"moetool {shlex.join(words)}"


def parse_size(text: str | None, option: str) -> int | None:
    """Read 5GB, 500M or a plain number of bytes; decimal units, as the hub counts.

    Raises:
        UsageFault: it is no size.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.strip().lower())
    nbytes = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if nbytes <= 0:
        raise UsageFault(f"{option} {text!r} is no size", hint="write it as 5GB or 500MB")
    return nbytes


def refuse_absent(path: Path) -> None:
    """Refuse a path that leads nowhere; a file that was cut in parts is there under its own name.

    Raises:
        UsageFault: there is neither.
        BadHeader: there are parts, and not all of them.
    """
    if not path.exists() and not parts_of(path):
        raise UsageFault("no such file or folder", where=str(path))


def resolve(path: Path | None, console: Console) -> Path:
    """The checkpoint that is meant; where PATH was left out, say which one was taken.

    Raises:
        UsageFault: nothing was given and nothing can be found.
    """
    if path is not None:
        refuse_absent(path)
        return path
    from moetool.release import last_fetched

    here = Path.cwd()
    whole = any(match.is_file() for pattern in _WEIGHTS for match in here.glob(pattern))
    if whole or any(whole_name(match.name) for match in here.iterdir()):
        console.note(f"using the checkpoint in the current folder, {here}")
        return here
    last = last_fetched()
    if last is None or not last.is_dir():
        raise UsageFault(
            "no PATH given, no checkpoint in the current folder, nothing fetched yet",
            hint="moetool fetch 'magnet:…', or name a folder",
        )
    console.note(f"using the release fetched last, {last}")
    return last


def must_exist(*paths: Path | None) -> None:
    """Refuse files or folders that are named and not there.

    Raises:
        UsageFault: with the first of them.
    """
    for path in paths:
        if path is not None and not path.exists():
            raise UsageFault(
                "no such file or folder", where=str(path), hint=f"see what is in {path.parent}"
            )


def again_with(command: str, source: Path, out: Path, **options: object) -> str:
    """The command that goes on from any folder: as it was given, without --restart."""
    words = ["moetool", *command.split(), str(source.absolute()), "--out", str(out)]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        match value:
            case True:
                words.append(flag)
            case str() | Path() | int() if value is not False:
                words += [flag, str(value)]
            case [*values]:
                words += [word for one in values for word in (flag, str(one))]
    return shlex.join(words)
