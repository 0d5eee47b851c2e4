"""`moetool publish`: RELEASE, .torrent and magnet of a folder, as raw weights are released."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from moetool.cli.console import Console, safe, size
from moetool.cli.options import JsonOption, QuietOption
from moetool.cli.swarm_options import tracker_url
from moetool.errors import UsageFault

if TYPE_CHECKING:
    from moetool.release.publish.run import Plan, PublishReport
    from moetool.release.publish.taken import TakenPieces

_BINARY = {"": 1, "k": 1 << 10, "m": 1 << 20}

TrackerOption = Annotated[
    list[str] | None, typer.Option(help="Put this tracker into the .torrent and the link")
]
WebSeedOption = Annotated[
    list[str] | None,
    typer.Option(help="An address under which the folder lies (BEP 19), as https://HOST/FOLDER/"),
]
PieceSizeOption = Annotated[
    str | None,
    typer.Option(
        help="Bytes of a piece, as 16MiB: a power of two from 16 KiB to 64 MiB; by default the "
        "smallest that makes 4,000 pieces at most",
        show_default=False,
    ),
]
NoReleaseOption = Annotated[
    bool, typer.Option("--no-release", help="Leave RELEASE alone: neither make nor judge one")
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace another .torrent, and a RELEASE that is wrong")
]
V1Option = Annotated[
    bool,
    typer.Option(
        "--v1",
        help="The form of the 2023 release, for clients that read no hybrid torrent: aria2 before "
        "1.37, transmission before 4",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be published; read and write nothing")
]


def publish(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to publish")],
    tracker: TrackerOption = None,
    web_seed: WebSeedOption = None,
    piece_size: PieceSizeOption = None,
    v1: V1Option = False,
    no_release: NoReleaseOption = False,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make RELEASE, a hybrid .torrent (v1 and v2) beside the folder, and the magnet link.

    The same folder gives the same info-hashes, whoever publishes it and whenever. The output of a
    conversion is published as it is: its manifest says what a RELEASE would.
    """
    from moetool.convert.execute.manifest import MANIFEST
    from moetool.release.publish.run import dry_report, plan

    console = Console(json, quiet)
    is_conversion = (directory / MANIFEST).is_file()
    made = plan(
        directory,
        trackers=_trackers(tracker),
        web_seeds=_web_seeds(web_seed),
        piece_length=_piece_length(piece_size),
        write_release=not no_release and not is_conversion,
        judge_lists=not no_release,
        force=force,
        v1_only=v1,
    )
    _tell(console, made)
    if dry_run:
        report = dry_report(made)
        console.result(report, lambda: _facts(console, report))
        return
    report = _run(console, made)
    console.result(report, lambda: render_published(console, report))


@dataclass(frozen=True, slots=True)
class Publication:
    """How the output of a conversion is published once it is there."""

    trackers: tuple[str, ...]
    web_seeds: tuple[str, ...]
    force: bool

    def run(self, console: Console, out: Path, taken: TakenPieces) -> PublishReport:
        """Publish what was just written; nothing is read that was hashed then."""
        from moetool.release.publish.run import plan

        made = plan(
            out,
            trackers=self.trackers,
            web_seeds=self.web_seeds,
            write_release=False,  # its manifest says what a RELEASE would
            force=self.force,
        )
        return _run(console, made, taken)


def publication_of(
    wanted: bool, trackers: list[str] | None, web_seeds: list[str] | None, *, force: bool
) -> Publication | None:
    """What the command line says of publishing; None where nothing is to be published.

    Raises:
        UsageFault: it says how, and not that; or an address is none.
    """
    if not wanted and (trackers or web_seeds):
        raise UsageFault("--tracker and --web-seed say how to publish", hint="add --publish")
    found = Publication(_trackers(trackers), _web_seeds(web_seeds), force)
    return found if wanted else None


def _run(console: Console, made: Plan, taken: TakenPieces | None = None) -> PublishReport:
    """Hash what is not known yet, with a bar, and write."""
    from moetool.release.publish.run import run

    known = taken.known(made) if taken else {}
    n_known = sum(e.nbytes for want in known for e in want.extents if want.algorithm == "sha1")
    done = 0

    def on_bytes(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        update(done, "")

    with console.progress("hash", made.nbytes - n_known) as update:
        return run(made, on_bytes, known)


def _trackers(urls: list[str] | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tracker_url(url) for url in urls or ()))


def _web_seeds(urls: list[str] | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_web_seed(url) for url in urls or ()))


def _web_seed(url: str) -> str:
    """The address with the slash without which clients do not append name and path (BEP 19)."""
    from moetool.release.magnet import is_tracker

    parts = urlsplit(url)
    plain = is_tracker(url) and parts.scheme in {"http", "https"}
    if not plain or parts.query or parts.fragment:
        raise UsageFault(
            f"--web-seed wants http(s)://HOST/FOLDER/, not {url!a}",
            hint="clients append the release's name and a file's path to it",
        )
    return url if url.endswith("/") else url + "/"


def _piece_length(text: str | None) -> int | None:
    """Read 16MiB, 16M or bytes; binary units, for pieces are powers of two."""
    from moetool.release.torrent.create import MAX_PIECE, MIN_PIECE

    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})\s*([km]?)(?:i?b)?", text.strip().lower())
    nbytes = int(match[1]) * _BINARY[match[2]] if match else 0
    if not MIN_PIECE <= nbytes <= MAX_PIECE or nbytes & (nbytes - 1):
        raise UsageFault(
            f"--piece-size {text!a} is no power of two from 16 KiB to 64 MiB",
            hint="write it as 16MiB, or leave it out",
        )
    return nbytes


def _tell(console: Console, made: Plan) -> None:
    """Say what a publisher may not expect."""
    from moetool.release.provenance import read_origin
    from moetool.release.publish.listing import is_listable
    from moetool.release.publish.run import Listing

    if made.left_out:
        console.note(f"left out: {safe(', '.join(made.left_out))}")
    origin = read_origin(made.folder)
    if origin and origin.info_hashes:
        console.warn(
            f"it was fetched as {safe(origin.info_hashes[0])}; a second torrent divides the swarm. "
            "`moetool seed` serves the first"
        )
    unlisted = [file.path for file in made.files if not is_listable(file.path)]
    if unlisted and made.release is Listing.WRITTEN:
        console.warn(f"RELEASE cannot name {safe(', '.join(unlisted))}; the .torrent does")


def _facts(console: Console, report: PublishReport) -> None:
    there = "" if report.is_new else "  (there already)"
    hashes = [("v1", report.info_hash), ("v2", report.info_hash_v2)]
    console.facts(
        [
            ("folder", report.folder),
            ("files", f"{len(report.files)}, {size(report.nbytes)}"),
            ("pieces", f"{report.pieces} of {size(report.piece_length)}"),
            ("RELEASE", report.release.value),
            ("torrent", f"{report.torrent}{there}"),
            *((name, text) for name, text in hashes if text),
        ]
    )


def render_published(console: Console, report: PublishReport) -> None:
    """Print what was published, and what to do with it."""
    _facts(console, report)
    console.line(f"\n{report.magnet}")
    if report.release_md5:
        console.line(f"\nRELEASE {report.release_md5}")
    console.hint(f"moetool seed {shlex.quote(str(report.folder))}")
