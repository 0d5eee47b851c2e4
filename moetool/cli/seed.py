"""`moetool seed`: a release served to others, every piece checked before the first is given."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Console, duration, safe, size
from moetool.cli.options import JsonOption, PathArgument, QuietOption, resolve
from moetool.cli.stages import told_how_to_go_on
from moetool.cli.swarm_options import (
    EncryptionOption,
    InterfaceOption,
    Ipv6Option,
    MaxUpOption,
    NoDhtOption,
    ProxyOption,
    SwarmWords,
)
from moetool.errors import UsageFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from moetool.release.publish.seeding import Given, SeedOptions, SeedReport
    from moetool.release.torrent.metainfo import Metainfo

TorrentOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The .torrent file. Left out: NAME.torrent beside, or what a fetch recorded",
        show_default=False,
    ),
]
PortOption = Annotated[
    int, typer.Option(min=0, max=65535, help="Accept peers on this port; 0: any that is free")
]
BindOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Listen on this address only; it becomes part of the link (x.pe)",
        show_default=False,
    ),
]
RatioOption = Annotated[
    float | None,
    typer.Option(min=0, help="End when so many copies were given", show_default=False),
]
TimeOption = Annotated[
    float | None, typer.Option(min=0, help="End after so many minutes", show_default=False)
]
TrackerOption = Annotated[list[str] | None, typer.Option(help="Also announce to this tracker")]
PeerOption = Annotated[list[str] | None, typer.Option(help="Also call this peer, as ADDRESS:PORT")]


def seed(
    path: PathArgument = None,
    torrent: TorrentOption = None,
    port: PortOption = 0,
    bind: BindOption = None,
    tracker: TrackerOption = None,
    peer: PeerOption = None,
    no_dht: NoDhtOption = False,
    ratio: RatioOption = None,
    time: TimeOption = None,
    max_up: MaxUpOption = 0,
    proxy: ProxyOption = None,
    encryption: EncryptionOption = "allow",
    ipv6: Ipv6Option = True,
    interface: InterfaceOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Serve a release to others until a limit is reached or Ctrl-C.

    Every piece is hashed first; what does not match is named, and nothing is served.
    """
    from moetool.release.publish.seeding import SeedOptions, find_torrent

    console = Console(json, quiet)
    if bind and (proxy or interface):
        raise UsageFault(
            "--bind opens a door of its own", hint="leave it out, or --proxy and --interface"
        )
    words = SwarmWords(
        tracker=tracker, peer=peer, port=port, max_up=max_up, no_dht=no_dht, proxy=proxy,
        encryption=encryption, ipv6=ipv6, interface=interface,
    )  # fmt: skip
    seconds = time * 60 if time is not None else None
    options = SeedOptions(words.options(), _address(bind), ratio, seconds)
    meta, folder = find_torrent(resolve(path, console), torrent)
    with told_how_to_go_on():
        report = _run(console, meta, folder, options)
    console.result(report, lambda: _render(console, report))


def _run(console: Console, meta: Metainfo, folder: Path, options: SeedOptions) -> SeedReport:
    """Check and serve, each with a bar of its own."""
    from contextlib import ExitStack

    from moetool.release.publish.seeding import seed as run_seed

    with ExitStack() as bars:
        update: Callable[[int, str], None] = bars.enter_context(
            console.progress("check", meta.nbytes)
        )
        checked = 0

        def on_bytes(nbytes: int) -> None:
            nonlocal checked
            checked += nbytes
            update(min(checked, meta.nbytes), "")

        def on_listening(magnet: str, where: str) -> None:
            nonlocal update
            bars.close()
            console.note(f"every piece is right; seeding {safe(meta.name)} at {safe(where)}")
            console.line(magnet)
            if console.json:
                console.note(magnet)
            total = int(options.ratio * meta.nbytes) if options.ratio else None
            update = bars.enter_context(console.progress("seed", total))

        return run_seed(
            meta,
            folder,
            options,
            on_bytes=on_bytes,
            on_listening=on_listening,
            on_progress=lambda given: update(given.uploaded, _note(given)),
        )


def _address(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError as error:
        raise UsageFault(f"--bind wants a numeric address, not {text!a}") from error


def _note(given: Given) -> str:
    return (
        f"{size(given.rate_bytes_s)}/s now, {given.peers} peers, "
        f"{size(given.uploaded)} given, ratio {given.ratio:.2f}"
    )


def _render(console: Console, report: SeedReport) -> None:
    gave = f"{size(report.uploaded)} in {duration(report.seconds)}, ratio {report.ratio:.2f}"
    console.line(f"gave {gave}; the end by {report.ended}", "green")
