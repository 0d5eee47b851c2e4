"""`moetool demo`: the whole main job on the tiny release, over a real torrent on this machine."""

from __future__ import annotations

import json as json_module
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.console import Console
from moetool.errors import CheckFailed


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder to work in and to keep; left out: a temporary one")
    ] = None,
    device: Annotated[str, typer.Option(help="Device of the smoke-test")] = "auto",
) -> None:
    """Walk the whole way on the tiny release.

    Seeds it on this machine, then fetches, verifies, inspects, converts and runs it, printing each
    command as a user would type it.
    """
    from moetool.release.fixture import find_fixture
    from moetool.release.torrent.serve import seed

    console = Console()
    fixture = find_fixture()
    post = json_module.loads(fixture.magnets.read_text(encoding="utf-8"))["post"]
    with _workplace(out) as work, seed(fixture.torrent, fixture.directory) as seeder:
        console.note(f"A seeder of the tiny release listens on {seeder.peer}; working in {work}.")
        console.note("The post as it stands on the site, its trackers mangled:\n")
        console.note(post + "\n")
        name = fixture.directory.name
        for command in (
            ["fetch", post, "--peer", seeder.peer, "--no-dht"],
            ["verify"],
            ["inspect"],
            ["convert", "--to", "safetensors"],
            ["smoke-test", "--device", device],
            ["smoke-test", f"{name}-hf", "--device", device],
        ):
            _run(console, command, work)
        console.note("\nThat was the whole way, from a post to weights that run.")
        _say_what_next(console, name, work if out is not None else None)


def _say_what_next(console: Console, name: str, kept: Path | None) -> None:
    """How to open the playground on the release: on what was fetched, where that is kept."""
    if kept is not None:
        console.hint(f"look around in {kept}")
        serve = shlex.join(["moetool", "serve", str(kept / name)])
    else:
        serve = "moetool tiny tiny --trained && moetool serve tiny"
    console.note(
        "Its experts have divided stories, sums, diaries and code among themselves. To watch them "
        "while it writes:"
    )
    console.note(f"\n$ pip install 'moetool[serve]'\n$ {serve}", "bold")


@contextmanager
def _workplace(out: Path | None) -> Iterator[Path]:
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        yield out.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="moetool-demo-") as folder:
        yield Path(folder).resolve()


def _run(console: Console, command: list[str], work: Path) -> None:
    """Run one command as its user would, in its own process.

    Raises:
        CheckFailed: the command did not end well.
    """
    console.note(f"\n$ moetool {' '.join(shlex.quote(_short(word)) for word in command)}", "bold")
    environment = {**os.environ, "MOETOOL_HOME": str(work / ".moetool-home")}
    done = subprocess.run(  # noqa: S603  # our own program, words not parsed by a shell
        [sys.executable, "-m", "moetool", *command], cwd=work, env=environment, check=False
    )
    if done.returncode:
        raise CheckFailed(f"`moetool {command[0]}` ended with exit code {done.returncode}")


def _short(word: str) -> str:
    """The post is shown in full once; in the command line its beginning is enough."""
    limit = 60
    return word if len(word) <= limit else word[: limit - 1] + "…"
