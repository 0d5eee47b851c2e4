"""`moetool releases`: what is compiled in of each known release, and where it is to be had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from moetool.cli.console import Column, Console, count, safe, size
from moetool.cli.options import JsonOption, QuietOption

if TYPE_CHECKING:
    from moetool.release.manifest import Release, ReleaseFile


@dataclass(frozen=True, slots=True)
class Known:
    """A known release as it is shown: the record, and the link that follows from it.

    ``nbytes`` is the sum of the sizes of its files, None where one of them is not known.
    """

    name: str
    magnet: str
    info_hash: str
    trackers: tuple[str, ...]
    web_seeds: tuple[str, ...]
    hub: tuple[dict[str, str], ...]
    release_md5: str | None
    files: tuple[dict[str, object], ...]
    nbytes: int | None
    n_params: int | None
    license: str | None
    author: str | None
    date: str | None
    url: str | None


@dataclass(frozen=True, slots=True)
class ReleasesReport:
    """The releases that are known, or the one that was asked for."""

    schema: ClassVar[str] = "moetool.releases"
    version: ClassVar[int] = 1

    releases: tuple[Known, ...]

    @property
    def ok(self) -> bool:
        """They were listed."""
        return True


NameArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[NAME]", help="Show all that is known of this release", show_default=False
    ),
]


def releases(
    name: NameArgument = None, json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """List the known releases; with NAME show magnet, trackers, web seeds, digests, hub copies."""
    from moetool.release.manifest import find_release, known_releases

    console = Console(json, quiet)
    chosen = (find_release(name),) if name else known_releases()
    report = ReleasesReport(tuple(map(_known, chosen)))
    console.result(report, lambda: _render(console, report, one=bool(name)))


def _known(release: Release) -> Known:
    from moetool.release.magnet import format_magnet
    from moetool.release.source import magnet_of

    sizes = [file.nbytes for file in release.files]
    known = [nbytes for nbytes in sizes if nbytes is not None]
    post = release.post
    return Known(
        name=release.name,
        magnet=format_magnet(magnet_of(release)),
        info_hash=release.info_hash,
        trackers=release.trackers,
        web_seeds=release.web_seeds,
        hub=tuple({"repository": copy.repository, "form": copy.form} for copy in release.hub),
        release_md5=release.release_md5,
        files=tuple(map(_file, release.files)),
        nbytes=sum(known) if known and len(known) == len(sizes) else None,
        n_params=release.n_params,
        license=release.license,
        author=post.author if post else None,
        date=post.date.isoformat() if post else None,
        url=post.url if post else None,
    )


def _file(file: ReleaseFile) -> dict[str, object]:
    digests = {digest.algorithm: digest.hex for digest in file.digests}
    return {"path": file.path, "nbytes": file.nbytes, **digests}


def _render(console: Console, report: ReleasesReport, *, one: bool) -> None:
    if one:
        _render_one(console, report.releases[0])
        return
    columns = [
        Column("name"),
        Column("posted"),
        Column("parameters", right=True),
        Column("license"),
        Column("info-hash"),
        Column("also at"),
    ]
    rows = [
        (
            known.name,
            known.date or "-",
            count(known.n_params) if known.n_params else "-",
            known.license or "-",
            known.info_hash,
            ", ".join(f"hf:{copy['repository']}" for copy in known.hub) or "-",
        )
        for known in report.releases
    ]
    console.table(columns, rows)
    console.hint("moetool releases NAME shows all of one; moetool fetch NAME fetches it")


def _render_one(console: Console, known: Known) -> None:
    posted = " ".join(text for text in (known.author, known.date, known.url) if text)
    facts: list[tuple[str, object]] = [
        ("name", known.name),
        ("info-hash", known.info_hash),
        ("posted", posted or "not recorded"),
        ("license", known.license or "not recorded"),
        ("parameters", f"{known.n_params:,}" if known.n_params else "not recorded"),
        ("RELEASE md5", known.release_md5 or "not recorded"),
        *(("tracker", url) for url in known.trackers),
        *(("web seed", url) for url in known.web_seeds),
        *(("hub copy", f"hf:{copy['repository']}  ({copy['form']})") for copy in known.hub),
    ]
    console.facts(facts)
    for file in known.files:
        nbytes = file["nbytes"]
        shown = size(nbytes) if isinstance(nbytes, int) else "size not recorded"
        digests = [f"{key} {value}" for key, value in file.items() if key not in {"path", "nbytes"}]
        console.line(safe(f"file         {file['path']}  {shown}"))
        for text in digests or ["no digest recorded"]:
            console.line(f"             {text}")
    if not known.files:
        console.line("files        not recorded; the torrent says which")
    console.line(f"\n{known.magnet}")
    console.hint(f"moetool fetch {known.name}")
