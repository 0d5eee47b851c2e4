"""`moetool fetch`: from a link to a folder whose every byte was hashed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli import fetch_convert, fetch_hub, fetch_only
from moetool.cli.console import Console, duration, safe, size
from moetool.cli.options import JsonOption, QuietOption
from moetool.errors import Interrupted, NetworkFault, UsageFault

if TYPE_CHECKING:
    from moetool.release.fetch import FetchReport
    from moetool.release.source import Source
    from moetool.release.torrent.profile import SwarmOptions
    from moetool.release.torrent.watch import Peer, Progress


SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A magnet link as pasted, a .torrent file, the name of a known release, or "
        "hf:OWNER/NAME[@REVISION]",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(help="The folder to make; by default the torrent's name", show_default=False),
]
TrackerOption = Annotated[list[str] | None, typer.Option(help="Also ask this tracker")]
PeerOption = Annotated[list[str] | None, typer.Option(help="Also ask this peer, as ADDRESS:PORT")]
WebSeedsOption = Annotated[
    bool | None,
    typer.Option(
        "--web-seeds/--no-web-seeds",
        help="Use the web seeds that the link names, or none; left out: those of a known release",
        show_default=False,
    ),
]
PortOption = Annotated[
    int, typer.Option(min=0, max=65535, help="Accept peers on this port; 0: accept none")
]
MaxDownOption = Annotated[
    float, typer.Option(min=0, help="At most this many MB per second; 0: no limit")
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        help="Seconds to wait for metadata (else 120) and for the next piece (else 600)",
        show_default=False,
    ),
]
NoDhtOption = Annotated[bool, typer.Option("--no-dht", help="Do not use the DHT")]
ReleaseMd5Option = Annotated[
    str | None, typer.Option(help="The digits of the post's RELEASE line", show_default=False)
]


def fetch(
    source: SourceArgument,
    out: OutOption = None,
    tracker: TrackerOption = None,
    peer: PeerOption = None,
    web_seeds: WebSeedsOption = None,
    port: PortOption = 0,
    max_down: MaxDownOption = 0,
    timeout: TimeoutOption = None,
    no_dht: NoDhtOption = False,
    release_md5: ReleaseMd5Option = None,
    include: fetch_hub.IncludeOption = None,
    only: fetch_only.OnlyOption = None,
    convert: fetch_convert.ConvertOption = None,
    convert_out: fetch_convert.ConvertOutOption = None,
    keep: fetch_convert.KeepOption = True,
    layout: fetch_convert.LayoutOption = None,
    dtype: fetch_convert.DtypeOption = "keep",
    max_shard_size: fetch_convert.ShardSizeOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Download a release from its swarm, or from a hub, and prove every byte of it.

    With --convert it is converted while it comes: the bytes are those of a conversion afterwards.
    With --only a part comes, and what is not here is never taken for weights.
    """
    from moetool.release.hub.address import is_address
    from moetool.release.source import resolve_source

    console = Console(json, quiet)
    if is_address(source):
        fetch_hub.refuse_swarm_options(
            tracker=tracker, peer=peer, web_seeds=web_seeds, port=port, max_down=max_down,
            no_dht=no_dht, only=only, convert=convert, convert_out=convert_out, no_keep=not keep,
            layout=layout, dtype=dtype != "keep", max_shard_size=max_shard_size,
        )  # fmt: skip
        got = fetch_hub.run(console, source, out, include, timeout, release_md5)
        console.result(got, lambda: fetch_hub.render(console, got))
        return
    if include:
        raise UsageFault("--include is for hub repositories", hint="write hf:OWNER/NAME")
    wish = fetch_convert.ConvertWords(
        convert, convert_out, keep, layout, dtype, max_shard_size
    ).wish()
    selectors = fetch_only.selectors_of(only, wish)
    found = resolve_source(source)
    found = replace(found, release_md5=digits(release_md5)) if release_md5 else found
    seeds = seeds_of(found, wanted=web_seeds)
    options = swarm_options(seeds, tracker, peer, port, max_down, timeout, no_dht)
    _tell_source(console, found, seeds)
    if wish is not None:
        both = fetch_convert.run(console, found, out, wish, options)
        console.result(both, lambda: fetch_convert.render(console, both))
    elif selectors:
        part = fetch_only.run(console, found, out, selectors, options)
        console.result(part, lambda: fetch_only.render(console, part))
    else:
        report = _run(console, found, out, options)
        console.result(report, lambda: _render(console, report))


def _run(console: Console, source: Source, out: Path | None, options: SwarmOptions) -> FetchReport:
    """Fetch with progress."""
    from moetool.release.fetch import fetch as run_fetch

    with told_how_to_go_on(), told_where_else(source), stages(console) as on_progress:
        return run_fetch(source, out, options, on_progress=on_progress)


@contextmanager
def told_where_else(source: Source) -> Iterator[None]:
    """Let a swarm that gives nothing end with the hub repositories that carry the release."""
    try:
        yield
    except NetworkFault as error:
        copies = source.release.hub if source.release else ()
        words = [error.hint or "", *(f"moetool fetch hf:{copy.repository}" for copy in copies)]
        hint = "; or ".join(filter(None, words))
        raise type(error)(
            error.what, where=error.where, hint=hint, findings=error.findings
        ) from error


@contextmanager
def told_how_to_go_on() -> Iterator[None]:
    """Let an interruption end with the command that goes on."""
    try:
        yield
    except Interrupted as error:
        again = f"run again to go on: moetool {shlex.join(sys.argv[1:])}"
        raise Interrupted(error.what, exit_code=error.exit_code, hint=again) from error


def seeds_of(source: Source, *, wanted: bool | None) -> tuple[str, ...]:
    """The web seeds to use: a pasted link's only where it is said, a known release's unless not."""
    known = source.release.web_seeds if source.release else ()
    match wanted:
        case None:
            return known
        case True:
            return tuple(dict.fromkeys(known + source.magnet.web_seeds))
    return ()


def swarm_options(
    web_seeds: tuple[str, ...],
    tracker: list[str] | None,
    peer: list[str] | None,
    port: int,
    max_down: float,
    timeout: float | None,
    no_dht: bool,
) -> SwarmOptions:
    """How to reach the swarm, as the options of a command say it.

    Raises:
        UsageFault: a tracker or a peer is none.
    """
    from moetool.release.torrent.profile import SwarmOptions

    return SwarmOptions(
        peers=tuple(_peer(text) for text in peer or ()),
        trackers=tuple(_tracker(url) for url in tracker or ()),
        web_seeds=web_seeds,
        port=port,
        max_down=int(max_down * 1e6),
        dht=not no_dht,
        metadata_timeout_s=timeout or 120.0,
        stall_timeout_s=timeout or 600.0,
    )


def digits(md5: str) -> str:
    """The digest of a ``--release-md5`` option in lower case.

    Raises:
        UsageFault: it is not 32 hex digits.
    """
    text = md5.strip().lower().removeprefix("release").strip()
    if len(text) != 32 or set(text) - set("0123456789abcdef"):  # noqa: PLR2004  # an MD5 in hex
        raise UsageFault("--release-md5 wants 32 hex digits, as on the post's RELEASE line")
    return text


def _peer(text: str) -> Peer:
    from moetool.release.magnet import is_peer

    if not is_peer(text):
        raise UsageFault(f"--peer wants ADDRESS:PORT, not {text!a}")
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _tracker(url: str) -> str:
    from moetool.release.magnet import is_tracker

    if not is_tracker(url):
        raise UsageFault(
            f"--tracker wants udp://HOST:PORT/… or http(s)://HOST/…, not {url!a}",
            hint="credentials and other schemes are not taken",
        )
    return url


def _tell_source(console: Console, source: Source, web_seeds: tuple[str, ...]) -> None:
    """Say what was understood, and everything that was not taken as it stands."""
    magnet = source.magnet
    name = safe(magnet.name or "an unnamed release")
    console.note(f"fetching {name}, info-hash {magnet.info_hash or magnet.info_hash_v2}")
    for entry in source.repairs.trackers:
        now = f" -> {entry.tracker}" if entry.tracker else ""
        console.note(f"tracker {entry.outcome.value}: {safe(entry.pasted)}{safe(now)}")
    for url in web_seeds:
        console.note(f"web seed {safe(url)}, of whose bytes each piece is hashed")
    if left := set(magnet.web_seeds).difference(web_seeds):
        console.note(f"{len(left)} web seeds of the link not used (--web-seeds)")
    if source.release_md5:
        console.note(f"the post's RELEASE digest is {source.release_md5}")


@contextmanager
def stages(console: Console) -> Iterator[Callable[[Progress], None]]:
    """One bar after another, for each stage its own."""
    with ExitStack() as bars:
        stage = ""
        update: Callable[[int, str], None] = lambda _done, _note: None  # noqa: E731

        def show(progress: Progress) -> None:
            nonlocal stage, update
            if progress.stage != stage:
                bars.close()
                stage = progress.stage
                total = progress.bytes_total or None
                update = bars.enter_context(console.progress(stage, total))
            update(progress.bytes_done, _note(progress))

        yield show


def _note(progress: Progress) -> str:
    parts = []
    if progress.pieces_total:
        parts.append(f"{progress.pieces_done}/{progress.pieces_total} pieces")
        parts.append(f"{progress.peers} peers")
    if progress.rate_bytes_s:
        parts.append(f"{size(progress.rate_bytes_s)}/s now")
    if progress.eta_s is not None:
        parts.append(f"{duration(progress.eta_s)} to go")
    if progress.note:
        parts.append(progress.note)
    return ", ".join(parts)


def _render(console: Console, report: FetchReport) -> None:
    verdict = report.verification.verdict.value
    if report.already_complete:
        console.line(f"{verdict}  {safe(report.path)} was already complete", "green")
    else:
        style = "green" if verdict == "MATCH" else "yellow"
        console.line(f"{verdict}  {safe(report.path)}", style)
        came = f"{report.pieces} pieces, {report.pieces_kept} of them were here already"
        console.line(f"{came}; {size(report.payload)} came over the network")
    for host, port in report.banned:
        console.line(f"banned after a bad piece: {safe(host)}:{port}", "yellow")
    for line in report.verification.trust:
        console.line(safe(line))
    console.hint(f"moetool inspect {shlex.quote(str(report.path))}")
