"""`moetool fetch hf:OWNER/NAME`: the files of a hub repository, verified like a torrent's."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Console, safe, size
from moetool.errors import UsageFault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moetool.release.hub.fetch import HubFetchReport

IncludeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Of a hub repository: take these files, and what says what they mean",
        show_default=False,
    ),
]


def fetch(
    console: Console,
    text: str,
    out: Path | None,
    include: list[str] | None,
    timeout: float | None,
    release_md5: str | None,
    swarm: Mapping[str, object],
) -> None:
    """Fetch from a hub, and print what came of it; ``swarm`` are the options that it refuses."""
    refuse_swarm_options(**swarm)
    report = run(console, text, out, include, timeout, release_md5)
    console.result(report, lambda: render(console, report))


def run(
    console: Console,
    text: str,
    out: Path | None,
    include: list[str] | None,
    timeout: float | None,
    release_md5: str | None,
) -> HubFetchReport:
    """Fetch from a hub with progress.

    Raises:
        MoetoolError: see `fetch_from_hub`.
    """
    from moetool.cli.fetch import digits
    from moetool.cli.stages import stages, told_how_to_go_on
    from moetool.formats.selection import choose
    from moetool.release.hub.address import parse_address
    from moetool.release.hub.door import HubOptions
    from moetool.release.hub.fetch import fetch_from_hub

    address = parse_address(text)
    patterns = tuple(include or ())

    def chosen(sizes: Mapping[str, int]) -> tuple[str, ...]:
        names = choose(sizes, patterns)
        total = sum(sizes[name] for name in names)
        console.note(f"fetching {len(names)} files of {address}, {size(total)}")
        return names

    with told_how_to_go_on(), stages(console) as on_progress:
        return fetch_from_hub(
            address,
            chosen,
            out,
            HubOptions(timeout),
            include=patterns,
            release_md5=digits(release_md5) if release_md5 else None,
            on_progress=on_progress,
        )


def refuse_swarm_options(**given: object) -> None:
    """Refuse what only a torrent has.

    Raises:
        UsageFault: with the options that were given.
    """
    named = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if named:
        raise UsageFault(
            f"{', '.join(named)}: for torrents, not for a hub",
            hint="leave it out; moetool convert works on what was fetched",
        )


def render(console: Console, report: HubFetchReport) -> None:
    """Print what came, from where, and what that proves."""
    verdict, path = report.verification.verdict.value, safe(report.path)
    if report.already_complete:
        console.line(f"{verdict}  {path} was already complete", "green")
    else:
        console.line(f"{verdict}  {path}", "green")
        console.line(f"{len(report.files)} files; {size(report.payload)} came over the network")
    console.line(f"hf:{report.repository} at commit {report.commit}")
    for line in report.verification.trust:
        console.line(safe(line))
    console.hint(f"moetool inspect {shlex.quote(str(report.path))}")
