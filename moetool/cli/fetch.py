"""`moetool fetch`: from a link to a folder whose every byte was hashed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli import fetch_convert, fetch_hub, fetch_only
from moetool.cli.console import Console, safe, size
from moetool.cli.options import JsonOption, QuietOption
from moetool.cli.stages import EventsOption, stages, told_how_to_go_on
from moetool.cli.swarm_options import (
    EncryptionOption,
    InterfaceOption,
    Ipv6Option,
    MaxDownOption,
    MaxUpOption,
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
from moetool.errors import NetworkFault, UsageFault

if TYPE_CHECKING:
    from moetool.convert.arriving.companion import Wish
    from moetool.release.fetch import FetchReport
    from moetool.release.source import Source
    from moetool.release.torrent.profile import SwarmOptions


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
OrderOption = Annotated[
    str,
    typer.Option(
        metavar="auto|sequential|rarest",
        help="The order of the pieces; auto: that of the files, so that digests follow, where "
        "enough of the swarm has all, else the rarest first",
    ),
]
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
    max_up: MaxUpOption = 0,
    timeout: TimeoutOption = None,
    no_dht: NoDhtOption = False,
    proxy: ProxyOption = None,
    encryption: EncryptionOption = "allow",
    ipv6: Ipv6Option = True,
    interface: InterfaceOption = None,
    order: OrderOption = "auto",
    release_md5: ReleaseMd5Option = None,
    include: fetch_hub.IncludeOption = None,
    only: fetch_only.OnlyOption = None,
    convert: fetch_convert.ConvertOption = None,
    convert_out: fetch_convert.ConvertOutOption = None,
    keep: fetch_convert.KeepOption = True,
    layout: fetch_convert.LayoutOption = None,
    dtype: fetch_convert.DtypeOption = "keep",
    max_shard_size: fetch_convert.ShardSizeOption = None,
    certificate: fetch_convert.CertificateOption = False,
    publish: fetch_convert.PublishOption = False,
    events: EventsOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Download a release from its swarm, or from a hub, and prove every byte of it.

    With --convert it is converted while it comes: the bytes are those of a conversion afterwards.
    With --only a part comes, and what is not here is never taken for weights.
    """
    from moetool.release.hub.address import is_address

    console = Console(json, quiet, events)
    words = SwarmWords(
        tracker, peer, port, max_down, max_up, timeout, no_dht, proxy, encryption, ipv6, interface
    )
    made = fetch_convert.ConvertWords(
        convert, convert_out, keep, layout, dtype, max_shard_size, certificate, publish
    )
    if is_address(source):
        chosen = {"web_seeds": web_seeds, "only": only, "order": order != "auto"}
        swarm = {**chosen, **words.given(), **made.given()}
        fetch_hub.fetch(console, source, out, include, timeout, release_md5, swarm)
        return
    if include:
        raise UsageFault("--include is for hub repositories", hint="write hf:OWNER/NAME")
    wish = made.wish()
    selectors = fetch_only.selectors_of(only, wish)
    found = _resolved(source, release_md5, whole=wish is not None or bool(selectors))
    word = _order(order, whole=wish is None and not selectors)
    options = replace(words.options(seeds_of(found, wanted=web_seeds)), order=word)
    _tell_source(console, found, options.web_seeds)
    _fetch_as_wished(console, found, out, options, wish, selectors, publish=publish)


def _fetch_as_wished(
    console: Console,
    found: Source,
    out: Path | None,
    options: SwarmOptions,
    wish: Wish | None,
    selectors: tuple[str, ...],
    *,
    publish: bool,
) -> None:
    """Fetch and convert, a part, or all; and print what came of it."""
    if wish is not None:
        both = fetch_convert.run(console, found, out, wish, options, publish=publish)
        console.result(both, lambda: fetch_convert.render(console, both))
    elif selectors:
        part = fetch_only.run(console, found, out, selectors, options)
        console.result(part, lambda: fetch_only.render(console, part))
    else:
        report = _run(console, found, out, options)
        console.result(report, lambda: _render(console, report))


def _resolved(text: str, release_md5: str | None, *, whole: bool) -> Source:
    """What is meant by SOURCE, with the digest of the post if one is given.

    Raises:
        UsageFault: the link selects files (so=), where the ``whole`` torrent is worked on.
    """
    from moetool.release.source import resolve_source

    found = resolve_source(text)
    if whole and found.magnet.selected:
        raise UsageFault(
            "a link that selects files (so=) is fetched by itself",
            hint="leave out --convert and --only, or so=; moetool convert works afterwards",
        )
    return replace(found, release_md5=digits(release_md5)) if release_md5 else found


def _order(word: str, *, whole: bool) -> str:
    """The order of the pieces as it is asked for.

    Raises:
        UsageFault: there is no such, or something else decides on it.
    """
    from moetool.release.torrent.order import ORDERS

    if word not in ORDERS:
        raise UsageFault(f"--order {word!a} is none of {', '.join(ORDERS)}")
    if word != "auto" and not whole:
        raise UsageFault(
            "with --convert and --only the pieces come in the order in which they are read",
            hint="leave out --order",
        )
    return word


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


def digits(md5: str) -> str:
    """The digest of a ``--release-md5`` option in lower case.

    Raises:
        UsageFault: it is not 32 hex digits.
    """
    text = md5.strip().lower().removeprefix("release").strip()
    if len(text) != 32 or set(text) - set("0123456789abcdef"):  # noqa: PLR2004  # an MD5 in hex
        raise UsageFault("--release-md5 wants 32 hex digits, as on the post's RELEASE line")
    return text


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


def _render(console: Console, report: FetchReport) -> None:
    verdict = report.verification.verdict.value
    if report.already_complete:
        console.line(f"{verdict}  {safe(report.path)} was already complete", "green")
    else:
        style = "green" if verdict == "MATCH" else "yellow"
        console.line(f"{verdict}  {safe(report.path)}", style)
        came = f"{report.pieces} pieces, {report.pieces_kept} of them were here already"
        console.line(f"{came}; {size(report.payload)} came over the network")
    if report.selected is not None:
        console.line(f"{len(report.selected)} files, as the link selects them")
    for host, port in report.banned:
        console.line(f"banned after a bad piece: {safe(host)}:{port}", "yellow")
    for line in report.verification.trust:
        console.line(safe(line))
    console.hint(f"moetool inspect {shlex.quote(str(report.path))}")
