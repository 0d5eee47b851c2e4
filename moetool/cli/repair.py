"""`moetool repair`: the bad pieces of a release replaced, and nothing else written."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Column, Console, safe, size
from moetool.cli.options import JsonOption, PathArgument, QuietOption, resolve
from moetool.cli.stages import EventsOption, stages, told_how_to_go_on
from moetool.cli.swarm_options import (
    EncryptionOption,
    InterfaceOption,
    Ipv6Option,
    MaxDownOption,
    NoDhtOption,
    PeerOption,
    PortOption,
    ProxyOption,
    SwarmWords,
    TimeoutOption,
    TrackerOption,
    WebSeedsOption,
    seeds_of,
)
from moetool.cli.verify import MAX_LINES, catalogs_of, located
from moetool.errors import FormatError, Mismatch, Refused, UsageFault
from moetool.files.joined import Joins

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moetool.extents import Extent
    from moetool.release.repair.report import RepairReport

TorrentOption = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="What the files should be: a .torrent file, a magnet link or the name of a known "
        "release. Left out: what a fetch recorded, NAME.torrent beside, or the folder's name",
        show_default=False,
    ),
]
FromOption = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="OTHER",
        help="Another copy, a folder or a file: what it has right is taken from it first",
        show_default=False,
    ),
]
OfflineOption = Annotated[
    bool, typer.Option("--offline", help="Take pieces from --from only, nothing from the network")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what is bad and what would be fetched; write nothing")
]


def repair(
    path: PathArgument = None,
    torrent: TorrentOption = None,
    other: FromOption = None,
    offline: OfflineOption = False,
    tracker: TrackerOption = None,
    peer: PeerOption = None,
    web_seeds: WebSeedsOption = None,
    port: PortOption = 0,
    max_down: MaxDownOption = 0,
    timeout: TimeoutOption = None,
    no_dht: NoDhtOption = False,
    proxy: ProxyOption = None,
    encryption: EncryptionOption = "allow",
    ipv6: Ipv6Option = True,
    interface: InterfaceOption = None,
    dry_run: DryRunOption = False,
    events: EventsOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check every piece of a release and replace the bad ones, from another copy or the swarm.

    What is right is not written to. Exit code 3 where something is wrong still.
    """
    from moetool.release.repair.run import repair as run_repair
    from moetool.release.repair.subject import find_source

    console = Console(json, quiet, events)
    if offline and other is None and not dry_run:
        raise UsageFault("--offline leaves nothing to take pieces from", hint="add --from OTHER")
    folder = _folder(resolve(path, console), console, torrent)
    source = find_source(folder, torrent)
    seeds = seeds_of(source, wanted=web_seeds)
    options = SwarmWords(
        tracker, peer, port, max_down, 0, timeout, no_dht, proxy, encryption, ipv6, interface
    ).options(seeds)
    if (left := set(source.magnet.web_seeds).difference(seeds)) and not offline:
        console.note(f"{len(left)} web seeds of the link not used (--web-seeds)")
    with told_how_to_go_on(), stages(console) as on_progress:
        report = run_repair(
            folder,
            source,
            other=other.absolute() if other else None,
            options=options,
            offline=offline,
            dry_run=dry_run,
            on_progress=on_progress,
        )
    report = _named(report)
    console.result(report, lambda: _render(console, report))
    if not report.ok:
        raise typer.Exit(Mismatch.exit_code)


def _folder(path: Path, console: Console, torrent: str | None) -> Path:
    """The folder that a path stands for.

    Raises:
        Refused: it is the output of a conversion, whose bytes no swarm has.
    """
    from moetool.convert.execute.manifest import MANIFEST

    folder = path.absolute()
    if not folder.is_dir():
        folder = folder.parent
        console.note(f"pieces run across files: repairing all of {safe(folder)}")
    if torrent is None and (folder / MANIFEST).is_file():
        raise Refused(
            "the output of a conversion; nobody but its source has its bytes",
            where=str(folder),
            hint="convert again: moetool convert SOURCE … --force; moetool verify says what is bad",
        )
    return folder


def _named(report: RepairReport) -> RepairReport:
    """Name what lies at the bytes that were wrong: file, range, and the tensor with its rows."""
    extents = list(_merged(report))
    if not extents:
        return report
    files = dict.fromkeys(path for path in report.path.rglob("*") if path.is_file())
    try:
        joins = Joins(files)
    except FormatError as error:  # a part is still missing
        return replace(report, notes=(*report.notes, f"tensors are not named here: {error}"))
    catalogs, broken = catalogs_of(report.path, joins.files(files))
    notes = (f"tensors are not named here: {error}" for error in broken)
    named = located(map(joins.extent, extents), catalogs, report.path)
    return replace(report, named=named, notes=(*report.notes, *notes))


def _merged(report: RepairReport) -> Iterator[Extent]:
    """The wrong bytes of each file, neighbours as one."""
    from moetool.extents import Extent, union

    ranges: dict[Path, list[tuple[int, int]]] = {}
    for piece in report.bad:
        for extent in piece.extents:
            ranges.setdefault(extent.path, []).append((extent.offset, extent.end))
    for path, found in ranges.items():
        yield from (Extent(path, start, stop - start) for start, stop in union(found))


def _render(console: Console, report: RepairReport) -> None:
    if report.ok and not report.bad and not report.sizes:
        whole = f"MATCH  {safe(report.reference)}: all {report.pieces} pieces, nothing written"
        console.line(whole, "green")
        return
    rows = [
        (odd.path.name, "missing" if odd.found is None else size(odd.found), size(odd.promised))
        for odd in report.sizes
    ]
    if rows:
        titles = ("file", "size", "promised")
        console.table([Column(t, right=t != "file") for t in titles], rows)
    for piece in report.bad[:MAX_LINES]:
        console.line(f"piece {piece.index}, {size(piece.nbytes)}: {_fate(report, piece.healed_by)}")
    said = "damaged" if report.left else "healed"
    for line in report.named[:MAX_LINES]:
        console.line(f"{said}: {safe(line)}", "red" if report.left else None)
    if max(len(report.bad), len(report.named)) > MAX_LINES:
        console.line("… more with --json")
    for line in report.notes:
        console.line(safe(line), "yellow")
    for host, number in report.banned:
        console.line(f"banned after a bad piece: {safe(host)}:{number}", "yellow")
    _render_verdict(console, report)


def _fate(report: RepairReport, source: str | None) -> str:
    if source is None:
        return "bad" if report.dry_run else "bad still"
    return f"would come from the {source}" if report.dry_run else f"healed from the {source}"


def _render_verdict(console: Console, report: RepairReport) -> None:
    bad, where = len(report.bad), safe(report.path)
    if report.dry_run:
        fetched = f"{size(report.to_fetch)} to fetch" if report.to_fetch else "nothing to fetch"
        console.line(f"\nMISMATCH  {where}: {bad} of {report.pieces} pieces bad, {fetched}", "red")
        return
    came = f"{size(report.payload)} came over the network"
    if report.left:
        text = f"\nMISMATCH  {where}: {report.left} of {bad} bad pieces are bad still; {came}"
        console.line(text, "red")
        return
    console.line(f"\nMATCH  {where}: {bad} of {report.pieces} pieces healed; {came}", "green")
    console.hint(f"moetool verify {shlex.quote(str(report.path))}")
